r"""Losses made of the variational bound, in bits per dimension: they train the variance and the schedule too.

    hybrid   L_simple + 0.001 L_vlb, the second for the variance alone       Nichol & Dhariwal 2021
    vlb      L_vlb: a term of the discrete bound, times their number
    vdm      the bound of continuous time, and a learned schedule            Kingma et al. 2021

The terms are those of `diffax.likelihood`.
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
from diffax._pytrees import as_float, combine, widen
from diffax.denoisers import Moments, denoiser, like_x, moments_of
from diffax.likelihood import Lattice
from diffax.likelihood._bound import decoder_at, decoder_term, integrand, prior_term, step_term, total
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
) -> Float[Array, " batch"]:
    """The bound of continuous time in bits per dimension, (B,), that trains a learned schedule as well.

    The bound does not depend on the curve between the ends, but the variance of its estimate l(t) does. So the
    gradient that this loss has is that of E l for the network and the ends, and that of E l^2 for the curve: in one
    backward pass, the gradient of l_i with respect to lambda(t_i) and lambda'(t_i) being multiplied by 2 l_i on its way
    into the curve. Train all of it by one optimiser.

    Args:
      key: () or (B,); consumed.
      predict: (x, log_snr) -> y, log_snr (B,) or (): what it is told of time is the level itself, or the bound would
        depend on the curve.
      schedule: `Learned`.
      kind: what y is, any but velocity.
      x0: (B, ...) clean data.
      t: (B,), uniform on [0, 1]; stratified draws are VDM's.
      learn_ends: whether the ends are trained.
      lattice: of the data, as in `decoder_log_prob`; None for data with a density.
      sigma_data: of the prediction `edm` alone.

    Raises:
      ValueError: for a kind that has no place here, or another schedule.

    Source: Kingma et al. 2021, eq. 17 and 18, appendix I.2.
    """
    if not isinstance(schedule, Learned):
        raise ValueError(f"schedule must be Learned, got {type(schedule).__name__}")
    choose("kind", kind, tuple(k for k in KINDS if k != "velocity"))
    check_function("predict", predict, "a function (x, log_snr) -> y")
    check_float("x0", x0)
    check_per_example(x0, t=t, sigma_data=sigma_data)
    predict = like_x("predict", predict)
    key, stop = random.stream(key, "vdm_loss"), jax.lax.stop_gradient
    x0, t = widen(x0), as_float(t)
    shape_fixed = dataclasses.replace(stop(schedule), ends=schedule.ends if learn_ends else stop(schedule.ends))
    ends_fixed = dataclasses.replace(schedule, ends=stop(schedule.ends))
    eps = random.noise(random.fold_in(key, 0), x0)
    unit = _dimensions(x0) * math.log(2)

    def integral(log_snr: Scalar, slope: Scalar) -> Any:
        level = Level(*SCALINGS[schedule.scaling](jnp.exp(-log_snr / 2)), log_snr)
        x = combine((level.alpha, x0), (level.sigma, eps))
        a, b = KINDS[kind](schedule, t, level, sigma_data)
        det = level.alpha * b - level.sigma * a
        x0_hat = combine((b / det, x), (-level.sigma / det, predict(x, log_snr)))
        return integrand(log_snr, slope, x0, x0_hat) / unit

    of_ends, of_shape = (jax.jvp(s.log_snr, (t,), (jnp.ones_like(t),)) for s in (shape_fixed, ends_fixed))
    twice = 2 * stop(integral(*map(stop, of_ends)))  # under jit the same computation as the one below
    mixed = [stop(e) + (e - stop(e)) + twice * (c - stop(c)) for e, c in zip(of_ends, of_shape, strict=True)]
    denoise = denoiser(lambda x, t: predict(x, shape_fixed.log_snr(t)), shape_fixed, kind, sigma_data=sigma_data)
    first, last = as_float(0.0), as_float(1.0)
    decoder = decoder_term(random.fold_in(key, 1), shape_fixed, denoise, x0, first, -jnp.inf, "large", lattice)
    loss: Array = integral(*mixed) + (decoder + prior_term(shape_fixed, x0, last)) / unit
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
) -> Float[Array, " batch"]:
    """Improved DDPM's L_simple + weight L_vlb of each example, (B,): the second trains the variance alone.

        L_simple = mean |y_hat - y|^2,     L_vlb = T L_(t -> t - 1 / T) / (D log 2), the decoder's at t = 1 / T

    The bound's gradient is stopped at x0_hat, so that it moves v, not the mean.

    Args:
      key: () or (B,); consumed.
      predict: (x, t) -> `Moments(y, raw)`, raw in the shape of y; v = (raw + 1) / 2.
      schedule: noise schedule.
      kind: what y is.
      x0: (B, ...) clean data.
      t: (B,) multiples of 1 / T.
      num_steps: T, an int >= 2.
      weight: of L_vlb, in bits per dimension; 0.001 in the paper.
      lattice: of the data, as in `decoder_log_prob`; None for data with a density.
      sigma_data: of the prediction `edm` alone.

    Raises:
      ValueError: for an unknown kind, num_steps < 2, a negative weight, a network without the second output.

    Source: Nichol & Dhariwal 2021, eq. 15 and 16.
    """
    check_function("predict", predict, "a function (x, t) -> Moments(y, raw)")
    check_schedule(schedule)
    check("weight", weight, non_negative)
    check_count("num_steps", num_steps, 2)
    check_float("x0", x0)
    check_per_example(x0, t=t, weight=weight, sigma_data=sigma_data)
    x0 = widen(x0)
    eps = random.noise(random.stream(key, "hybrid_loss"), x0)
    x = combine((schedule(t).alpha, x0), (schedule(t).sigma, eps))
    y_hat, raw = moments_of(like_x("predict", predict)(x, t), None)
    y = target(kind, schedule, x0, eps, t, sigma_data=sigma_data)
    simple: Array = total(jax.tree.map(lambda u, v: jnp.square(u - v), y, y_hat)) / _dimensions(x0)
    fixed = Moments(jax.lax.stop_gradient(y_hat), raw)
    denoise = denoiser(lambda x, t: fixed, schedule, kind, sigma_data=sigma_data)
    return simple + weight * _term_loss(schedule, denoise, x0, x, t, num_steps, lattice)


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
) -> Float[Array, " batch"]:
    """One term of the bound for each example, times their number, in bits per dimension: (B,), an unbiased estimate.

    L_vlb of `hybrid_loss` alone, which trains mean and variance. Its variance is large: improved DDPM draws t by
    `resampling.loss_aware` (multiply by the draw's weight). Arguments, errors and source as there; the prior's
    constant term is left out.
    """
    check_schedule(schedule)
    check_count("num_steps", num_steps, 2)
    check_float("x0", x0)
    check_per_example(x0, t=t, sigma_data=sigma_data)
    x0 = widen(x0)
    eps = random.noise(random.stream(key, "vlb_loss"), x0)
    x = combine((schedule(t).alpha, x0), (schedule(t).sigma, eps))
    denoise = denoiser(predict, schedule, kind, sigma_data=sigma_data)
    return _term_loss(schedule, denoise, x0, x, t, num_steps, lattice)


def _term_loss(
    schedule: Schedule, denoise: Denoiser, x0: Tree, x: Tree, t: Times, num_steps: int, lattice: Lattice | None
) -> Array:
    answer = Moments(*moments_of(denoise(x, t), None))
    step = step_term(schedule, lambda x, t: answer, x0, x, t, jnp.maximum(t - 1 / num_steps, 0.0), "learned")
    # At the first level's variances for all, so that no example that does not count has a NaN for a gradient.
    end = decoder_at(schedule, answer, x0, as_float(1 / num_steps), schedule(2 / num_steps).log_snr, lattice)
    loss: Array = jnp.where(t < 1.5 / num_steps, end, step) * num_steps / (_dimensions(x0) * math.log(2))
    return loss


def _dimensions(x0: Tree) -> int:
    return sum(leaf[0].size for leaf in jax.tree.leaves(x0))
