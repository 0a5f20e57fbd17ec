"""Exports: the parameters and the specification of a trained model in a folder of safetensors and JSON.

- config.json: the specification, the data, digests of the files; `format` has a version.
- model.safetensors: the parameters, named by their paths joined with ".".
- autoencoder.safetensors: the parameters of the autoencoder, for a model in latents.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffax.pretrained._model import Latents, Pretrained
from diffax.pretrained._specification import Diffusion, Sampling, Spec
from diffax.pretrained._units import Units
from diffax.typing import Params

FORMAT = "diffax-2"
CONFIG, WEIGHTS, AUTOENCODER = "config.json", "model.safetensors", "autoencoder.safetensors"


def save(
    folder: str | os.PathLike[str],
    diffusion: Diffusion,
    params: Params,
    *,
    step: int,
    units: Units,
    latents: Latents | None = None,
    words: Sequence[str] = (),
    max_length: int = 0,
    has_null: bool = True,
    condition_units: Units | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write an export to a new folder, in one move.

    Args:
      folder: must not exist.
      diffusion: the specification.
      params: the parameters.
      step: the number of training steps.
      units: the units of the stored data.
      latents: the latent space, None for a model of the data itself.
      words: the vocabulary of a model of captions.
      max_length: the number of words of a caption that the model reads.
      has_null: whether the condition was dropped in some examples of the training, as classifier-free guidance needs.
      condition_units: the units of an array condition; None for other models.
      more: further JSON, such as the config of the run; `load` ignores it, `read_config` returns it.

    Raises:
      ValueError: if the folder exists.
    """
    from safetensors import numpy

    from diffax.training.manifest import sync

    folder = Path(folder).expanduser().absolute()
    if folder.exists():
        raise ValueError(f"folder must not exist yet, got {folder}")
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    numpy.save_file(flatten(params), part / WEIGHTS)
    if latents is not None:
        numpy.save_file(flatten(latents.params), part / AUTOENCODER)
    content: dict[str, Any] = {
        "format": FORMAT,
        "step": step,
        "units": dataclasses.asdict(units),
        "diffusion": describe(diffusion),
        "autoencoder": None
        if latents is None
        else {"network": json.loads(latents.network), "scale": float(latents.scale)},
        "words": list(words),
        "max_length": max_length,
        "has_null": has_null,
        "condition_units": condition_units and dataclasses.asdict(condition_units),
        "more": dict(more or {}),
        "files": {path.name: _digest(path.read_bytes()) for path in sorted(part.glob("*.safetensors"))},
    }
    content["digest"] = _digest(json.dumps(content, sort_keys=True).encode())
    (part / CONFIG).write_text(json.dumps(content, indent=1) + "\n")
    for path in (*part.iterdir(), part):
        sync(path)
    os.rename(part, folder)
    sync(folder.parent)


def load(path: str | os.PathLike[str]) -> Pretrained:
    """Load a model that `python -m experiments.export` wrote. Needs flax and safetensors.

    >>> model = diffax.load("exports/digits")                        # doctest: +SKIP
    >>> images = model.denormalise(model.sample(jax.random.key(0), 10))   # doctest: +SKIP

    Args:
      path: the folder; ~ is expanded.

    Raises:
      ValueError: if the folder is no export, has another version, or a file is missing or damaged.
    """
    folder = Path(path).expanduser().absolute()
    content = read_config(folder)
    diffusion = specification(content["diffusion"])
    space = content["autoencoder"]
    latents, of_condition = None, content.get("condition_units")  # older exports have no such units
    if space is not None:
        params = unflatten(read_tensors(folder, AUTOENCODER, content))
        latents = Latents(json.dumps(space["network"]), params, space["scale"])
    return Pretrained(
        diffusion,
        unflatten(read_tensors(folder, WEIGHTS, content)),
        latents,
        step=content["step"],
        units=Units.of(content["units"]),
        words=tuple(content["words"]),
        max_length=content["max_length"],
        has_null=content["has_null"],
        condition_units=None if of_condition is None else Units.of(of_condition),
    )


def is_export(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder has the files of an export, damaged or not."""
    return (Path(folder) / CONFIG).is_file() and (Path(folder) / WEIGHTS).is_file()


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of config.json of an export, with `more` as `save` wrote it.

    Raises:
      ValueError: if it is missing, damaged, or of another version.
    """
    folder = Path(folder)
    if not is_export(folder):
        raise ValueError(f"path must be a folder that experiments.export wrote, got {folder}")
    try:
        content: dict[str, Any] = json.loads((folder / CONFIG).read_text())
        rest = {key: value for key, value in content.items() if key != "digest"}
        is_whole = content["digest"] == _digest(json.dumps(rest, sort_keys=True).encode())
        version = content["format"]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG} must be that of an export ({error!r})") from error
    if version != FORMAT:
        raise ValueError(
            f"{folder / CONFIG} must have format {FORMAT!r}, got {version!r}: use the diffax that wrote it"
        )
    if not is_whole:
        raise ValueError(f"{folder / CONFIG} does not match its digest")
    return content


def read_tensors(folder: Path, name: str, content: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a file of an export.

    Raises:
      ValueError: if it is missing or does not match its digest.
    """
    from safetensors import numpy

    try:
        data = (folder / name).read_bytes()
    except OSError as error:
        raise ValueError(f"{folder / name} cannot be read ({error.strerror})") from error
    if _digest(data) != content["files"].get(name):
        raise ValueError(f"{folder / name} does not match its digest")
    arrays: dict[str, np.ndarray] = numpy.load(data)
    return arrays


def describe(diffusion: Diffusion) -> dict[str, Any]:
    """The specification as JSON."""
    values = {field.name: getattr(diffusion, field.name) for field in dataclasses.fields(diffusion)}
    sampling = {field.name: getattr(diffusion.sampling, field.name) for field in dataclasses.fields(diffusion.sampling)}
    curve = {"name": diffusion.curve.name, **diffusion.curve.parameters}
    return values | {"curve": curve, "sampling": sampling, "network": json.loads(diffusion.network)}


def specification(content: Mapping[str, Any]) -> Diffusion:
    """The specification of `describe`."""
    curve, sampling = dict(content["curve"]), dict(content["sampling"])
    name = curve.pop("name")
    if sampling["interval"] is not None:
        sampling["interval"] = tuple(sampling["interval"])
    own: dict[str, Any] = {"curve": Spec.of(name, curve, is_static=name == "learned" or name.endswith("_betas"))}
    own |= {
        "sampling": Sampling(**sampling),
        "network": json.dumps(content["network"]),
        "shape": tuple(content["shape"]),
    }
    return Diffusion(**{**content, **own})


def flatten(params: Params) -> dict[str, np.ndarray]:
    """{path: array} of a tree of dicts, with the names of a path joined by "."."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {".".join(str(key.key) for key in path): np.asarray(leaf, order="C") for path, leaf in leaves}


def unflatten(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The tree of `flatten`, with JAX arrays."""
    tree: dict[str, Any] = {}
    for path, array in arrays.items():
        *groups, name = path.split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[name] = jnp.asarray(array)
    return tree


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=32).hexdigest()
