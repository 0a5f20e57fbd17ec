"""Progressive distillation: in each stage one step of the student learns two steps of the teacher."""

from typing import Any

import jax
import jax.numpy as jnp

from diffax import flow_maps
from diffax.pretrained import Diffusion
from experiments.models.few_steps.parts import Drawn, denoiser_of


def progressive(
    diffusion: Diffusion,
    settings: Any,
    drawn: Drawn,
    *,
    num_steps: int = 8,
    guidance: float | None = None,
    step: Any,
    memory: Any,
) -> Any:
    """num_steps: of the student in the first stage, halved in each of the others down to 1; a power of 2.

    guidance: of the teacher in the first stage, which learns the guided model. memory: the parameters of the teacher,
    see `next_teacher`. All stages are equally long and share one learning-rate schedule.
    """
    stage, _ = _stage(step, settings.num_steps, num_steps)
    schedule, count = diffusion.schedule(), num_steps / 2.0**stage
    place = jnp.clip(jnp.floor(drawn.t * count), 0, count - 1)
    guided, student = drawn.teaches(guidance), denoiser_of(diffusion, memory, drawn.condition, 1.0)

    def teacher(x: Any, t: Any) -> Any:
        return jax.lax.cond(stage == 0, guided, student, x, t)

    options = {"teacher": teacher, "sigma_data": diffusion.sigma_data, "eps": drawn.eps}
    t, s = (place + 1) / count, place / count
    return flow_maps.progressive_loss(
        drawn.key, drawn.predict, schedule, diffusion.prediction, drawn.x, t, s, **options
    )


def _stage(step: Any, total: int, num_steps: int) -> tuple[Any, Any]:
    """The stage of a step, and whether the step is the last one of a stage that another one follows."""
    stages = num_steps.bit_length()
    length = -(-total // stages)
    stage = jnp.minimum(step // length, stages - 1)
    return stage, ((step + 1) % length == 0) & (stage < stages - 1)


def next_teacher(settings: Any, memory: Any, *, num_steps: int, step: Any, ema: Any) -> Any:
    """The parameters of the teacher after a step: the averaged student's at the end of each stage."""
    _, ends = _stage(step, settings.num_steps, num_steps)
    return jax.tree.map(lambda own, new: jnp.where(ends, new, own), memory, ema)
