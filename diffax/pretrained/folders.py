"""Samples from a folder that diffusers saved: `diffax.nn.interop.folder.load` gives the model.

model = load(path)
times, last = folders.steps(model.scheduler, 50)
generate = folders.decoded(folders.generator(model, times, last), model)
images = generate(model.params, jax.random.split(key, 4), None)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffax import denoisers, guidance, random, samplers, sampling
from diffax.denoisers import denoiser
from diffax.nn.interop.folder import Pretrained
from diffax.nn.interop.scheduler import Scheduler
from diffax.predictions import initial_noise
from diffax.pretrained._calls import entries, moves, step_grid
from diffax.typing import Grid, Scalar


def labels(model: Pretrained) -> tuple[int | None, int | None]:
    """(number of classes, null label), None for none. A U-Net of diffusers has classes but no null label."""
    of_unet = model.config.get("num_class_embeds")
    return (of_unet, None) if of_unet is not None else (model.network.num_classes,) * 2


def steps(
    scheduler: Scheduler, num_steps: int, grid: str | None = None, sampler: str = "ddim"
) -> tuple[Grid, float | None]:
    """(times at which steps begin, final time): those of the folder, or of a named grid, for num_steps denoiser calls.

    A final time of None: sampling ends with the denoiser's x0.
    """
    schedule, last = scheduler.schedule, scheduler.last if grid is None else None
    if last is not None:
        return scheduler.times(moves(sampler, schedule, num_steps)), last
    count = entries(sampler, schedule, num_steps)
    return scheduler.times(count) if grid is None else step_grid(sampler, grid, schedule, count), None


def generator(
    model: Pretrained,
    times: Grid,
    last: float | None = None,
    *,
    sampler: str = "ddim",
    eta: Scalar | None = None,
    weight: Scalar = 1.0,
    context: np.ndarray | None = None,
    null_context: np.ndarray | None = None,
) -> Callable[..., Any]:
    """`generate(params, keys, label) -> x0` (B, H, W, C), jitted; x0 is a code if the folder has an autoencoder.

    Args:
      model: the folder, with a scheduler.
      times: times at which steps begin, of `steps`.
      last: the final time, of `steps`; None to end with the denoiser's x0.
      sampler: name of the sampler.
      eta: its noise level, None for its default.
      weight: of guidance against the null context, or the null label, in one call of the network.
      context: (m, E) tokens, the same for all samples; None for a network without a context.
      null_context: likewise, of the empty prompt.
    """
    scheduler: Any = model.scheduler
    schedule, clip, (_, null) = scheduler.schedule, scheduler.clip, labels(model)
    tokens, null_tokens = _tokens(context, null_context)

    @jax.jit
    def generate(params: Any, keys: Any, label: Any) -> Any:
        def conditional(x: Any, t: Any, condition: Any) -> Any:
            f = model._replace(params=params).predict(**condition)
            return denoiser(lambda x, t: f(x, t)[..., : x.shape[-1]], schedule, scheduler.kind)(x, t)

        condition = jax.tree.map(lambda v: jnp.broadcast_to(v, (len(keys), *v.shape)), tokens) | {"label": label}
        unconditional = null_tokens | {"label": label if null is None else null}
        denoise = guidance.batched_classifier_free_guidance(conditional, condition, unconditional, weight)
        if clip is not None:
            denoise = denoisers.clip_static(denoise, -clip, clip)
        start, stepping = random.fold_in(keys, 0), random.fold_in(keys, 1)
        x = initial_noise(start, schedule, (len(keys), *model.shape), times[0])
        solver = samplers.by_name(sampler, schedule, eta)
        if last is None:
            return sampling.sample(stepping, solver, denoise, x, times)
        return sampling.integrate(stepping, solver, denoise, x, jnp.append(times, last)).x

    return generate


def _tokens(context: Any, null: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of `Pretrained.predict` for both branches; unequal lengths are padded to the longer, and masked."""
    if context is None or null is None or len(context) == len(null):
        return {"context": context, "mask": None}, {"context": null, "mask": None}
    length = max(len(context), len(null))

    def padded(tokens: Any) -> dict[str, Any]:
        return {"context": np.pad(tokens, ((0, length - len(tokens)), (0, 0))), "mask": np.arange(length) < len(tokens)}

    return padded(context), padded(null)


def decoded(generate: Callable[..., Any], model: Pretrained) -> Callable[..., Any]:
    """A function whose samples are images (B, H, W, C) in about [-1, 1]: `generate` itself without an autoencoder.

    A code z of the autoencoder is x0 / scaling_factor + shift_factor.
    """
    if (vae := model.autoencoder) is None:
        return generate
    decode = jax.jit(lambda params, z: vae.network.apply(params, z, method="decode"))
    scale, shift = vae.config.get("scaling_factor", 0.18215), vae.config.get("shift_factor") or 0.0
    return lambda *args: decode(vae.params, generate(*args) / scale + shift)
