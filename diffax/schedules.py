"""Noise schedules: a decreasing log-SNR curve times a scaling.

    x_t = alpha x0 + sigma eps,   eps ~ N(0, I),   t in [0, 1]: 0 is data, 1 is noise
    lambda(t) = log(alpha^2 / sigma^2)

A schedule is a frozen dataclass pytree, so its parameters may be traced, vmapped and differentiated.
The scaling turns lambda into (alpha, sigma); any curve combines with any scaling:

    vp      alpha^2 + sigma^2 = 1       alpha^2 = sigmoid(lambda)
    ve      alpha = 1                   sigma = exp(-lambda / 2)
    sub_vp  sigma = 1 - alpha^2         alpha = 2 r / (1 + sqrt(1 + 4 r^2)),  r = exp(lambda / 2)
    flow    alpha + sigma = 1           alpha = sigmoid(lambda / 2)

|lambda| is clipped to 20, so alpha and sigma are never 0 and t = 0 and t = 1 are ordinary points. The
derivatives at and beyond the clip are the one-sided ones from inside.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffax.curves import LOG_SNR_MAX, Curve, straight_through
from diffax.pytrees import as_float, check, concrete, pytree, safe_sqrt, static
from diffax.typing import Schedule


@pytree
class Linear(Curve):
    """The linear-beta VP schedule: beta(t) = beta_min + (beta_max - beta_min) t.

    With B(t) = int_0^t beta: alpha^2 = exp(-B), lambda = -log(exp(B) - 1). It is the continuous limit of
    DDPM's linear betas (Ho et al. 2020) as given by Song et al. 2021, eq. 33.

    Args:
      beta_min: beta at t = 0, > 0.
      beta_max: beta at t = 1, >= beta_min.

    Raises:
      ValueError: if not 0 < beta_min <= beta_max.

    >>> bool(abs(Linear()(1.0).alpha - jnp.exp(-0.25 * 19.9 - 0.05)) < 1e-6)
    True
    """

    beta_min: Any = 0.1
    beta_max: Any = 20.0
    scaling: str = static("vp")

    def __post_init__(self):
        super().__post_init__()
        check("beta_min", self.beta_min, "> 0", lambda v: v > 0)
        low = concrete(self.beta_min)
        if low is not None:
            check("beta_max", self.beta_max, f">= beta_min = {low}", lambda v: v >= low)

    def curve(self, t):
        integral = self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2
        return -jnp.log(jnp.expm1(integral))

    def uncurve(self, log_snr):
        integral = jax.nn.softplus(-log_snr)
        slope = self.beta_max - self.beta_min
        # The root of beta_min t + slope t^2 / 2 = integral, in the form that survives slope = 0.
        return 2 * integral / (self.beta_min + jnp.sqrt(self.beta_min**2 + 2 * slope * integral))


@pytree
class Cosine(Curve):
    """The cosine schedule: alpha = cos(pi t / 2), sigma = sin(pi t / 2); lambda = -2 log tan(pi t / 2).

    Nichol & Dhariwal 2021, eq. 17, without the offset s of the discrete version (`cosine_betas` has it).
    """

    scaling: str = static("vp")

    def curve(self, t):
        # log of sin(pi/2 - .) rather than of a cosine: exact near t = 1.
        return 2 * (jnp.log(jnp.sin(jnp.pi / 2 * (1 - t))) - jnp.log(jnp.sin(jnp.pi / 2 * t)))

    def uncurve(self, log_snr):
        return 2 / jnp.pi * jnp.arctan(jnp.exp(-log_snr / 2))


@pytree
class Flow(Curve):
    """The rectified-flow schedule: alpha = 1 - t, sigma = t; lambda = 2 log((1 - t) / t).

    Liu et al. 2023 and Lipman et al. 2023, with time running from data to noise.
    """

    scaling: str = static("flow")

    def curve(self, t):
        return 2 * (jnp.log1p(-t) - jnp.log(t))

    def uncurve(self, log_snr):
        return jax.nn.sigmoid(-log_snr / 2)


@pytree
class LogLinear(Curve):
    """The variance-exploding schedule: sigma = sigma_min (sigma_max / sigma_min)^t; lambda = -2 log sigma.

    Song & Ermon 2019; Song et al. 2021, eq. 30.

    Args:
      sigma_min: noise level at t = 0, > 0.
      sigma_max: noise level at t = 1, > sigma_min.

    Raises:
      ValueError: if not 0 < sigma_min < sigma_max.
    """

    sigma_min: Any
    sigma_max: Any
    scaling: str = static("ve")

    def __post_init__(self):
        super().__post_init__()
        check("sigma_min", self.sigma_min, "> 0", lambda v: v > 0)
        low = concrete(self.sigma_min)
        if low is not None:
            check("sigma_max", self.sigma_max, f"> sigma_min = {low}", lambda v: v > low)

    def curve(self, t):
        low = jnp.log(self.sigma_min)
        return -2 * (low + (jnp.log(self.sigma_max) - low) * t)

    def uncurve(self, log_snr):
        low = jnp.log(self.sigma_min)
        return (-log_snr / 2 - low) / (jnp.log(self.sigma_max) - low)


@pytree
class Tabulated(Curve):
    """A table of T levels at t = (i + 1) / T, i = 0 .. T - 1, interpolated in log-SNR; t = 0 is clean data.

    Args:
      log_snr_table: (T,) strictly decreasing; -inf in the last place is zero terminal SNR.

    Raises:
      ValueError: if the table is empty or does not decrease.
    """

    log_snr_table: Any
    scaling: str = static("vp")

    def __post_init__(self):
        super().__post_init__()
        if np.ndim(self.log_snr_table) != 1 or not len(self.log_snr_table):
            shape = np.shape(self.log_snr_table)
            raise ValueError(f"log_snr_table must have shape (T,) with T >= 1, got {shape}")
        table = concrete(self.log_snr_table)
        if table is not None and not np.all(np.diff(table) < 0):
            worst = int(np.argmin(np.diff(table) < 0))
            raise ValueError(
                f"log_snr_table must decrease, got {table[worst]:g} then {table[worst + 1]:g} at index {worst}"
            )

    @property
    def zero_terminal_snr(self) -> bool:
        """Whether the last level is known to hold no signal at all (alpha below 1e-8); never so where alpha = 1."""
        table = concrete(self.log_snr_table)
        return self.scaling != "ve" and table is not None and bool(table[-1] < -2 * LOG_SNR_MAX)

    def _nodes(self, dtype):
        table = jnp.clip(jnp.asarray(self.log_snr_table, dtype), -LOG_SNR_MAX, LOG_SNR_MAX)
        return jnp.concatenate([jnp.full((1,), LOG_SNR_MAX, dtype), table])

    def curve(self, t):
        nodes = self._nodes(t.dtype)
        position = t * (len(nodes) - 1)
        # (i + 1) / T times T may fall just short of i + 1: snap to the node that was meant.
        nearest = jnp.round(position)
        close = jnp.abs(position - nearest) <= 4 * jnp.finfo(position.dtype).eps * nearest
        position = jnp.where(close, straight_through(position, nearest), position)
        left = jnp.clip(jnp.floor(jax.lax.stop_gradient(position)).astype(int), 0, len(nodes) - 2)
        return nodes[left] + (position - left) * (nodes[left + 1] - nodes[left])

    def uncurve(self, log_snr):
        nodes = self._nodes(log_snr.dtype)
        times = jnp.arange(len(nodes), dtype=nodes.dtype) / (len(nodes) - 1)
        return jnp.interp(-log_snr, -nodes, times)


def from_betas(betas: Any, *, scaling: str = "vp") -> Tabulated:
    """The discrete-time schedule of DDPM: alpha_i^2 = prod_{j <= i} (1 - beta_j).

    Concrete betas are accumulated in float64, whatever the precision of what follows.

    Args:
      betas: (T,) in (0, 1]; a last beta of 1 is zero terminal SNR.
      scaling: a key of `diffax.curves.SCALINGS`.

    Returns:
      A `Tabulated` schedule with T levels.

    Raises:
      ValueError: if a beta lies outside (0, 1], or 1 is not the last.

    Source: Ho et al. 2020, eq. 4.
    """
    known = concrete(betas)
    if known is None:
        log_alpha2 = jnp.cumsum(jnp.log1p(-as_float(betas)))
        return Tabulated(log_alpha2 - jnp.log(-jnp.expm1(log_alpha2)), scaling=scaling)
    if known.ndim != 1 or not len(known):
        raise ValueError(f"betas must have shape (T,) with T >= 1, got {known.shape}")
    known = known.astype(np.float64)
    bad = (known <= 0) | (known > 1) | ~np.isfinite(known)
    bad[:-1] |= known[:-1] == 1
    if bad.any():
        first = int(np.argmax(bad))
        raise ValueError(f"betas must lie in (0, 1), the last in (0, 1], got betas[{first}] = {known[first]:g}")
    with np.errstate(divide="ignore"):
        log_alpha2_f64 = np.cumsum(np.log1p(-known))
    return Tabulated(log_alpha2_f64 - np.log(-np.expm1(log_alpha2_f64)), scaling=scaling)


def linear_betas(num_steps: int, *, beta_start: float = 1e-4, beta_end: float = 0.02) -> np.ndarray:
    """(T,) betas linear in the step: Ho et al. 2020, section 4."""
    return np.linspace(beta_start, beta_end, num_steps, dtype=np.float64)


def cosine_betas(num_steps: int, *, offset: float = 0.008, beta_max: float = 0.999) -> np.ndarray:
    """(T,) betas of alpha^2(t) = f(t) / f(0), f(t) = cos^2(pi/2 (t + s) / (1 + s)).

    Nichol & Dhariwal 2021, eq. 17; s is `offset` and betas are capped at `beta_max`.
    """
    t = np.arange(num_steps + 1, dtype=np.float64) / num_steps
    f = np.cos((t + offset) / (1 + offset) * np.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], beta_max)


def rates(schedule: Schedule, t: Any) -> tuple[Any, Any]:
    """(d alpha / dt, d sigma / dt) at t, by one jvp; any shape."""
    t = as_float(t)
    _, tangent = jax.jvp(schedule, (t,), (jnp.ones_like(t),))
    return tangent.alpha, tangent.sigma


def transition(schedule: Schedule, t: Any, s: Any) -> tuple[Any, Any]:
    """(scale, std) of q(x_t | x_s) = N(scale x_s, std^2 I), for s <= t; any shape.

        scale = alpha_t / alpha_s
        std^2 = sigma_t^2 - scale^2 sigma_s^2 = -sigma_t^2 expm1(lambda_t - lambda_s)

    Source: Kingma et al. 2021, eq. 2 and 3 of appendix A.

    Raises:
      ValueError: if t < s is known.
    """
    known = concrete(t), concrete(s)
    if known[0] is not None and known[1] is not None and np.any(known[0] < known[1]):
        raise ValueError(f"transition goes from s to a later t, got t = {t}, s = {s}")
    level_t, level_s = schedule(t), schedule(s)
    std = level_t.sigma * safe_sqrt(-jnp.expm1(level_t.log_snr - level_s.log_snr))
    return level_t.alpha / level_s.alpha, std
