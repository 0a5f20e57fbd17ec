"""The sampling loop: number of calls, recorded states, keys for each example, trees, networks of other frameworks."""

from functools import partial

import exam
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import diffax
from diffax import samplers

pytestmark = pytest.mark.newest
SCHEDULE = diffax.Cosine()
KEY = jax.random.key(0)


def shrink(x, t):
    return jax.tree.map(lambda v: 0.5 * v, x)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_n_entries_cost_n_calls(n):
    calls = []

    def denoise(x, t):
        jax.debug.callback(lambda t: calls.append(float(t)), t)
        return 0.5 * x

    grid = diffax.times.uniform(SCHEDULE, n)
    jax.block_until_ready(diffax.sample(KEY, diffax.ddim(SCHEDULE), denoise, jnp.ones((2, 1)), grid))
    jax.effects_barrier()
    np.testing.assert_allclose(sorted(calls, reverse=True), grid)


def test_unroll_records_every_state():
    grid = diffax.times.uniform(SCHEDULE, 5)
    sampler, x = diffax.ddpm(SCHEDULE), jnp.ones((3, 2))
    state, path = diffax.unroll(KEY, sampler, shrink, x, grid)
    assert path.shape == (4, 3, 2)
    np.testing.assert_array_equal(path[-1], state.x)
    np.testing.assert_array_equal(state.x, diffax.integrate(KEY, sampler, shrink, x, grid).x)
    np.testing.assert_allclose(diffax.sample(KEY, sampler, shrink, x, grid), 0.5 * state.x)
    _, norms = diffax.unroll(KEY, sampler, shrink, x, grid, record=lambda state: jnp.sum(state.x))
    assert norms.shape == (4,)


SAMPLERS = {
    "ddpm": diffax.ddpm,
    "churn": lambda schedule: diffax.heun(schedule, s_churn=20.0),
    "dpmpp_sde": diffax.dpmpp_sde,
    "unipc": diffax.unipc,
    "sa_solver": diffax.sa_solver,
    "predictor_corrector": lambda schedule: diffax.corrected(
        diffax.dpmpp_2m_sde(schedule), diffax.langevin(schedule, snr=0.16)
    ),
}
FEW = tuple(SAMPLERS)
SAMPLERS |= {name: partial(make, **values) for name, (make, values, _) in exam.SAMPLERS.items() if name not in FEW}
SAMPLERS |= {
    "restart": lambda schedule: samplers.restart(diffax.heun(schedule), schedule),
    "lcm": samplers.lcm,
    "tcd": lambda schedule: samplers.tcd(schedule, gamma=0.3),
    "replacement": lambda schedule: diffax.inverse.replacement(
        diffax.unipc(schedule), schedule, diffax.inverse.Mask(np.array([1, 0, 0])), jnp.ones((1, 3))
    ),
    "dps": lambda schedule: diffax.inverse.dps(
        diffax.ddpm(schedule), diffax.inverse.Mask(np.array([1, 0, 0])), jnp.ones((1, 3)), scale=0.3
    ),
}
every_sampler = exam.spread(SAMPLERS, FEW)


def guided(x, t):
    """A denoiser that computes norms and quantiles for each example."""
    conditional, unconditional = (lambda x, t: jnp.tanh(x) + 0.1), (lambda x, t: 0.5 * x)
    return diffax.denoisers.clip_dynamic(
        diffax.adaptive_projected_guidance(conditional, unconditional, 1.5, threshold=1.0), limit=2.0
    )(x, t)


def generate(name, keys, x):
    schedule = diffax.Linear()
    return diffax.integrate(
        keys, SAMPLERS[name](schedule), guided, x, diffax.times.uniform(SCHEDULE, 6, t_max=0.8, t_min=0.1)
    ).x


@pytest.mark.slow_cases("key-ddpm", "key-churn", "key-dpmpp_sde", "key-sa_solver", "key-predictor_corrector")
@every_sampler
@pytest.mark.parametrize("single", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["key", "keys"])
def test_an_example_does_not_depend_on_its_batch(name, single):
    x = jax.random.normal(jax.random.key(1), (64, 3))
    keys = KEY if single else jax.random.split(KEY, 64)
    run = jax.jit(lambda keys, x: generate(name, keys, x))
    whole_batch = run(keys, x)
    for size in (1, 7):
        np.testing.assert_allclose(run(keys if single else keys[:size], x[:size]), whole_batch[:size], rtol=1e-4)
    assert len(np.unique(np.asarray(whole_batch))) == whole_batch.size


