"""Predictor-corrector sampling: a corrector behind each step."""

import jax
import jax.numpy as jnp

from diffax import random
from diffax._checks import check_like
from diffax._pytrees import expand
from diffax.samplers._base import Sampler, check_sampler
from diffax.samplers._langevin import Corrector
from diffax.typing import Denoiser, Keys, SamplerState, Times

SALT = 0x1A9E0000  # keeps a corrector's draws apart from those of the sampler that it corrects


def corrected(sampler: Sampler, corrector: Corrector) -> Sampler:
    """Sampler -> sampler: after each step t -> s of the sampler the corrector moves x at level s.

    The move is an edit of x, so any sampler, multistep ones too, goes on from the corrected x. Without steps, or
    with steps of size 0, it is the bare sampler, noise included. A step of length zero stays one: it is not corrected.

    Order: that of the sampler, for what the sampler does; the bias of the corrector's own step size, O(k^2) as at
    the head of this module, does not fall with the number of steps. Calls: those of both.

    Source: Song et al. 2021, algorithm 1 (predictor-corrector sampling).

    >>> import diffax
    >>> schedule = diffax.Cosine()
    >>> corrected(diffax.ddim(schedule), diffax.langevin(schedule, snr=0.16, num_steps=2)).calls
    3
    """
    check_sampler(sampler)
    if corrector.calls == 0:
        return sampler

    def step(key: Keys, denoise: Denoiser, state: SamplerState, t: Times, s: Times) -> SamplerState:
        state = sampler.step(key, denoise, state, t, s)
        # The calls of what is inside tell correctors around correctors apart.
        x = corrector.move(random.fold_in(key, SALT + sampler.calls), denoise, state.x, s)
        check_like("corrector.move(key, denoise, x, t)", x, state.x)
        moves = jnp.asarray(t) != s
        return state._replace(x=jax.tree.map(lambda new, old: jnp.where(expand(moves, old), new, old), x, state.x))

    return sampler._replace(step=step, calls=sampler.calls + corrector.calls, noisy=True)
