"""Samplers x guidance x inverse problems x correctors, each combination against a known answer.

At neutral settings a combination is the bare sampler; with exact parts it follows the exact posterior of a Gaussian; an
edit of x, made inside a wrapper or outside of it, is kept by whatever surrounds it. All under jit and vmap.
"""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exam import ORDERS, START

import diffax
from diffax import analytic, inverse, samplers
from diffax.samplers import Corrector, corrected

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(0)
SCHEDULE = diffax.Linear()
VARIANCE = 0.25
MASK = inverse.Mask(np.array([1, 0]))
STEPS = 40

# Of stochastic samplers those at zero noise, traced, so that every branch is there.
SAMPLERS = {name: ORDERS[name] for name in (
    "ddim", "heun", "heun-time", "dpm2", "dpmpp_2s", "dpm_solver", "dpmpp_2m", "dpmpp_3m", "deis", "lms", "flow_adams",
    "unipc", "pndm", "ipndm",
)}  # fmt: skip
SAMPLERS |= {
    "ddim-eta": lambda schedule: samplers.ddim(schedule, eta=jnp.zeros(())),
    "dpmpp_sde": lambda schedule: samplers.dpmpp_sde(schedule, eta=jnp.zeros(())),
    "dpmpp_2m_sde": lambda schedule: samplers.dpmpp_2m_sde(schedule, eta=jnp.zeros(())),
    "sa_solver": lambda schedule: samplers.sa_solver(schedule, tau=jnp.zeros(())),
}


def prior(mean=(0.7, -0.4)):
    return analytic.Gaussian.from_covariance(np.array(mean), VARIANCE)


def other():
    return prior((-0.5, 0.9)).denoiser(SCHEDULE)


def matrix():
    return inverse.linear(lambda x: jnp.array([[0.6, -0.8]]) @ x, jnp.zeros(2))


def zero():
    return jnp.zeros(())


# Neutral: denoiser -> denoiser, and sampler -> sampler.

GUIDANCE = {
    "classifier_free": lambda d: diffax.classifier_free_guidance(d, other(), 1 + zero()),
    "interval": lambda d: diffax.guidance.guidance_interval(
        diffax.classifier_free_guidance(d, other(), 3.0), d, 0.9 + zero(), 0.1
    ),
    "rescale": lambda d: diffax.guidance.guidance_rescale(d, other(), zero()),
    "apg": lambda d: diffax.adaptive_projected_guidance(d, other(), 1 + zero(), eta=1.0),
    "autoguidance": lambda d: diffax.classifier_free_guidance(d, other(), 1 + zero()),
    "classifier": lambda d: diffax.guidance.classifier_guidance(d, lambda x, t: jnp.sin(x).sum(-1), SCHEDULE, zero()),
    "clip_static": lambda d: diffax.denoisers.clip_static(d, -50.0, 50.0),
    "clip_dynamic": lambda d: diffax.denoisers.clip_dynamic(d, limit=50.0),
}
INVERSE = {
    "pigdm": lambda d: inverse.pigdm(d, SCHEDULE, matrix(), jnp.ones((1, 1)), std=jnp.inf),
    "mmps": lambda d: inverse.mmps(d, SCHEDULE, matrix(), jnp.ones((1, 1)), std=jnp.inf),
    "ddnm": lambda d: inverse.ddnm(d, inverse.Mask(np.zeros(2)), jnp.ones((1, 2))),
    "diffpir": lambda d: inverse.diffpir(d, SCHEDULE, matrix(), jnp.ones((1, 1)), std=jnp.inf),
}
WRAPPERS = {
    "corrected": lambda s: corrected(s, samplers.langevin(SCHEDULE, step_size=zero())),
    "churn": lambda s: samplers.churn(s, SCHEDULE, zero()),
    "ancestral": lambda s: samplers.ancestral(s, SCHEDULE, eta=zero()),
    "restart": lambda s: samplers.restart(s, SCHEDULE),
    "cfg_plus_plus": lambda s: samplers.cfg_plus_plus(s, SCHEDULE, other(), zero()),
    "momentum": lambda s: samplers.guidance_momentum(
        s, other(), lambda c, u: diffax.classifier_free_guidance(c, u, zero()), momentum=zero()
    ),
    "replacement": lambda s: inverse.replacement(s, SCHEDULE, inverse.Mask(np.zeros(2)), jnp.ones((1, 2))),
    "repaint": lambda s: inverse.repaint(s, SCHEDULE, inverse.Mask(np.zeros(2)), jnp.ones((1, 2))),
    "dps": lambda s: inverse.dps(s, matrix(), jnp.ones((1, 1)), scale=zero()),
}


