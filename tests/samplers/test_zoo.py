"""Every ODE and SDE sampler at its defaults on a small trained network, with x0 clipped and guidance.

The grid is the default one, `uniform_log_snr` from sigma / alpha = 80 to 0.02, with as many entries as 10, 20 or 50
denoiser calls allow. The accuracy is the share of samples whose nearest training digit has the requested class. It must
be at least 95 %, and at most 3 % below that of `ddim`.

    PYTHONPATH=. python tests/samplers/test_zoo.py [NAME ...]        # prints the accuracies of all samplers, or of some

Not included: consistency samplers, which need a distilled network; `annealed_langevin`, which needs a hundred steps at
each level; `ddpm_learned`, which needs a learned variance.
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

import diffax
from diffax import pretrained, times

NUM = 300
EXCLUDED = {"consistency", "lcm", "tcd", "annealed_langevin", "ddpm_learned"}
FROM_20 = {"euler_maruyama", "stochastic_heun"}  # too coarse at 10 calls, because they step in t
SAMPLERS = [name for name in diffax.samplers.names() if name not in EXCLUDED]
LIBRARY = {  # samplers whose defaults in the library differ from those of the command line
    "unipc": diffax.unipc,
    "dpm2_ancestral": diffax.dpm2_ancestral,
    "gaussian_adams": diffax.gaussian_adams,
    "pndm, prk": functools.partial(diffax.pndm, start="prk"),
    "heun, time": functools.partial(diffax.heun, space="time"),
}
SCHEDULES = {
    "cosine": diffax.Cosine(),
    "cosine_betas": diffax.from_betas(diffax.schedules.cosine_betas(1000)),
    "zero terminal SNR": diffax.from_betas(diffax.schedules.zero_terminal_snr(diffax.schedules.linear_betas(1000))),
}


@functools.cache
def parameters():
    return zoo.load()


def accuracy(make, grid, schedule, num=NUM):
    """Share of samples whose nearest training digit has the requested class."""
    label = jnp.arange(num) % 10

    @jax.jit
    def draw(params, key, grid):
        start, steps = jax.random.split(key)
        x = diffax.initial_noise(start, schedule, (num, 8, 8, 1), grid[0])
        return diffax.sample(steps, make(schedule), zoo.denoiser(schedule, params, label), x, grid)

    samples = draw(parameters(), jax.random.key(0), grid)
    return np.mean(zoo.classify(samples) == np.asarray(label))


@functools.cache
def accuracy_of_ddim(calls, grid, name):
    return accuracy(diffax.ddim, diffax.times.CATALOGUE[grid].build(SCHEDULES[name], calls), SCHEDULES[name])


def check_accuracy(measured, calls, grid="uniform_log_snr", schedule="cosine"):
    assert measured >= max(0.95, accuracy_of_ddim(calls, grid, schedule) - 0.03)


def accuracy_of_named(name, calls, grid, schedule, num=NUM):
    """Accuracy of a sampler that a config may name."""
    steps = pretrained.step_grid(name, grid, schedule, pretrained.entries(name, schedule, calls))
    return accuracy(lambda schedule: diffax.samplers.by_name(name, schedule, None), steps, schedule, num)


def check_named(name, calls, grid="uniform_log_snr", schedule="cosine"):
    """Assert the accuracy of a sampler that a config may name."""
    check_accuracy(accuracy_of_named(name, calls, grid, SCHEDULES[schedule]), calls, grid, schedule)


def check_library(make, calls, grid=times.uniform_log_snr):
    """Assert the accuracy of a library function, on any grid; that of ddim is on the default grid."""
    schedule = SCHEDULES["cosine"]
    sampler = make(schedule)
    count = 1 + (calls - 1 - sampler.start_calls) // sampler.calls
    check_accuracy(accuracy(make, grid(schedule, count), schedule), calls)


def test_the_nearest_neighbour_classifies_real_digits():
    _, (images, labels) = zoo.digits()
    assert np.mean(zoo.classify(images) == labels) > 0.97


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in FROM_20])
def test_ten_calls_sample_the_right_class(name):
    check_named(name, 10)


@pytest.mark.slow
@pytest.mark.parametrize("calls", [20, 50])
@pytest.mark.parametrize("name", SAMPLERS)
def test_twenty_and_fifty_calls_sample_the_right_class(name, calls):
    check_named(name, calls)


@pytest.mark.parametrize("name", ["unipc"])
def test_ten_calls_with_library_defaults_sample_the_right_class(name):
    check_library(LIBRARY[name], 10)


@pytest.mark.slow
@pytest.mark.parametrize("calls", [20, 50])
@pytest.mark.parametrize("name", LIBRARY)
def test_more_calls_with_library_defaults_sample_the_right_class(name, calls):
    check_library(LIBRARY[name], calls)


TABLES = ["cosine_betas", "zero terminal SNR"]


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("name", ["heun", "pndm"])
def test_ten_calls_from_the_last_level_of_a_table_sample_the_right_class(name, table):
    """sigma / alpha is 20,290 there, or 22,026 where log-SNR is clipped, so the first step must be of order 1."""
    check_named(name, 10, "trailing", table)


@pytest.mark.slow
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("grid", ["trailing", "uniform_log_snr"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_twenty_calls_from_the_last_level_of_a_table_sample_the_right_class(name, grid, table):
    check_named(name, 20, grid, table)


def test_a_second_order_step_from_the_last_level_of_a_table_fails(monkeypatch):
    """Negative control: the schedule does not report that it ends in noise."""
    monkeypatch.setattr(diffax.Tabulated, "ends_in_noise", False)
    with pytest.raises(AssertionError):
        check_named("heun", 20, "trailing", "cosine_betas")


FROM_CLIP = functools.partial(times.uniform, t_max=1.0, t_min=1e-3)


@pytest.mark.parametrize("make", [diffax.heun, diffax.pndm, diffax.unipc])
def test_a_grid_from_the_clipped_log_snr_fails(make):
    """Negative control: from sigma / alpha = 22,026 a second-order step amplifies the error of the first x0."""
    with pytest.raises(AssertionError):
        check_library(make, 20, FROM_CLIP)


if __name__ == "__main__":
    print("| sampler | 10 calls | 20 calls | 50 calls |\n| --- | --- | --- | --- |")
    for name in sys.argv[1:] or SAMPLERS:
        cells = [accuracy_of_named(name, calls, "uniform_log_snr", SCHEDULES["cosine"], 400) for calls in (10, 20, 50)]
        print(f"| `{name}` |", " | ".join(f"{100 * cell:.2f}" for cell in cells), "|", flush=True)
