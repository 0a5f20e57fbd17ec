"""The tables of schedules and samplers under test, and the checks that all of them share.

Samplers of the catalogue are read from it. A new schedule, or a sampler with other settings, is one more row here.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffax
from diffax import analytic, samplers

KEY = jax.random.key(0)

BETAS = diffax.schedules.linear_betas(1000)

SCHEDULES = {
    "linear": diffax.Linear(),
    "quadratic": diffax.Quadratic(),
    "sub_vp": diffax.SubVP(),
    "cosine": diffax.Cosine(),
    "cosine-ve": diffax.Cosine(scaling="ve"),
    "sigmoid": diffax.Sigmoid(),
    "laplace-sub_vp": diffax.Laplace(scaling="sub_vp"),
    "flow": diffax.Flow(),
    "flow-vp": diffax.Flow(scaling="vp"),
    "log_linear": diffax.LogLinear(0.002, 80.0),
    "edm": diffax.EDM(),
    "edm-flow": diffax.EDM(scaling="flow"),
    "linear_betas": diffax.from_betas(BETAS),
    "cosine_betas": diffax.from_betas(diffax.schedules.cosine_betas(1000)),
    "zero_terminal_snr": diffax.from_betas(diffax.schedules.zero_terminal_snr(BETAS)),
    "shifted": diffax.shifted(diffax.Linear(beta_min=0.2, beta_max=15.0, scaling="flow"), 3.0),
}
FEW_SCHEDULES = ("linear", "flow", "edm", "zero_terminal_snr")


def spread(names, few, argument="name"):
    """Parametrise over all names. Names outside `few` are slow tests, because each compiles for seconds."""
    cases = [name if name in few else pytest.param(name, marks=pytest.mark.slow) for name in names]
    return pytest.mark.parametrize(argument, cases)


FLOORED = partial(samplers.unipc, order=2, form="x0")

# name -> (make, hyperparameters, deterministic), where make(schedule, **hyperparameters) is a sampler: first the rows
# of the catalogue, then other settings. euler is omitted because it is ddim, order 0 because it claims no order.
SAMPLERS = {
    **{
        name: (row.make, dict(row.exam), not row.noisy)
        for name, row in samplers.CATALOGUE.items()
        if row.order and name != "euler"
    },
    "ddim-eta": (diffax.ddim, {"eta": 0.6}, False),
    "ddpm-large": (partial(diffax.ddpm, variance="large"), {}, False),
    "euler-time": (partial(samplers.euler, space="time"), {}, True),
    "heun-alpha": (samplers.heun, {"alpha": 0.7}, True),
    "heun-time": (partial(samplers.heun, space="time"), {}, True),
    "heun-churn": (samplers.heun, {"s_churn": 3.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003}, False),
    "flow_adams": (partial(samplers.exponential_adams, form="flow", order=3, corrected=True), {}, True),
    "unipc-final": (partial(samplers.unipc, form="x0", variant="bh1", lower_order_final=True), {}, True),
    "noise_floor": (lambda schedule, std: samplers.noise_floor(FLOORED, schedule, std), {"std": 0.2}, True),
}

# name -> (make, order) for the other deterministic settings that claim an order. The order is that of the source and
# is written down here, so that a change of `sampler.order` cannot lower the claim. The orders of default settings are
# in the catalogue. unipc has order p + 1, because its corrector adds one.
SETTINGS = {
    "euler-time": (partial(samplers.euler, space="time"), 1),
    "heun-alpha": (partial(samplers.heun, alpha=0.7), 2),
    "heun-time": (partial(samplers.heun, space="time"), 2),
    "flow_adams": (partial(samplers.exponential_adams, form="flow", order=3, corrected=True), 4),
    "unipc-final": (partial(samplers.unipc, form="x0", variant="bh1", lower_order_final=True), 2),
    "noise_floor": (lambda schedule: samplers.noise_floor(FLOORED, schedule, 0.2), 3),
    "dpm_solver-2": (partial(samplers.dpm_solver, order=2), 2),
    "dpm_solver-2-x0": (partial(samplers.dpm_solver, order=2, form="x0"), 2),
    "dpm_solver-3-x0": (partial(samplers.dpm_solver, form="x0"), 3),
    "dpm_solver-3-taylor": (partial(samplers.dpm_solver, taylor=True), 3),
    "dpm_solver-3-time": (partial(samplers.dpm_solver, space="time"), 3),
    "dpmpp_2m-heun": (partial(samplers.dpmpp_2m, solver="heun"), 2),
    "dpmpp_2m_sde-0": (partial(samplers.dpmpp_2m_sde, eta=0.0), 2),
    "dpmpp_3m-cold": (partial(samplers.dpmpp_3m, start="cold"), 3),
    "dpmpp_sde-0": (partial(samplers.dpmpp_sde, eta=0.0), 2),
    "sa_solver-0-1": (partial(samplers.sa_solver, tau=0.0, order=1), 2),
    "sa_solver-0-2": (partial(samplers.sa_solver, tau=0.0, order=2), 3),
    "sa_solver-0-3": (partial(samplers.sa_solver, tau=0.0, order=3), 4),
    "pndm-prk": (partial(samplers.pndm, start="prk"), 2),
    "deis-1": (partial(samplers.deis, order=1), 1),
    "deis-2": (partial(samplers.deis, order=2), 2),
    "lms-1": (partial(samplers.lms, order=1), 1),
    "lms-2": (partial(samplers.lms, order=2), 2),
    "lms-3": (partial(samplers.lms, order=3), 3),
    "unipc-1-bh1-eps": (partial(samplers.unipc, order=1, variant="bh1"), 2),
    "unipc-1-bh1-x0": (partial(samplers.unipc, order=1, variant="bh1", form="x0"), 2),
    "unipc-1-bh2-eps": (partial(samplers.unipc, order=1, variant="bh2"), 2),
    "unipc-1-bh2-x0": (partial(samplers.unipc, order=1, variant="bh2", form="x0"), 2),
    "unipc-2-bh1-eps": (partial(samplers.unipc, order=2, variant="bh1"), 3),
    "unipc-2-bh1-x0": (partial(samplers.unipc, order=2, variant="bh1", form="x0"), 3),
    "unipc-2-bh2-eps": (partial(samplers.unipc, order=2, variant="bh2"), 3),
    "unipc-2-bh2-x0": (partial(samplers.unipc, order=2, variant="bh2", form="x0"), 3),
    "unipc-3-bh1-eps": (partial(samplers.unipc, order=3, variant="bh1"), 4),
    "unipc-3-bh1-x0": (partial(samplers.unipc, order=3, variant="bh1", form="x0"), 4),
    "unipc-3-bh2-eps": (partial(samplers.unipc, order=3, variant="bh2"), 4),
    "unipc-3-bh2-x0": (partial(samplers.unipc, order=3, variant="bh2", form="x0"), 4),
    "unip-1": (partial(samplers.unipc, order=1, corrected=False), 1),
    "unip-2": (partial(samplers.unipc, order=2, corrected=False), 2),
    "unip-3": (partial(samplers.unipc, order=3, corrected=False), 3),
    "adams-1-x0": (partial(samplers.exponential_adams, order=1, form="x0"), 1),
    "adams-3-x0": (partial(samplers.exponential_adams, order=3, form="x0"), 3),
    "adams-4-x0": (partial(samplers.exponential_adams, order=4, form="x0"), 4),
    "adams-4-eps": (partial(samplers.exponential_adams, order=4, form="eps"), 4),
    "adams-4-rho": (partial(samplers.exponential_adams, order=4, form="rho"), 4),
    "adams-1-flow": (partial(samplers.exponential_adams, order=1, form="flow"), 1),
    "adams-3-flow": (partial(samplers.exponential_adams, order=3, form="flow"), 3),
    "adams-2-time": (partial(samplers.exponential_adams, order=2, form="time"), 2),
}
_DEFAULTS = {
    name: (partial(make, **values), samplers.CATALOGUE[name].order)
    for name, (make, values, deterministic) in SAMPLERS.items()
    if deterministic and name in samplers.CATALOGUE
}
ORDERS = {name: make for name, (make, _) in {**_DEFAULTS, **SETTINGS}.items()}
CLAIMED = {name: order for name, (_, order) in {**_DEFAULTS, **SETTINGS}.items()}

START = np.array([[0.5, -1.0], [1.2, 0.3], [-0.7, 0.8], [0.1, 0.1], [-1.3, -0.4]])


def gaussian():
    """A correlated Gaussian in two dimensions."""
    return analytic.Gaussian.from_covariance(np.array([0.7, -0.4]), np.array([[0.4, 0.15], [0.15, 0.2]]))


def mixture():
    """The three-component mixture of the reference cases."""
    means = np.array([[-1.5, 0.5], [1.0, 1.2], [0.3, -1.4]])
    return analytic.Mixture(np.array([0.2, 0.5, 0.3]), means, 0.3)


ORACLES = {"gaussian": gaussian, "mixture": mixture}


WARM = 6  # number of first steps that end in the exact state, so that multistep samplers have an exact history


class Problem(NamedTuple):
    """Grids of several lengths, padded by repeating their end, and the exact probability flow on each."""

    schedule: Any
    denoise: Any  # the Gaussian for the first half of the batch, the mixture for the second
    x: Any
    times: Any  # (K, N + 1)
    path: Any  # (K, WARM, B, D): exact state after each of the first WARM steps
    end: Any


def problem(schedule, *, log_snrs=(-9.0, 2.2), steps=(80, 160, 320, 640), fine=3200):
    """The problem for both oracles on uniform log-SNR grids; the reference takes `fine` Runge-Kutta steps."""
    t_max, t_min = (float(schedule.inverse(jnp.asarray(v))) for v in log_snrs)
    denoise_gaussian, denoise_mixture = gaussian().denoiser(schedule), mixture().denoiser(schedule)

    def denoise(x, t):
        return jnp.concatenate([denoise_gaussian(x[: len(START)], t), denoise_mixture(x[len(START) :], t)])

    x = schedule(t_max).sigma * jnp.asarray(np.concatenate([START, START]))
    times = diffax.times.uniform_log_snr(schedule, fine + 1, t_max=t_max, t_min=t_min)
    solve = jax.jit(lambda x: diffax.unroll(KEY, analytic.runge_kutta(schedule), denoise, x, times)[1])
    path = solve(x)
    strides = [fine // n for n in steps]
    grids = [jnp.pad(times[::k], (0, max(steps) - n), mode="edge") for n, k in zip(steps, strides, strict=True)]
    first_states = [path[k - 1 : k * WARM : k] for k in strides]
    return Problem(schedule, denoise, x, jnp.stack(grids), jnp.stack(first_states), path[-1])


def errors(sampler, problem, *, warm=WARM):
    """(2, K) largest error of the final x, on the Gaussian and on the mixture, for each grid."""

    @jax.jit
    @jax.vmap
    def run(times, path):
        def move(state, inputs):
            i, t, s = inputs
            state = sampler.step(KEY, problem.denoise, state, t, s)
            exact = path[jnp.minimum(i, WARM - 1)]
            return state._replace(x=jnp.where(i < warm, exact, state.x)), None

        steps = (jnp.arange(len(times) - 1), times[:-1], times[1:])
        return jax.lax.scan(move, sampler.init(problem.x, times), steps)[0].x

    deviation = jnp.abs(run(problem.times, problem.path) - problem.end).max(-1)
    return np.asarray(deviation.reshape(len(deviation), 2, -1).max(-1).T)


def check_order(sampler, problem):
    """Assert that the measured order is above the claimed order - 0.2 on both oracles. Return the measured orders."""
    measured = errors(sampler, problem)
    orders = np.log2(measured[:, -2] / measured[:, -1])
    for name, order, row in zip(ORACLES, orders, measured, strict=True):
        assert order > sampler.order - 0.2, f"claims order {sampler.order}, measured {order:.2f} on {name}: {row}"
    return orders


def replace_noise(monkeypatch, draw, draws=1):
    """Replace every noise draw by `draw(k, like)`. k counts the draws of a run; each step makes `draws` of them."""

    def fold_in(key, data):
        outermost = jnp.issubdtype(jnp.asarray(key).dtype, jax.dtypes.prng_key)
        return data * draws if outermost else key + (data if draws > 1 else 0)

    monkeypatch.setattr(diffax.random, "fold_in", fold_in)
    monkeypatch.setattr(diffax.random, "noise", draw)


class EndDistribution(NamedTuple):
    """Distribution of the last state in one dimension: offset + slope x + noise of this variance, for the start x."""

    offset: Any
    slope: Any
    variance: Any


def end_distribution(sampler, denoise, times, *, draws=1):
    """Exact distribution of the last state, for a sampler that is affine in its state and its noise.

    The sampler runs once for each draw, with this draw 1 and all others 0.

    times: (n,), or (K, n) for K grids that are padded by repeating their end; results then have shape (K,).
    """
    count = draws * (np.shape(times)[-1] - 1)
    tables = np.zeros((count + 2, count))
    tables[2:] = np.eye(count)
    starts = np.zeros(count + 2)
    starts[1] = 1.0

    @jax.jit
    def distribution(times):
        def end(x, table):
            with pytest.MonkeyPatch.context() as patch:
                replace_noise(patch, lambda k, like: table[k] + 0 * like, draws)
                return diffax.integrate(KEY, sampler, denoise, jnp.reshape(x, (1, 1)), times).x[0, 0]

        results = jax.vmap(end)(jnp.asarray(starts), jnp.asarray(tables))
        return EndDistribution(results[0], results[1] - results[0], jnp.sum((results[2:] - results[0]) ** 2))

    return distribution(times) if np.ndim(times) == 1 else jax.vmap(distribution)(times)


def moments_from_fixed_start(sampler, denoise, x, times, monkeypatch):
    """Mean and covariance of the last state from the start x (1, D), for a sampler that is affine in its noise.

    The noise of step k is row k of a table Z. The mean is the result at Z = 0; the Jacobian J in Z gives the
    covariance J J^T.
    """
    monkeypatch.setattr(diffax.random, "fold_in", lambda key, data: data)

    def end(table):
        monkeypatch.setattr(diffax.random, "noise", lambda key, like: table[key][None])
        return diffax.integrate(jax.random.key(0), sampler, denoise, x, times).x[0]

    zeros = jnp.zeros((len(times) - 1, x.shape[-1]), x.dtype)
    mean, jacobian = end(zeros), jax.jacobian(end)(zeros)
    flat = jacobian.reshape(x.shape[-1], -1)
    return mean, flat @ flat.T
