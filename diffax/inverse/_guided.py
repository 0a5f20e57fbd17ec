"""Denoisers that know of a measurement: denoiser -> denoiser, for any sampler. Equations head the package."""

from typing import Any

import jax
import jax.numpy as jnp

from diffax._checks import check, check_count, check_function, check_per_example, check_schedule, non_negative, positive
from diffax._pytrees import combine
from diffax.denoisers import like_x
from diffax.inverse._linear_map import conjugate_residuals
from diffax.inverse._operators import Operator, measurement, project, residual
from diffax.typing import Denoiser, PerExample, Scalar, Schedule, Times, Tree, Weight


def ddnm(denoise: Denoiser, operator: Operator, y: Tree) -> Denoiser:
    """DDNM: x0 <- A^+ y + (I - A^+ A) x0, so that every x0 measures y exactly. For y without noise.

    The range of A is y's, its null space the denoiser's, whatever the level; hence biased. Neutral where nothing is
    measured; y itself where all of x is. `ddnm_plus` is for noise.

    Clipping and guidance of `denoise` do not touch the range of A: y is met exactly with them and without. A correction
    that spreads over several entries (boxes, blur) may take x0 out of the range that it was clipped to.

    Source: Wang, Yu & Zhang 2022, eq. 13.

    Args:
      denoise: (x, t) -> x0.
      operator: a measurement.
      y: (B, ...) or (1, ...), its value.

    Raises:
      ValueError: if y has another shape than the operator's measurements.

    >>> from diffax.inverse import Mask
    >>> ddnm(lambda x, t: 0 * x, Mask(jnp.array([1, 0])), jnp.array([[3.0, 0.0]]))(jnp.ones((1, 2)), 0.5).tolist()
    [[3.0, 0.0]]
    """
    y, denoise = measurement(operator, y), _checked(denoise)
    return lambda x, t: project(operator, y, denoise(x, t))


def _checked(denoise: Denoiser) -> Any:
    check_function("denoise", denoise)
    return like_x("denoise", denoise)


def pigdm(
    denoise: Denoiser,
    schedule: Schedule,
    operator: Operator,
    y: Tree,
    *,
    std: PerExample = 0.0,
    data_variance: PerExample = 1.0,
) -> Denoiser:
    """PiGDM: the score of p(y | x) as if x0 | x were N(x0(x), r^2 I).

        r^2 = sigma^2 v / (alpha^2 v + sigma^2),   v = data_variance
        x0 <- x0 + sigma^2 / alpha  J^T A^T (r^2 A A^T + std^2 I)^-1 (y - A x0),   J = d x0 / d x

    Exact for data ~ N(m, v I), since r^2 is then the variance of x0 | x and sigma^2 / alpha J = r^2 I; `mmps` is exact
    for any Gaussian. One vector-Jacobian product of the network a call. Neutral at std = inf.

    J of a clipped x0 is 0 at the entries that are clipped, so their residual has no effect; guidance makes J less
    symmetric, which this method does not need. Guided and clipped, the digits model is restored well (docs/inverse.md).

    Source: Song, Vahdat, Mardani & Kautz 2023, eq. 7 and 8; r^2 is theirs of section 3.3 with v = 1, for any scaling.
    Their algorithm 1 multiplies the step by a weight of its own besides; here it is Tweedie's formula.

    Args:
      denoise: (x, t) -> x0, differentiable in x.
      schedule: noise schedule.
      operator: a measurement.
      y: (B, ...) or (1, ...), its value.
      std: standard deviation of the measurement's noise, () or (B,), >= 0, may be traced.
      data_variance: v, () or (B,), > 0, may be traced.

    Raises:
      ValueError: if y has another shape than the operator's measurements, std < 0 or data_variance <= 0.

    >>> import diffax
    >>> data = diffax.analytic.Gaussian.from_covariance([0.0, 0.0], 1.0)
    >>> mask, schedule = diffax.inverse.Mask(jnp.array([1, 0])), diffax.Cosine()
    >>> guided = pigdm(data.denoiser(schedule), schedule, mask, jnp.array([[2.0, 0.0]]))
    >>> guided(jnp.zeros((1, 2)), 0.5).round(4).tolist()
    [[2.0, 0.0]]
    """
    check_schedule(schedule)
    y, denoise = measurement(operator, y), _checked(denoise)
    check("std", std, non_negative)
    check("data_variance", data_variance, positive)

    def guided(x: Tree, t: Times) -> Any:
        check_per_example(x, std=std, data_variance=data_variance)
        level = schedule(t)
        x0, pull = jax.vjp(lambda x: denoise(x, t), x)
        spread = data_variance / (1 + data_variance * jnp.exp(level.log_snr))
        variance, counts = _finite(std)
        z = operator.solve(residual(operator, y, x0), spread, variance)
        return combine((1.0, x0), (counts * level.sigma**2 / level.alpha, pull(_like(operator.adjoint(z), x0))[0]))

    return guided


