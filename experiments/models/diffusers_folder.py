"""A folder that diffusers saved, as `experiments.sample` draws from it: network, schedule, grid and autoencoder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffax
from diffax.nn.interop.folder import Pretrained, load
from diffax.nn.interop.scheduler import Scheduler
from diffax.pretrained import Units, entries, moves, step_grid
from diffax.training.parallel import over_batch
from experiments.configs import default
from experiments.configs.settings import check_guidance
from experiments.models import samplers
from experiments.models.digests import digest
from experiments.models.drawing import Source

PIXELS = Units()
OWN_GRID = "from_diffusers"  # name in settings.json of the folder's own grid


def source(
    folder: Path,
    sampling: Any,
    grid: str | None,
    labels_of: Callable[[int | None], Any],
    *,
    variant: str | None = None,
    context: str | None = None,
    null_context: str | None = None,
) -> Source:
    """The source of samples from a folder.

    Args:
      folder: a folder that diffusers saved.
      sampling: as config.sampling.
      grid: a step grid by name, None for the timesteps of the scheduler.
      labels_of: number of classes -> the labels to repeat.
      variant: of the weights' files.
      context: a .npy file of embeddings.
      null_context: likewise, of the empty prompt.

    Raises:
      ValueError: if the folder has no diffusion model, no scheduler, or unsupported parts, or a flag does not fit it.
    """
    pretrained = load(folder, variant)
    _check_parts(pretrained, folder)
    check_guidance("guidance", sampling, "")
    embeddings, null = contexts(pretrained, sampling, context, null_context)
    scheduler: Any = pretrained.scheduler
    times, last = steps(scheduler, sampling.num_steps, grid, sampling.sampler)
    calls = diffax.samplers.by_name(sampling.sampler, scheduler.schedule, None).calls * len(times)
    samplers.report_rounding(sampling.sampler, scheduler.schedule, sampling.num_steps, None if last is None else calls)
    settings = {
        **identity(pretrained, folder),
        "context": None if embeddings is None else digest(embeddings),
        "null_context": None if null is None else digest(null),
        "times": [*np.round(np.asarray(times, np.float64), 6).tolist(), *([] if last is None else [last])],
    }
    return Source(
        decoded(over_batch(generator(pretrained, sampling, times, last, embeddings, null)), pretrained),
        pretrained.params,
        labels_of(labels(pretrained)[0]),
        0,
        PIXELS,
        default.get_config().dataset.to_dict() | {"name": folder.name},
        sampling.to_dict() | {"grid": grid or OWN_GRID, "clip": scheduler.clip is not None},
        settings,
    )


def _check_parts(pretrained: Pretrained, folder: Path) -> None:
    """Raise `ValueError` unless the folder has a scheduler, and a diffusion network whose channels fit the others."""
    if pretrained.scheduler is None:
        raise ValueError(f"from_diffusers must have a scheduler_config.json, got {folder}")
    if not hasattr(pretrained.network, "num_classes"):
        name = pretrained.config["_class_name"]
        raise ValueError(f"from_diffusers must be a diffusion model, got {name} in {folder}")
    channels, out = pretrained.shape[-1], pretrained.network.out_channels
    if out not in (channels, 2 * channels):  # twice: a mean and a variance
        raise ValueError(
            f"from_diffusers must have a network whose output has the channels of its input: out_channels must be "
            f"in_channels = {channels}, or twice as many, got {out} in {folder}"
        )
    vae = pretrained.autoencoder
    if vae is not None and vae.network.latent_channels != channels:
        raise ValueError(
            f"from_diffusers must have an autoencoder of the network's latents: latent_channels must be "
            f"in_channels = {channels}, got {vae.network.latent_channels} in {folder}"
        )


def labels(pretrained: Pretrained) -> tuple[int | None, int | None]:
    """(number of classes, null label), None for none. A U-Net of diffusers has classes but no null label."""
    of_unet = pretrained.config.get("num_class_embeds")
    return (of_unet, None) if of_unet is not None else (pretrained.network.num_classes,) * 2


def identity(pretrained: Pretrained, folder: Path) -> dict[str, Any]:
    """The folder in settings.json: its path, and a digest of its weights and configurations."""
    vae = pretrained.autoencoder
    configs = json.dumps([pretrained.config, pretrained.scheduler_config, vae and vae.config], sort_keys=True)
    weights = {"network": pretrained.params, "autoencoder": vae and vae.params}
    return {"from_diffusers": str(folder.resolve()), "digest": digest(configs, weights)}


def contexts(pretrained: Pretrained, sampling: Any, path: str | None, null_path: str | None) -> tuple[Any, Any]:
    """The tokens to condition on and those of the empty prompt, (m, E) of .npy files.

    (None, None) for a network without a context; the null tokens are also None without guidance.

    Raises:
      ValueError: for a missing or superfluous file, or one with another width; for guidance of a network without a null
        label or a context; for a sampler of learned variances.
    """
    width, guidance = getattr(pretrained.network, "context_dim", None), sampling.guidance
    if sampling.sampler == "ddpm_learned":
        raise ValueError("sampler must be one without learned variances for --from_diffusers, got ddpm_learned")
    if width is None:
        for name, file in (("context", path), ("null_context", null_path)):
            if file is not None:
                raise ValueError(f"{name} must not be given to a network without one, got {file}")
        if guidance != 1 and labels(pretrained)[1] is None:
            raise ValueError(f"guidance must be 1 for a network without a null label or a context, got {guidance}")
        return None, None
    if path is None:
        raise ValueError(f"context must be a .npy file of (m, {width}) embeddings for this network, got none")
    if guidance != 1 and null_path is None:
        raise ValueError(
            f"null_context must be a .npy file of the empty prompt's (m, {width}) embeddings where guidance is not 1, "
            f"got none and guidance = {guidance}"
        )
    context = _embeddings("context", path, width)
    null = None if null_path is None else _embeddings("null_context", null_path, width)
    return context, None if guidance == 1 else null


def _embeddings(name: str, path: str, width: int) -> np.ndarray:
    try:
        array = np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{name} must be a .npy file, got {path} ({error})") from error
    if np.ndim(array) != 2 or array.shape[1] != width:
        raise ValueError(f"{name} must have shape (m, {width}), got {np.shape(array)} in {path}")
    return array.astype(np.float32)


def steps(
    scheduler: Scheduler, num_steps: int, grid: str | None = None, sampler: str = "ddim"
) -> tuple[Any, float | None]:
    """(times at which steps begin, final time): those of the folder, or of a named grid, for num_steps denoiser calls.

    A final time of None: sampling ends with the denoiser's x0.
    """
    schedule, last = scheduler.schedule, scheduler.last if grid is None else None
    if last is not None:
        return scheduler.times(moves(sampler, schedule, num_steps)), last
    count = entries(sampler, schedule, num_steps)
    return scheduler.times(count) if grid is None else step_grid(sampler, grid, schedule, count), None


def _tokens(context: Any, null: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of `Pretrained.predict` for both branches; unequal lengths are padded to the longer, and masked."""
    if context is None or null is None or len(context) == len(null):
        return {"context": context, "mask": None}, {"context": null, "mask": None}
    length = max(len(context), len(null))

    def padded(tokens):
        return {"context": np.pad(tokens, ((0, length - len(tokens)), (0, 0))), "mask": np.arange(length) < len(tokens)}

    return padded(context), padded(null)


