"""From a config to objects, once: `build(config, data)`.

A model is a pytree of specifications: names are static and numbers are leaves, so a sweep may put traced values into
the leaves. Its methods build schedule, sampler, loss and optimiser inside the function that is jitted. Below a
command's `main` only `build` reads a config.
"""

import contextlib
import dataclasses
import functools
import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import diffax
from diffax._checks import choose
from diffax._pytrees import pytree
from diffax.nn.description import from_description
from diffax.predictions import KINDS
from diffax.pretrained import SCHEDULES, TIMES, Diffusion, Sampling, Spec, Units
from experiments.configs.objectives import FEW_STEPS
from experiments.configs.settings import at
from experiments.models import autoencoder, few_steps, noisy_classifier, objectives, samplers
from experiments.models.autoencoder import AutoencoderModel
from experiments.models.few_steps import Teacher
from experiments.models.noisy_classifier import ClassifierModel
from experiments.models.objectives import Loss, Objective
from experiments.models.optimizers import Optimizer


class Data(NamedTuple):
    """The data of a model.

    shape: of an example, (*space, C). units: of the stored values. mask: its shape, None without masks. classes: their
    names, () for none or for numbers. condition: shape of the array condition of an example, None without conditions;
    condition_units: of its values.
    """

    shape: tuple[int, ...]
    num_classes: int | None
    units: Units
    mask: tuple[int, ...] | None = None
    classes: tuple[str, ...] = ()
    condition: tuple[int, ...] | None = None
    condition_units: Units | None = None

    def record(self) -> dict[str, Any]:
        """JSON for checkpoints."""
        units = {name: value for name, value in self._asdict().items() if isinstance(value, Units)}
        return {**self._asdict(), **{name: dataclasses.asdict(value) for name, value in units.items()}}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Data":
        """The data of `record`."""
        mask, condition, of_condition = (record.get(name) for name in ("mask", "condition", "condition_units"))
        return cls(
            tuple(record["shape"]),
            record["num_classes"],
            Units.of(record["units"]),
            None if mask is None else tuple(mask),
            tuple(record.get("classes", ())),
            None if condition is None else tuple(condition),
            None if of_condition is None else Units.of(of_condition),
        )


@pytree
class Model:
    """A diffusion model and how it is trained."""

    diffusion: Diffusion
    loss: Loss
    optimizer: Optimizer

    @property
    def module(self) -> Any:
        """The network."""
        return self.diffusion.module

    def init(self, key: Any) -> Any:
        """The first parameters."""
        return self.diffusion.init(key)

    def objective(self, *, module: Any = None, teacher: Teacher | None = None) -> Objective:
        """The loss of each example. module: a network in place of the model's. teacher: to learn from."""
        return objectives.objective(self.diffusion, self.loss, module=module, teacher=teacher)

    def check(self) -> None:
        """Raise `ValueError` for parts that cannot be built, or that do not fit each other."""
        objectives.check_use(self.loss.objective.name, self.diffusion)
        diffax.denoiser(lambda x, t: x, self.diffusion.schedule(), self.diffusion.prediction)
        with at("config.loss.weighting_parameters"):
            objectives.make(self.loss.weighting, objectives.WEIGHTINGS, self.diffusion)
        with at("config.loss.times_parameters"):
            objectives.make(self.loss.times, objectives.TIMES, self.diffusion)
        with at("config.sampling"):
            self.diffusion.sampler()
            self.diffusion.times()


