"""Denoisers, the common interface of networks and samplers: denoise(x, t) -> x0 = E[x0 | x_t = x].

    predict(x, t) -> y   network     ->   denoise(x, t) = (b x - sigma y) / (alpha b - sigma a)

`denoiser` converts a network to a denoiser. Samplers and guidance use only denoisers, and the oracles provide them.
Functions that take a denoiser and return one:

    clip_static    clips x0 to the range of the data
    clip_dynamic   clips x0 to a quantile of |x0|, then scales it to the range of the data
    reschedule     the denoiser for another schedule, at equal log-SNR

Wrappers and guidance also take denoisers with a second time, (x, t, s) -> x0 of `flow_maps`. There clipping acts at
s = 0 alone: for s > 0 the x0 of a step may leave the range of the data.
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
from diffax._pytrees import as_float, combine, concrete, expand, promoted, select, times
from diffax.predictions import check_kind, split
from diffax.typing import Array, Denoiser, Kind, Leaf, PerExample, Predict, Scalar, Schedule, Times, Tree


class Moments(NamedTuple):
    """The output of a denoiser with learned variance. x0: (B, ...), the posterior mean; v: like x0, sets the variance.

    log variance of p(x_s | x_t) = v log beta + (1 - v) log beta-tilde, by dimension (Nichol & Dhariwal 2021, eq. 15).
    """

    x0: Any
    v: Any


def moments_of(output: Tree, v: float | None = None) -> tuple[Any, Any]:
    """(x0, v) of a denoiser's output. If `v` is not None, it replaces the v of the output at every entry.

    Raises:
      ValueError: if v is None and the output is not `Moments`.
    """
    if v is None:
        if not isinstance(output, Moments):
            raise ValueError(f"denoise must return Moments(x0, v) for a learned variance, got {type(output).__name__}")
        return output.x0, output.v
    x0 = x0_of(output)
    return x0, jax.tree.map(lambda leaf: jnp.full_like(leaf, v), x0)


def on_x0(guide: Callable[..., Denoiser], *denoisers: Denoiser) -> Denoiser:
    """Apply a function denoiser(s) -> denoiser to the x0 of denoisers with learned variance; keep v of the first one.

    >>> denoise = on_x0(clip_static, lambda x, t: Moments(3 * x, 0 * x + 0.5))
    >>> denoise(jnp.ones((1, 1)), 0.5)
    Moments(x0=Array([[1.]], dtype=float32), v=Array([[0.5]], dtype=float32))
    """

    def guided(x: Tree, *times: Times) -> Any:
        # The guide calls denoisers[0] again with the same arguments; jit merges the two calls into one.
        return with_x0(denoisers[0](x, *times), guide(*(mean_only(denoise) for denoise in denoisers))(x, *times))

    return guided


def x0_of(output: Tree) -> Any:
    """The x0 of a denoiser's output, which may be `Moments`."""
    return output.x0 if isinstance(output, Moments) else output


def with_x0(output: Tree, x0: Tree) -> Any:
    """Replace the x0 of a denoiser's output and keep its variance, if it has one."""
    return output._replace(x0=x0) if isinstance(output, Moments) else x0


def mean_only(denoise: Denoiser) -> Denoiser:
    """The denoiser without its variance, as all samplers except `ddpm` need it.

    >>> mean_only(lambda x, t: Moments(2 * x, x))(jnp.ones(1), 0.5).tolist()
    [2.0]
    """
    return lambda x, *times: x0_of(denoise(x, *times))


def like_x(name: str, denoise: Denoiser) -> Any:
    """Wrap denoise(x, t) so that it raises `ValueError` unless its output, or each part of `Moments`, is shaped like x.

    >>> like_x("denoise", lambda x, t: x[:, :1])(jnp.ones((4, 2)), 0.5)
    Traceback (most recent call last):
    ...
    ValueError: denoise(x, t) must have the shape of x, (4, 2), got (4, 1)
    """

    def checked(x: Tree, *times: Times) -> Any:
        output = denoise(x, *times)
        for part in output if isinstance(output, Moments) else (output,):
            check_like(f"{name}(x, t)", part, x)
        return output

    return checked


