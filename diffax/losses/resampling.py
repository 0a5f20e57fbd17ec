"""Training times that follow the losses: importance sampling by what each bin of t has cost lately."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from diffax._checks import check, check_count, interval
from diffax._pytrees import as_float, promoted
from diffax.typing import Leaf, Scalar, Times


def bin_of(t: Times, count: int) -> Any:
    """Which of the bins (i / count, (i + 1) / count] of [0, 1] holds t; 0 is in the first.

    A t that exceeds an edge by no more than two units of float32's rounding is that edge.

    >>> bin_of(jnp.array([0.0, 0.25, 0.26, 1.0]), 4).tolist()
    [0, 0, 1, 3]
    """
    place = as_float(t) * count
    return jnp.clip(jnp.ceil(place * (1 - 2.0**-22)) - 1, 0, count - 1).astype(int)


class Losses(NamedTuple):
    """The last losses of each bin of t: squares (bins, history) of them; counts (bins,) of those seen."""

    squares: Any
    counts: Any


class Resampler(NamedTuple):
    """A law that follows the losses, as three pure functions.

    init() -> state
    update(state, t, losses) -> state       t, losses: (B,), the losses not multiplied by the draw's weight
    distribution(state) -> Distribution                       what to draw the next times with
    """

    init: Callable[[], Losses]
    update: Callable[[Losses, Any, Any], Losses]
    distribution: Callable[[Losses], Callable[[Any], Any]]


def loss_aware(num_bins: int, *, history: int = 10, uniform_fraction: Scalar = 1e-3) -> Resampler:
    """Importance sampling by past losses: p_i proportional to sqrt(mean of the last squared losses of bin i).

    The law is uniform until each bin has seen `history` losses. Bins are of equal width in t, (i / N, (i + 1) / N];
    with num_bins = T and `training_times.discrete` they are the levels of a table. Where the batch is spread over
    devices, gather t and losses of the whole batch before `update`, so that the states stay equal. A loss that is not
    finite is left out.

        resampler = resampling.loss_aware(100)
        state = resampler.init()
        time_key, noise_key = jax.random.split(key)
        t, weight = training_times.draw(time_key, len(x0), resampler.distribution(state))
        losses = denoising_loss(noise_key, predict, schedule, kind, x0, t)     # train on weight * losses
        state = resampler.update(state, t, losses)

    Args:
      num_bins: bins of t.
      history: losses that a bin remembers.
      uniform_fraction: in [0, 1], how much of the law is uniform, so that no bin starves.

    Source: Nichol & Dhariwal 2021, eq. 18 and the text below; the uniform fraction is their code's.

    Raises:
      ValueError: if a count is no int >= 1, or uniform_fraction lies outside [0, 1].

    >>> resampler = loss_aware(2, history=1, uniform_fraction=0.0)
    >>> state = resampler.update(resampler.init(), jnp.array([0.2, 0.7]), jnp.array([1.0, 3.0]))
    >>> [round(float(resampler.distribution(state)(u)), 3) for u in (0.125, 0.25, 1.0)]
    [0.25, 0.5, 1.0]
    """
    check_count("num_bins", num_bins)
    check_count("history", history)
    check("uniform_fraction", uniform_fraction, interval("[0, 1]"))

    def init() -> Any:
        return Losses(jnp.zeros((num_bins, history)), jnp.zeros(num_bins, jnp.int32))

    def update(state: Losses, t: Times, losses: Leaf) -> Any:
        losses = as_float(losses)
        if losses.ndim != 1 or jnp.shape(t) != losses.shape:
            raise ValueError(f"t and losses must have shape (B,), got {jnp.shape(t)} and {losses.shape}")
        bins = jnp.where(jnp.isfinite(losses), bin_of(t, num_bins), num_bins)  # num_bins: nowhere
        order = jnp.argsort(bins, stable=True)
        bins, squares = bins[order], jnp.square(losses[order]).astype(state.squares.dtype)
        rank = jnp.arange(len(bins)) - jnp.searchsorted(bins, bins)  # among those of the same bin
        added = jnp.zeros_like(state.counts).at[bins].add(1, mode="drop")
        # A bin is a ring; of more losses than it holds only the last ones are written.
        last = rank >= added.at[bins].get(mode="clip") - history
        column = (state.counts.at[bins].get(mode="clip") + rank) % history
        written = state.squares.at[jnp.where(last, bins, num_bins), column].set(squares, mode="drop")
        counts = state.counts + added
        # Kept small: only its remainder and whether the bin is full matter.
        return Losses(written, jnp.where(counts >= history, history + counts % history, counts))

    def distribution(state: Losses) -> Any:
        size = jnp.sqrt(jnp.mean(state.squares, axis=1))
        ready = jnp.all(state.counts >= history) & (size.sum() > 0)
        size = jnp.where(ready, size, 1.0)
        p = (1 - uniform_fraction) * size / size.sum() + uniform_fraction / num_bins
        edges = jnp.concatenate([jnp.zeros(1, p.dtype), jnp.cumsum(p)])
        # The weight is the slope of these very numbers, so that rounding of the sum biases nothing.
        table = edges / edges[-1], jnp.arange(num_bins + 1) / num_bins

        def quantile(u: Times) -> Any:
            dtype = promoted(as_float(u), *table)
            return jnp.interp(*(v.astype(dtype) for v in (as_float(u), *table)))

        return quantile

    return Resampler(init, update, distribution)
