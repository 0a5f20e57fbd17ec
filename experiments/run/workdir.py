"""The folder of a run: config.json, metrics.jsonl, checkpoints/, samples/, tensorboard/. And one-line errors."""

import contextlib
import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_collections
from absl import app, flags, logging

from diffax.training import CheckpointError, Checkpoints
from diffax.training.exports import export_record, is_export
from experiments.configs import default

# What may change between the start of a run and its continuation: it alters no step that was taken.
FREE = (
    "config.parallel",
    "config.train.",
    "config.sampling.",
    "config.latent.",  # but for which autoencoder it is, which checkpoints know
    "config.lora.base",  # likewise
    "config.dataset.data_dir",
    "config.dataset.num_threads",
    "config.dataset.cache",
    "config.dataset.classifier_split",
    "config.dataset.test_split",
)


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Turns what is wrong with the input into one line and exit status 2.

    Wraps checks; of the work itself only what finds the input wrong, samples that are not finite say.
    """
    try:
        yield
    except (ValueError, OSError, zipfile.BadZipFile, CheckpointError) as error:
        message = " ".join(str(error).split())
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(2) from error


def launch(main: Any) -> None:
    """Runs an entrypoint under absl, quietly: JAX's notes on absent backends are no news."""
    logging.set_verbosity(logging.WARNING)
    # Orbax prints the stack of each of its threads that fails; what fails is an error of ours, which says it.
    logging.get_absl_logger().addFilter(lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname)
    app.run(main, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags; what is wrong with them is one line, not absl's usage or a traceback."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, ImportError, SyntaxError) as error:
        message = _unknown_key(argv) or " ".join(str(error).split())
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(2) from error


def _unknown_key(argv: list[str]) -> str | None:
    """What to say of the first --config.a.b=value whose key is no setting."""
    for path in (arg[2:].split("=")[0] for arg in argv if arg.startswith("--config.")):
        *groups, key = path.split(".")[1:]
        known: Any = default.get_config()
        for at, group in enumerate([*groups, key]):
            parent = ".".join(["config", *groups[:at]])
            if not isinstance(known, ml_collections.ConfigDict):
                return f"{path} is no setting: {parent} is a value, not a group"
            if group not in known and parent == "config.schedule":
                return f"{path} can only be overridden where the config file sets it: add {key!r} to the schedule there"
            if group not in known:
                return f"{path} is no setting; those of {parent} are {', '.join(known)}"
            known = known[group]
    return None


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file in one move: it is there whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(part, path)


def read_json(path: Path) -> Any:
    """The value of a JSON file, None if there is none."""
    return json.loads(path.read_text()) if path.exists() else None


def check_writable(folder: Path, name: str = "workdir") -> None:
    """Makes the folder and raises `ValueError` if nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{name} must be a folder one can write to, got {folder} ({error.strerror})") from error


def flatten(value: Any, path: str = "config") -> dict[str, Any]:
    """{"config.a.b": value} of a nested dict, as JSON would give it back."""
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in flatten(inner, f"{path}.{key}").items()}
    return {path: list(value) if isinstance(value, tuple) else value}


def claim(
    workdir: Path,
    config: ml_collections.ConfigDict,
    *,
    model: str = "diffusion",
    autoencoder: Any = None,
    base: Any = None,
) -> None:
    """Makes a folder this run's, or checks that it already is.

    model: the kind of model that is trained. autoencoder: in the latents of which one, None for pixels. base: of which
    model adapters are trained, None for all parameters.

    Raises:
      ValueError: if it cannot be written to, or holds the run of another kind, config, autoencoder or base; names the
        first difference.
    """
    check_writable(workdir)
    path = workdir / "config.json"
    if (found := newest(workdir)) is not None:  # before the first checkpoint nothing binds the folder to a config
        _, held = found
        if (kind := held.get("model", "diffusion")) != model:
            raise ValueError(
                f"workdir {workdir} holds the run of a {kind} model, not of a {model}; choose another --workdir"
            )
        for what, now in {"autoencoder": autoencoder, "base": base}.items():
            if (before := held.get("data", {}).get(what)) != now:
                raise ValueError(
                    f"workdir {workdir} holds a run with the {what} {before}, got {now}; choose another --workdir"
                )
        record = held["config"]
        # A setting that is newer than the run had its default then.
        then = flatten(default.get_config().to_dict()) | flatten(record)
        now = flatten(config.to_dict())
        for key in sorted(then.keys() | now.keys()):
            if then.get(key) != now.get(key) and not key.startswith(FREE):
                raise ValueError(
                    f"workdir {workdir} holds a run with {key} = {then.get(key)!r}, got {now.get(key)!r}; "
                    "choose another --workdir"
                )
    write_json(path, config.to_dict())


def newest(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """(step, its record) of the newest sound checkpoint of a run, None if nothing was saved; says what it passed over.

    Raises:
      CheckpointError: if there are checkpoints, but none is sound.
    """
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        step, skipped = checkpoints.newest()
        for unsound, reason in skipped:
            print(f"warning: checkpoint {unsound} is damaged: {reason}", file=sys.stderr)
        return None if step is None else (step, checkpoints.record(step))


def load_record(folder: Path, name: str = "checkpoint") -> tuple[int | None, dict[str, Any]]:
    """(step, record) of the newest sound checkpoint of a run; (None, record) of an export.

    name: of the argument, for the error.

    Raises:
      ValueError: if the folder holds neither.
    """
    if is_export(folder):
        return None, export_record(folder)
    if (found := newest(folder)) is None:
        raise ValueError(f"{name} must be a run's workdir or an export, got {folder}, which holds no checkpoint")
    return found
