"""Distance of each method for inverse problems from the exact posterior, as Markdown tables.

    python -m experiments.benchmarks.inverse
    python -m experiments.benchmarks.inverse --num_steps=100 --num_samples=2000      # quicker, rougher

Priors, measurements and posteriors are known in closed form. On a Gaussian prior a method whose step is affine in x and
its noise has a mean and a covariance that follow from Jacobians, without sampling: all methods but DPS. On a mixture,
and for DPS, they are estimated from samples; the first row gives the error of equally many independent draws of the
posterior. The second row is the sampler of the methods with the exact denoiser of the posterior: its error is due to
the step size alone.

    mean     |m - m*| / sqrt(tr C*)
    cov      |C - C*|_F / |C*|_F
    spread   tr C / tr C*                    below 1: overconfident; above 1: underconfident

Hyperparameters in brackets are the best of a sweep by mean^2 + cov^2, compiled once for each method.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import diffax
from diffax import analytic, inverse

SCHEDULE = diffax.Cosine()
MEAN = np.array([0.7, -0.4, 0.2, -0.1])
COVARIANCE = np.array([[0.5, 0.3, 0.1, 0.0], [0.3, 0.4, 0.0, 0.1], [0.1, 0.0, 0.3, -0.1], [0.0, 0.1, -0.1, 0.2]])
CENTRES = np.array([[-1.5, 0.5, 0.8, 0.0], [1.0, 1.2, -0.6, 0.5], [0.3, -1.4, 0.2, -0.8]])
MATRIX = np.array([[1.0, 0.5, -0.3, 0.2], [0.0, -0.7, 0.4, 1.1]])


class Problem(NamedTuple):
    """A prior, and y = A x0 + std n."""

    name: str
    prior: Any
    operator: Any
    y: Any
    std: float


def problems() -> list[Problem]:
    """The problems; arrays are float64, so call this under `jax.enable_x64`."""
    gaussian = analytic.Gaussian.from_covariance(MEAN, COVARIANCE)
    mixture = analytic.Mixture(np.array([0.2, 0.5, 0.3]), CENTRES, 0.3)
    mask = inverse.Mask(np.array([1, 0, 1, 0]))
    matrix = inverse.linear(
        lambda x: jnp.matmul(jnp.asarray(MATRIX), x, precision="highest"), jnp.zeros(4), iterations=4
    )
    hidden, seen = np.array([[1.2, 0.0, -0.3, 0.0]]), np.array([[0.6, 0.3]])
    return [
        Problem("Gaussian N(m, v I), half of x known, std 0.2", _isotropic(), mask, hidden, 0.2),
        Problem("Gaussian with correlations, half of x known, std 0", gaussian, mask, hidden, 0.0),
        Problem("Gaussian with correlations, 2 x 4 matrix, std 0.2", gaussian, matrix, seen, 0.2),
        Problem("Mixture, half of x known, std 0", mixture, mask, hidden, 0.0),
        Problem("Mixture, 2 x 4 matrix, std 0.2", mixture, matrix, seen, 0.2),
    ]


def _isotropic():
    return analytic.Gaussian.from_covariance(MEAN, np.array(0.4))


class Run(NamedTuple):
    """A sampler, the denoiser of its steps, the denoiser at the end, the projection of x0 onto y, and the grid."""

    sampler: Any
    denoise: Any
    last: Any
    after: Callable[[Any], Any] = lambda x0: x0
    grid: Callable[[Any], Any] = lambda times: times


class Method(NamedTuple):
    """build(problem, *hyperparameters) -> Run; where it applies; the sweep; whether steps are affine for a Gaussian."""

    build: Callable[..., Run]
    applies: Callable[[Problem], bool] = lambda problem: True
    sweep: tuple[tuple[float, ...], ...] = ((),)
    affine: bool = True


def _ancestral(denoise):
    return Run(diffax.ddpm(SCHEDULE), denoise, denoise)


def _exact(p):
    return _ancestral(inverse.posterior(p.prior, p.operator, p.y, std=p.std).denoiser(SCHEDULE))


def _replacement(p, wrap=inverse.replacement, grid=lambda times: times):
    denoise = p.prior.denoiser(SCHEDULE)
    sampler = wrap(diffax.ddpm(SCHEDULE), SCHEDULE, p.operator, p.y)
    return Run(sampler, denoise, denoise, lambda x0: inverse.project(p.operator, p.y, x0), grid)


def _repaint(p):
    return _replacement(p, inverse.repaint, lambda times: diffax.times.jumps(times, length=10, repeats=10))


def _dps(p, scale):
    denoise = p.prior.denoiser(SCHEDULE)
    return Run(inverse.dps(diffax.ddpm(SCHEDULE), p.operator, p.y, scale=scale), denoise, denoise)


def _ddnm(p):
    return _ancestral(inverse.ddnm(p.prior.denoiser(SCHEDULE), p.operator, p.y))


def _ddnm_plus(p):
    denoise = p.prior.denoiser(SCHEDULE)
    return Run(inverse.ddnm_plus(SCHEDULE, p.operator, p.y, std=p.std), denoise, denoise)


def _pigdm(p):
    variance = np.trace(inverse.moments(p.prior)[1]) / len(MEAN)
    denoise = p.prior.denoiser(SCHEDULE)
    return _ancestral(inverse.pigdm(denoise, SCHEDULE, p.operator, p.y, std=p.std, data_variance=variance))


def _mmps(p):
    return _ancestral(inverse.mmps(p.prior.denoiser(SCHEDULE), SCHEDULE, p.operator, p.y, std=p.std, iterations=4))


def _diffpir(p, weight, zeta):
    denoise = inverse.diffpir(p.prior.denoiser(SCHEDULE), SCHEDULE, p.operator, p.y, std=p.std, weight=weight)
    return Run(inverse.renoising(SCHEDULE, zeta=zeta), denoise, denoise)


def _diffpir_ddim(p, weight, eta):
    denoise = inverse.diffpir(p.prior.denoiser(SCHEDULE), SCHEDULE, p.operator, p.y, std=p.std, weight=weight)
    return Run(diffax.ddim(SCHEDULE, eta=eta), denoise, denoise)


def _masked(p):
    return isinstance(p.operator, inverse.Mask)


def _clean(p):
    return p.std == 0


SCALES = tuple((scale,) for scale in (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8))
WEIGHTS = (0.3, 1.0, 3.0, 10.0)

METHODS = {
    "exact denoiser": Method(_exact),
    "replacement": Method(_replacement, lambda p: _masked(p) and _clean(p)),
    "repaint": Method(_repaint, lambda p: _masked(p) and _clean(p)),
    "dps": Method(_dps, sweep=SCALES, affine=False),
    "ddnm": Method(_ddnm, _clean),
    "ddnm_plus": Method(_ddnm_plus, _masked),
    "pigdm": Method(_pigdm),
    "mmps": Method(_mmps),
    "diffpir": Method(_diffpir, sweep=tuple((w, zeta) for w in WEIGHTS for zeta in (0.0, 0.1, 0.5))),
    "diffpir, ddim": Method(_diffpir_ddim, sweep=tuple((w, eta) for w in WEIGHTS for eta in (0.0, 0.5, 1.0))),
}


def end(run: Run, key: Any, x: Any, times: Any) -> Any:
    """x0 of a run from x."""
    grid = run.grid(times)
    state = diffax.integrate(key, run.sampler, run.denoise, x, grid)
    return run.after(run.last(state.x, grid[-1]))


def affine_law(build: Callable[..., Run], times: Any, hyper: tuple[Any, ...] = ()) -> tuple[Any, Any]:
    """Mean and covariance of the result of a run that is affine in its start and in its noise, by Jacobians.

    The noise of step k becomes row k of a table, one table for each constant that a wrapper folds into the step's key.
    """
    run = build(*hyper)
    grid, dimension = run.grid(times), len(MEAN)
    streams: dict[Any, int] = {}

    def fold_in(key, data):
        return (*key, data) if isinstance(key, tuple) else (data,)

    def end_of(tables):
        def noise(key, like):
            index, *stream = key
            rows = tables[streams.setdefault(tuple(stream), len(streams))]
            return rows[index][None]

        with mock.patch.multiple(diffax.random, fold_in=fold_in, noise=noise):
            start = SCHEDULE(grid[0]).sigma * tables[-1][:1]
            return end(run, jax.random.key(0), start, times)[0]

    zeros = jnp.zeros((3, len(grid), dimension), jnp.result_type(float))
    mean, jacobian = end_of(zeros), jax.jacrev(end_of)(zeros).reshape(dimension, -1)
    return mean, jnp.matmul(jacobian, jacobian.T, precision="highest")


def sampled_law(build: Callable[..., Run], times: Any, hyper: Any, num_samples: int) -> tuple[Any, Any]:
    """Mean and covariance of `num_samples` results."""
    start, steps = jax.random.split(jax.random.key(0))
    x = diffax.initial_noise(start, SCHEDULE, (num_samples, len(MEAN)), times[0])
    x0 = end(build(*hyper), steps, x.astype(jnp.result_type(float)), times)
    return x0.mean(0), jnp.cov(x0.T)


def errors(mean: Any, covariance: Any, law: Any) -> np.ndarray:
    """(mean, cov, spread), see the module."""
    m, c = inverse.moments(law)
    off = np.linalg.norm(mean - m) / np.sqrt(np.trace(c))
    return np.array([off, np.linalg.norm(covariance - c) / np.linalg.norm(c), np.trace(covariance) / np.trace(c)])


def measure(problem: Problem, method: Method, num_steps: int, num_samples: int) -> tuple[tuple[float, ...], Any, bool]:
    """(best hyperparameters, its errors, whether they are exact)."""
    times = diffax.times.uniform(SCHEDULE, num_steps, t_max=1.0, t_min=1e-3).astype(jnp.result_type(float))
    exact = method.affine and isinstance(problem.prior, analytic.Gaussian)
    build = functools.partial(method.build, problem)
    moments_of = affine_law if exact else functools.partial(sampled_law, num_samples=num_samples)
    sweep = jnp.asarray(method.sweep, jnp.result_type(float))
    means, covariances = jax.jit(jax.vmap(lambda hyper: moments_of(build, times, tuple(hyper))))(sweep)
    posterior = inverse.posterior(problem.prior, problem.operator, problem.y, std=problem.std)
    candidates = [errors(mean, covariance, posterior) for mean, covariance in zip(means, covariances, strict=True)]
    best = int(np.nanargmin([row[0] ** 2 + row[1] ** 2 for row in candidates]))
    return method.sweep[best], candidates[best], exact


def main():
    """Print a table for each problem."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_steps", type=int, default=400, help="grid entries, before RePaint's jumps")
    parser.add_argument("--num_samples", type=int, default=20000, help="samples where the distribution is estimated")
    args = parser.parse_args()
    with jax.enable_x64(True):
        for problem in problems():
            print(f"\n{problem.name}\n\n| method | mean | cov | spread |\n|---|---|---|---|")
            posterior = inverse.posterior(problem.prior, problem.operator, problem.y, std=problem.std)
            draws = posterior.sample(jax.random.key(1), args.num_samples)
            rows = [(f"{args.num_samples} draws of the posterior", errors(draws.mean(0), np.cov(draws.T), posterior))]
            for name, method in METHODS.items():
                if method.applies(problem):
                    hyper, row, exact = measure(problem, method, args.num_steps, args.num_samples)
                    label = f"{name} {list(hyper)}" if hyper else name
                    rows.append((label + ("" if exact else ", sampled"), row))
            for label, (mean, cov, spread) in rows:
                print(f"| {label} | {mean:.4f} | {cov:.4f} | {spread:.3f} |", flush=True)


if __name__ == "__main__":
    main()
