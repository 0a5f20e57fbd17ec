r"""Restart: a sampler that jumps back to noise and runs the last stretch again.

    s > t, a jump:   x_s = alpha_s / alpha_t x_t + S std z,   std^2 = sigma_s^2 - (alpha_s / alpha_t)^2 sigma_t^2
    s <= t:          the wrapped sampler's step

The jump draws from q(x_s | x_t), so it costs no denoiser call and errors made above t_max are forgotten by the share of
noise that it adds, while the steps down again are those of the wrapped sampler. The grid says where to jump:

    T ... t_min | t_max ... t_min | t_max ... t_min | ... 0
"""

from typing import Any

import jax
import jax.numpy as jnp

from diffax import random
from diffax._checks import check, check_per_example, check_schedule, non_negative
from diffax._pytrees import as_float, combine, expand
from diffax.samplers._base import Sampler, check_sampler
from diffax.schedules import transition
from diffax.typing import Denoiser, Keys, PerExample, SamplerState, Schedule, Times


def restart(sampler: Sampler, schedule: Schedule, *, noise_scale: PerExample = 1.0) -> Sampler:
    """Sampler -> sampler: steps towards noise add noise; its grid, e.g. from `times.restart`, may turn back.

    Order and calls are those of the sampler; over a grid without turns it is the sampler. A jump makes no denoiser
    call where t and s are scalars; with a grid for each example it makes those of the sampler and drops their result.
    A multistep sampler starts afresh behind a jump.
    Since every step towards noise is random, a reversed grid does not invert here.

    Args:
      sampler: what takes the steps towards data; in the paper a deterministic one, `heun`.
      schedule: noise schedule of the jumps.
      noise_scale: S, () or (B,) >= 0, a factor on the noise of the jumps, may be traced.

    Raises:
      ValueError: if noise_scale is known to be negative.

    Source: Xu et al. 2023, eq. 3 and 4, algorithm 1; S is S_noise of their appendix.

    >>> from diffax.samplers._ddim import ddim
    >>> from diffax.schedules import Cosine
    >>> restart(ddim(Cosine()), Cosine()).renoises
    True
    """
    check_sampler(sampler)
    check_schedule(schedule)
    check("noise_scale", noise_scale, non_negative)

    def step(key: Keys, denoise: Denoiser, state: SamplerState, t: Times, s: Times) -> SamplerState:
        check_per_example(state.x, noise_scale=noise_scale)
        t, s = as_float(t), as_float(s)
        up = s > t

        def jump(state: SamplerState) -> Any:
            scale, std = transition(schedule, jnp.maximum(s, t), t)
            z = random.noise(key, state.x)
            return state._replace(x=combine((scale, state.x), (noise_scale * std, z)))

        def base(state: SamplerState, s: Times) -> Any:
            return sampler.step(key, denoise, state, t, s)

        if up.ndim == 0:
            return jax.lax.cond(up, jump, lambda state: base(state, s), state)
        # Whoever jumps takes a step of length zero, which leaves no trace in what the sampler remembers.
        jumped, new = jump(state), base(state, jnp.where(up, t, s))
        return new._replace(x=jax.tree.map(lambda a, b: jnp.where(expand(up, a), a, b), jumped.x, new.x))

    return sampler._replace(step=step, noisy=True, renoises=True)
