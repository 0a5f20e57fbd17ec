"""The numbers that docs/figures/index.html computes and shows are those of diffax."""

import exact_figures
import jax
import jax.numpy as jnp
import numpy as np
import pictures
import pytest
import trained_figures
from exact_figures import COMPASS, PLANE
from figure_page import call, readings
from packing import unpack

import diffax


def test_forward_points_are_those_of_diffuse(page, data):
    x0, eps = (jnp.asarray(unpack(data["forward"][name]), jnp.float32) for name in ("x0", "eps"))
    for i in (0, 20, 50, 99):
        expected = diffax.diffuse(PLANE, x0, eps, i / 100)
        np.testing.assert_allclose(call(page, "forward.points", i), expected, atol=1e-5)
    pictures.set_input(page, "forward-t", "40")
    level, shown = PLANE(0.4), readings(page, "forward")
    np.testing.assert_allclose([shown["alpha"], shown["sigma"], shown["snr"]], level, rtol=1e-5)
    assert page.locator("#forward-alpha").inner_text() == f"{float(level.alpha):.3f}"


@pytest.mark.parametrize("name", ["ddim_20", "heun_19"])
def test_reverse_states_are_those_of_the_sampler(shared, name):
    _, sampler, n = exact_figures.RUNS[name]
    denoise = exact_figures.data_in_the_plane().denoiser(PLANE)
    times = diffax.times.uniform_log_snr(PLANE, n)
    x = jnp.asarray(call(shared, "reverse.points", name, 0))
    state, states = diffax.unroll(jax.random.key(0), sampler, denoise, x, times)
    for k in (1, n // 2, n - 1):
        np.testing.assert_allclose(call(shared, "reverse.points", name, k), states[k - 1], atol=2e-3)
    np.testing.assert_allclose(call(shared, "reverse.points", name, n), denoise(state.x, times[-1]), atol=2e-3)


@pytest.mark.parametrize(("i", "accuracy"), [(30, 1.0), (64, 1.0), (90, 0.6), (64, 0.0)])
def test_the_compass_is_the_denoiser_and_its_path_is_ddim(shared, i, accuracy):
    data, x, t = exact_figures.data_in_the_plane(), jnp.array([[0.4, 1.3]]), i / 100
    mean = jnp.mean(jnp.asarray(data.means), 0)
    denoise = lambda x, t: (1 - accuracy) * mean + accuracy * data.denoise(x, COMPASS(t))
    sigma = float(COMPASS(t).sigma)
    shown = call(shared, "compass.estimate", x[0].tolist(), sigma, accuracy)
    np.testing.assert_allclose(shown["x0"], denoise(x, t)[0], atol=1e-4)
    np.testing.assert_allclose(shown["eps"], (x - denoise(x, t))[0] / sigma, atol=1e-3)
    assert sum(shown["weights"]) == pytest.approx(1)
    times = t * jnp.linspace(1.0, 0.0, 21)
    _, states = diffax.unroll(jax.random.key(0), diffax.ddim(COMPASS), denoise, x, times)
    np.testing.assert_allclose(call(shared, "compass.path", x[0].tolist(), i, accuracy)[1:], states[:, 0], atol=2e-3)


@pytest.mark.parametrize(("x", "i"), [((1.9, -1.0), 20), ((0.1, 0.0), 5), ((-3.0, 2.0), 95)])
def test_the_score_is_that_of_the_library(shared, x, i):
    data, points = exact_figures.data_in_the_plane(), jnp.array([x])
    shown = call(shared, "score.at", list(x), i)
    expected = diffax.sde.score(data.denoiser(PLANE), PLANE, points, i / 100)[0]
    np.testing.assert_allclose(shown["score"], expected, rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(shown["logProb"], data.log_prob(points, PLANE(i / 100))[0], rtol=1e-4)


@pytest.mark.parametrize("e", [0, 4])
def test_paths_are_those_of_euler_maruyama(shared, e):
    with jax.enable_x64(True):
        eta, line, data = exact_figures.ETAS[e], exact_figures.LINE, exact_figures.data_on_the_line()
        x = exact_figures.path_starts(10)
        times = diffax.times.uniform(line, 401, t_max=1.0, t_min=1e-3)
        sampler, key = diffax.euler_maruyama(line, eta=eta), exact_figures.key_of("paths")
        _, states = diffax.unroll(key, sampler, data.denoiser(line), x, times)
    for n in (0, 5, 9):
        shown = np.asarray(call(shared, "paths.path", e, n))
        np.testing.assert_allclose(shown[1:, 1], states[3::4, n, 0], atol=1e-3)
        np.testing.assert_allclose(shown[:, 0], times[::4], atol=1e-6)


def test_paths_of_every_eta_end_with_the_weights_of_the_data(data):
    three_standard_errors = 3 * np.sqrt(0.3 * 0.7 / data["paths"]["many"])
    np.testing.assert_allclose(data["paths"]["upper"], 0.3, atol=three_standard_errors)


def test_the_readings_at_t_0_2_equal_the_closed_forms(page):
    """Linear: exp(-B(0.2)). Cosine: cos^2(pi / 10). The table: Nichol & Dhariwal 2021, eq. 17."""
    pictures.set_input(page, "schedules-t", "20")
    shown = readings(page, "schedules")
    h = lambda t: np.cos(np.pi / 2 * (t + 0.008) / 1.008) ** 2
    expected = {"linear": np.exp(-(0.1 * 0.2 + 19.9 * 0.02)), "cosine": np.cos(np.pi / 10) ** 2, "table": h(0.2) / h(0)}
    assert {name: shown[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    texts = {name: page.locator(f"#schedules-{name}").inner_text() for name in expected}
    assert texts == {"linear": "0.658", "cosine": "0.9045", "table": "0.899"}
    prose = page.locator("#schedules p").first.inner_text()
    assert "0.9045" in prose
    assert "0.899" in prose
    for i in (1, 50, 97):
        for name, schedule in (("linear", diffax.Linear()), ("cosine", diffax.Cosine())):
            assert call(page, "schedules.signal", name, i) == pytest.approx(
                float(schedule(i / 100).alpha) ** 2, rel=1e-4
            )


def test_annealed_langevin_has_the_weights_of_the_data_and_langevin_at_a_fixed_level_does_not(data):
    runs, exact = data["langevin"]["runs"], float(exact_figures.two_islands().weights[0])
    assert data["langevin"]["exact"] == pytest.approx(exact)
    assert abs(runs["annealed"]["share"][-1] - exact) < 0.04
    assert abs(runs["fixed"]["share"][-1] - 0.5) < 0.05


def test_the_network_of_the_page_is_the_flax_network(shared, data):
    weights = data["network"]["weights"]
    points = jnp.array([[0.5, -0.3], [-2.0, 1.0], [1.2, 0.9]])
    for s, i in ((0, 20), (2, 5), (2, 80)):
        params: dict = {}
        for path, packed in weights[s].items():
            *parents, leaf = path.split("/")
            node = params
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = jnp.asarray(unpack(packed), jnp.float32)
        v = trained_figures.PLANE_NETWORK.apply({"params": params}, points, i / 100)
        _, eps = diffax.predictions.split("v", PLANE, v, points, i / 100)
        shown = shared.evaluate(
            "([s, i, xs]) => xs.map(window.figures.byName.network.learned(s, i))", [s, i, points.tolist()]
        )
        np.testing.assert_allclose(shown, eps, atol=1e-3)


def test_training_brings_the_network_to_the_exact_score(shared):
    errors = np.array([[call(shared, "network.error", s, i) for i in (10, 20, 50, 80)] for s in range(3)])
    assert (errors[0] > errors[2]).all()
    assert errors[2].max() < 0.2


def test_the_digits_with_noise_are_those_of_diffuse(shared, data):
    x0, eps = (jnp.asarray(unpack(data["digits"][name]), jnp.float32) for name in ("x0", "eps"))
    for j, t in ((0, 0.05), (9, 0.5)):
        shown = call(shared, "digits.pictures", 3, j)["noised"]
        np.testing.assert_allclose(shown, diffax.diffuse(PLANE, x0, eps, t)[3], atol=1e-4)
    _, held_out, labels = trained_figures.digits()
    clean = np.asarray(call(shared, "digits.pictures", 0, 0)["clean"])
    assert np.min(np.abs(held_out[labels == 0] - clean).max(1)) < 0.01


def test_the_network_is_better_on_new_digits_than_the_exact_denoiser_of_the_training_set(data):
    """At the low noise level of the text of figure 8."""
    assert data["digits"]["network_error"][0] < 0.5 * data["digits"]["exact_error"][0]
