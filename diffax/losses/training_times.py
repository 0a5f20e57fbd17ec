"""Draws of training times: a distribution of t in [0, 1], and a way to draw from it.

    t = Q(u),   u uniform on [0, 1]             a distribution is its quantile function Q (the inverse of its CDF)
    p(t) = 1 / Q'(u),   weight = 1 / p(t)       E weight L(t) = int L(t) dt for any distribution

    distributions   uniform, logit_normal, mode, cosmap, log_normal_sigma; `resampling.loss_aware` follows past losses
    uniforms        independent, stratified, antithetic: how u is correlated across a batch

Any distribution combines with any uniforms, and any increasing function of u is a distribution. A distribution either
changes the objective, so that some times count more (the published use: drop the weight), or only reduces the variance
(multiply the losses by the weight):

    time_key, noise_key = jax.random.split(key)
    t, weight = training_times.draw(
        time_key, len(x0), training_times.logit_normal(), uniforms=training_times.stratified
    )
    loss = weight * denoising_loss(noise_key, predict, schedule, kind, x0, t)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffax import random
from diffax._checks import Condition, at_least, check, check_count, interval, positive
from diffax._pytrees import as_float, concrete
from diffax.losses.resampling import bin_of
from diffax.typing import Array, Examples, Float, Key, Leaf, PerExample, Scalar, Schedule, Times

Distribution = Callable[[Any], Any]  # u -> t, increasing, any shape
Uniforms = Callable[[Key, int], Any]  # (key, size) -> (size,) u


class Draw(NamedTuple):
    """Times t (B,) and their importance weights 1 / p(t) (B,)."""

    t: Any
    weight: Any


def draw(key: Key, size: int, distribution: Distribution | None = None, *, uniforms: Uniforms | None = None) -> Draw:
    """Draw training times t = distribution(u) with u = uniforms(key, size).

    Args:
      key: () or (B,): one key, or one for each example; consumed.
      size: B, the number of times.
      distribution: a quantile function u -> t; None (default) is `uniform()`.
      uniforms: (key, size) -> u; None (default) is `independent`.

    Returns:
      `Draw(t, weight)`, each (B,).

    Raises:
      ValueError: if `distribution` or `uniforms` does not return the shape (B,).

    >>> t, weight = draw(jax.random.key(0), 4, logit_normal(mean=-0.5), uniforms=stratified)
    >>> t.shape, weight.shape
    ((4,), (4,))
    """
    u = (uniforms or independent)(random.stream(key, "draw"), size)
    result = Draw(*jax.jvp(distribution or uniform(), (u,), (jnp.ones_like(u),)))
    for name, value in (("uniforms(key, size)", u), ("distribution(u)", result.t)):
        if jnp.shape(value) != (size,):
            raise ValueError(f"{name} must have shape ({size},), got {jnp.shape(value)}")
    return result


def independent(key: Key, size: int) -> Float[Array, " {size}"]:
    """(B,) independent u. The key, () or (B,), is consumed."""
    return random.unit_interval(random.stream(key, "independent"), size)


def stratified(
    key: Key, size: int, *, index: Examples | None = None, total: int | None = None
) -> Float[Array, " {size}"]:
    """(B,) u, one in each cell [j / B, (j + 1) / B).

        one key:              u_i = (u_0 + i / B) mod 1, one offset for all: each u_i is uniform          B^-2
        one for each example: u_i = (i + v_i) / B, v_i from its own key: example i is always in cell i    B^-3

    The last column is the rate at which the variance of the mean of a smooth f(u) falls; for independent u it is B^-1.
    u_i depends on the batch size, which is an exception to the rule of `diffax.random`, but not on the layout over
    devices: on a device that holds a shard of the batch, pass `index` and `total`. A single key must then be the same
    on all devices.

    Args:
      key: () or (B,); consumed.
      size: B, the number of draws.
      index: (B,) ints, the positions of these examples in the whole batch; None (default) for 0 .. B - 1.
      total: the size of the whole batch, >= B; None (default) for B.

    Raises:
      ValueError: if `index` is passed without `total`, or total < size.

    Source: Kingma et al. 2021, appendix I.1 (one key).

    >>> sorted((8 * stratified(jax.random.key(0), 8)).astype(int).tolist())
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    if total is None and index is not None:
        raise ValueError("total must be the size of the whole batch if index is passed, got None")
    total = size if total is None else total
    if total < size:
        raise ValueError(f"total must be at least size = {size}, got {total}")
    index = jnp.arange(size) if index is None else jnp.asarray(index)
    key = random.stream(key, "stratified")
    if jnp.ndim(key) == 0:
        position = total * jax.random.uniform(key, (), jnp.float32)
        offset, cell = position - jnp.floor(position), (index + jnp.floor(position).astype(int)) % total
    else:
        offset, cell = random.unit_interval(key, size), index
    # Keep a distance to both walls of the cell, so that rounding of the sum and the quotient cannot leave the cell.
    margin = min(0.5, 2 * total * float(jnp.finfo(offset.dtype).eps))
    return ((cell.astype(float) + margin).astype(offset.dtype) + (1 - 2 * margin) * offset) / total


