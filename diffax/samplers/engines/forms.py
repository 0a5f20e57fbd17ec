r"""Forms: ways to write the probability-flow ODE as carry + integral, shared by single-step and multistep samplers.

With lambda = log(alpha / sigma), rho = sigma / alpha, and h the length of a step in the node y:

    form   integrand f                node y                    exact solution
    x0     x0                         lambda                    x_s = sigma_s / sigma_t x_t + alpha_s I_-(x0)
    eps    eps                        lambda                    x_s = alpha_s / alpha_t x_t - sigma_s I_+(eps)
    rho    eps                        rho                       x_s = alpha_s / alpha_t x_t + alpha_s int eps drho
    flow   eps - x0                   sigma / (alpha + sigma)   x_s = n_s / n_t x_t + n_s int (eps - x0) dy
    time   alpha' x0 + sigma' eps     t                         x_s = x_t + int (alpha' x0 + sigma' eps) dt
    trig   see `trig`                 theta                     x_s = c_s / c_t x_t + c_s int f dtheta

    I_-(f) = int e^(lambda - lambda_s) f dlambda,   I_+(f) = int e^(lambda_s - lambda) f dlambda
    n = alpha + sigma,   c^2 = alpha^2 std^2 + sigma^2,   theta = atan(sigma / (alpha std))

A sampler replaces f by a polynomial in y. For this it needs the moments of the form, the integrals of (y - y_t)^j:

    M_j = int_0^h e^(-a (h - u)) a u^j du = a j! h^(j+1) phi_(j+1)(-a h)        x0 (a = 1 for the ODE)
    M_j = int_0^h e^(h - u) u^j du = j! h^(j+1) phi_(j+1)(h)                     eps
    M_j = h^(j+1) / (j + 1)                                                      rho, flow, time, trig

Sources: Lu et al. 2022 (eps), eq. 3.4; Lu et al. 2022b (x0), eq. 9; Zhang & Chen 2023 (rho), proposition 3;
Lipman et al. 2023 (flow, time); Lu & Song 2025 (trig, std = 1).
phi_k are the functions of exponential integrators (Hochbruck & Ostermann 2010).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from diffax._checks import choose
from diffax._pytrees import combine
from diffax.schedules import rates
from diffax.typing import Denoiser, Level, PerExample, Scalar, Schedule, Times, Tree


def cross(level_t: Level, level_s: Level) -> Any:
    """The cross product alpha_t sigma_s - sigma_t alpha_s, as a sum of two terms of one sign, so that nothing cancels.

    The lengths of steps and the coefficients of x0 are multiples of it.
    """
    sigma_rise, alpha_fall = level_s.sigma - level_t.sigma, level_t.alpha - level_s.alpha
    return level_t.alpha * sigma_rise + level_t.sigma * alpha_fall


def log_step(level_t: Level, level_s: Level) -> Any:
    """The length h = lambda_s - lambda_t, lambda = log(alpha / sigma), from the same alpha and sigma as the step's.

    The difference of two rounded log-SNRs would be off by 1e-6 in float32 in each step, and these errors add up.
    """
    scale = level_s.alpha * level_t.sigma
    ratio = cross(level_t, level_s) / scale
    near = jnp.abs(ratio) < 0.5
    return -jnp.where(near, jnp.log1p(jnp.where(near, ratio, 0.0)), jnp.log(level_t.alpha * level_s.sigma / scale))


class Form(NamedTuple):
    """One row of the table at the head of this module.

    node: (t, level) -> y
    length: (t, level_t, s, level_s) -> h = y_s - y_t, without cancellation
    value: (schedule, t, level, x, x0) -> f
    carry: (level_t, level_s) -> coefficient of x_t
    gain: level_s -> coefficient of the integral
    moments: (h, n, a) -> [M_0 .. M_(n-1)]
    scale: nodes below this size have the round-off of nodes of this size, as a logarithm near 0 is a difference.
    """

    node: Callable[..., Any]
    length: Callable[..., Any]
    value: Callable[..., Any]
    carry: Callable[..., Any]
    gain: Callable[..., Any]
    moments: Callable[..., Any]
    scale: float = 1e-3


def phi(z: Tree, n: int) -> list[Any]:
    """The functions [phi_1(z) .. phi_n(z)] of exponential integrators, for z of any shape, exact at z = 0.

        phi_0 = exp,   phi_(k+1)(z) = (phi_k(z) - 1 / k!) / z

    >>> [round(float(p), 4) for p in phi(jnp.asarray(0.0), 3)]
    [1.0, 0.5, 0.1667]
    """
    near = jnp.abs(z) < 1
    small, big = jnp.where(near, z, 0.0), jnp.where(near, 1.0, z)
    # For |z| < 1 the recursion upwards cancels, so start from a Taylor series of phi_n and go downwards.
    series = jnp.zeros_like(small)
    for k in reversed(range(18)):
        series = series * small + 1 / math.factorial(k + n)
    down = [series]
    for k in reversed(range(1, n)):
        down.insert(0, small * down[0] + 1 / math.factorial(k))
    up = [jnp.expm1(big) / big]
    for k in range(1, n):
        up.append((up[-1] - 1 / math.factorial(k)) / big)
    return [jnp.where(near, a, b) for a, b in zip(down, up, strict=True)]


def _exponential(h: PerExample, n: int, z: Tree) -> Any:
    return [math.factorial(j) * h ** (j + 1) * p for j, p in enumerate(phi(z, n))]


def _polynomial(h: PerExample, n: int, a: Scalar) -> Any:
    return [h ** (j + 1) / (j + 1) for j in range(n)]


def _eps(schedule: Schedule, t: Times, level: Level, x: Tree, x0: Tree) -> Any:
    return combine((1 / level.sigma, x), (-level.alpha / level.sigma, x0))


def _velocity(schedule: Schedule, t: Times, level: Level, x: Tree, x0: Tree) -> Any:
    alpha_rate, sigma_rate = rates(schedule, t)
    return combine((sigma_rate / level.sigma, x), (alpha_rate - sigma_rate * level.alpha / level.sigma, x0))


def _lambda(t: Times, level: Level) -> Any:
    return level.log_snr / 2


def _log_length(t: Times, level_t: Level, s: Times, level_s: Level) -> Any:
    return log_step(level_t, level_s)


def _rho(t: Times, level: Level) -> Any:
    return level.sigma / level.alpha


def _rho_length(t: Times, level_t: Level, s: Times, level_s: Level) -> Any:
    return cross(level_t, level_s) / (level_t.alpha * level_s.alpha)


def _flow_node(t: Times, level: Level) -> Any:
    return level.sigma / (level.alpha + level.sigma)


def _flow_length(t: Times, level_t: Level, s: Times, level_s: Level) -> Any:
    return cross(level_t, level_s) / ((level_t.alpha + level_t.sigma) * (level_s.alpha + level_s.sigma))


def _flow_value(schedule: Schedule, t: Times, level: Level, x: Tree, x0: Tree) -> Any:
    return combine((1 / level.sigma, x), (-1 - level.alpha / level.sigma, x0))


FORMS = {
    "x0": Form(
        node=_lambda,
        length=_log_length,
        value=lambda schedule, t, level, x, x0: x0,
        carry=lambda level_t, level_s: level_s.sigma / level_t.sigma,
        gain=lambda level_s: level_s.alpha,
        moments=lambda h, n, a: [a * m for m in _exponential(h, n, -a * h)],
        scale=1.0,
    ),
    "eps": Form(
        node=_lambda,
        length=_log_length,
        value=_eps,
        carry=lambda level_t, level_s: level_s.alpha / level_t.alpha,
        gain=lambda level_s: -level_s.sigma,
        moments=lambda h, n, a: _exponential(h, n, h),
        scale=1.0,
    ),
    "rho": Form(
        node=_rho,
        length=_rho_length,
        value=_eps,
        carry=lambda level_t, level_s: level_s.alpha / level_t.alpha,
        gain=lambda level_s: level_s.alpha,
        moments=_polynomial,
    ),
    "flow": Form(
        node=_flow_node,
        length=_flow_length,
        value=_flow_value,
        carry=lambda level_t, level_s: (level_s.alpha + level_s.sigma) / (level_t.alpha + level_t.sigma),
        gain=lambda level_s: level_s.alpha + level_s.sigma,
        moments=_polynomial,
    ),
    "time": Form(
        node=lambda t, level: t,
        length=lambda t, level_t, s, level_s: s - t,
        value=_velocity,
        carry=lambda level_t, level_s: 1.0,
        gain=lambda level_s: 1.0,
        moments=_polynomial,
    ),
}


def trig(std: PerExample) -> Form:
    """The form `trig`, which is exact for data N(0, std^2 I), because its integrand is then 0.

        f = cos(theta) eps - sin(theta) x0 / std = (alpha std x - c^2 x0 / std) / (c sigma)

    Args:
      std: standard deviation of the data, > 0, () or (B,), may be traced.

    Source: Lu & Song 2025 (TrigFlow), which is std = 1, rho = tan(theta).
    """

    def norm(level: Level) -> Any:
        return jnp.sqrt(jnp.square(level.alpha * std) + jnp.square(level.sigma))

    def value(schedule: Schedule, t: Times, level: Level, x: Tree, x0: Tree) -> Any:
        c = norm(level)
        return combine((level.alpha * std / (c * level.sigma), x), (-c / (std * level.sigma), x0))

    def node(t: Times, level: Level) -> Any:
        return jnp.arctan2(level.sigma, level.alpha * std)

    def length(t: Times, level_t: Level, s: Times, level_s: Level) -> Any:
        cosine = level_t.alpha * level_s.alpha * jnp.square(std) + level_t.sigma * level_s.sigma
        return jnp.arctan2(std * cross(level_t, level_s), cosine)

    def carry(level_t: Level, level_s: Level) -> Any:
        c_t, c_s = norm(level_t), norm(level_s)
        # Compute c_s / c_t - 1 from differences. For vp the norm c is near 1 and rounds down, so a product of 1,000
        # rounded ratios would drift.
        alpha_change = jnp.square(std) * (level_s.alpha - level_t.alpha) * (level_s.alpha + level_t.alpha)
        sigma_change = (level_s.sigma - level_t.sigma) * (level_s.sigma + level_t.sigma)
        change = (alpha_change + sigma_change) / (c_t * (c_s + c_t))
        return jnp.where(jnp.abs(change) < 0.5, 1 + change, c_s / c_t)

    return Form(node=node, length=length, value=value, carry=carry, gain=norm, moments=_polynomial)


def evaluate(form: Form, schedule: Schedule, denoise: Denoiser, x: Tree, t: Times, level: Level) -> Any:
    """The integrand f of a form at (x, t), from one denoiser call."""
    return form.value(schedule, t, level, x, denoise(x, t))


def begins_in_noise(schedule: Schedule, t: Times) -> Any:
    """Whether a step from t must have order 1: at t = 1 of a schedule with `ends_in_noise`.

    The result is the literal False for all other schedules, so that their steps need no `where`.
    """
    ends = getattr(schedule, "ends_in_noise", False)
    return False if ends is False else (jnp.asarray(t) >= 1) & ends


def higher_order(schedule: Schedule, t: Times, weight: PerExample) -> Any:
    """The weight of a term beyond order 1 in a step from t, replaced by 0 where `begins_in_noise`."""
    in_noise = begins_in_noise(schedule, t)
    return weight if in_noise is False else jnp.where(in_noise, 0.0, weight)


def check_order(order: object, most: int) -> int:
    """Return `order` as an int; raise `ValueError` unless it is an int in 1 .. most."""
    if isinstance(order, bool) or not isinstance(order, (int, np.integer)) or not 1 <= order <= most:
        raise ValueError(f"order must be an int in 1 .. {most}, got {order!r}")
    return int(order)


def form_of(predict: str | Form, known: tuple[str, ...]) -> Form:
    """The `Form` of a name in `known`; a `Form` is returned unchanged."""
    if isinstance(predict, Form):
        return predict
    return choose("form", predict, {name: FORMS[name] for name in known})
