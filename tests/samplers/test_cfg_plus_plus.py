"""Guidance on the sampler's side: CFG++ and momentum, against the papers' recursions written down in numpy."""

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


def posterior_mean(law, x, t):
    """E[x0 | x_t = x] of a Gaussian in numpy."""
    a, cov = alpha_bar(t), law.basis @ np.diag(law.variances) @ law.basis.T
    gain = np.sqrt(a) * cov @ np.linalg.inv(a * cov + (1 - a) * np.eye(2))
    return law.mean + (x - np.sqrt(a) * law.mean) @ gain.T


def eps_of(law, x, t):
    return (x - np.sqrt(alpha_bar(t)) * posterior_mean(law, x, t)) / np.sqrt(1 - alpha_bar(t))


def published_cfg_plus_plus(x, grid, scale, *, eta=0.0, noise=None):
    """Chung et al. 2024, algorithm 2 (and DDIM's eta), in alpha-bar: guided eps in x0, the null's elsewhere."""
    for k, (t, s) in enumerate(itertools.pairwise(grid)):
        now, after = alpha_bar(t), alpha_bar(s)
        null, cond = eps_of(UNCONDITIONAL, x, t), eps_of(CONDITIONAL, x, t)
        eps = null + scale * (cond - null)
        x0 = (x - np.sqrt(1 - now) * eps) / np.sqrt(now)
        tau = eta * np.sqrt((1 - after) / (1 - now)) * np.sqrt(1 - now / after) if eta else 0.0
        x = np.sqrt(after) * x0 + np.sqrt(1 - after - tau**2) * null
        x = x + tau * noise[k] if eta else x
    return x


def run(sampler, times=GRID, denoise=unconditional, x=START):
    return jax.jit(lambda x, times: diffax.integrate(KEY, sampler, denoise, x, times).x)(x, times)


def wrapped(sampler, weight):
    return diffax.cfg_plus_plus(sampler, SCHEDULE, conditional, weight)


@pytest.mark.slow_cases("sampling")
@pytest.mark.parametrize("grid", [GRID, GRID[::-1]], ids=["sampling", "inversion"])
def test_ddim_is_the_published_recursion(grid):
    for scale in (0.0, 0.6, 1.0):
        known = published_cfg_plus_plus(START, grid, scale)
        np.testing.assert_allclose(run(wrapped(diffax.ddim(SCHEDULE), scale), grid), known, rtol=1e-9)


def test_ddim_with_noise_is_the_published_recursion(monkeypatch):
    noise = np.random.default_rng(0).normal(size=(len(GRID) - 1, *START.shape))
    monkeypatch.setattr(diffax.random, "fold_in", lambda key, data: data)
    monkeypatch.setattr(diffax.random, "noise", lambda key, like: jnp.asarray(noise)[key])
    ours = run(wrapped(diffax.ddim(SCHEDULE, eta=0.7), 0.4))
    np.testing.assert_allclose(ours, published_cfg_plus_plus(START, GRID, 0.4, eta=0.7, noise=noise), rtol=1e-9)


def test_the_exam_fails_an_edit_that_is_lost(monkeypatch):
    """Negative control: a wrapper that leaves the wrapped state as it is."""
    monkeypatch.setattr(diffax, "cfg_plus_plus", lambda sampler, *args: sampler)
    with pytest.raises(AssertionError):
        test_ddim_is_the_published_recursion(GRID)


def test_the_exam_fails_ordinary_guidance(monkeypatch):
    """Negative control: the guided eps in the renoising as well."""
    right = diffax.integrate

    def guided(key, sampler, denoise, x, times):
        return right(key, diffax.ddim(SCHEDULE), diffax.classifier_free_guidance(conditional, denoise, 0.6), x, times)

    monkeypatch.setattr(diffax, "integrate", guided)
    with pytest.raises(AssertionError):
        test_ddim_is_the_published_recursion(GRID)


def test_the_weight_that_ordinary_guidance_has():
    """w = w' (1 - exp((lambda_t - lambda_s) / 2)) makes a DDIM step that of classifier-free guidance with w'."""
    lam = np.log(alpha_bar(GRID) / (1 - alpha_bar(GRID)))
    shares = jnp.asarray(2.5 * (1 - np.exp((lam[:-1] - lam[1:]) / 2)))
    weight = lambda t: shares[jnp.argmin(jnp.abs(GRID[:-1] - t))]
    cfg = diffax.classifier_free_guidance(conditional, unconditional, 2.5)
    plain = run(diffax.ddim(SCHEDULE), denoise=cfg)
    np.testing.assert_allclose(run(wrapped(diffax.ddim(SCHEDULE), weight)), plain, rtol=1e-9)


class Memory(NamedTuple):
    """A two-step method's state."""

    x: Any
    before: Any


def two_step():
    """x_s by DDIM with x0 extrapolated from the last two answers: a multistep method at its barest."""

    def step(key, denoise, state, t, s):
        x0 = denoise(state.x, t)
        guess = combine((1.5, x0), (-0.5, state.before))
        return Memory(diffax.ddim(SCHEDULE).step(key, lambda x, t: guess, State(state.x), t, s).x, x0)

    return diffax.Sampler(lambda x, times: Memory(x, jax.tree.map(jnp.zeros_like, x)), step, order=1, calls=1)


