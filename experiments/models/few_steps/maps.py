"""Objectives of flow maps: networks with two times that map from every t to every s."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from diffax import flow_maps
from diffax.flow_maps import adaptive
from diffax.losses import denoising_loss
from diffax.pretrained import Diffusion
from experiments.models.few_steps.parts import Drawn, joined, parted, teacher_rate


def _mean_flow(
    loss: Callable[..., Any],
    diffusion: Diffusion,
    settings: Any,
    drawn: Drawn,
    *,
    equal: float = 0.75,
    power: float = 1.0,
    offset: float = 0.01,
    guidance: float | None = None,
    mixing: float = 0.0,
) -> Any:
    """equal: share of s = t. power, offset: of the adaptive weight. guidance, mixing: see `flow_maps.guided`.

    With a teacher the velocity is that of the teacher, and `guidance` its weight. The branches of `guided` have no
    dropout; where the condition is dropped, the velocity is that of the draw.
    """
    t, s = drawn.pair(equal)
    schedule, kind, sigma_data = diffusion.schedule(), diffusion.prediction, diffusion.sigma_data
    rate = teacher_rate(diffusion, drawn, guidance)
    if rate is None and guidance is not None:
        still = drawn._replace(dropout=None)
        velocities = [
            flow_maps.velocity(
                flow_maps.diagonal(still.bound(drawn.params, condition)), schedule, kind, sigma_data=sigma_data
            )
            for condition in (drawn.condition, None)
        ]
        weights = {"weight": jnp.where(drawn.dropped, 1.0, guidance), "mixing": jnp.where(drawn.dropped, 0.0, mixing)}
        rate = flow_maps.guided(*velocities, **weights)  # type: ignore[arg-type]
    adapted = functools.partial(adaptive, power=power, offset=offset)
    options = {"rate": rate, "weight": adapted, "sigma_data": sigma_data, "eps": drawn.eps}
    return loss(drawn.key, drawn.predict, schedule, kind, drawn.x, t, s, **options)


mean_flow = functools.partial(_mean_flow, flow_maps.mean_flow_loss)
improved_mean_flow = functools.partial(_mean_flow, flow_maps.improved_mean_flow_loss, equal=0.5)


def _near(diffusion: Diffusion, drawn: Drawn, length: float) -> Any:
    """The denoising loss of the network at s = t - length, or at s = 0 where t is less."""
    predict = drawn.predict
    near = lambda x, t: predict(x, t, jnp.maximum(t - length, 0.0))  # noqa: E731
    options = {"sigma_data": diffusion.sigma_data, "eps": drawn.eps}
    return denoising_loss(drawn.key, near, diffusion.schedule(), diffusion.prediction, drawn.x, drawn.t, **options)


def lagrangian(diffusion: Diffusion, settings: Any, drawn: Drawn, *, guidance: float | None = None) -> Any:
    """guidance: of the teacher. One example of `PART` has the loss of the map, the others that of s = t."""
    first, others = parted(drawn)
    t, s = first.pair(0.0)
    options = {"rate": teacher_rate(diffusion, first, guidance), "sigma_data": diffusion.sigma_data, "eps": first.eps}
    schedule, kind = diffusion.schedule(), diffusion.prediction
    loss = flow_maps.lagrangian_loss(first.key, first.predict, schedule, kind, first.x, t, s, **options)
    return joined(loss, _near(diffusion, others, 0.0))


def shortcut(diffusion: Diffusion, settings: Any, drawn: Drawn, *, num_levels: int = 7, ema: Any) -> Any:
    """num_levels: of `flow_maps.dyadic_pairs`. The target is the averaged network.

    One example of `PART` has the loss of the map, where the code of the paper has one of eight; the others learn the
    finest step, of length 2^-num_levels, from the data. Targets are neither guided nor clipped.
    """
    first, others = parted(drawn)
    t, s = flow_maps.dyadic_pairs(first.own, len(first.x), num_levels=num_levels)
    options = {
        "target": first.bound(ema, first.condition),
        "sigma_data": diffusion.sigma_data,
        "eps": first.eps,
    }
    schedule, kind = diffusion.schedule(), diffusion.prediction
    loss = flow_maps.semigroup_loss(first.key, first.predict, schedule, kind, first.x, t, s, **options)
    return joined(loss, _near(diffusion, others, 2.0**-num_levels))