@pytest.mark.slow_cases("ddpm", "churn", "unipc", "sa_solver", "predictor_corrector")
@every_sampler
def test_noise_from_keys_by_example_does_not_depend_on_the_devices(name):
    """With a key for each example, pmap and jit over a mesh of eight devices give the same x as one device."""
    keys, x = jax.random.split(KEY, 16), jax.random.normal(jax.random.key(1), (16, 3))
    single_device = jax.jit(lambda keys, x: generate(name, keys, x))(keys, x)
    by_pmap = jax.pmap(lambda keys, x: generate(name, keys, x))(keys.reshape(8, 2), x.reshape(8, 2, 3))
    np.testing.assert_allclose(by_pmap.reshape(16, 3), single_device, rtol=1e-5, atol=3e-7)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    shards = jax.NamedSharding(mesh, jax.P("batch"))
    by_mesh = jax.jit(lambda keys, x: generate(name, keys, x))(*jax.device_put((keys, x), shards))
    assert len(by_mesh.sharding.device_set) == 8
    np.testing.assert_allclose(by_mesh, single_device, rtol=1e-5, atol=3e-7)


def test_each_example_may_have_its_own_grid():
    sampler = diffax.ddim(SCHEDULE)
    grids = jnp.stack([jnp.linspace(1.0, 0.1, 6), jnp.linspace(0.7, 0.01, 6)], axis=1)
    x = jnp.array([[1.0], [2.0]])
    together = diffax.sample(KEY, sampler, shrink, x, grids)
    for i in range(2):
        single = diffax.sample(KEY, sampler, shrink, x[i : i + 1], grids[:, i])
        np.testing.assert_allclose(together[i : i + 1], single, rtol=1e-6)


@pytest.mark.slow_cases(but=["ipndm"])
@pytest.mark.parametrize("make", [diffax.unipc, diffax.pndm, diffax.ipndm, diffax.dpmpp_3m])
def test_each_example_may_have_its_own_grid_with_multistep_samplers(make):
    """The first grid repeats a point where the second one moves."""
    grids = jnp.array([[0.9, 0.9, 0.7, 0.4, 0.2], [0.9, 0.8, 0.6, 0.3, 0.2]]).T
    x, sampler = jnp.array([[1.0], [2.0]]), make(SCHEDULE)
    run = lambda x, times: diffax.integrate(KEY, sampler, lambda x, t: jnp.tanh(x), x, times).x
    together = run(x, grids)
    for i in range(2):
        np.testing.assert_allclose(together[i], run(x[i : i + 1], grids[:, i])[0], rtol=1e-5)


@pytest.mark.slow_cases(but=["<lambda>4"])
@pytest.mark.parametrize("make", [
    lambda eta: samplers.dpmpp_3m_sde(SCHEDULE, eta=eta),
    lambda eta: samplers.sa_solver(SCHEDULE, tau=eta),
    lambda eta: samplers.sa_solver(SCHEDULE, tau=lambda t: eta),
    lambda eta: samplers.ancestral(diffax.heun(SCHEDULE), SCHEDULE, eta=eta),
    lambda eta: samplers.churn(diffax.heun(SCHEDULE), SCHEDULE, 3 * eta),
])  # fmt: skip
def test_each_example_may_have_its_own_hyperparameter(make):
    eta, x, grid = (
        jnp.array([0.2, 0.9]),
        jnp.array([[1.0], [2.0]]),
        diffax.times.uniform(SCHEDULE, 6, t_max=0.9, t_min=0.1),
    )
    keys = jax.random.split(KEY, 2)
    together = diffax.integrate(keys, make(eta), shrink, x, grid).x
    for i in range(2):
        single = diffax.integrate(keys[i : i + 1], make(eta[i]), shrink, x[i : i + 1], grid).x
        np.testing.assert_allclose(together[i : i + 1], single, rtol=1e-5)


def test_bad_input():
    x, grid = jnp.ones((2, 1)), diffax.times.uniform(SCHEDULE, 3)
    with pytest.raises(ValueError, match=r"times must have shape \(n,\) or \(n, 2\), .* got \(3, 5\)"):
        diffax.sample(KEY, diffax.ddim(SCHEDULE), shrink, x, jnp.tile(grid[:, None], (1, 5)))
    with pytest.raises(ValueError, match="key must be typed"):
        diffax.sample(jax.random.PRNGKey(0), diffax.ddpm(SCHEDULE), shrink, x, grid)
    with pytest.raises(ValueError, match=r"times must have shape \(n, ...\) with n >= 1, got \(0,\)"):
        diffax.sample(KEY, diffax.ddim(SCHEDULE), shrink, x, grid[:0])


def test_the_program_does_not_grow_with_the_number_of_steps():
    """Therefore the compile time does not grow either."""

    def program(n):
        run = lambda x, times: diffax.sample(KEY, diffax.unipc(SCHEDULE), shrink, x, times)
        return jax.jit(run).lower(jnp.ones((2, 1)), diffax.times.uniform(SCHEDULE, n)).as_text().replace(f"{n}", "N")

    sizes = {len(program(n).splitlines()) for n in (50, 500)}
    assert len(sizes) == 1