def grid(n=STEPS):
    return diffax.times.uniform_log_snr(SCHEDULE, n, t_max=0.95, t_min=0.1)


def starts():
    return jnp.stack([jnp.asarray(START), jnp.asarray(START)[::-1] + 0.2])


def run(sampler, denoise, n=STEPS):
    """Ends for two batches of starts, under jit and vmap."""
    end = lambda x: diffax.integrate(KEY, sampler, denoise, x, grid(n)).x
    return np.asarray(jax.jit(jax.vmap(end))(starts()))


@functools.cache
def bare(name):
    return run(SAMPLERS[name](SCHEDULE), prior().denoiser(SCHEDULE), 8)


def fits(wrapper, sampler):
    """Noise needs a sampler without memory; who listens to the denoiser's calls, one that makes them in the open."""
    refused = {"churn": sampler.memory, "ancestral": sampler.memory}
    return not (refused | dict.fromkeys(("cfg_plus_plus", "momentum"), sampler.renoises)).get(wrapper, False)


def neutral(i, names=tuple(SAMPLERS)):
    """Combination i: every part cycles at its own pace, past wrappers that do not fit."""
    name, parts = names[i % len(names)], []
    for table, pace in ((GUIDANCE, 1), (INVERSE, 1), (WRAPPERS, 1), (WRAPPERS, 4)):
        place = (i * pace + i // len(table)) % len(table)
        parts.append([*list(table)[place:], *list(table)[:place]])
    guidance, problem, inner, outer = parts
    sampler = SAMPLERS[name](SCHEDULE)
    inner = next(w for w in inner if fits(w, sampler))
    outer = next(w for w in outer if fits(w, WRAPPERS[inner](sampler)))
    return name, guidance[0], problem[0], inner, outer


def test_the_combinations_are_different():
    assert len({neutral(i) for i in range(220)}) > 200


def check_neutral(combination):
    name, guidance, problem, inner, outer = combination
    denoise = INVERSE[problem](GUIDANCE[guidance](prior().denoiser(SCHEDULE)))
    sampler = WRAPPERS[outer](WRAPPERS[inner](SAMPLERS[name](SCHEDULE)))
    np.testing.assert_allclose(run(sampler, denoise, 8), bare(name), rtol=1e-8, atol=1e-10)


@pytest.mark.slow_cases(but=["deis-interval-ddnm-dps-momentum"])
@pytest.mark.newest
@pytest.mark.parametrize("i", range(0, len(SAMPLERS), 4), ids=lambda i: "-".join(neutral(i)))
def test_neutral_parts_leave_the_sampler_as_it_is(i):
    check_neutral(neutral(i))


@pytest.mark.slow
@pytest.mark.parametrize("i", [i for i in range(220) if i >= len(SAMPLERS) or i % 4])
def test_neutral_parts_leave_the_sampler_as_it_is_in_200_more_combinations(i):
    check_neutral(neutral(i))


# Exact: what the denoiser becomes, and the law whose probability flow the sampler must then follow.


def by_classifier(law, denoise):
    """Classifier guidance with the exact p(y | x_t) of a measured first entry: x0 | x_t ~ N(x0(x), r^2 I)."""

    def log_prob(x, t):
        alpha, sigma, _ = SCHEDULE(t)
        r2 = VARIANCE * sigma**2 / (alpha**2 * VARIANCE + sigma**2)
        return -0.5 * (0.3 - denoise(x, t)[..., 0]) ** 2 / (r2 + 0.2**2)

    measured = inverse.posterior(law, MASK, jnp.array([[0.3, 0.0]]), std=0.2)
    return measured, diffax.guidance.classifier_guidance(denoise, log_prob, SCHEDULE, 1.0)


def by_free_guidance(law, denoise):
    away = prior((-0.5, 0.9))
    moved = np.asarray(away.mean + 1.8 * (law.mean - away.mean))
    return prior(moved), diffax.classifier_free_guidance(denoise, away.denoiser(SCHEDULE), 1.8)


EXACT = {
    "plain": lambda law, denoise: (law, denoise),
    "classifier_free": by_free_guidance,
    "classifier": by_classifier,
}
MEASURED = {
    "all": lambda law, denoise: (law, denoise),
    "mmps": lambda law, denoise: (
        inverse.posterior(law, matrix(), jnp.array([[0.5]]), std=0.1),
        inverse.mmps(denoise, SCHEDULE, matrix(), jnp.array([[0.5]]), std=0.1),
    ),
}
TOLERANCE = {1: 0.03, 2: 0.004, 3: 0.001, 4: 0.001}


def check_exact(name, guidance, problem):
    law, denoise = MEASURED[problem](*EXACT[guidance](prior(), prior().denoiser(SCHEDULE)))
    sampler = SAMPLERS[name](SCHEDULE)
    first, last = (SCHEDULE(t) for t in (0.95, 0.1))
    exact = law.flow(starts(), first, last)
    np.testing.assert_allclose(run(sampler, denoise), exact, atol=TOLERANCE[sampler.order])


CASES = [(n, g, p) for n in SAMPLERS for g in EXACT for p in MEASURED]
FEW = [CASES[i] for i in range(0, len(CASES), 11)]


@pytest.mark.slow_cases(but=["dpm2-classifier-all"])
@pytest.mark.parametrize("case", FEW, ids="-".join)
def test_exact_parts_follow_the_exact_posterior(case):
    check_exact(*case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in CASES if c not in FEW], ids="-".join)
