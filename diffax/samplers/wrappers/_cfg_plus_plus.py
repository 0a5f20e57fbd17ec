"""CFG++: the guided x0, renoised with the unconditional eps.

    x0  = u + w (c - u)
    x_s = alpha_s x0 + sigma_s eps_u,   eps_u = (x_t - alpha_t u) / sigma_t

which is what a sampler does with u alone, and then alpha_s w (c - u) more.
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

    The sampler is stepped with the unconditional denoiser; c and u are those at its first call in a step, so the
    conditional denoiser is asked once a step and the unconditional one no more often than without guidance. Around
    `ddim` it is the paper's update exactly, with any eta and towards noise too (its inversion); a multistep method
    keeps the unconditional answers in its history. It belongs right around the sampler, inside other wrappers.

    w is not the weight w' of classifier-free guidance: for DDIM a step with w = w' (1 - exp((lambda_t - lambda_s) / 2))
    is the same, so a fixed w means w' about 2 w / (lambda_s - lambda_t), the more steps the stronger. There is no limit
    of many steps, and `order` is that of the sampler at w = 0. A step of length zero changes nothing.

    `sample` ends with the unconditional denoiser. The paper's last x0 is guided, by the same rule:

        state = integrate(key, cfg_plus_plus(ddim(schedule), schedule, conditional, w), unconditional, x, times)
        x0 = classifier_free(conditional, unconditional, w)(state.x, times[-1])

    Args:
      sampler: what to wrap; it must call its denoiser in the open, not inside a loop or another transformation.
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

        def listened(x: Tree, t: Times) -> Any:
            answer = denoise(x, t)
            calls.append((x, t, x0_of(answer)))
            return answer

        state = sampler.step(key, listened, state, t, s)
        if not calls:
            raise ValueError(f"sampler must call its denoiser in a step, got {sampler}")
        x, time, u = calls[0]
        level_t, level_s = schedule(t), schedule(s)
        w = weight(time) if callable(weight) else weight
        check_per_example(x, weight=w)
        push = jnp.where(level_t.log_snr == level_s.log_snr, 0.0, level_s.alpha * jnp.asarray(w))
        return state._replace(x=combine((1.0, state.x), (push, x0_of(conditional(x, time))), (-push, u)))

    return sampler._replace(step=step)
