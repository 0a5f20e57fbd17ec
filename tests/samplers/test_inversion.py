"""Inversion: the same sampler on the reversed grid, data -> noise -> data on the mixture.

To test another sampler, add a row to INVERTIBLE.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exam import SCHEDULES, mixture

import diffax
from diffax import analytic, samplers

pytestmark = pytest.mark.usefixtures("x64")

KEY = jax.random.key(0)
LOG_SNR = (4.0, -4.0)  # at the data end and at the noise end

# name -> (function schedule -> sampler, order of the error of the round trip, numbers of steps)
INVERTIBLE = {
    "ddim": (diffax.ddim, 1, (160, 320)),
    "ddim-eta": (lambda schedule: diffax.ddim(schedule, eta=0.7), 1, (160, 320)),
    "heun": (samplers.heun, 2, (40, 80)),
    "dpmpp_2m": (samplers.dpmpp_2m, 2, (80, 160)),
    # From a cold start the measured orders are 4.0 to the noise and 2.8 for the round trip.
    "unipc": (samplers.unipc, 2, (80, 160)),
}


def end_times(schedule):
    """(t of the data end, t of the noise end)."""
    return schedule.inverse(jnp.array(LOG_SNR))


def points_at_data_end(schedule):
    """Points at the data end, from each component of the mixture and between them."""
    x0 = jnp.array([[-1.4, 0.3], [1.1, 1.0], [0.4, -1.7], [0.1, 0.2], [-0.8, 0.9]])
    return schedule(end_times(schedule)[0]).alpha * x0


def round_trips(make, schedule, steps, make_back=None):
    """(noise, data after the round trip) for each number of steps. `make_back` is the sampler from noise to data."""
    denoise = mixture().denoiser(schedule)

    @jax.jit
    def run(x):
        t_min, t_max = end_times(schedule)
        ends = []
        for n in steps:
            times = diffax.times.uniform_log_snr(schedule, n + 1, t_max=t_max, t_min=t_min)
            up = diffax.integrate(KEY, make(schedule), denoise, x, times[::-1]).x
            down = diffax.integrate(KEY, (make_back or diffax.ddim)(schedule), denoise, up, times).x
            ends.append((up, down))
        return ends

    return run(points_at_data_end(schedule))


def check_round_trip(name, schedule):
    make, order, steps = INVERTIBLE[name]
    deterministic = diffax.ddim if name == "ddim-eta" else make  # eta adds noise only from noise to data
    x = points_at_data_end(schedule)
    exact_noise = analytic.flow(schedule, mixture().denoiser(schedule), x, *end_times(schedule), num_steps=500)
    noise_errors, errors = [], []
    for up, down in round_trips(make, schedule, steps, deterministic):
        noise_errors.append(float(jnp.abs(up - exact_noise).max()))
        errors.append(float(jnp.abs(down - x).max()))
    measured = [float(np.log2((e[-2] + 1e-15) / (e[-1] + 1e-15))) for e in (noise_errors, errors)]
    print(
        f"{name}: errors of the noise {noise_errors}, of the data {errors}, orders {measured[0]:.2f}, {measured[1]:.2f}"
    )
    assert measured[0] > order - 0.25, noise_errors
    assert measured[1] > order - 0.25, errors
    assert errors[-1] < 0.2


@pytest.mark.slow_cases(but=["log_linear-heun", "log_linear-dpmpp_2m"])
@pytest.mark.parametrize("name", INVERTIBLE)
@pytest.mark.parametrize("schedule", ["linear", "log_linear"])
def test_the_round_trip_converges_at_the_order_of_the_sampler(name, schedule):
    """The noise converges to that of the exact flow, and the round trip converges to the data."""
    check_round_trip(name, SCHEDULES[schedule])


@pytest.mark.newest
def test_the_exact_flow_takes_the_inverted_noise_back_to_the_data():
    """Inversion finds the noise that the exact flow maps to the data; a round trip alone would not show this."""
    schedule = diffax.Linear()
    (up, _), *_ = round_trips(diffax.ddim, schedule, (160,))
    result = analytic.flow(schedule, mixture().denoiser(schedule), up, *end_times(schedule)[::-1], num_steps=500)
    assert float(jnp.abs(result - points_at_data_end(schedule)).max()) < 0.1


@pytest.mark.slow
def test_the_check_rejects_a_broken_inversion(monkeypatch):
    """Negative controls: a sampler that never moves closes the round trip, but its noise is wrong.

    A stochastic sampler and one with a wrong x0 do not close the round trip.
    """

    def idle(schedule):
        return diffax.ddim(schedule)._replace(step=lambda key, denoise, state, t, s: state)

    def with_too_large_x0(schedule):
        original = diffax.ddim(schedule)
        return original._replace(
            step=lambda key, denoise, *rest: original.step(key, lambda x, t: 1.02 * denoise(x, t), *rest)
        )

    for make in (idle, diffax.ddpm, with_too_large_x0):
        monkeypatch.setitem(INVERTIBLE, "broken", (make, 1, (40, 80)))
        with pytest.raises(AssertionError):
            check_round_trip("broken", diffax.Linear())
