"""Learned step grids, evaluated on starts that were not used for learning."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exam import gaussian, mixture

import diffax
from diffax import analytic, times

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(0)
SCHEDULE = diffax.Linear()
CALLS = 8
LAST = (1e-3, 3e-3, 0.01, 0.03, 0.06, 0.1)  # the last times that the other grids may have


@functools.cache
def exact(seed, size):
    """(starts at t = 1, their ends at t = 0 by the probability flow)."""
    denoise = mixture().denoiser(SCHEDULE)
    x = diffax.random.noise(jax.random.key(seed), jnp.zeros((size, 2)))
    return x, jax.jit(lambda x: analytic.flow(SCHEDULE, denoise, x, 1.0, 0.0, num_steps=400))(x)


@functools.cache
def learner(make):
    def learn(x, target, first, learning_rate):
        denoise = mixture().denoiser(SCHEDULE)
        return diffax.training.learn_grid(
            KEY, make(SCHEDULE), SCHEDULE, denoise, x, first, target=target, learning_rate=learning_rate
        )

    return jax.jit(learn)


@functools.cache
def error_of(make):
    """Root-mean-square error of x0 on starts that were not used for learning."""
    x, target = exact(2, 1024)

    def error(grid):
        end = diffax.sample(KEY, make(SCHEDULE), mixture().denoiser(SCHEDULE), x, grid)
        return jnp.sqrt(jnp.mean(jnp.sum((end - target) ** 2, -1)))

    return jax.jit(error)


def best_of(make, grid):
    """The least error of a grid over its last times."""
    return min(float(error_of(make)(grid(last))) for last in LAST)


def check_learned(grid, *, others, ratios):
    """The error of the learned grid is at most `ratios[name]` times the least error of each other grid."""
    learned = float(error_of(diffax.ddim)(grid))
    for name, other in others.items():
        assert learned <= ratios[name] * best_of(diffax.ddim, other), (name, learned)


OTHERS = {
    "karras": lambda last: times.karras(SCHEDULE, CALLS, t_max=1.0, t_min=last),
    "uniform_log_snr": lambda last: times.uniform_log_snr(SCHEDULE, CALLS, t_max=1.0, t_min=last),
    "quadratic": lambda last: times.quadratic(SCHEDULE, CALLS, t_max=1.0, t_min=last),
}
RATIOS = {"karras": 0.6, "uniform_log_snr": 0.75, "quadratic": 0.95}


@pytest.mark.newest
def test_a_learned_grid_beats_karras_and_uniform_log_snr():
    """DDIM with 8 calls on 1,024 new starts; each other grid has the best of six last times."""
    first = times.uniform_log_snr(SCHEDULE, CALLS, t_max=1.0, t_min=0.01)
    grid, errors = learner(diffax.ddim)(*exact(1, 256), first, 0.1)
    times.check_grid(grid)
    assert grid.shape == (CALLS,)
    assert grid[0] == 1
    assert (np.diff(grid) < 0).all()
    assert np.isfinite(errors).all()
    check_learned(grid, others=OTHERS, ratios=RATIOS)
    # Another first grid leads to the same learned grid, so it is the minimum. The function is not compiled again.
    again = learner(diffax.ddim)(*exact(1, 256), times.karras(SCHEDULE, CALLS, t_max=1.0, t_min=1e-3), 0.1)
    np.testing.assert_allclose(again.times, grid, atol=2e-3)
    assert learner(diffax.ddim)._cache_size() == 1
    # Negative control: the first grid fails the check.
    with pytest.raises(AssertionError):
        check_learned(first, others=OTHERS, ratios=RATIOS)


@pytest.mark.slow
def test_a_grid_is_learned_for_a_multistep_sampler():
    """It beats the other grids; a huge learning rate neither breaks the grid nor makes it worse."""
    first = times.quadratic(SCHEDULE, CALLS, t_max=1.0, t_min=0.03)
    x, target = exact(1, 256)
    learned = learner(diffax.samplers.dpmpp_2m)(x, target, first, 0.1)
    assert error_of(diffax.samplers.dpmpp_2m)(learned.times) < 0.85 * best_of(
        diffax.samplers.dpmpp_2m, OTHERS["quadratic"]
    )
    assert error_of(diffax.samplers.dpmpp_2m)(learned.times) < 0.7 * best_of(
        diffax.samplers.dpmpp_2m, OTHERS["uniform_log_snr"]
    )
    wild = learner(diffax.samplers.dpmpp_2m)(x, target, first, 30.0)
    assert (np.diff(wild.times) < 0).all()
    gaps = np.diff(SCHEDULE.log_snr(wild.times))
    assert gaps.min() >= 0.049 * gaps.mean()
    assert error_of(diffax.samplers.dpmpp_2m)(wild.times) < 1.05 * error_of(diffax.samplers.dpmpp_2m)(first)


@pytest.mark.slow
def test_the_ends_stay_fixed_without_learn_end():
    """With ending="integrate" and the target that `learn_grid` computes itself."""
    data, schedule = gaussian(), diffax.Cosine()
    denoise = data.denoiser(schedule)
    x = 0.99 * np.random.default_rng(0).normal(size=(32, 2))
    first = times.uniform(schedule, 5, t_max=0.95, t_min=0.05)

    def run(first, floor):
        sampler = diffax.ddim(schedule)
        grid, errors = diffax.training.learn_grid(
            KEY, sampler, schedule, denoise, x, first, ending="integrate", learn_end=False, num_steps=60, floor=floor
        )
        return grid, errors, diffax.integrate(KEY, sampler, denoise, x, grid).x

    grid, errors, end = jax.jit(run)(first, 0.05)
    assert (grid[0], grid[-1]) == (first[0], first[-1])
    expected = data.flow(x, schedule(0.95), schedule(0.05))
    error = np.sqrt(np.mean((end - expected) ** 2))
    np.testing.assert_allclose(error, errors.min(), rtol=1e-3)
    assert error < 0.95 * errors[0]
    # With one free time between fixed ends, the learned grid is as good as that of a fine search.
    pair = jax.jit(run)(first[jnp.array([0, 2, 4])], 0.01)
    places = jnp.linspace(0.06, 0.94, 353)
    ends = jax.jit(
        jax.vmap(lambda t: diffax.integrate(KEY, diffax.ddim(schedule), denoise, x, first[::2].at[1].set(t)).x)
    )
    best = np.sqrt(np.mean((ends(places) - expected) ** 2, (1, 2))).min()
    np.testing.assert_allclose(np.sqrt(np.mean((pair[2] - expected) ** 2)), best, rtol=1e-3)


@pytest.mark.newest
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ending": "denoise"}, "ending must be one of sample, integrate, got 'denoise'"),
        ({"ending": "integrate"}, "learn_end must be False for ending='integrate' without a target, got True"),
        ({"times": np.array([1.0, 0.1])}, r"times must have shape \(n,\) with n >= 3, got \(2,\)"),
        ({"times": np.array([0.1, 0.5, 1.0])}, r"times must be falling, got \[0.1, 0.5, 1.0\]"),
        ({"num_steps": 0}, "num_steps must be an int >= 1, got 0"),
        ({"target": jnp.ones((7, 2))}, r"target must have the shape of x, .* got \(7, 2\)"),
        ({"floor": 1.0}, r"floor must be in \(0, 1\), got 1.0"),
    ],
)
def test_bad_input_is_refused(settings, message):
    arguments = {"times": np.array([1.0, 0.5, 0.1])} | settings
    with pytest.raises(ValueError, match=message):
        diffax.training.learn_grid(
            KEY, diffax.ddim(SCHEDULE), SCHEDULE, lambda x, t: x, jnp.ones((1, 2)), arguments.pop("times"), **arguments
        )
