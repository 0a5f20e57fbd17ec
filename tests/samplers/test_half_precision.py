"""bfloat16 and float16 inputs: states are float32, because rounding would drop short steps; results keep the dtype."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exam import KEY, SAMPLERS

import diffax
from diffax import inverse, samplers
from diffax.analytic import Gaussian, runge_kutta
from diffax.likelihood import Lattice

HALF = (jnp.bfloat16, jnp.float16)
SCHEDULE = diffax.Linear()
ORACLE = Gaussian.from_covariance([0.7, 0.7], 0.25)
DENOISE = ORACLE.denoiser(SCHEDULE)
MASK, Y = inverse.Mask(jnp.array([1, 0])), jnp.array([[0.6, 0.0]])


def build(name):
    make, values, _ = SAMPLERS[name]
    return make(SCHEDULE, **values)


WRAPPED = {
    "euler": samplers.euler(SCHEDULE),
    "consistency": samplers.consistency(SCHEDULE),
    "lcm": samplers.lcm(SCHEDULE),
    "tcd": samplers.tcd(SCHEDULE),
    "annealed_langevin": samplers.annealed_langevin(SCHEDULE, step_size=0.1),
    "ancestral": samplers.ancestral(diffax.heun(SCHEDULE), SCHEDULE, eta=0.5),
    "churn": samplers.churn(diffax.ddim(SCHEDULE), SCHEDULE, 2.0),
    "corrected": samplers.corrected(diffax.ddim(SCHEDULE), samplers.langevin(SCHEDULE, snr=0.16)),
    "restart": samplers.restart(diffax.dpmpp_2m(SCHEDULE), SCHEDULE),
    "cfg_plus_plus": samplers.cfg_plus_plus(diffax.ddim(SCHEDULE), SCHEDULE, DENOISE, 0.3),
    "guidance_momentum": samplers.guidance_momentum(
        diffax.ddim(SCHEDULE), DENOISE, lambda c, u: diffax.classifier_free_guidance(c, u, 2.0)
    ),
    "pndm-prk": samplers.pndm(SCHEDULE, start="prk"),
    "runge_kutta": runge_kutta(SCHEDULE),
    "replacement": inverse.replacement(diffax.ddim(SCHEDULE), SCHEDULE, MASK, Y),
    "repaint": inverse.repaint(diffax.ddpm(SCHEDULE), SCHEDULE, MASK, Y),
    "dps": inverse.dps(diffax.ddpm(SCHEDULE), MASK, Y),
    "renoising": inverse.renoising(SCHEDULE, zeta=0.3),
    "ddnm_plus": inverse.ddnm_plus(SCHEDULE, MASK, Y, std=0.1),
}
ALL = {name: partial(build, name) for name in SAMPLERS} | {name: partial(WRAPPED.get, name) for name in WRAPPED}
FEW = ("ddim", "unipc", "pndm", "gaussian_adams", "restart")


@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("names", [FEW, pytest.param(tuple(ALL), marks=pytest.mark.slow)], ids=["few", "all"])
def test_a_path_equals_the_float32_path_rounded_once(names, dtype):
    """The recorded path and the last x of every sampler and wrapper, with the same noise.

    Up to 2 % of the values may differ, where the float32 value is close to a rounding tie.
    """
    times = jnp.linspace(0.9, 0.3, 7)

    @jax.jit
    def run(x):
        return {name: diffax.unroll(KEY, ALL[name](), DENOISE, x, times) for name in names}

    x = diffax.initial_noise(KEY, SCHEDULE, jax.ShapeDtypeStruct((64, 2), dtype), 0.9)
    half, single = run(x), run(x.astype(jnp.float32))
    for name in names:
        for value, exact in zip((half[name][0].x, half[name][1]), (single[name][0].x, single[name][1]), strict=True):
            assert value.dtype == dtype, name
            assert (value != exact.astype(dtype)).mean() < 0.02, name


@pytest.mark.parametrize(("dtype", "steps"), [(jnp.bfloat16, 1000), (jnp.float16, 10_000)])
def test_many_steps_end_at_the_moments_of_the_data(dtype, steps):
    """Data N(0.7, 0.5^2). A state rounded in every step would end with a mean near 0.15 and a deviation near 1."""
    schedule = diffax.Cosine()
    x = diffax.initial_noise(KEY, schedule, jax.ShapeDtypeStruct((2000, 2), dtype), 1.0)
    run = jax.jit(partial(diffax.sample, KEY, diffax.ddim(schedule), ORACLE.denoiser(schedule)))
    x0 = run(x, jnp.linspace(1.0, 1 / steps, steps)).astype(jnp.float32)
    assert abs(x0.mean() - 0.7) < 0.02
    assert abs(x0.std() - 0.5) < 0.02


def test_states_are_float32_in_a_loop_by_hand():
    """`init` makes the state float32, also of wrappers and multistep samplers, and a step keeps its dtypes."""
    x, times = jnp.ones((2, 3), jnp.bfloat16), jnp.linspace(0.9, 0.3, 4)
    denoise = lambda x, t: 0.5 * x
    for name in ("ddim", "heun-churn", "unipc", "pndm", "gaussian_adams", "guidance_momentum", "restart"):
        sampler = ALL[name]()
        if name == "guidance_momentum":
            sampler = samplers.guidance_momentum(diffax.ddim(SCHEDULE), denoise, lambda c, u: c)
        state = jax.eval_shape(sampler.init, x, times)
        step = lambda state, sampler=sampler: sampler.step(KEY, denoise, state, times[0], times[1])
        moved = jax.eval_shape(step, state)
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(moved) if jnp.issubdtype(leaf.dtype, jnp.floating)}
        assert dtypes == {jnp.dtype(jnp.float32)}, name
        assert jax.tree.map(lambda v: v.dtype, moved) == jax.tree.map(lambda v: v.dtype, state), name


def test_each_leaf_of_a_tree_keeps_its_dtype():
    dtypes_in_calls = []

    def denoise(x, t):
        dtypes_in_calls.append({name: leaf.dtype for name, leaf in x.items()})
        return jax.tree.map(lambda v: 0.5 * v, x)

    x = {"a": jnp.ones((2, 3), jnp.bfloat16), "b": jnp.ones((2, 1)), "c": jnp.ones((2,), jnp.float16)}
    result = diffax.sample(KEY, diffax.ddpm(SCHEDULE), denoise, x, jnp.array([0.9, 0.5]))
    assert {name: leaf.dtype for name, leaf in result.items()} == {name: leaf.dtype for name, leaf in x.items()}
    assert {dtype for call in dtypes_in_calls for dtype in call.values()} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("dtype", HALF)
def test_the_likelihood_and_the_bound_equal_those_of_float32(dtype):
    x = ORACLE.sample(KEY, 64).astype(dtype)
    times = diffax.times.uniform_log_snr(SCHEDULE, 101, t_max=1.0, t_min=1e-3)
    prior = lambda x: ORACLE.log_prob(x, SCHEDULE(1.0))
    t = jnp.linspace(0.1, 0.9, 64)

    @jax.jit
    def run(x):
        likelihood = diffax.log_likelihood(
            KEY, SCHEDULE, DENOISE, x, times[::-1], divergence="exact", prior_log_prob=prior
        )
        bound = diffax.likelihood.variational_bound(KEY, SCHEDULE, DENOISE, x, times)
        continuous = diffax.likelihood.continuous_bound(KEY, SCHEDULE, DENOISE, x, t)
        return likelihood, bound.total, continuous.total

    (likelihood, *bounds), (exact, *exact_bounds) = run(x), run(x.astype(jnp.float32))
    np.testing.assert_array_equal(likelihood.log_prob, exact.log_prob)
    np.testing.assert_array_equal(bounds, exact_bounds)
    assert likelihood.latent.dtype == dtype
    expected = ORACLE.log_prob(x.astype(jnp.float32), SCHEDULE(times[-1]))
    np.testing.assert_allclose(likelihood.log_prob, expected, atol=5e-3)


def test_the_training_bounds_equal_those_of_float32():
    x = (ORACLE.sample(KEY, 16) * 4).round().astype(jnp.bfloat16) / 4
    t, lattice = jnp.arange(1, 17) / 16, Lattice(0.25, -8.0, 8.0)
    predict = lambda x, t: diffax.Moments(0.3 * x, 0.1 * x)
    for loss in (diffax.losses.hybrid_loss, diffax.losses.vlb_loss):
        loss_of = jax.jit(lambda x, f=loss: f(KEY, predict, SCHEDULE, "v", x, t, num_steps=16, lattice=lattice))
        np.testing.assert_array_equal(loss_of(x), loss_of(x.astype(jnp.float32)))
    schedule = diffax.schedules.Learned.init(KEY, log_snr_max=8.0, log_snr_min=-8.0)
    loss_of = jax.jit(lambda x: diffax.losses.vdm_loss(KEY, lambda x, log_snr: 0.3 * x, schedule, "v", x, t))
    np.testing.assert_array_equal(loss_of(x), loss_of(x.astype(jnp.float32)))


def test_the_adaptive_solver_keeps_the_dtype():
    pytest.importorskip("diffrax")
    from diffax.likelihood import adaptive

    x = diffax.initial_noise(KEY, SCHEDULE, jax.ShapeDtypeStruct((8, 2), jnp.bfloat16), 0.9)
    exact = ORACLE.flow(x.astype(jnp.float32), SCHEDULE(0.9), SCHEDULE(0.1))
    for solve, expected in ((adaptive.solve, exact), (adaptive.solve_and_denoise, DENOISE(exact, 0.1))):
        solution = solve(SCHEDULE, DENOISE, x, (0.9, 0.1))
        assert solution.converged
        assert solution.x.dtype == x.dtype
        np.testing.assert_allclose(solution.x.astype(jnp.float32), expected, rtol=2**-7, atol=1e-3)
