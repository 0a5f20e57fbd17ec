"""Guidance by sampler wrappers: CFG++ and momentum against the recursions of the papers in numpy."""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exam import START, gaussian

import diffax
from diffax import analytic
from diffax._pytrees import combine
from diffax.samplers._base import State

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.newest]
KEY = jax.random.key(0)
SCHEDULE = diffax.Cosine()
GRID = np.array([0.95, 0.8, 0.55, 0.3, 0.1])
UNCONDITIONAL = gaussian()
CONDITIONAL = analytic.Gaussian.from_covariance(np.array([1.0, 0.2]), np.array([[0.1, -0.05], [-0.05, 0.2]]))
unconditional, conditional = UNCONDITIONAL.denoiser(SCHEDULE), CONDITIONAL.denoiser(SCHEDULE)


def alpha_bar(t):
    return np.cos(np.pi * np.asarray(t) / 2) ** 2


def posterior_mean(oracle, x, t):
    """E[x0 | x_t = x] of a Gaussian in numpy."""
    a, cov = alpha_bar(t), oracle.basis @ np.diag(oracle.variances) @ oracle.basis.T
    gain = np.sqrt(a) * cov @ np.linalg.inv(a * cov + (1 - a) * np.eye(2))
    return oracle.mean + (x - np.sqrt(a) * oracle.mean) @ gain.T


def eps_of(oracle, x, t):
    return (x - np.sqrt(alpha_bar(t)) * posterior_mean(oracle, x, t)) / np.sqrt(1 - alpha_bar(t))


def published_cfg_plus_plus(x, grid, scale, *, eta=0.0, noise=None):
    """Chung et al. 2024, algorithm 2, with the eta of DDIM: x0 uses the guided eps, the noise the unguided."""
    for k, (t, s) in enumerate(itertools.pairwise(grid)):
        bar_t, bar_s = alpha_bar(t), alpha_bar(s)
        eps_u, eps_c = eps_of(UNCONDITIONAL, x, t), eps_of(CONDITIONAL, x, t)
        eps = eps_u + scale * (eps_c - eps_u)
        x0 = (x - np.sqrt(1 - bar_t) * eps) / np.sqrt(bar_t)
        tau = eta * np.sqrt((1 - bar_s) / (1 - bar_t)) * np.sqrt(1 - bar_t / bar_s) if eta else 0.0
        x = np.sqrt(bar_s) * x0 + np.sqrt(1 - bar_s - tau**2) * eps_u
        x = x + tau * noise[k] if eta else x
    return x


def run(sampler, times=GRID, denoise=unconditional, x=START):
    return jax.jit(lambda x, times: diffax.integrate(KEY, sampler, denoise, x, times).x)(x, times)


def wrapped(sampler, weight):
    return diffax.cfg_plus_plus(sampler, SCHEDULE, conditional, weight)


@pytest.mark.slow_cases("sampling")
@pytest.mark.parametrize("grid", [GRID, GRID[::-1]], ids=["sampling", "inversion"])
def test_ddim_follows_the_published_recursion(grid):
    for scale in (0.0, 0.6, 1.0):
        expected = published_cfg_plus_plus(START, grid, scale)
        np.testing.assert_allclose(run(wrapped(diffax.ddim(SCHEDULE), scale), grid), expected, rtol=1e-9)


def test_ddim_with_noise_follows_the_published_recursion(monkeypatch):
    noise = np.random.default_rng(0).normal(size=(len(GRID) - 1, *START.shape))
    monkeypatch.setattr(diffax.random, "fold_in", lambda key, data: data)
    monkeypatch.setattr(diffax.random, "noise", lambda key, like: jnp.asarray(noise)[key])
    result = run(wrapped(diffax.ddim(SCHEDULE, eta=0.7), 0.4))
    np.testing.assert_allclose(result, published_cfg_plus_plus(START, GRID, 0.4, eta=0.7, noise=noise), rtol=1e-9)


def test_the_check_rejects_a_wrapper_without_effect(monkeypatch):
    """Negative control: a wrapper that returns the sampler unchanged."""
    monkeypatch.setattr(diffax, "cfg_plus_plus", lambda sampler, *args: sampler)
    with pytest.raises(AssertionError):
        test_ddim_follows_the_published_recursion(GRID)


def test_the_check_rejects_ordinary_guidance(monkeypatch):
    """Negative control: the renoising uses the guided eps too."""
    original = diffax.integrate

    def guided(key, sampler, denoise, x, times):
        return original(
            key, diffax.ddim(SCHEDULE), diffax.classifier_free_guidance(conditional, denoise, 0.6), x, times
        )

    monkeypatch.setattr(diffax, "integrate", guided)
    with pytest.raises(AssertionError):
        test_ddim_follows_the_published_recursion(GRID)


