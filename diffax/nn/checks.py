"""Checks of the inputs and settings of networks. Each raises a one-line `ValueError` that names the argument."""

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from diffax._checks import check, check_count, check_per_example, described, interval
from diffax._pytrees import concrete
from diffax.typing import Array


def check_space(x: Array) -> None:
    """Raise `ValueError` unless x has shape (B, *space, C) with 1 to 3 spatial axes."""
    if not 3 <= x.ndim <= 5:
        raise ValueError(f"x must have shape (B, *space, C) with 1 to 3 spatial axes, got {x.shape}")


def check_time(t: ArrayLike, x: Array) -> None:
    """Raise `ValueError` unless t has shape () or (B,), and for integers other than 0 and 1, such as timesteps.

    >>> check_time(500, jnp.ones((4, 8, 8, 3)))
    Traceback (most recent call last):
    ...
    ValueError: t must be a float in [0, 1], such as (i + 1) / T for timestep i of T, got 500
    """
    check_per_example(x, t=jnp.asarray(t))
    if jnp.issubdtype(jnp.result_type(t), jnp.integer):
        values = concrete(t)
        if values is None or not np.isin(values, (0, 1)).all():
            value = f"an array of {jnp.result_type(t)}" if values is None else values.tolist()
            raise ValueError(f"t must be a float in [0, 1], such as (i + 1) / T for timestep i of T, got {value}")


def check_second(x: Array, second_time: bool, s: ArrayLike | None, guidance_input: bool, w: ArrayLike | None) -> None:
    """Raise `ValueError` for a second time or a guidance weight that the network has no input for, or a wrong shape."""
    for name, setting, allowed, value in (
        ("s", "second_time", second_time, s),
        ("weight", "guidance_input", guidance_input, w),
    ):
        if value is not None and not allowed:
            raise ValueError(f"{name} must be None for a network without {setting}, got {described(value)}")
        if value is not None:
            check_per_example(x, **{name: jnp.asarray(value)})
    if guidance_input and not second_time:
        raise ValueError("guidance_input must be False without second_time, got True")


def check_label(label: ArrayLike | None, num_classes: int | None) -> None:
    """Raise `ValueError` for a label outside [0, num_classes], or any label if the network has no classes."""
    if label is not None and num_classes is None:
        raise ValueError(f"label must be None where num_classes is None, got {described(label)}")
    if label is not None:
        check("label", label, interval(f"[0, {num_classes}]"))


def level_widths(channels: int, multipliers: tuple[int | float, ...]) -> list[int]:
    """The channels of each level of a U-Net.

    Raises:
      ValueError: if a level has no channels, or there are no levels.
    """
    widths = [round(channels * multiplier) for multiplier in multipliers]
    if not widths or min(widths) < 1:
        raise ValueError(f"channel_multipliers must give each level at least one channel, got {multipliers}")
    return widths


def check_levels(x: Array, levels: int, attention_levels: tuple[int, ...] = ()) -> None:
    """Raise `ValueError` if x is too small for the number of levels, or a level with attention does not exist.

    >>> check_levels(jnp.ones((2, 4, 4, 1)), 4)
    Traceback (most recent call last):
    ...
    ValueError: channel_multipliers must have at most 3 levels for x of shape (2, 4, 4, 1), got 4
    """
    # Halving takes a size n to ceil(n / 2), and a size of 1 cannot be halved.
    maximum = (2 * min(x.shape[1:-1]) - 1).bit_length()
    if levels > maximum:
        raise ValueError(
            f"channel_multipliers must have at most {maximum} levels for x of shape {x.shape}, got {levels}"
        )
    check_attention_levels("attention_levels", attention_levels, levels)


def check_attention_levels(name: str, attention_levels: tuple[int, ...], levels: int) -> None:
    """Raise `ValueError` for a level outside [0, levels)."""
    for level in attention_levels:
        if not 0 <= level < levels:
            raise ValueError(f"{name} must be in [0, {levels}), the levels of channel_multipliers, got {level}")


def check_shapes(expected: dict[str, tuple[ArrayLike | None, tuple[int | None, ...]]]) -> None:
    """Raise `ValueError` if a value has another shape than in {name: (value, shape)}.

    A value of None is not checked, and a size of None allows any size.
    """
    for name, (value, shape) in expected.items():
        actual = shape if value is None else jnp.shape(value)
        if len(actual) != len(shape) or any(b is not None and a != b for a, b in zip(actual, shape, strict=True)):
            sizes = ", ".join("any" if size is None else str(size) for size in shape)
            raise ValueError(f"{name} must have shape ({sizes}), got {actual}")


def with_mask(
    batch: int, context: ArrayLike | None, mask: ArrayLike | None, dim: int | None
) -> dict[str, tuple[ArrayLike | None, tuple[int | None, ...]]]:
    """The argument of `check_shapes` for a context (B, m, dim) and its mask (B, m).

    Raises:
      ValueError: for a mask without a context.
    """
    if mask is not None and context is None:
        raise ValueError(f"context_mask must be None without a context, got {described(mask)}")
    tokens = None if context is None else jnp.shape(context)[1:2]
    return {"context": (context, (batch, None, dim)), "context_mask": (mask, (batch, *(tokens or (None,))))}


def per_axis(name: str, value: int | tuple[int, ...], axes: int) -> tuple[int, ...]:
    """One int per axis, from one int for all axes or a tuple; raises `ValueError` for any other value."""
    values = tuple(value) if isinstance(value, tuple | list) else (value,) * axes
    for entry in values:
        check_count(name, entry)
    if len(values) != axes:
        raise ValueError(f"{name} must be an int or one for each of the {axes} axes of x, got {value}")
    return values
