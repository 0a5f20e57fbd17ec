r"""Losses from the variational bound, in bits per dimension, that also train the variance or the schedule.

    hybrid   L_simple + 0.001 L_vlb, where L_vlb trains the variance alone       Nichol & Dhariwal 2021
    vlb      L_vlb: one term of the discrete bound, times the number of terms
    vdm      the bound in continuous time, which also trains the schedule        Kingma et al. 2021

`diffax.likelihood` defines the terms. lambda = log(alpha^2 / sigma^2) is the log-SNR, twice the lambda of the samplers.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from diffax import random
from diffax._checks import (
    check,
    check_count,
    check_float,
    check_function,
    check_per_example,
    check_schedule,
    choose,
    non_negative,
)
from diffax._masks import check_mask, confined, dimensions, inside, mean
from diffax._pytrees import as_float, combine, widen
from diffax.denoisers import Moments, denoiser, like_x, moments_of
from diffax.likelihood import Lattice
from diffax.likelihood._bound import decoder_at, decoder_term, integrand, prior_term, step_term
from diffax.predictions import KINDS, target
from diffax.schedules import Learned
from diffax.schedules._scalings import SCALINGS
from diffax.typing import (
    Array,
    Denoiser,
    Float,
    Keys,
    Kind,
    Level,
    PerExample,
    Predict,
    Scalar,
    Schedule,
    Times,
    Tree,
)


def vdm_loss(
    key: Keys,
    predict: Predict,
    schedule: Learned,
    kind: Kind,
    x0: Tree,
    t: Times,
    *,
    learn_ends: bool = False,
    lattice: Lattice | None = None,
    sigma_data: PerExample = 0.5,
    mask: Tree | None = None,
) -> Float[Array, " batch"]:
    """The variational bound in continuous time, in bits per dimension; it also trains a learned schedule.

    The bound depends on the schedule through its ends alone, but the variance of its estimate l(t) also depends on the
    curve between the ends. Therefore the gradient of this loss is the gradient of E l for the network and the ends, and
    the gradient of E l^2 for the curve. One backward pass computes both: the gradient of l_i with respect to
    lambda(t_i) and lambda'(t_i) is multiplied by 2 l_i before it reaches the curve. Train all parameters with one
    optimiser.

    Args:
      key: () or (B,); consumed.
      predict: (x, log_snr) -> y, log_snr (B,) or (). The network receives the log-SNR in place of t, because with t the
        bound would depend on the curve.
      schedule: `Learned`.
      kind: the prediction y, any kind but velocity.
      x0: (B, ...) clean data.
      t: (B,), uniform on [0, 1]; VDM uses stratified draws.
      learn_ends: whether the ends of the schedule are trained; default False.
      lattice: the lattice of the data, as in `decoder_log_prob`; None (default) for data with a density.
      sigma_data: standard deviation of the data, for the kind `edm` alone; default 0.5.
      mask: the entries that belong to an example, as in `denoising_loss`; None (default) for no padding.

    Returns:
      (B,) losses.

    Raises:
      ValueError: if the kind is unknown or velocity, the schedule is not `Learned`, or the mask does not fit x0.

    Source: Kingma et al. 2021, eq. 17 and 18, appendix I.2.
    """
    if not isinstance(schedule, Learned):
        raise ValueError(f"schedule must be Learned, got {type(schedule).__name__}")
    choose("kind", kind, tuple(k for k in KINDS if k != "velocity"))
    check_function("predict", predict, "a function (x, log_snr) -> y")
    check_float("x0", x0)
    check_per_example(x0, t=t, sigma_data=sigma_data)
    check_mask(x0, mask)
    predict = confined(like_x("predict", predict), mask)
    key, stop = random.stream(key, "vdm_loss"), jax.lax.stop_gradient
    x0, t = inside(widen(x0), mask), as_float(t)
    curve_fixed = dataclasses.replace(stop(schedule), ends=schedule.ends if learn_ends else stop(schedule.ends))
    ends_fixed = dataclasses.replace(schedule, ends=stop(schedule.ends))
    eps = inside(random.noise(random.fold_in(key, 0), x0), mask)
    nats_per_bit_per_dim = _nats_per_bit_per_dim(x0, mask)

    def integral(log_snr: Scalar, slope: Scalar) -> Any:
        level = Level(*SCALINGS[schedule.scaling](jnp.exp(-log_snr / 2)), log_snr)
        x = combine((level.alpha, x0), (level.sigma, eps))
        a, b = KINDS[kind](schedule, t, level, sigma_data)
        det = level.alpha * b - level.sigma * a
        x0_hat = combine((b / det, x), (-level.sigma / det, predict(x, log_snr)))
        return integrand(log_snr, slope, x0, x0_hat) / nats_per_bit_per_dim

    # (lambda, lambda') twice: with a gradient to the ends alone, and with a gradient to the curve alone.
    by_ends, by_curve = (jax.jvp(s.log_snr, (t,), (jnp.ones_like(t),)) for s in (curve_fixed, ends_fixed))
    # 2 l_i. Under jit, XLA merges this computation with that of the loss.
    twice = 2 * stop(integral(*map(stop, by_ends)))
    mixed = [stop(e) + (e - stop(e)) + twice * (c - stop(c)) for e, c in zip(by_ends, by_curve, strict=True)]
    denoise = denoiser(lambda x, t: predict(x, curve_fixed.log_snr(t)), curve_fixed, kind, sigma_data=sigma_data)
    first, last = as_float(0.0), as_float(1.0)
    decoder = decoder_term(random.fold_in(key, 1), curve_fixed, denoise, x0, first, -jnp.inf, "large", lattice, mask)
    loss: Array = integral(*mixed) + (decoder + prior_term(curve_fixed, x0, last)) / nats_per_bit_per_dim
    return loss


def hybrid_loss(
    key: Keys,
    predict: Predict,
    schedule: Schedule,
    kind: Kind,
    x0: Tree,
    t: Times,
    *,
    num_steps: int,
    weight: PerExample = 0.001,
    lattice: Lattice | None = None,
    sigma_data: PerExample = 0.5,
    mask: Tree | None = None,
) -> Float[Array, " batch"]:
    """The loss L_simple + weight L_vlb of improved DDPM, in which L_vlb trains the variance alone.

        L_simple = mean |y_hat - y|^2,     L_vlb = T L_(t -> t - 1 / T) / (D log 2)

    At t = 1 / T the term L_(t -> t - 1 / T) is that of the decoder. The gradient of L_vlb is stopped at x0_hat, so that
    L_vlb changes v and not the mean.

    Args:
      key: () or (B,); consumed.
      predict: (x, t) -> `Moments(y, raw)`, raw in the shape of y; v = (raw + 1) / 2.
      schedule: noise schedule.
      kind: the prediction y, a key of `diffax.predictions.KINDS`.
      x0: (B, ...) clean data.
      t: (B,) multiples of 1 / T.
      num_steps: T, an int >= 2.
      weight: () or (B,), >= 0: the factor of L_vlb, in bits per dimension; default 0.001, as in the paper.
      lattice: the lattice of the data, as in `decoder_log_prob`; None (default) for data with a density.
      sigma_data: standard deviation of the data, for the kind `edm` alone; default 0.5.
      mask: the entries that belong to an example, as in `denoising_loss`; None (default) for no padding.

    Returns:
      (B,) losses.

    Raises:
      ValueError: if the kind is unknown, num_steps < 2, the weight is negative, predict does not return `Moments`, or
        the mask does not fit x0.

    Source: Nichol & Dhariwal 2021, eq. 15 and 16.
    """
    check_function("predict", predict, "a function (x, t) -> Moments(y, raw)")
    check_schedule(schedule)
    check("weight", weight, non_negative)
    check_count("num_steps", num_steps, 2)
    check_float("x0", x0)
    check_per_example(x0, t=t, weight=weight, sigma_data=sigma_data)
    check_mask(x0, mask)
    x0 = inside(widen(x0), mask)
    eps = inside(random.noise(random.stream(key, "hybrid_loss"), x0), mask)
    x = combine((schedule(t).alpha, x0), (schedule(t).sigma, eps))
    y_hat, raw = moments_of(like_x("predict", predict)(x, t), None)
    y = target(kind, schedule, x0, eps, t, sigma_data=sigma_data)
    simple: Array = mean(jax.tree.map(lambda u, v: jnp.square(u - v), y, y_hat), mask)
    fixed = Moments(jax.lax.stop_gradient(y_hat), raw)
    denoise = denoiser(lambda x, t: fixed, schedule, kind, sigma_data=sigma_data)
    return simple + weight * _term_loss(schedule, denoise, x0, x, t, num_steps, lattice, mask)


def vlb_loss(
    key: Keys,
    predict: Predict,
    schedule: Schedule,
    kind: Kind,
    x0: Tree,
    t: Times,
    *,
    num_steps: int,
    lattice: Lattice | None = None,
    sigma_data: PerExample = 0.5,
    mask: Tree | None = None,
) -> Float[Array, " batch"]:
    """An unbiased estimate of the bound in bits per dimension, (B,): one term times the number of terms.

    This is L_vlb of `hybrid_loss` alone, and it trains both the mean and the variance. The constant term of the prior
    is left out. The estimate has a large variance, so improved DDPM draws t by `resampling.loss_aware` (multiply the
    losses by the weights of the draw). Arguments, errors and source are those of `hybrid_loss`, without `weight`.
    """
    check_schedule(schedule)
    check_count("num_steps", num_steps, 2)
    check_float("x0", x0)
    check_per_example(x0, t=t, sigma_data=sigma_data)
    check_mask(x0, mask)
    x0 = inside(widen(x0), mask)
    eps = inside(random.noise(random.stream(key, "vlb_loss"), x0), mask)
    x = combine((schedule(t).alpha, x0), (schedule(t).sigma, eps))
    denoise = denoiser(predict, schedule, kind, sigma_data=sigma_data)
    return _term_loss(schedule, denoise, x0, x, t, num_steps, lattice, mask)


def _term_loss(
    schedule: Schedule,
    denoise: Denoiser,
    x0: Tree,
    x: Tree,
    t: Times,
    num_steps: int,
    lattice: Lattice | None,
    mask: Tree | None,
) -> Array:
    """L_vlb of `hybrid_loss` at x_t = x, (B,)."""
    moments = Moments(*moments_of(denoise(x, t), None))
    step = step_term(schedule, lambda x, t: moments, x0, x, t, jnp.maximum(t - 1 / num_steps, 0.0), "learned", mask)
    # Use t = 1 / T for every example: a NaN in the branch that `where` discards would still reach the gradient.
    decoder = decoder_at(schedule, moments, x0, as_float(1 / num_steps), schedule(2 / num_steps).log_snr, lattice, mask)
    loss: Array = jnp.where(t < 1.5 / num_steps, decoder, step) * num_steps / _nats_per_bit_per_dim(x0, mask)
    return loss


def _nats_per_bit_per_dim(x0: Tree, mask: Tree | None) -> Any:
    """D log 2, with the number of dimensions D inside the mask."""
    count = dimensions(x0, mask)
    return (count if mask is None else jnp.maximum(count, 1)) * math.log(2)
