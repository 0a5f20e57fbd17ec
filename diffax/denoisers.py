"""Denoisers, the one currency: denoise(x, t) -> x0 = E[x0 | x_t = x].

    predict(x, t) -> y   network     ->   denoise(x, t) = (b x - sigma y) / (alpha b - sigma a)

A network becomes a denoiser here, at the edge; samplers, guidance and the oracles know nothing else.
"""

from typing import Any

import jax
import jax.numpy as jnp

from diffax.predictions import KINDS, split
from diffax.pytrees import check, choose
from diffax.typing import Denoiser, Predict, Schedule


def denoiser(predict: Predict, schedule: Schedule, kind: str, *, sigma_data: Any = 0.5) -> Denoiser:
    """A denoiser from a network that predicts `kind`.

    Args:
      predict: (x, t) -> y; x, y: (B, ...), t: () or (B,).
      schedule: the schedule that the network was trained with.
      kind: a key of `diffax.predictions.KINDS`.
      sigma_data: standard deviation of the data, of `edm` alone.

    Raises:
      ValueError: for an unknown kind, and for `eps` or `score` with a table whose last level holds no signal:
        there x0 = (x - sigma eps) / alpha divides by zero (Lin et al. 2024); use `v`, `x0` or `velocity`.
    """
    choose("kind", kind, KINDS)
    if kind in ("eps", "score") and getattr(schedule, "zero_terminal_snr", False):
        raise ValueError(f"kind must be x0, v, velocity or edm with zero terminal SNR, got {kind!r}")

    def denoise(x, t):
        x0, _ = split(kind, schedule, predict(x, t), x, t, sigma_data=sigma_data)
        return x0

    return denoise


def clip_static(denoise: Denoiser, low: Any = -1.0, high: Any = 1.0) -> Denoiser:
    """x0 clipped to the data's range [low, high], as in DDPM's released code (Ho et al. 2020).

    Raises:
      ValueError: if low >= high.
    """
    check("high", high, f"> low = {low}", lambda v: v > low)
    return lambda x, t: jax.tree.map(lambda v: jnp.clip(v, low, high), denoise(x, t))
