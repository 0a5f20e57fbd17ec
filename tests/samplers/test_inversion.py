"""Inversion: the same sampler over the reversed grid, data -> noise -> data on the mixture.

A sampler joins by a line in INVERTIBLE.
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
LOG_SNR = (4.0, -4.0)  # of the data end and the noise end

# name -> (sampler of a schedule, order at which the round trip closes, numbers of steps)
INVERTIBLE = {
    "ddim": (diffax.ddim, 1, (160, 320)),
    "ddim-eta": (lambda schedule: diffax.ddim(schedule, eta=0.7), 1, (160, 320)),
    "heun": (samplers.heun, 2, (40, 80)),
    "dpmpp_2m": (samplers.dpmpp_2m, 2, (80, 160)),
    "unipc": (samplers.unipc, 2, (80, 160)),  # from a cold start: 4.0 to the noise, 2.8 there and back
}


def span(schedule):
    """(t of the data end, t of the noise end)."""
    return schedule.inverse(jnp.array(LOG_SNR))


def data(schedule):
    """Points at the data end, from each component of the mixture and between them."""
    x0 = jnp.array([[-1.4, 0.3], [1.1, 1.0], [0.4, -1.7], [0.1, 0.2], [-0.8, 0.9]])
    return schedule(span(schedule)[0]).alpha * x0


def trips(make, schedule, steps, back=None):
    """(noise, what is left of data after the way there and back) for each number of steps; `back` may be another."""
    denoise = mixture().denoiser(schedule)

    @jax.jit
    def run(x):
        t_min, t_max = span(schedule)
        ends = []
        for n in steps:
            times = diffax.times.uniform_log_snr(schedule, n + 1, t_max=t_max, t_min=t_min)
            up = diffax.integrate(KEY, make(schedule), denoise, x, times[::-1]).x
            down = diffax.integrate(KEY, (back or diffax.ddim)(schedule), denoise, up, times).x
            ends.append((up, down))
        return ends

    return run(data(schedule))


def check(name, schedule):
    make, order, steps = INVERTIBLE[name]
    deterministic = diffax.ddim if name == "ddim-eta" else make  # eta adds noise on the way down alone
    x = data(schedule)
    exact = analytic.flow(schedule, mixture().denoiser(schedule), x, *span(schedule), num_steps=500)
    noise_errors, errors = [], []
    for up, down in trips(make, schedule, steps, deterministic):
        noise_errors.append(float(jnp.abs(up - exact).max()))
        errors.append(float(jnp.abs(down - x).max()))
    measured = [float(np.log2((e[-2] + 1e-15) / (e[-1] + 1e-15))) for e in (noise_errors, errors)]
    print(f"{name}: noise off by {noise_errors}, data by {errors}, orders {measured[0]:.2f}, {measured[1]:.2f}")
    assert measured[0] > order - 0.25, noise_errors
    assert measured[1] > order - 0.25, errors
    assert errors[-1] < 0.2


@pytest.mark.slow_cases(but=["log_linear-heun", "log_linear-dpmpp_2m"])
@pytest.mark.parametrize("name", INVERTIBLE)
@pytest.mark.parametrize("schedule", ["linear", "log_linear"])
def test_the_round_trip_closes_with_the_order_of_the_sampler(name, schedule):
    """The noise approaches the exact flow's, and the way back returns to the data."""
    check(name, SCHEDULES[schedule])


@pytest.mark.newest
def test_inverted_data_is_where_the_flow_came_from():
    """Sampling and inverting agree on which noise is whose: the exact pairs, not only points that return."""
    schedule = diffax.Linear()
    (up, _), *_ = trips(diffax.ddim, schedule, (160,))
    found = analytic.flow(schedule, mixture().denoiser(schedule), up, *span(schedule)[::-1], num_steps=500)
    assert float(jnp.abs(found - data(schedule)).max()) < 0.1


@pytest.mark.slow
def test_the_exam_fails_a_broken_inversion(monkeypatch):
    """One that stays where it is returns, too, but not from the noise; one with noise, or a wrong x0, does not."""

    def idle(schedule):
        return diffax.ddim(schedule)._replace(step=lambda key, denoise, state, t, s: state)

    def too_large(schedule):
        right = diffax.ddim(schedule)
        return right._replace(
            step=lambda key, denoise, *rest: right.step(key, lambda x, t: 1.02 * denoise(x, t), *rest)
        )

    for make in (idle, diffax.ddpm, too_large):
        monkeypatch.setitem(INVERTIBLE, "broken", (make, 1, (40, 80)))
        with pytest.raises(AssertionError):
            check("broken", diffax.Linear())
