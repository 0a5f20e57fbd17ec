"""Denoisers, the one currency: denoise(x, t) -> x0 = E[x0 | x_t = x].

    predict(x, t) -> y   network     ->   denoise(x, t) = (b x - sigma y) / (alpha b - sigma a)

A network becomes a denoiser here, at the edge; samplers, guidance and the oracles know nothing else.
Denoiser -> denoiser:

    clip_static    x0 within the data's range
    clip_dynamic   x0 within its own range, scaled back to the data's
    reschedule     the denoiser of another schedule, at equal log-SNR
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffax._checks import (
    above,
    check,
    check_count,
    check_function,
    check_like,
    check_per_example,
    check_schedule,
    interval,
    number,
    positive,
)
from diffax._pytrees import as_float, combine, concrete, expand, promoted, times
from diffax.predictions import check_kind, split
from diffax.typing import Array, Denoiser, Kind, Leaf, PerExample, Predict, Scalar, Schedule, Times, Tree


class Moments(NamedTuple):
    """What a denoiser with learned variance gives. x0: (B, ...), the posterior mean; v: like x0, the variance.

    log variance of p(x_s | x_t) = v log beta + (1 - v) log beta-tilde, by dimension (Nichol & Dhariwal 2021, eq. 15).
    """

    x0: Any
    v: Any


def moments_of(answer: Tree, v: float | None = None) -> tuple[Any, Any]:
    """(x0, v) of a denoiser's answer, with this v everywhere unless it is None.

    Raises:
      ValueError: if v is None and the answer is no `Moments`.
    """
    if v is None:
        if not isinstance(answer, Moments):
            raise ValueError(f"denoise must give Moments(x0, v) for a learned variance, got {type(answer).__name__}")
        return answer.x0, answer.v
    x0 = x0_of(answer)
    return x0, jax.tree.map(lambda leaf: jnp.full_like(leaf, v), x0)


def on_x0(guide: Callable[..., Denoiser], *denoisers: Denoiser) -> Denoiser:
    """Any function denoiser(s) -> denoiser, acting on x0 alone of denoisers with learned variance; v is the first's.

    >>> denoise = on_x0(clip_static, lambda x, t: Moments(3 * x, 0 * x + 0.5))
    >>> denoise(jnp.ones((1, 1)), 0.5)
    Moments(x0=Array([[1.]], dtype=float32), v=Array([[0.5]], dtype=float32))
    """

    def guided(x: Tree, t: Times) -> Any:
        # asked again by the guide, which jit makes one call
        return with_x0(denoisers[0](x, t), guide(*(mean_only(denoise) for denoise in denoisers))(x, t))

    return guided


def x0_of(answer: Tree) -> Any:
    """The x0 of a denoiser's answer, without the variance that it may have."""
    return answer.x0 if isinstance(answer, Moments) else answer


def with_x0(answer: Tree, x0: Tree) -> Any:
    """Another x0 with the variance of a denoiser's answer, if it has one."""
    return answer._replace(x0=x0) if isinstance(answer, Moments) else x0


def mean_only(denoise: Denoiser) -> Denoiser:
    """The denoiser without its variance: what samplers other than `ddpm` take.

    >>> mean_only(lambda x, t: Moments(2 * x, x))(jnp.ones(1), 0.5).tolist()
    [2.0]
    """
    return lambda x, t: x0_of(denoise(x, t))


def like_x(name: str, denoise: Denoiser) -> Any:
    """denoise(x, t), which raises `ValueError` where the answer has not the shape of x. `Moments` are two answers.

    >>> like_x("denoise", lambda x, t: x[:, :1])(jnp.ones((4, 2)), 0.5)
    Traceback (most recent call last):
    ...
    ValueError: denoise(x, t) must have the shape of x, (4, 2), got (4, 1)
    """

    def checked(x: Tree, *times: Times) -> Any:
        answer = denoise(x, *times)
        for part in answer if isinstance(answer, Moments) else (answer,):
            check_like(f"{name}(x, t)", part, x)
        return answer

    return checked


