r"""The evidence lower bound (ELBO), term by term, in nats.

    -log p(x0) <= L_T + E sum_t L_(t -> s) + E L_0,   E over x_t ~ q(x_t | x0)

    prior      L_T        = KL(q(x_T | x0) || N(0, sigma_T^2 I)) = alpha_T^2 |x0|^2 / (2 sigma_T^2)   (equal variances)
    steps      L_(t -> s) = KL(q(x_s | x_t, x0) || p(x_s | x_t)), Gaussians whose means differ by k (x0 - x0_hat)
    decoder    L_0        = -log p(x0 | x_t) at the last level, a Gaussian density or its integral over a lattice bin

D is the number of dimensions of x0. lambda = log(alpha^2 / sigma^2) is the log-SNR, twice the lambda of the samplers.
With h = lambda_t - lambda_s <= 0 and SNR = exp(lambda):

    q(x_s | x_t, x0) = N(mean, std^2),   mean = exp(h / 2) sigma_s / sigma_t x_t - alpha_s expm1(h) x0
    std^2 = -sigma_s^2 expm1(h)                                                          (beta-tilde)
    p(x_s | x_t) = N(mean at x0_hat, std_p^2),   log std_p = log std + v log(sigma_t / sigma_s),   v in [0, 1]
    L_(t -> s) = D (v log(sigma_t / sigma_s) + (r^2 - 1) / 2) + r^2 (SNR_s - SNR_t) |x0 - x0_hat|^2 / 2,   r = std/std_p

v = 0 is beta-tilde ("small") and v = 1 is beta ("large"). A network may predict a v between them for each dimension
("learned"). As the grid gets finer, the expected sum of the steps converges to its integral in continuous time,

    L_inf = 1 / 2 int -lambda'(t) E |eps - eps_hat|^2 dt,

which depends on the schedule through its ends alone.

Source: Ho et al. 2020, eq. 5, 7, 8 and 13; Nichol & Dhariwal 2021, eq. 15; Kingma et al. 2021, eq. 11 to 17.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffax import random
from diffax._checks import (
    above,
    check,
    check_float,
    check_function,
    check_like,
    check_per_example,
    check_schedule,
    choose,
)
from diffax._masks import check_mask, confined, inside, total
from diffax._pytrees import as_float, batch_size, combine, concrete, expand, safe_sqrt, widen
from diffax.denoisers import Moments, like_x, moments_of
from diffax.likelihood._lattice import Lattice, decoder_log_prob
from diffax.samplers._base import Sampler
from diffax.sampling import unroll
from diffax.times._grid import short
from diffax.typing import Denoiser, Keys, Leaf, PerExample, SamplerState, Scalar, Schedule, Times, Tree, Values

VARIANCES = {"small": 0.0, "large": 1.0, "learned": None}


class Bound(NamedTuple):
    """Terms of the bound in nats.

    total: (B,), the sum of the terms; its mean over the drawn noise is at least -log p(x0).
    prior: (B,), the term of the noise end.
    steps: (n - 1, B), from noise to data; (B,) in continuous time.
    decoder: (B,), the term of the data end.
    """

    total: Any
    prior: Any
    steps: Any
    decoder: Any


def forward_posterior(schedule: Schedule, x0: Tree, x: Tree, t: Times, s: Times) -> tuple[Any, Any]:
    """Mean and standard deviation of q(x_s | x_t, x0).

    Args:
      schedule: noise schedule.
      x0: (B, ...) clean data.
      x: (B, ...), x_t.
      t: () or (B,).
      s: () or (B,), s <= t.

    Returns:
      (mean, std): the mean, (B, ...), and the square root of beta-tilde, () or (B,), the common shape of t
        and s.

    Raises:
      ValueError: if s > t for an example.

    Source: Ho et al. 2020, eq. 6 and 7; Kingma et al. 2021, appendix A.2.

    >>> from diffax.schedules import Cosine
    >>> mean, std = forward_posterior(Cosine(), jnp.ones((1, 1)), jnp.zeros((1, 1)), 1.0, 0.5)
    >>> [round(float(v), 4) for v in (mean[0, 0], std)]  # all of x_t is noise: q(x_s | x0)
    [0.7071, 0.7071]
    """
    _check_order(t, s)
    level_t, level_s = schedule(t), schedule(s)
    h = level_t.log_snr - level_s.log_snr
    c_x = jnp.exp(h / 2) * level_s.sigma / level_t.sigma
    mean = combine((c_x, x), (-level_s.alpha * jnp.expm1(h), x0))
    return mean, level_s.sigma * safe_sqrt(-jnp.expm1(h))


def _check_order(t: Times, s: Times) -> None:
    t_value, s_value = concrete(t), concrete(s)
    if t_value is not None and s_value is not None:
        # Compare in float32, because the caller may have rounded one of the times to it.
        t_value, s_value = np.broadcast_arrays(np.float32(t_value), np.float32(s_value))
        if (later := s_value > t_value).any():
            raise ValueError(f"s must be <= t = {t_value[later][0]:g}, got {s_value[later][0]:g}")


def gaussian_kl(mean: Tree, std: PerExample, other_mean: Tree, other_std: PerExample) -> Any:
    """KL(N(mean, std^2) || N(other_mean, other_std^2)) of each entry, in nats.

    >>> [round(abs(float(gaussian_kl(0.0, 1.0, m, s))), 4) for m, s in ((0.0, 1.0), (1.0, 1.0), (0.0, 2.0))]
    [0.0, 0.5, 0.3181]
    """
    ratio = jnp.asarray(std / other_std)
    return -jnp.log(ratio) + (jnp.square(ratio) - 1 + jnp.square((mean - other_mean) / other_std)) / 2


def step_term(
    schedule: Schedule,
    denoise: Denoiser,
    x0: Tree,
    x: Tree,
    t: Times,
    s: Times,
    variance: str = "small",
    mask: Tree | None = None,
) -> Any:
    """(B,) KL(q(x_s | x_t, x0) || p(x_s | x_t)) at x_t = x, in nats, summed over all dimensions inside the mask.

    Args:
      schedule: noise schedule.
      denoise: (x, t) -> x0, or `Moments` for a learned variance.
      x0: (B, ...) clean data.
      x: (B, ...), a draw of q(x_t | x0).
      t: () or (B,).
      s: () or (B,), s <= t.
      variance: "small" (default), "large" or "learned".
      mask: the entries that belong to an example, as in `denoising_loss`; x0 and the denoiser are 0 outside.

    Raises:
      ValueError: if the variance is unknown, the variance is "learned" but the denoiser does not return `Moments`, or
        s > t for an example.
    """
    _check_order(t, s)
    check_like("x0", x0, x)
    check_per_example(x0, t=t, s=s)
    x0 = widen(x0)
    x0_hat, v = moments_of(like_x("denoise", denoise)(x, t), choose("variance", variance, VARIANCES))
    level_t, level_s = schedule(t), schedule(s)
    log_sigma = jnp.log(level_t.sigma) - jnp.log(level_s.sigma)
    snr_gap = jnp.exp(level_s.log_snr) - jnp.exp(level_t.log_snr)

    def term(x0: Tree, x0_hat: Tree, v: Leaf) -> Any:
        log_ratio = -v * expand(log_sigma, x0)  # log(std / std_p)
        ratio2 = jnp.exp(2 * log_ratio)
        return -log_ratio + jnp.expm1(2 * log_ratio) / 2 + ratio2 * expand(snr_gap, x0) * jnp.square(x0 - x0_hat) / 2

    return total(jax.tree.map(term, x0, x0_hat, v), mask)


def prior_term(schedule: Schedule, x0: Tree, t: Times = 1.0) -> Any:
    """(B,) KL(q(x_t | x0) || N(0, sigma_t^2 I)) = SNR |x0|^2 / 2, in nats: the cost of starting from pure noise."""
    snr = jnp.exp(schedule(t).log_snr)
    return total(jax.tree.map(lambda v: expand(snr, v) * jnp.square(v) / 2, widen(x0)))


def decoder_term(
    key: Keys,
    schedule: Schedule,
    denoise: Denoiser,
    x0: Tree,
    t: Times,
    previous_log_snr: Scalar,
    variance: str,
    lattice: Lattice | None,
    mask: Tree | None = None,
) -> Any:
    """(B,) `decoder_at` for one draw of x_t."""
    level = schedule(t)
    x = combine((level.alpha, x0), (level.sigma, random.noise(key, x0)))
    denoise = like_x("denoise", denoise)
    moments = Moments(*moments_of(denoise(x, t), VARIANCES[variance]))
    return decoder_at(schedule, moments, x0, t, previous_log_snr, lattice, mask)


def decoder_at(
    schedule: Schedule,
    moments: Tree,
    x0: Tree,
    t: Times,
    previous_log_snr: Scalar,
    lattice: Lattice | None,
    mask: Tree | None = None,
) -> Any:
    """(B,) -log p(x0 | x_t) at the last level t.

    moments: `Moments` of the denoiser at t.
    previous_log_snr: log-SNR of the level before t, lower than that of t. The small variance of x0 is
        sigma_t^2 / alpha_t^2 (1 - exp(previous_log_snr - lambda_t)), beta-tilde / alpha_t^2.
    """
    level = schedule(t)
    gap = previous_log_snr - level.log_snr
    # Where both levels are equal, as beyond the clip of the log-SNR, beta-tilde is 0: use the large variance.
    large, shrink = -level.log_snr / 2, jnp.where(gap < 0, jnp.log(-jnp.expm1(jnp.where(gap < 0, gap, -1.0))) / 2, 0.0)

    def term(x0: Tree, x0_hat: Tree, v: Leaf) -> Any:
        std = jnp.exp(expand(large, x0) + (1 - v) * expand(shrink, x0))
        return -decoder_log_prob(x0, x0_hat, std, lattice)

    return total(jax.tree.map(term, x0, moments.x0, moments.v), mask)


class _Terms(NamedTuple):
    """Sampler state of `variational_bound`. x: (B, ...), unchanged; term: (B,), the term of the last step."""

    x: Any
    term: Any


def variational_bound(
    key: Keys,
    schedule: Schedule,
    denoise: Denoiser,
    x0: Tree,
    times: Values,
    *,
    variance: str = "small",
    lattice: Lattice | None = None,
    mask: Tree | None = None,
) -> Bound:
    """The ELBO of a discrete chain over a step grid, with one draw of noise for each term.

    Args:
      key: () or (B,); consumed.
      schedule: noise schedule.
      denoise: (x, t) -> x0, or `Moments`.
      x0: (B, ...) clean data.
      times: (n,) from noise to data, n >= 2: n - 1 steps, and the decoder at times[-1]. For a table of T levels use all
        T: `times.leading(schedule, T)`.
      variance: "small" (default), "large" or "learned", of the reverse steps and of the decoder.
      lattice: the lattice of the data, as in `decoder_log_prob`; None (default) for data with a density.
      mask: the entries that belong to an example, as in `denoising_loss`; the terms are sums over these. None (default)
        for no padding.

    Returns:
      `Bound`, in nats.

    Raises:
      ValueError: if the variance is unknown, the times increase or are fewer than 2, the variance is "learned" but the
        denoiser does not return `Moments`, x0 is outside the lattice, or the mask does not fit x0.

    >>> import diffax
    >>> data, schedule = diffax.analytic.Gaussian.from_covariance([0.0], 0.25), diffax.Cosine()
    >>> x0 = data.sample(jax.random.key(0), 256)
    >>> times = diffax.times.uniform_log_snr(schedule, 100, t_max=1.0, t_min=1e-3)
    >>> bound = variational_bound(jax.random.key(1), schedule, data.denoiser(schedule), x0, times)
    >>> bool(bound.total.mean() > -data.log_prob(x0).mean())
    True
    """
    check_schedule(schedule)
    check_function("denoise", denoise)
    check_float("x0", x0)
    choose("variance", variance, VARIANCES)
    values = concrete(times)
    if np.ndim(times) != 1 or len(times) < 2 or (values is not None and not (values[1:] <= values[:-1]).all()):
        got = f"shape {np.shape(times)}" if values is None else short(values)
        raise ValueError(f"times must have shape (n,) with n >= 2 and must not increase, got {got}")
    check_mask(x0, mask)
    key = random.stream(key, "variational_bound")
    x0, times, denoise = inside(widen(x0), mask), as_float(times), confined(denoise, mask)

    def step(key: Keys, denoise: Denoiser, state: SamplerState, t: Times, s: Times) -> SamplerState:
        x = combine((schedule(t).alpha, x0), (schedule(t).sigma, random.noise(key, x0)))
        return _Terms(state.x, step_term(schedule, denoise, x0, x, t, s, variance, mask))

    chain = Sampler(lambda x, times: _Terms(x, jnp.zeros(batch_size(x))), step, order=0, calls=1)
    _, steps = unroll(random.fold_in(key, 0), chain, denoise, x0, times, record=lambda state: state.term)
    log_snr = schedule.log_snr(times)
    # The grid may end with repeated points, so the level before the last is not always times[-2].
    previous_log_snr = jnp.max(log_snr, where=log_snr < log_snr[-1], initial=-jnp.inf)
    decoder = decoder_term(
        random.fold_in(key, 1), schedule, denoise, x0, times[-1], previous_log_snr, variance, lattice, mask
    )
    prior = prior_term(schedule, x0, times[0])
    return Bound(prior + steps.sum(0) + decoder, prior, steps, decoder)


def continuous_bound(
    key: Keys,
    schedule: Schedule,
    denoise: Denoiser,
    x0: Tree,
    t: Times,
    *,
    t_max: Times = 1.0,
    t_min: Times = 1e-3,
    lattice: Lattice | None = None,
    mask: Tree | None = None,
) -> Bound:
    """The ELBO of infinitely many steps from t_max to t_min; one t for each example estimates the integral.

    Args:
      key: () or (B,); consumed.
      schedule: noise schedule.
      denoise: (x, t) -> x0.
      x0: (B, ...) clean data.
      t: (B,), uniform on [t_min, t_max]; stratified draws reduce the variance.
      t_max: time of the prior term; default 1.
      t_min: time of the decoder, a Gaussian around x0_hat of variance sigma^2 / alpha^2; default 1e-3.
      lattice: the lattice of the data, as in `decoder_log_prob`; None (default) for data with a density.
      mask: the entries that belong to an example, as in `denoising_loss`; the terms are sums over these. None (default)
        for no padding.

    Returns:
      `Bound`, in nats, with steps (B,).

    Raises:
      ValueError: if t_min >= t_max, t is outside [t_min, t_max], x0 is outside the lattice, or the mask does not fit
        x0.
    """
    check_schedule(schedule)
    check_function("denoise", denoise)
    check_float("x0", x0)
    check_per_example(x0, t=t)
    _check_inside(t, t_min, t_max)
    check_mask(x0, mask)
    key, x0, denoise = random.stream(key, "continuous_bound"), inside(widen(x0), mask), confined(denoise, mask)
    x = combine((schedule(t).alpha, x0), (schedule(t).sigma, random.noise(random.fold_in(key, 0), x0)))
    x0_hat, _ = moments_of(like_x("denoise", denoise)(x, t), 0.0)
    log_snr, slope = jax.jvp(schedule.log_snr, (as_float(t),), (jnp.ones_like(as_float(t)),))
    integral = (t_max - t_min) * integrand(log_snr, slope, x0, x0_hat)
    decoder_key, last = random.fold_in(key, 1), as_float(t_min)
    decoder = decoder_term(decoder_key, schedule, denoise, x0, last, -jnp.inf, "large", lattice, mask)
    prior = prior_term(schedule, x0, t_max)
    return Bound(prior + integral + decoder, prior, integral, decoder)


def _check_inside(t: Times, t_min: Times, t_max: Times) -> None:
    low, high, values = concrete(t_min), concrete(t_max), concrete(t)
    if low is not None:
        check("t_max", t_max, above(low, "t_min"))
    if not any(v is None for v in (low, high, values)):
        outside = (np.float32(values) < np.float32(low)) | (np.float32(values) > np.float32(high))
        if outside.any():
            raise ValueError(f"t must be in [t_min, t_max] = [{low}, {high}], got {values[outside].flat[0]:g}")


def integrand(log_snr: Scalar, slope: Scalar, x0: Tree, x0_hat: Tree) -> Any:
    """(B,) -lambda' SNR |x0 - x0_hat|^2 / 2 in nats, the integrand of the bound in continuous time.

    log_snr, slope: (B,), lambda and its derivative lambda' with respect to t.

    Source: Kingma et al. 2021, eq. 17.
    """
    rate = -slope * jnp.exp(log_snr) / 2
    return total(jax.tree.map(lambda u, v: expand(rate, u) * jnp.square(u - v), x0, x0_hat))
