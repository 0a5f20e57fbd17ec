"""Tables of betas for discrete time: (T,) NumPy arrays in float64, for `diffax.from_betas`.

q(x_i | x_{i-1}) = N(sqrt(1 - beta_i) x_{i-1}, beta_i I),   alpha_i^2 = prod_{j <= i} (1 - beta_j)
"""

import math

import numpy as np

from diffax._checks import above, check, check_count, interval, non_negative, positive
from diffax.typing import Values


def linear_betas(num_steps: int, *, beta_start: float = 1e-4, beta_end: float = 0.02) -> np.ndarray:
    """(T,) betas linear in the step: Ho et al. 2020, section 4.

    Raises:
      ValueError: for num_steps < 1 or a beta outside (0, 1]. The other tables of this module raise the same.

    >>> linear_betas(3).tolist()
    [0.0001, 0.01005, 0.02]
    """
    _check(num_steps, beta_start=beta_start, beta_end=beta_end)
    return np.linspace(beta_start, beta_end, num_steps, dtype=np.float64)


def quadratic_betas(num_steps: int, *, beta_start: float = 0.00085, beta_end: float = 0.012) -> np.ndarray:
    """(T,) betas whose square root is linear in the step: "scaled_linear" in latent diffusion's code.

    The defaults are those of Stable Diffusion (Rombach et al. 2022).

    >>> quadratic_betas(3, beta_start=0.01, beta_end=0.09).round(6).tolist()
    [0.01, 0.04, 0.09]
    """
    _check(num_steps, beta_start=beta_start, beta_end=beta_end)
    return np.linspace(math.sqrt(beta_start), math.sqrt(beta_end), num_steps, dtype=np.float64) ** 2


def cosine_betas(num_steps: int, *, offset: float = 0.008, beta_max: float = 0.999) -> np.ndarray:
    """(T,) betas of alpha^2(t) = f(t) / f(0), f(t) = cos^2(pi/2 (t + s) / (1 + s)).

    Nichol & Dhariwal 2021, eq. 17; s is `offset` and betas are capped at `beta_max`.

    >>> cosine_betas(100)[-1].item()
    0.999
    """
    _check(num_steps, beta_max=beta_max)
    check("offset", offset, non_negative)
    t = np.arange(num_steps + 1, dtype=np.float64) / num_steps
    return _betas_from(np.cos((t + offset) / (1 + offset) * np.pi / 2) ** 2, beta_max)


def sigmoid_betas(
    num_steps: int, *, start: float = -3.0, end: float = 3.0, tau: float = 1.0, beta_max: float = 0.999
) -> np.ndarray:
    """(T,) betas of alpha^2(t) = (S(1) - S(t)) / (S(1) - S(0)), S(t) = sigmoid((start + (end - start) t) / tau).

    Jabri et al. 2022 and Chen 2023, algorithm 1; betas are capped at `beta_max`. `diffax.Sigmoid` is the
    schedule in continuous time.

    Raises:
      ValueError: if not tau > 0 and start < end.

    >>> sigmoid_betas(2).round(6).tolist()
    [0.5, 0.999]
    """
    _check(num_steps, beta_max=beta_max)
    check("tau", tau, positive)
    check("end", end, above(start, "start"))
    t = np.arange(num_steps + 1, dtype=np.float64) / num_steps
    s = 1 / (1 + np.exp(-(start + (end - start) * t) / tau))
    return _betas_from((s[-1] - s) / (s[-1] - s[0]), beta_max)


def _check(num_steps: int, **betas: float) -> None:
    check_count("num_steps", num_steps)
    for name, beta in betas.items():
        check(name, beta, interval("(0, 1]"))


def _betas_from(alpha2: np.ndarray, beta_max: float) -> np.ndarray:
    betas: np.ndarray = np.minimum(1 - alpha2[1:] / alpha2[:-1], beta_max)
    return betas


def zero_terminal_snr(betas: Values) -> np.ndarray:
    """(T,) betas with zero terminal SNR: alpha is shifted so that the last is 0, then rescaled to keep the first.

        alpha'_i = alpha_1 (alpha_i - alpha_T) / (alpha_1 - alpha_T)

    Betas whose last alpha is already 0 are returned unchanged. A network cannot predict eps or score with such a
    table, because x0 = (x - sigma eps) / alpha divides by 0 at the last level.
    Lin et al. 2024, algorithm 1.

    Args:
      betas: (T,), T >= 2, in (0, 1), the last in (0, 1].

    Raises:
      ValueError: for another shape, or a beta outside (0, 1].

    >>> zero_terminal_snr([0.1, 0.2, 0.3])[-1].item()
    1.0
    """
    values = check_betas(betas)
    if len(values) < 2:
        raise ValueError(f"betas must have shape (T,) with T >= 2, got {values.shape}")
    alpha = np.sqrt(np.cumprod(1 - values))
    alpha = alpha[0] * (alpha - alpha[-1]) / (alpha[0] - alpha[-1])
    return np.append(values[0], 1 - (alpha[1:] / alpha[:-1]) ** 2)


def check_betas(betas: Values) -> np.ndarray:
    """Return concrete betas (T,) as float64.

    Raises:
      ValueError: for another shape, a beta outside (0, 1], or a 1 before the last.
    """
    values = np.asarray(betas, np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"betas must have shape (T,) with T >= 1, got {values.shape}")
    bad = ~((values > 0) & (values <= 1))
    bad[:-1] |= values[:-1] == 1
    if bad.any():
        first = int(np.argmax(bad))
        raise ValueError(f"betas must be in (0, 1), the last in (0, 1], got betas[{first}] = {values[first]:g}")
    return values
