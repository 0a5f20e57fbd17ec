"""What the networks ask of their input; each raises a `ValueError` of one line that names it."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from diffax._checks import check, check_count, check_per_example, interval
from diffax._pytrees import concrete


def check_space(x: Any) -> None:
    """Raises `ValueError` unless x has shape (B, *space, C) with 1 to 3 spatial axes."""
    if not 3 <= x.ndim <= 5:
        raise ValueError(f"x must have shape (B, *space, C) with 1 to 3 spatial axes, got {x.shape}")


def check_time(t: Any, x: Any) -> None:
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
            found = f"an array of {t.dtype}" if known is None else known.tolist()
            raise ValueError(f"t must be a float in [0, 1], such as (i + 1) / T for timestep i of T, got {found}")


def check_label(label: Any, num_classes: int | None) -> None:
    """Raises `ValueError` for a label without classes, or one that is not in [0, num_classes]."""
    if label is not None and num_classes is None:
        raise ValueError("label was given to a network without classes: set num_classes")
    if label is not None:
        check("label", label, interval(f"[0, {num_classes}]"))


def level_widths(channels: int, multipliers: tuple[int | float, ...]) -> list[int]:
    """The channels of each level of a U-Net; `ValueError` for multipliers that give none."""
    widths = [round(channels * multiplier) for multiplier in multipliers]
    if not widths or min(widths) < 1:
        raise ValueError(f"channel_multipliers must be numbers that give channels, got {multipliers}")
    return widths


def check_levels(x: Any, levels: int, attention_levels: tuple[int, ...]) -> None:
    """Raises `ValueError` where x is too small for so many levels, or attention is at a level that is none of them."""
    if min(x.shape[1:-1]) * 2 <= 2 ** (levels - 1):
        raise ValueError(f"channel_multipliers has {levels} levels, too many for x of shape {x.shape}")
    for level in attention_levels:
        if not 0 <= level < levels:
            raise ValueError(f"attention_levels must lie below {levels}, got {level}")


def check_shapes(wanted: dict[str, tuple[Any, tuple[int | None, ...]]]) -> None:
    """Raises `ValueError` for a value that is given and not of its shape: {name: (value, shape)}, None for any size."""
    for name, (value, shape) in wanted.items():
        found = shape if value is None else jnp.shape(value)
        if len(found) != len(shape) or any(b is not None and a != b for a, b in zip(found, shape, strict=True)):
            expected = ", ".join("any" if size is None else str(size) for size in shape)
            raise ValueError(f"{name} must have shape ({expected}), got {found}")


def with_mask(batch: int, context: Any, mask: Any, dim: int | None) -> dict[str, tuple[Any, tuple[int | None, ...]]]:
    """What `check_shapes` takes for a context (B, m, dim) and its mask (B, m), which needs a context."""
    if mask is not None and context is None:
        raise ValueError("context_mask was given without a context")
    tokens = None if context is None else jnp.shape(context)[1:2]
    return {"context": (context, (batch, None, dim)), "context_mask": (mask, (batch, *(tokens or (None,))))}


def per_axis(name: str, value: int | tuple[int, ...], axes: int) -> tuple[int, ...]:
    """An int for each axis, of one for all or a tuple; `ValueError` for others."""
    values = tuple(value) if isinstance(value, tuple | list) else (value,) * axes
    for one in values:
        check_count(name, one)
    if len(values) != axes:
        raise ValueError(f"{name} must be an int or one for each of the {axes} axes of x, got {value}")
    return values
