"""Predictor-corrector sampling: a corrector after each step."""

from diffax import random
from diffax._checks import check_like
from diffax.samplers._base import Sampler, check_sampler, unless_still
from diffax.samplers._langevin import Corrector
from diffax.typing import Denoiser, Keys, SamplerState, Times

SALT = 0x1A9E0000  # folded into the key, so that a corrector and its sampler draw independent noise


def corrected(sampler: Sampler, corrector: Corrector) -> Sampler:
    """A sampler with a corrector: after each step from t to s the corrector moves x at level s.

    The move edits x in the state, so every sampler, single-step or multistep, continues from the corrected x. A
    corrector with no steps, or with steps of size 0, does not change the sampler, its noise included. A step of length
    zero is not corrected.

    `order` is the order of the sampler. The bias of a Langevin corrector of size k, O(k^2) as at the head of
    `diffax.samplers._langevin`, does not decrease with the number of steps. `calls` is the sum of both.

    Args:
      sampler: any sampler.
      corrector: such as `langevin(schedule, snr=0.16)`.

    Raises:
      ValueError: if `sampler` is not a `Sampler`; while stepping, if the corrector changes the shape of x.

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
        # Fold in the call count of the inner sampler, so that nested correctors draw different noise.
        x = corrector.move(random.fold_in(key, SALT + sampler.calls), denoise, state.x, s)
        check_like("corrector.move(key, denoise, x, t)", x, state.x)
        return state._replace(x=unless_still(t, s, x, state.x))

    return sampler._replace(step=step, calls=sampler.calls + corrector.calls, noisy=True)