def test_a_time_dependent_weight_reproduces_ordinary_guidance():
    """With w = w' (1 - exp((lambda_t - lambda_s) / 2)) a DDIM step equals one of classifier-free guidance with w'."""
    log_snr = np.log(alpha_bar(GRID) / (1 - alpha_bar(GRID)))
    weights = jnp.asarray(2.5 * (1 - np.exp((log_snr[:-1] - log_snr[1:]) / 2)))
    weight = lambda t: weights[jnp.argmin(jnp.abs(GRID[:-1] - t))]
    cfg = diffax.classifier_free_guidance(conditional, unconditional, 2.5)
    expected = run(diffax.ddim(SCHEDULE), denoise=cfg)
    np.testing.assert_allclose(run(wrapped(diffax.ddim(SCHEDULE), weight)), expected, rtol=1e-9)


class TwoStepState(NamedTuple):
    """The state of `two_step`: x and the previous x0."""

    x: Any
    x0_before: Any


def two_step():
    """A minimal multistep sampler: DDIM with x0 extrapolated from the last two denoiser calls."""

    def step(key, denoise, state, t, s):
        x0 = denoise(state.x, t)
        extrapolated = combine((1.5, x0), (-0.5, state.x0_before))
        return TwoStepState(diffax.ddim(SCHEDULE).step(key, lambda x, t: extrapolated, State(state.x), t, s).x, x0)

    return diffax.Sampler(lambda x, times: TwoStepState(x, jax.tree.map(jnp.zeros_like, x)), step, order=1, calls=1)


def test_a_multistep_sampler_stores_unconditional_x0():
    x, x0_before = START, np.zeros_like(START)
    for t, s in itertools.pairwise(GRID):
        bar_t, bar_s = alpha_bar(t), alpha_bar(s)
        c, u = (posterior_mean(oracle, x, t) for oracle in (CONDITIONAL, UNCONDITIONAL))
        extrapolated = 1.5 * u - 0.5 * x0_before
        eps = (x - np.sqrt(bar_t) * extrapolated) / np.sqrt(1 - bar_t)
        x = np.sqrt(bar_s) * (extrapolated + 0.6 * (c - u)) + np.sqrt(1 - bar_s) * eps
        x0_before = u
    np.testing.assert_allclose(run(wrapped(two_step(), 0.6)), x, rtol=1e-9)


def test_a_step_calls_each_branch_once_and_zero_length_steps_change_nothing():
    calls = {"c": 0, "u": 0}

    def counted(name, denoise):
        def call(x, t):
            calls[name] += 1
            return denoise(x, t)

        return call

    sampler = diffax.cfg_plus_plus(diffax.ddim(SCHEDULE), SCHEDULE, counted("c", conditional), 0.6)
    state = sampler.step(KEY, counted("u", unconditional), sampler.init(START, GRID), 0.5, 0.5)
    assert calls == {"c": 1, "u": 1}
    np.testing.assert_allclose(state.x, START, rtol=1e-12)
    repeated = np.repeat(GRID, 2)
    ddim = wrapped(diffax.ddim(SCHEDULE), 0.6)
    np.testing.assert_allclose(run(ddim, repeated), run(ddim), rtol=1e-10)


def test_weights_are_traced_by_example_and_differentiable():
    f = lambda w: diffax.integrate(KEY, wrapped(diffax.ddim(SCHEDULE), w), unconditional, jnp.asarray(START), GRID).x
    weights = jnp.array([0.0, 0.25, 0.5, 0.75, 1.0])
    each = jax.jit(jax.vmap(f))(weights)
    np.testing.assert_allclose(jax.jit(f)(weights), each[np.arange(5), np.arange(5)], rtol=1e-10)
    np.testing.assert_allclose(each[0], run(diffax.ddim(SCHEDULE)), rtol=1e-12)
    slopes = jax.jit(jax.grad(lambda w, x: f(w).sum()))(weights, START)
    assert np.isfinite(slopes).all()
    tree = {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 1), jnp.float32)}
    sampler = diffax.cfg_plus_plus(diffax.ddim(SCHEDULE), SCHEDULE, lambda x, t: x, 0.5)
    half = lambda x, t: jax.tree.map(lambda v: v / 2, x)
    x = sampler.step(KEY, half, sampler.init(tree, None), 0.6, 0.2).x
    assert jax.tree.map(lambda v: (v.shape, v.dtype), x) == jax.tree.map(lambda v: (v.shape, v.dtype), tree)
    for t in (0.0, 1.0):
        x = jnp.asarray(START, jnp.float32)
        assert np.isfinite(sampler.step(KEY, half, sampler.init({"a": x}, None), t, 1.0 - t).x["a"]).all()


# Momentum


def with_momentum(sampler, beta, **kwargs):
    guide = lambda c, u: diffax.adaptive_projected_guidance(c, u, 4.0, **kwargs)
    return diffax.guidance_momentum(sampler, conditional, guide, momentum=beta)


