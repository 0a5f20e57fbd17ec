"""Objectives of few-step models: flow maps, consistency models and their distillation, see `diffax.flow_maps`.

    objective                  network         teacher     source
    mean_flow                  two times       optional    Geng et al. 2025
    improved_mean_flow         two times       optional    Geng et al. 2025b
    consistency                one or two      optional    Song & Dhariwal 2024 (iCT); with a teacher improved CD
    easy_consistency           one or two      none        Geng et al. 2024 (ECT); from a trained model by init_from
    consistency_distillation   one or two      needed      Song et al. 2023 (CD)
    latent_consistency         two, guidance   needed      Luo et al. 2023 (LCM)
    continuous_consistency     one or two      optional    Lu & Song 2025 (sCM)
    lagrangian                 two times       optional    Boffi et al. 2025
    shortcut                   two times       none        Frans et al. 2025
    progressive                one time        needed      Salimans & Ho 2022

The keyword arguments of each function are its config.loss.objective_parameters. A network of two times is sampled by
`jump`, one of one time by `consistency`, or by `ddim` after progressive distillation.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffax import flow_maps, random, times
from diffax._checks import check, check_count, choose, interval
from diffax.flow_maps import adaptive, pseudo_huber
from diffax.flow_maps._consistency import SOLVERS
from diffax.losses import denoising_loss, training_times
from diffax.pretrained import Diffusion

PART = 4  # one of so many examples of a batch gets the loss of the map, where the others get that of s = t


class Teacher(NamedTuple):
    """A trained model to learn from. folder, step, digest: of its checkpoint or export."""

    diffusion: Diffusion
    params: Any
    folder: Path
    step: int
    digest: str

    def identity(self) -> dict[str, Any]:
        """The values that a continued run must have as well."""
        return {"step": self.step, "digest": self.digest}


def denoiser_of(diffusion: Diffusion, params: Any, condition: Any, guidance: Any = None) -> Callable[..., Any]:
    """The denoiser of a model, not clipped, at a weight of guidance; None for that of its sampling."""
    settings = diffusion.sampling
    weight = settings.guidance if guidance is None else guidance
    plain = dataclasses.replace(settings, guidance=weight, interval=None, rescale=None, clip=False)
    return dataclasses.replace(diffusion, sampling=plain).denoiser(params, condition)


class Drawn(NamedTuple):
    """A batch as an objective sees it.

    key: (B,), for the noise. x: (B, *shape). t: (B,) draws of the training time, and `distribution`, theirs. params:
    the parameters. network: `Diffusion.predict`. condition: with null conditions where `dropped` (B,). dropout: (B,)
    keys, None for no dropout. eps: the other end of the paths, None for noise. mask: of points. measures: whether this
    is a measurement, at the given t. teacher: None without one.
    """

    key: Any
    x: Any
    t: Any
    distribution: Any
    params: Any
    network: Callable[..., Any]
    condition: Any
    dropped: Any
    dropout: Any
    eps: Any
    mask: Any
    measures: bool
    teacher: Teacher | None

    @property
    def predict(self) -> Any:
        """The network with its parameters and conditions."""
        return self.of(self.params, self.condition)

    def of(self, params: Any, condition: Any, weight: Any = None) -> Any:
        """The network as (x, t[, s]) -> y with other parameters, other conditions, a guidance weight."""
        return self.network(params, condition, key=self.dropout, mask=self.mask, weight=weight)

    def learned(self, guidance: Any = None) -> Any:
        """The denoiser of the teacher, not clipped. guidance: None for the weight that it samples with."""
        if self.teacher is None:
            raise ValueError("teacher must be a trained model, got None")
        return denoiser_of(self.teacher.diffusion, self.teacher.params, self.condition, guidance)

    def keys(self, number: int) -> Any:
        """Keys (B,) for further draws."""
        return random.fold_in(self.key, 1000 + number)

    def pair(self, equal: Any) -> flow_maps.Pair:
        """Times t >= s, see `flow_maps.pairs`; in a measurement t is given, and s is the smaller of t and a draw."""
        if not self.measures:
            return flow_maps.pairs(self.keys(0), len(self.x), self.distribution, equal=equal)
        other = training_times.draw(self.keys(0), len(self.x), self.distribution).t
        return flow_maps.Pair(self.t, jnp.minimum(self.t, other))


def two_times(diffusion: Diffusion, predict: Any) -> Any:
    """The network as (x, t, s) -> y, also one without a second time."""
    return predict if diffusion.second_time else lambda x, t, s: predict(x, t)


def data_of(diffusion: Diffusion, predict: Any) -> Any:
    """The consistency function (x, t) -> X(x, t, 0) of a network."""
    move = flow_maps.flow_map(
        two_times(diffusion, predict), diffusion.schedule(), diffusion.prediction, sigma_data=diffusion.sigma_data
    )
    return flow_maps.ending(move)


def weight_of(power: Any, offset: Any) -> Callable[[Any], Any]:
    """The adaptive weight of MeanFlow with these parameters."""
    return functools.partial(adaptive, power=power, offset=offset)


def teacher_rate(diffusion: Diffusion, drawn: Drawn, guidance: Any) -> Any:
    """The velocity of the teacher as `rate`, None without a teacher."""
    if drawn.teacher is None:
        return None
    velocity = flow_maps.velocity(drawn.learned(guidance), diffusion.schedule(), "x0")
    return lambda x, t, *conditional: velocity(x, t)


# ------------------------------------------------------------------------------------------------ velocities and maps


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
    """equal: share of s = t. power, offset: of the adaptive weight. guidance, mixing: see `flow_maps.guided`."""
    t, s = drawn.pair(equal)
    schedule, kind, options = diffusion.schedule(), diffusion.prediction, {"sigma_data": diffusion.sigma_data}
    rate = teacher_rate(diffusion, drawn, guidance)
    if rate is None and guidance is not None:
        # Without a condition the velocity is that of the draw.
        of = [
            flow_maps.velocity(flow_maps.diagonal(drawn.of(drawn.params, c)), schedule, kind, **options)
            for c in (drawn.condition, None)
        ]
        weights = {"weight": jnp.where(drawn.dropped, 1.0, guidance), "mixing": jnp.where(drawn.dropped, 0.0, mixing)}
        rate = flow_maps.guided(of[0], of[1], **weights)
    options |= {"rate": rate, "weight": weight_of(power, offset), "eps": drawn.eps}
    return loss(drawn.key, drawn.predict, schedule, kind, drawn.x, t, s, **options)


mean_flow = functools.partial(_mean_flow, flow_maps.mean_flow_loss)
improved_mean_flow = functools.partial(_mean_flow, flow_maps.improved_mean_flow_loss, equal=0.5)


def parted(drawn: Drawn) -> tuple[Drawn, Drawn]:
    """The examples at the positions 0, PART, 2 PART ..., and the others."""

    def part(first: bool) -> Drawn:
        def chosen(leaf: Any) -> Any:
            rows = leaf.reshape(-1, PART, *leaf.shape[1:])
            return rows[:, 0] if first else rows[:, 1:].reshape(-1, *leaf.shape[1:])

        arrays = ("key", "x", "t", "condition", "dropped", "dropout", "eps", "mask")
        return drawn._replace(**{name: jax.tree.map(chosen, getattr(drawn, name)) for name in arrays})

    return part(True), part(False)


def joined(first: Any, others: Any) -> Any:
    """The losses (B,) of the two parts."""
    return jnp.concatenate([first[:, None], others.reshape(-1, PART - 1)], 1).reshape(-1)


def diagonal_loss(diffusion: Diffusion, drawn: Drawn) -> Any:
    """The denoising loss at s = t."""
    predict = flow_maps.diagonal(drawn.predict)
    options = {"sigma_data": diffusion.sigma_data, "eps": drawn.eps}
    return denoising_loss(drawn.key, predict, diffusion.schedule(), diffusion.prediction, drawn.x, drawn.t, **options)


def lagrangian(diffusion: Diffusion, settings: Any, drawn: Drawn, *, guidance: float | None = None) -> Any:
    """guidance: of the teacher."""
    first, others = parted(drawn)
    t, s = first.pair(0.0)
    options = {"rate": teacher_rate(diffusion, first, guidance), "sigma_data": diffusion.sigma_data, "eps": first.eps}
    schedule, kind = diffusion.schedule(), diffusion.prediction
    loss = flow_maps.lagrangian_loss(first.key, first.predict, schedule, kind, first.x, t, s, **options)
    return joined(loss, diagonal_loss(diffusion, others))


def shortcut(diffusion: Diffusion, settings: Any, drawn: Drawn, *, num_levels: int = 7, ema: Any) -> Any:
    """num_levels: of `flow_maps.dyadic_pairs`. The target is the averaged network."""
    first, others = parted(drawn)
    t, s = flow_maps.dyadic_pairs(first.keys(0), len(first.x), num_levels=num_levels)
    options = {
        "target": first.of(ema, first.condition),
        "sigma_data": diffusion.sigma_data,
        "eps": first.eps,
    }
    schedule, kind = diffusion.schedule(), diffusion.prediction
    loss = flow_maps.semigroup_loss(first.key, first.predict, schedule, kind, first.x, t, s, **options)
    return joined(loss, diagonal_loss(diffusion, others))


# ------------------------------------------------------------------------------------------------ consistency functions


def noise_ratio(schedule: Any, t: Any) -> Any:
    """sigma / alpha."""
    return jnp.exp(-schedule.log_snr(t) / 2)


def karras_neighbours(schedule: Any, t: Any, count: Any, rho: float = 7.0) -> tuple[Any, Any]:
    """The two levels around t of the grid of Karras et al. 2022 with `count` levels, which may be traced; s < t.

    The ends are those of the step grids, and s = 0 in place of the lowest level.
    """
    high, low = (noise_ratio(schedule, end) ** (1 / rho) for end in times.default_ends(schedule))
    place = (noise_ratio(schedule, t) ** (1 / rho) - low) / (high - low)
    index = jnp.clip(jnp.floor(place * (count - 1)), 0, count - 2)

    def level(index: Any) -> Any:
        ratio = (low + index / (count - 1) * (high - low)) ** rho
        return schedule.inverse(-2 * jnp.log(ratio))

    return level(index + 1), jnp.where(index == 0, 0.0, level(index))


def grid_neighbours(schedule: Any, t: Any, grid: str, count: int) -> tuple[Any, Any]:
    """The two entries around t of a step grid of `count` entries and 0; s < t."""
    points = jnp.append(times.CATALOGUE[grid].build(schedule, count), 0.0)[::-1]
    index = jnp.clip(jnp.searchsorted(points, t) - 1, 0, count - 1)
    return points[index + 1], points[index]


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
    """first, last: of `flow_maps.levels`. huber: of `pseudo_huber`. guidance: of the teacher."""
    schedule = diffusion.schedule()
    count = flow_maps.levels(step, settings.num_steps, first=first, last=last)
    t, s = karras_neighbours(schedule, drawn.t, count)
    return _consistency(diffusion, drawn, t, s, huber, guidance)


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
    stage = jnp.floor(step / settings.num_steps * stages)
    s = flow_maps.ect_time(diffusion.schedule(), drawn.t, stage, q=q, k=k)
    return _consistency(diffusion, drawn, drawn.t, s, huber, None)


def _consistency(diffusion: Diffusion, drawn: Drawn, t: Any, s: Any, huber: Any, guidance: Any) -> Any:
    """The consistency loss with weight 1 / (rho_t - rho_s), rho = sigma / alpha; the target is the network itself."""
    schedule = diffusion.schedule()
    teacher = None if drawn.teacher is None else drawn.learned(guidance)
    options = {"teacher": teacher, "distance": pseudo_huber(huber), "eps": drawn.eps}
    loss = flow_maps.consistency_loss(drawn.key, data_of(diffusion, drawn.predict), schedule, drawn.x, t, s, **options)
    return loss / (noise_ratio(schedule, t) - noise_ratio(schedule, s))


def consistency_distillation(
    diffusion: Diffusion,
    settings: Any,
    drawn: Drawn,
    *,
    grid: str = "karras",
    num_levels: int = 18,
    solver: str = "heun",
    huber: float = 0.0,
    guidance: float | None = None,
    ema: Any,
) -> Any:
    """grid, num_levels: t and s are neighbours in it. huber: 0 for squares. guidance: of the teacher."""
    schedule = diffusion.schedule()
    t, s = grid_neighbours(schedule, drawn.t, grid, num_levels)
    options: dict[str, Any] = {"solver": solver, "teacher": drawn.learned(guidance)}
    options |= {"distance": pseudo_huber(huber)} if huber else {}
    return flow_maps.consistency_loss(
        drawn.key,
        data_of(diffusion, drawn.predict),
        schedule,
        drawn.x,
        t,
        s,
        target=data_of(diffusion, drawn.of(ema, drawn.condition)),
        eps=drawn.eps,
        **options,
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
    """num_levels: t = k / num_levels and s is the level below. low, high: the weights of guidance are uniform in it."""
    schedule = diffusion.schedule()
    t, s = grid_neighbours(schedule, drawn.t, "trailing", num_levels)
    unit = random.unit_interval(drawn.keys(0), len(drawn.x))
    weight = low + (high - low) * unit
    return flow_maps.consistency_loss(
        drawn.key,
        data_of(diffusion, drawn.of(drawn.params, drawn.condition, weight)),
        schedule,
        drawn.x,
        t,
        s,
        target=data_of(diffusion, drawn.of(ema, drawn.condition, weight)),
        teacher=drawn.learned(weight),
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
    """warmup: the share of the steps in which r rises to 1. normalise: c of the tangents. guidance: of the teacher."""
    options = {
        "rate": teacher_rate(diffusion, drawn, guidance),
        "warmup": jnp.minimum(step / (warmup * settings.num_steps), 1.0),
        "normalise": normalise,
        "sigma_data": diffusion.sigma_data,
        "eps": drawn.eps,
    }
    predict, schedule, kind = two_times(diffusion, drawn.predict), diffusion.schedule(), diffusion.prediction
    return flow_maps.continuous_consistency_loss(drawn.key, predict, schedule, kind, drawn.x, drawn.t, **options)


# ------------------------------------------------------------------------------------------------ progressive


def progressive(
    diffusion: Diffusion,
    settings: Any,
    drawn: Drawn,
    *,
    first: int = 8,
    guidance: float | None = None,
    step: Any,
    memory: Any,
) -> Any:
    """first: steps of the student in the first stage, halved in each of the others. guidance: of the first teacher.

    memory: the parameters of the teacher; see `next_teacher`.
    """
    stage, _ = _stage(step, settings.num_steps, first)
    count = first / 2.0**stage
    place = jnp.clip(jnp.floor(drawn.t * count), 0, count - 1)
    guided = drawn.learned(guidance)
    student = denoiser_of(diffusion, memory, drawn.condition, 1.0)

    def teacher(x: Any, t: Any) -> Any:
        return jax.lax.cond(stage == 0, guided, student, x, t)

    return flow_maps.progressive_loss(
        drawn.key,
        drawn.predict,
        diffusion.schedule(),
        diffusion.prediction,
        drawn.x,
        (place + 1) / count,
        place / count,
        teacher=teacher,
        sigma_data=diffusion.sigma_data,
        eps=drawn.eps,
    )


def _stage(step: Any, num_steps: int, first: int) -> tuple[Any, Any]:
    """The stage of a step, and whether the step is its first one."""
    stages = first.bit_length()
    length = -(-num_steps // stages)
    return step // length, step % length == 0


def next_teacher(settings: Any, memory: Any, *, first: int = 8, step: Any, ema: Any, **_: Any) -> Any:
    """The parameters of the teacher: the averaged student at the end of each stage."""
    _, starts = _stage(step + 1, settings.num_steps, first)
    return jax.tree.map(lambda own, new: jnp.where(starts, new, own), memory, ema)


# ------------------------------------------------------------------------------------------------ all of them


RANGES = {
    **dict.fromkeys(("equal", "mixing"), "[0, 1]"),
    **dict.fromkeys(("power", "huber", "k", "guidance"), "[0, inf)"),
    **dict.fromkeys(("offset", "normalise", "warmup"), "(0, inf)"),
    "q": "(1, inf)",
}
TEXTS: dict[str, Any] = {"grid": times.CATALOGUE, "solver": SOLVERS}


def checked(parameters: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of an objective, those that count as ints and the others as floats.

    Raises:
      ValueError: for a value that is out of range.
    """
    result = {}
    for name, value in parameters.items():
        if name in TEXTS:
            result[name] = choose(name, value, TEXTS[name])
        elif isinstance(defaults[name], int):
            check_count(name, value, 2 if name == "num_levels" else 1)
            result[name] = value
        else:
            if name in RANGES:
                check(name, value, interval(RANGES[name]))
            result[name] = float(value)
    whole = {**defaults, **result}
    if "last" in whole and whole["last"] < whole["first"]:
        raise ValueError(f"last must be at least first = {whole['first']}, got {whole['last']}")
    if "stages" not in whole and "last" not in whole and (first := whole.get("first", 1)) & (first - 1):
        raise ValueError(f"first must be a power of 2, got {first}")
    if "low" in whole and not 0 <= whole["low"] <= whole["high"] < math.inf:
        raise ValueError(f"low must be in [0, high = {whole['high']}], got {whole['low']}")
    return result


