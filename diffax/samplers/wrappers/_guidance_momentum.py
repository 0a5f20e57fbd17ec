"""Guidance with momentum: a running sum of the difference c - u of two branches, over the steps k.

d_k = c_k - u_k + beta d_(k - 1)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffax._checks import check, check_function, check_per_example, interval
from diffax._pytrees import combine, widen
from diffax.denoisers import like_x, x0_of
from diffax.samplers._base import Sampler, check_of_data, check_open, unless_still
from diffax.typing import Denoiser, Grid, Guide, Keys, PerExample, SamplerState, Times, Tree


class MomentumState(NamedTuple):
    """x: (B, ...). inner: the state of the wrapped sampler without x. difference: d of the previous step, like x."""

    x: Any
    inner: Any
    difference: Any


def guidance_momentum(sampler: Sampler, conditional: Denoiser, guide: Guide, *, momentum: PerExample = -0.5) -> Sampler:
    """Guidance with d_k = c_k - u_k + beta d_(k - 1) in place of c_k - u_k, where k is the step.

    Pass the unconditional denoiser to `integrate` or `sample`; the sampler steps with guide(c, c - d_k). In a step with
    several calls d_(k - 1) is the same for each, and d of the first call is stored. momentum = 0 is the sampler with
    the guided denoiser. With beta < 0 ("reverse momentum") and `adaptive_projected_guidance` it is the complete method
    of Sadat et al. `sample` ends with the unconditional denoiser; `cfg_plus_plus` shows how to end with a guided one.

    Args:
      sampler: a sampler that calls its denoiser directly in its step, not inside `scan`, `cond` or another transform.
      conditional: (x, t) -> c.
      guide: (conditional, unconditional) -> denoiser, such as
        `lambda c, u: diffax.adaptive_projected_guidance(c, u, 7.5, threshold=2.5)`.
      momentum: beta, () or (B,), in (-1, 1), may be traced. Default -0.5.

    Raises:
      ValueError: if the conditional denoiser or the guidance is missing, or the momentum is known to be out of range;
        if the sampler renoises (`restart`); while stepping, if the sampler does not call its denoiser.

    Source: Sadat et al. 2024, section 4.1.

    >>> import diffax
    >>> guide = lambda c, u: diffax.classifier_free_guidance(c, u, 2.0)
    >>> sampler = guidance_momentum(diffax.ddim(diffax.Cosine()), lambda x, t: x + 1, guide, momentum=-0.5)
    >>> times = jnp.array([0.9, 0.5, 0.1])
    >>> end = diffax.integrate(jax.random.key(0), sampler, lambda x, t: x, jnp.zeros((1, 1)), times)
    >>> end.difference.round(3).tolist()
    [[0.5]]
    """
    check_open(sampler)
    check_function("conditional", conditional, "a function (x, t) -> x0")
    check_function("guide", guide, "a function")
    conditional = like_x("conditional", conditional)
    check("momentum", momentum, interval("(-1, 1)"))

    def init(x: Tree, times: Grid) -> SamplerState:
        check_per_example(x, momentum=momentum)
        x = widen(x)
        return MomentumState(x, sampler.init(x, times)._replace(x=None), jax.tree.map(jnp.zeros_like, x))

    def step(key: Keys, denoise: Denoiser, state: SamplerState, t: Times, s: Times) -> SamplerState:
        check_of_data("guidance_momentum", denoise)
        differences = []

        def guided(x: Tree, t: Times) -> Any:
            output = conditional(x, t)
            c, u = x0_of(output), x0_of(denoise(x, t))
            d = combine((momentum, state.difference), (1.0, c), (-1.0, u))
            differences.append(d)
            c_minus_d = combine((1.0, c), (-1.0, d))
            return guide(lambda x, t: output, lambda x, t: c_minus_d)(x, t)

        inner = sampler.step(key, guided, state.inner._replace(x=state.x), t, s)
        if not differences:
            raise ValueError(f"sampler must call its denoiser in a step, got {sampler}")
        # A step of length zero changes nothing, so it keeps the old difference.
        difference = unless_still(t, s, differences[0], state.difference)
        return MomentumState(inner.x, inner._replace(x=None), difference)

    def finish(key: Keys, denoise: Denoiser, state: SamplerState, t: Times) -> Tree:
        return sampler.finish(key, denoise, state.inner._replace(x=state.x), t)

    return sampler._replace(init=init, step=step, finish=finish)
