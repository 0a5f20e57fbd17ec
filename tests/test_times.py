"""Step grids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exam import SCHEDULES

import diffax
from diffax import times

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.newest]


def steps_of(grid):
    return np.round(np.asarray(grid) * 1000 - 1).astype(int).tolist()


def test_discrete_grids_are_those_of_the_diffusers_library():
    """The timesteps are diffusers' own for T = 1000 and 10 steps (tests/schedulers and diffusers 0.42.1)."""
    assert steps_of(times.leading(1000, 10)) == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
    assert steps_of(times.leading(1000, 5, offset=1)) == [801, 601, 401, 201, 1]
    assert steps_of(times.trailing(1000, 10)) == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    assert steps_of(times.linspace(1000, 5)) == [999, 749, 500, 250, 0]


def test_uniform():
    np.testing.assert_allclose(times.uniform(5, t_min=0.0), [1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(times.uniform(3, t_max=0.9, t_min=0.1), [0.9, 0.5, 0.1])
    assert times.uniform(50)[-1] == 1e-3
    assert times.uniform(1).shape == (1,)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_uniform_log_snr(schedule):
    grid = times.uniform_log_snr(schedule, 12, t_max=0.97, t_min=0.03)
    gaps = np.diff(schedule.log_snr(grid))
    np.testing.assert_allclose(gaps, gaps[0], rtol=1e-9)
    assert (grid[0], grid[-1]) == (0.97, 0.03)
    assert times.uniform_log_snr(schedule, 1, t_max=0.97).tolist() == [0.97]


@pytest.mark.parametrize(
    "grid",
    [
        lambda n: times.leading(1000, n),
        lambda n: times.trailing(1000, n),
        lambda n: times.linspace(1000, n),
        times.uniform,
    ],
)
def test_every_grid_has_n_entries_and_falls(grid):
    for n in (1, 2, 7, 1000):
        values = np.asarray(grid(n))
        assert values.shape == (n,)
        assert (np.diff(values) < 0).all()
        assert values.min() > 0
        assert values.max() <= 1


def test_ends_may_be_traced():
    grids = jax.vmap(lambda t_min: times.uniform_log_snr(diffax.Linear(), 4, t_min=t_min))(jnp.array([0.01, 0.1]))
    assert grids[:, -1].tolist() == [0.01, 0.1]
    slope = jax.grad(lambda t_min: times.uniform(3, t_min=t_min)[1])(0.1)
    assert slope == 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: times.uniform(0), "n must be an int >= 1, got 0"),
        (lambda: times.uniform(3, t_max=1.5), r"t_max must be in \[0, 1\], got 1.5"),
        (lambda: times.leading(10, 11), "n must be at most num_train_steps = 10, got 11"),
        (lambda: times.leading(10, 10, offset=1), r"offset must keep timesteps in \[0, 9\], got 1"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def run(grid):
    schedule = diffax.Cosine()
    return diffax.sample(jax.random.key(0), diffax.ddim(schedule), lambda x, t: x, jnp.ones((2, 1)), grid)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (np.array([1.0, 0.5, 0.7]), r"times must be monotone, got \[1.  0.5 0.7\]"),
        (np.array([1.2, 0.5]), r"times must lie in \[0, 1\], got 1.2"),
        (np.array([1.0, -0.1]), r"times must lie in \[0, 1\], got -0.1"),
        (np.array([1.0, np.nan]), r"times must lie in \[0, 1\], got nan"),
        (np.zeros(0), r"times must have shape \(n, ...\) with n >= 1, got \(0,\)"),
    ],
)
def test_a_concrete_grid_is_checked(grid, message):
    with pytest.raises(ValueError, match=message):
        run(grid)


def test_good_grids_pass():
    run(np.array([1.0]))
    run(np.array([0.3, 0.3, 0.6]))
    jax.jit(run)(np.array([0.9, 0.5, 0.7]))  # traced: the caller's business


def test_wrong_types():
    """A ValueError, or the type checker's TypeError where annotations are checked."""
    for wrong in (lambda: times.uniform(2.5), lambda: run(np.float64(0.3))):
        with pytest.raises((ValueError, TypeError)):
            wrong()
