"""A folder that diffusers saved, as `experiments.sample` draws from it: network, schedule, grid and autoencoder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffax
from diffax.nn.interop.folder import Pretrained, load
from experiments import build
from experiments.checkpoint import Model
from experiments.configs import default

PIXELS = (0.0, 255.0)


def open_model(folder: Path) -> tuple[Pretrained, Model]:
    """(what the folder holds, the same as a model of ours); sampling has the defaults of configs/default.py.

    Raises:
      ValueError: if it holds no diffusion model, no scheduler, or what is not supported.
    """
    found = load(folder)
    if found.scheduler is None:
        raise ValueError(f"from_diffusers must hold a scheduler_config.json, got {folder}")
    if not hasattr(found.network, "num_classes"):
        raise ValueError(f"from_diffusers must hold a diffusion model, got {found.config['_class_name']} in {folder}")
    config, classes = default.get_config(), found.network.num_classes
    context = getattr(found.network, "context_dim", None)
    config.dataset.name, config.network.conditional = folder.name, classes is not None or context is not None
    config.sampling.clip = found.scheduler.clip is not None
    channels = found.shape[-1] if found.autoencoder is None else found.autoencoder.shape[-1]
    decoded = found.shape if found.autoencoder is None else decoded_shape(found)
    return found, Model(config, found.network, found.params, 0, (*decoded[:-1], channels), PIXELS, classes)


def decoded_shape(found: Pretrained) -> tuple[int, ...]:
    """The shape of an image."""
    vae = found.autoencoder
    z = jax.ShapeDtypeStruct((1, *found.shape), jnp.float32)
    return jax.eval_shape(lambda z: vae.network.apply(vae.params, z, method="decode"), z).shape[1:]


def read_context(path: str | None, found: Pretrained) -> Any:
    """The tokens to condition on, (m, E) of a .npy file; None for a network without.

    Raises:
      ValueError: if the network needs none, or there is none, or it has another width.
    """
    width = getattr(found.network, "context_dim", None)
    if width is None:
        if path is not None:
            raise ValueError(f"context must not be given to a network without one, got {path}")
        return None
    if path is None:
        raise ValueError(f"context must be a .npy file of (m, {width}) embeddings for this network, got none")
    try:
        context = np.load(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"context must be a .npy file, got {path} ({error})") from error
    if context.ndim != 2 or context.shape[1] != width:
        raise ValueError(f"context must have shape (m, {width}), got {context.shape} in {path}")
    return context.astype(np.float32)


def generator(found: Pretrained, config: Any, context: Any = None, grid: str | None = None) -> Callable:
    """`generate(params, keys, label) -> x0`, jitted, as `build.generator`'s, pixels in [-1, 1].

    context: (m, E), the same for all samples; guidance is against no token or the null label. grid: a name of
    `build.GRIDS` in place of the folder's own.
    """
    schedule, kind, times_of, clip, last = found.scheduler
    settings = config.sampling
    times = times_of(settings.num_steps) if grid is None else build.GRIDS[grid](schedule, settings.num_steps)
    null = found.network.num_classes

    @jax.jit
    def generate(params, keys, label):
        def of(x, t, condition):
            label, mask = condition
            tokens = None if context is None else jnp.broadcast_to(context, (len(x), *context.shape))
            mask = None if context is None else jnp.broadcast_to(mask[:, None], (len(x), len(context)))
            f = found._replace(params=params).predict(label, tokens, mask)
            return diffax.denoiser(lambda x, t: f(x, t)[..., : x.shape[-1]], schedule, kind)(x, t)

        size = len(keys)
        with_it, without = (label, jnp.ones(size, bool)), (label if null is None else null, jnp.zeros(size, bool))

        def denoise(x, t):
            conditional = of(x, t, with_it)
            if settings.guidance == 1 or (null is None and context is None):
                return conditional
            return diffax.classifier_free(lambda x, t: conditional, lambda x, t: of(x, t, without), settings.guidance)(
                x, t
            )

        clipped = diffax.clip_static(denoise, -clip, clip) if settings.clip and clip else denoise
        start, steps = diffax.random.fold_in(keys, 0), diffax.random.fold_in(keys, 1)
        x = diffax.initial_noise(start, schedule, (size, *found.shape), times[0])
        sampler = build.SAMPLERS[settings.sampler](schedule, settings.eta)
        if last is None:
            x = diffax.sample(steps, sampler, clipped, x, times)
        else:
            x = diffax.integrate(steps, sampler, clipped, x, jnp.append(times, last)).x
        return decode(found, x)

    return generate


def decode(found: Pretrained, x: Any) -> Any:
    """Latents as images; images as they are."""
    if found.autoencoder is None:
        return x
    vae = found.autoencoder
    scaled = x / vae.config.get("scaling_factor", 0.18215) + (vae.config.get("shift_factor") or 0.0)
    return vae.network.apply(vae.params, scaled, method="decode")