def test_a_multistep_method_keeps_unconditional_answers():
    x, before = START, np.zeros_like(START)
    for t, s in itertools.pairwise(GRID):
        now, after = alpha_bar(t), alpha_bar(s)
        c, u = (posterior_mean(law, x, t) for law in (CONDITIONAL, UNCONDITIONAL))
        guess = 1.5 * u - 0.5 * before
        eps = (x - np.sqrt(now) * guess) / np.sqrt(1 - now)
        x = np.sqrt(after) * (guess + 0.6 * (c - u)) + np.sqrt(1 - after) * eps
        before = u
    np.testing.assert_allclose(run(wrapped(two_step(), 0.6)), x, rtol=1e-9)


def test_each_branch_is_asked_once_a_step_and_idle_steps_change_nothing():
    asked = {"c": 0, "u": 0}

    def counted(name, denoise):
        def f(x, t):
            asked[name] += 1
            return denoise(x, t)

        return f

    sampler = diffax.cfg_plus_plus(diffax.ddim(SCHEDULE), SCHEDULE, counted("c", conditional), 0.6)
    state = sampler.step(KEY, counted("u", unconditional), sampler.init(START, GRID), 0.5, 0.5)
    assert asked == {"c": 1, "u": 1}
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
def test_projected_guidance_with_momentum_is_the_published_recursion(beta):
    """Sadat et al. 2024: the running difference, cut to r, split along c; then DDIM in alpha-bar."""
    x, running, eta, r = START, np.zeros_like(START), 0.2, 0.8
    for t, s in itertools.pairwise(GRID):
        c, u = (posterior_mean(law, x, t) for law in (CONDITIONAL, UNCONDITIONAL))
        running = c - u + beta * running
        d = running * np.minimum(1, r / np.linalg.norm(running, axis=1, keepdims=True))
        unit = c / np.linalg.norm(c, axis=1, keepdims=True)
        parallel = (d * unit).sum(1, keepdims=True) * unit
        x0 = c + 3.0 * (d - parallel + eta * parallel)
        eps = (x - np.sqrt(alpha_bar(t)) * x0) / np.sqrt(1 - alpha_bar(t))
        x = np.sqrt(alpha_bar(s)) * x0 + np.sqrt(1 - alpha_bar(s)) * eps
    ours = run(with_momentum(diffax.ddim(SCHEDULE), beta, eta=eta, threshold=r))
    np.testing.assert_allclose(ours, x, rtol=1e-9)


def test_the_exam_fails_a_momentum_that_forgets(monkeypatch):
    """Negative control."""
    right = diffax.guidance_momentum
    monkeypatch.setattr(diffax, "guidance_momentum", lambda *args, momentum: right(*args, momentum=0.0))
    with pytest.raises(AssertionError):
        test_projected_guidance_with_momentum_is_the_published_recursion(-0.5)


def test_without_momentum_it_is_the_sampler_on_the_guided_denoiser():
    guided = diffax.adaptive_projected_guidance(conditional, unconditional, 4.0)
    np.testing.assert_allclose(run(with_momentum(two_step(), 0.0)), run(two_step(), denoise=guided), rtol=1e-10)


def test_momentum_is_traced_and_idle_steps_change_nothing():
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
def test_a_learned_variance_is_left_to_the_sampler(wrap, monkeypatch):
    """v = 0 is beta-tilde, v = 1 beta: the samplers of those fixed variances on x0 alone."""
    for v, variance in enumerate(("small", "large")):
        with_v = lambda f, v=v: lambda x, t: diffax.Moments(f(x, t), jnp.full_like(x, v))
        with monkeypatch.context() as patch:
            fixed = run(wrap(diffax.ddpm(SCHEDULE, variance=variance)))
            patch.setitem(globals(), "conditional", with_v(conditional))
            learned = run(wrap(diffax.ddpm(SCHEDULE, variance="learned")), denoise=with_v(unconditional))
        np.testing.assert_allclose(learned, fixed, rtol=1e-10)


def test_bad_input():
    sampler, silent = diffax.ddim(SCHEDULE), diffax.Sampler(lambda x, times: State(x), lambda *a: a[2], 1, 1)
    with pytest.raises(ValueError, match="conditional must be a denoiser"):
        diffax.cfg_plus_plus(sampler, SCHEDULE, None, 0.5)
    with pytest.raises(ValueError, match="weight must be a number, an array or a function of t, got None"):
        wrapped(sampler, None)
    with pytest.raises(ValueError, match=r"guide must be a function, got 7\.5"):
        diffax.guidance_momentum(sampler, conditional, 7.5)
    with pytest.raises(ValueError, match=r"momentum must be in \(-1, 1\), got 1.0"):
        with_momentum(sampler, 1.0)
    for wrapper in (wrapped(silent, 0.5), with_momentum(silent, 0.5)):
        with pytest.raises(ValueError, match="sampler must call its denoiser"):
            wrapper.step(KEY, unconditional, wrapper.init(START, GRID), 0.5, 0.4)
