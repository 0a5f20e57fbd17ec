"""Commands: flags, one-line errors, exit statuses.

0    done
1    the work failed: a loss that is not finite, no intact checkpoint, a full disk at the end
2    bad input, before anything compiles
75   stopped on request, with a checkpoint: run the command again to continue
130  interrupted by Ctrl-C without a checkpoint
"""

import contextlib
import os
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging

from diffax.training import CheckpointError, NotFiniteError
from diffax.training.processes import ElsewhereError
from experiments.data.datasets import RecordError


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Turn errors of the input into one line and exit status 2."""
    try:
        yield
    except (ValueError, OSError, zipfile.BadZipFile, CheckpointError) as error:
        fail(error, 2)


@contextlib.contextmanager
def run_errors() -> Iterator[None]:
    """Turn errors of the work into one line and exit status 1."""
    try:
        yield
    except (NotFiniteError, CheckpointError, RecordError, ElsewhereError, OSError) as error:
        fail(error, 1)


def fail(error: Exception | str, status: int) -> None:
    """Print a line and exit."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    raise SystemExit(status) from (error if isinstance(error, Exception) else None)


def launch(main: Callable[[list[str]], Any], positional: int = 0) -> None:
    """Run a command: `main` gets the program's name, its positional arguments and the changes `config.KEY=VALUE`.

    positional: the largest number of positional arguments.
    """
    logging.set_verbosity(logging.WARNING)  # JAX reports absent backends as information
    # Orbax logs the stack of each thread that fails; these commands report such errors themselves.
    logging.get_absl_logger().addFilter(lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname)
    try:
        app.run(main, flags_parser=lambda argv: parse(argv, positional))
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues from what is saved", file=sys.stderr, flush=True)
        os._exit(130)


def parse(argv: Sequence[str], positional: int = 0) -> list[str]:
    """Parse the flags; return the rest: positional arguments and changes of the config."""
    changes = [argument.lstrip("-") for argument in argv[1:] if argument.startswith("--config.")]
    others = [argv[0], *(argument for argument in argv[1:] if not argument.startswith("--config."))]
    try:
        rest = flags.FLAGS(others)
    except flags.Error as error:
        fail(error, 2)
    for argument in rest[1 + positional :]:
        name = argument.partition("=")[0]
        hint = ""
        if name.startswith("config.") or name in flags.FLAGS:
            hint = f": write --{argument}" + ("" if "=" in argument else "=VALUE")
        fail(f"unknown argument {argument!r}{hint}; flags are --NAME=VALUE and settings --config.KEY=VALUE", 2)
    return [*rest, *changes]


def changes(argv: Sequence[str]) -> list[str]:
    """The changes of the config among the arguments of `main`."""
    return [argument for argument in argv[1:] if argument.startswith("config.")]


def path_of(name: str, text: str) -> Path:
    """An absolute path, with ~ expanded. name: of the argument.

    Raises:
      ValueError: for a bucket, since commands cannot write to buckets.
    """
    if "://" in text:
        raise ValueError(f"{name} must be a folder of this machine or a mounted one, got {text}")
    return Path(text).expanduser().absolute()