def test_exact_parts_follow_the_exact_posterior_in_every_combination(case):
    check_exact(*case)


def test_a_wrong_part_is_noticed(monkeypatch):
    """Negative controls: a weight a little off, and PiGDM without its r^2."""
    check_exact("unipc", "classifier_free", "mmps")
    monkeypatch.setitem(EXACT, "wrong", lambda law, d: (by_free_guidance(law, d)[0], by_free_guidance(law, lambda x, t: 0.99 * d(x, t))[1]))  # fmt: skip  # noqa: E501
    with pytest.raises(AssertionError):
        check_exact("unipc", "wrong", "all")
    monkeypatch.setitem(MEASURED, "wrong", lambda law, d: (
        MEASURED["mmps"](law, d)[0],
        inverse.pigdm(d, SCHEDULE, matrix(), jnp.array([[0.5]]), std=0.1, data_variance=4.0),
    ))  # fmt: skip
    with pytest.raises(AssertionError):
        check_exact("unipc", "plain", "wrong")


# Edits of x


def edited(sampler):
    """A corrector that moves x at one point of the grid only."""
    at = float(grid(8)[3])
    push = lambda key, denoise, x, t: jnp.where(jnp.abs(t - at) < 1e-9, x + jnp.array([0.3, -0.2]), x)
    return corrected(sampler, Corrector(push, 1))


def check_edits(name, wrapper):
    denoise, sampler = prior().denoiser(SCHEDULE), SAMPLERS[name](SCHEDULE)
    right = run(edited(sampler), denoise, 8)
    assert np.abs(right - bare(name)).min() > 1e-3
    for wrapped in (edited(WRAPPERS[wrapper](sampler)), WRAPPERS[wrapper](edited(sampler))):
        np.testing.assert_allclose(run(wrapped, denoise, 8), right, rtol=1e-8, atol=1e-10)


EDITS = [(n, w) for n in SAMPLERS for w in WRAPPERS if fits(w, SAMPLERS[n](SCHEDULE))]


@pytest.mark.slow_cases(but=["heun-cfg_plus_plus"])
@pytest.mark.newest
@pytest.mark.parametrize(
    "case",
    [(n, w) for n, w in zip(("unipc", "heun", "pndm") * 3, WRAPPERS, strict=True) if (n, w) in EDITS],
    ids="-".join,
)
def test_an_edit_of_x_is_kept(case):
    check_edits(*case)


