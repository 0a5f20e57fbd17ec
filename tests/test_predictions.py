"""Prediction kinds: a 2x2 linear system converts each kind into every other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exam import FEW_SCHEDULES, ORACLES, SCHEDULES, spread

import diffax
from diffax.predictions import KINDS, row

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.newest]

T = np.linspace(0.05, 0.95, 25)


def random_pair():
    x0, eps = jax.random.normal(jax.random.key(0), (2, len(T), 3))
    return x0, eps


@pytest.mark.slow_cases("linear", "flow", "zero_terminal_snr")
@spread(SCHEDULES, FEW_SCHEDULES)
def test_kinds_convert_into_each_other_without_loss(name):
    """x0, eps -> any kind -> x0, eps -> any other kind -> x0, eps, to 1e-12."""
    schedule = SCHEDULES[name]

    @jax.jit
    def largest_error(x0, eps):
        x, errors = diffax.diffuse(schedule, x0, eps, T), []
        for first in KINDS:
            y = diffax.predictions.target(first, schedule, x0, eps, T)
            recovered = diffax.predictions.split(first, schedule, y, x, T)
            for second in KINDS:
                z = diffax.predictions.target(second, schedule, *recovered, T)
                pairs = zip(diffax.predictions.split(second, schedule, z, x, T), (x0, eps), strict=True)
                errors += [jnp.abs(u - v).max() for u, v in pairs]
        return jnp.stack(errors).max()

    assert largest_error(*random_pair()) < 1e-12


def test_rows_are_those_of_the_textbook():
    schedule, t = diffax.Flow(), 0.3
    assert row("x0", schedule, t) == (1.0, 0.0)
    assert row("eps", schedule, t) == (0.0, 1.0)
    np.testing.assert_allclose(row("velocity", schedule, t), (-1, 1), rtol=1e-12)  # eps - x0
    np.testing.assert_allclose(row("v", diffax.Cosine(), t), (-np.sin(0.15 * np.pi), np.cos(0.15 * np.pi)))
    np.testing.assert_allclose(row("score", schedule, t), (0, -1 / 0.3), rtol=1e-12)


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_the_edm_row_is_the_preconditioning_of_karras(sigma_data):
    schedule = diffax.LogLinear(0.002, 80.0)
    x0, eps = random_pair()
    sigma = schedule(T).sigma[:, None]
    c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
    c_out = sigma * sigma_data / np.sqrt(sigma**2 + sigma_data**2)
    x = x0 + sigma * eps
    f = diffax.predictions.target("edm", schedule, x0, eps, T, sigma_data=sigma_data)
    np.testing.assert_allclose(c_skip * x + c_out * f, x0, atol=1e-11)
    a, b = row("edm", schedule, T, sigma_data=sigma_data)
    np.testing.assert_allclose(a**2 * sigma_data**2 + b**2, 1.0)  # the target has unit variance


@pytest.mark.slow_cases("x0-mixture", "velocity-gaussian")
@pytest.mark.parametrize("oracle", ORACLES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_network_of_any_kind_gives_the_posterior_mean(kind, oracle):
    schedule, oracle = diffax.Cosine(), ORACLES[oracle]()
    x, t = jax.random.normal(jax.random.key(1), (25, 2)), T

    def network(x, t):
        alpha, sigma, _ = schedule(t)
        x0 = oracle.denoise(x, schedule(t))
        return diffax.predictions.target(kind, schedule, x0, (x - alpha[:, None] * x0) / sigma[:, None], t)

    x0 = diffax.denoiser(network, schedule, kind)(x, t)
    np.testing.assert_allclose(x0, oracle.denoise(x, schedule(t)), atol=1e-9)
    score = oracle.score(x, schedule(t))
    level = schedule(t)
    tweedie = (x + (level.sigma**2)[:, None] * score) / level.alpha[:, None]
    np.testing.assert_allclose(x0, tweedie, atol=1e-9)


def test_scalar_and_batched_times_agree():
    schedule, (x0, eps) = diffax.Linear(), random_pair()
    for kind in KINDS:
        scalar = diffax.predictions.target(kind, schedule, x0, eps, 0.4)
        batched = diffax.predictions.target(kind, schedule, x0, eps, jnp.full(len(x0), 0.4))
        np.testing.assert_allclose(scalar, batched, rtol=1e-13)


def test_dtypes_are_kept_and_trees_are_accepted():
    tree = {"position": jnp.ones((2, 3), jnp.float32), "feature": jnp.ones((2, 4, 1), jnp.bfloat16)}
    x = diffax.diffuse(diffax.Cosine(), tree, tree, jnp.array([0.1, 0.9]))
    x0, eps = diffax.predictions.split("v", diffax.Cosine(), x, x, 0.5)
    for value in (x, x0, eps):
        assert jax.tree.map(lambda v: (v.shape, v.dtype), value) == jax.tree.map(lambda v: (v.shape, v.dtype), tree)


def test_initial_noise_has_the_scale_of_the_schedule():
    for schedule in (diffax.Cosine(), diffax.LogLinear(0.01, 80.0)):
        x = diffax.initial_noise(jax.random.key(0), schedule, (4000, 2))
        assert x.dtype == jnp.float32
        np.testing.assert_allclose(jnp.std(x), schedule(1.0).sigma, rtol=0.03)
    tree = {"a": jax.ShapeDtypeStruct((3, 2), jnp.float64), "b": jnp.ones((3, 1))}
    drawn = diffax.initial_noise(jax.random.split(jax.random.key(0), 3), diffax.Cosine(), tree, 0.5)
    assert jax.tree.map(jnp.shape, drawn) == {"a": (3, 2), "b": (3, 1)}


def test_an_unknown_kind_raises():
    with pytest.raises(ValueError, match="kind must be one of x0, eps, score, v, velocity, edm, got 'epsilon'"):
        diffax.predictions.target("epsilon", diffax.Cosine(), 1.0, 1.0, 0.5)
    with pytest.raises(ValueError, match="got 'noise'"):
        diffax.denoiser(lambda x, t: x, diffax.Cosine(), "noise")


@pytest.mark.parametrize("kind", ["eps", "score"])
def test_zero_terminal_snr_refuses_eps_and_score(kind):
    schedule = SCHEDULES["zero_terminal_snr"]
    with pytest.raises(ValueError, match=f"zero terminal SNR, got '{kind}'"):
        diffax.denoiser(lambda x, t: x, schedule, kind)
    diffax.denoiser(lambda x, t: x, schedule, "v")
    for other in (SCHEDULES["linear_betas"], diffax.from_betas(diffax.schedules.cosine_betas(4000))):
        diffax.denoiser(lambda x, t: x, other, kind)


def test_clip_static_clips_x0():
    clipped = diffax.denoisers.clip_static(lambda x, t: x, -1.0, 0.5)
    assert clipped(jnp.array([-3.0, 0.2, 3.0]), 0.5).tolist() == [-1.0, 0.2, 0.5]
    with pytest.raises(ValueError, match="high must be > low = 1, got -1"):
        diffax.denoisers.clip_static(lambda x, t: x, 1, -1)
    with pytest.raises(ValueError, match="low must be a number, got None"):
        diffax.denoisers.clip_static(lambda x, t: x, None, 1.0)


def test_the_check_rejects_a_wrong_split(monkeypatch):
    """Negative control: `split` with the opposite sign of v."""
    split = diffax.predictions.split
    wrong = lambda kind, s, y, *rest: split(kind, s, -y if kind == "v" else y, *rest)
    monkeypatch.setattr(diffax.predictions, "split", wrong)
    with pytest.raises(AssertionError):
        test_kinds_convert_into_each_other_without_loss("linear")
