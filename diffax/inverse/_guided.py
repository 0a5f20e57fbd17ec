"""Methods that wrap the denoiser, denoiser -> denoiser, for any sampler. The package docstring has the equations."""

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
    """DDNM: x0 <- A^+ y + (I - A^+ A) x0, so that every x0 satisfies A x0 = y. For y without noise.

    At every noise level, y determines the component of x0 in the range of A^T, and the denoiser the component in the
    null space of A. The method is therefore biased. It returns the x0 of the denoiser if nothing is measured, and y
    itself if all of x is measured. For y with noise use `ddnm_plus`.

    Clipping and guidance of `denoise` do not change the component in the range of A^T: A x0 = y holds with and without
    them. A correction that spreads over several entries (boxes, blur) may take x0 out of the range of the clipping.

    Args:
      denoise: (x, t) -> x0.
      operator: a measurement operator.
      y: (B, ...) or (1, ...), the measurement.

    Raises:
      ValueError: if y does not have the shape of the operator's measurements.

    Source: Wang, Yu & Zhang 2022, eq. 13.

    >>> from diffax.inverse import Mask
    >>> ddnm(lambda x, t: 0 * x, Mask(jnp.array([1, 0])), jnp.array([[3.0, 0.0]]))(jnp.ones((1, 2)), 0.5).tolist()
    [[3.0, 0.0]]
    """
    y, denoise = measurement(operator, y), _checked(denoise)
    return lambda x, t: project(operator, y, denoise(x, t))


def _checked(denoise: Denoiser) -> Any:
    """The denoiser, which raises `ValueError` if it is not a function or does not return the shape of x."""
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
    """PiGDM: the score of p(y | x) under the assumption x0 | x ~ N(x0(x), r^2 I).

        r^2 = sigma^2 v / (alpha^2 v + sigma^2),   v = data_variance
        x0 <- x0 + sigma^2 / alpha  J^T A^T (r^2 A A^T + std^2 I)^-1 (y - A x0),   J = d x0 / d x

    It is exact for data ~ N(m, v I), since r^2 is then the variance of x0 | x and sigma^2 / alpha J = r^2 I; `mmps` is
    exact for any Gaussian. It costs one vector-Jacobian product of the network a call. std = inf turns it off.

    J of a clipped x0 is 0 at the clipped entries, so their residual has no effect. Guidance makes J less symmetric, but
    this method does not need a symmetric J. It restores images of the digits model well with guidance and clipping
    (docs/inverse.md).

    Args:
      denoise: (x, t) -> x0, differentiable in x.
      schedule: noise schedule.
      operator: a measurement operator.
      y: (B, ...) or (1, ...), the measurement.
      std: standard deviation of the noise of y, () or (B,), >= 0, may be traced; default 0.
      data_variance: v, () or (B,), > 0, default 1, may be traced.

    Raises:
      ValueError: if y does not have the shape of the operator's measurements, std < 0 or data_variance <= 0.

    Source: Song, Vahdat, Mardani & Kautz 2023, eq. 7 and 8; r^2 is from their section 3.3 with v = 1, for any scaling.
    Their algorithm 1 multiplies the step by an additional weight; here the step follows Tweedie's formula.

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
        x0, apply_vjp = jax.vjp(lambda x: denoise(x, t), x)
        x0_variance = data_variance / (1 + data_variance * jnp.exp(level.log_snr))
        variance, active = _finite(std)
        z = operator.solve(residual(operator, y, x0), x0_variance, variance)
        return combine((1.0, x0), (active * level.sigma**2 / level.alpha, apply_vjp(_like(operator.adjoint(z), x0))[0]))

    return guided


def mmps(
    denoise: Denoiser, schedule: Schedule, operator: Operator, y: Tree, *, std: PerExample = 0.0, iterations: int = 4
) -> Denoiser:
    """Moment matching: the score of p(y | x) under the assumption x0 | x ~ N(x0(x), V), with V by Tweedie's formula.

        V = Cov(x0 | x) = sigma^2 / alpha  J^T,   J = d x0 / d x
        x0 <- x0 + V A^T (A V A^T + std^2 I)^-1 (y - A x0)

    `conjugate_residuals` computes the inverse; each iteration costs one vector-Jacobian product of the network. The
    method is exact for Gaussian data of any covariance if there are enough iterations (the rank of A, in exact
    arithmetic). std = inf turns it off.

    V is a covariance only if `denoise` is a posterior mean. In general the Jacobian of a network at high noise, or of a
    guided or clipped network, is neither symmetric nor positive. Two rules, applied to each example by itself, bound
    the result:

        stop       at <r, (A V A^T + std^2 I) r> <= 0, where r is the remaining residual; |r| never grows
        fall back  use V = r_t^2 I for this r:  x0 <- x0 + r_t^2 A^T (r_t^2 A A^T + std^2 I)^-1 r

    r_t^2 = sigma^2 / (alpha^2 + sigma^2), as in `pigdm` with data_variance = 1. An example that stops at the first
    iteration has only the isotropic correction, which at std = 0 is that of `ddnm`. For Gaussian data r = 0, so the
    fallback changes nothing.

    With these rules, clipping and guidance of `denoise` change the result little on the digits model, where two
    iterations are enough. Without the rules the results are unusable (docs/inverse.md).

    Args:
      denoise: (x, t) -> x0, differentiable in x.
      schedule: noise schedule.
      operator: a measurement operator.
      y: (B, ...) or (1, ...), the measurement.
      std: standard deviation of the noise of y, () or (B,), >= 0, may be traced; default 0.
      iterations: of conjugate residuals, an int >= 1; default 4.

    Raises:
      ValueError: if y does not have the shape of the operator's measurements, std < 0 or iterations < 1.

    Source: Rozet, Andry, Lanusse & Louppe 2024, section 4.2; with a diagonal in place of V, Boys et al. 2023 (TMPD).

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
        x0, apply_vjp = jax.vjp(lambda x: denoise(x, t), x)

        # Divide A V A^T + std^2 I by 1 + std^2, so that std = inf gives finite values. `apply` divides V A^T by
        # the same number, so that both factors cancel in the change of x0.
        variance, active = _finite(std)
        c_map = active / (1 + variance)
        c_identity = jnp.where(active > 0, variance / (1 + variance), 1.0)

        def apply(r: Scalar) -> Any:
            change = combine((c_map * level.sigma**2 / level.alpha, apply_vjp(_like(operator.adjoint(r), x0))[0]))
            return change, combine((c_identity, r), (1.0, operator.forward(change)))

        change, remainder = conjugate_residuals(apply, residual(operator, y, x0), iterations)
        isotropic = 1 / (1 + jnp.exp(level.log_snr))
        remainder = operator.adjoint(operator.solve(remainder, isotropic, variance))
        return combine((1.0, x0), (1.0, change), (active * isotropic, remainder))

    return guided