def antithetic(key: Key, size: int) -> Float[Array, " {size}"]:
    """(B,) u in independent pairs with u_2j + u_2j+1 = 1; in an odd batch the last u has no partner.

    u_i does not depend on the batch size. With one key for each example, the key of the first example of a pair
    determines both, so each device must hold whole pairs. The key is consumed.

    >>> u = antithetic(jax.random.key(0), 4)
    >>> (u[0::2] + u[1::2]).tolist()
    [1.0, 1.0]
    """
    position = jnp.arange(size)
    u = random.unit_interval(random.per_example(random.stream(key, "antithetic"), size)[position - position % 2], size)
    return jnp.where(position % 2 == 1, 1 - u, u)


def _probit(u: Leaf) -> Any:
    """The quantile function of N(0, 1), finite also at 0 and 1."""
    u = as_float(u)
    info = jnp.finfo(u.dtype)
    return jax.scipy.special.ndtri(jnp.clip(u, info.tiny, 1 - info.epsneg))


def uniform(*, t_min: Times = 0.0, t_max: Times = 1.0) -> Distribution:
    """t uniform on [t_min, t_max].

    Args:
      t_min: in [0, 1]; default 0.
      t_max: in [t_min, 1]; default 1.

    Raises:
      ValueError: if an end is outside [0, 1], or t_max < t_min.

    >>> [round(float(uniform(t_min=0.2)(u)), 3) for u in (0.0, 0.5, 1.0)]
    [0.2, 0.6, 1.0]
    """
    for name, value in (("t_min", t_min), ("t_max", t_max)):
        check(name, value, interval("[0, 1]"))
    low = concrete(t_min)
    if low is not None:
        check("t_max", t_max, at_least(low, "t_min"))
    return lambda u: t_min + (t_max - t_min) * as_float(u)


def logit_normal(*, mean: Scalar = 0.0, std: PerExample = 1.0) -> Distribution:
    """logit(t) ~ N(mean, std^2): mostly middle times; a negative mean moves them towards the data.

    The importance weight 1 / p(t) is unbounded at both ends.

    Args:
      mean: mean of logit(t); default 0.
      std: standard deviation of logit(t), > 0; default 1.

    Raises:
      ValueError: if std is not positive.

    Source: Esser et al. 2024 (Stable Diffusion 3), section 3.1. Under `Flow` lambda is then N(-2 mean, 4 std^2).

    >>> [round(float(logit_normal()(u)), 3) for u in (0.1, 0.5, 0.9)]
    [0.217, 0.5, 0.783]
    """
    check("std", std, positive)
    return lambda u: jax.nn.sigmoid(mean + std * _probit(u))


