"""The samplers of the benchmark, and the cost of their steps.

m moves cost calls * m + start_calls; `sample` makes one more call at the end:

integrate    the largest m with spent(m) <= budget
sample       the largest m with spent(m) + 1 <= budget
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffax
from diffax import samplers
from diffax.samplers import Sampler

ENDINGS = {"sample": 1, "integrate": 0}


class Row(NamedTuple):
    """A sampler of the benchmark.

    build: (schedule, stretch) -> sampler. stretch: entries of the padded grid over entries of the original one, for
      samplers that divide a hyperparameter by the length of the grid.
    published: whether some released code computes the same (the tests compare with that code's numbers).
    """

    build: Callable[[Any, Any], Sampler]
    published: bool = True

    def spent(self, moves: int, ending: str) -> int:
        """Denoiser calls of a run with this many moves."""
        sampler = self.build(diffax.Linear(), 1.0)
        return sampler.calls * moves + (sampler.start_calls if moves else 0) + ENDINGS[ending]

    def moves(self, budget: int, ending: str) -> int:
        """The most moves within a budget of calls; 0 if the budget is too small."""
        return max((m for m in range(1, budget + 1) if self.spent(m, ending) <= budget), default=0)


def _row(make: Callable[..., Sampler], *, published: bool = True, **settings: Any) -> Row:
    return Row(lambda schedule, stretch: make(schedule, **settings), published)


def _churned(amount: float) -> Row:
    """EDM's sampler. Churn is divided by the number of grid entries, so `stretch` corrects it for padding."""
    return Row(lambda schedule, stretch: samplers.heun(schedule, s_churn=amount * stretch))


def _corrected(make: Callable[..., Sampler], step_size: float) -> Row:
    def build(schedule, stretch):
        return samplers.corrected(make(schedule), samplers.langevin(schedule, step_size=step_size))

    return Row(build, published=False)


DETERMINISTIC = {
    "ddim": _row(samplers.ddim),
    "euler-time": _row(samplers.euler, space="time"),
    "heun": _row(samplers.heun),
    "heun-time": _row(samplers.heun, space="time"),
    "dpm2": _row(samplers.dpm2),
    "dpm_solver-2": _row(samplers.dpm_solver, order=2),
    "dpm_solver-3": _row(samplers.dpm_solver, order=3),
    "dpm_solver-3-x0": _row(samplers.dpm_solver, order=3, form="x0"),
    "dpmpp_2s": _row(samplers.dpmpp_2s),
    "dpmpp_2m": _row(samplers.dpmpp_2m),
    "dpmpp_2m-final": _row(samplers.dpmpp_2m, lower_order_final=True),
    "dpmpp_3m": _row(samplers.dpmpp_3m, published=False),
    "deis-2": _row(samplers.deis, order=2),
    "deis-3": _row(samplers.deis, order=3),
    "lms-4": _row(samplers.lms, order=4),
    "exponential_adams-x0-3": _row(samplers.exponential_adams, form="x0", order=3, published=False),
    "exponential_adams-flow-2": _row(samplers.exponential_adams, form="flow", order=2),
    "exponential_adams-flow-3c": _row(
        samplers.exponential_adams, form="flow", order=3, corrected=True, published=False
    ),
    "exponential_adams-eps-3c": _row(samplers.exponential_adams, form="eps", order=3, corrected=True, published=False),
    "unipc-1": _row(samplers.unipc, order=1),
    "unipc-2": _row(samplers.unipc, order=2),
    "unipc-3": _row(samplers.unipc, order=3),
    "unipc-3-final": _row(samplers.unipc, order=3, lower_order_final=True),
    "unipc-3-bh1": _row(samplers.unipc, order=3, variant="bh1"),
    "unipc-2-x0-final": _row(samplers.unipc, order=2, form="x0", lower_order_final=True),
    "unipc-3-x0": _row(samplers.unipc, order=3, form="x0"),
    "unip-3": _row(samplers.unipc, order=3, corrected=False),
    "sa_solver-tau0": _row(samplers.sa_solver, order=3, tau=0.0),
    "gaussian_adams-3": _row(samplers.gaussian_adams, order=3, published=False),
    "gaussian_adams-4": _row(samplers.gaussian_adams, order=4, published=False),
    "pndm": _row(samplers.pndm),
    "pndm-prk": _row(samplers.pndm, start="prk"),
    "ipndm": _row(samplers.ipndm),
}

STOCHASTIC = {
    "ddpm": _row(samplers.ddpm),
    "ddpm-large": _row(samplers.ddpm, variance="large"),
    "ddim-eta0.5": _row(samplers.ddim, eta=0.5),
    "ddim-eta1": _row(samplers.ddim, eta=1.0),
    "heun-churn10": _churned(10.0),
    "dpm2_ancestral": _row(samplers.dpm2_ancestral),
    "dpmpp_2s_ancestral": _row(samplers.dpmpp_2s_ancestral),
    "dpmpp_sde": _row(samplers.dpmpp_sde),
    "dpmpp_2m_sde": _row(samplers.dpmpp_2m_sde),
    "dpmpp_3m_sde": _row(samplers.dpmpp_3m_sde, published=False),
    "sa_solver": _row(samplers.sa_solver, order=3),
    "euler_maruyama": _row(samplers.euler_maruyama, published=False),
    "stochastic_heun": _row(samplers.stochastic_heun, published=False),
    "ddim-langevin": _corrected(samplers.ddim, 0.3),
}

# Samplers of the catalogue without a row above; euler is ddim, and an order of 0 means that none is claimed.
_COVERED = {name.partition("-")[0] for name in (*DETERMINISTIC, *STOCHASTIC)} | {"euler"}
for _name, _entry in samplers.CATALOGUE.items():
    if _entry.order and _name not in _COVERED:
        (STOCHASTIC if _entry.noisy else DETERMINISTIC)[_name] = _row(_entry.make, published=False)

ROWS = {**DETERMINISTIC, **STOCHASTIC}


def select(wanted: list[str] | None) -> tuple[dict[str, Row], dict[str, Row]]:
    """(deterministic, stochastic) rows whose name, or its part before the first "-", is in `wanted`; None for all.

    Raises:
      ValueError: for an unknown name.
    """
    if wanted is None:
        return DETERMINISTIC, STOCHASTIC
    known = {key for name in ROWS for key in (name, name.split("-")[0])}
    for name in wanted:
        if name not in known:
            raise ValueError(f"samplers must be among {', '.join(sorted(known))}, got {name!r}")
    return tuple(  # type: ignore[return-value]
        {name: row for name, row in rows.items() if name in wanted or name.split("-")[0] in wanted}
        for rows in (DETERMINISTIC, STOCHASTIC)
    )
