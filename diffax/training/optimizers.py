"""Optimisers by name, with warm-up and decay of the learning rate."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from diffax._checks import check, choose, interval, non_negative, positive
from diffax.typing import Params, Scalar

DECAYS: dict[str, Callable[[Any, int, int], Any]] = {  # (learning_rate, num_steps, warmup_steps) -> step -> rate
    "constant": lambda rate, total, warmup: optax.constant_schedule(rate),
    "cosine": lambda rate, total, warmup: optax.cosine_decay_schedule(rate, max(total - warmup, 1)),
    "linear": lambda rate, total, warmup: optax.linear_schedule(rate, 0.0, max(total - warmup, 1)),
    # The schedule is also evaluated before the warm-up ends, where the step is negative.
    "inverse_sqrt": lambda rate, total, warmup: lambda step: rate * (1 + jnp.maximum(step, 0) / max(warmup, 1)) ** -0.5,
}


def _matrices(params: Params) -> Any:
    """For Muon: kernels as matrices (inputs, outputs), with the spatial axes of a convolution among the inputs."""

    def numbers(path: Any, leaf: Any) -> Any:
        is_kernel = str(getattr(path[-1], "key", "")) == "kernel" and leaf.ndim >= 2
        return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1) if is_kernel else None

    return jax.tree_util.tree_map_with_path(numbers, params)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {  # (schedule, weight_decay, b1, b2) -> optimiser
    "adamw": lambda schedule, decay, b1, b2: optax.adamw(schedule, b1=b1, b2=b2, weight_decay=decay),
    # Optax does not multiply this decay by the learning rate, as AdamW does.
    "adafactor": lambda schedule, decay, b1, b2: optax.adafactor(
        schedule, multiply_by_parameter_scale=False, momentum=b1, weight_decay_rate=lambda step: decay * schedule(step)
    ),
    "lion": lambda schedule, decay, b1, b2: optax.lion(schedule, b1=b1, b2=b2, weight_decay=decay),
    "muon": lambda schedule, decay, b1, b2: optax.contrib.muon(
        schedule,
        weight_decay=decay,
        adam_b1=b1,
        adam_b2=b2,
        adam_weight_decay=decay,
        muon_weight_dimension_numbers=_matrices,
        consistent_rms=0.2,  # updates as large as AdamW's, so that one learning rate serves both parts
    ),
}


def learning_rate_schedule(
    *, learning_rate: Scalar, num_steps: int, warmup_steps: int = 0, decay: str = "cosine"
) -> Callable[[Any], Any]:
    """The learning rate as a function of the step: linear warm-up, and then `decay`.

    Args:
      learning_rate: the learning rate at the end of the warm-up, > 0; may be traced.
      num_steps: number of steps of the run, > 0; the decays "cosine" and "linear" reach 0 there.
      warmup_steps: number w of warm-up steps, >= 0; may exceed num_steps.
      decay: "constant", "cosine", "linear" or "inverse_sqrt": learning_rate / sqrt(step / w).

    Raises:
      ValueError: if a value is outside its range, or the decay is unknown.

    >>> schedule = learning_rate_schedule(learning_rate=1.0, num_steps=100, warmup_steps=10, decay="inverse_sqrt")
    >>> [round(float(schedule(step)), 3) for step in (0, 5, 10, 40)]
    [0.0, 0.5, 1.0, 0.5]
    """
    check("learning_rate", learning_rate, positive)
    check("num_steps", num_steps, positive)
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps must be >= 0, got {warmup_steps}")
    after = choose("decay", decay, DECAYS)(learning_rate, num_steps, warmup_steps)
    warmup = optax.linear_schedule(0.0, learning_rate, max(warmup_steps, 1))
    schedule: Callable[[Any], Any] = optax.join_schedules([warmup, after], [warmup_steps])
    return schedule


def optimizer(
    name: str = "adamw",
    *,
    learning_rate: Scalar,
    num_steps: int,
    warmup_steps: int = 0,
    decay: str = "cosine",
    weight_decay: Scalar = 0.0,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    clip_norm: Scalar = 1.0,
) -> optax.GradientTransformation:
    """An optimiser with gradient clipping by global norm and `learning_rate_schedule`. The floats may be traced.

    Args:
      name: "adamw" (default), "adafactor", "lion" or "muon". Lion needs a learning rate 3 to 10 times smaller than
        AdamW. Muon orthogonalises the momentum (decay rate 0.95) of the kernels, and uses AdamW for the other
        parameters.
      learning_rate: as in `learning_rate_schedule`, as the next three.
      num_steps: number of steps of the run.
      warmup_steps: number of warm-up steps.
      decay: "cosine" (default), "constant", "linear" or "inverse_sqrt".
      weight_decay: decoupled weight decay, >= 0, multiplied by the learning rate.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1); Adafactor has its own.
      clip_norm: global norm above which gradients are scaled down, > 0.

    Raises:
      ValueError: if a value is outside its range, or a name is unknown.

    Source: Loshchilov & Hutter 2019 (AdamW); Shazeer & Stern 2018 (Adafactor); Chen et al. 2023 (Lion); Jordan 2024
    and Liu et al. 2025, eq. 4 (Muon).
    """
    make = choose("name", name, OPTIMIZERS)
    settings: dict[str, Any] = {"learning_rate": learning_rate, "num_steps": num_steps, "warmup_steps": warmup_steps}
    schedule = learning_rate_schedule(**settings, decay=decay)
    check("clip_norm", clip_norm, positive)
    for parameter, value in (("b1", b1), ("b2", b2)):
        check(parameter, value, interval("[0, 1)"))
    check("weight_decay", weight_decay, non_negative)
    return optax.chain(optax.clip_by_global_norm(clip_norm), make(schedule, weight_decay, b1, b2))