def denoiser(predict: Predict, schedule: Schedule, kind: Kind, *, sigma_data: PerExample = 0.5) -> Denoiser:
    """A denoiser from a network that predicts `kind`.

    Args:
      predict: (x, t) -> y; x, y: (B, ...), t: () or (B,). With learned variance it gives `Moments(y, raw)`, raw in
        [-1, 1], and the denoiser `Moments(x0, v)`, v = (raw + 1) / 2.
      schedule: the schedule that the network was trained with.
      kind: a key of `diffax.predictions.KINDS`.
      sigma_data: standard deviation of the data, of `edm` alone.

    Raises:
      ValueError: for an unknown kind, and for `eps` or `score` with a table whose last level holds no signal:
        there x0 = (x - sigma eps) / alpha divides by zero (Lin et al. 2024); use `v`, `x0` or `velocity`. (A table that
        is traced cannot be looked at: there x0 at t = 1 is the prediction's error times 22,026.) For sigma_data <= 0.
        On calling it, for a prediction that has not the shape of x, or a t that is neither () nor (B,).
    """
    check_function("predict", predict, "a function (x, t) -> y")
    check_kind(kind, schedule)
    check("sigma_data", sigma_data, positive)
    predict = like_x("predict", predict)

    def denoise(x: Tree, t: Times) -> Any:
        check_per_example(x, t=t)
        answer = predict(x, t)
        y, raw = answer if isinstance(answer, Moments) else (answer, None)
        x0, _ = split(kind, schedule, y, x, t, sigma_data=sigma_data)
        return x0 if raw is None else Moments(x0, jax.tree.map(lambda r: (r + 1) / 2, raw))

    return denoise


def clip_static(denoise: Denoiser, low: PerExample = -1.0, high: PerExample = 1.0) -> Denoiser:
    """x0 clipped to the data's range [low, high], as in DDPM's released code (Ho et al. 2020).

    low, high: () or (B,), may be traced.

    Raises:
      ValueError: if low >= high, or either is no number.
    """
    check("low", low, number)
    known = concrete(low)
    if known is not None:
        check("high", high, above(known, "low"))

    def clip(v: Leaf) -> Any:
        check_per_example(v, low=low, high=high)
        return _clip(v, expand(low, v), expand(high, v)).astype(v.dtype)

    return _leaf_by_leaf(clip, denoise)


def clip_dynamic(denoise: Denoiser, *, quantile: PerExample = 0.995, limit: PerExample = 1.0) -> Denoiser:
    """Dynamic thresholding: x0 clipped to [-s, s] and divided by s / limit, s = max(limit, quantile of |x0|).

    Saharia et al. 2022 (Imagen), section 2.3. The quantile is that of an example, over all its axes, in each leaf by
    itself. Where it lies within the limit this is `clip_static` at -limit and limit.

    Args:
      denoise: (x, t) -> x0.
      quantile: () or (B,) in [0, 1], may be traced.
      limit: () or (B,) > 0, may be traced; half the data's range.

    Raises:
      ValueError: if the quantile or the limit is known to lie outside its range.

    >>> clip_dynamic(lambda x, t: x, quantile=1.0)(jnp.array([[-4.0, 1.0], [0.5, 1.0]]), 0.5).tolist()
    [[-1.0, 0.25], [0.5, 1.0]]
    """
    check("quantile", quantile, interval("[0, 1]"))
    check("limit", limit, positive)

    def clip(v: Leaf) -> Any:
        check_per_example(v, quantile=quantile, limit=limit)
        flat = jnp.abs(v.reshape(len(v), -1)).astype(promoted(v.dtype, jnp.float32))
        q = jnp.broadcast_to(jnp.asarray(quantile, flat.dtype), (len(v),))
        s = jnp.maximum(limit, jax.vmap(jnp.quantile)(flat, q))
        wide = expand(s, v)
        return times(_clip(v, -wide, wide), expand(limit / s, v)).astype(v.dtype)

    return _leaf_by_leaf(clip, denoise)


def _clip(v: Leaf, low: Leaf, high: Leaf) -> Array:
    dtype = promoted(v, low, high)
    return jnp.clip(*(u.astype(dtype) for u in (v, low, high)))


def _leaf_by_leaf(f: Callable[..., Any], denoise: Denoiser) -> Denoiser:
    def changed(x: Tree, t: Times) -> Any:
        answer = denoise(x, t)
        return with_x0(answer, jax.tree.map(f, x0_of(answer)))

    return changed


def reschedule(denoise: Denoiser, schedule: Schedule, onto: Schedule) -> Denoiser:
    """A denoiser of one schedule as a denoiser of another: x0(x, t) = denoise(x alpha' / alpha, t').

        lambda'(t') = lambda(t);   alpha, lambda of `onto`, alpha', lambda' of `schedule`

    x / alpha = x0 + sigma / alpha eps depends on the schedule through the log-SNR alone, so this is exact for any pair,
    whatever their scalings (Kingma et al. 2021, section 5.1; Karras et al. 2022, eq. 8). Where `onto` has a log-SNR
    that `schedule` never reaches, t' is the nearest end and the answer is that of the nearest level.

    Args:
      denoise: (x, t) -> x0, or any other function of x_t and t: a classifier's log-probability of
        `classifier_guidance`.
      schedule: the schedule that it was trained with.
      onto: the schedule that is sampled with.

    >>> import diffax
    >>> ve, flow = diffax.LogLinear(0.01, 100.0), diffax.Flow()
    >>> data = diffax.analytic.Gaussian.from_covariance([0.7, -0.4], 0.25)
    >>> x = jnp.array([[0.3, 1.0]])
    >>> both = reschedule(data.denoiser(ve), ve, flow)(x, 0.4), data.denoiser(flow)(x, 0.4)
    >>> bool(jnp.allclose(*both, atol=1e-5))
    True
    """
    check_schedule(schedule)
    check_schedule(onto, "onto")

    def moved(x: Tree, t: Times) -> Any:
        level = onto(t)
        time = schedule.inverse(level.log_snr)
        return denoise(combine((schedule(time).alpha / level.alpha, x)), time)

    return moved


