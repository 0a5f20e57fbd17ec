"""Checks of the input and the settings of networks; each raises a `ValueError` of one line that names the argument."""

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from diffax._checks import check, check_count, check_per_example, described, interval
from diffax._pytrees import concrete
from diffax.typing import Array


def check_space(x: Array) -> None:
    """Raises `ValueError` unless x has shape (B, *space, C) with 1 to 3 spatial axes."""
    if not 3 <= x.ndim <= 5:
        raise ValueError(f"x must have shape (B, *space, C) with 1 to 3 spatial axes, got {x.shape}")


def check_time(t: ArrayLike, x: Array) -> None:
    """Raises `ValueError` for a t that is neither () nor (B,), and for integers other than 0 and 1, as timesteps are.

    >>> check_time(500, jnp.ones((4, 8, 8, 3)))
    Traceback (most recent call last):
    ...
    ValueError: t must be a float in [0, 1], such as (i + 1) / T for timestep i of T, got 500
    """
    check_per_example(x, t=t)
    if jnp.issubdtype(jnp.result_type(t), jnp.integer):
        known = concrete(t)
        if known is None or not np.isin(known, (0, 1)).all():
            value = f"an array of {jnp.result_type(t)}" if known is None else known.tolist()
            raise ValueError(f"t must be a float in [0, 1], such as (i + 1) / T for timestep i of T, got {value}")


def check_label(label: ArrayLike | None, num_classes: int | None) -> None:
    """Raises `ValueError` for a label of a network without classes, or a label outside [0, num_classes]."""
    if label is not None and num_classes is None:
        raise ValueError(f"label must be None where num_classes is None, got {described(label)}")
    if label is not None:
        check("label", label, interval(f"[0, {num_classes}]"))


def level_widths(channels: int, multipliers: tuple[int | float, ...]) -> list[int]:
    """The channels of each level of a U-Net; `ValueError` if a level has none, or if there is no level."""
    widths = [round(channels * multiplier) for multiplier in multipliers]
    if not widths or min(widths) < 1:
        raise ValueError(f"channel_multipliers must give each level at least one channel, got {multipliers}")
    return widths


def check_levels(x: Array, levels: int, attention_levels: tuple[int, ...] = ()) -> None:
    """Raises `ValueError` where x is too small for so many levels, or a level with attention does not exist.

    >>> check_levels(jnp.ones((2, 4, 4, 1)), 4)
    Traceback (most recent call last):
    ...
    ValueError: channel_multipliers must have at most 3 levels for x of shape (2, 4, 4, 1), got 4
    """
    most = (2 * min(x.shape[1:-1]) - 1).bit_length()  # a size n is halved to ceil(n / 2), and 1 is not halved
    if levels > most:
        raise ValueError(f"channel_multipliers must have at most {most} levels for x of shape {x.shape}, got {levels}")
    check_attention_levels("attention_levels", attention_levels, levels)


def check_attention_levels(name: str, attention_levels: tuple[int, ...], levels: int) -> None:
    """Raises `ValueError` for an index outside [0, levels)."""
    for level in attention_levels:
        if not 0 <= level < levels:
            raise ValueError(f"{name} must be in [0, {levels}), the levels of channel_multipliers, got {level}")


def check_shapes(wanted: dict[str, tuple[ArrayLike | None, tuple[int | None, ...]]]) -> None:
    """Raises `ValueError` for a value of another shape, {name: (value, shape)}; None is any size, or no value."""
    for name, (value, shape) in wanted.items():
        actual = shape if value is None else jnp.shape(value)
        if len(actual) != len(shape) or any(b is not None and a != b for a, b in zip(actual, shape, strict=True)):
            expected = ", ".join("any" if size is None else str(size) for size in shape)
            raise ValueError(f"{name} must have shape ({expected}), got {actual}")


def with_mask(
    batch: int, context: ArrayLike | None, mask: ArrayLike | None, dim: int | None
) -> dict[str, tuple[ArrayLike | None, tuple[int | None, ...]]]:
    """The argument of `check_shapes` for a context (B, m, dim) and its mask (B, m); `ValueError` for a mask alone."""
    if mask is not None and context is None:
        raise ValueError(f"context_mask must be None without a context, got {described(mask)}")
    tokens = None if context is None else jnp.shape(context)[1:2]
    return {"context": (context, (batch, None, dim)), "context_mask": (mask, (batch, *(tokens or (None,))))}


def per_axis(name: str, value: int | tuple[int, ...], axes: int) -> tuple[int, ...]:
    """The value of each axis, from one int for all axes or a tuple; `ValueError` for anything else."""
    values = tuple(value) if isinstance(value, tuple | list) else (value,) * axes
    for one in values:
        check_count(name, one)
    if len(values) != axes:
        raise ValueError(f"{name} must be an int or one for each of the {axes} axes of x, got {value}")
    return values