def test_trees_are_sampled_like_their_leaves():
    x = {"image": jnp.ones((2, 4, 4, 1)), "depth": 2 * jnp.ones((2, 4))}
    grid = diffax.times.uniform(SCHEDULE, 4)
    tree = diffax.sample(KEY, diffax.ddim(SCHEDULE), shrink, x, grid)
    for name, leaf in x.items():
        np.testing.assert_allclose(tree[name], diffax.sample(KEY, diffax.ddim(SCHEDULE), shrink, leaf, grid))
    noisy = diffax.sample(KEY, diffax.ddpm(SCHEDULE), shrink, {"a": x["depth"], "b": x["depth"]}, grid)
    assert float(jnp.abs(noisy["a"] - noisy["b"]).min()) > 0  # each leaf has its own noise


def test_keys_of_another_batch_size_raise():
    with pytest.raises(ValueError, match=r"key must have shape \(\) or \(2,\), got \(3,\)"):
        diffax.sample(
            jax.random.split(KEY, 3), diffax.ddpm(SCHEDULE), shrink, jnp.ones((2, 1)), diffax.times.uniform(SCHEDULE, 3)
        )


def test_noise_of_a_wrong_level_raises():
    """Noise of sigma = 348 (t = 1) on a grid from sigma = 80 would give data of std 1.9 in place of 0.5."""
    schedule = diffax.LogLinear(0.01, 348.0)
    grid = diffax.times.uniform_log_snr(schedule, 3)
    run = lambda x: diffax.sample(KEY, diffax.ddim(schedule), shrink, x, grid)
    run(diffax.initial_noise(KEY, schedule, (40, 2)))
    run(jnp.ones((2, 1)))  # too few values to estimate their standard deviation
    too_noisy = diffax.initial_noise(KEY, schedule, (40, 2), 1.0)
    with pytest.raises(
        ValueError, match=r"x must have about the standard deviation 80 of the noise at times\[0\] = 0.859"
    ):
        run(too_noisy)
    jax.jit(run)(too_noisy)  # a traced x is not checked


def test_the_same_jitted_call_compiles_once():
    traces = []

    @jax.jit
    def generate(key, eta, times):
        traces.append(1)
        x = diffax.initial_noise(key, SCHEDULE, (4, 2))
        return diffax.sample(key, diffax.ddim(SCHEDULE, eta=eta), shrink, x, times)

    for eta, t_min in ((0.0, 0.01), (0.5, 0.1), (1.0, 0.0)):
        generate(KEY, eta, jnp.linspace(1.0, t_min, 5))
    assert len(traces) == 1


def test_an_nnx_network_can_be_sampled():
    """The core needs a function (x, t) -> y from any framework."""

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(3, 16, rngs=rngs)
            self.last = nnx.Linear(16, 2, rngs=rngs)

        def __call__(self, x, t):
            t = jnp.broadcast_to(t, x.shape[:1])[:, None]
            return self.last(nnx.relu(self.first(jnp.concatenate([x, t], -1))))

    graph, params = nnx.split(Net(nnx.Rngs(0)))

    @jax.jit
    def generate(params, key):
        denoise = diffax.denoiser(nnx.merge(graph, params), SCHEDULE, "v")
        x = diffax.initial_noise(key, SCHEDULE, (5, 2))
        return diffax.sample(key, diffax.ddim(SCHEDULE), denoise, x, diffax.times.uniform(SCHEDULE, 6))

    x = generate(params, KEY)
    assert x.shape == (5, 2)
    by_hand = diffax.initial_noise(KEY, SCHEDULE, (5, 2))
    network = nnx.merge(graph, params)
    grid = diffax.times.uniform(SCHEDULE, 6)
    for t, s in zip(grid, [*grid[1:], None], strict=True):
        x0, eps = diffax.predictions.split("v", SCHEDULE, network(by_hand, t), by_hand, t)
        by_hand = x0 if s is None else diffax.diffuse(SCHEDULE, x0, eps, s)
    np.testing.assert_allclose(x, by_hand, atol=1e-4)


def wrapped_finish(name):
    """A sampler whose `finish` returns 100 + x t, bare or inside a wrapper that holds its state."""
    schedule = diffax.Cosine()
    inner = diffax.ddim(schedule)._replace(finish=lambda key, denoise, state, t: 100 + state.x * t)
    if name == "churn":
        return diffax.churn(inner, schedule, 2.0)
    if name == "guidance_momentum":
        return diffax.guidance_momentum(
            inner, lambda x, t: x / 2, lambda c, u: diffax.classifier_free_guidance(c, u, 2.0)
        )
    return inner


@pytest.mark.parametrize("name", ["bare", "churn", "guidance_momentum"])
def test_the_last_call_is_the_finish_of_the_sampler(name):
    times, x = jnp.array([0.8, 0.5, 0.25]), jnp.ones((2, 3))
    sampler, denoise = wrapped_finish(name), lambda x, t: x / 3
    key = jax.random.key(1)
    end = diffax.integrate(key, sampler, denoise, x, times).x
    np.testing.assert_allclose(diffax.sample(key, sampler, denoise, x, times), 100 + end / 4, rtol=1e-6)
    assert sampler.finish is not diffax.ddim(diffax.Cosine()).finish
