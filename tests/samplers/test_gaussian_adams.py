"""Samplers that know the data's moments or noise floor: order, exactness, and the best at every budget."""

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
from experiments import best

pytestmark = [pytest.mark.usefixtures("x64")]

KEY = jax.random.key(0)
MEAN, STD = np.array([0.7, -0.4]), 0.3
LINEAR = SCHEDULES["linear"]
SOME = {name: SCHEDULES[name] for name in ("linear", "flow", "edm")}
FLOORED = {"ddim": samplers.ddim, "unipc": functools.partial(samplers.unipc, order=2, form="x0")}


def normal():
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


def test_the_measured_order_on_another_schedule():
    check_order(gaussian_adams(SCHEDULES["flow"], std=1.3), problem_of("flow"))


@pytest.mark.parametrize("name", FLOORED)
def test_a_noise_floor_leaves_the_order_as_it_is(name):
    check_order(noise_floor(FLOORED[name], LINEAR, 0.2), problem_of("linear"))


def test_the_exam_of_order_can_fail(monkeypatch):
    monkeypatch.setattr("diffax.samplers.wrappers._noise_floor.centres", lambda denoise, schedule, std: denoise)
    with pytest.raises(AssertionError, match="claims order"):
        check_order(noise_floor(samplers.ddim, LINEAR, 0.2), problem_of("linear"))


# Exactness


