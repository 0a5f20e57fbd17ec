"""Weightings w(lambda) of the denoising loss: functions of the log-SNR lambda, factors of the squared error of eps.

    L = E w(lambda) |eps_hat - eps|^2,   lambda = log(alpha^2 / sigma^2),   SNR = exp(lambda)
    |eps_hat - eps|^2 = SNR |x0_hat - x0|^2 = SNR / (SNR + 1) |v_hat - v|^2        (v under vp)

Papers state a weighting as a factor of the error of their own prediction. The same weighting on each error:

    weighting        on eps                   on x0                   on v (vp)
    simple           1                        SNR                     SNR / (SNR + 1)
    min_snr          min(SNR, gamma) / SNR    min(SNR, gamma)         min(SNR, gamma) / (SNR + 1)
    truncated_snr    max(SNR, 1) / SNR        max(SNR, 1)             max(SNR, 1) / (SNR + 1)
    p2               (k + SNR)^-gamma         SNR (k + SNR)^-gamma    SNR (k + SNR)^-gamma / (SNR + 1)
    edm              1 + 1 / (s^2 SNR)        SNR + 1 / s^2           (SNR + 1 / s^2) / (SNR + 1)
    sigmoid *        sigmoid(b - lambda)      e^b sigmoid(lambda - b)
    elbo *           1 / 2                    SNR / 2

`denoising_loss(..., weighting=w)` converts w for every kind of prediction. Those marked * are weights per unit of
log-SNR, not of t: pass them with `measure="log_snr"` (theory: Kingma & Gao 2023).

Any function of log_snr, () or (B,), is a weighting. Hyperparameters may be traced.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffax._checks import check, non_negative, positive
from diffax.typing import PerExample, Scalar

Weighting = Callable[[Any], Any]


def simple() -> Weighting:
    """w = 1: L_simple of DDPM.

    Source: Ho et al. 2020, eq. 14.

    >>> simple()(jnp.array([-3.0, 2.0])).tolist()
    [1.0, 1.0]
    """
    return jnp.ones_like


def min_snr(*, gamma: Scalar = 5.0) -> Weighting:
    """w = min(SNR, gamma) / SNR: as `simple` where SNR < gamma, and weight gamma on x0 at cleaner levels.

    Args:
      gamma: > 0, default 5; infinity gives `simple`.

    Raises:
      ValueError: if gamma is not positive.

    Source: Hang et al. 2023, who state it on x0 as min(SNR, gamma), with gamma = 5.

    >>> [round(float(min_snr()(jnp.log(snr))), 3) for snr in (0.1, 5.0, 20.0)]
    [1.0, 1.0, 0.25]
    """
    check("gamma", gamma, positive)
    return lambda log_snr: jnp.minimum(1.0, gamma * jnp.exp(-log_snr))


def truncated_snr() -> Weighting:
    """w = max(SNR, 1) / SNR: the weight of x0 is the SNR, but at least 1, so that the noisiest levels train x0 too.

    Source: Salimans & Ho 2022, section 4. Their second weighting, SNR + 1 on x0, is `edm(sigma_data=1.0)`.

    >>> [round(float(truncated_snr()(jnp.log(snr))), 3) for snr in (0.1, 1.0, 20.0)]
    [10.0, 1.0, 1.0]
    """
    return lambda log_snr: jnp.maximum(1.0, jnp.exp(-log_snr))


def p2(*, gamma: Scalar = 1.0, k: Scalar = 1.0) -> Weighting:
    """w = (k + SNR)^-gamma: perception prioritised, with less weight on the levels of least noise.

    Args:
      gamma: >= 0, default 1: strength of the change; 0 gives `simple`.
      k: >= 0, default 1; bounds the weight of the noisiest levels by k^-gamma.

    Raises:
      ValueError: if gamma or k is negative.

    Source: Choi et al. 2022, with gamma = 0.5 or 1 and k = 1. With gamma = k = 1 it is `sigmoid(bias=0)` per
    unit of t.

    >>> [round(float(p2()(jnp.log(snr))), 3) for snr in (0.1, 1.0, 20.0)]
    [0.909, 0.5, 0.048]
    """
    check("gamma", gamma, non_negative)
    check("k", k, non_negative)
    return lambda log_snr: jnp.exp(-gamma * jnp.log(k + jnp.exp(log_snr)))


def edm(*, sigma_data: PerExample = 0.5) -> Weighting:
    """w = 1 + 1 / (sigma_data^2 SNR): unit weight on the network F of the `edm` prediction, at every level.

    On x0 it is (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 with sigma = SNR^-1/2, hence 1 / c_out^2.

    Args:
      sigma_data: standard deviation of the data, > 0, default 0.5; 1 gives the SNR + 1 weighting of Salimans & Ho 2022,
        which is unit weight on v.

    Raises:
      ValueError: if sigma_data is not positive.

    Source: Karras et al. 2022, table 1; their distribution of levels is `training_times.log_normal_sigma`.

    >>> [round(float(edm(sigma_data=0.5)(jnp.log(snr))), 3) for snr in (0.1, 1.0, 20.0)]
    [41.0, 5.0, 1.2]
    """
    check("sigma_data", sigma_data, positive)
    return lambda log_snr: 1.0 + jnp.exp(-log_snr) / jnp.square(sigma_data)


def sigmoid(*, bias: Scalar = 0.0) -> Weighting:
    """w = 1 / (1 + exp(lambda - bias)) per unit of log-SNR: pass it with `measure="log_snr"`.

    The weight decreases in lambda, so the loss is the ELBO of data with a little noise added (Kingma & Gao 2023).

    Args:
      bias: the log-SNR at which the weight is one half, default 0; use a lower value for a higher resolution.

    Source: Hoogeboom et al. 2024 (SiD2); Kingma & Gao 2023, with bias 2.

    >>> [round(float(sigmoid(bias=2.0)(log_snr)), 3) for log_snr in (-3.0, 2.0, 5.0)]
    [0.993, 0.5, 0.047]
    """
    return lambda log_snr: jax.nn.sigmoid(bias - log_snr)


def elbo() -> Weighting:
    """w = 1/2 per unit of log-SNR: the diffusion term of the ELBO. Pass it with `measure="log_snr"`.

        -1/2 E int SNR'(t) |x0_hat - x0|^2 dt = 1/2 E int |eps_hat - eps|^2 dlambda = 1/2 E int g^2 |s_hat - s|^2 dt

    The mean of the loss over uniform t, times the number of dimensions, is this term in nats. If t is not uniform,
    multiply each loss by the weight of the draw. Levels where the log-SNR is clipped contribute 0.

    Source: Kingma et al. 2021, section 5; with g^2 on the score s, Song et al. 2021 (Maximum likelihood training of
    score-based diffusion models).

    >>> float(elbo()(jnp.array(3.0)))
    0.5
    """
    return lambda log_snr: jnp.full_like(log_snr, 0.5)


class Row(NamedTuple):
    """A row of the catalogue. make: parameters -> weighting. measure: "t" or "log_snr", see `denoising_loss`."""

    make: Callable[..., Weighting]
    measure: str = "t"


CATALOGUE = {
    "simple": Row(simple),
    "min_snr": Row(min_snr),
    "truncated_snr": Row(truncated_snr),
    "p2": Row(p2),
    "edm": Row(edm),
    "sigmoid": Row(sigmoid, "log_snr"),
    "elbo": Row(elbo, "log_snr"),
}
"""Weightings by their names in configs."""
