"""Pairs of times (t, s) to train flow maps at, and how finely consistency training discretises a path."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffax import random
from diffax._checks import check, check_count, interval
from diffax.losses import training_times
from diffax.losses.training_times import Distribution
from diffax.typing import Key, Scalar, Schedule, Times


class Pair(NamedTuple):
    """Times t >= s, each (B,)."""

    t: Any
    s: Any


def pairs(key: Key, size: int, distribution: Distribution | None = None, *, equal: Scalar = 0.75) -> Pair:
    """Two draws of one distribution in order, t >= s; each example has s = t with probability `equal`.

    Args:
      key: () or (B,); consumed.
      size: B.
      distribution: of `losses.training_times`; None (default) is uniform. MeanFlow uses logit_normal(mean=-0.4).
      equal: the share of examples with s = t, in [0, 1]: 0.75 (default) in MeanFlow, 0.5 in improved MeanFlow.

    Raises:
      ValueError: if `equal` is known to be outside [0, 1].

    Source: Geng et al. 2025, section 4.3 and their code: the share is that of equal times; their second code base, for
    CIFAR-10, uses 0.75 for the share of different times.

    >>> t, s = pairs(jax.random.key(0), 1000, equal=0.5)
    >>> bool((t >= s).all()), bool(abs((t == s).mean() - 0.5) < 0.05)
    (True, True)
    """
    check("equal", equal, interval("[0, 1]"))
    keys = random.per_example(random.stream(key, "pairs"), size)
    u, v = (training_times.draw(random.fold_in(keys, i), size, distribution).t for i in range(2))
    t, s = jnp.maximum(u, v), jnp.minimum(u, v)
    # Where the times are equal, t is a plain draw, not the larger of two.
    same = random.unit_interval(random.fold_in(keys, 2), size) < equal
    return Pair(jnp.where(same, u, t), jnp.where(same, u, s))


def dyadic_pairs(key: Key, size: int, *, num_levels: int = 7) -> Pair:
    """Steps of length d = 2^-l on their grid, l uniform on 0 .. num_levels - 1: t = d, 2 d .. 1, and s = t - d.

    Args:
      key: () or (B,); consumed.
      size: B.
      num_levels: levels with a target, an int >= 1; two steps of half the finest d are learned from the data: 7 for
        128 steps.

    Raises:
      ValueError: if num_levels is not an int >= 1.

    Source: Frans et al. 2025, section 3 and their code.

    >>> t, s = dyadic_pairs(jax.random.key(0), 4, num_levels=1)
    >>> t.tolist(), s.tolist()
    ([1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0])
    """
    check_count("num_levels", num_levels)
    keys = random.per_example(random.stream(key, "dyadic_pairs"), size)
    u, v = (random.unit_interval(random.fold_in(keys, i), size) for i in range(2))
    count = 2.0 ** jnp.minimum(jnp.floor(u * num_levels), num_levels - 1)
    index = jnp.minimum(jnp.floor(v * count), count - 1)
    return Pair((index + 1) / count, index / count)


def levels(step: Scalar, num_steps: int, *, first: int = 10, last: int = 1280) -> Any:
    """The number of noise levels of improved consistency training at a step: it doubles from `first` to `last`.

        N(k) = min(first 2^floor(k / K'), last) + 1,   K' = floor(K / (log2(last / first) + 1))

    Args:
      step: k, from 0; may be traced.
      num_steps: K, the length of the training.
      first: s_0, default 10.
      last: s_1, default 1280.

    Raises:
      ValueError: if num_steps, first or last is not an int >= 1, or last < first.

    Source: Song & Dhariwal 2024, section 3.4.

    >>> [int(levels(k, 8000)) for k in (0, 999, 1000, 2000, 7999)]
    [11, 11, 21, 41, 1281]
    """
    for name, value in (("num_steps", num_steps), ("first", first), ("last", last)):
        check_count(name, value)
    if last < first:
        raise ValueError(f"last must be at least first = {first}, got {last}")
    length = max(1, math.floor(num_steps / (math.floor(math.log2(last / first)) + 1)))
    doublings = jnp.minimum(jnp.asarray(step) // length, math.ceil(math.log2(last / first)))
    return jnp.minimum(first * 2**doublings, last) + 1


def ect_time(schedule: Schedule, t: Times, stage: Scalar, *, q: Scalar = 2.0, k: Scalar = 8.0) -> Any:
    """The second time of easy consistency tuning: rho_s = rho_t max(0, 1 - q^-(stage + 1) (1 + k sigmoid(-rho_t))).

    rho = sigma / alpha. Where rho_s is 0, s is the time of least noise, whose target is the data.

    Args:
      schedule: noise schedule.
      t: () or (B,).
      stage: from 0; in the paper it grows by 1 in each eighth of the training.
      q: the factor of each stage, > 1; default 2.
      k: default 8.

    Source: Geng et al. 2024, section 3.2 and their code.

    >>> from diffax.schedules import LogLinear
    >>> schedule = LogLinear(0.002, 80.0)
    >>> s = [ect_time(schedule, schedule.inverse(0.0), stage) for stage in (0, 3)]  # rho_t = 1
    >>> [round(float(schedule(v).sigma), 3) for v in s]
    [0.002, 0.803]
    """
    rho = jnp.exp(-schedule.log_snr(t) / 2)
    share = jnp.maximum(1 - q ** (-(jnp.asarray(stage, float) + 1)) * (1 + k * jax.nn.sigmoid(-rho)), 0.0)
    log_share = jnp.where(share > 0, jnp.log(jnp.where(share > 0, share, 1.0)), -jnp.inf)
    s = jnp.where(share > 0, schedule.inverse(schedule.log_snr(t) - 2 * log_share), 0.0)
    return jnp.minimum(s, t)  # below the clip of log-SNR the inverse is a later time
