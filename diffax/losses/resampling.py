"""Importance sampling of training times: the distribution of t follows the recent losses in each bin of t."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from diffax._checks import check, check_count, interval
from diffax._pytrees import as_float, promoted
from diffax.typing import Leaf, Scalar, Times


def bin_of(t: Times, count: int) -> Any:
    """The index of the bin (i / count, (i + 1) / count] of [0, 1] that contains t; t = 0 is in the first bin.

    A t that exceeds an edge by at most two units of float32 rounding counts as that edge.

    >>> bin_of(jnp.array([0.0, 0.25, 0.26, 1.0]), 4).tolist()
    [0, 0, 1, 3]
    """
    position = as_float(t) * count
    return jnp.clip(jnp.ceil(position * (1 - 2.0**-22)) - 1, 0, count - 1).astype(int)


class Losses(NamedTuple):
    """The last losses of each bin of t.

    squares: (bins, history) squared losses. counts: (bins,) numbers of recorded losses, modulo `history` in full bins.
    """

    squares: Any
    counts: Any


class Resampler(NamedTuple):
    """A distribution of t that follows the losses, as three pure functions.

    init() -> state
    update(state, t, losses) -> state       t, losses: (B,); pass the losses without the weights of the draw
    distribution(state) -> Distribution     the distribution for the next draw of t
    """

    init: Callable[[], Losses]
    update: Callable[[Losses, Any, Any], Losses]
    distribution: Callable[[Losses], Callable[[Any], Any]]


def loss_aware(num_bins: int, *, history: int = 10, uniform_fraction: Scalar = 1e-3) -> Resampler:
    """Importance sampling by past losses: p_i proportional to sqrt(mean of the last squared losses of bin i).

    The distribution is uniform until each bin has recorded `history` losses. All bins have equal width in t,
    (i / N, (i + 1) / N]; with num_bins = T and `training_times.discrete` each bin is one level of a table. If the batch
    is sharded over devices, gather t and losses of the whole batch before `update`, so that the states stay equal.
    `update` ignores losses that are not finite.

        resampler = resampling.loss_aware(100)
        state = resampler.init()
        time_key, noise_key = jax.random.split(key)
        t, weight = training_times.draw(time_key, len(x0), resampler.distribution(state))
        losses = denoising_loss(noise_key, predict, schedule, kind, x0, t)     # train on weight * losses
        state = resampler.update(state, t, losses)

    Args:
      num_bins: number of bins of t, an int >= 1.
      history: number of losses stored for each bin, an int >= 1; default 10.
      uniform_fraction: in [0, 1], the share of the uniform distribution in the mixture, so that every bin is drawn at
        times; default 1e-3.

    Returns:
      `Resampler(init, update, distribution)`.

    Raises:
      ValueError: if num_bins or history is not an int >= 1, or uniform_fraction is outside [0, 1].

    Source: Nichol & Dhariwal 2021, eq. 18 and the text below; the uniform fraction is from their code.

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
        # Losses that are not finite get the index num_bins: the scatters below drop it.
        bins = jnp.where(jnp.isfinite(losses), bin_of(t, num_bins), num_bins)
        order = jnp.argsort(bins, stable=True)
        bins, squares = bins[order], jnp.square(losses[order]).astype(state.squares.dtype)
        rank = jnp.arange(len(bins)) - jnp.searchsorted(bins, bins)  # among the losses of the same bin
        added = jnp.zeros_like(state.counts).at[bins].add(1, mode="drop")
        # A row of `squares` is a ring buffer: if a batch has more than `history` losses of a bin, write the last ones.
        last = rank >= added.at[bins].get(mode="clip") - history
        column = (state.counts.at[bins].get(mode="clip") + rank) % history
        new_squares = state.squares.at[jnp.where(last, bins, num_bins), column].set(squares, mode="drop")
        counts = state.counts + added
        # Bound the counts, so that they cannot overflow: only their remainder and whether the bin is full matter.
        return Losses(new_squares, jnp.where(counts >= history, history + counts % history, counts))

    def distribution(state: Losses) -> Any:
        rms = jnp.sqrt(jnp.mean(state.squares, axis=1))
        ready = jnp.all(state.counts >= history) & (rms.sum() > 0)
        rms = jnp.where(ready, rms, 1.0)
        p = (1 - uniform_fraction) * rms / rms.sum() + uniform_fraction / num_bins
        edges = jnp.concatenate([jnp.zeros(1, p.dtype), jnp.cumsum(p)])
        # The importance weight is the slope of this rounded table, so that the rounding of the sum causes no bias.
        table = edges / edges[-1], jnp.arange(num_bins + 1) / num_bins

        def quantile(u: Times) -> Any:
            dtype = promoted(as_float(u), *table)
            return jnp.interp(*(v.astype(dtype) for v in (as_float(u), *table)))

        return quantile

    return Resampler(init, update, distribution)
