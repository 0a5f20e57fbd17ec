"""Bits per dimension of held-out data, by the variational bound and by the probability-flow ODE.

    vlb         the discrete bound over `levels` levels, evenly spaced in t, with each of `variances`
    continuous  the bound of infinitely many levels, `draws` stratified times for each image; to t = 0 of a
                learned schedule and t = 1e-3 of others, and to a quarter of a bin, where the ODE starts
    ode         uniform dequantization, then the flow's density at the level where sigma / alpha is a quarter of a bin:
                what the model says of smaller scales is no part of the data

All of them bound the bits of the lattice data from above, in the mean. Standard errors are over images.
`python -m experiments.evaluate --checkpoint=RUN` is the command.
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
from diffax.denoisers import moments_of
from diffax.likelihood._bound import VARIANCES
from diffax.nn.description import with_forward_mode
from diffax.training import make_mesh

T_MIN = 1e-3  # of the grids of continuous schedules


class Settings(NamedTuple):
    """How much is spent. num: images; the others are those of the module's head, `probes` of the divergence.

    levels: None for all of a table, 1,000 of a continuous schedule.
    """

    num: int = 400
    levels: int | None = None
    draws: int = 200
    steps: int = 100
    probes: int = 4

    def check(self) -> None:
        """Raises `ValueError` for what is too small."""
        for name, least in (("num", 2), ("levels", 2), ("draws", 1), ("steps", 1), ("probes", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be >= {least}, got {value}")


class Case(NamedTuple):
    """A model on its data: x0 (N, ...) in [-1, 1] on a lattice.

    variances: those that the discrete bound is measured with. t_min: where the schedule ends, for the continuous one.
    """

    curve: Any
    denoise: Any
    x0: Any
    lattice: diffax.likelihood.Lattice
    variances: Sequence[str]
    t_min: float


def summary(nats, dimensions, bin_width=1.0):
    """{"bits": mean, "stderr": of it} from (N,) log-probabilities in nats."""
    bits = np.asarray(diffax.likelihood.bits_per_dim(nats, dimensions, bin_width=bin_width))
    return {"bits": float(bits.mean()), "stderr": float(bits.std(ddof=1) / math.sqrt(len(bits)))}


def by_bound(key, case, settings):
    """The discrete bound: {variance: summary}, and its parts in bits: prior, decoder, and each of the steps."""
    curve, denoise, x0, lattice, *_ = case
    levels = settings.levels or diffax.times.table_length(curve)
    table = getattr(curve, "num_train_steps", levels)
    times = diffax.times.linspace(curve, levels, num_train_steps=table)
    per_dim = x0[0].size * math.log(2)

    def one(index, x0):
        def with_variance(x, t):  # the network's call does not depend on the index: one for all
            answer = denoise(x, t)
            given = [moments_of(answer, VARIANCES[variance]) for variance in case.variances]
            return diffax.Moments(given[0][0], jnp.stack([v for _, v in given])[index])

        options = {"variance": "learned", "lattice": lattice}
        return diffax.likelihood.variational_bound(key, curve, with_variance, x0, times, **options)

    bounds = jax.jit(jax.vmap(one, (0, None)))(jnp.arange(len(case.variances)), x0)
    found = {}
    for index, variance in enumerate(case.variances):
        bound = jax.tree.map(lambda v, index=index: np.asarray(v[index]), bounds)
        parts = {name: (getattr(bound, name).mean(-1) / per_dim).tolist() for name in bound._fields[1:]}
        found[f"vlb, {variance}"] = summary(-bound.total, x0[0].size) | parts
    return found


def in_continuous_time(key, case, settings):
    """The bound of continuous time, down to the schedule's data end and to the level where the ODE starts."""

    @jax.jit
    def one(x0, t_min, key):
        u = diffax.losses.training_times.stratified(diffax.random.fold_in(key, 9), len(x0))
        options = {"t_min": t_min, "lattice": case.lattice}
        t = t_min + (1 - t_min) * u
        return diffax.likelihood.continuous_bound(key, case.curve, case.denoise, x0, t, **options).total

    found = {}
    for name, t_min in (("continuous", jnp.asarray(case.t_min, float)), ("continuous, quarter bin", _quarter(case))):
        keys = jax.random.split(key, settings.draws)
        total = np.mean([np.asarray(one(case.x0, t_min, k)) for k in keys], 0)
        found[name] = summary(-total, case.x0[0].size)
    return found


