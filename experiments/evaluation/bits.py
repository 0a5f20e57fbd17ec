"""Bits per dimension of test data by the variational bound and the probability-flow ODE.

    vlb         the discrete bound over `levels` levels, evenly spaced in t, with each of `variances`
    continuous  the bound of infinitely many levels with `draws` stratified times for each example, down to t = 0 for
                a learned schedule and t = 1e-3 for others; and down to a quarter of a bin, where the ODE starts
    ode         uniform dequantization, then the density of the flow at the level where sigma / alpha is a quarter of a
                bin; smaller scales are below the resolution of the data

The mean of each is an upper bound of the bits of the lattice data. Standard errors are over examples.

For floats, which have a density, and for data with masks, only the continuous bound down to t_min is available. For
floats it is in nats per dimension of the normalised values; dimensions are those inside the mask. The command is
`python -m experiments.evaluate --checkpoint=RUN`.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import diffax
from diffax._checks import check_count, choose
from diffax._masks import dimensions as inside_dimensions
from diffax.denoisers import moments_of
from diffax.likelihood._bound import VARIANCES
from diffax.nn.description import with_forward_mode
from diffax.training import make_mesh

T_MIN = 1e-3  # of the grids of continuous schedules


class Settings(NamedTuple):
    """Numbers that set cost and accuracy.

    num: examples. levels: None for all of a table, 1,000 of a continuous schedule. steps: of the ODE. probes: of its
    divergence.
    """

    num: int = 400
    levels: int | None = None
    draws: int = 200
    steps: int = 100
    probes: int = 4


class Case(NamedTuple):
    """A model and its normalised data x0 (N, ...).

    lattice: None for data with a density. variances: of the discrete bound. t_min: the data end of the schedule, for
    the continuous bound. mask: (N, *mask), None without masks.
    """

    curve: Any
    denoise: Any
    x0: Any
    lattice: diffax.likelihood.Lattice | None
    variances: Sequence[str]
    t_min: float
    mask: Any = None


def summary(nats, dimensions, bin_width=1.0):
    """{"bits": mean, "stderr": of it} from (N,) log-probabilities in nats."""
    bits = np.asarray(diffax.likelihood.bits_per_dim(nats, dimensions, bin_width=bin_width))
    return {"bits": float(bits.mean()), "stderr": float(bits.std(ddof=1) / math.sqrt(len(bits)))}


def in_nats(values):
    """{"nats": mean, "stderr": of it} from (N,) nats per dimension."""
    return {"nats": float(values.mean()), "stderr": float(values.std(ddof=1) / math.sqrt(len(values)))}


def by_bound(key, case, settings):
    """The discrete bound: {variance: its summary, and its parts in bits: prior, decoder, each of the steps}."""
    curve, x0 = case.curve, case.x0
    levels = settings.levels or diffax.times.table_length(curve)
    table = getattr(curve, "num_train_steps", levels)
    times = diffax.times.linspace(curve, levels, num_train_steps=table)
    per_dim = x0[0].size * math.log(2)

    def one(index, x0):
        def denoise(x, t):  # the network's inputs do not depend on the index, so vmap calls it once for all
            output = case.denoise(x, t)
            moments = [moments_of(output, VARIANCES[variance]) for variance in case.variances]
            return diffax.Moments(moments[0][0], jnp.stack([v for _, v in moments])[index])

        options = {"variance": "learned", "lattice": case.lattice}
        return diffax.likelihood.variational_bound(key, curve, denoise, x0, times, **options)

    bounds = jax.jit(jax.vmap(one, (0, None)))(jnp.arange(len(case.variances)), x0)
    result = {}
    for index, variance in enumerate(case.variances):
        bound = jax.tree.map(lambda v, index=index: np.asarray(v[index]), bounds)
        parts = {name: (getattr(bound, name).mean(-1) / per_dim).tolist() for name in bound._fields[1:]}
        result[f"vlb, {variance}"] = summary(-bound.total, x0[0].size) | parts
    return result


def in_continuous_time(key, case, settings):
    """The bound of continuous time, down to the data end of the schedule and down to the level where the ODE starts.

    The second is only for data on a lattice without masks; for data with a density, the result is in nats, not bits.
    """

    @jax.jit
    def one(x0, t_min, key):
        u = diffax.losses.training_times.stratified(diffax.random.fold_in(key, 9), len(x0))
        options = {"t_min": t_min, "lattice": case.lattice, "mask": case.mask}
        t = t_min + (1 - t_min) * u
        return diffax.likelihood.continuous_bound(key, case.curve, case.denoise, x0, t, **options).total

    ends = {"continuous": jnp.asarray(case.t_min, float)}
    if case.lattice is not None and case.mask is None:
        ends["continuous, quarter bin"] = _quarter(case)
    size = case.x0[0].size
    dimensions = size if case.mask is None else np.maximum(inside_dimensions(case.x0, case.mask), 1)
    result = {}
    for name, t_min in ends.items():
        keys = jax.random.split(key, settings.draws)
        total = np.mean([np.asarray(one(case.x0, t_min, k)) for k in keys], 0)
        result[name] = summary(-total, dimensions) if case.lattice is not None else in_nats(total / dimensions)
    return result


def _quarter(case):
    """The time where sigma / alpha is a quarter of a bin."""
    return case.curve.inverse(-2 * jnp.log(case.lattice.bin_width / 4))


def by_ode(key, case, settings):
    """Bits from the density of the flow at dequantized data."""
    curve, x0, lattice = case.curve, case.x0, case.lattice
    noise, probes = jax.random.split(key)
    times = diffax.times.uniform_log_snr(curve, settings.steps + 1, t_max=1.0, t_min=_quarter(case))[::-1]
    alpha = curve(times[0]).alpha

    @jax.jit
    def run(x0):
        x = alpha * diffax.likelihood.dequantize(noise, x0, lattice)
        result = diffax.log_likelihood(probes, curve, case.denoise, x, times, probes=settings.probes)
        return result.log_prob + x0[0].size * jnp.log(alpha), result.stderr

    log_prob, probe_errors = run(x0)
    share = None if settings.probes == 1 else float(np.mean(probe_errors)) / x0[0].size / math.log(2)
    return {"ode": summary(log_prob, x0[0].size, lattice.bin_width) | {"stderr_of_probes_per_image": share}}


ROUTES = {"vlb": by_bound, "continuous": in_continuous_time, "ode": by_ode}


def routes_of(data: Any) -> tuple[str, ...]:
    """The routes for the data of a model."""
    return tuple(ROUTES) if data.units.bin_width and data.mask is None else ("continuous",)


def check(model: Any, routes: Sequence[str], variances: Sequence[str], settings: Settings) -> None:
    """Raise `ValueError` for settings that are too small, or that the model does not support."""
    for name, least in (("num", 2), ("levels", 2), ("draws", 1), ("steps", 1), ("probes", 1)):
        value = getattr(settings, name)
        if value is not None:
            check_count(name, value, least)
    if model.latents is not None:
        raise ValueError("checkpoint must be a model of pixels for bits per dimension, got a model of latents")
    table = getattr(model.model.diffusion.schedule(), "log_snr_table", None)
    if table is not None and settings.levels is not None and settings.levels > len(table):
        raise ValueError(f"levels must be at most the {len(table)} of the model's schedule, got {settings.levels}")
    for route in routes:
        choose("routes", route, ROUTES)
        if route not in routes_of(model.data):
            masks = "" if model.data.mask is None else " with masks"
            raise ValueError(
                f"routes must be continuous for data of type {model.data.units.dtype}{masks}, got {route!r}: "
                "the others need ints in a range, without masks"
            )
    known = ("learned", "small", "large") if model.model.diffusion.learned_variance else ("small", "large")
    for variance in variances:
        choose("variances", variance, known)


def open_case(model: Any, dataset: Any, variances: Sequence[str], settings: Settings) -> Case:
    """A `Trained` model on the first examples of its test split, spread over the devices.

    variances: of the route vlb; () for the learned variance if the model has one, otherwise for both fixed ones.

    Raises:
      ValueError: if there are fewer examples, or values outside the range in the metadata.
    """
    diffusion, split = model.model.diffusion, model.dataset["test_split"]
    images, labels = dataset.arrays(split)
    if settings.num > len(images):
        raise ValueError(f"num must be at most the {len(images)} examples of the test split, got {settings.num}")
    name = "ddpm_learned" if diffusion.learned_variance else "ddpm"  # the sampler that needs this denoiser
    sampling = dataclasses.replace(diffusion.sampling, guidance=None, sampler=name)
    diffusion = dataclasses.replace(diffusion, sampling=sampling)
    label = jnp.asarray(labels[: settings.num]) if diffusion.condition == "label" else None
    if model.data.condition_units is not None:
        label = model.data.condition_units.standardise(dataset.conditions(split)[: settings.num])
    if model.tokenizer is not None:
        label = jnp.asarray(model.tokenizer.encode(dataset.captions(split))[: settings.num])
    width, masks = model.data.units.bin_width, dataset.masks(split)
    lattice = diffax.likelihood.Lattice(width) if width else None
    if lattice is not None:
        lattice.check("dataset", images)
    # Images are spread over the largest number of devices that divides their count; computation follows them.
    mesh = make_mesh(jax.devices()[: max(n for n in range(1, jax.device_count() + 1) if settings.num % n == 0)])
    spread = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
    mask = None if masks is None else jax.device_put(masks[: settings.num], spread)
    return Case(
        diffusion.schedule(model.params),
        diffusion.denoiser(model.params, label, module=with_forward_mode(diffusion.module), mask=mask),
        jax.device_put(np.asarray(images[: settings.num], np.float32), spread),
        lattice,
        variances or (("learned",) if diffusion.learned_variance else ("small", "large")),
        0.0 if diffusion.learns_schedule else T_MIN,
        mask,
    )


def measure(case: Case, routes: Sequence[str], settings: Settings, seed: int) -> dict[str, Any]:
    """{name: {"bits" or "nats", "stderr", ..}}, one or more names for each route."""
    result: dict[str, Any] = {}
    for i, route in enumerate(routes):
        result |= ROUTES[route](jax.random.fold_in(jax.random.key(seed), i), case, settings)
    return result
