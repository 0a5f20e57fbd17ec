"""The catalogue of step grids: one row for each name. The tables in the docs and the names in configs come from it."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from diffax.times._discrete import lcm, leading, linspace, trailing
from diffax.times._in_noise import arctan, karras, polyexponential, uniform_log_snr
from diffax.times._in_time import beta, quadratic, starts, uniform
from diffax.typing import Schedule


class Row(NamedTuple):
    """One step grid of the catalogue.

    make: (schedule, n, **settings) -> (n,) times.
    kind: "noise" (evenly spaced in a function of sigma / alpha), "time" (in a function of t) or "discrete" (timesteps
      of a table).
    even: the quantity that is evenly spaced, or the timesteps.
    source: authors and year.
    settings: keyword arguments of `make` that differ from its defaults.
    k_diffusion: names of the grid in k-diffusion (`get_sigmas_*`).
    diffusers: names of the grid in diffusers (`timestep_spacing`, or `use_*_sigmas`).
    """

    make: Callable[..., Any]
    kind: str
    even: str
    source: str
    settings: Mapping[str, Any] = {}
    k_diffusion: tuple[str, ...] = ()
    diffusers: tuple[str, ...] = ()

    def build(self, schedule: Schedule, n: int) -> Any:
        """(n,) times with the settings of this row."""
        return self.make(schedule, n, **self.settings)


CATALOGUE = {
    "uniform_log_snr": Row(
        uniform_log_snr,
        "noise",
        "log(sigma / alpha)",
        "Lu et al. 2022, section 3.4",
        k_diffusion=("exponential",),
        diffusers=("use_exponential_sigmas", "use_lu_lambdas"),
    ),
    "karras": Row(
        karras,
        "noise",
        "(sigma / alpha)^(1 / rho)",
        "Karras et al. 2022, eq. 5",
        k_diffusion=("karras",),
        diffusers=("use_karras_sigmas",),
    ),
    "karras_80": Row(
        karras,
        "noise",
        "the same, from 80 to 0.002",
        "Karras et al. 2022, table 1",
        settings={"sigma_max": 80.0, "sigma_min": 0.002},
    ),
    "polyexponential": Row(
        polyexponential,
        "noise",
        "log(sigma / alpha), a power of an evenly spaced ramp",
        "Crowson 2022, k-diffusion",
        settings={"rho": 2.0},
        k_diffusion=("polyexponential",),
    ),
    "arctan": Row(arctan, "noise", "atan((sigma / alpha / scale)^(1 / power))", "docs/best.md"),
    "uniform": Row(uniform, "time", "t", "Ho et al. 2020", k_diffusion=("vp",)),
    "starts": Row(starts, "time", "t, without the end of the last move", "Geng et al. 2025"),
    "quadratic": Row(quadratic, "time", "sqrt(t)", "Song, Meng & Ermon 2021"),
    "beta": Row(
        beta, "time", "quantiles of a Beta distribution", "Lee et al. 2024, section 4.1", diffusers=("use_beta_sigmas",)
    ),
    "leading": Row(leading, "discrete", "k floor(T / n)", "Ho et al. 2020", diffusers=("leading",)),
    "trailing": Row(trailing, "discrete", "T - k T / n - 1", "Lin et al. 2024", diffusers=("trailing",)),
    "linspace": Row(linspace, "discrete", "T - 1 to 0", "Nichol & Dhariwal 2021", diffusers=("linspace",)),
    "lcm": Row(
        lcm, "discrete", "n of the 50 timesteps used in distillation", "Luo et al. 2023", diffusers=("LCMScheduler",)
    ),
}
"""All step grids: name in configs -> how it is made, its formula and source."""


def suggestion(name: str) -> str | None:
    """The name in diffax of a grid of k-diffusion or diffusers; None for an unknown name.

    >>> suggestion("exponential"), suggestion("use_karras_sigmas"), suggestion("magic")
    ('uniform_log_snr', 'karras', None)
    """
    bare = name.removeprefix("get_sigmas_")
    return next((grid for grid, row in CATALOGUE.items() if bare in (*row.k_diffusion, *row.diffusers)), None)


def table() -> str:
    """The table of grids in the docstring of `diffax.times`."""
    lines = [("grid", "kind", "evenly spaced", "source")]
    lines += [(name, row.kind, row.even, row.source) for name, row in CATALOGUE.items() if row.make.__name__ == name]
    widths = [max(len(line[i]) for line in lines) for i in range(3)]
    return "\n".join(
        "    " + "  ".join(cell.ljust(width) for cell, width in zip(line, [*widths, 0], strict=True)) for line in lines
    )
