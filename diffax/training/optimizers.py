"""The AdamW optimiser with warm-up and decay."""

import optax

from diffax._checks import check, interval, non_negative, positive
from diffax.typing import Scalar


def adamw(
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
    """AdamW with gradient clipping by global norm, linear warm-up, and then `decay`. The floats may be traced.

    Args:
      learning_rate: the learning rate at the end of the warm-up, > 0.
      num_steps: number of steps of the run, > 0; a cosine decay reaches 0 there.
      warmup_steps: number of warm-up steps, >= 0; may exceed num_steps.
      decay: "cosine" or "constant".
      weight_decay: decoupled weight decay, >= 0.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      clip_norm: global norm above which gradients are scaled down, > 0.

    Raises:
      ValueError: if a value is outside its range.

    Source: Loshchilov & Hutter 2019.
    """
    for name, value in (("learning_rate", learning_rate), ("clip_norm", clip_norm), ("num_steps", num_steps)):
        check(name, value, positive)
    for name, value in (("b1", b1), ("b2", b2)):
        check(name, value, interval("[0, 1)"))
    check("weight_decay", weight_decay, non_negative)
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps must be >= 0, got {warmup_steps}")
    after = {
        "constant": optax.constant_schedule(learning_rate),
        "cosine": optax.cosine_decay_schedule(learning_rate, max(num_steps - warmup_steps, 1)),
    }
    if decay not in after:
        raise ValueError(f"decay must be one of {', '.join(after)}, got {decay!r}")
    warmup = optax.linear_schedule(0.0, learning_rate, max(warmup_steps, 1))
    schedule = optax.join_schedules([warmup, after[decay]], [warmup_steps])
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(schedule, b1=b1, b2=b2, weight_decay=weight_decay),
    )
