"""The catalogue of schedules: one row for each name. The tables in the docs and the names in configs come from it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from diffax.schedules._betas import cosine_betas, linear_betas, quadratic_betas, sigmoid_betas, zero_terminal_snr
from diffax.schedules._cosine import Cosine
from diffax.schedules._edm import EDM
from diffax.schedules._flow import Flow
from diffax.schedules._laplace import Laplace
from diffax.schedules._learned import Learned
from diffax.schedules._linear import Linear
from diffax.schedules._log_linear import LogLinear
from diffax.schedules._quadratic import Quadratic
from diffax.schedules._shifted import shifted
from diffax.schedules._sigmoid import Sigmoid
from diffax.schedules._sub_vp import SubVP
from diffax.schedules._tabulated import Tabulated, from_betas
from diffax.typing import Scalar, Scaling


class Row(NamedTuple):
    """One schedule of the catalogue.

    make: keyword parameters -> schedule.
    title: name of its class, or of the function that builds it.
    ratio: r(t) = sigma / alpha in words.
    scaling: the default scaling, which is that of the source.
    source: authors and year.
    """

    make: Callable[..., Any]
    title: str
    ratio: str
    scaling: Scaling
    source: str


def _linear_betas(*, num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tabulated:
    return from_betas(linear_betas(num_steps, beta_start=beta_start, beta_end=beta_end))


def _quadratic_betas(*, num_steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> Tabulated:
    return from_betas(quadratic_betas(num_steps, beta_start=beta_start, beta_end=beta_end))


def _cosine_betas(*, num_steps: int = 1000, offset: float = 0.008, beta_max: float = 0.999) -> Tabulated:
    return from_betas(cosine_betas(num_steps, offset=offset, beta_max=beta_max))


def _sigmoid_betas(*, num_steps: int = 1000, start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> Tabulated:
    return from_betas(sigmoid_betas(num_steps, start=start, end=end, tau=tau))


def _zero_terminal_linear_betas(
    *, num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
) -> Tabulated:
    return from_betas(zero_terminal_snr(linear_betas(num_steps, beta_start=beta_start, beta_end=beta_end)))


def _zero_terminal_quadratic_betas(
    *, num_steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
) -> Tabulated:
    return from_betas(zero_terminal_snr(quadratic_betas(num_steps, beta_start=beta_start, beta_end=beta_end)))


def _shifted_cosine(*, shift: Scalar, scaling: Scaling = "vp") -> Any:
    return shifted(Cosine(scaling), shift)


def _shifted_flow(*, shift: Scalar, scaling: Scaling = "flow") -> Any:
    return shifted(Flow(scaling), shift)


def _learned(
    *, log_snr_max: float = 13.3, log_snr_min: float = -5.0, units: int = 64, scaling: Scaling = "vp"
) -> Learned:
    key = jax.random.key(0)
    return Learned.init(key, log_snr_max=log_snr_max, log_snr_min=log_snr_min, units=int(units), scaling=scaling)


CATALOGUE = {
    "linear": Row(Linear, "Linear", "sqrt(exp(B) - 1), beta linear in t", "vp", "Song et al. 2021"),
    "quadratic": Row(Quadratic, "Quadratic", "the same, sqrt(beta) linear in t", "vp", "Rombach et al. 2022"),
    "sub_vp": Row(SubVP, "SubVP", "2 sinh(B / 2), beta linear in t", "sub_vp", "Song et al. 2021"),
    "cosine": Row(Cosine, "Cosine", "tan(pi t / 2)", "vp", "Nichol & Dhariwal 2021"),
    "sigmoid": Row(Sigmoid, "Sigmoid", "alpha^2 a falling sigmoid", "vp", "Jabri et al. 2022"),
    "laplace": Row(Laplace, "Laplace", "lambda a quantile of Laplace's", "vp", "Hang et al. 2024"),
    "flow": Row(Flow, "Flow", "t / (1 - t)", "flow", "Liu et al. 2023"),
    "log_linear": Row(LogLinear, "LogLinear", "sigma_min (sigma_max / sigma_min)^t", "ve", "Song & Ermon 2019"),
    "edm": Row(EDM, "EDM", "r^(1 / rho) linear in t", "ve", "Karras et al. 2022"),
    "learned": Row(_learned, "Learned", "a monotone network, trained", "vp", "Kingma et al. 2021"),
    "shifted_cosine": Row(_shifted_cosine, "shifted", "shift times that of Cosine", "vp", "Hoogeboom et al. 2023"),
    "shifted_flow": Row(_shifted_flow, "shifted", "shift times that of Flow", "flow", "Esser et al. 2024"),
    "linear_betas": Row(_linear_betas, "from_betas", "a table, betas linear", "vp", "Ho et al. 2020"),
    "quadratic_betas": Row(_quadratic_betas, "from_betas", "a table, sqrt(beta) linear", "vp", "Rombach et al. 2022"),
    "cosine_betas": Row(_cosine_betas, "from_betas", "a table of Cosine, capped", "vp", "Nichol & Dhariwal 2021"),
    "sigmoid_betas": Row(_sigmoid_betas, "from_betas", "a table of Sigmoid, capped", "vp", "Chen 2023"),
    "zero_terminal_linear_betas": Row(
        _zero_terminal_linear_betas, "from_betas", "the linear table, ending in noise", "vp", "Lin et al. 2024"
    ),
    "zero_terminal_quadratic_betas": Row(
        _zero_terminal_quadratic_betas, "from_betas", "the quadratic one, ending in noise", "vp", "Lin et al. 2024"
    ),
}
"""All schedules: name in configs -> how it is made, its formula, scaling and source."""


def table() -> str:
    """The table of schedules in the docstring of `diffax.schedules`."""
    lines = [("name", "here", "r(t)", "scaling", "source")]
    lines += [(name, row.title, row.ratio, row.scaling, row.source) for name, row in CATALOGUE.items()]
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    return "\n".join(
        "    " + "  ".join(cell.ljust(width) for cell, width in zip(line, [*widths, 0], strict=True)) for line in lines
    )