def denoiser(predict: Predict, schedule: Schedule, kind: Kind, *, sigma_data: PerExample = 0.5) -> Denoiser:
    """A denoiser from a network that predicts `kind`.

    Args:
      predict: (x, t) -> y; x, y: (B, ...), t: () or (B,). With learned variance it returns `Moments(y, raw)`, raw in
        [-1, 1], and the denoiser returns `Moments(x0, v)`, v = (raw + 1) / 2.
      schedule: the schedule that the network was trained with.
      kind: a key of `diffax.predictions.KINDS`.
      sigma_data: () or (B,), > 0, standard deviation of the data; only `edm` uses it. Default 0.5.

    Raises:
      ValueError: for an unknown kind, for sigma_data <= 0, and for `eps` or `score` with a table whose last level has
        no signal: there x0 = (x - sigma eps) / alpha divides by zero (Lin et al. 2024), so use `v`, `x0` or `velocity`.
        A traced table cannot be checked: its x0 at t = 1 is the error of the prediction times 22,026.
        When the denoiser is called: for a prediction whose shape is not that of x, or a t that is neither () nor (B,).
    """
    check_function("predict", predict, "a function (x, t) -> y")
    check_kind(kind, schedule)
    check("sigma_data", sigma_data, positive)
    predict = like_x("predict", predict)

    def denoise(x: Tree, t: Times) -> Any:
        check_per_example(x, t=t)
        output = predict(x, t)
        y, raw = output if isinstance(output, Moments) else (output, None)
        x0, _ = split(kind, schedule, y, x, t, sigma_data=sigma_data)
        return x0 if raw is None else Moments(x0, jax.tree.map(lambda r: (r + 1) / 2, raw))

    return denoise


def clip_static(denoise: Denoiser, low: PerExample = -1.0, high: PerExample = 1.0) -> Denoiser:
    """Clip x0 to the range [low, high] of the data, as in the released code of DDPM (Ho et al. 2020).

    Args:
      denoise: (x, t) -> x0.
      low: () or (B,), may be traced.
      high: () or (B,), > low, may be traced.

    Raises:
      ValueError: if low >= high, or one of them is not a number.
    """
    check("low", low, number)
    low_value = concrete(low)
    if low_value is not None:
        check("high", high, above(low_value, "low"))

    def clip(v: Leaf) -> Any:
        check_per_example(v, low=low, high=high)
        return _clip(v, expand(low, v), expand(high, v)).astype(v.dtype)

    return _leaf_by_leaf(clip, denoise)


def clip_dynamic(denoise: Denoiser, *, quantile: PerExample = 0.995, limit: PerExample = 1.0) -> Denoiser:
    """Dynamic thresholding: clip x0 to [-s, s] and divide it by s / limit, s = max(limit, quantile of |x0|).

    Saharia et al. 2022 (Imagen), section 2.3. The quantile is taken for each example over all its axes, separately in
    each leaf. Where it does not exceed the limit, the result is that of `clip_static` at -limit and limit.

    Args:
      denoise: (x, t) -> x0.
      quantile: () or (B,) in [0, 1], may be traced.
      limit: () or (B,) > 0, may be traced; half the width of the data's range.

    Raises:
      ValueError: if the quantile or the limit is outside its range. Traced values are not checked.

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
        bound = expand(s, v)
        return times(_clip(v, -bound, bound), expand(limit / s, v)).astype(v.dtype)

    return _leaf_by_leaf(clip, denoise)


def _clip(v: Leaf, low: Leaf, high: Leaf) -> Array:
    dtype = promoted(v, low, high)
    return jnp.clip(*(u.astype(dtype) for u in (v, low, high)))


def _leaf_by_leaf(f: Callable[..., Any], denoise: Denoiser) -> Denoiser:
    def transformed(x: Tree, t: Times, *s: Times) -> Any:
        output = denoise(x, t, *s)
        x0 = x0_of(output)
        result = jax.tree.map(f, x0)
        return with_x0(output, select(jnp.asarray(s[0]) == 0, result, x0) if s else result)

    return transformed


def reschedule(denoise: Denoiser, schedule: Schedule, onto: Schedule) -> Denoiser:
    """Convert a denoiser for one schedule to a denoiser for another: x0(x, t) = denoise(x alpha' / alpha, t').

        lambda'(t') = lambda(t);   alpha, lambda of `onto`, alpha', lambda' of `schedule`

    x / alpha = x0 + sigma / alpha eps depends on the schedule only through the log-SNR. So the result is exact for any
    pair of schedules and any scalings (Kingma et al. 2021, section 5.1; Karras et al. 2022, eq. 8). If `onto` has a
    log-SNR that `schedule` does not reach, t' is the nearest end of `schedule`, and the result is not exact.

    Args:
      denoise: (x, t) -> x0, or any other function of x_t and t, such as a classifier's log-probability for
        `classifier_guidance`.
      schedule: the schedule that `denoise` was trained with.
      onto: the schedule that is used for sampling.

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

    def rescheduled(x: Tree, t: Times) -> Any:
        level = onto(t)
        time = schedule.inverse(level.log_snr)
        return denoise(combine((schedule(time).alpha / level.alpha, x)), time)

    return rescheduled


