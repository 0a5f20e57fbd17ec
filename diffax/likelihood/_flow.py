r"""Exact log-likelihood by the probability-flow ODE, and bits per dimension.

The ODE is solved from data to noise, for y = x / c with c^2 = alpha^2 + sigma^2, as a function of
w = log(sigma / alpha). In these variables it is of order 1 at all levels, for every scaling:

    dy / dw = r^2 y - r x0(c y, t),              r = alpha / c
    d log|dy / dy_0| / dw = r^2 D - alpha tr J,  J = d x0 / d x
    log p(x_t) = log p_T(x_T) + log|d y_T / d y_t| + D log(c_T / c_t)

The trace is either exact, by D products of J with unit vectors, or Hutchinson's estimate e^T J e with E e e^T = I. The
probe e is the same at all times, so that one ODE is solved, and its solution is an unbiased estimate.

Source: Chen et al. 2018 (the trace); Grathwohl et al. 2019 (Hutchinson's estimate); Song et al. 2021, appendix D.2.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffax import random
from diffax._checks import check_count, check_float, check_function, check_schedule, choose
from diffax._masks import check_mask, confined, dimensions, inside
from diffax._pytrees import as_float, batch_size, combine, concrete, narrow, safe_sqrt, widen
from diffax.denoisers import like_x, mean_only
from diffax.samplers._base import Sampler
from diffax.sampling import integrate
from diffax.times import check_grid
from diffax.typing import Denoiser, Grid, Keys, Leaf, PerExample, SamplerState, Scalar, Schedule, Times, Tree

# The largest number of dimensions for the exact trace, which costs one network call per dimension at every step.
EXACT_LIMIT = 4096


class LogLikelihood(NamedTuple):
    """Log-density of examples.

    log_prob: (B,) in nats, NaN where `converged` is False.
    stderr: (B,) standard error of log_prob over the probes: 0 for the exact trace, NaN for a single probe.
    latent: (B, ...) the examples at the noise end.
    steps: number of steps.
    converged: (B,) whether the ODE was solved. A fixed grid has no error estimate, so there it is whether all values
      are finite. The error of a fixed grid falls with the square of the step: compare two grids, or use
      `diffax.likelihood.adaptive.solver`.
    """

    log_prob: Any
    stderr: Any
    latent: Any
    steps: Any
    converged: Any


class Flow(NamedTuple):
    """State of the ODE, or its slopes in w.

    x: (B, ...), the y of the module docstring. log_det: (B, P), log|d y / d y_0| / D for each probe.
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
    mask: Tree | None = None,
) -> LogLikelihood:
    """log p_t(x) at t = times[0], for each example.

    Args:
      key: () or (B,), for the probes; consumed.
      schedule: noise schedule, with any scaling.
      denoise: (x, t) -> x0, or `Moments`. It must not mix examples, because the trace is computed for each example.
      x: (B, ...), at times[0]; half precision is converted to float32. With times[0] = 0 it is the data x0 itself, up
        to noise of sigma(0) = exp(-10).
      times: (n,) from data to noise. Heun's method: order 2 in n, two denoiser calls a step. `times.uniform_log_snr`
        reversed is a good grid.
      prior_log_prob: x -> (B,), the log-density at times[-1]; None (default) is N(0, sigma^2 I). With None, log_prob is
        on average over the data too small by KL(p_T || N(0, sigma^2 I)) <= SNR / 2 E|x0|^2: 2e-5 nats a dimension for
        `Linear` at t = 1 and data of unit variance, 2e-4 for `LogLinear` at sigma_max = 50. This error comes from the
        prior, not from the ODE.
      divergence: "hutchinson" (default), or "exact" for up to EXACT_LIMIT dimensions.
      probes: P, the number of e, an int >= 1, default 1; the standard error falls as P^-1/2.
      probe_distribution: distribution of e: "rademacher" (default, never of larger variance) or "gaussian".
      solve: the solver of the ODE, (schedule, field, x, times) -> (Flow, steps, converged). None (default) is Heun's
        method on the grid; `diffax.likelihood.adaptive.solver()` uses only the ends of `times`.
      mask: the entries that belong to an example, as in `denoising_loss`: the density is one of these alone. None
        (default) for no padding.

    Returns:
      log_prob, stderr, latent, steps, converged; see `LogLikelihood`.

    Raises:
      ValueError: if divergence or probe_distribution is unknown, probes < 1, the times decrease or leave [0, 1], x has
        too many dimensions for "exact" or is not of a float type, the denoiser does not return the shape of x, the mask
        does not fit x, or prior_log_prob does not return (B,).

    >>> import diffax
    >>> data = diffax.analytic.Gaussian.from_covariance([0.5, -0.5], 0.25)
    >>> schedule, x = diffax.Cosine(), jnp.array([[0.2, 0.1]])
    >>> times = diffax.times.uniform_log_snr(schedule, 60, t_max=1.0, t_min=1e-3)[::-1]
    >>> result = log_likelihood(jax.random.key(0), schedule, data.denoiser(schedule), x, times, divergence="exact")
    >>> bool(abs(result.log_prob[0] - data.log_prob(x, schedule(times[0]))[0]) < 1e-2)
    True
    """
    check_schedule(schedule)
    check_function("denoise", denoise)
    check_float("x", x)
    choose("divergence", divergence, ("exact", "hutchinson"))
    choose("probe_distribution", probe_distribution, PROBES)
    check_count("probes", probes)
    _check_rising(times)
    size, original, times = batch_size(x), jax.tree.map(jnp.asarray, x), as_float(times)
    check_mask(x, mask, "x")
    x = inside(widen(original), mask)
    if divergence == "exact" and dimensions(x) > EXACT_LIMIT:
        limit = f"x must have at most {EXACT_LIMIT} dimensions for divergence 'exact'"
        raise ValueError(f"{limit}, got {dimensions(x)}: use 'hutchinson'")
    count = dimensions(x, mask)
    probe_vectors = (
        None if divergence == "exact" else PROBES[probe_distribution](random.stream(key, "log_likelihood"), x, probes)
    )
    # Outside the mask x, x0 and so the slope of x are 0, and the denoiser's Jacobian has no rows there.
    denoise = confined(mean_only(like_x("denoise", denoise)), mask)
    field = _flow(schedule, denoise, probe_vectors, count if mask is None else jnp.maximum(count, 1)[:, None])
    c_start, c_end = flow_scale(schedule, times[0]), flow_scale(schedule, times[-1])
    start = Flow(combine((1 / c_start, x)), jnp.zeros((size, 1 if probe_vectors is None else probes)))
    # Matrix products in bfloat16 would cause a larger error than the steps of the ODE.
    with jax.default_matmul_precision("highest"):
        (latent, log_det), steps, converged = (solve or heun)(schedule, field, start, times)
    latent = combine((c_end, latent))
    if prior_log_prob is None:
        latent_log_prob = _normal_log_prob(latent, schedule(times[-1]).sigma, count)
    else:
        latent_log_prob = prior_log_prob(latent)
    if jnp.shape(latent_log_prob) != (size,):
        raise ValueError(f"prior_log_prob(x) must have shape ({size},), got {jnp.shape(latent_log_prob)}")
    factor = count if mask is None else count[:, None]
    log_prob = latent_log_prob[:, None] + factor * (log_det + jnp.log(c_end) - jnp.log(c_start))
    stderr = jnp.zeros(size) if probe_vectors is None else _stderr(log_prob)
    converged = converged & jnp.isfinite(log_prob).all(1)
    return LogLikelihood(
        jnp.where(converged, log_prob.mean(1), jnp.nan), stderr, narrow(latent, original), steps, converged
    )


