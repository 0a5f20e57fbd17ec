"""Combinations of samplers, guidance, inverse problems and correctors, each against a known answer.

At neutral settings a combination equals the bare sampler. With exact parts it follows the exact posterior of a
Gaussian. Wrappers keep an edit of x that is made inside or outside them. All runs are under jit and vmap.
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

# Stochastic samplers run at zero noise. The zero is traced, so that the compiled program has every branch.
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


# Neutral settings: functions denoiser -> denoiser and sampler -> sampler that change nothing.

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
    """Final x for two batches of starts, under jit and vmap."""
    end = lambda x: diffax.integrate(KEY, sampler, denoise, x, grid(n)).x
    return np.asarray(jax.jit(jax.vmap(end))(starts()))


@functools.cache
def bare(name):
    return run(SAMPLERS[name](SCHEDULE), prior().denoiser(SCHEDULE), 8)


def fits(wrapper, sampler):
    """Whether the wrapper accepts the sampler.

    churn and ancestral add noise, so they need a single-step sampler. cfg_plus_plus and guidance momentum intercept the
    denoiser calls, so they refuse a sampler that renoises: its calls are inside a branch.
    """
    refused = {"churn": sampler.memory, "ancestral": sampler.memory}
    return not (refused | dict.fromkeys(("cfg_plus_plus", "momentum"), sampler.renoises)).get(wrapper, False)


def neutral(i, names=tuple(SAMPLERS)):
    """Combination i. Each part cycles at its own pace; wrappers that do not accept the sampler are skipped."""
    name, parts = names[i % len(names)], []
    for table, pace in ((GUIDANCE, 1), (INVERSE, 1), (WRAPPERS, 1), (WRAPPERS, 4)):
        offset = (i * pace + i // len(table)) % len(table)
        parts.append([*list(table)[offset:], *list(table)[:offset]])
    guidance, problem, inner, outer = parts
    sampler = SAMPLERS[name](SCHEDULE)
    inner = next(w for w in inner if fits(w, sampler))
    outer = next(w for w in outer if fits(w, WRAPPERS[inner](sampler)))
    return name, guidance[0], problem[0], inner, outer


def test_nearly_all_combinations_are_different():
    assert len({neutral(i) for i in range(220)}) > 200


def check_neutral(combination):
    name, guidance, problem, inner, outer = combination
    denoise = INVERSE[problem](GUIDANCE[guidance](prior().denoiser(SCHEDULE)))
    sampler = WRAPPERS[outer](WRAPPERS[inner](SAMPLERS[name](SCHEDULE)))
    np.testing.assert_allclose(run(sampler, denoise, 8), bare(name), rtol=1e-8, atol=1e-10)


@pytest.mark.slow_cases(but=["deis-interval-ddnm-dps-momentum"])
@pytest.mark.newest
@pytest.mark.parametrize("i", range(0, len(SAMPLERS), 4), ids=lambda i: "-".join(neutral(i)))
def test_neutral_parts_do_not_change_the_sampler(i):
    check_neutral(neutral(i))


@pytest.mark.slow
@pytest.mark.parametrize("i", [i for i in range(220) if i >= len(SAMPLERS) or i % 4])
def test_neutral_parts_do_not_change_the_sampler_in_200_more_combinations(i):
    check_neutral(neutral(i))


# Exact parts: (distribution, denoiser) -> the same after guidance or a measurement. The sampler must follow the
# probability flow of the resulting distribution.


def by_classifier(target, denoise):
    """Classifier guidance with the exact p(y | x_t) of a measurement of the first entry: x0 | x_t ~ N(x0(x), r^2 I)."""

    def log_prob(x, t):
        alpha, sigma, _ = SCHEDULE(t)
        r2 = VARIANCE * sigma**2 / (alpha**2 * VARIANCE + sigma**2)
        return -0.5 * (0.3 - denoise(x, t)[..., 0]) ** 2 / (r2 + 0.2**2)

    posterior = inverse.posterior(target, MASK, jnp.array([[0.3, 0.0]]), std=0.2)
    return posterior, diffax.guidance.classifier_guidance(denoise, log_prob, SCHEDULE, 1.0)


def by_free_guidance(target, denoise):
    unconditional = prior((-0.5, 0.9))
    guided_mean = np.asarray(unconditional.mean + 1.8 * (target.mean - unconditional.mean))
    return prior(guided_mean), diffax.classifier_free_guidance(denoise, unconditional.denoiser(SCHEDULE), 1.8)


EXACT = {
    "plain": lambda target, denoise: (target, denoise),
    "classifier_free": by_free_guidance,
    "classifier": by_classifier,
}
MEASURED = {
    "all": lambda target, denoise: (target, denoise),
    "mmps": lambda target, denoise: (
        inverse.posterior(target, matrix(), jnp.array([[0.5]]), std=0.1),
        inverse.mmps(denoise, SCHEDULE, matrix(), jnp.array([[0.5]]), std=0.1),
    ),
}
TOLERANCE = {1: 0.03, 2: 0.004, 3: 0.001, 4: 0.001}


def check_exact(name, guidance, problem):
    target, denoise = MEASURED[problem](*EXACT[guidance](prior(), prior().denoiser(SCHEDULE)))
    sampler = SAMPLERS[name](SCHEDULE)
    level_start, level_end = (SCHEDULE(t) for t in (0.95, 0.1))
    exact = target.flow(starts(), level_start, level_end)
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


def test_a_wrong_part_is_detected(monkeypatch):
    """Negative controls: a conditional denoiser that is 1 % too small, and PiGDM with a wrong data variance."""
    check_exact("unipc", "classifier_free", "mmps")
    monkeypatch.setitem(
        EXACT,
        "wrong",
        lambda target, d: (by_free_guidance(target, d)[0], by_free_guidance(target, lambda x, t: 0.99 * d(x, t))[1]),
    )
    with pytest.raises(AssertionError):
        check_exact("unipc", "wrong", "all")
    monkeypatch.setitem(MEASURED, "wrong", lambda target, d: (
        MEASURED["mmps"](target, d)[0],
        inverse.pigdm(d, SCHEDULE, matrix(), jnp.array([[0.5]]), std=0.1, data_variance=4.0),
    ))  # fmt: skip
    with pytest.raises(AssertionError):
        check_exact("unipc", "plain", "wrong")


# Edits of x


def edited(sampler):
    """The sampler with a corrector that moves x at one grid point only."""
    edit_time = float(grid(8)[3])
    push = lambda key, denoise, x, t: jnp.where(jnp.abs(t - edit_time) < 1e-9, x + jnp.array([0.3, -0.2]), x)
    return corrected(sampler, Corrector(push, 1))


def check_edits(name, wrapper):
    denoise, sampler = prior().denoiser(SCHEDULE), SAMPLERS[name](SCHEDULE)
    expected = run(edited(sampler), denoise, 8)
    assert np.abs(expected - bare(name)).min() > 1e-3
    for wrapped in (edited(WRAPPERS[wrapper](sampler)), WRAPPERS[wrapper](edited(sampler))):
        np.testing.assert_allclose(run(wrapped, denoise, 8), expected, rtol=1e-8, atol=1e-10)


EDITS = [(n, w) for n in SAMPLERS for w in WRAPPERS if fits(w, SAMPLERS[n](SCHEDULE))]


@pytest.mark.slow_cases(but=["heun-cfg_plus_plus"])
@pytest.mark.newest
@pytest.mark.parametrize(
    "case",
    [(n, w) for n, w in zip(("unipc", "heun", "pndm") * 3, WRAPPERS, strict=True) if (n, w) in EDITS],
    ids="-".join,
)
def test_wrappers_keep_an_edit_of_x(case):
    check_edits(*case)


@pytest.mark.slow
@pytest.mark.parametrize("case", EDITS, ids="-".join)
def test_wrappers_keep_an_edit_of_x_in_every_combination(case):
    check_edits(*case)


# The edit that a wrapper makes at settings that are not neutral. The reference applies the same edit after each step of
# the bare sampler. All noise draws are 0.3.

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


def check_edit_of_wrapper(name, wrapper, monkeypatch):
    monkeypatch.setattr(diffax.random, "noise", lambda key, like: 0.3 + 0 * like)
    wrap, by_hand = ACTIVE[wrapper]
    denoise, sampler, times, x = prior().denoiser(SCHEDULE), SAMPLERS[name](SCHEDULE), grid(8), starts()[0]

    @jax.jit
    def by_hand_run(x):
        state = sampler.init(x, times)
        for t, s in itertools.pairwise(times):
            after = sampler.step(KEY, denoise, state, t, s)
            state = after._replace(x=by_hand(denoise, state.x, after.x, t, s))
        return state.x

    result = jax.jit(lambda x: diffax.integrate(KEY, wrap(sampler), denoise, x, times).x)(x)
    np.testing.assert_allclose(result, by_hand_run(x), rtol=1e-9)
    assert np.abs(result - bare(name)[0]).max() > 0.05


WRAPPER_EDITS = [(n, w) for n in SAMPLERS for w in ACTIVE]
FEW_WRAPPER_EDITS = [(n, w) for n, w in WRAPPER_EDITS if n in ("unipc", "pndm")]


@pytest.mark.slow_cases(but=["pndm-repaint"])
@pytest.mark.parametrize("case", FEW_WRAPPER_EDITS, ids="-".join)
def test_the_sampler_continues_from_the_edit_of_a_wrapper(case, monkeypatch):
    check_edit_of_wrapper(*case, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in WRAPPER_EDITS if c not in FEW_WRAPPER_EDITS], ids="-".join)
def test_every_sampler_continues_from_the_edit_of_a_wrapper(case, monkeypatch):
    check_edit_of_wrapper(*case, monkeypatch)


def test_a_wrapper_without_its_edit_is_detected(monkeypatch):
    """Negative control: `replacement` with the step of the bare sampler, around a multistep sampler."""

    def without_edit(sampler):
        return inverse.replacement(sampler, SCHEDULE, MASK, Y)._replace(step=sampler.step)

    monkeypatch.setitem(ACTIVE, "without edit", (without_edit, replacement_by_hand))
    with pytest.raises(AssertionError):
        check_edit_of_wrapper("unipc", "without edit", monkeypatch)


class CopiedState(NamedTuple):
    x: Any
    inner: Any


def test_a_lost_edit_is_detected(monkeypatch):
    """Negative control: a wrapper that continues from its own copy of x."""

    def losing_edit(sampler):
        def step(key, denoise, state, t, s):
            inner = sampler.step(key, denoise, state.inner, t, s)
            return state._replace(x=inner.x, inner=inner)

        init = lambda x, times: CopiedState(x, sampler.init(x, times))
        return sampler._replace(init=init, step=step)

    monkeypatch.setitem(WRAPPERS, "losing edit", losing_edit)
    with pytest.raises(AssertionError):
        check_edits("unipc", "losing edit")