class Row(NamedTuple):
    """An objective and what it needs.

    loss: (diffusion, settings, drawn, **parameters, **uses) -> (B,), see `parameters_of` and `uses_of`. teacher:
    "none", "optional" or "needed". times: of the network, "one", "two" or "any". group: the number of neighbours of a
    batch that must be on one device. guidance_input: whether the network has a guidance weight as its input. learns:
    (settings, memory, **parameters, **uses) -> memory, for an objective with a memory: at first the teacher's
    parameters.
    """

    loss: Callable[..., Any]
    teacher: str = "none"
    times: str = "any"
    group: int = 1
    guidance_input: bool = False
    learns: Callable[..., Any] | None = None


ROWS = {
    "mean_flow": Row(mean_flow, "optional", "two"),
    "improved_mean_flow": Row(improved_mean_flow, "optional", "two"),
    "consistency": Row(consistency, "optional"),
    "easy_consistency": Row(easy_consistency),
    "consistency_distillation": Row(consistency_distillation, "needed"),
    "latent_consistency": Row(latent_consistency, "needed", "two", guidance_input=True),
    "continuous_consistency": Row(continuous_consistency, "optional"),
    "lagrangian": Row(lagrangian, "optional", "two", PART),
    "shortcut": Row(shortcut, "none", "two", PART),
    "progressive": Row(progressive, "needed", "one", learns=next_teacher),
}
