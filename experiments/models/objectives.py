"""The training loss of a diffusion model: the objective, its weighting, and how training times are drawn."""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import diffax
from diffax._pytrees import pytree, static
from diffax.losses import couplings, training_times, weightings
from diffax.nn.description import with_forward_mode
from diffax.pretrained import Diffusion, Spec
from experiments.configs.objectives import FEW_STEPS, ROWS
from experiments.models import few_steps
from experiments.models.few_steps import Drawn, Teacher

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
COUPLINGS = {"independent": None, "optimal_transport": couplings.optimal_transport}

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
      objective: a name of `OBJECTIVES` with its parameters.
      spread: a name of `SPREADS`.
      bin_width: width of a quantization bin of the data in [-1, 1], for the bounds.
      learn_ends: whether "vdm" learns the ends of its schedule.
      coupling: a name of `COUPLINGS`, which noise belongs to which example.
      coupling_size: the number of neighbours of a batch among which a coupling assigns the noise.
      batch_size: number of examples of the whole batch.
      num_steps: number of steps of the training.
    """

    weighting: Spec
    times: Spec
    p_uncond: Any
    vlb_weight: Any
    objective: Spec
    spread: str = static()
    bin_width: float = static()
    learn_ends: bool = static()
    coupling: str = static()
    coupling_size: int = static()
    batch_size: int = static()
    num_steps: int = static()


class Objective(NamedTuple):
    """Arguments of `train_step`.

    loss: (params, batch, keys, **uses) -> (B,). memory: the initial memory of a loss that depends on earlier steps,
    with update_memory: (memory, aux, **uses) -> memory. uses: fields of the state that the loss gets. group: the number
    of neighbours of a batch that must be on one device. follows: whether a measurement needs the memory of the state,
    because it is a target, not losses of earlier steps.
    """

    loss: Callable[..., Any]
    memory: Any = ()
    update_memory: Callable[..., Any] | None = None
    uses: tuple[str, ...] = ()
    group: int = 1
    follows: bool = False


def make(spec: Spec, table: Mapping[str, Callable[..., Any]], diffusion: Diffusion) -> Any:
    """The object of a specification; a constructor with the parameters `schedule` or `sigma_data` gets the model's."""
    shared = {name: get(diffusion) for name, get in SHARED.items() if name in parameters(table[spec.name])}
    return table[spec.name](**shared, **spec.parameters)


def parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of the parameters of a function."""
    return tuple(inspect.signature(function).parameters)


def parameters_of(name: str) -> dict[str, Any]:
    """The parameters of an objective with their defaults: keyword arguments of its function that have one."""
    every = inspect.signature(OBJECTIVES[name]).parameters.values()
    return {p.name: p.default for p in every if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}


def check_use(name: str, diffusion: Diffusion) -> None:
    """Raise `ValueError` for a prediction or a sampler that does not fit a network trained by an objective."""
    sampling = diffusion.sampling
    if name not in FEW_STEPS:
        return
    if diffusion.prediction in ("eps", "score") and float(diffusion.schedule()(1.0).alpha) < 0.01:
        raise ValueError(
            f"config.prediction must not be {diffusion.prediction} for {name} on {diffusion.curve.name}, where it does "
            "not determine x0 at t = 1"
        )
    to_data = ("jump",) if diffusion.second_time else ("consistency", "lcm")
    if ROWS[name].ends == "data" and sampling.sampler not in to_data:
        raise ValueError(
            f"config.sampling.sampler must be {' or '.join(to_data)} for a network that was trained by {name}, got "
            f"{sampling.sampler!r}"
        )
    gamma = 0.0 if sampling.eta is None else sampling.eta
    if ROWS[name].ends == "data" and sampling.sampler == "jump" and sampling.num_steps > 1 and gamma != 1:
        raise ValueError(f"config.sampling.eta must be 1 for {name}, which learns jumps to the data, got {gamma}")


def objective(diffusion: Diffusion, settings: Loss, *, module: Any = None, teacher: Teacher | None = None) -> Objective:
    """The loss of each example. module: a network in place of the model's. teacher: to learn from, None without one.

    A batch has `x` (B, *shape), `index` (B,), and `label` (B,), `tokens` (B, m) or `condition` (B, ...) for a network
    with a condition. With `eps` (B, *shape) these are pairs, and eps is in place of noise. With `u` (B,), quantiles of
    the training times, it measures: no condition and no unit is dropped.
    """
    name = settings.objective.name
    row, function = ROWS[name], OBJECTIVES[name]
    group = math.lcm(row.group, 1 if settings.coupling == "independent" else settings.coupling_size)
    if row.derivative and module is None:
        module = with_forward_mode(diffusion.module)  # fused attention has no forward derivative
    times, spread = make(settings.times, TIMES, diffusion), SPREADS[settings.spread]
    # The bound in continuous time integrates over log-SNRs, so the network gets these.
    of_time: dict[str, Any] = {"of_time": lambda schedule, log_snr: log_snr} if name == "vdm" else {}

    def per_example(params: Any, batch: Any, keys: Any, distribution: Any, **used: Any) -> Any:
        noise, time, drop, dropout = (diffax.random.fold_in(keys, i) for i in range(4))
        x, (condition, dropped) = batch["x"], _condition(diffusion, settings, batch, drop)
        uniforms: Any = functools.partial(spread, index=batch["index"], total=settings.batch_size)
        if measures := "u" in batch:
            uniforms = lambda key, size: batch["u"]  # noqa: E731
        draws = training_times.draw(time, len(x), distribution, uniforms=uniforms)

        drawn = Drawn(
            key=noise,
            x=x,
            t=draws.t,
            distribution=distribution,
            params=params,
            network=functools.partial(diffusion.predict, module=module, **of_time),
            condition=condition,
            dropped=dropped,
            dropout=None if measures else dropout,
            eps=_coupled(settings, noise, batch),
            mask=batch.get("mask"),
            measures=measures,
            teacher=teacher,
        )
        return function(diffusion, settings, drawn, **settings.objective.parameters, **used), draws

    if row.memory:
        defaults = parameters_of(name)
        own = {key: value for key, value in (defaults | settings.objective.parameters).items() if key == "num_steps"}
        learns = functools.partial(few_steps.next_teacher, settings, **own)

        def remembered(params: Any, batch: Any, keys: Any, memory: Any, *, ema: Any, **used: Any) -> Any:
            del ema  # `learns` needs it
            return per_example(params, batch, keys, times, memory=memory, **used)[0], ()

        memory = () if teacher is None else jax.tree.map(jnp.asarray, teacher.params)
        update = lambda memory, aux, **used: learns(memory, **used)  # noqa: E731
        return Objective(remembered, memory, update, (*row.uses, "ema"), group, follows=True)
    if not isinstance(times, diffax.losses.resampling.Resampler):
        plain = lambda params, batch, keys, **used: per_example(params, batch, keys, times, **used)[0]  # noqa: E731
        return Objective(plain, uses=row.uses, group=group)

    def weighted(params: Any, batch: Any, keys: Any, memory: Any) -> Any:
        losses, (t, weight) = per_example(params, batch, keys, times.distribution(memory))
        return weight * losses, (t, losses)

    return Objective(weighted, times.init(), lambda memory, aux: times.update(memory, *aux), group=group)


def _condition(diffusion: Diffusion, settings: Loss, batch: Any, key: Any) -> tuple[Any, Any]:
    """The conditions of a batch, and which of them (B,) are the null condition; None for a network without one."""
    none = jnp.zeros(len(batch["x"]), bool)
    if diffusion.null is None:
        return None, none
    condition = batch[{"label": "label", "tokens": "tokens", "array": "condition"}[diffusion.condition]]
    if "u" in batch:
        return jnp.asarray(condition), none
    keep = diffax.losses.drop_labels(key, ~none, False, p_uncond=settings.p_uncond)
    return jnp.where(keep.reshape(-1, *[1] * (condition.ndim - 1)), condition, diffusion.null), ~keep


def _coupled(settings: Loss, key: Any, batch: Any) -> Any:
    """The other end of the paths: that of given pairs, or noise as the coupling assigns it; None for noise."""
    if "eps" in batch:
        return batch["eps"]
    couple, size, x = COUPLINGS[settings.coupling], settings.coupling_size, batch["x"]
    if couple is None:
        return None

    def groups(leaf: Any) -> Any:
        return leaf.reshape(-1, size, *leaf.shape[1:])

    return jax.vmap(couple)(groups(key), groups(x)).reshape(x.shape)


# Each returns the losses (B,).


def _denoising(diffusion: Diffusion, settings: Loss, drawn: Drawn) -> Any:
    return diffax.denoising_loss(
        drawn.key,
        drawn.predict,
        diffusion.schedule(),
        diffusion.prediction,
        drawn.x,
        drawn.t,
        weighting=make(settings.weighting, WEIGHTINGS, diffusion),
        measure="log_snr" if settings.weighting.name in PER_LOG_SNR else "t",
        sigma_data=diffusion.sigma_data,
        mask=drawn.mask,
        eps=drawn.eps,
    )


def _bounded(loss: Callable[..., Any], diffusion: Diffusion, settings: Loss, drawn: Drawn, **weight: Any) -> Any:
    schedule, lattice = diffusion.schedule(), diffax.likelihood.Lattice(settings.bin_width)
    num_steps = diffax.times.table_length(schedule)
    t = training_times.discrete(training_times.Draw(drawn.t, 1.0), num_steps).t
    options: dict[str, Any] = {"num_steps": num_steps, "lattice": lattice, "mask": drawn.mask, **weight}
    options["sigma_data"] = diffusion.sigma_data
    return loss(drawn.key, drawn.predict, schedule, diffusion.prediction, drawn.x, t, **options)


def _vlb(diffusion: Diffusion, settings: Loss, drawn: Drawn) -> Any:
    return _bounded(diffax.losses.vlb_loss, diffusion, settings, drawn)


def _hybrid(diffusion: Diffusion, settings: Loss, drawn: Drawn) -> Any:
    return _bounded(diffax.losses.hybrid_loss, diffusion, settings, drawn, weight=settings.vlb_weight)


def _vdm(diffusion: Diffusion, settings: Loss, drawn: Drawn) -> Any:
    schedule, lattice = diffusion.schedule(drawn.params), diffax.likelihood.Lattice(settings.bin_width)
    options: dict[str, Any] = {"learn_ends": settings.learn_ends, "lattice": lattice, "mask": drawn.mask}
    return diffax.losses.vdm_loss(drawn.key, drawn.predict, schedule, diffusion.prediction, drawn.x, drawn.t, **options)


OBJECTIVES: dict[str, Callable[..., Any]] = {
    "denoising": _denoising,
    "hybrid": _hybrid,
    "vlb": _vlb,
    "vdm": _vdm,
    **few_steps.LOSSES,
}
