r"""Exact log-likelihood by the probability-flow ODE, and bits per dimension.

The flow is walked from data to noise in y = x / c, c^2 = alpha^2 + sigma^2, over w = log(sigma / alpha), where it is of
order 1 everywhere, whatever the scaling:

    dy / dw = r^2 y - r x0(c y, t),              r = alpha / c
    d log|dy / dy_0| / dw = r^2 D - alpha tr J,  J = d x0 / d x
    log p(x_t) = log p_T(x_T) + log|d y_T / d y_t| + D log(c_T / c_t)

The trace is exact, D products of J with unit vectors, or Hutchinson's estimate e^T J e with E e e^T = I, the same e at
all times, so that it is the ODE of an unbiased estimate.

Chen et al. 2018 (the trace); Grathwohl et al. 2019 (Hutchinson's estimate); Song et al. 2021, appendix D.2.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffax import random
from diffax._checks import check_count, check_float, check_function, check_schedule, choose
from diffax._pytrees import as_float, batch_size, combine, concrete, narrow, safe_sqrt, widen
from diffax.denoisers import like_x, mean_only
from diffax.samplers._base import Sampler
from diffax.sampling import integrate
from diffax.times import check_grid
from diffax.typing import Denoiser, Grid, Keys, Leaf, SamplerState, Scalar, Schedule, Times, Tree

EXACT_LIMIT = 4096  # dimensions: the products with unit vectors cost as many network calls, at every step


class LogLikelihood(NamedTuple):
    """Log-density of examples.

    log_prob: (B,) in nats, NaN where the ODE was not solved.
    stderr: (B,) standard error of log_prob over the probes: 0 for the exact trace, NaN for a single probe.
    latent: (B, ...) the examples at the noise end.
    steps: steps taken.
    converged: (B,) whether the ODE was solved; of a fixed grid, which has no error estimate, whether all is finite. Its
      error falls with the square of the step: compare two grids, or use `diffax.likelihood.adaptive.solver`.
    """

    log_prob: Any
    stderr: Any
    latent: Any
    steps: Any
    converged: Any


class Flow(NamedTuple):
    """x: (B, ...), the y of the module's head; log_det: (B, P), log|d y / d y_0| / D by each probe.

    Or their slopes in w.
    """

    x: Any
    log_det: Any


Field = Callable[[Flow, Any], Flow]  # (state, t) -> its slopes in w


def log_likelihood(
    key: Keys,
    schedule: Schedule,
    denoise: Denoiser,
    x: Tree,
    times: Grid,
    *,
    prior_log_prob: Callable[[Any], Any] | None = None,
    divergence: str = "hutchinson",
    probes: int = 1,
    probe_distribution: str = "rademacher",
    solve: Callable[..., Any] | None = None,
) -> LogLikelihood:
    """log p_t(x) at t = times[0], for each example.

    Args:
      key: () or (B,), of the probes; consumed.
      schedule: noise schedule, with any scaling.
      denoise: (x, t) -> x0, or `Moments`; each example by itself, since the trace is taken of each.
      x: (B, ...), at times[0]; of half precision it is carried in float32. For data that is x0 itself where
        times[0] = 0, but for sigma(0) = exp(-10).
      times: (n,) from data to noise. Heun's method: order 2 in n, two denoiser calls a step. `times.uniform_log_snr`
        reversed is a good grid.
      prior_log_prob: x -> (B,), the law at times[-1]; None is N(0, sigma^2 I). In the mean over data that is too small
        by KL(p_T || N(0, sigma^2 I)) <= SNR / 2 E|x0|^2: 2e-5 nats a dimension for `Linear` at t = 1 and data of unit
        variance, 2e-4 for `LogLinear` at sigma_max = 50. It is an error of log_prob, not of the flow.
      divergence: "hutchinson", or "exact" for up to EXACT_LIMIT dimensions.
      probes: P, how many e, an int >= 1; the standard error falls as P^-1/2.
      probe_distribution: "rademacher" (never of more variance) or "gaussian", of e.
      solve: how the ODE is solved: (schedule, field, x, times) -> (Flow, steps, converged). None is Heun's method on
        the grid; `diffax.likelihood.adaptive.solver()` takes the ends of `times` alone.

    Returns:
      log_prob, stderr, latent, steps, converged; see `LogLikelihood`.

    Raises:
      ValueError: for an unknown divergence or probe_distribution, probes < 1, times that fall or leave [0, 1], or too
        many dimensions for "exact"; for an x that is not of a float type, a denoiser's answer that has not the shape of
        x, or a prior_log_prob that does not give (B,).

    >>> import diffax
    >>> data = diffax.analytic.Gaussian.from_covariance([0.5, -0.5], 0.25)
    >>> schedule, x = diffax.Cosine(), jnp.array([[0.2, 0.1]])
    >>> times = diffax.times.uniform_log_snr(schedule, 60, t_max=1.0, t_min=1e-3)[::-1]
    >>> found = log_likelihood(jax.random.key(0), schedule, data.denoiser(schedule), x, times, divergence="exact")
    >>> bool(abs(found.log_prob[0] - data.log_prob(x, schedule(times[0]))[0]) < 1e-2)
    True
    """
    check_schedule(schedule)
    check_function("denoise", denoise)
    check_float("x", x)
    choose("divergence", divergence, ("exact", "hutchinson"))
    choose("probe_distribution", probe_distribution, PROBES)
    check_count("probes", probes)
    _check_rising(times)
    size, given, times = batch_size(x), jax.tree.map(jnp.asarray, x), as_float(times)
    x = widen(given)
    dimensions = _dimensions(x)
    if divergence == "exact" and dimensions > EXACT_LIMIT:
        raise ValueError(f"divergence 'exact' takes at most {EXACT_LIMIT} dimensions, got {dimensions}")
    drawn = (
        None if divergence == "exact" else PROBES[probe_distribution](random.stream(key, "log_likelihood"), x, probes)
    )
    field = _flow(schedule, mean_only(like_x("denoise", denoise)), drawn, dimensions)
    first, last = size_of(schedule, times[0]), size_of(schedule, times[-1])
    start = Flow(combine((1 / first, x)), jnp.zeros((size, 1 if drawn is None else probes)))
    with jax.default_matmul_precision("highest"):  # products in bfloat16 would cost more than the ODE's error
        (latent, log_det), steps, converged = (solve or heun)(schedule, field, start, times)
    latent = combine((last, latent))
    prior = (lambda x: _standard(x, schedule(times[-1]).sigma)) if prior_log_prob is None else prior_log_prob
    latent_log_prob = prior(latent)
    if jnp.shape(latent_log_prob) != (size,):
        raise ValueError(f"prior_log_prob(x) must have shape ({size},), got {jnp.shape(latent_log_prob)}")
    log_prob = latent_log_prob[:, None] + dimensions * (log_det + jnp.log(last) - jnp.log(first))
    stderr = jnp.zeros(size) if drawn is None else _stderr(log_prob)
    converged = converged & jnp.isfinite(log_prob).all(1)
    return LogLikelihood(
        jnp.where(converged, log_prob.mean(1), jnp.nan), stderr, narrow(latent, given), steps, converged
    )


def _check_rising(times: Grid) -> None:
    check_grid(times)
    known = concrete(times)
    if known is not None and (len(known) < 2 or (known[0] > known[-1]).any()):
        raise ValueError(f"times must rise from data to noise, got {known.tolist()}")


def _flow(schedule: Schedule, denoise: Denoiser, probes: Tree | None, dimensions: int) -> Field:
    """The equations at the module's head; the trace by these probes, exact for None."""

    def field(state: SamplerState, t: Times) -> Any:
        alpha, c = schedule(t).alpha, size_of(schedule, t)
        x = combine((c, state.x))
        x0, product = jax.linearize(lambda x: denoise(x, t), x)
        trace = _exact_trace(product, x) if probes is None else _estimated_trace(product, probes)
        r = alpha / c
        return Flow(combine((jnp.square(r), state.x), (-r, x0)), jnp.square(r) - alpha * trace.T / dimensions)

    return field