def mmps(
    denoise: Denoiser, schedule: Schedule, operator: Operator, y: Tree, *, std: PerExample = 0.0, iterations: int = 4
) -> Denoiser:
    """Moment matching: the score of p(y | x) as if x0 | x were N(x0(x), V) with its own covariance, by Tweedie.

        V = Cov(x0 | x) = sigma^2 / alpha  J^T,   J = d x0 / d x
        x0 <- x0 + V A^T (A V A^T + std^2 I)^-1 (y - A x0)

    The inverse by `conjugate_residuals`, each iteration one vector-Jacobian product of the network. Exact for Gaussian
    data of any covariance, if the iterations suffice (the rank of A, in exact arithmetic). Neutral at std = inf.

    V is a covariance only as far as `denoise` is a posterior mean. A network's Jacobian at high noise, a guided or a
    clipped one's is neither symmetric nor positive. Two rules keep the answer bounded, each example by itself:

        stop       at <r, (A V A^T + std^2 I) r> <= 0, r the residual that is left; it never grows
        fall back  r is then measured with V = r_t^2 I:  x0 <- x0 + r_t^2 A^T (r_t^2 A A^T + std^2 I)^-1 r

    r_t^2 = sigma^2 / (alpha^2 + sigma^2), as in `pigdm` with data_variance = 1. An example that stops at the first
    iteration has the isotropic answer alone, at std = 0 that of `ddnm`. For Gaussian data r = 0: the rule does nothing.

    With these rules clipping and guidance of `denoise` change the result little on the digits model, where two
    iterations are enough; without the rules they ruin it (docs/inverse.md).

    Source: Rozet, Andry, Lanusse & Louppe 2024, section 4.2; with a diagonal in place of V, Boys et al. 2023 (TMPD).

    Args:
      denoise: (x, t) -> x0, differentiable in x.
      schedule: noise schedule.
      operator: a measurement.
      y: (B, ...) or (1, ...), its value.
      std: standard deviation of the measurement's noise, () or (B,), >= 0, may be traced.
      iterations: of conjugate residuals, an int >= 1.

    Raises:
      ValueError: if y has another shape than the operator's measurements, std < 0 or iterations < 1.

    >>> import diffax
    >>> data = diffax.analytic.Gaussian.from_covariance([0.0, 0.0], [[1.0, 0.5], [0.5, 1.0]])
    >>> mask, schedule = diffax.inverse.Mask(jnp.array([1, 0])), diffax.Cosine()
    >>> guided = mmps(data.denoiser(schedule), schedule, mask, jnp.array([[2.0, 0.0]]))
    >>> guided(jnp.zeros((1, 2)), 1.0).round(3).tolist()
    [[2.0, 1.0]]
    """
    check_schedule(schedule)
    y, denoise = measurement(operator, y), _checked(denoise)
    check("std", std, non_negative)
    check_count("iterations", iterations)

    def guided(x: Tree, t: Times) -> Any:
        check_per_example(x, std=std)
        level = schedule(t)
        x0, pull = jax.vjp(lambda x: denoise(x, t), x)

        # Both sides over 1 + std^2, so that std = inf is an ordinary value, and the right one again after solving.
        variance, counts = _finite(std)
        of_map = counts / (1 + variance)
        of_one = jnp.where(counts > 0, variance / (1 + variance), 1.0)

        def apply(r: Scalar) -> Any:
            change = combine((of_map * level.sigma**2 / level.alpha, pull(_like(operator.adjoint(r), x0))[0]))
            return change, combine((of_one, r), (1.0, operator.forward(change)))

        change, rest = conjugate_residuals(apply, residual(operator, y, x0), iterations)
        isotropic = 1 / (1 + jnp.exp(level.log_snr))
        rest = operator.adjoint(operator.solve(rest, isotropic, variance))
        return combine((1.0, x0), (1.0, change), (counts * isotropic, rest))

    return guided


