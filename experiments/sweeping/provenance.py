"""What a result was computed by: commit, packages, devices, command."""

import importlib.metadata
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax

import diffax

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "scipy",
    "scikit-learn",
    "ott-jax",
    "grain",
    "ml_collections",
)


def _git(*arguments: str) -> str | None:
    """What git says of this source tree, None where it is no checkout."""
    try:
        found = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def collect(command: str) -> dict[str, Any]:
    """Commit and whether files were changed since, versions, devices, command."""
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if changed is None else bool(changed),
        "packages": {"diffax": diffax.__version__, **{name: _version(name) for name in PACKAGES}},
        "python": platform.python_version(),
        "device": jax.local_devices()[0].device_kind,
        "num_devices": jax.local_device_count(),
        "command": command,
    }


def command() -> str:
    """The command that this process was started by."""
    return shlex.join(["python", "-m", "experiments.sweep", *sys.argv[1:]])


def now() -> str:
    """The time, as provenance says it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