def _check_rising(times: Grid) -> None:
    check_grid(times)
    values = concrete(times)
    if values is not None and (len(values) < 2 or (values[0] > values[-1]).any()):
        raise ValueError(f"times must have n >= 2 entries and increase from data to noise, got {values.tolist()}")


def _flow(schedule: Schedule, denoise: Denoiser, probes: Tree | None, dimensions: Scalar) -> Field:
    """The ODE of the module docstring, with the trace estimated by these probes, or exact for None.

    dimensions: D, () or (B, 1).
    """

    def field(state: SamplerState, t: Times) -> Any:
        alpha, c = schedule(t).alpha, flow_scale(schedule, t)
        x = combine((c, state.x))
        x0, product = jax.linearize(lambda x: denoise(x, t), x)
        trace = _exact_trace(product, x) if probes is None else _estimated_trace(product, probes)
        r = alpha / c
        return Flow(combine((jnp.square(r), state.x), (-r, x0)), jnp.square(r) - alpha * trace.T / dimensions)

    return field


def heun(schedule: Schedule, field: Field, start: Flow, times: Grid) -> tuple[Flow, Any, Any]:
    """Solve the ODE by Heun's method over the step grid, in log(sigma / alpha). Returns (end, steps, True)."""

    def step(key: Keys, denoise: Denoiser, state: SamplerState, t: Times, s: Times) -> SamplerState:
        h = (schedule.log_snr(t) - schedule.log_snr(s)) / 2
        slope_t = field(state, t)
        slope_s = field(state._replace(x=combine((1.0, state.x), (h, slope_t.x))), s)
        x = combine((1.0, state.x), (h / 2, slope_t.x), (h / 2, slope_s.x))
        return Flow(x, state.log_det + h / 2 * (slope_t.log_det + slope_s.log_det))

    def init(x: Tree, times: Grid) -> SamplerState:
        return start

    sampler = Sampler(init, step, order=2, calls=2)
    end = integrate(jax.random.key(0), sampler, lambda x, t: x, start.x, times)
    return end, len(times) - 1, True