def diffpir(
    denoise: Denoiser, schedule: Schedule, operator: Operator, y: Tree, *, std: PerExample, weight: Weight = 1.0
) -> Denoiser:
    """DiffPIR's proximal step: the x0 that trades the measurement for the denoiser's answer.

        rho = weight std^2 alpha^2 / sigma^2
        x0 <- argmin_x |y - A x|^2 + rho |x - x0|^2 = x0 + A^T (A A^T + rho I)^-1 (y - A x0)

    Goes with the sampler `renoising(schedule, zeta=...)`, which is the rest of the method, or with any other. It is
    `ddnm` at std = 0 and neutral at std = inf. This is the mean of x0 | x, y as if x0 | x
    were N(x0, sigma^2 / (weight alpha^2) I), which it is not: biased. Clipping and guidance act as in `ddnm`.

    Source: Zhu et al. 2023, eq. 12b and 13, algorithm 1; weight is their lambda, which they tune between 1 and 25.

    Args:
      denoise: (x, t) -> x0.
      schedule: noise schedule.
      operator: a measurement.
      y: (B, ...) or (1, ...), its value.
      std: standard deviation of the measurement's noise, () or (B,), >= 0, may be traced.
      weight: () or (B,), > 0, may be traced.

    Raises:
      ValueError: if y has another shape than the operator's measurements, std < 0 or weight <= 0.

    >>> import diffax
    >>> mask, schedule = diffax.inverse.Mask(jnp.array([1, 0])), diffax.Cosine()
    >>> guided = diffpir(lambda x, t: 0 * x, schedule, mask, jnp.array([[2.0, 0.0]]), std=1.0)
    >>> guided(jnp.zeros((1, 2)), 0.5).round(4).tolist()
    [[1.0, 0.0]]
    """
    check_schedule(schedule)
    y, denoise = measurement(operator, y), _checked(denoise)
    check("std", std, non_negative)
    check("weight", weight, positive)

    def guided(x: Tree, t: Times) -> Any:
        check_per_example(x, std=std, weight=weight)
        x0 = denoise(x, t)
        variance, counts = _finite(std)
        rho = weight * variance * jnp.exp(schedule(t).log_snr)
        z = operator.solve(residual(operator, y, x0), 1.0, rho)
        return combine((1.0, x0), (counts, operator.adjoint(z)))

    return guided


def _finite(std: PerExample) -> Any:
    """(std^2, 1), or (1, 0) where std is infinite: the measurement does not count, with finite slopes."""
    infinite = jnp.isinf(jnp.square(std))  # from 2e19 on in float32
    return jnp.square(jnp.where(infinite, 1.0, std)), jnp.where(infinite, 0.0, 1.0)


def _like(value: Tree, x0: Tree) -> Any:
    return jax.tree.map(lambda v, like: v.astype(like.dtype), value, x0)
