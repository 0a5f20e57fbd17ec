"""Losses and samplers of flow maps against the exact map of a Gaussian and of a mixture, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffax
from diffax import analytic, flow_maps, random
from diffax._pytrees import expand
from diffax.flow_maps import _mean_flow
from diffax.flow_maps._parts import derivatives
from diffax.predictions import row

SCHEDULES = {
    "flow": diffax.Flow(),
    "cosine": diffax.Cosine(),
    "linear": diffax.Linear(),
    "log_linear": diffax.LogLinear(0.01, 50.0),
}
KINDS = ("x0", "eps", "score", "v", "velocity", "edm")
MEAN, COVARIANCE = [0.7, -0.4], [[0.5, 0.2], [0.2, 0.3]]
T, S = [0.9, 0.7, 0.5, 0.3], [0.5, 0.2, 0.5, 0.1]  # the third example has s = t


@pytest.fixture(autouse=True)
def _float64(x64):
    """Run all tests of this module in float64."""


def gaussian():
    return analytic.Gaussian.from_covariance(MEAN, COVARIANCE)


def predicting(denoise, schedule, kind):
    """The network (x, t, s) -> y of this prediction kind for a flow map with the denoiser (x, t, s) -> x0."""

    def predict(x, t, s):
        level, x0 = schedule(t), denoise(x, t, s)
        a, b = (expand(jnp.asarray(v), x) for v in row(kind, schedule, t))
        eps = (x - expand(level.alpha, x) * x0) / expand(level.sigma, x)
        return a * x0 + b * eps

    return predict


def marginal(predict, schedule, kind):
    """The exact velocity as `rate`."""
    own = flow_maps.velocity(flow_maps.diagonal(predict), schedule, kind)
    return lambda x, t, conditional: own(x, t)


def every_loss(key, predict, schedule, kind, x0, t, s):
    """{name: loss} of all losses that are zero at the exact map with the exact velocity."""
    x0, t, s = (jnp.asarray(v) for v in (x0, t, s))
    args, rate = (key, predict, schedule, kind, x0, t, s), marginal(predict, schedule, kind)
    apart = jnp.where(s == t, s / 2, s)
    return {
        "mean_flow": flow_maps.mean_flow_loss(*args, rate=rate, weight=None),
        "improved": flow_maps.improved_mean_flow_loss(*args, rate=rate, weight=None),
        "continuous": flow_maps.continuous_consistency_loss(*args, rate=rate, normalise=None),
        "lagrangian": flow_maps.lagrangian_loss(*args),
        "distilled": flow_maps.lagrangian_loss(*args, rate=lambda x, t: rate(x, t, None)),
        "semigroup": flow_maps.semigroup_loss(*args[:-1], apart),
        "progressive": semigroup_of_teacher(key, predict, schedule, kind, x0, t, apart),
    }


def semigroup_of_teacher(key, predict, schedule, kind, x0, t, s):
    """`progressive_loss` with the exact map as the teacher, whose two half steps are exact."""
    middle = (t + s) / 2

    def teacher(x, time):
        end = jnp.where(time == t, middle, s)
        return flow_maps.map_denoiser(predict, schedule, kind)(x, time, end)

    student = lambda x, time: predict(x, time, s)
    return flow_maps.progressive_loss(key, student, schedule, kind, x0, t, s, teacher=teacher)


@pytest.mark.parametrize("name", SCHEDULES)
def test_losses_are_zero_at_the_exact_map_of_a_gaussian(name):
    schedule, key = SCHEDULES[name], jax.random.key(0)
    x0, t, s = gaussian().sample(key, 4), jnp.array(T), jnp.array(S)
    for kind in KINDS if name == "flow" else ("v", "velocity"):
        predict = predicting(gaussian().map_denoiser(schedule), schedule, kind)
        move, x = flow_maps.flow_map(predict, schedule, kind), diffax.diffuse(schedule, x0, x0[::-1], t)
        np.testing.assert_allclose(move(x, t, s), gaussian().flow(x, schedule(t), schedule(s)), atol=1e-13)
        np.testing.assert_array_equal(move(x, t, t), x)
        for which, loss in every_loss(key, predict, schedule, kind, x0, t, s).items():
            assert loss.shape == (4,)
            assert float(loss.max()) < 1e-20, (which, kind)


@pytest.mark.parametrize("broken", ["swapped", "sign", "denoiser"])
def test_a_wrong_map_has_losses_above_zero(broken):
    """Negative controls: t and s swapped, the wrong sign of the tangent, and the denoiser in place of the map."""
    schedule, key = diffax.Flow(), jax.random.key(0)
    x0, t, s = gaussian().sample(key, 4), jnp.array([0.9, 0.7, 0.6, 0.4]), jnp.array([0.5, 0.2, 0.1, 0.1])
    denoise = gaussian().map_denoiser(schedule)
    predict = predicting(denoise, schedule, "velocity")
    rate = marginal(predict, schedule, "velocity")
    if broken == "sign":
        losses = {
            "mean_flow": flow_maps.mean_flow_loss(
                key, predict, schedule, "velocity", x0, t, s, rate=lambda *a: -rate(*a)
            )
        }
    else:
        other = {"swapped": lambda x, t, s: denoise(x, s, t), "denoiser": lambda x, t, s: denoise(x, t, t)}[broken]
        losses = every_loss(key, predicting(other, schedule, "velocity"), schedule, "velocity", x0, t, s)
    assert min(float(loss.max()) for loss in losses.values()) > 1e-6


def gradients(loss, count):
    """(mean, standard error) of the gradients of `count` losses with respect to three parameters, at 0."""
    each = jax.jit(jax.jacfwd(loss))(jnp.zeros(3))
    return np.asarray(each.mean(0)), np.asarray(each.std(0) / np.sqrt(count))


def with_parameters(predict, theta):
    """The network plus theta times three functions of (x, t, s)."""

    def perturbed(x, t, s):
        shift = theta[0] + theta[1] * expand(t, x) + theta[2] * x[..., ::-1]
        return predict(x, t, s) + shift

    return perturbed


CONDITIONAL = {
    "mean_flow": lambda *args: flow_maps.mean_flow_loss(*args, weight=None),
    "improved": lambda *args: flow_maps.improved_mean_flow_loss(*args, weight=None),
    "continuous": lambda *args: flow_maps.continuous_consistency_loss(*args, normalise=None),
}


def scores(loss, data=None, count=20_000):
    """The mean gradients at the exact map divided by their standard errors, with the velocity of each draw.

    data: a mixture, for s = t only; None for the Gaussian.
    """
    schedule, keys = diffax.Cosine(), jax.random.split(jax.random.key(1), count)
    x0 = (data or gaussian()).sample(jax.random.key(2), count)
    t, s = flow_maps.pairs(keys, count, lambda u: 0.1 + 0.8 * u, equal=0.25 if data is None else 1.0)
    exact = gaussian().map_denoiser(schedule) if data is None else flow_maps.of_denoiser(data.denoiser(schedule))
    predict = predicting(exact, schedule, "v")
    mean, error = gradients(lambda theta: loss(keys, with_parameters(predict, theta), schedule, "v", x0, t, s), count)
    assert (error > 0).all()
    return np.abs(mean / error)


@pytest.mark.parametrize("name", CONDITIONAL)
def test_the_expected_gradient_is_zero_at_the_exact_map(name):
    assert (scores(CONDITIONAL[name]) < 4).all()


def test_without_stop_gradient_the_expected_gradient_is_not_zero(monkeypatch):
    monkeypatch.setattr(_mean_flow, "stop", lambda x: x)
    assert (scores(CONDITIONAL["mean_flow"]) > 10).any()


def test_adaptive_weights_have_a_bias():
    """With them the exact map is a stationary point only if the posterior is symmetric, as for a Gaussian."""
    assert (scores(flow_maps.mean_flow_loss) < 4).all()
    assert (scores(CONDITIONAL["mean_flow"], mixture()) < 4).all()
    assert (scores(flow_maps.mean_flow_loss, mixture()) > 10).any()


def test_the_derivative_equals_that_along_the_path():
    """dy/dt by jvp against differences of sixth order along the exact flow."""
    schedule, t, s = diffax.Cosine(), jnp.array([0.8, 0.5]), jnp.array([0.3, 0.1])
    data, x = gaussian(), jnp.array([[0.3, -1.0], [0.9, 0.2]])
    predict = predicting(data.map_denoiser(schedule), schedule, "v")
    rate = marginal(predict, schedule, "v")
    _, dy, _, _ = derivatives(predict, schedule, "v", x, rate(x, t, None), t, s, 0.5)

    def along(h):
        return predict(data.flow(x, schedule(t), schedule(t + h)), t + h, s)

    h, weights = 2e-3, {1: 3 / 4, 2: -3 / 20, 3: 1 / 60}
    expected = sum(w * (along(i * h) - along(-i * h)) for i, w in weights.items()) / h
    np.testing.assert_allclose(dy, expected, atol=1e-10)


def test_the_residual_of_consistency_losses_falls_at_its_order():
    """For steps of length h the loss of the exact function is O(h^2) in training, O(h^4) or O(h^6) in distillation."""
    schedule, key = diffax.Flow(), jax.random.key(0)
    x0, data = gaussian().sample(key, 500), gaussian()
    f = flow_maps.ending(lambda x, t, s: data.flow(x, schedule(t), schedule(s)))
    steps = np.array([0.08, 0.04, 0.02, 0.01])

    def order(settings, s_of=lambda t, h: t - h):
        t = jnp.full(500, 0.6)
        run = jax.jit(lambda h: flow_maps.consistency_loss(key, f, schedule, x0, t, s_of(t, h), **settings).mean())
        return np.polyfit(np.log(steps), np.log([float(run(h)) for h in steps]), 1)[0]

    teacher = data.denoiser(schedule)
    assert order({}) == pytest.approx(2, abs=0.1)
    assert order({"teacher": teacher, "solver": "ddim"}) == pytest.approx(4, abs=0.2)
    assert order({"teacher": teacher, "solver": "heun"}) == pytest.approx(6, abs=0.3)
    by_ect = order({}, lambda t, h: flow_maps.ect_time(schedule, t, 2 - jnp.log2(h)))
    assert by_ect == pytest.approx(2, abs=0.1)


def mixture():
    means = np.array([[1.0, 0.0], [-1.0, 0.5], [0.2, -1.2]])
    return analytic.Mixture(np.array([0.5, 0.3, 0.2]), means, 0.3)


@pytest.mark.slow
def test_losses_are_small_at_the_solved_map_of_a_mixture():
    """They are the squared error of the numerical map, which falls as the eighth power of the number of steps."""
    schedule, key = diffax.Cosine(), jax.random.key(0)
    x0, t, s = mixture().sample(key, 3), jnp.array([0.9, 0.7, 0.5]), jnp.array([0.3, 0.2, 0.25])
    worst = {}
    for steps in (25, 50):
        denoise = analytic.map_denoiser(schedule, mixture().denoiser(schedule), num_steps=steps)
        predict = predicting(denoise, schedule, "v")
        losses = jax.jit(lambda *times, predict=predict: every_loss(key, predict, schedule, "v", x0, *times))(t, s)
        worst[steps] = {name: float(loss.max()) for name, loss in losses.items()}
    for name in worst[50]:
        assert worst[50][name] < 1e-9, name
        assert worst[50][name] < worst[25][name] / 100, name


@pytest.mark.parametrize("gamma", [0.0, 0.4, 1.0])
def test_jumps_with_the_exact_map_are_exact_on_any_grid(gamma):
    """With gamma = 0 the last state is that of the flow; with noise it has the distribution of the data."""
    schedule, data, count = diffax.Cosine(), gaussian(), 4 if gamma == 0 else 40_000
    key, x = jax.random.key(0), data.sample(jax.random.key(1), count)
    start = jnp.array(1.0)
    x = diffax.diffuse(schedule, x, jax.random.normal(jax.random.key(2), x.shape), start)
    for grid in ([1.0], [1.0, 0.9, 0.2], [1.0, 0.3, 0.3, 0.1]):
        sampler, times = flow_maps.jump(schedule, gamma=gamma), jnp.array(grid)
        end = diffax.sample(key, sampler, data.map_denoiser(schedule), x, times)
        if gamma == 0:
            # `sample` returns x0, and sigma(0) is 4.5e-5, the clip at log-SNR 20
            np.testing.assert_allclose(end, data.flow(x, schedule(start), schedule(0.0)), atol=3e-4)
            state = diffax.integrate(key, sampler, data.map_denoiser(schedule), x, times)
            np.testing.assert_allclose(state.x, data.flow(x, schedule(start), schedule(times[-1])), atol=1e-12)
        else:
            np.testing.assert_allclose(end.mean(0), MEAN, atol=0.02)
            np.testing.assert_allclose(np.cov(end.T), COVARIANCE, atol=0.02)


def test_jumps_with_a_denoiser_are_ddim():
    schedule, denoise = diffax.Flow(), mixture().denoiser(diffax.Flow())
    x, times = jax.random.normal(jax.random.key(0), (5, 2)), jnp.array([0.99, 0.5, 0.5, 0.2])
    samples = diffax.sample(jax.random.key(1), flow_maps.jump(schedule), flow_maps.of_denoiser(denoise), x, times)
    np.testing.assert_allclose(
        samples, diffax.sample(jax.random.key(1), diffax.ddim(schedule), denoise, x, times), atol=1e-14
    )


def test_half_steps_are_the_targets_of_shortcut_models_and_of_progressive_distillation():
    """Frans et al. 2025: the mean velocity of two half steps; Salimans & Ho 2022: the x0 of one step as two."""
    schedule, key, x0 = diffax.Flow(), jax.random.key(0), jnp.array([[0.5, -0.2]])
    predict = lambda x, t, s: jnp.sin(x) + expand(t, x) * expand(s, x)
    t, s, m = 0.8, 0.4, 0.6
    x = diffax.diffuse(schedule, x0, random.noise(random.stream(key, "semigroup_loss"), x0), t)
    first = np.sin(x) + t * m
    second = np.sin(x + (m - t) * first) + m * s
    expected = np.mean((np.sin(x) + t * s - (first + second) / 2) ** 2)
    loss = flow_maps.semigroup_loss(key, predict, schedule, "velocity", x0, t, s)
    np.testing.assert_allclose(loss, [expected], rtol=1e-12)

    x = diffax.diffuse(schedule, x0, random.noise(random.stream(key, "progressive_loss"), x0), t)
    teacher = lambda x, t: 0.5 * x
    half = m / t * x + ((1 - m) - (1 - t) * m / t) * 0.5 * x
    end = s / m * half + ((1 - s) - (1 - m) * s / m) * 0.5 * half
    goal = (end - s / t * x) / ((1 - s) - (1 - t) * s / t)
    loss = flow_maps.progressive_loss(key, lambda x, t: 0.3 * x, schedule, "x0", x0, t, s, teacher=teacher)
    np.testing.assert_allclose(loss, [np.mean((0.3 * x - goal) ** 2)], rtol=1e-12)  # SNR = 1 / 16 < 1


def test_mean_flow_by_hand():
    """Geng et al. 2025, eq. 10, 11 and 22, and the improved loss, with the network y = sin(x) + t s."""
    schedule, key, x0 = diffax.Flow(), jax.random.key(0), jnp.array([[0.5, -0.2, 0.1, 0.9, -1.0]])
    predict = lambda x, t, s: jnp.sin(x) + expand(t, x) * expand(s, x)
    t, s = 0.8, 0.3
    eps = random.noise(random.stream(key, "mean_flow_loss"), x0)
    z, v = (1 - t) * x0 + t * eps, eps - x0
    total = np.cos(z) * v + s  # the derivative along (v, 1, 0)
    squares = np.sum((np.sin(z) + t * s - (v - (t - s) * total)) ** 2)
    loss = flow_maps.mean_flow_loss(key, predict, schedule, "velocity", x0, t, s)
    np.testing.assert_allclose(loss, [squares / (squares + 0.01)], rtol=1e-12)

    rate = flow_maps.guided(lambda x, t: 2 * x, lambda x, t: 3 * x, weight=1.5, mixing=0.25)
    v = 1.5 * v + (1 - 1.5 - 0.25) * 3 * z + 0.25 * 2 * z
    total = np.cos(z) * v + s
    expected = np.mean((np.sin(z) + t * s - (v - (t - s) * total)) ** 2)
    loss = flow_maps.mean_flow_loss(key, predict, schedule, "velocity", x0, t, s, rate=rate, weight=None)
    np.testing.assert_allclose(loss, [expected], rtol=1e-12)

    eps = random.noise(random.stream(key, "improved_mean_flow_loss"), x0)
    z, v = (1 - t) * x0 + t * eps, eps - x0
    own = np.sin(z) + t * t
    total = np.cos(z) * own + s
    expected = np.mean((np.sin(z) + t * s + (t - s) * total - v) ** 2) + np.mean((own - v) ** 2)
    loss = flow_maps.improved_mean_flow_loss(key, predict, schedule, "velocity", x0, t, s, weight=None)
    np.testing.assert_allclose(loss, [expected], rtol=1e-12)


@pytest.mark.parametrize("warmup", [0.0, 0.6, 1.0])
def test_continuous_consistency_by_hand(warmup):
    """Lu & Song 2025, algorithm 1, in the angle h = pi t / 2; the norm is the root of the mean square."""
    schedule, key, x0 = diffax.Cosine(), jax.random.key(0), jnp.array([[0.5, -0.2, 0.1, 0.9, -1.0]])
    predict = lambda x, t, s: jnp.sin(x) + expand(t, x)
    t = 0.6
    h = np.pi / 2 * t
    eps = random.noise(random.stream(key, "continuous_consistency_loss"), x0)
    x, dx = np.cos(h) * x0 + np.sin(h) * eps, np.cos(h) * eps - np.sin(h) * x0
    network, slope = np.sin(x) + t, np.cos(x) * dx + 2 / np.pi
    g = -(np.cos(h) ** 2) * (network - dx) - warmup * np.cos(h) * np.sin(h) * (x + slope)
    for constant in (None, 0.1):
        step = g if constant is None else g / (np.sqrt(np.mean(g**2)) + constant)
        loss = flow_maps.continuous_consistency_loss(
            key, predict, schedule, "v", x0, t, warmup=warmup, normalise=constant
        )
        np.testing.assert_allclose(loss, [np.mean(step**2)], rtol=5e-4)  # s = 0 is the clip at log-SNR 20


def test_consistency_by_hand():
    """Training with the noise of one draw, a teacher's step of DDIM, and the distance of Song & Dhariwal 2024."""
    schedule, key, x0 = diffax.LogLinear(0.01, 50.0), jax.random.key(0), jnp.array([[0.5, -0.2, 0.1, 0.9, -1.0]])
    f = lambda x, t: jnp.tanh(x) * (1 - expand(t, x))
    t, s = 0.7, 0.5
    sigma_t, sigma_s = (0.01 * 5000**v for v in (t, s))
    eps = random.noise(random.stream(key, "consistency_loss"), x0)
    x = x0 + sigma_t * eps
    first, second = np.tanh(x) * (1 - t), np.tanh(x0 + sigma_s * eps) * (1 - s)
    loss = flow_maps.consistency_loss(key, f, schedule, x0, t, s)
    np.testing.assert_allclose(loss, [np.mean((first - second) ** 2)], rtol=1e-10)
    c = 0.00054 * np.sqrt(5)
    loss = flow_maps.consistency_loss(key, f, schedule, x0, t, s, distance=flow_maps.pseudo_huber())
    np.testing.assert_allclose(loss, [np.sqrt(np.sum((first - second) ** 2) + c**2) - c], rtol=1e-10)
    moved = 0.5 * x + sigma_s / sigma_t * (x - 0.5 * x)
    second = np.tanh(moved) * (1 - s) / 2
    options = {"teacher": lambda x, t: 0.5 * x, "solver": "ddim", "target": lambda x, t: f(x, t) / 2}
    loss = flow_maps.consistency_loss(key, f, schedule, x0, t, s, **options)
    np.testing.assert_allclose(loss, [np.mean((first - second) ** 2)], rtol=1e-10)