def heun(schedule: Schedule, field: Field, start: Flow, times: Grid) -> tuple[Flow, Any, Any]:
    """Heun's method over the grid, in log(sigma / alpha): (end, steps, True)."""

    def step(key: Keys, denoise: Denoiser, state: SamplerState, t: Times, s: Times) -> SamplerState:
        h = (schedule.log_snr(t) - schedule.log_snr(s)) / 2
        first = field(state, t)
        second = field(state._replace(x=combine((1.0, state.x), (h, first.x))), s)
        x = combine((1.0, state.x), (h / 2, first.x), (h / 2, second.x))
        return Flow(x, state.log_det + h / 2 * (first.log_det + second.log_det))

    def init(x: Tree, times: Grid) -> SamplerState:
        return start

    sampler = Sampler(init, step, order=2, calls=2)
    end = integrate(jax.random.key(0), sampler, lambda x, t: x, start.x, times)
    return end, len(times) - 1, True


def size_of(schedule: Schedule, t: Times) -> Any:
    """C = sqrt(alpha^2 + sigma^2), which takes x to y = x / c."""
    alpha, sigma, _ = schedule(t)
    return jnp.sqrt(jnp.square(alpha) + jnp.square(sigma))


def _dot(u: Times, v: Leaf) -> Any:
    """(B,) inner products of the examples of two trees."""
    products = jax.tree.map(lambda a, b: jnp.sum((a * b).reshape(len(a), -1), 1), u, v)
    return sum(jax.tree.leaves(products))


