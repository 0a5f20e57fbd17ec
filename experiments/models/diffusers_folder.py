"""A folder saved by diffusers, as a source of samples."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import diffax
from diffax.nn.interop.folder import Pretrained, load
from diffax.pretrained import Units, folders
from diffax.training.parallel import over_batch
from experiments.configs import default
from experiments.configs.settings import check_guidance
from experiments.models import samplers
from experiments.models.digests import digest
from experiments.models.drawing import Source

PIXELS = Units()
OWN_GRID = "from_diffusers"  # name of the folder's grid in settings.json


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
      folder: a folder saved by diffusers.
      sampling: as config.sampling.
      grid: a step grid by name, None for the timesteps of the scheduler.
      labels_of: number of classes -> the labels to repeat.
      variant: of the weight files, such as fp16.
      context: a .npy file of embeddings.
      null_context: likewise, of the empty prompt.

    Raises:
      ValueError: if the folder has no diffusion model, no scheduler, or unsupported parts, or does not fit the flags.
    """
    pretrained = load(folder, variant)
    _check_parts(pretrained, folder)
    check_guidance("guidance", sampling, "")
    embeddings, null = contexts(pretrained, sampling, context, null_context)
    scheduler: Any = pretrained.scheduler
    times, last = folders.steps(scheduler, sampling.num_steps, grid, sampling.sampler)
    calls = diffax.samplers.by_name(sampling.sampler, scheduler.schedule, None).calls * len(times)
    samplers.report_rounding(sampling.sampler, scheduler.schedule, sampling.num_steps, None if last is None else calls)
    settings = {
        **identity(pretrained, folder),
        "context": None if embeddings is None else digest(embeddings),
        "null_context": None if null is None else digest(null),
        "times": [*np.round(np.asarray(times, np.float64), 6).tolist(), *([] if last is None else [last])],
    }
    how = {"sampler": sampling.sampler, "eta": sampling.eta, "weight": sampling.guidance}
    generate = folders.generator(pretrained, times, last, **how, context=embeddings, null_context=null)
    return Source(
        over_batch(folders.decoded(generate, pretrained)),
        pretrained.params,
        labels_of(folders.labels(pretrained)[0]),
        0,
        PIXELS,
        default.get_config().dataset.to_dict() | {"name": folder.name},
        sampling.to_dict() | {"grid": grid or OWN_GRID, "clip": scheduler.clip is not None},
        settings,
    )


def _check_parts(pretrained: Pretrained, folder: Path) -> None:
    """Raise `ValueError` unless the folder has a scheduler and a diffusion network, and all channels fit."""
    if pretrained.scheduler is None:
        raise ValueError(f"from_diffusers must have a scheduler_config.json, got {folder}")
    if not hasattr(pretrained.network, "num_classes"):
        name = pretrained.config["_class_name"]
        raise ValueError(f"from_diffusers must be a diffusion model, got {name} in {folder}")
    channels, out = pretrained.shape[-1], pretrained.network.out_channels
    if out not in (channels, 2 * channels):  # twice as many: a mean and a variance
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
        if guidance != 1 and folders.labels(pretrained)[1] is None:
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
