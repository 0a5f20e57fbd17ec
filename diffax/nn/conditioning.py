"""Conditioning on an array: a field with the spatial axes of x, or a vector.

    field (*space, C')    y = f([x, condition], t), concatenated along the channels (Saharia et al. 2021, SR3)
    vector (D,)           y = f(x, t, vector = condition), added to the embedding of time by a network that has
                          `vector_dim`; for other networks the vector is repeated at each place, as a field is

The null condition, for guidance, is zeros: the mean of standardised conditions. The network cannot tell it from a
condition that is the mean, which matters for vectors of very few entries: there p_uncond = 0 is the better choice.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from diffax.nn.checks import check_shapes
from diffax.typing import Array, Examples, Float, Key, Times


class Conditioned(nn.Module):
    """A network with an array condition: y = network(x, t | condition).

    Attributes:
      network: called as `network(x, t, key=)`; see `conditioned`, which sets its channels.
      shape: of the condition of one example, (*space, C') with the spatial axes of x, or (D,).
    """

    network: nn.Module
    shape: tuple[int, ...]

    def __call__(
        self,
        x: Float[Array, "batch *space c"],
        t: Times,
        condition: Examples | None = None,
        *,
        key: Key | None = None,
        **options: Any,
    ) -> Float[Array, "batch *space out"]:
        """The prediction y.

        Args:
          x: (B, *space, C).
          t: () or (B,).
          condition: (B, *shape), standardised; None for the null condition, zeros.
          key: () or (B,) dropout keys, or None to switch dropout off.
          options: further arguments of the network, such as `mask` of a `DiT`.

        Returns:
          (B, *space, C * outputs), float32.

        Raises:
          ValueError: if the condition has another shape, or `shape` does not fit x.
        """
        check_condition(self.shape, x.shape[1:])
        expected = (len(x), *self.shape)
        condition = jnp.zeros(expected) if condition is None else jnp.asarray(condition)
        check_shapes({"condition": (condition, expected)})
        if getattr(self.network, "vector_dim", None) is not None:
            y: Array = self.network(x, t, vector=condition, key=key, **options)
            return y
        if len(self.shape) == 1:
            condition = condition.reshape(len(x), *(1,) * (x.ndim - 2), *self.shape)
        field = jnp.broadcast_to(condition, (*x.shape[:-1], self.shape[-1])).astype(x.dtype)
        y = self.network(jnp.concatenate([x, field], -1), t, key=key, **options)
        return y


def check_condition(shape: tuple[int, ...], of_x: tuple[int, ...]) -> None:
    """Raise `ValueError` unless a condition of this shape fits examples (*space, C).

    >>> check_condition((8, 8, 2), (16, 16, 3))
    Traceback (most recent call last):
    ...
    ValueError: condition must have shape (D,) or (16, 16, C) for x of shape (16, 16, 3), got (8, 8, 2)
    """
    if len(shape) != 1 and (not shape or tuple(shape[:-1]) != tuple(of_x[:-1])):
        space = "".join(f"{size}, " for size in of_x[:-1])
        raise ValueError(f"condition must have shape (D,) or ({space}C) for x of shape {of_x}, got {tuple(shape)}")


def conditioned(network: Any, shape: tuple[int, ...], channels: int) -> Conditioned:
    """The network with an array condition.

    Args:
      network: a `UNet`, `DiT`, `EDM2` or `MLP` without a condition.
      shape: of the condition of one example.
      channels: the channels C of x, since the network's own input has those of the condition too.
    """
    if len(shape) == 1 and hasattr(network, "vector_dim"):
        return Conditioned(network.clone(vector_dim=shape[0]), tuple(shape))
    return Conditioned(network.clone(out_channels=network.outputs * channels), tuple(shape))