def build(config: Any, data: Data) -> Model | AutoencoderModel | ClassifierModel:
    """The model of config.model, "diffusion", "autoencoder" or "classifier", for these data.

    With config.network.conditional a diffusion model is conditioned on the array condition of the data; its labels are
    then not used. Data without one need labels.

    Raises:
      ValueError: for a setting that is not possible; the error begins with its path.
    """
    optimizer = Optimizer(
        **config.optimizer.to_dict(), num_steps=config.train.num_steps, normalises=config.network.name == "edm2"
    )
    with at("config.optimizer"):
        optimizer.make()
    choose("config.network.time", config.network.time, TIMES)
    model: Model | AutoencoderModel | ClassifierModel
    if config.model == "autoencoder":
        model = autoencoder.of_settings(config.autoencoder.to_dict(), data.shape, optimizer)
    elif config.model == "classifier":
        if not data.num_classes:
            raise ValueError(f"config.dataset.name must be a data set with labels, got {config.dataset.name!r}")
        curve = _schedule(config.schedule)
        model = noisy_classifier.of_settings(config.network, data.shape, data.num_classes, curve, optimizer)
    else:
        conditional = config.network.conditional
        if conditional and not data.num_classes and data.condition is None:
            name = config.dataset.name
            raise ValueError(f"config.network.conditional must be False: dataset {name!r} has no labels or conditions")
        condition = "label" if data.condition is None else "array"
        choose("config.prediction", config.prediction, KINDS)
        if not config.sigma_data > 0:
            raise ValueError(f"config.sigma_data must be > 0, got {config.sigma_data}")
        drawing = sampling(config.sampling)
        diffusion = Diffusion(
            curve=_schedule(config.schedule),
            sigma_data=config.sigma_data,
            # Standardised data have no bounds to clip to.
            sampling=dataclasses.replace(drawing, clip=drawing.clip and data.units.range is not None),
            network=_network(config.network.to_dict(), config.text, data),
            prediction=config.prediction,
            time=config.network.time,
            condition="tokens" if config.text.enabled else condition if conditional else "",
            num_classes=data.num_classes,
            learned_variance=config.network.learned_variance,
            shape=data.shape,
        )
        sizes = {"batch_size": config.dataset.batch_size, "num_steps": config.train.num_steps}
        model = Model(diffusion, _loss(config.loss, data, sizes), optimizer)
        model.check()
        if data.mask is not None and config.loss.objective in FEW_STEPS:
            name = config.dataset.name
            raise ValueError(f"config.loss.objective must be denoising for {name!r}, whose points have masks")
        if data.mask is not None and config.loss.coupling != "independent":
            name = config.dataset.name
            raise ValueError(f"config.loss.coupling must be independent for {name!r}, whose points have masks")
    group = "autoencoder" if config.model == "autoencoder" else "network"
    with _fits(f"config.{group}", config[group], data.shape):
        _check_shape(model.module, data.shape, config.model)
    return model


@functools.lru_cache(maxsize=64)
def _check_shape(module: Any, shape: tuple[int, ...], kind: str) -> None:
    """Raise `ValueError` if a network does not fit examples of this shape."""
    times = () if kind == "autoencoder" else (jnp.zeros(1),)
    jax.eval_shape(lambda key: module.init(key, jnp.zeros((1, *shape)), *times), jax.random.key(0))


@contextlib.contextmanager
def _fits(path: str, settings: Mapping[str, Any], shape: tuple[int, ...]) -> Iterator[None]:
    """As `at`, for errors about a setting; other errors are about examples of this shape."""
    try:
        yield
    except ValueError as error:
        if str(error).split(" ")[0] in settings:
            message = f"{path}.{error}"
        else:
            message = f"{path} must fit examples of shape {shape}: {error}"
        raise ValueError(message) from error


def sampling(settings: Any) -> Sampling:
    """The specification of config.sampling; guidance 1, rescale 0 and the interval (0, 1) switch these off.

    Raises:
      ValueError: for an unknown name, or a noise level that the sampler does not have.
    """
    samplers.check_sampler("config.sampling.sampler", settings.sampler)
    samplers.check_grid("config.sampling.grid", settings.grid)
    samplers.check_eta("config.sampling.eta", settings.sampler, settings.eta)
    low, high = settings.guidance_interval
    return Sampling(
        eta=settings.eta,
        guidance=None if settings.guidance == 1 else settings.guidance,
        interval=None if (low, high) == (0, 1) else (low, high),
        rescale=settings.guidance_rescale or None,
        sampler=settings.sampler,
        grid=settings.grid,
        num_steps=settings.num_steps,
        clip=settings.clip,
    )