def mode(*, scale: PerExample = 1.29) -> Distribution:
    """Q(u) = u - scale (sin^2(pi u / 2) - u): heavy tails, with more (scale > 0) or fewer middle times.

    In the paper's direction of u: t = 1 - u - scale (cos^2(pi u / 2) - 1 + u). scale = 0 is `uniform`.

    Args:
      scale: in [-1, 2 / (pi - 2)], where Q increases; default 1.29. Esser et al. use 0.81 and 1.29.

    Raises:
      ValueError: if scale is outside its range.

    Source: Esser et al. 2024, section 3.1.

    >>> [round(float(mode()(u)), 3) for u in (0.0, 0.25, 0.5, 1.0)]
    [0.0, 0.384, 0.5, 1.0]
    """
    check("scale", scale, Condition("in [-1, 2 / (pi - 2)]", lambda v: (v >= -1) & (v <= 2 / (np.pi - 2))))

    def quantile(u: Times) -> Any:
        u = as_float(u)
        return u - scale * (jnp.square(jnp.sin(jnp.pi / 2 * u)) - u)

    return quantile


def cosmap() -> Distribution:
    """p(t) = 2 / (pi (1 - 2 t + 2 t^2)): under `Flow` the log-SNRs of the cosine schedule at uniform t.

        Q(u) = 1 - 1 / (tan(pi u / 2) + 1)

    Source: Esser et al. 2024, section 3.1.

    >>> [round(float(cosmap()(u)), 3) for u in (0.0, 0.25, 0.5, 1.0)]
    [0.0, 0.293, 0.5, 1.0]
    """

    def quantile(u: Times) -> Any:
        angle = jnp.pi / 2 * as_float(u)
        # Compute the cosine as a sine, so that Q is exactly 0 and 1 at the ends.
        sin, cos = jnp.sin(angle), jnp.sin(jnp.pi / 2 * (1 - as_float(u)))
        return sin / (sin + cos)

    return quantile


def log_normal_sigma(schedule: Schedule, *, mean: Scalar = -1.2, std: PerExample = 1.2) -> Distribution:
    """ln(sigma / alpha) ~ N(mean, std^2), converted to t by the schedule.

    Values beyond the ends of the schedule give t = 0 or 1 with weight 0.

    Args:
      schedule: noise schedule; t = inverse(-2 ln(sigma / alpha)).
      mean: P_mean; the default -1.2 is for data of standard deviation 0.5 and must move with the scale of the data.
      std: P_std, > 0; default 1.2.

    Raises:
      ValueError: if std is not positive.

    Source: Karras et al. 2022, table 1.

    >>> from diffax.schedules import LogLinear
    >>> schedule = LogLinear(0.002, 80.0)
    >>> round(float(jnp.log(schedule(log_normal_sigma(schedule)(0.5)).sigma)), 3)
    -1.2
    """
    check("std", std, positive)
    return lambda u: schedule.inverse(-2 * (mean + std * _probit(u)))


def discrete(drawn: Draw, num_train_steps: int) -> Draw:
    """Round times up to t = (i + 1) / T, the levels of a table of T levels; the weights do not change.

    With weighted losses the T levels count equally for any distribution.

    Args:
      drawn: times and weights, from `draw`.
      num_train_steps: T, an int >= 1.

    Raises:
      ValueError: if num_train_steps is not an int >= 1.

    >>> discrete(Draw(jnp.array([0.0, 0.1, 0.3, 1.0]), jnp.ones(4)), 4).t.tolist()
    [0.25, 0.25, 0.5, 1.0]
    """
    check_count("num_train_steps", num_train_steps)
    return drawn._replace(t=(bin_of(drawn.t, num_train_steps) + 1) / num_train_steps)


DISTRIBUTIONS = {
    "uniform": uniform,
    "logit_normal": logit_normal,
    "mode": mode,
    "cosmap": cosmap,
    "log_normal_sigma": log_normal_sigma,
}
"""Distributions of t by their names in configs."""
UNIFORMS = {"independent": independent, "stratified": stratified, "antithetic": antithetic}
"""Ways to draw uniform numbers by their names in configs."""
