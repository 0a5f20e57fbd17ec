r"""Restart: a sampler that jumps back to noise and samples an interval of noise levels again.

    s > t, a jump:   x_s = alpha_s / alpha_t x_t + S std z,   std^2 = sigma_s^2 - (alpha_s / alpha_t)^2 sigma_t^2
    s <= t:          the step of the wrapped sampler

The jump draws from q(x_s | x_t), so it costs no denoiser call. The noise replaces a part of x, and with it the same
part of the errors made so far. The wrapped sampler then steps down again. The grid contains the jumps:

    T ... t_min | t_max ... t_min | t_max ... t_min | ... 0
"""

from typing import Any

import jax
import jax.numpy as jnp

from diffax import random
from diffax._checks import check, check_per_example, check_schedule, non_negative
from diffax._pytrees import as_float, combine, select
from diffax.samplers._base import Sampler, check_sampler
from diffax.schedules import transition
from diffax.typing import Denoiser, Keys, PerExample, SamplerState, Schedule, Times


def restart(sampler: Sampler, schedule: Schedule, *, noise_scale: PerExample = 1.0) -> Sampler:
    """A sampler whose steps towards noise add noise; its grid, such as that of `times.restart`, may turn back.

    Order and calls do not change; over a grid without turns it is the wrapped sampler. A jump makes no denoiser call if
    t and s are scalars; with a grid for each example it makes the calls of the sampler and discards the results. A
    multistep sampler drops its history at a jump. Each step towards noise is random, so a reversed grid does not
    invert.

    Args:
      sampler: the sampler of the steps towards data; in the paper a deterministic one, `heun`.
      schedule: noise schedule of the jumps.
      noise_scale: S, factor of the noise of the jumps, () or (B,), >= 0, may be traced. Default 1.

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
        # Examples that jump take a zero-length step here, so the sampler's history does not change.
        jumped, stepped = jump(state), base(state, jnp.where(up, t, s))
        return stepped._replace(x=select(up, jumped.x, stepped.x))

    return sampler._replace(step=step, noisy=True, renoises=True)