def diffpir(
    denoise: Denoiser, schedule: Schedule, operator: Operator, y: Tree, *, std: PerExample, weight: Weight = 1.0
) -> Denoiser:
    """DiffPIR's proximal step: a compromise between the measurement and the x0 of the denoiser.

        rho = weight std^2 alpha^2 / sigma^2
        x0 <- argmin_x |y - A x|^2 + rho |x - x0|^2 = x0 + A^T (A A^T + rho I)^-1 (y - A x0)

    Use it with the sampler `renoising(schedule, zeta=...)`, which is the rest of the method, or with any other sampler.
    It equals `ddnm` at std = 0, and std = inf turns it off. The result is the mean of x0 | x, y under the assumption
    x0 | x ~ N(x0, sigma^2 / (weight alpha^2) I). This assumption is not true, so the method is biased. Clipping and
    guidance act as in `ddnm`.

    Args:
      denoise: (x, t) -> x0.
      schedule: noise schedule.
      operator: a measurement operator.
      y: (B, ...) or (1, ...), the measurement.
      std: standard deviation of the noise of y, () or (B,), >= 0, may be traced.
      weight: () or (B,), > 0, default 1, may be traced.

    Raises:
      ValueError: if y does not have the shape of the operator's measurements, std < 0 or weight <= 0.

    Source: Zhu et al. 2023, eq. 12b and 13, algorithm 1; weight is their lambda, which they tune between 1 and 25.

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
        variance, active = _finite(std)
        rho = weight * variance * jnp.exp(schedule(t).log_snr)
        z = operator.solve(residual(operator, y, x0), 1.0, rho)
        return combine((1.0, x0), (active, operator.adjoint(z)))

    return guided


def _finite(std: PerExample) -> Any:
    """(std^2, 1), or (1, 0) where std is infinite: the 0 turns the measurement off, with finite gradients."""
    infinite = jnp.isinf(jnp.square(std))  # std^2 overflows float32 from std = 2e19 on
    return jnp.square(jnp.where(infinite, 1.0, std)), jnp.where(infinite, 0.0, 1.0)


def _like(value: Tree, x0: Tree) -> Any:
    """`value` in the dtypes of x0."""
    return jax.tree.map(lambda v, like: v.astype(like.dtype), value, x0)
