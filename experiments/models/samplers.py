"""Checks of the names of samplers and step grids in settings."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import diffax
from diffax._checks import choose
from diffax.pretrained import by_name, entries, spent
from diffax.training.processes import is_first

WITH_ETA = {name for name, row in diffax.samplers.CATALOGUE.items() if row.noise} | {"jump"}
NAMES = dict.fromkeys((*diffax.samplers.names(), "jump"))


def check_sampler(name: str, value: Any) -> None:
    """Raise `ValueError` for an unknown sampler; for a name of another library, the error has the name in diffax.

    name: of the setting, for the error.
    """
    _check_name(name, value, NAMES, diffax.samplers.suggestion)


def check_grid(name: str, value: Any) -> None:
    """Raise `ValueError` for an unknown step grid, as `check_sampler`."""
    _check_name(name, value, diffax.times.CATALOGUE, diffax.times.suggestion)


def _check_name(name: str, value: Any, known: Mapping[str, Any], suggest: Callable[[str], str | None]) -> None:
    ours = suggest(value) if isinstance(value, str) and value not in known else None
    if ours:
        raise ValueError(f"{name} must be a name of diffax, got {value!r}, which is {ours!r} here")
    choose(name, value, dict(known))


def check_eta(name: str, sampler: str, eta: Any) -> None:
    """Raise `ValueError` unless eta is a noise level of this sampler, or None for its default."""
    if eta is None:
        return
    if not 0 <= eta < math.inf:
        raise ValueError(f"{name} must be >= 0, got {eta}")
    if eta and sampler not in WITH_ETA:
        raise ValueError(f"{name} must be 0 for {sampler}, which has none, got {eta}")


def draws_noise(sampler: str, eta: float | None) -> bool:
    """Whether a sampler draws noise at this eta."""
    return by_name(sampler, diffax.Linear(), eta).noisy


def report_rounding(sampler: str, schedule: Any, num_steps: int, calls: int | None = None) -> None:
    """Print a line if num_steps exceeds the denoiser calls. calls: None for those of `sample` over whole steps."""
    calls = spent(sampler, schedule, entries(sampler, schedule, num_steps)) if calls is None else calls
    if calls < num_steps and is_first():
        print(f"num_steps = {num_steps} is rounded down to {calls}, the denoiser calls of whole steps of {sampler}")
