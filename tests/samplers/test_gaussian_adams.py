"""Samplers that use the moments or the noise floor of the data: order, exactness, and errors at every budget."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exam import SCHEDULES, START, check_order, mixture, problem

import diffax
from diffax import analytic, samplers
from diffax.samplers._gaussian_adams import gaussian_adams
from diffax.samplers.engines.forms import trig
from diffax.samplers.wrappers._noise_floor import noise_floor
from diffax.schedules._noise_floor import NoiseFloor
from diffax.times import arctan
from experiments.benchmarks import best

pytestmark = [pytest.mark.usefixtures("x64")]

KEY = jax.random.key(0)
MEAN, STD = np.array([0.7, -0.4]), 0.3
LINEAR = SCHEDULES["linear"]
SOME_SCHEDULES = {name: SCHEDULES[name] for name in ("linear", "flow", "edm")}
FLOORED = {"ddim": samplers.ddim, "unipc": functools.partial(samplers.unipc, order=2, form="x0")}


def oracle_of_data():
    return analytic.Gaussian.from_covariance(MEAN, STD**2)


@functools.cache
def problem_of(schedule):
    return problem(SCHEDULES[schedule])


# Order


@pytest.mark.slow_cases(but=["4"])
@pytest.mark.parametrize("order", [2, 3, 4])
def test_the_measured_order_is_the_claimed_one(order):
    sampler = gaussian_adams(LINEAR, mean=0.0, std=1.0, order=order)
    assert sampler.order == order + 1
    check_order(sampler, problem_of("linear"))


def test_the_measured_order_on_the_flow_schedule_is_the_claimed_one():
    check_order(gaussian_adams(SCHEDULES["flow"], std=1.3), problem_of("flow"))


@pytest.mark.parametrize("name", FLOORED)
def test_a_noise_floor_does_not_change_the_order(name):
    check_order(noise_floor(FLOORED[name], LINEAR, 0.2), problem_of("linear"))


def test_the_check_of_the_order_rejects_a_floor_without_centres(monkeypatch):
    monkeypatch.setattr("diffax.samplers.wrappers._noise_floor.centres", lambda denoise, schedule, std: denoise)
    with pytest.raises(AssertionError, match="claims order"):
        check_order(noise_floor(samplers.ddim, LINEAR, 0.2), problem_of("linear"))


# Exactness


def check_exact(runs, schedule):
    """For each (sampler, times, start of x) one step equals the exact flow. All runs share one compilation."""
    oracle, x = oracle_of_data(), jnp.asarray(START)
    denoise = oracle.denoiser(schedule)

    @jax.jit
    def ends():
        states = [(sampler.init(x, jnp.array(times)), times, sampler.step) for sampler, times, _ in runs]
        return [step(KEY, denoise, state, *map(jnp.asarray, times)).x for state, times, step in states]

    for (_, times, start), end in zip(runs, ends(), strict=True):
        exact = oracle.flow(x, schedule(start), schedule(times[-1]))
        np.testing.assert_allclose(end, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.slow_cases("linear")
@pytest.mark.newest
@pytest.mark.parametrize("schedule", SOME_SCHEDULES.values(), ids=SOME_SCHEDULES)
def test_one_step_is_exact_for_gaussian_data(schedule):
    make = functools.partial(gaussian_adams, schedule, mean=MEAN, std=STD)
    runs = [
        (make(), (0.9, 0.0), 0.9),
        (make(), (0.1, 0.8), 0.1),
        (make(end="smooth"), (0.9, 0.0), 0.9),
        (make(start=1.0), (0.6, 0.2), 1.0),
    ]
    check_exact(runs, schedule)


@pytest.mark.newest
@pytest.mark.parametrize("schedule", SOME_SCHEDULES.values(), ids=SOME_SCHEDULES)
def test_one_step_with_the_exact_noise_floor_is_exact_for_gaussian_data(schedule):
    makes = (samplers.ddim, FLOORED["unipc"], samplers.dpmpp_2m)
    check_exact([(noise_floor(make, schedule, STD), (0.9, 0.0), 0.9) for make in makes], schedule)


@pytest.mark.parametrize(
    "wrong",
    [
        gaussian_adams(LINEAR, mean=MEAN, std=0.4),
        gaussian_adams(LINEAR, mean=0.0, std=STD),
        noise_floor(samplers.ddim, LINEAR, 0.2),
    ],
    ids=["std", "mean", "floor"],
)
def test_the_check_of_exactness_rejects_wrong_moments(wrong):
    with pytest.raises(AssertionError, match="Not equal"):
        check_exact([(wrong, (0.9, 0.0), 0.9)], LINEAR)


def test_centres_are_the_posterior_mean_of_the_component_means():
    """E[y | x_t] as the sum of responsibilities times component means."""
    oracle, schedule, x, t = mixture(), LINEAR, jnp.asarray(START), 0.3
    level = schedule(t)
    c = level.alpha**2 * oracle.std**2 + level.sigma**2
    logits = jnp.log(oracle.weights) - 0.5 * jnp.sum((x[:, None] - level.alpha * oracle.means) ** 2, -1) / c
    result = diffax.denoisers.centres(oracle.denoiser(schedule), schedule, oracle.std)(x, t)
    np.testing.assert_allclose(result, jax.nn.softmax(logits, -1) @ oracle.means, rtol=1e-10)


def test_the_schedule_of_a_noise_floor_is_that_of_the_centres():
    floored, t = NoiseFloor(LINEAR, STD), jnp.linspace(0.05, 1.0, 7)
    level, base = floored(t), LINEAR(t)
    np.testing.assert_allclose(level.sigma**2, base.sigma**2 + base.alpha**2 * STD**2, rtol=1e-12)
    np.testing.assert_allclose(level.log_snr, jnp.log(level.alpha**2 / level.sigma**2), rtol=1e-10)
    np.testing.assert_allclose(floored.inverse(floored.log_snr(t)), t, rtol=1e-9)


def test_a_noise_floor_of_zero_is_the_bare_sampler():
    oracle, times = mixture(), diffax.times.uniform(LINEAR, 8, t_max=1.0, t_min=0.01)
    run = lambda sampler: diffax.integrate(KEY, sampler, oracle.denoiser(LINEAR), jnp.asarray(START), times).x
    np.testing.assert_allclose(run(noise_floor(samplers.unipc, LINEAR, 0.0)), run(samplers.unipc(LINEAR)), rtol=1e-9)


def test_the_smooth_end_is_the_interpolation_through_zero():
    """Against two steps by hand: Euler, which the corrector turns into the trapezoidal rule, then a step to f = 0."""
    oracle, x = mixture(), jnp.asarray(START)
    t, s = 0.4, 0.2
    sampler = gaussian_adams(LINEAR, std=0.9, order=1, end="smooth")
    result = diffax.integrate(KEY, sampler, oracle.denoiser(LINEAR), x, jnp.array([t, s, 0.0])).x

    def parts(time):
        level = LINEAR(time)
        c = np.sqrt(level.alpha**2 * 0.81 + level.sigma**2)
        return level, c, np.arctan(level.sigma / level.alpha / 0.9)

    def slope(z, time):
        level, c, theta = parts(time)
        x0 = oracle.denoise(c * z, level)
        return np.cos(theta) * (c * z - level.alpha * x0) / level.sigma - np.sin(theta) * x0 / 0.9

    (_, c_t, y_t), (_, _, y_s), (_, c_0, y_0) = parts(t), parts(s), parts(0.0)
    z = x / c_t
    f_t = slope(z, t)
    f_s = slope(z + (y_s - y_t) * f_t, s)
    z = z + (y_s - y_t) * (f_t + f_s) / 2 + (y_0 - y_s) * f_s / 2
    np.testing.assert_allclose(result, c_0 * z, rtol=1e-9)


# Numerics


@pytest.mark.slow_cases("linear")
@pytest.mark.parametrize("schedule", [LINEAR, SCHEDULES["edm"]], ids=["linear", "edm"])
def test_float32_stays_finite_from_t_1_to_t_0(schedule):
    oracle = analytic.Mixture(*(np.asarray(v, np.float32) for v in (mixture().weights, mixture().means, 0.3)))
    x = jnp.asarray(START, jnp.float32) * schedule(1.0).sigma.astype(jnp.float32)
    for sampler in (
        gaussian_adams(schedule, std=1.1, order=4, end="smooth"),
        noise_floor(functools.partial(gaussian_adams, std=1.0), schedule, 0.3),
    ):
        times = jnp.linspace(1.0, 0.0, 9, dtype=jnp.float32)
        run = lambda times, sampler=sampler: diffax.integrate(KEY, sampler, oracle.denoiser(schedule), x, times).x
        ends = jax.jit(jax.vmap(run))(jnp.stack([times, times[::-1]]))  # from noise to data and from data to noise
        assert ends.dtype == jnp.float32
        assert jnp.isfinite(ends).all()


@pytest.mark.slow
def test_every_parameter_may_be_traced_and_has_the_right_gradient():
    oracle, x = mixture(), LINEAR(1.0).sigma * jnp.asarray(START)

    @jax.jit
    def end(mean, std, floor, scale, power):
        schedule = NoiseFloor(LINEAR, floor)
        times = arctan(schedule, 7, scale=scale, power=power, t_max=1.0, t_min=0.0)[1:]
        make = functools.partial(gaussian_adams, mean=mean, std=std, start=1.0)
        return jnp.sum(
            diffax.integrate(KEY, noise_floor(make, LINEAR, floor), oracle.denoiser(LINEAR), x, times).x ** 2
        )

    values = (0.1, 1.0, 0.25, 0.7, 1.25)
    for slope, i in zip(jax.grad(end, range(5))(*values), range(5), strict=True):
        above = [v + 1e-6 * (i == j) for j, v in enumerate(values)]
        below = [v - 1e-6 * (i == j) for j, v in enumerate(values)]
        np.testing.assert_allclose(slope, (end(*above) - end(*below)) / 2e-6, rtol=1e-4, atol=1e-6)


def test_trees_are_accepted_and_zero_length_steps_change_nothing():
    oracle, x, times = mixture(), jnp.asarray(START), jnp.array([0.8, 0.5, 0.5, 0.2, 0.0, 0.0])
    denoise = oracle.denoiser(LINEAR)
    make = lambda mean: gaussian_adams(LINEAR, mean=mean, end="smooth")
    expected = diffax.integrate(KEY, make(MEAN), denoise, x, times[jnp.array([0, 1, 3, 4])]).x
    np.testing.assert_allclose(diffax.integrate(KEY, make(MEAN), denoise, x, times).x, expected, rtol=1e-10)
    denoise_tree = lambda tree, t: {"a": denoise(tree["a"], t)}
    tree = diffax.integrate(KEY, make({"a": MEAN}), denoise_tree, {"a": x}, times).x
    np.testing.assert_allclose(tree["a"], expected, rtol=1e-10)


@pytest.mark.parametrize("n", [5, 6])
def test_each_example_may_have_its_own_moments(n):
    """Also if there are as many times as examples, so that a confusion of the two axes would not raise."""
    x, times, denoise = jnp.asarray(START), jnp.linspace(0.8, 0.1, n), mixture().denoiser(LINEAR)
    stds, means = jnp.linspace(0.3, 1.5, len(x)), jnp.linspace(-1.0, 1.0, x.size).reshape(x.shape)
    with_moments = lambda mean, std: gaussian_adams(LINEAR, mean=mean, std=std, order=2)
    with_lower_order_final = lambda _, std: samplers.exponential_adams(
        LINEAR, form=trig(std), order=2, lower_order_final=True
    )
    for make in (with_moments, with_lower_order_final):
        run = jax.jit(lambda mean, std, x: diffax.integrate(KEY, make(mean, std), denoise, x, times).x)  # noqa: B023
        each = [run(means[i], stds[i], x[i : i + 1])[0] for i in range(len(x))]
        np.testing.assert_allclose(run(means, stds, x), each, rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gaussian_adams(LINEAR, order=5), "order must be an int in 1 .. 4, got 5"),
        (lambda: gaussian_adams(LINEAR, std=0.0), "std must be > 0, got 0.0"),
        (lambda: gaussian_adams(LINEAR, end="sharp"), "end must be one of open, smooth, got 'sharp'"),
        (lambda: gaussian_adams(LINEAR, start=1.5), r"start must be in \[0, 1\], got 1.5"),
        (
            lambda: gaussian_adams(LINEAR, mean=np.ones(5)).init(jnp.ones((1, 2)), jnp.array([0.9, 0.1])),
            r"mean must broadcast to x, \(1, 2\), got \(5,\)",
        ),
        (lambda: noise_floor(samplers.ddim, LINEAR, -0.1), "std must be >= 0, got -0.1"),
        (lambda: arctan(LINEAR, 0), "n must be an int >= 1, got 0"),
        (lambda: arctan(LINEAR, 5, power=0.0), "power must be > 0, got 0.0"),
        (lambda: arctan(LINEAR, 5, t_min=-0.1), r"t_min must be in \[0, 1\], got -0.1"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_arctan_grid_is_uniform_in_the_angle():
    times = arctan(LINEAR, 6, scale=0.5, power=1.5, t_max=1.0, t_min=0.0)
    ratio = jnp.exp(-LINEAR.log_snr(times) / 2) / 0.5
    gaps = jnp.diff(jnp.arctan(ratio ** (1 / 1.5)))
    np.testing.assert_allclose(gaps, gaps[0], rtol=1e-8)
    np.testing.assert_array_equal(times[jnp.array([0, -1])], [1.0, 0.0])


# Best at every budget


@pytest.mark.slow
def test_the_best_sampler_beats_the_published_best_at_every_budget():
    """Root mean square error over the starts, on two mixtures; `python -m experiments.benchmarks.best` runs more."""
    mixtures = itertools.islice(best.mixtures(2024), 2)
    problems = best.problems(mixtures, starts=32, fine=400)
    published = best.best_published(problems, small=True, t_min=(1e-3, 6e-3, 1e-2, 2e-2))
    names = ("gaussian2-smooth", "gaussian4-smooth", "floor gaussian2")
    settings = [setting for setting in best.OURS if setting.name in names]
    best_of_diffax, _ = best.best_ours(problems, ours=settings)
    print("calls, mixture: published, diffax (rms, max), ratio")
    for n in best.BUDGETS:
        (published_error, published_name), (error, name) = published[n], best_of_diffax[n]
        for i in range(2):
            print(
                n,
                i,
                f"{published_name[i]}: {published_error[i]}; {name[i]}: {error[i]}; {error[i] / published_error[i]}",
            )
        assert (error / published_error)[:, 0].max() <= 0.8, f"{n} calls: {error / published_error}"