@pytest.mark.parametrize("beta", [-0.5, 0.0, 0.3])
def test_projected_guidance_with_momentum_follows_the_published_recursion(beta):
    """Sadat et al. 2024: the running difference is limited to norm r and split along c; then DDIM in alpha-bar."""
    x, running, eta, r = START, np.zeros_like(START), 0.2, 0.8
    for t, s in itertools.pairwise(GRID):
        c, u = (posterior_mean(oracle, x, t) for oracle in (CONDITIONAL, UNCONDITIONAL))
        running = c - u + beta * running
        d = running * np.minimum(1, r / np.linalg.norm(running, axis=1, keepdims=True))
        unit = c / np.linalg.norm(c, axis=1, keepdims=True)
        parallel = (d * unit).sum(1, keepdims=True) * unit
        x0 = c + 3.0 * (d - parallel + eta * parallel)
        eps = (x - np.sqrt(alpha_bar(t)) * x0) / np.sqrt(1 - alpha_bar(t))
        x = np.sqrt(alpha_bar(s)) * x0 + np.sqrt(1 - alpha_bar(s)) * eps
    result = run(with_momentum(diffax.ddim(SCHEDULE), beta, eta=eta, threshold=r))
    np.testing.assert_allclose(result, x, rtol=1e-9)


def test_the_check_rejects_zero_momentum(monkeypatch):
    """Negative control: the wrapper ignores its momentum."""
    original = diffax.guidance_momentum
    monkeypatch.setattr(diffax, "guidance_momentum", lambda *args, momentum: original(*args, momentum=0.0))
    with pytest.raises(AssertionError):
        test_projected_guidance_with_momentum_follows_the_published_recursion(-0.5)


def test_zero_momentum_is_the_sampler_on_the_guided_denoiser():
    guided = diffax.adaptive_projected_guidance(conditional, unconditional, 4.0)
    np.testing.assert_allclose(run(with_momentum(two_step(), 0.0)), run(two_step(), denoise=guided), rtol=1e-10)


def test_momentum_may_be_traced_and_zero_length_steps_change_nothing():
    f = lambda beta, times: diffax.integrate(
        KEY, with_momentum(diffax.ddim(SCHEDULE), beta), unconditional, jnp.asarray(START), times
    )
    betas = jnp.array([-0.5, 0.0, 0.3])
    each = jax.jit(jax.vmap(lambda beta: f(beta, GRID).x))(betas)
    np.testing.assert_allclose(each[0], run(with_momentum(diffax.ddim(SCHEDULE), -0.5)), rtol=1e-12)
    assert np.isfinite(jax.jit(jax.grad(lambda beta: f(beta, GRID).x.sum()))(0.0))
    once, twice = jax.jit(f)(-0.5, GRID), jax.jit(f)(-0.5, np.repeat(GRID, 2)[:-1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), once, twice)


@pytest.mark.parametrize(
    "wrap", [lambda s: wrapped(s, 0.6), lambda s: with_momentum(s, -0.4)], ids=["cfg++", "momentum"]
)
def test_a_learned_variance_is_passed_to_the_sampler(wrap, monkeypatch):
    """v = 0 is the variance beta-tilde and v = 1 is beta, so the results equal those with these fixed variances."""
    for v, variance in enumerate(("small", "large")):
        with_v = lambda f, v=v: lambda x, t: diffax.Moments(f(x, t), jnp.full_like(x, v))
        with monkeypatch.context() as patch:
            fixed = run(wrap(diffax.ddpm(SCHEDULE, variance=variance)))
            patch.setitem(globals(), "conditional", with_v(conditional))
            learned = run(wrap(diffax.ddpm(SCHEDULE, variance="learned")), denoise=with_v(unconditional))
        np.testing.assert_allclose(learned, fixed, rtol=1e-10)


def test_bad_input():
    sampler, without_calls = diffax.ddim(SCHEDULE), diffax.Sampler(lambda x, times: State(x), lambda *a: a[2], 1, 1)
    with pytest.raises(ValueError, match="conditional must be a denoiser"):
        diffax.cfg_plus_plus(sampler, SCHEDULE, None, 0.5)
    with pytest.raises(ValueError, match="weight must be a number, an array or a function of t, got None"):
        wrapped(sampler, None)
    with pytest.raises(ValueError, match=r"guide must be a function, got 7\.5"):
        diffax.guidance_momentum(sampler, conditional, 7.5)
    with pytest.raises(ValueError, match=r"momentum must be in \(-1, 1\), got 1.0"):
        with_momentum(sampler, 1.0)
    for wrapper in (wrapped(without_calls, 0.5), with_momentum(without_calls, 0.5)):
        with pytest.raises(ValueError, match="sampler must call its denoiser"):
            wrapper.step(KEY, unconditional, wrapper.init(START, GRID), 0.5, 0.4)
