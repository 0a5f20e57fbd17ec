"""ConfigDict -> training loss: the objective, its weighting, and how training times are drawn."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

import diffax
from diffax._checks import choose
from diffax.losses import training_times, weightings
from experiments.models import build

WEIGHTINGS = {
    "target": None,
    "eps": weightings.simple,
    **{name: row.make for name, row in weightings.CATALOGUE.items() if name != "simple"},
}
PER_LOG_SNR = tuple(name for name, row in weightings.CATALOGUE.items() if row.measure == "log_snr")
LAWS = {
    **training_times.DISTRIBUTIONS,
    "loss_aware": lambda *, num_bins=100, history=10, uniform_fraction=1e-3: diffax.losses.resampling.loss_aware(
        num_bins, history=history, uniform_fraction=uniform_fraction
    ),
}
SPREADS = {  # index: where these examples stand in the whole batch of `total`
    "independent": lambda keys, size, index, total: training_times.independent(keys, size),
    "stratified": lambda keys, size, index, total: training_times.stratified(keys, size, index=index, total=total),
    "antithetic": lambda keys, size, index, total: training_times.antithetic(keys, size),
}


class Objective(NamedTuple):
    """What `train_step` takes: the loss, and where it has a memory, its first state and how it remembers."""

    loss: Callable
    memory: Any = ()
    update_memory: Callable | None = None


def _make(config: Any, setting: str, table: dict[str, Any]) -> Any:
    """What config.loss.SETTING names, made with the parameters in config.loss.SETTING_parameters; None as it is."""
    path = f"config.loss.{setting}"
    name, parameters = config.loss[setting], dict(config.loss[f"{setting}_parameters"])
    make = choose(path, name, table)
    known = [] if make is None else list(inspect.signature(make).parameters)
    # What the config says elsewhere.
    given = {"schedule": build.schedule(config), "sigma_data": config.sigma_data}
    for key, value in parameters.items():
        if key not in known or key in given:
            own = ", ".join(k for k in known if k not in given) or "none"
            raise ValueError(f"{path}_parameters.{key} is no parameter of {name}; those are {own}")
        if not build.is_number(value):
            raise ValueError(f"{path}_parameters.{key} must be a number, got {value!r}")
    return make and make(**{k: v for k, v in given.items() if k in known}, **parameters)


def weighting(config: Any) -> Callable | None:
    """The loss's weighting of log-SNR, None for the plain mean square of what is predicted."""
    return _make(config, "weighting", WEIGHTINGS)


def law(config: Any) -> Any:
    """The law of the training times: a quantile function, or the `Resampler` of one that follows the losses."""
    return _make(config, "times", LAWS)


def _condition(config, net, batch, key):
    """Labels (B,) or tokens (B, m), some replaced by the null condition; None for a network without a condition."""
    null = build.null_condition(config, net)
    if null is None:
        return None
    given = batch["tokens" if config.text.enabled else "label"]
    kept = diffax.losses.drop_labels(key, jnp.ones(len(given), bool), False, p_uncond=config.loss.p_uncond)
    return jnp.where(kept.reshape(-1, *[1] * (given.ndim - 1)), given, null)


def objective(config: Any, net: Any) -> Objective:
    """The loss of each example by config.loss.objective; loss-aware times leave what it estimates as it is."""
    of_example = OBJECTIVES[config.loss.objective](config)
    chosen, spread = law(config), SPREADS[config.loss.spread]
    # The bound of continuous time is one over levels: its network is called with them.
    of_time = {"of_time": lambda schedule, log_snr: log_snr} if config.loss.objective == "vdm" else {}

    def per_example(params, batch, keys, of_times):
        noise, time, drop, dropout = (diffax.random.fold_in(keys, i) for i in range(4))
        image, label = batch["image"], _condition(config, net, batch, drop)
        place = {"index": batch["index"], "total": config.dataset.batch_size}
        drawn = training_times.draw(time, len(image), of_times, uniforms=functools.partial(spread, **place))
        f = build.predict(config, net, params, label, key=dropout, **of_time)
        return of_example(noise, f, image, drawn, params), drawn

    if not isinstance(chosen, diffax.losses.resampling.Resampler):
        return Objective(lambda params, batch, keys: per_example(params, batch, keys, chosen)[0])

    def weighted(params, batch, keys, past):
        losses, (t, weight) = per_example(params, batch, keys, chosen.distribution(past))
        return weight * losses, (t, losses)

    return Objective(weighted, chosen.init(), lambda past, seen: chosen.update(past, *seen))


# Each: config -> (key, predict, images, draw of times, params) -> (B,)


def _denoising(config):
    of_log_snr = weighting(config)
    measure = "log_snr" if config.loss.weighting in PER_LOG_SNR else "t"
    weights = {"weighting": of_log_snr, "measure": measure, "sigma_data": config.sigma_data}

    def of_example(key, f, image, drawn, params):
        return diffax.denoising_loss(key, f, build.schedule(config), config.prediction, image, drawn.t, **weights)

    return of_example


def _bounded(config):
    curve = build.schedule(config)
    num_steps, lattice = diffax.times.table_length(curve), diffax.likelihood.Lattice(config.loss.bin_width)
    settings = {"num_steps": num_steps, "lattice": lattice, "sigma_data": config.sigma_data}
    weights = {"weight": config.loss.vlb_weight} if config.loss.objective == "hybrid" else {}
    compute = diffax.losses.hybrid_loss if weights else diffax.losses.vlb_loss

    def of_example(key, f, image, drawn, params):
        t = training_times.discrete(drawn, num_steps).t
        return compute(key, f, curve, config.prediction, image, t, **settings, **weights)

    return of_example


def _vdm(config):
    settings = {"learn_ends": config.loss.learn_ends, "lattice": diffax.likelihood.Lattice(config.loss.bin_width)}

    def of_example(key, f, image, drawn, params):
        curve = build.schedule(config, params)
        return diffax.losses.vdm_loss(key, f, curve, config.prediction, image, drawn.t, **settings)

    return of_example


OBJECTIVES = {"denoising": _denoising, "hybrid": _bounded, "vlb": _bounded, "vdm": _vdm}