def _schedule(settings: Mapping[str, Any]) -> Spec:
    parameters = dict(settings)
    name = parameters.pop("name", None)
    known = inspect.signature(choose("config.schedule.name", name, SCHEDULES)).parameters
    _check_parameters("config.schedule", name, parameters, tuple(known), ("scaling",))
    missing = [key for key, p in known.items() if p.default is p.empty and key not in parameters]
    if missing:
        raise ValueError(f"config.schedule.{missing[0]} is missing: {name} has no default for it")
    # A learned schedule is a part of the parameters, and the host computes a table.
    spec = Spec.of(name, parameters, is_static=name == "learned" or name.endswith("_betas"))
    with at("config.schedule"):
        spec.make(SCHEDULES)
    return spec


def _loss(settings: Any, data: Data, sizes: Mapping[str, int]) -> Loss:
    name = settings.objective
    choose("config.loss.spread", settings.spread, objectives.SPREADS)
    known = objectives.parameters_of(name)
    texts = tuple(key for key, value in known.items() if isinstance(value, str))
    of_objective = dict(settings.objective_parameters)
    _check_parameters("config.loss.objective_parameters", name, of_objective, tuple(known), texts)
    with at("config.loss.objective_parameters"):
        of_objective = few_steps.checked(of_objective, known)
    width, expected = settings.bin_width, data.units.bin_width
    if width > 0 and not math.isclose(width, expected, rel_tol=1e-6):
        raise ValueError(f"config.loss.bin_width must be {expected:g} for these data, got {width:g}")
    return Loss(
        weighting=_of_loss(settings, "weighting", objectives.WEIGHTINGS),
        times=_of_loss(settings, "times", objectives.TIMES),
        p_uncond=settings.p_uncond,
        vlb_weight=settings.vlb_weight,
        objective=Spec.of(name, of_objective),
        spread=settings.spread,
        bin_width=width,
        learn_ends=settings.learn_ends,
        coupling=settings.coupling,
        coupling_size=settings.coupling_size,
        **sizes,
    )


def _of_loss(settings: Any, setting: str, table: Mapping[str, Callable[..., Any]]) -> Spec:
    """The specification of config.loss.SETTING with config.loss.SETTING_parameters."""
    name, parameters = settings[setting], dict(settings[f"{setting}_parameters"])
    choose(f"config.loss.{setting}", name, table)
    known = tuple(key for key in objectives.parameters(table[name]) if key not in objectives.SHARED)
    _check_parameters(f"config.loss.{setting}_parameters", name, parameters, known)
    return Spec.of(name, parameters)


def _check_parameters(
    path: str, name: str, parameters: Any, known: tuple[str, ...], texts: tuple[str, ...] = ()
) -> None:
    for key, value in parameters.items():
        if key not in known:
            raise ValueError(f"{path}.{key} is no parameter of {name}; those are {', '.join(known) or 'none'}")
        if key not in texts and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise ValueError(f"{path}.{key} must be a number, got {value!r}")


def _network(settings: dict[str, Any], text: Any, data: Data) -> str:
    """The description of the network, as JSON."""
    encoder = {name: text[name] for name in ("vocab_size", "width", "depth", "num_heads")}
    is_array = settings["conditional"] and data.condition is not None
    description = settings | {
        "num_classes": data.num_classes if settings["conditional"] and not is_array else None,
        "outputs": 1 + settings["learned_variance"],
        "time_scale": TIMES[settings["time"]][0] if settings["time_scale"] is None else settings["time_scale"],
        "text": encoder if text.enabled else None,
    }
    if is_array:
        description["condition"] = {"shape": data.condition, "channels": data.shape[-1]}
    if settings["name"] != "diffusers":
        del description["diffusers"]
    for name in ("conditional", "time", "learned_variance"):
        del description[name]
    for name in ("second_time", "guidance_input"):
        if not description[name]:
            del description[name]
    with at("config.network"):
        from_description(description)
    return json.dumps(description)
