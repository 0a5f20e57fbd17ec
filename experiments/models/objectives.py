"""The training loss of a diffusion model: the objective, its weighting, and how training times are drawn."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import diffax
from diffax._pytrees import pytree, static
from diffax.losses import training_times, weightings
from diffax.pretrained import Diffusion, Spec

WEIGHTINGS: dict[str, Any] = {
    "target": lambda: None,
    "eps": weightings.simple,
    **{name: row.make for name, row in weightings.CATALOGUE.items() if name != "simple"},
}
PER_LOG_SNR = tuple(name for name, row in weightings.CATALOGUE.items() if row.measure == "log_snr")
TIMES: dict[str, Any] = {
    **training_times.DISTRIBUTIONS,
    "loss_aware": lambda *, num_bins=100, history=10, uniform_fraction=1e-3: diffax.losses.resampling.loss_aware(
        num_bins, history=history, uniform_fraction=uniform_fraction
    ),
}
SPREADS = {  # index: positions of these examples in the whole batch of `total`
    "independent": lambda keys, size, index, total: training_times.independent(keys, size),
    "stratified": lambda keys, size, index, total: training_times.stratified(keys, size, index=index, total=total),
    "antithetic": lambda keys, size, index, total: training_times.antithetic(keys, size),
}

# Parameters of weightings and times that the model has.
SHARED: dict[str, Callable[[Diffusion], Any]] = {
    "schedule": lambda diffusion: diffusion.schedule(),
    "sigma_data": lambda diffusion: diffusion.sigma_data,
}


@pytree
class Loss:
    """The settings of a training loss.

    Attributes:
      weighting: a name of `WEIGHTINGS`.
      times: a name of `TIMES`, the distribution of the training times.
      p_uncond: probability that the condition of an example is dropped.
      vlb_weight: weight of the bound in the objective "hybrid".
      objective: a name of `OBJECTIVES`.
      spread: a name of `SPREADS`.
      bin_width: width of a quantization bin of the data in [-1, 1], for the bounds.
      learn_ends: whether "vdm" learns the ends of its schedule.
      batch_size: number of examples of the whole batch.
    """

    weighting: Spec
    times: Spec
    p_uncond: Any
    vlb_weight: Any
    objective: str = static()
    spread: str = static()
    bin_width: float = static()
    learn_ends: bool = static()
    batch_size: int = static()


class Objective(NamedTuple):
    """Arguments of `train_step`.

    loss: (params, batch, keys) -> (B,). memory: the initial memory of a loss that depends on earlier steps, with
    update_memory: (memory, aux) -> memory.
    """

    loss: Callable[..., Any]
    memory: Any = ()
    update_memory: Callable[..., Any] | None = None


def make(spec: Spec, table: Mapping[str, Callable[..., Any]], diffusion: Diffusion) -> Any:
    """The object of a specification; a constructor with the parameters `schedule` or `sigma_data` gets the model's."""
    shared = {name: get(diffusion) for name, get in SHARED.items() if name in parameters(table[spec.name])}
    return table[spec.name](**shared, **spec.parameters)


def parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of the parameters of a function."""
    return tuple(inspect.signature(function).parameters)


def objective(diffusion: Diffusion, settings: Loss, *, module: Any = None) -> Objective:
    """The loss of each example. module: a network in place of the model's.

    A batch has `x` (B, *shape), `index` (B,), and `label` (B,), `tokens` (B, m) or `condition` (B, ...) for a network
    with a condition. With `u` (B,), quantiles of the training times, it measures: no condition and no unit is dropped.
    """
    loss = functools.partial(OBJECTIVES[settings.objective], diffusion, settings)
    times, spread = make(settings.times, TIMES, diffusion), SPREADS[settings.spread]
    # The bound in continuous time integrates over log-SNRs, so the network gets these.
    of_time = {"of_time": lambda schedule, log_snr: log_snr} if settings.objective == "vdm" else {}

    def per_example(params: Any, batch: Any, keys: Any, distribution: Any) -> Any:
        noise, time, drop, dropout = (diffax.random.fold_in(keys, i) for i in range(4))
        x, condition = batch["x"], _condition(diffusion, settings, batch, drop)
        uniforms: Any = functools.partial(spread, index=batch["index"], total=settings.batch_size)
        if measures := "u" in batch:
            uniforms = lambda key, size: batch["u"]  # noqa: E731
        draws = training_times.draw(time, len(x), distribution, uniforms=uniforms)
        mask = batch.get("mask")
        predict = diffusion.predict(
            params, condition, key=None if measures else dropout, module=module, mask=mask, **of_time
        )
        return loss(noise, predict, x, draws, params, mask), draws

    if not isinstance(times, diffax.losses.resampling.Resampler):
        return Objective(lambda params, batch, keys: per_example(params, batch, keys, times)[0])

    def weighted(params: Any, batch: Any, keys: Any, memory: Any) -> Any:
        losses, (t, weight) = per_example(params, batch, keys, times.distribution(memory))
        return weight * losses, (t, losses)

    return Objective(weighted, times.init(), lambda memory, aux: times.update(memory, *aux))


def _condition(diffusion: Diffusion, settings: Loss, batch: Any, key: Any) -> jax.Array | None:
    """The conditions of a batch, some replaced by the null condition; None for a network without a condition."""
    if diffusion.null is None:
        return None
    condition = batch[{"label": "label", "tokens": "tokens", "array": "condition"}[diffusion.condition]]
    if "u" in batch:
        return jnp.asarray(condition)
    keep = diffax.losses.drop_labels(key, jnp.ones(len(condition), bool), False, p_uncond=settings.p_uncond)
    return jnp.where(keep.reshape(-1, *[1] * (condition.ndim - 1)), condition, diffusion.null)


# Each returns the losses (B,). draws: of training times.


def _denoising(
    diffusion: Diffusion, settings: Loss, key: Any, predict: Any, x: Any, draws: Any, params: Any, mask: Any
) -> Any:
    return diffax.denoising_loss(
        key,
        predict,
        diffusion.schedule(),
        diffusion.prediction,
        x,
        draws.t,
        weighting=make(settings.weighting, WEIGHTINGS, diffusion),
        measure="log_snr" if settings.weighting.name in PER_LOG_SNR else "t",
        sigma_data=diffusion.sigma_data,
        mask=mask,
    )


def _bounded(
    diffusion: Diffusion, settings: Loss, key: Any, predict: Any, x: Any, draws: Any, params: Any, mask: Any
) -> Any:
    schedule, lattice = diffusion.schedule(), diffax.likelihood.Lattice(settings.bin_width)
    num_steps = diffax.times.table_length(schedule)
    t = training_times.discrete(draws, num_steps).t
    options: dict[str, Any] = {"num_steps": num_steps, "lattice": lattice, "mask": mask}
    options["sigma_data"] = diffusion.sigma_data
    if settings.objective == "vlb":
        return diffax.losses.vlb_loss(key, predict, schedule, diffusion.prediction, x, t, **options)
    options["weight"] = settings.vlb_weight
    return diffax.losses.hybrid_loss(key, predict, schedule, diffusion.prediction, x, t, **options)


def _vdm(
    diffusion: Diffusion, settings: Loss, key: Any, predict: Any, x: Any, draws: Any, params: Any, mask: Any
) -> Any:
    schedule, lattice = diffusion.schedule(params), diffax.likelihood.Lattice(settings.bin_width)
    options: dict[str, Any] = {"learn_ends": settings.learn_ends, "lattice": lattice, "mask": mask}
    return diffax.losses.vdm_loss(key, predict, schedule, diffusion.prediction, x, draws.t, **options)


OBJECTIVES: dict[str, Callable[..., Any]] = {"denoising": _denoising, "hybrid": _bounded, "vlb": _bounded, "vdm": _vdm}