def _exact_trace(product: Callable[[Any], Any], x: Tree) -> Any:
    """(1, B): the trace of a linear map that takes each example by itself, by its products with unit vectors."""
    leaves, structure = jax.tree.flatten(x)
    total: Any = 0.0
    for place, leaf in enumerate(leaves):
        width = leaf[0].size

        def entry(index: Leaf, place: int = place, leaf: Leaf = leaf, width: int = width) -> Any:
            unit = jnp.broadcast_to(jax.nn.one_hot(index, width, dtype=leaf.dtype), (len(leaf), width))
            zeros = [jnp.zeros_like(other) for other in leaves]
            zeros[place] = unit.reshape(leaf.shape)
            image = jax.tree.leaves(product(jax.tree.unflatten(structure, zeros)))[place]
            return image.reshape(len(leaf), width)[:, index]

        # A few at a time: all at once would need the memory of `width` networks.
        total = total + jnp.sum(jax.lax.map(entry, jnp.arange(width), batch_size=min(width, 16)), 0)
    return total[None]


def _estimated_trace(product: Callable[[Any], Any], probes: Tree) -> Any:
    """(P, B): e^T J e for each probe."""
    return jax.vmap(lambda e: _dot(e, product(e)))(probes)


def _draw(of_key: Callable[..., Any]) -> Any:
    def probes(key: Keys, x: Tree, count: int) -> Any:
        leaves, structure = jax.tree.flatten(x)

        def one(index: Leaf) -> Any:
            keys = random.per_example(random.fold_in(key, index), batch_size(x))

            def leaf(place: int, like: Tree) -> Any:
                draw = jax.vmap(lambda k: of_key(k, like.shape[1:], like.dtype))
                return draw(random.fold_in(keys, place))

            return jax.tree.unflatten(structure, [leaf(i, v) for i, v in enumerate(leaves)])

        return jax.vmap(one)(jnp.arange(count))

    return probes


PROBES = {"rademacher": _draw(jax.random.rademacher), "gaussian": _draw(jax.random.normal)}


def _stderr(values: Leaf) -> Any:
    """(B,) standard error of the mean of (B, P); NaN for a single value."""
    count = values.shape[1]
    if count == 1:
        return jnp.full(len(values), jnp.nan)
    variance = jnp.sum(jnp.square(values - values.mean(1, keepdims=True)), 1) / (count - 1) / count
    return safe_sqrt(variance)


def _dimensions(x: Tree) -> Any:
    return sum(leaf[0].size for leaf in jax.tree.leaves(x))


def _standard(x: Tree, sigma: Scalar) -> Any:
    """(B,) log N(x; 0, sigma^2 I)."""
    return -_dot(x, x) / (2 * sigma**2) - _dimensions(x) * (jnp.log(sigma) + 0.5 * math.log(2 * math.pi))
