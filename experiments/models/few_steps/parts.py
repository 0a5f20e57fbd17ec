"""The parts that objectives of few-step models share: the batch, the teacher, neighbouring levels."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffax import flow_maps, random, times
from diffax.losses import training_times
from diffax.pretrained import Diffusion
from experiments.configs.objectives import PART


class Teacher(NamedTuple):
    """A trained model to learn from. step, digest: of its checkpoint or export."""

    diffusion: Diffusion
    params: Any
    step: int
    digest: str

    def identity(self) -> dict[str, Any]:
        """The values that a continued run must have as well."""
        return {"step": self.step, "digest": self.digest}


class Drawn(NamedTuple):
    """A batch as an objective sees it.

    key: (B,), for the noise. x: (B, *shape). t: (B,), draws of `distribution`, the training time. params: of the
    network. network: `Diffusion.predict`. condition: with null conditions where `dropped` (B,). dropout: keys (B,),
    None for no dropout. eps: the other end of the paths, None for noise. mask: of points. measures: whether t is given,
    for a measurement. teacher: None without one.
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
        return self.bound(self.params, self.condition)

    def bound(self, params: Any, condition: Any, weight: Any = None) -> Any:
        """The network as (x, t[, s]) -> y with other parameters, other conditions, a guidance weight."""
        return self.network(params, condition, key=self.dropout, mask=self.mask, weight=weight)

    @property
    def own(self) -> Any:
        """Keys (B,) for draws other than the noise."""
        return random.fold_in(self.key, 1000)

    def pair(self, equal: Any) -> flow_maps.Pair:
        """Times t >= s, see `flow_maps.pairs`; in a measurement s is the smaller of the given t and a draw."""
        if not self.measures:
            return flow_maps.pairs(self.own, len(self.x), self.distribution, equal=equal)
        other = training_times.draw(self.own, len(self.x), self.distribution).t
        return flow_maps.Pair(self.t, jnp.minimum(self.t, other))

    def teaches(self, guidance: Any = None) -> Any:
        """The denoiser of the teacher, not clipped. guidance: None for the weight that it samples with."""
        if self.teacher is None:
            raise ValueError("teacher must be a trained model, got None")
        return denoiser_of(self.teacher.diffusion, self.teacher.params, self.condition, guidance)


def denoiser_of(diffusion: Diffusion, params: Any, condition: Any, guidance: Any = None) -> Callable[..., Any]:
    """The denoiser of a model, not clipped, at a weight of guidance; None for that of its sampling."""
    settings = diffusion.sampling
    weight = settings.guidance if guidance is None else guidance
    plain = dataclasses.replace(settings, guidance=weight, interval=None, rescale=None, clip=False)
    return dataclasses.replace(diffusion, sampling=plain).denoiser(params, condition)


def teacher_rate(diffusion: Diffusion, drawn: Drawn, guidance: Any) -> Any:
    """The velocity of the teacher as `rate`, None without a teacher."""
    if drawn.teacher is None:
        return None
    velocity = flow_maps.velocity(drawn.teaches(guidance), diffusion.schedule(), "x0")
    return lambda x, t, *conditional: velocity(x, t)


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


def neighbours(schedule: Any, u: Any, grid: str, count: int) -> tuple[Any, Any]:
    """The level floor(u count) of a step grid of `count` entries, in rising order, and the one below; 0 below the last.

    u: (B,), uniform in [0, 1].
    """
    points = jnp.append(times.CATALOGUE[grid].build(schedule, count), 0.0)[::-1]
    index = jnp.clip(jnp.floor(u * count), 0, count - 1).astype(int)
    return points[index + 1], points[index]