def test_pairs_of_times_have_their_distribution():
    """P(s < 1/2 < t) is 1/2 for two uniform draws in order; equal times are uniform."""
    t, s = flow_maps.pairs(jax.random.key(0), 40_000, equal=0.25)
    same = np.asarray(t == s)
    assert same.mean() == pytest.approx(0.25, abs=0.01)
    assert np.asarray((s < 0.5) & (t > 0.5))[~same].mean() == pytest.approx(0.5, abs=0.015)
    assert np.asarray(t)[same].mean() == pytest.approx(0.5, abs=0.015)
    t, s = flow_maps.dyadic_pairs(jax.random.key(0), 40_000, num_levels=3)
    shares = {float(d): float((t - s == d).mean()) for d in (1.0, 0.5, 0.25)}
    assert all(share == pytest.approx(1 / 3, abs=0.01) for share in shares.values())
    assert np.asarray(t)[np.asarray(t - s == 0.25)].mean() == pytest.approx(0.625, abs=0.01)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flow_maps.flow_map(None, diffax.Flow(), "v"), "predict must be a function"),
        (lambda: flow_maps.flow_map(lambda x, t, s: x, diffax.Flow(), "u"), "kind must be one of"),
        (
            lambda: flow_maps.flow_map(lambda x, t, s: x[:1], diffax.Flow(), "v")(jnp.ones((2, 3)), 0.5, 0.1),
            r"predict\(x, t\) must have the shape of x, \(2, 3\), got \(1, 3\)",
        ),
        (
            lambda: flow_maps.consistency_loss(
                jax.random.key(0), lambda x, t: x, diffax.Flow(), jnp.ones((2, 3)), 0.5, 0.1, solver="rk4"
            ),
            "solver must be one of heun, ddim, got 'rk4'",
        ),
        (lambda: flow_maps.pairs(jax.random.key(0), 4, equal=1.5), r"equal must be in \[0, 1\], got 1.5"),
        (lambda: flow_maps.jump(diffax.Flow(), gamma=2.0), r"gamma must be in \[0, 1\], got 2.0"),
        (lambda: flow_maps.levels(0, 100, first=20, last=10), "last must be at least first = 20, got 10"),
        (lambda: flow_maps.dyadic_pairs(jax.random.key(0), 4, num_levels=0), "num_levels must be an int >= 1, got 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ------------------------------------------------------------------------------------------------ curvature


def test_curvature_is_the_mean_square_deviation_from_the_straight_line():
    """x = t^2 has dx/dt - 1 = 2 t - 1, whose mean square is 1/3; a line at constant speed has 0."""
    times = jnp.linspace(1.0, 0.0, 2001)
    t = times[:, None, None]
    path = jnp.concatenate([t**2, 3 * t - 1, 2 * t**2], 1)  # three examples
    np.testing.assert_allclose(flow_maps.curvature(path, times), [1 / 3, 0.0, 4 / 3], atol=1e-6)
    np.testing.assert_allclose(flow_maps.curvature(path[::-1], times[::-1]), [1 / 3, 0.0, 4 / 3], atol=1e-6)
    uneven = jnp.concatenate([times[:500:7], times[500:]])
    u = uneven[:, None, None]
    np.testing.assert_allclose(flow_maps.curvature({"a": u**2, "b": 3 * u}, uneven), [1 / 6], atol=1e-3)


def test_the_curvature_of_solved_paths_is_that_of_the_exact_ones():
    """x_t = sqrt(t^2 + (1 - t)^2 std^2) z for data N(0, std^2)."""
    schedule, times = diffax.Flow(), jnp.linspace(1.0, 0.0, 201)
    x = jax.random.normal(jax.random.key(0), (500, 1))
    for std in (1.0, 0.2):
        path = jnp.sqrt(times**2 + (1 - times) ** 2 * std**2)[:, None, None] * x
        denoise = analytic.Gaussian.from_covariance([0.0], [[std**2]]).denoiser(schedule)
        _, states = diffax.unroll(jax.random.key(0), diffax.ddim(schedule), denoise, x, times)
        solved = flow_maps.curvature(jnp.concatenate([x[None], states]), times)
        np.testing.assert_allclose(solved.mean(), flow_maps.curvature(path, times).mean(), rtol=0.05)
