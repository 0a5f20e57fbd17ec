"""CFG++: the guided x0, renoised with the unconditional eps.

    x0  = u + w (c - u)
    x_s = alpha_s x0 + sigma_s eps_u,   eps_u = (x_t - alpha_t u) / sigma_t

This is the unconditional step of the sampler plus alpha_s w (c - u).
"""

from typing import Any

import jax.numpy as jnp

from diffax._checks import check_function, check_per_example, check_schedule, check_weight
from diffax._pytrees import combine
from diffax.denoisers import like_x, x0_of
from diffax.samplers._base import Sampler, check_of_data, check_open
from diffax.typing import Denoiser, Keys, SamplerState, Schedule, Times, Tree, Weight


def cfg_plus_plus(sampler: Sampler, schedule: Schedule, conditional: Denoiser, weight: Weight) -> Sampler:
    """CFG++ (Chung et al. 2024, algorithm 2): x_s of the unconditional step, plus alpha_s w (c - u).

    Pass the unconditional denoiser to `integrate` or `sample`. c and u are evaluated at the first denoiser call of a
    step, so a step costs one conditional call and no additional unconditional call. Around `ddim` this is exactly the
    update of the paper, with any eta, and also towards noise (its inversion). The history of a multistep sampler holds
    the unconditional x0. Apply this wrapper directly to the sampler, inside other wrappers.

    w is not the weight w' of classifier-free guidance. For DDIM the two steps are equal if w = w' (1 - exp((lambda_t -
    lambda_s) / 2)), lambda the log-SNR, so a fixed w corresponds to w' of about 2 w / (lambda_s - lambda_t) and the
    guidance becomes stronger with more steps. There is no limit of many steps; `order` is the order of the sampler at
    w = 0. A step of length zero changes nothing.

    `sample` ends with the unconditional denoiser. In the paper the last x0 is guided by the same rule:

        state = integrate(key, cfg_plus_plus(ddim(schedule), schedule, conditional, w), unconditional, x, times)
        x0 = classifier_free_guidance(conditional, unconditional, w)(state.x, times[-1])

    Args:
      sampler: a sampler that calls its denoiser directly in its step, not inside `scan`, `cond` or another transform.
      schedule: its schedule.
      conditional: (x, t) -> c.
      weight: w, () or (B,), in [0, 1] in the paper, or a function of t; may be traced.

    Raises:
      ValueError: if the conditional denoiser or the weight is missing, or the sampler renoises (`restart`);
        while stepping, if the sampler does not call its denoiser.

    >>> import jax, diffax
    >>> schedule = diffax.Flow()
    >>> sampler = cfg_plus_plus(diffax.ddim(schedule), schedule, lambda x, t: x + 1, 0.5)
    >>> state = sampler.init(jnp.zeros((1, 1)), None)
    >>> sampler.step(jax.random.key(0), lambda x, t: 0 * x, state, 0.75, 0.5).x.tolist()  # 0.5 * 0.5 * 1
    [[0.25]]
    """
    check_open(sampler)
    check_schedule(schedule)
    check_function("conditional", conditional, "a denoiser (x, t) -> x0")
    check_weight("weight", weight)
    conditional = like_x("conditional", conditional)

    def step(key: Keys, denoise: Denoiser, state: SamplerState, t: Times, s: Times) -> SamplerState:
        check_of_data("cfg_plus_plus", denoise)
        calls = []

        def recording(x: Tree, t: Times) -> Any:
            output = denoise(x, t)
            calls.append((x, t, x0_of(output)))
            return output

        state = sampler.step(key, recording, state, t, s)
        if not calls:
            raise ValueError(f"sampler must call its denoiser in a step, got {sampler}")
        x, time, u = calls[0]
        level_t, level_s = schedule(t), schedule(s)
        w = weight(time) if callable(weight) else weight
        check_per_example(x, weight=w)
        scale = jnp.where(level_t.log_snr == level_s.log_snr, 0.0, level_s.alpha * jnp.asarray(w))
        return state._replace(x=combine((1.0, state.x), (scale, x0_of(conditional(x, time))), (-scale, u)))

    return sampler._replace(step=step)
