"""Discrete time: a table of log-SNR, level i of T at t = (i + 1) / T. The equations head `diffax.schedules`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffax._pytrees import as_float, concrete, pytree, static
from diffax.schedules._betas import check_betas
from diffax.schedules._curve import LOG_SNR_MAX, Curve, straight_through
from diffax.typing import Array, DType, Scalar, Scaling, Values

NOISE_ALONE = -13.8  # log-SNR at sigma / alpha = 1000


@pytree
class Tabulated(Curve):
    """A table of T levels at t = (i + 1) / T, i = 0 .. T - 1, interpolated in log-SNR; t = 0 is clean data.

    A time that differs from (i + 1) / T by no more than float32's rounding is that level, at any precision.

    Args:
      log_snr_table: (T,) strictly decreasing; -inf in the last place is zero terminal SNR.

    Raises:
      ValueError: if the table is empty or does not decrease.

    >>> Tabulated(np.array([4.0, 0.0, -4.0, -8.0])).log_snr(jnp.array([0.25, 0.5, 0.625])).tolist()
    [4.0, 0.0, -2.0]
    """

    log_snr_table: Any
    scaling: Scaling = static(default="vp")

    def __post_init__(self) -> None:
        super().__post_init__()
        if np.ndim(self.log_snr_table) != 1 or not len(self.log_snr_table):
            shape = np.shape(self.log_snr_table)
            raise ValueError(f"log_snr_table must have shape (T,) with T >= 1, got {shape}")
        table = concrete(self.log_snr_table)
        if table is not None and np.isnan(table).any():
            raise ValueError(f"log_snr_table must hold numbers, got nan at index {int(np.argmax(np.isnan(table)))}")
        if table is not None and not np.all(np.diff(table) < 0):
            worst = int(np.argmin(np.diff(table) < 0))
            raise ValueError(
                f"log_snr_table must decrease, got {table[worst]:g} then {table[worst + 1]:g} at index {worst}"
            )

    @property
    def zero_terminal_snr(self) -> Any:
        """Whether the last level holds no signal at all (alpha below 1e-8), a traced bool of a traced table.

        Never so where alpha = 1.
        """
        return self.scaling != "ve" and self._last_below(-2 * LOG_SNR_MAX)

    @property
    def ends_in_noise(self) -> Any:
        """Whether sigma / alpha > 1000 at the last level, far from the level before; a traced bool of a traced table.

        So it is with zero terminal SNR and for `cosine_betas`. A second-order step from there would multiply the error
        of the first denoiser call by the ratio of the two levels, so every sampler takes that step at order 1.
        """
        return self._last_below(NOISE_ALONE)

    def _last_below(self, log_snr: Scalar) -> Any:
        table = concrete(self.log_snr_table)
        return jnp.asarray(self.log_snr_table)[-1] < log_snr if table is None else bool(table[-1] < log_snr)

    @property
    def num_train_steps(self) -> int:
        """T, the number of levels."""
        return len(self.log_snr_table)

    def _nodes(self, dtype: DType) -> Any:
        """(T + 1,) log-SNR at t = i / T, and what its rounding to this precision lost, where that is known."""
        table, xp = concrete(self.log_snr_table), np
        if table is None:
            table, xp = jnp.asarray(self.log_snr_table, dtype), jnp
        exact = xp.concatenate([xp.full((1,), LOG_SNR_MAX), xp.clip(table, -LOG_SNR_MAX, LOG_SNR_MAX)])
        nodes = exact.astype(dtype)
        return jnp.asarray(nodes), jnp.asarray((exact - nodes).astype(dtype))

    def curve(self, t: Array) -> Any:
        nodes, lost = self._nodes(t.dtype)
        left, part = _locate(jax.lax.stop_gradient(t), len(nodes) - 1)
        part = straight_through(t * (len(nodes) - 1) - left.astype(t.dtype), part)
        rest = (1 - part) * lost[left] + part * lost[left + 1]
        return nodes[left] + (part * (nodes[left + 1] - nodes[left]) + rest)

    def uncurve(self, log_snr: Array) -> Any:
        nodes, _ = self._nodes(log_snr.dtype)
        times = jnp.arange(len(nodes), dtype=nodes.dtype) / (len(nodes) - 1)
        return jnp.interp(-log_snr, -nodes, times)


def _locate(t: Array, count: int) -> Any:
    """The cell of t and its place there, in [0, 1], of as many digits as t has.

    t count has an error of count eps / 2, which a steep last cell turns into digits of alpha: halves of t times
    a count of up to 12 bits are exact.
    """
    info = jnp.finfo(t.dtype)
    high = jax.lax.reduce_precision(t, info.nexp, info.nmant // 2)
    big, small = high * count, (t - high) * count
    left = jnp.floor(big + small)
    left = jnp.clip(
        jnp.where((big - left) + small < 0, left - 1, left), 0, count - 1
    )  # big + small may have been rounded up to a node
    part = (big - left) + small
    # (i + 1) / T in float32 is the node, not a point beside it: the last cell may be too steep for that. Two units, as
    # XLA may multiply by 1 / T, which is rounded itself.
    rounding = 2.001 * 2.0**-24 * (left + 1)
    ahead = 1 - part <= rounding
    left, part = jnp.where(ahead, left + 1, left), jnp.where(ahead | (part <= rounding), 0.0, part)
    beyond = left > count - 1
    return jnp.where(beyond, count - 1, left).astype(int), jnp.where(beyond, 1.0, part)


def from_betas(betas: Values, *, scaling: Scaling = "vp") -> Tabulated:
    """The discrete-time schedule of DDPM: alpha_i^2 = prod_{j <= i} (1 - beta_j).

    Concrete betas are accumulated in float64, whatever the precision of what follows.

    Args:
      betas: (T,) in (0, 1]; a last beta of 1 is zero terminal SNR.
      scaling: "vp", "ve", "sub_vp" or "flow".

    Returns:
      A `Tabulated` schedule with T levels.

    Raises:
      ValueError: if a beta lies outside (0, 1], or 1 is not the last.

    Source: Ho et al. 2020, eq. 4.

    >>> round(float(from_betas([0.19, 0.5])(0.5).alpha), 4)
    0.9
    """
    known = concrete(betas)
    if known is None:
        log_alpha2 = jnp.cumsum(jnp.log1p(-as_float(betas)))
        return Tabulated(log_alpha2 - jnp.log(-jnp.expm1(log_alpha2)), scaling=scaling)
    known = check_betas(known)
    with np.errstate(divide="ignore"):
        log_alpha2_f64 = np.cumsum(np.log1p(-known))
    return Tabulated(log_alpha2_f64 - np.log(-np.expm1(log_alpha2_f64)), scaling=scaling)