def centres(denoise: Denoiser, schedule: Schedule, std: PerExample) -> Denoiser:
    """The denoiser of the centres y of data x0 = y + std n.

    E[y | x_t = x] = x0 + alpha std^2 / sigma^2 (alpha x0 - x), where x0 = denoise(x, t).
    """

    def denoise_centres(x: Tree, t: Times) -> Any:
        level = schedule(t)
        weight = level.alpha * jnp.square(std / level.sigma)
        return combine((1 + weight * level.alpha, denoise(x, t)), (-weight, x))

    return denoise_centres


def consistency_function(
    predict: Predict, schedule: Schedule, *, t_min: Times = 0.0, sigma_data: PerExample = 0.5
) -> Denoiser:
    """The consistency function f, with f(x, t_min) = x, from a network F. Use `consistency` with the same t_min.

        f = alpha_0 (c_skip x / alpha + c_out F(x, t)),   rho = sigma / alpha, the index 0 means t_min
        c_skip = sigma_data^2 / ((rho - rho_0)^2 + sigma_data^2)
        c_out  = (rho - rho_0) sigma_data / sqrt(rho^2 + sigma_data^2)

    Args:
      predict: (x, t) -> F, (B, ...). The input of F in the paper is x / sqrt(sigma^2 + sigma_data^2); `predict` must
        apply this scaling itself.
      schedule: noise schedule.
      t_min: () or (B,), the time at which f(x, t) = x.
      sigma_data: () standard deviation of the data.

    Source: Song et al. 2023, eq. 5 and appendix C, for alpha = 1.

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
        rho_diff = -rho * jnp.expm1((level.log_snr - end.log_snr) / 2)  # rho - rho_0
        c_skip = sigma_data**2 / (rho_diff**2 + sigma_data**2)
        c_out = rho_diff * sigma_data / jnp.sqrt(rho**2 + sigma_data**2)
        return combine((end.alpha * c_skip / level.alpha, x), (end.alpha * c_out, predict(x, t)))

    return function


def latent_consistency_function(
    denoise: Denoiser, *, num_train_steps: int = 1000, timestep_scaling: Scalar = 10.0, sigma_data: PerExample = 0.5
) -> Denoiser:
    """The consistency function f, with f(x, t) = x at timestep 0, from a distilled denoiser. Use it with `lcm`.

        f = c_skip x + c_out denoise(x, t),   tau = timestep_scaling i,   t = (i + 1) / num_train_steps
        c_skip = sigma_data^2 / (tau^2 + sigma_data^2)
        c_out  = tau / sqrt(tau^2 + sigma_data^2)

    c_skip is only 0.0025 at timestep 1. So for i > 0, f equals the denoiser to a few digits.

    Args:
      denoise: (x, t) -> x0, from `denoiser(predict, ...)`; it may be guided or clipped.
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
