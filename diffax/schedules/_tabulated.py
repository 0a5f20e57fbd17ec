"""Discrete time: a table of log-SNR with level i of T at t = (i + 1) / T.

The docstring of `diffax.schedules` has the equations.
"""

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

    A time within the rounding error of float32 from (i + 1) / T counts as exactly that level, in every dtype.

    Args:
      log_snr_table: (T,) strictly decreasing; -inf as the last entry means zero terminal SNR.
      scaling: "vp", "ve", "sub_vp" or "flow".

    Raises:
      ValueError: if the table is empty, contains nan or does not decrease.

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
        """Whether the last level has no signal (alpha below 1e-8); a traced bool for a traced table.

        It is False with the scaling "ve", where alpha = 1.
        """
        return self.scaling != "ve" and self._last_below(-2 * LOG_SNR_MAX)

    @property
    def ends_in_noise(self) -> Any:
        """Whether sigma / alpha > 1000 at the last level; a traced bool for a traced table.

        It is True with zero terminal SNR and for `cosine_betas`, whose last level is far from the level before it. A
        second-order step from there would multiply the error of the first denoiser call by the ratio of the two levels,
        so every sampler takes that step at order 1.
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
        """(T + 1,) log-SNR at t = i / T in this dtype, and its rounding errors (0 for a traced table)."""
        table, xp = concrete(self.log_snr_table), np
        if table is None:
            table, xp = jnp.asarray(self.log_snr_table, dtype), jnp
        exact = xp.concatenate([xp.full((1,), LOG_SNR_MAX), xp.clip(table, -LOG_SNR_MAX, LOG_SNR_MAX)])
        nodes = exact.astype(dtype)
        return jnp.asarray(nodes), jnp.asarray((exact - nodes).astype(dtype))

    def curve(self, t: Array) -> Any:
        nodes, errors = self._nodes(t.dtype)
        index, position = _locate(jax.lax.stop_gradient(t), len(nodes) - 1)
        position = straight_through(t * (len(nodes) - 1) - index.astype(t.dtype), position)
        correction = (1 - position) * errors[index] + position * errors[index + 1]
        return nodes[index] + (position * (nodes[index + 1] - nodes[index]) + correction)

    def uncurve(self, log_snr: Array) -> Any:
        nodes, _ = self._nodes(log_snr.dtype)
        times = jnp.arange(len(nodes), dtype=nodes.dtype) / (len(nodes) - 1)
        return jnp.interp(-log_snr, -nodes, times)


def _locate(t: Array, count: int) -> Any:
    """The cell of t, an int in 0 .. count - 1, and the position of t in it, in [0, 1], with as many digits as t.

    The rounded product t count has an error of count eps / 2, which a steep last cell would turn into an error of
    alpha. So t is split into two halves of its bits, whose products with a count of up to 12 bits are exact.
    """
    info = jnp.finfo(t.dtype)
    high = jax.lax.reduce_precision(t, info.nexp, info.nmant // 2)
    big, small = high * count, (t - high) * count
    index = jnp.floor(big + small)
    # The sum big + small may be rounded up to a node: then t is in the cell before.
    index = jnp.clip(jnp.where((big - index) + small < 0, index - 1, index), 0, count - 1)
    position = (big - index) + small
    # A float32 time (i + 1) / T must give the node itself, because in a steep last cell a point next to the node has
    # another alpha. The tolerance is two units of rounding: XLA may multiply by 1 / T, which is rounded as well.
    rounding = 2.001 * 2.0**-24 * (index + 1)
    at_next_node = 1 - position <= rounding
    at_node = at_next_node | (position <= rounding)
    index, position = jnp.where(at_next_node, index + 1, index), jnp.where(at_node, 0.0, position)
    past_end = index > count - 1
    return jnp.where(past_end, count - 1, index).astype(int), jnp.where(past_end, 1.0, position)


def from_betas(betas: Values, *, scaling: Scaling = "vp") -> Tabulated:
    """The discrete-time schedule of DDPM: alpha_i^2 = prod_{j <= i} (1 - beta_j).

    Concrete betas are accumulated in float64, even if the schedule is evaluated in float32.

    Args:
      betas: (T,) in (0, 1]; a last beta of 1 means zero terminal SNR.
      scaling: "vp", "ve", "sub_vp" or "flow".

    Returns:
      A `Tabulated` schedule with T levels.

    Raises:
      ValueError: if a beta is outside (0, 1], or a beta before the last is 1.

    Source: Ho et al. 2020, eq. 4.

    >>> round(float(from_betas([0.19, 0.5])(0.5).alpha), 4)
    0.9
    """
    values = concrete(betas)
    if values is None:
        log_alpha2 = jnp.cumsum(jnp.log1p(-as_float(betas)))
        return Tabulated(log_alpha2 - jnp.log(-jnp.expm1(log_alpha2)), scaling=scaling)
    values = check_betas(values)
    with np.errstate(divide="ignore"):
        log_alpha2_f64 = np.cumsum(np.log1p(-values))
    return Tabulated(log_alpha2_f64 - np.log(-np.expm1(log_alpha2_f64)), scaling=scaling)
