r"""The ways to write the probability-flow ODE as carry + integral, shared by single-step and multistep samplers.

With lambda = log(alpha / sigma), rho = sigma / alpha, h the length of a step in the node y:

    form   integrand f                node y                    exact solution
    x0     x0                         lambda                    x_s = sigma_s / sigma_t x_t + alpha_s int e^(lambda - lambda_s) x0 dlambda
    eps    eps                        lambda                    x_s = alpha_s / alpha_t x_t - sigma_s int e^(lambda_s - lambda) eps dlambda
    rho    eps                        rho                       x_s = alpha_s / alpha_t x_t + alpha_s int eps drho
    flow   eps - x0                   sigma / (alpha + sigma)   x_s = n_s / n_t x_t + n_s int (eps - x0) dy,   n = alpha + sigma
    time   alpha' x0 + sigma' eps     t                         x_s = x_t + int (alpha' x0 + sigma' eps) dt

A sampler replaces f by a polynomial in y; what it needs of a form are its moments, the integrals of (y - y_t)^j:

    M_j = int_0^h e^(-a (h - u)) a u^j du = a j! h^(j+1) phi_(j+1)(-a h)        x0 (a = 1 for the ODE)
    M_j = int_0^h e^(h - u) u^j du = j! h^(j+1) phi_(j+1)(h)                     eps
    M_j = h^(j+1) / (j + 1)                                                      rho, flow, time

Sources: Lu et al. 2022 (eps), eq. 3.4; Lu et al. 2022b (x0), eq. 9; Zhang & Chen 2023 (rho), proposition 3;
Lipman et al. 2023 (flow, time). phi_k are the functions of exponential integrators (Hochbruck & Ostermann 2010).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from diffax.pytrees import choose, combine
from diffax.schedules import rates
from diffax.typing import Denoiser, Level, Schedule


class Form(NamedTuple):
    """One row of the table above.

    node: (t, level) -> y
    value: (schedule, t, level, x, x0) -> f
    carry: (level_t, level_s) -> coefficient of x_t
    gain: level_s -> coefficient of the integral
    moments: (h, n, a) -> [M_0 .. M_(n-1)]
    """

    node: Callable
    value: Callable
    carry: Callable
    gain: Callable
    moments: Callable


def phi(z: Any, n: int) -> list:
    """[phi_1(z) .. phi_n(z)], phi_0 = exp, phi_(k+1)(z) = (phi_k(z) - 1 / k!) / z; any shape, exact at z = 0.

    >>> [round(float(p), 4) for p in phi(jnp.asarray(0.0), 3)]
    [1.0, 0.5, 0.1667]
    """
    near = jnp.abs(z) < 1
    small, big = jnp.where(near, z, 0.0), jnp.where(near, 1.0, z)
    # Downwards from a Taylor series where the recursion upwards would cancel.
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


def _exponential(h, n, z):
    return [math.factorial(j) * h ** (j + 1) * p for j, p in enumerate(phi(z, n))]


def _polynomial(h, n, a):
    return [h ** (j + 1) / (j + 1) for j in range(n)]


def _eps(schedule, t, level, x, x0):
    return combine((1 / level.sigma, x), (-level.alpha / level.sigma, x0))


def _velocity(schedule, t, level, x, x0):
    of_alpha, of_sigma = rates(schedule, t)
    return combine((of_sigma / level.sigma, x), (of_alpha - of_sigma * level.alpha / level.sigma, x0))


FORMS = {
    "x0": Form(
        lambda t, level: level.log_snr / 2,
        lambda schedule, t, level, x, x0: x0,
        lambda level_t, level_s: level_s.sigma / level_t.sigma,
        lambda level_s: level_s.alpha,
        lambda h, n, a: [a * m for m in _exponential(h, n, -a * h)],
    ),
    "eps": Form(
        lambda t, level: level.log_snr / 2,
        _eps,
        lambda level_t, level_s: level_s.alpha / level_t.alpha,
        lambda level_s: -level_s.sigma,
        lambda h, n, a: _exponential(h, n, h),
    ),
    "rho": Form(
        lambda t, level: jnp.exp(-level.log_snr / 2),
        _eps,
        lambda level_t, level_s: level_s.alpha / level_t.alpha,
        lambda level_s: level_s.alpha,
        _polynomial,
    ),
    "flow": Form(
        lambda t, level: level.sigma / (level.alpha + level.sigma),
        lambda schedule, t, level, x, x0: combine((1 / level.sigma, x), (-1 - level.alpha / level.sigma, x0)),
        lambda level_t, level_s: (level_s.alpha + level_s.sigma) / (level_t.alpha + level_t.sigma),
        lambda level_s: level_s.alpha + level_s.sigma,
        _polynomial,
    ),
    "time": Form(lambda t, level: t, _velocity, lambda level_t, level_s: 1.0, lambda level_s: 1.0, _polynomial),
}


def evaluate(form: Form, schedule: Schedule, denoise: Denoiser, x: Any, t: Any, level: Level) -> Any:
    """The integrand of a form at (x, t), by one denoiser call."""
    return form.value(schedule, t, level, x, denoise(x, t))


def check_order(order: Any, most: int) -> int:
    """`order` if it is an int in 1 .. most, else a `ValueError`."""
    if isinstance(order, bool) or not isinstance(order, int) or not 1 <= order <= most:
        raise ValueError(f"order must be an int in 1 .. {most}, got {order!r}")
    return order


def form_of(predict: str, known: tuple[str, ...]) -> Form:
    """The form of this name, if it is one of those known."""
    return choose("form", predict, {name: FORMS[name] for name in known})