def check_exact(runs, schedule):
    """Each (sampler, times, start of x): one move is the Gaussian's flow. All in one compile."""
    law, x = normal(), jnp.asarray(START)
    denoise = law.denoiser(schedule)

    @jax.jit
    def ends():
        states = [(sampler.init(x, jnp.array(times)), times, sampler.step) for sampler, times, _ in runs]
        return [step(KEY, denoise, state, *map(jnp.asarray, times)).x for state, times, step in states]

    for (_, times, start), end in zip(runs, ends(), strict=True):
        exact = law.flow(x, schedule(start), schedule(times[-1]))
        np.testing.assert_allclose(end, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.slow_cases("linear")
@pytest.mark.newest
@pytest.mark.parametrize("schedule", SOME.values(), ids=SOME)
def test_one_step_is_exact_for_normal_data(schedule):
    make = functools.partial(gaussian_adams, schedule, mean=MEAN, std=STD)
    runs = [
        (make(), (0.9, 0.0), 0.9),
        (make(), (0.1, 0.8), 0.1),
        (make(end="smooth"), (0.9, 0.0), 0.9),
        (make(start=1.0), (0.6, 0.2), 1.0),
    ]
    check_exact(runs, schedule)


@pytest.mark.newest
@pytest.mark.parametrize("schedule", SOME.values(), ids=SOME)
def test_at_the_noise_floor_one_step_is_exact_whatever_the_mean(schedule):
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
def test_the_exam_of_exactness_can_fail(wrong):
    with pytest.raises(AssertionError, match="Not equal"):
        check_exact([(wrong, (0.9, 0.0), 0.9)], LINEAR)


def test_centres_are_the_posterior_means_of_the_mixture_s_points():
    """E[y | x_t] by hand: responsibilities times component means."""
    law, schedule, x, t = mixture(), LINEAR, jnp.asarray(START), 0.3
    level = schedule(t)
    c = level.alpha**2 * law.std**2 + level.sigma**2
    logits = jnp.log(law.weights) - 0.5 * jnp.sum((x[:, None] - level.alpha * law.means) ** 2, -1) / c
    found = diffax.denoisers.centres(law.denoiser(schedule), schedule, law.std)(x, t)
    np.testing.assert_allclose(found, jax.nn.softmax(logits, -1) @ law.means, rtol=1e-10)


def test_the_floor_s_schedule_is_that_of_the_centres():
    floored, t = NoiseFloor(LINEAR, STD), jnp.linspace(0.05, 1.0, 7)
    level, base = floored(t), LINEAR(t)
    np.testing.assert_allclose(level.sigma**2, base.sigma**2 + base.alpha**2 * STD**2, rtol=1e-12)
    np.testing.assert_allclose(level.log_snr, jnp.log(level.alpha**2 / level.sigma**2), rtol=1e-10)
    np.testing.assert_allclose(floored.inverse(floored.log_snr(t)), t, rtol=1e-9)


def test_no_floor_is_the_sampler_as_it_was():
    law, times = mixture(), diffax.times.uniform(LINEAR, 8, t_max=1.0, t_min=0.01)
    run = lambda sampler: diffax.integrate(KEY, sampler, law.denoiser(LINEAR), jnp.asarray(START), times).x
    np.testing.assert_allclose(run(noise_floor(samplers.unipc, LINEAR, 0.0)), run(samplers.unipc(LINEAR)), rtol=1e-9)


def test_the_smooth_end_is_the_interpolation_through_zero():
    """Two moves by hand, order 1: Euler, then the trapezoid that the corrector makes of it, and one to f = 0."""
    law, x = mixture(), jnp.asarray(START)
    t, s = 0.4, 0.2
    sampler = gaussian_adams(LINEAR, std=0.9, order=1, end="smooth")
    found = diffax.integrate(KEY, sampler, law.denoiser(LINEAR), x, jnp.array([t, s, 0.0])).x

    def parts(time):
        level = LINEAR(time)
        c = np.sqrt(level.alpha**2 * 0.81 + level.sigma**2)
        return level, c, np.arctan(level.sigma / level.alpha / 0.9)

    def slope(z, time):
        level, c, theta = parts(time)
        x0 = law.denoise(c * z, level)
        return np.cos(theta) * (c * z - level.alpha * x0) / level.sigma - np.sin(theta) * x0 / 0.9

    (_, c_t, y_t), (_, _, y_s), (_, c_0, y_0) = parts(t), parts(s), parts(0.0)
    z = x / c_t
    f_t = slope(z, t)
    f_s = slope(z + (y_s - y_t) * f_t, s)
    z = z + (y_s - y_t) * (f_t + f_s) / 2 + (y_0 - y_s) * f_s / 2
    np.testing.assert_allclose(found, c_0 * z, rtol=1e-9)


# Numerics


@pytest.mark.slow_cases("linear")
@pytest.mark.parametrize("schedule", [LINEAR, SCHEDULES["edm"]], ids=["linear", "edm"])
def test_float32_stays_finite_from_t_1_to_t_0(schedule):
    law = analytic.Mixture(*(np.asarray(v, np.float32) for v in (mixture().weights, mixture().means, 0.3)))
    x = jnp.asarray(START, jnp.float32) * schedule(1.0).sigma.astype(jnp.float32)
    for sampler in (
        gaussian_adams(schedule, std=1.1, order=4, end="smooth"),
        noise_floor(functools.partial(gaussian_adams, std=1.0), schedule, 0.3),
    ):
        times = jnp.linspace(1.0, 0.0, 9, dtype=jnp.float32)
        run = lambda times, sampler=sampler: diffax.integrate(KEY, sampler, law.denoiser(schedule), x, times).x
        ends = jax.jit(jax.vmap(run))(jnp.stack([times, times[::-1]]))  # to data, and back
        assert ends.dtype == jnp.float32
        assert jnp.isfinite(ends).all()


@pytest.mark.slow
def test_every_number_may_be_traced_and_has_a_finite_gradient():
    law, x = mixture(), LINEAR(1.0).sigma * jnp.asarray(START)

    @jax.jit
    def end(mean, std, floor, scale, power):
        schedule = NoiseFloor(LINEAR, floor)
        times = arctan(schedule, 7, scale=scale, power=power, t_max=1.0, t_min=0.0)[1:]
        make = functools.partial(gaussian_adams, mean=mean, std=std, start=1.0)
        return jnp.sum(diffax.integrate(KEY, noise_floor(make, LINEAR, floor), law.denoiser(LINEAR), x, times).x ** 2)

    values = (0.1, 1.0, 0.25, 0.7, 1.25)
    for got, i in zip(jax.grad(end, range(5))(*values), range(5), strict=True):
        step = [v + 1e-6 * (i == j) for j, v in enumerate(values)]
        back = [v - 1e-6 * (i == j) for j, v in enumerate(values)]
        np.testing.assert_allclose(got, (end(*step) - end(*back)) / 2e-6, rtol=1e-4, atol=1e-6)


def test_a_tree_and_a_step_of_length_zero():
    law, x, times = mixture(), jnp.asarray(START), jnp.array([0.8, 0.5, 0.5, 0.2, 0.0, 0.0])
    denoise = law.denoiser(LINEAR)
    make = lambda mean: gaussian_adams(LINEAR, mean=mean, end="smooth")
    flat = diffax.integrate(KEY, make(MEAN), denoise, x, times[jnp.array([0, 1, 3, 4])]).x
    np.testing.assert_allclose(diffax.integrate(KEY, make(MEAN), denoise, x, times).x, flat, rtol=1e-10)
    both = lambda tree, t: {"a": denoise(tree["a"], t)}
    tree = diffax.integrate(KEY, make({"a": MEAN}), both, {"a": x}, times).x
    np.testing.assert_allclose(tree["a"], flat, rtol=1e-10)


@pytest.mark.parametrize("n", [5, 6])
def test_moments_for_each_example(n):
    """As many times as examples too: no axis is mistaken for the other."""
    x, times, denoise = jnp.asarray(START), jnp.linspace(0.8, 0.1, n), mixture().denoiser(LINEAR)
    stds, means = jnp.linspace(0.3, 1.5, len(x)), jnp.linspace(-1.0, 1.0, x.size).reshape(x.shape)
    knowing = lambda mean, std: gaussian_adams(LINEAR, mean=mean, std=std, order=2)
    ending = lambda _, std: samplers.exponential_adams(LINEAR, form=trig(std), order=2, lower_order_final=True)
    for make in (knowing, ending):
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


def test_the_arctan_grid_is_even_in_the_angle():
    times = arctan(LINEAR, 6, scale=0.5, power=1.5, t_max=1.0, t_min=0.0)
    ratio = jnp.exp(-LINEAR.log_snr(times) / 2) / 0.5
    gaps = jnp.diff(jnp.arctan(ratio ** (1 / 1.5)))
    np.testing.assert_allclose(gaps, gaps[0], rtol=1e-8)
    np.testing.assert_array_equal(times[jnp.array([0, -1])], [1.0, 0.0])


# Best at every budget


@pytest.mark.slow
def test_at_every_budget_the_best_is_ahead_of_the_published_best():
    """In root mean square over the starts, on two mixtures; `python -m experiments.best` has more of everything."""
    laws = itertools.islice(best.mixtures(2024), 2)
    made = best.problems(laws, starts=32, fine=400)
    bars = best.best_published(made, small=True, t_min=(1e-3, 6e-3, 1e-2, 2e-2))
    names = ("gaussian2-smooth", "gaussian4-smooth", "floor gaussian2")
    ours = [setting for setting in best.OURS if setting.name in names]
    least, _ = best.best_ours(made, ours=ours)
    print("calls, mixture: published, ours (rms, max), ratio")
    for n in best.BUDGETS:
        (bar, theirs), (found, own) = bars[n], least[n]
        for i in range(2):
            print(n, i, f"{theirs[i]}: {bar[i]}; {own[i]}: {found[i]}; {found[i] / bar[i]}")
        assert (found / bar)[:, 0].max() <= 0.8, f"{n} calls: {found / bar}"