def centres(denoise: Denoiser, schedule: Schedule, std: PerExample) -> Denoiser:
    """(x, t) -> E[y | x_t = x] = x0 + alpha std^2 / sigma^2 (alpha x0 - x), for data x0 = y + std n."""

    def of_y(x: Tree, t: Times) -> Any:
        level = schedule(t)
        weight = level.alpha * jnp.square(std / level.sigma)
        return combine((1 + weight * level.alpha, denoise(x, t)), (-weight, x))

    return of_y


def consistency_function(
    predict: Predict, schedule: Schedule, *, t_min: Times = 0.0, sigma_data: PerExample = 0.5
) -> Denoiser:
    """f with f(x, t_min) = x from the free network F of a consistency model; for `consistency` with the same t_min.

        f = alpha_0 (c_skip x / alpha + c_out F(x, t)),   rho = sigma / alpha, 0 is t_min
        c_skip = sigma_data^2 / ((rho - rho_0)^2 + sigma_data^2)
        c_out  = (rho - rho_0) sigma_data / sqrt(rho^2 + sigma_data^2)

    Args:
      predict: (x, t) -> F, (B, ...); the paper's network scales its own input, x / sqrt(sigma^2 + sigma_data^2).
      schedule: noise schedule.
      t_min: () or (B,), where f ends.
      sigma_data: () standard deviation of the data.

    Source: Song et al. 2023, eq. 5 and appendix C, there with alpha = 1.

    >>> from diffax.schedules import LogLinear
    >>> f = consistency_function(lambda x, t: x + 7, LogLinear(0.002, 80.0))
    >>> f(jnp.ones((1, 1)), 0.0).tolist()
    [[1.0]]
    """
    check_schedule(schedule)
    check_function("predict", predict, "a function (x, t) -> y")
    predict = like_x("predict", predict)

    def function(x: Tree, t: Times) -> Any:
        level, end = schedule(t), schedule(t_min)
        rho = jnp.exp(-level.log_snr / 2)
        beyond = -rho * jnp.expm1((level.log_snr - end.log_snr) / 2)  # rho - rho_0
        skip = sigma_data**2 / (beyond**2 + sigma_data**2)
        out = beyond * sigma_data / jnp.sqrt(rho**2 + sigma_data**2)
        return combine((end.alpha * skip / level.alpha, x), (end.alpha * out, predict(x, t)))

    return function


def latent_consistency_function(
    denoise: Denoiser, *, num_train_steps: int = 1000, timestep_scaling: Scalar = 10.0, sigma_data: PerExample = 0.5
) -> Denoiser:
    """f with f(x, t) = x at the first timestep, from a distilled denoiser; for `lcm`.

        f = c_skip x + c_out denoise(x, t),   tau = timestep_scaling i,   t = (i + 1) / num_train_steps
        c_skip = sigma_data^2 / (tau^2 + sigma_data^2)
        c_out  = tau / sqrt(tau^2 + sigma_data^2)

    Already at timestep 1 the share of x is 0.0025: but for i = 0 it is the denoiser, to a few digits.

    Args:
      denoise: (x, t) -> x0, from `denoiser(predict, ...)`, guided or clipped.
      num_train_steps: T of the table.
      timestep_scaling: () the factor on i.
      sigma_data: () standard deviation of the data.

    Raises:
      ValueError: if num_train_steps is not an int >= 1.

    Source: Luo et al. 2023, eq. 9 and appendix; LCMScheduler of diffusers.

    >>> f = latent_consistency_function(lambda x, t: 0 * x)
    >>> f(jnp.ones((1, 1)), 1e-3).tolist()
    [[1.0]]
    """
    check_count("num_train_steps", num_train_steps)
    check_function("denoise", denoise)
    denoise = like_x("denoise", denoise)

    def function(x: Tree, t: Times) -> Any:
        tau = timestep_scaling * jnp.maximum(as_float(t) * num_train_steps - 1, 0.0)
        square = tau**2 + sigma_data**2
        return combine((sigma_data**2 / square, x), (tau / jnp.sqrt(square), denoise(x, t)))

    return function