def _quarter(case):
    """The time where sigma / alpha is a quarter of a bin."""
    return case.curve.inverse(-2 * jnp.log(case.lattice.bin_width / 4))


def by_ode(key, case, settings):
    """The flow's density of dequantized data."""
    curve, denoise, x0, lattice, *_ = case
    noise, probes = jax.random.split(key)
    times = diffax.times.uniform_log_snr(curve, settings.steps + 1, t_max=1.0, t_min=_quarter(case))[::-1]
    alpha = curve(times[0]).alpha

    @jax.jit
    def run(x0):
        x = alpha * diffax.likelihood.dequantize(noise, x0, lattice)
        found = diffax.log_likelihood(probes, curve, denoise, x, times, probes=settings.probes)
        return found.log_prob + x0[0].size * jnp.log(alpha), found.stderr

    log_prob, of_probes = run(x0)
    share = None if settings.probes == 1 else float(np.mean(of_probes)) / x0[0].size / math.log(2)
    return {"ode": summary(log_prob, x0[0].size, lattice.bin_width) | {"stderr_of_probes_per_image": share}}


ROUTES = {"vlb": by_bound, "continuous": in_continuous_time, "ode": by_ode}


def check(model: Any, routes: Sequence[str], variances: Sequence[str], settings: Settings) -> None:
    """Raises `ValueError` for what cannot be measured of this model."""
    settings.check()
    if model.latents is not None:
        raise ValueError("checkpoint must be of a model of pixels to measure bits of them, got one of latents")
    table = getattr(model.model.diffusion.schedule(), "log_snr_table", None)
    if table is not None and settings.levels is not None and settings.levels > len(table):
        raise ValueError(f"levels must be at most the {len(table)} of the model's schedule, got {settings.levels}")
    known = ("learned", "small", "large") if model.model.diffusion.learned_variance else ("small", "large")
    for name, given, allowed in (("routes", routes, ROUTES), ("variances", variances, known)):
        for one in given:
            if one not in allowed:
                raise ValueError(f"{name} must be among {', '.join(allowed)}, got {one!r}")


def open_case(model: Any, dataset: Any, variances: Sequence[str], settings: Settings) -> Case:
    """A `Trained` model on the first images of its test split, spread over the devices.

    variances: of the route vlb; if there are none, the learned one of a model that has it, else both fixed ones.

    Raises:
      ValueError: if there are not so many images, or their values lie outside the stated range.
    """
    diffusion, split = model.model.diffusion, model.dataset["test_split"]
    images, labels = dataset.arrays(split)
    if settings.num > len(images):
        raise ValueError(f"num must be at most the {len(images)} images of the test split, got {settings.num}")
    name = "ddpm_learned" if diffusion.learned_variance else "ddpm"  # the sampler that the denoiser is for
    sampling = dataclasses.replace(diffusion.sampling, guidance=None, sampler=name)
    diffusion = dataclasses.replace(diffusion, sampling=sampling)
    label = jnp.asarray(labels[: settings.num]) if diffusion.condition == "label" else None
    if model.tokenizer is not None:
        label = jnp.asarray(model.tokenizer.encode(dataset.captions(split))[: settings.num])
    low, high = model.data.range
    lattice = diffax.likelihood.Lattice(2 / (high - low))
    lattice.check("dataset", images)
    # What is computed of them goes where they are; all devices, or as many as divide them.
    mesh = make_mesh(jax.devices()[: max(n for n in range(1, jax.device_count() + 1) if settings.num % n == 0)])
    spread = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
    return Case(
        diffusion.schedule(model.params),
        diffusion.denoiser(model.params, label, module=with_forward_mode(diffusion.module)),
        jax.device_put(np.asarray(images[: settings.num], np.float32), spread),
        lattice,
        variances or (("learned",) if diffusion.learned_variance else ("small", "large")),
        0.0 if diffusion.learns_schedule else T_MIN,
    )


def measure(case: Case, routes: Sequence[str], settings: Settings, seed: int) -> dict[str, Any]:
    """{way: {"bits", "stderr", ..}}."""
    found: dict[str, Any] = {}
    for i, route in enumerate(routes):
        found |= ROUTES[route](jax.random.fold_in(jax.random.key(seed), i), case, settings)
    return found


def report(found: dict[str, Any]) -> str:
    """The numbers as text."""
    lines = [f"  {way:24s} {v['bits']:.4f} +- {v['stderr']:.4f} bits per dimension" for way, v in found.items()]
    return "\n".join(lines)
