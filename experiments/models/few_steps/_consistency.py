"""Objectives of consistency models: networks that map from every t to the data."""

from typing import Any

import jax.numpy as jnp

from diffax import flow_maps, random, times
from diffax.flow_maps import pseudo_huber, squared
from diffax.pretrained import Diffusion
from experiments.models.few_steps.parts import Drawn, neighbours, teacher_rate

DISTANCES = ("squared", "huber")


def _two_times(diffusion: Diffusion, predict: Any) -> Any:
    """The network as (x, t, s) -> y, also one without a second time."""
    return predict if diffusion.second_time else lambda x, t, s: predict(x, t)


def _to_data(diffusion: Diffusion, predict: Any) -> Any:
    """The consistency function (x, t) -> X(x, t, 0) of a network."""
    predict, sigma_data = _two_times(diffusion, predict), diffusion.sigma_data
    return flow_maps.ending(
        flow_maps.flow_map(predict, diffusion.schedule(), diffusion.prediction, sigma_data=sigma_data)
    )


def _ratio(schedule: Any, t: Any) -> Any:
    """sigma / alpha."""
    return jnp.exp(-schedule.log_snr(t) / 2)


def _by_distance(diffusion: Diffusion, drawn: Drawn, t: Any, s: Any, huber: Any, teacher: Any) -> Any:
    """The consistency loss divided by rho_t - rho_s, rho = sigma / alpha; the target is the network itself."""
    schedule, function = diffusion.schedule(), _to_data(diffusion, drawn.predict)
    options = {"teacher": teacher, "distance": pseudo_huber(huber), "eps": drawn.eps}
    loss = flow_maps.consistency_loss(drawn.key, function, schedule, drawn.x, t, s, **options)
    return loss / (_ratio(schedule, t) - _ratio(schedule, s))


def karras_neighbours(schedule: Any, t: Any, count: Any, rho: float = 7.0) -> tuple[Any, Any]:
    """The two levels around t of the grid of Karras et al. 2022 with `count` levels, which may be traced; s < t.

    The ends are those of the step grids, with s = 0 in place of the lowest level.
    """
    high, low = (_ratio(schedule, end) ** (1 / rho) for end in times.default_ends(schedule))
    place = (_ratio(schedule, t) ** (1 / rho) - low) / (high - low)
    index = jnp.clip(jnp.floor(place * (count - 1)), 0, count - 2)

    def level(index: Any) -> Any:
        ratio = (low + index / (count - 1) * (high - low)) ** rho
        return schedule.inverse(-2 * jnp.log(ratio))

    return level(index + 1), jnp.where(index == 0, 0.0, level(index))


def consistency(
    diffusion: Diffusion,
    settings: Any,
    drawn: Drawn,
    *,
    first: int = 10,
    last: int = 1280,
    huber: float | None = None,
    guidance: float | None = None,
    step: Any,
) -> Any:
    """first, last: of `flow_maps.levels`. huber: of `pseudo_huber`. guidance: of the teacher.

    t and s are the levels around a draw of config.loss.times; the paper draws ln sigma from N(-1.1, 2^2), which is
    `log_normal_sigma`.
    """
    count = flow_maps.levels(step, settings.num_steps, first=first, last=last)
    t, s = karras_neighbours(diffusion.schedule(), drawn.t, count)
    teacher = None if drawn.teacher is None else drawn.teaches(guidance)
    return _by_distance(diffusion, drawn, t, s, huber, teacher)


def easy_consistency(
    diffusion: Diffusion,
    settings: Any,
    drawn: Drawn,
    *,
    q: float = 2.0,
    k: float = 8.0,
    stages: int = 8,
    huber: float | None = None,
    step: Any,
) -> Any:
    """q, k: of `flow_maps.ect_time`, whose stage goes from 0 to stages - 1. huber: of `pseudo_huber`."""
    schedule = diffusion.schedule()
    high, low = times.default_ends(schedule)
    t = jnp.clip(drawn.t, low, high)
    stage = jnp.minimum(jnp.floor(step / settings.num_steps * stages), stages - 1)
    s = flow_maps.ect_time(schedule, t, stage, q=q, k=k)
    return _by_distance(diffusion, drawn, t, s, huber, None)


def consistency_distillation(
    diffusion: Diffusion,
    settings: Any,
    drawn: Drawn,
    *,
    grid: str = "karras",
    num_levels: int = 18,
    solver: str = "heun",
    distance: str = "squared",
    huber: float | None = None,
    guidance: float | None = None,
    ema: Any,
) -> Any:
    """t and s are neighbours in a step grid of num_levels entries, drawn uniformly. guidance: of the teacher.

    distance: "squared", or "huber" with `huber` of `pseudo_huber`. The target is the averaged network; the paper uses
    LPIPS and the grid `karras_80`.
    """
    schedule = diffusion.schedule()
    t, s = neighbours(schedule, drawn.t, grid, num_levels)
    return flow_maps.consistency_loss(
        drawn.key,
        _to_data(diffusion, drawn.predict),
        schedule,
        drawn.x,
        t,
        s,
        target=_to_data(diffusion, drawn.bound(ema, drawn.condition)),
        teacher=drawn.teaches(guidance),
        solver=solver,
        distance=squared if distance == "squared" else pseudo_huber(huber),
        eps=drawn.eps,
    )


def latent_consistency(
    diffusion: Diffusion,
    settings: Any,
    drawn: Drawn,
    *,
    num_levels: int = 50,
    huber: float = 0.001,
    low: float = 1.0,
    high: float = 3.0,
    ema: Any,
) -> Any:
    """t = k / num_levels, drawn uniformly, and s the level below; the target is the averaged network.

    low, high: the weights of guidance are uniform in between; 6 to 16 in the paper, for text to image.
    """
    schedule = diffusion.schedule()
    t, s = neighbours(schedule, drawn.t, "trailing", num_levels)
    weight = low + (high - low) * random.unit_interval(drawn.own, len(drawn.x))
    return flow_maps.consistency_loss(
        drawn.key,
        _to_data(diffusion, drawn.bound(drawn.params, drawn.condition, weight)),
        schedule,
        drawn.x,
        t,
        s,
        target=_to_data(diffusion, drawn.bound(ema, drawn.condition, weight)),
        teacher=drawn.teaches(weight),
        solver="ddim",
        distance=pseudo_huber(huber),
        eps=drawn.eps,
    )


def continuous_consistency(
    diffusion: Diffusion,
    settings: Any,
    drawn: Drawn,
    *,
    warmup: float = 0.1,
    normalise: float = 0.1,
    guidance: float | None = None,
    step: Any,
) -> Any:
    """warmup: the share of the steps in which r rises to 1. normalise: c of the tangents. guidance: of the teacher.

    The paper also learns the variance of the loss by time, which is left out.
    """
    options = {
        "rate": teacher_rate(diffusion, drawn, guidance),
        "warmup": jnp.minimum(step / (warmup * settings.num_steps), 1.0),
        "normalise": normalise,
        "sigma_data": diffusion.sigma_data,
        "eps": drawn.eps,
    }
    predict, schedule, kind = _two_times(diffusion, drawn.predict), diffusion.schedule(), diffusion.prediction
    return flow_maps.continuous_consistency_loss(drawn.key, predict, schedule, kind, drawn.x, drawn.t, **options)
