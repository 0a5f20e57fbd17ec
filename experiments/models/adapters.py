"""Low-rank adapters in a run: the state's parameters are the adapters, those of a trained model stay as they are."""

import hashlib
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from diffax.nn import lora
from experiments.models.objectives import Objective


def check(config: Any) -> None:
    """Raises `ValueError` for settings of config.lora that cannot be."""
    settings = config.lora
    if not settings.base:
        return
    if settings.rank < 1:
        raise ValueError(f"config.lora.rank must be >= 1, got {settings.rank}")
    if not math.isfinite(settings.alpha):
        raise ValueError(f"config.lora.alpha must be finite, got {settings.alpha}")
    if not settings.patterns:
        raise ValueError("config.lora.patterns must name the matrices to adapt, got ()")


def first(config: Any, params: Any, key: Any) -> Any:
    """The adapters that a run starts with. params: of the base.

    Raises:
      ValueError: if a pattern matches nothing.
    """
    try:
        return lora.init(key, params, tuple(config.lora.patterns), rank=config.lora.rank)
    except ValueError as error:
        raise ValueError(f"config.lora.{error}") from error


def merge(config: Any, params: Any, adapters: Any) -> Any:
    """The network's parameters: the base's with the adapters."""
    return lora.merge(params, adapters, alpha=config.lora.alpha)


def objective(inner: Objective, whole: Callable) -> Objective:
    """The objective of what is trained. whole: from that to the parameters of the network."""
    return inner._replace(loss=lambda params, *rest: inner.loss(whole(params), *rest))


def digest(params: Any) -> str:
    """A digest of the names and bytes of parameters."""
    found = hashlib.blake2b(digest_size=16)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        found.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()