def flow_scale(schedule: Schedule, t: Times) -> Any:
    """The scale c = sqrt(alpha^2 + sigma^2) of y = x / c."""
    alpha, sigma, _ = schedule(t)
    return jnp.sqrt(jnp.square(alpha) + jnp.square(sigma))


def _dot(u: Times, v: Leaf) -> Any:
    """(B,) inner products of two trees, for each example."""
    products = jax.tree.map(lambda a, b: jnp.sum((a * b).reshape(len(a), -1), 1), u, v)
    return sum(jax.tree.leaves(products))


def _exact_trace(product: Callable[[Any], Any], x: Tree) -> Any:
    """(1, B) traces of a linear map that does not mix examples, by its products with unit vectors."""
    leaves, structure = jax.tree.flatten(x)
    total: Any = 0.0
    for position, leaf in enumerate(leaves):
        width = leaf[0].size

        def entry(index: Leaf, position: int = position, leaf: Leaf = leaf, width: int = width) -> Any:
            unit = jnp.broadcast_to(jax.nn.one_hot(index, width, dtype=leaf.dtype), (len(leaf), width))
            zeros = [jnp.zeros_like(other) for other in leaves]
            zeros[position] = unit.reshape(leaf.shape)
            image = jax.tree.leaves(product(jax.tree.unflatten(structure, zeros)))[position]
            return image.reshape(len(leaf), width)[:, index]

        # Take a few unit vectors at a time: all at once would need the memory of `width` network calls.
        total = total + jnp.sum(jax.lax.map(entry, jnp.arange(width), batch_size=min(width, 16)), 0)
    return total[None]


def _estimated_trace(product: Callable[[Any], Any], probes: Tree) -> Any:
    """(P, B): e^T J e for each probe."""
    return jax.vmap(lambda e: _dot(e, product(e)))(probes)


def _drawn_by(draw: Callable[..., Any]) -> Any:
    """(key, x, count) -> `count` probes like x, with entries from draw(key, shape, dtype)."""

    def probes(key: Keys, x: Tree, count: int) -> Any:
        leaves, structure = jax.tree.flatten(x)

        def probe(index: Leaf) -> Any:
            keys = random.per_example(random.fold_in(key, index), batch_size(x))

            def leaf(position: int, like: Tree) -> Any:
                draw_examples = jax.vmap(lambda k: draw(k, like.shape[1:], like.dtype))
                return draw_examples(random.fold_in(keys, position))

            return jax.tree.unflatten(structure, [leaf(i, v) for i, v in enumerate(leaves)])

        return jax.vmap(probe)(jnp.arange(count))

    return probes


PROBES = {"rademacher": _drawn_by(jax.random.rademacher), "gaussian": _drawn_by(jax.random.normal)}


def _stderr(values: Leaf) -> Any:
    """(B,) standard error of the mean of (B, P); NaN for a single value."""
    count = values.shape[1]
    if count == 1:
        return jnp.full(len(values), jnp.nan)
    variance = jnp.sum(jnp.square(values - values.mean(1, keepdims=True)), 1) / (count - 1) / count
    return safe_sqrt(variance)


def _normal_log_prob(x: Tree, sigma: Scalar, dimensions: PerExample) -> Any:
    """(B,) log N(x; 0, sigma^2 I) in this number of dimensions."""
    return -_dot(x, x) / (2 * sigma**2) - dimensions * (jnp.log(sigma) + 0.5 * math.log(2 * math.pi))