def generator(
    pretrained: Pretrained, sampling: Any, times: Any, last: float | None, context: Any = None, null_context: Any = None
) -> Callable:
    """`generate(params, keys, label) -> x0`, jitted; x0 is a code if the folder has an autoencoder.

    times, last: of `steps`. context, null_context: (m, E), the same for all samples. Guidance is against the null
    context, or the null label, in one call of the network.
    """
    scheduler: Any = pretrained.scheduler
    schedule, clip, (_, null) = scheduler.schedule, scheduler.clip, labels(pretrained)
    tokens, null_tokens = _tokens(context, null_context)

    @jax.jit
    def generate(params, keys, label):
        def conditional(x, t, condition):
            f = pretrained._replace(params=params).predict(**condition)
            return diffax.denoiser(lambda x, t: f(x, t)[..., : x.shape[-1]], schedule, scheduler.kind)(x, t)

        condition = jax.tree.map(lambda v: jnp.broadcast_to(v, (len(keys), *v.shape)), tokens) | {"label": label}
        unconditional = null_tokens | {"label": label if null is None else null}
        denoise = diffax.batched_classifier_free_guidance(conditional, condition, unconditional, sampling.guidance)
        if clip is not None:
            denoise = diffax.denoisers.clip_static(denoise, -clip, clip)
        start, stepping = diffax.random.fold_in(keys, 0), diffax.random.fold_in(keys, 1)
        x = diffax.initial_noise(start, schedule, (len(keys), *pretrained.shape), times[0])
        sampler = diffax.samplers.by_name(sampling.sampler, schedule, sampling.eta)
        if last is None:
            return diffax.sample(stepping, sampler, denoise, x, times)
        return diffax.integrate(stepping, sampler, denoise, x, jnp.append(times, last)).x

    return generate


def decoded(generate: Callable, pretrained: Pretrained) -> Callable:
    """A function whose samples are images, on the host: `generate` itself for pixels."""
    if (vae := pretrained.autoencoder) is None:
        return generate
    decode = over_batch(jax.jit(lambda params, z: vae.network.apply(params, z, method="decode")))
    scale, shift = vae.config.get("scaling_factor", 0.18215), vae.config.get("shift_factor") or 0.0
    return lambda *args: decode(vae.params, generate(*args) / scale + shift)
