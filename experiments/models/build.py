"""ConfigDict -> objects, by plain dicts. Each function builds one thing; the losses are in `objectives`."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import diffax
from diffax._checks import choose
from diffax.nn.edm2 import forced_weight_norm
from diffax.nn.text import PADDING
from diffax.training import adamw, data_parallel, sharded
from experiments.models import samplers

SCHEDULES = {name: row.make for name, row in diffax.schedules.CATALOGUE.items()}
# config.parallel: (step, mesh) -> step, and the layout of its state
PARALLEL = {
    "pmap": (data_parallel, "replicate"),
    "jit": (sharded, "replicate"),
    "fsdp": (lambda step, mesh: sharded(step, mesh, "fsdp"), "fsdp"),
}
TIMES = {
    "t": (1000.0, lambda schedule, t: t),
    "log_snr": (25.0, lambda schedule, t: schedule.log_snr(t)),  # [-20, 20] spans what [0, 1] does at 1000
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def is_number(value: Any) -> bool:
    """An int or a float, or one that is traced: sweeps bind tracers to the floats of a config."""
    return isinstance(value, (int, float, jax.Array)) and not isinstance(value, bool)


def is_learned(config: Any) -> bool:
    """Whether the schedule is trained: then params holds it beside the network's."""
    return config.schedule.get("name") == "learned"


def _network_params(config, params):
    return params["network"] if is_learned(config) else params


def schedule(config: Any, params: Any = None) -> Any:
    """The noise schedule. params: of the run, where the schedule is learned; without them it is the first one."""
    if params is not None and is_learned(config):
        return diffax.Learned(**params["schedule"], scaling=schedule(config).scaling)
    parameters = dict(config.schedule)
    if "name" not in parameters:
        raise ValueError(f"config.schedule.name is missing; known are {', '.join(SCHEDULES)}")
    name = parameters.pop("name")
    make = choose("config.schedule.name", name, SCHEDULES)
    known = inspect.signature(make).parameters
    for key, value in parameters.items():
        if key not in known:
            raise ValueError(f"config.schedule.{key} is no parameter of {name}; those are {', '.join(known)}")
        if key != "scaling" and not is_number(value):
            raise ValueError(f"config.schedule.{key} must be a number, got {value!r}")
        if key == "num_steps" and (not isinstance(value, int) or value < 1):
            raise ValueError(f"config.schedule.num_steps must be an int >= 1, got {value!r}")
    missing = [k for k, p in known.items() if p.default is p.empty and k not in parameters]
    if missing:
        raise ValueError(f"config.schedule.{missing[0]} is missing: {name} has no default for it")
    return make(**parameters)


def null_condition(config: Any, net: Any) -> int | None:
    """What stands for "nothing said", for guidance: the null label, or a token of padding; None without a condition."""
    if config.text.enabled:
        return PADDING
    return net.num_classes if config.network.conditional else None


def init_params(config: Any, net: Any, shape: tuple[int, ...], key: Any) -> Any:
    """The network's first parameters, made in one compiled call."""

    def init(key):
        params = net.init(key, jnp.zeros((1, *shape)), jnp.zeros(1))["params"]
        if not is_learned(config):
            return params
        leaves = dataclasses.asdict(schedule(config))
        del leaves["scaling"]
        return {"network": params, "schedule": leaves}

    return jax.jit(init)(key)


def predict(
    config: Any, net: Any, params: Any, label: Any = None, *, key: Any = None, of_time: Callable | None = None
) -> Callable:
    """The network as the core sees it: (x, t) -> y. label: () or (B,), None for no class; key: of dropout.

    of_time: (schedule, t) -> what the network is told of time, if that is not what config.network.time says.
    """
    of_time = of_time or TIMES[config.network.time][1]
    curve = schedule(config, params)

    def bound(x, t):
        y = net.apply({"params": _network_params(config, params)}, x, of_time(curve, t), label, key=key)
        return diffax.Moments(*jnp.split(y, 2, -1)) if config.network.learned_variance else y

    return bound


def optimizer(config: Any) -> Any:
    """AdamW with its schedule; after it EDM2's weights are put back to magnitude 1."""
    settings = config.optimizer.to_dict()
    del settings["ema_decay"], settings["accumulate"]
    steps = adamw(num_steps=config.train.num_steps, **settings)
    return optax.chain(steps, optax.stateless(forced_weight_norm)) if config.network.name == "edm2" else steps


