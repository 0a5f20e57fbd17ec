"""The training step, its parallel forms, the optimiser, EMA, and checkpoints in another layout."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from commands import built

from diffax import training
from diffax.training import parallel
from diffax.training.parallel import over_batch
from experiments.configs import digits
from experiments.run.inputs import FORMS

KEY = jax.random.key(0)
D = 8


@pytest.fixture(autouse=True)
def _split_small_leaves(monkeypatch):
    """Let FSDP split small leaves too, because these tests have only eight parameters."""
    monkeypatch.setattr(parallel, "SMALL", 1)


def quadratic(params, batch, keys):
    """|w - x|^2 with a noisy x, a loss with known gradients and noise."""
    eps = jax.vmap(lambda k: jax.random.normal(k, (D,)))(keys)
    return jnp.sum((params["w"] - batch["x"] - 0.1 * eps) ** 2, -1)


def batch_of(size, seed=0):
    x = jax.random.normal(jax.random.key(seed), (size, D))
    return {"x": np.asarray(x), "index": np.arange(size, dtype=np.int32)}


def make(optimizer=None, ema_decay=0.9):
    optimizer = optimizer or optax.adam(0.1)
    state = training.init_state(jax.random.key(0), {"w": jnp.ones(D)}, optimizer)
    return state, training.train_step(quadratic, optimizer, ema_decay=ema_decay)


def on(form, count, state, step):
    """(state, step) in this form on `count` devices."""
    run = FORMS[form](step, training.make_mesh(jax.devices()[:count]))
    return run.place(state), run


@pytest.mark.slow_cases(but=["jit-8"])
@pytest.mark.newest
@pytest.mark.parametrize(("form", "count"), [("pmap", 2), ("pmap", 8), ("jit", 8), ("fsdp", 8)])
def test_several_devices_agree_with_one(form, count):
    """Over 30 steps the losses agree to a relative 1e-5, and the leaves have the same shapes."""
    losses, ends = [], []
    for case in (("pmap", 1), (form, count)):
        state, run = on(*case, *make())
        losses.append([])
        for i in range(30):
            state, metrics = run(state, batch_of(16, i))
            losses[-1].append(float(metrics["loss"]))
        ends.append(state)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    shard_size = ends[1].params["w"].addressable_shards[0].data.size
    assert shard_size == (D // count if form == "fsdp" else D)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), *ends)
    np.testing.assert_allclose(ends[1].params["w"], ends[0].params["w"], rtol=1e-5)
    np.testing.assert_allclose(ends[1].ema["w"], ends[0].ema["w"], rtol=1e-5)


@pytest.mark.newest
def test_the_memory_of_a_loss_does_not_depend_on_the_layout(tmp_path):
    """Each device updates the memory with the whole batch in its order; a checkpoint contains the memory."""

    def loss(params, batch, keys, memory):
        value = quadratic(params, batch, keys)
        return value + memory.sum(), (batch["index"], value)

    def update_memory(memory, aux):
        index, value = aux
        return jnp.where(jnp.arange(16) == index, value, memory)

    optimizer, ends = optax.adam(0.1), []
    for count in (1, 8):
        mesh = training.make_mesh(jax.devices()[:count])
        state = training.init_state(KEY, {"w": jnp.ones(D)}, optimizer, jnp.zeros(16))
        step = training.train_step(loss, optimizer, ema_decay=0.9, update_memory=update_memory)
        state, run = training.place(state, mesh), training.data_parallel(step, mesh)
        for i in range(3):
            state, metrics = run(state, batch_of(16, i))
        ends.append(state)
    np.testing.assert_allclose(ends[1].memory, ends[0].memory, rtol=1e-5)
    assert (ends[0].memory > 0).all()
    assert float(metrics["loss"]) > float(ends[0].memory.mean())  # the loss includes the memory of the previous step
    with training.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, ends[1], {})
        empty = dataclasses.replace(ends[1], memory=jnp.zeros_like(ends[1].memory))
        np.testing.assert_array_equal(checkpoints.restore(3, empty).memory, ends[1].memory)
        np.testing.assert_array_equal(checkpoints.restore_ema(3, {"w": jnp.zeros(D)})["w"], ends[1].ema["w"])
        for other in ({}, {"v": jnp.zeros(D)}, {"v": jnp.zeros(D), "w": jnp.zeros(D)}):
            with pytest.raises(ValueError, match=r"checkpoint .*3 must hold"):
                checkpoints.restore_ema(3, other)


@pytest.mark.newest
def test_a_loss_gets_the_fields_of_the_state_that_it_uses():
    """Before the step; and the update of the memory gets them, too."""

    def loss(params, batch, keys, memory, *, step, ema):
        return quadratic(params, batch, keys) + 0.0 * (memory + step + ema["w"].sum()), batch["x"]

    def update_memory(memory, aux, *, step, ema):
        return 100 * step + ema["w"].sum()

    optimizer = optax.sgd(0.1)
    state = training.init_state(KEY, {"w": jnp.ones(D)}, optimizer, jnp.zeros(()))
    options = {"update_memory": update_memory, "uses": ("step", "ema")}
    for accumulate in (1, 2):
        step = jax.jit(training.train_step(loss, optimizer, ema_decay=0.5, accumulate=accumulate, **options))
        first, _ = step(state, batch_of(16, 0))
        second, _ = step(first, batch_of(16, 1))
        assert float(first.memory) == D
        np.testing.assert_allclose(second.memory, 100 + first.ema["w"].sum(), rtol=1e-6)


def test_donation_keeps_the_arrays_of_the_caller():
    params = {"w": jnp.ones(D)}
    state = training.init_state(KEY, params, optax.adam(0.1))
    mesh = training.make_mesh(jax.devices()[:1])
    training.data_parallel(make()[1], mesh)(training.place(state, mesh), batch_of(4))
    assert params["w"].tolist() == [1] * D
    jax.random.split(KEY)


@pytest.mark.slow_cases("pmap-False-2")
@pytest.mark.newest
@pytest.mark.parametrize(
    ("form", "placed", "count"), [("pmap", True, 1), ("jit", True, 1), ("fsdp", True, 1), ("pmap", False, 2)]
)
def test_the_step_compiles_once(form, placed, count, caplog):
    """Control: with a first state that is not placed on the devices, the step compiles twice."""
    state, step = make()
    on_devices, run = on(form, 8, state, step)
    state = on_devices if placed else state
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for i in range(4):
            state, _ = run(state, batch_of(8, i))
    batch = f"float32[8,1,{D}]" if form == "pmap" else f"float32[8,{D}]"
    compiled = [r for r in caplog.messages if r.startswith("Compiling") and batch in r]
    assert len(compiled) == count, compiled


def test_a_batch_that_does_not_divide_is_refused():
    state, step = make()
    run = training.data_parallel(step)
    with pytest.raises(ValueError, match="batch size must be a multiple of 8 devices, got 12"):
        run(training.place(state, training.make_mesh()), batch_of(12))


def test_noise_follows_the_index_and_the_step():
    state, step = make(optax.sgd(0.0))
    batch = batch_of(8)
    shuffled = {k: v[::-1] for k, v in batch.items()}
    first = step(state, batch)[1]["loss"]
    np.testing.assert_allclose(step(state, shuffled)[1]["loss"], first, rtol=1e-6)
    after, _ = step(state, batch)
    assert step(after, batch)[1]["loss"] != first
    assert jnp.array_equal(jax.random.key_data(after.key), jax.random.key_data(state.key))


def test_ema_is_the_warmed_up_average():
    state, step = make(optax.sgd(0.05), ema_decay=0.5)
    average, params = np.ones(D), []
    for i in range(12):
        state, _ = step(state, batch_of(4, i))
        params.append(np.asarray(state.params["w"]))
        decay = min(0.5, (1 + i) / (10 + i))
        average = decay * average + (1 - decay) * params[-1]
    np.testing.assert_allclose(state.ema["w"], average, rtol=1e-5)
    assert int(state.step) == 12


def test_gradients_are_clipped_and_the_unclipped_norm_is_reported():
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(1.0))
    state, step = make(optimizer)
    batch = {"x": np.full((4, D), 100.0, np.float32), "index": np.arange(4)}
    after, metrics = step(state, batch)
    np.testing.assert_allclose(jnp.linalg.norm(after.params["w"] - state.params["w"]), 0.5, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], 2 * 99 * np.sqrt(D), rtol=1e-2)


@pytest.mark.parametrize(
    ("decay", "middle", "end"),
    [
        ("cosine", 0.05, 0.0),
        ("linear", 0.05, 0.0),
        ("constant", 0.1, 0.1),
        ("inverse_sqrt", 0.1 / 5.5**0.5, 0.1 / 10**0.5),
    ],
)
def test_the_learning_rate_warms_up_and_decays(decay, middle, end):
    schedule = training.learning_rate_schedule(learning_rate=0.1, num_steps=100, warmup_steps=10, decay=decay)
    np.testing.assert_allclose([schedule(n) for n in (0, 5, 10, 55, 100)], [0, 0.05, 0.1, middle, end], atol=1e-7)


@pytest.fixture(scope="module")
def settled_updates():
    """{name: updates of a tree after 30 steps with constant gradients, with learning rate 0.1}."""
    key = jax.random.key(0)
    params = {"kernel": jnp.zeros((3, 3, 4, 6)), "embedding": jnp.zeros((5, 6)), "bias": jnp.zeros(6)}
    gradients = jax.tree.map(lambda v: jax.random.normal(key, v.shape) * jnp.logspace(-1, 0, 6), params)
    updates = {}
    for name in ("adamw", "adafactor", "lion", "muon"):
        optimizer = training.optimizer(name, learning_rate=0.1, num_steps=100, decay="constant", clip_norm=1e9)
        update = jax.jit(optimizer.update)
        state = optimizer.init(params)
        for _ in range(30):
            updates[name], state = update(gradients, state, params)
    return gradients, updates


def test_with_constant_gradients_adam_and_lion_move_by_the_learning_rate_against_the_sign(settled_updates):
    gradients, updates = settled_updates
    for name in ("adamw", "lion"):
        for leaf, g in zip(*map(jax.tree.leaves, (updates[name], gradients)), strict=True):
            np.testing.assert_allclose(leaf, -0.1 * jnp.sign(g), rtol=1e-3)


def test_adafactor_divides_by_the_root_of_the_mean_square(settled_updates):
    """No leaf is large enough to be factored, so the second moment is exact."""
    gradients, updates = settled_updates
    for leaf, g in zip(*map(jax.tree.leaves, (updates["adafactor"], gradients)), strict=True):
        np.testing.assert_allclose(leaf, -0.1 * jnp.sign(g) * (1 - 0.9**30), rtol=1e-2)


def test_muon_orthogonalises_kernels_as_matrices_and_leaves_other_parameters_to_adam(settled_updates):
    gradients, updates = settled_updates
    matrix, g = (np.asarray(tree["kernel"]).reshape(36, 6) for tree in (updates["muon"], gradients))
    largest, *_, smallest = np.linalg.svd(g, compute_uv=False)
    assert largest > 8 * smallest
    largest, *_, smallest = np.linalg.svd(matrix, compute_uv=False)
    assert largest < 2 * smallest  # five Newton-Schulz steps bring all to about [0.7, 1.2] times one number
    assert (matrix * g).sum() < 0
    np.testing.assert_allclose(np.sqrt(np.mean(matrix**2)), 0.2 * 0.1, rtol=0.2)
    for name in ("embedding", "bias"):
        np.testing.assert_allclose(updates["muon"][name], updates["adamw"][name], rtol=1e-3)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "muon"])
def test_weight_decay_shrinks_parameters_by_the_learning_rate(name):
    params = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
    optimizer = training.optimizer(name, learning_rate=0.1, num_steps=10, decay="constant", weight_decay=0.5)
    update, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    for leaf in jax.tree.leaves(update):
        np.testing.assert_allclose(leaf, -0.05, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "sgd"}, "name must be one of adamw, adafactor, lion, muon, got 'sgd'"),
        ({"learning_rate": -1.0}, "learning_rate must be > 0, got -1.0"),
        ({"clip_norm": 0.0}, "clip_norm must be > 0, got 0.0"),
        ({"warmup_steps": -1}, "warmup_steps must be >= 0, got -1"),
        ({"b1": 1.5}, r"b1 must be in \[0, 1\), got 1.5"),
        ({"weight_decay": -1.0}, "weight_decay must be >= 0, got -1.0"),
        ({"decay": "exponential"}, "decay must be one of constant, cosine, linear, inverse_sqrt, got 'exponential'"),
    ],
)
def test_bad_settings_of_an_optimizer_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        training.optimizer(**{"learning_rate": 1e-3, "num_steps": 10, **changes})


def test_ema_decay_is_checked():
    with pytest.raises(ValueError, match=r"ema_decay must be in \[0, 1\), got 1.0"):
        make(ema_decay=1.0)


@pytest.mark.slow_cases(but=["pmap"])
@pytest.mark.newest
@pytest.mark.parametrize("form", FORMS)
def test_accumulated_parts_of_a_batch_equal_the_whole(form):
    """Gradient, loss and memory agree in any layout: 8 devices, 16 examples, two parts on each device."""

    def loss(params, batch, keys, memory):
        value = quadratic(params, batch, keys)
        return value + memory.sum(), (batch["index"], value)

    def update_memory(memory, aux):
        index, value = aux
        return memory.at[index].set(value)

    ends = []
    for accumulate in (1, 2):
        optimizer = optax.sgd(0.1)
        state = training.init_state(KEY, {"w": jnp.ones(D)}, optimizer, jnp.zeros(16))
        step = training.train_step(loss, optimizer, ema_decay=0.9, update_memory=update_memory, accumulate=accumulate)
        state, run = on(form, 8, state, step)
        for i in range(2):
            state, metrics = run(state, batch_of(16, i))
        ends.append((state.params["w"], state.ema["w"], state.memory, metrics["loss"], metrics["grad_norm"]))
    for whole, parts in zip(*ends, strict=True):
        np.testing.assert_allclose(parts, whole, rtol=1e-5)


def test_accumulate_is_checked():
    step = training.train_step(quadratic, optax.adam(0.1), ema_decay=0.9, accumulate=3)
    with pytest.raises(ValueError, match="accumulate must divide the 16 examples of a device, got 3"):
        step(make()[0], batch_of(16))
    with pytest.raises(ValueError, match="accumulate must be an int >= 1, got 0"):
        training.train_step(quadratic, optax.sgd(0.1), ema_decay=0.9, accumulate=0)


@pytest.mark.newest
def test_fsdp_splits_the_state_of_the_digits_network(monkeypatch):
    """Each of 8 devices holds at most a seventh of the bytes; leaves under 1,024 entries are replicated."""
    monkeypatch.setattr(parallel, "SMALL", 1024)
    model, optimizer = built(digits.get_config()), optax.adam(0.1)

    def make():
        return training.init_state(KEY, model.init(KEY), optimizer)

    state = jax.eval_shape(make)
    size = lambda shape, leaf: np.prod(shape, dtype=int) * leaf.dtype.itemsize
    shardings = parallel.layout(state, training.make_mesh(), "fsdp")
    on_one_device = jax.tree.map(lambda leaf, sharding: size(sharding.shard_shape(leaf.shape), leaf), state, shardings)
    whole = jax.tree.map(lambda leaf: size(leaf.shape, leaf), state)
    assert sum(jax.tree.leaves(on_one_device)) <= sum(jax.tree.leaves(whole)) / 7


@pytest.mark.slow_cases("3")
@pytest.mark.newest
@pytest.mark.parametrize("size", [3, 8, 13])
def test_over_batch_is_the_same_for_any_number_of_examples(size):
    """With keys and None among the arguments, and with sharded parameters."""
    mesh = training.make_mesh()
    params = training.place({"w": jnp.arange(2048.0)}, mesh, "fsdp")

    @jax.jit
    def f(params, keys, x, label):
        assert label is None
        return x + params["w"][:D] + jax.vmap(lambda k: jax.random.normal(k, (D,)))(keys)

    keys, x = jax.random.split(KEY, size), np.arange(1.0 * D * size, dtype=np.float32).reshape(size, D)
    result = over_batch(f, mesh)(params, keys, x, None)
    assert isinstance(result, np.ndarray)
    np.testing.assert_allclose(result, f(jax.device_get(params), keys, x, None), rtol=1e-6)


@pytest.mark.slow_cases("before0-after0")
@pytest.mark.newest
@pytest.mark.parametrize(("before", "after"), [(("pmap", 8), ("fsdp", 2)), (("fsdp", 8), ("jit", 2))])
def test_a_checkpoint_resumes_in_another_layout(before, after, tmp_path):
    """The state is restored exactly; ten steps later the loss equals that of the run in the first layout."""
    optimizer = optax.adam(0.1)
    state = training.init_state(KEY, {"w": jnp.ones((64, 32))}, optimizer)
    loss = lambda params, batch, keys: jnp.sum((params["w"].sum(0)[:D] - batch["x"]) ** 2, -1)
    step = training.train_step(loss, optimizer, ema_decay=0.9)
    first, run_first = on(*before, state, step)
    for i in range(5):
        first, _ = run_first(first, batch_of(16, i))
    with training.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, first, {})
        second, run_second = on(*after, state, step)
        second = checkpoints.restore_latest(second).state
    data = lambda v: jax.random.key_data(v) if jnp.issubdtype(v.dtype, jax.dtypes.prng_key) else v
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(data(a), data(b)), second, first)
    for i in range(5, 15):
        first, first_metrics = run_first(first, batch_of(16, i))
        second, second_metrics = run_second(second, batch_of(16, i))
    np.testing.assert_allclose(second_metrics["loss"], first_metrics["loss"], rtol=1e-6)


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="rule must be one of replicate, fsdp, got 'zero'"):
        training.sharded(make()[1], rule="zero")