@pytest.mark.slow
@pytest.mark.parametrize("case", EDITS, ids="-".join)
def test_an_edit_of_x_is_kept_in_every_combination(case):
    check_edits(*case)


# A wrapper's own edit, at settings that are not neutral: by hand around the bare sampler's steps. All draws are 0.3.

Y = jnp.array([[0.9, 0.0]])


def langevin_by_hand(denoise, before, after, t, s, k=0.3):
    alpha, sigma, _ = SCHEDULE(s)
    return after + 2 * k**2 * (alpha * denoise(after, s) - after) + 2 * k * sigma * 0.3


def replacement_by_hand(denoise, before, after, t, s):
    alpha, sigma, _ = SCHEDULE(s)
    return after.at[:, 0].set(alpha * Y[0, 0] + sigma * 0.3)


def dps_by_hand(denoise, before, after, t, s):
    misfit = lambda x: jnp.abs(Y[0, 0] - denoise(x, t)[:, 0]).sum()
    return after - 0.4 * jax.grad(misfit)(before)


ACTIVE = {
    "langevin": (lambda s: corrected(s, samplers.langevin(SCHEDULE, step_size=0.3)), langevin_by_hand),
    "replacement": (lambda s: inverse.replacement(s, SCHEDULE, MASK, Y), replacement_by_hand),
    "repaint": (lambda s: inverse.repaint(s, SCHEDULE, MASK, Y), replacement_by_hand),
    "dps": (lambda s: inverse.dps(s, MASK, Y, scale=0.4), dps_by_hand),
}


def check_own_edit(name, wrapper, monkeypatch):
    monkeypatch.setattr(diffax.random, "noise", lambda key, like: 0.3 + 0 * like)
    wrap, by_hand = ACTIVE[wrapper]
    denoise, sampler, times, x = prior().denoiser(SCHEDULE), SAMPLERS[name](SCHEDULE), grid(8), starts()[0]

    @jax.jit
    def hand(x):
        state = sampler.init(x, times)
        for t, s in itertools.pairwise(times):
            after = sampler.step(KEY, denoise, state, t, s)
            state = after._replace(x=by_hand(denoise, state.x, after.x, t, s))
        return state.x

    found = jax.jit(lambda x: diffax.integrate(KEY, wrap(sampler), denoise, x, times).x)(x)
    np.testing.assert_allclose(found, hand(x), rtol=1e-9)
    assert np.abs(found - bare(name)[0]).max() > 0.05


OWN = [(n, w) for n in SAMPLERS for w in ACTIVE]
FEW_OWN = [(n, w) for n, w in OWN if n in ("unipc", "pndm")]


@pytest.mark.slow_cases(but=["pndm-repaint"])
@pytest.mark.parametrize("case", FEW_OWN, ids="-".join)
def test_a_wrapper_s_own_edit_is_kept(case, monkeypatch):
    check_own_edit(*case, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in OWN if c not in FEW_OWN], ids="-".join)
def test_a_wrapper_s_own_edit_is_kept_by_every_sampler(case, monkeypatch):
    check_own_edit(*case, monkeypatch)


def test_a_wrapper_that_loses_its_own_edit_is_noticed(monkeypatch):
    """Negative control: replacement that returns the sampler's state as it was, where that has a memory."""

    def forgetful(sampler):
        return inverse.replacement(sampler, SCHEDULE, MASK, Y)._replace(step=sampler.step)

    monkeypatch.setitem(ACTIVE, "forgetful", (forgetful, replacement_by_hand))
    with pytest.raises(AssertionError):
        check_own_edit("unipc", "forgetful", monkeypatch)


class Copied(NamedTuple):
    x: Any
    inner: Any


def test_a_lost_edit_is_noticed(monkeypatch):
    """Negative control: a wrapper that goes on from a copy of x of its own."""

    def forgetful(sampler):
        def step(key, denoise, state, t, s):
            inner = sampler.step(key, denoise, state.inner, t, s)
            return state._replace(x=inner.x, inner=inner)

        init = lambda x, times: Copied(x, sampler.init(x, times))
        return sampler._replace(init=init, step=step)

    monkeypatch.setitem(WRAPPERS, "forgetful", forgetful)
    with pytest.raises(AssertionError):
        check_edits("unipc", "forgetful")