def denoiser(
    config: Any,
    net: Any,
    params: Any,
    label: Any = None,
    *,
    weight: Any = 1.0,
    log_prob: Callable | None = None,
    scale: Any = 1.0,
) -> Callable:
    """The denoiser that samples are drawn with: guided where weight is not 1, clipped if the config says so.

    log_prob: (x, t) -> (B,), a classifier's, to guide with it too, at this scale.
    """
    curve = schedule(config, params)

    def of(x, t, label):
        f = predict(config, net, params, label)
        return diffax.denoiser(f, curve, config.prediction, sigma_data=config.sigma_data)(x, t)

    def denoise(x, t):
        return of(x, t, None)

    null = null_condition(config, net)
    if label is not None and null is not None:
        denoise = _guided(config, params, of, label, null, weight)
    if log_prob is not None:
        denoise = diffax.denoisers.on_x0(lambda d: diffax.classifier_guidance(d, log_prob, curve, scale), denoise)
    denoise = diffax.denoisers.on_x0(diffax.denoisers.clip_static, denoise) if config.sampling.clip else denoise
    return denoise if config.sampling.sampler == "ddpm_learned" else diffax.denoisers.mean_only(denoise)


def _guided(config: Any, params: Any, of: Callable, label: Any, null: Any, weight: Any) -> Callable:
    """Classifier-free guidance as the config has it: one call of the network for both branches."""
    phi, (low, high) = config.sampling.guidance_rescale, config.sampling.guidance_interval

    def plain(x, t):
        return of(x, t, label)

    def guide(conditional, unconditional):
        kind = {"kind": config.prediction, "schedule": schedule(config, params), "sigma_data": config.sigma_data}
        return diffax.guidance_rescale(
            diffax.classifier_free_guidance(conditional, unconditional, weight), conditional, phi, **kind
        )

    if isinstance(weight, (int, float)) and weight == 1:
        return plain
    if config.network.learned_variance:
        guided = diffax.denoisers.on_x0(guide, plain, lambda x, t: of(x, t, None))
    elif phi:
        guided = diffax.batched_guidance(guide, of, label, null)
    else:
        guided = diffax.batched_classifier_free_guidance(of, label, null, weight)
    return guided if (low, high) == (0, 1) else diffax.guidance_interval(guided, plain, low, high)


def grid(config: Any, params: Any = None) -> Any:
    """The step grid: as many entries as config.sampling.num_steps denoiser calls pay for."""
    curve, sampling = schedule(config, params), config.sampling
    count = samplers.entries(sampling.sampler, curve, sampling.num_steps)
    return samplers.step_grid(sampling.sampler, sampling.grid, curve, count)


def sampler(config: Any, params: Any = None) -> Any:
    """The sampler."""
    return samplers.SAMPLERS[config.sampling.sampler](schedule(config, params), config.sampling.eta)


def generator(
    config: Any,
    net: Any,
    shape: tuple[int, ...],
    times: Any = None,
    picture: Any = None,
    classify: Callable | None = None,
    scale: float = 1.0,
) -> Callable:
    """`generate(params, keys, label) -> x0`, jitted: (B,) keys and (B,) labels or None to (B, *shape) in [-1, 1].

    times: the grid to walk, the config's if None. picture: (*shape) to start from, noised to times[0]; else noise.
    classify: labels (B,) -> log_prob, a classifier to guide with at this scale.
    """

    @jax.jit
    def generate(params, keys, label):
        start, steps = diffax.random.fold_in(keys, 0), diffax.random.fold_in(keys, 1)
        curve, walked = schedule(config, params), grid(config, params) if times is None else times
        x = diffax.initial_noise(start, curve, (len(keys), *shape), walked[0])
        if picture is not None:
            x = x + curve(walked[0]).alpha * picture
        log_prob = None if classify is None else classify(label)
        denoise = denoiser(config, net, params, label, weight=config.sampling.guidance, log_prob=log_prob, scale=scale)
        return diffax.sample(steps, sampler(config, params), denoise, x, walked)

    return generate
