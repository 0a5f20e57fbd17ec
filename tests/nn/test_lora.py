"""Low-rank adapters: the merged product, convolutions as matrices, training, checkpoints, and runs with a base."""

import functools
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from commands import DATA, built, error_of_train, opened, train
from test_experiments import call, training_flags

from diffax import training
from diffax.nn import Attention, UNet, lora
from diffax.pretrained import save
from diffax.training import Checkpoints
from experiments.configs import digits_0to7, digits_lora, smoke
from experiments.model import build
from experiments.run import loading
from experiments.run.workdir import load_record

KEY = jax.random.key(0)


class Net(nn.Module):
    """A table, a convolution, a dense layer."""

    @nn.compact
    def __call__(self, x, label):
        x = nn.Conv(4, (3, 3), name="conv")(x).mean((1, 2))
        return nn.Dense(2, name="dense")(x + nn.Embed(6, 4, name="label")(label))


@pytest.fixture(scope="module")
def small():
    """(net, params, adapters without zeros, x, label)"""
    net, x, label = Net(), jax.random.normal(KEY, (5, 4, 4, 3)), jnp.arange(5)
    params = jax.jit(net.init)(KEY, x, label)["params"]
    adapters = lora.init(KEY, params, ["*kernel", "label/embedding"], rank=2)
    return net, params, jax.tree.map(lambda v: v + 0.3, adapters), x, label


def test_adapters_have_the_expected_shapes_and_one_zero_half(small):
    _, params, _, _, _ = small
    adapters = lora.init(KEY, params, ["*kernel", "label/*"], rank=2)
    assert jax.tree.map(jnp.shape, adapters) == {
        "conv": {"kernel": {"a": (3, 3, 3, 2), "b": (2, 4)}},
        "dense": {"kernel": {"a": (4, 2), "b": (2, 2)}},
        "label": {"embedding": {"a": (6, 2), "b": (2, 4)}},
    }
    for layer, zero in (("conv", "b"), ("dense", "b"), ("label", "a")):
        (pair,) = adapters[layer].values()
        assert [name for name in pair if not pair[name].any()] == [zero]
    assert lora.count(adapters) == 27 * 2 + 8 + 8 + 4 + 12 + 8
    assert lora.count(params) == 27 * 4 + 4 + 8 + 2 + 24


def test_the_initial_noise_has_variance_one_over_the_number_of_inputs():
    a = lora.init(KEY, {"w": jnp.zeros((3, 3, 50, 7))}, ["w"], rank=40)["w"]["a"]
    np.testing.assert_allclose([a.mean(), a.std() * np.sqrt(450)], [0, 1], atol=0.02)


def test_the_initial_noise_of_an_adapter_depends_only_on_its_path(small):
    _, params, _, _, _ = small
    one, many = (lora.init(KEY, params, patterns, rank=2) for patterns in (["dense/kernel"], ["*"]))
    np.testing.assert_array_equal(one["dense"]["kernel"]["a"], many["dense"]["kernel"]["a"])
    assert "conv" not in one


def test_new_adapters_leave_the_parameters_bit_identical(small):
    _, params, _, _, _ = small
    merged = lora.merge(params, lora.init(KEY, params, ["*"], rank=3), alpha=5.0)
    jax.tree.map(lambda u, v: np.testing.assert_array_equal(u.view(jnp.uint32), v.view(jnp.uint32)), merged, params)


def test_merge_adds_the_scaled_product_to_w(small):
    """Expected values are computed by NumPy in float64, with a convolution as a matrix (prod(window) in, out)."""
    _, params, adapters, _, _ = small
    merged = lora.merge(params, adapters, alpha=3.0)
    for layer in ("conv", "dense", "label"):
        ((name, pair),) = adapters[layer].items()
        w = np.asarray(params[layer][name], np.float64)
        a, b = (np.asarray(pair[half], np.float64) for half in "ab")
        expected = w.reshape(-1, w.shape[-1]) + 3.0 / 2 * a.reshape(-1, 2) @ b
        np.testing.assert_allclose(merged[layer][name], expected.reshape(w.shape), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(merged["dense"]["bias"], params["dense"]["bias"])
    restored = lora.merge(merged, adapters, alpha=-3.0)
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, atol=1e-6), restored, params)


def test_a_merged_network_equals_one_with_low_rank_branches(small):
    """The branch of a convolution is a convolution to r channels, then one of 1x1; W' is never computed."""
    net, params, adapters, x, label = small
    merged = lora.merge(params, adapters, alpha=4.0)
    y = jax.jit(net.apply)({"params": merged}, x, label)
    branch = {name: next(iter(adapters[name].values())) for name in adapters}
    low_rank = nn.Conv(2, (3, 3), use_bias=False).apply({"params": {"kernel": branch["conv"]["a"]}}, x)
    h = nn.Conv(4, (3, 3)).apply({"params": params["conv"]}, x) + 2.0 * low_rank @ branch["conv"]["b"]
    h = h.mean((1, 2)) + params["label"]["embedding"][label]
    h = h + 2.0 * branch["label"]["a"][label] @ branch["label"]["b"]
    expected = h @ params["dense"]["kernel"] + params["dense"]["bias"]
    expected = expected + 2.0 * h @ branch["dense"]["a"] @ branch["dense"]["b"]
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_alpha_can_be_traced_and_mapped(small):
    net, params, adapters, x, label = small

    @jax.jit
    def sweep(alphas):
        merged = jax.vmap(lambda alpha: lora.merge(params, adapters, alpha=alpha))(alphas)
        return jax.vmap(lambda params: net.apply({"params": params}, x, label))(merged)

    results = sweep(jnp.array([0.0, 1.0, 2.5]))
    np.testing.assert_allclose(results[0], jax.jit(net.apply)({"params": params}, x, label), atol=1e-6)
    expected = net.apply({"params": lora.merge(params, adapters, alpha=2.5)}, x, label)
    np.testing.assert_allclose(results[2], expected, atol=1e-5)


def test_the_gradient_of_adapters_follows_from_the_gradient_of_w(small):
    """dL/dB = alpha/r A^T dL/dW and dL/dA = alpha/r dL/dW B^T."""
    net, params, adapters, x, label = small

    def loss(params):
        return jnp.sum(net.apply({"params": params}, x, label) ** 2)

    full = jax.jit(jax.grad(loss))(lora.merge(params, adapters, alpha=3.0))
    result = jax.jit(jax.grad(lambda v: loss(lora.merge(params, v, alpha=3.0))))(adapters)
    for layer in adapters:
        ((name, pair),) = adapters[layer].items()
        grad, a = full[layer][name].reshape(-1, full[layer][name].shape[-1]), pair["a"].reshape(-1, 2)
        np.testing.assert_allclose(result[layer][name]["b"], 1.5 * a.T @ grad, rtol=1e-4, atol=1e-5)
        expected = (1.5 * grad @ pair["b"].T).reshape(pair["a"].shape)
        np.testing.assert_allclose(result[layer][name]["a"], expected, rtol=1e-4, atol=1e-5)


def test_merge_keeps_the_dtype_of_half_precision_parameters():
    params = {"w": jnp.ones((4, 4), jnp.bfloat16)}
    adapters = lora.init(KEY, params, ["w"], rank=1)
    assert adapters["w"]["a"].dtype == jnp.float32
    assert lora.merge(params, adapters, alpha=1.0)["w"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: lora.init(KEY, p, ["*"], rank=0), "rank must be an int >= 1, got 0"),
        (lambda p: lora.init(KEY, p, [], rank=1), "patterns must name the matrices to adapt, got none"),
        (
            lambda p: lora.init(KEY, p, ["*kernel", "head/*"], rank=1),
            "patterns must each match a matrix of params, like conv/kernel, .* got 'head/",
        ),
        (lambda p: lora.init(KEY, p, ["*bias"], rank=1), r"patterns .* got '\*bias'"),
        (
            lambda p: lora.merge({"conv": p["conv"]}, lora.init(KEY, p, ["*"], rank=1), alpha=1.0),
            r"adapters must have \(a, b\) pairs for matrices of params only, got dense/kernel/a",
        ),
        (
            lambda p: lora.merge(p, {"dense": {"kernel": {"a": jnp.ones((5, 1)), "b": jnp.ones((1, 2))}}}, alpha=1.0),
            r"adapters must fit params: dense/kernel has \(4, 2\), got a \(5, 1\) and b \(1, 2\)",
        ),
        (
            lambda p: lora.merge(p, {"dense": {"kernel": {"a": jnp.ones((4, 1))}}}, alpha=1.0),
            r"adapters must have \(a, b\) pairs for matrices of params only, got dense/kernel/a",
        ),
    ],
)
def test_invalid_input_raises(make, message, small):
    with pytest.raises(ValueError, match=message):
        make(small[1])


def test_training_moves_only_the_rows_in_use_and_reaches_a_rank_1_target(small, tmp_path):
    """`train_step`, EMA and checkpoints work on adapters without changes."""
    net, params, _, x, _ = small
    label = jnp.array([1, 1, 3, 3, 3])
    target = net.apply({"params": params}, x, label) + jnp.array([1.0, -1.0])
    batch = {"x": np.asarray(x), "label": np.asarray(label), "y": np.asarray(target), "index": np.arange(5)}

    def loss(adapters, batch, keys):
        y = net.apply({"params": lora.merge(params, adapters, alpha=2.0)}, batch["x"], batch["label"])
        return jnp.mean((y - batch["y"]) ** 2, -1)

    optimizer, initial = optax.adam(0.03), lora.init(KEY, params, ["label/*"], rank=2)
    step = jax.jit(training.train_step(loss, optimizer, ema_decay=0.9))
    state = training.init_state(KEY, initial, optimizer)
    losses = []
    for _ in range(150):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 1e-3 * losses[0]
    change = np.abs(lora.merge(params, state.params, alpha=2.0)["label"]["embedding"] - params["label"]["embedding"])
    assert (change.max(-1) > 0).tolist() == [False, True, False, True, False, False]
    with training.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(150, state, {})
        ema = checkpoints.restore_ema(150, jax.eval_shape(lambda: initial))
    jax.tree.map(np.testing.assert_array_equal, ema, state.ema)


@pytest.mark.newest
def test_the_example_config_trains_less_than_5_percent_of_the_parameters():
    config = digits_lora.get_config()
    settings = config.network
    net = UNet(
        channels=settings.channels,
        channel_multipliers=settings.channel_multipliers,
        num_res_blocks=settings.num_res_blocks,
        attention=Attention(settings.attention_levels),
        num_classes=10,
    )
    params = jax.eval_shape(lambda: net.init(KEY, jnp.zeros((1, 8, 8, 1)), jnp.zeros(1)))["params"]
    adapters = jax.eval_shape(lambda: lora.init(KEY, params, config.lora.patterns, rank=config.lora.rank))
    assert 0.04 < lora.count(adapters) / lora.count(params) < 0.05
    for module in (digits_0to7, digits_lora):
        built(module.get_config())


def settings(data_dir, base="", **changes):
    """A small smoke config for one step: adapters on digits 8 and 9, or without a base all parameters on all digits."""
    config = smoke.get_config()
    config.dataset.data_dir = str(data_dir)
    config.network.update({"channel_multipliers": (1,), "attention_levels": (0,)})
    config.train.update({"num_steps": 1, "sample_every": 1000, "compile_cache": False})
    config.optimizer.warmup_steps = 0
    if base:
        config.dataset.labels = (8, 9)
        config.lora.base = str(base)
    for path, value in changes.items():
        *groups, key = path.split("__")
        functools.reduce(lambda group, name: group[name], groups, config)[key] = value
    return config


def write_base(folder, data_dir, seed=0):
    """Write the export of a model with random parameters, as if it had been trained."""
    config, data = settings(data_dir), DATA["digits"]
    model = build(config, data)
    params = jax.tree.map(lambda p: p + 0.05, model.init(jax.random.key(seed)))
    more = {"config": config.to_dict(), "data": data.record(), "identity": {}}
    save(folder, model.diffusion, params, step=7, units=data.units, more=more)
    return params


@pytest.fixture(scope="module")
def runs(data_dir, tmp_path_factory):
    """(base, parameters of the base, workdir of its adapters after one step)"""
    folder = tmp_path_factory.mktemp("runs")
    params = write_base(folder / "base", data_dir)
    train(settings(data_dir, folder / "base"), folder / "adapted", 1)
    return folder / "base", params, folder / "adapted"


def test_a_run_trains_the_adapters_of_its_base(runs):
    base, params, adapted = runs
    merged = loading.load(adapted)
    different = jax.tree.map(lambda u, v: bool((u != v).any()), params, merged.params)
    assert different["ResBlock_0"]["Conv_0"] == {"kernel": True, "bias": False}
    assert not different["label"]["embedding"]  # the patterns are "*kernel" only
    assert merged.step == 1
    record = load_record(adapted)[1]
    assert record["adapters"]["base"] == str(base)
    assert record["adapters"]["step"] == 7
    assert record["identity"]["base"] == {name: record["adapters"][name] for name in ("step", "digest")}
    assert record["identity"]["data"]["length"] < 250  # of 997
    saved = Checkpoints(adapted / "checkpoints", read_only=True)._manifest(1)["arrays"]
    names = [name for name in saved if name.startswith("['params']")]
    assert names
    assert all(name.endswith(("['a']", "['b']")) for name in names)


@pytest.mark.slow
def test_an_export_contains_the_merged_parameters_and_needs_no_base(runs, data_dir, tmp_path, capsys):
    """The export is a full model. It is another base, so its adapters are refused in the workdir of the first base."""
    call("export", f"--checkpoint={runs[2]}", f"--out={tmp_path / 'export'}")
    exported, merged = loading.load(tmp_path / "export"), loading.load(runs[2])
    jax.tree.map(np.testing.assert_array_equal, exported.params, merged.params)
    message = error_of_train(settings(data_dir, tmp_path / "export"), runs[2], capsys)
    assert "has a run whose base was {'step': 7, 'digest':" in message


def test_the_base_can_move_but_not_change(runs, data_dir, tmp_path, capsys):
    moved, other = tmp_path / "moved", tmp_path / "other"
    shutil.copytree(runs[0], moved)
    opened(settings(data_dir, moved), runs[2])
    write_base(other, data_dir, seed=1)
    without = settings(data_dir, dataset__labels=(8, 9))
    assert "has a run whose base was {'step': 7, " in error_of_train(settings(data_dir, other), runs[2], capsys)
    assert "has a run whose base was {'step': 7, " in error_of_train(without, runs[2], capsys)


def test_adapters_with_a_changed_or_missing_base_do_not_load(runs, data_dir, tmp_path):
    base, adapted = tmp_path / "base", tmp_path / "adapted"
    shutil.copytree(runs[0], base)
    train(settings(data_dir, base), adapted, 1)
    shutil.rmtree(base)
    with pytest.raises(ValueError, match=r"the base of .*adapted must be a run's workdir or an export, got .*base"):
        loading.load(adapted)
    write_base(base, data_dir, seed=1)
    with pytest.raises(ValueError, match=r"the base of .*adapted must be step 7 of .* with digest .*, got step 7 with"):
        loading.load(adapted)


@pytest.mark.slow_cases("changes9-config.lora.base must be of images (28, 28, 1), got")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora__base": "/nowhere"}, "config.lora.base must be a run's workdir or an export, got /nowhere"),
        ({"network__num_res_blocks": 2}, "config.network.num_res_blocks must be 1, as of"),
        ({"network__dropout_rate": 0.2, "prediction": "eps"}, "config.prediction must be 'v', as of"),
        ({"network__conditional": False}, "config.network.conditional must be True, as of"),
        ({"lora__rank": 0}, "config.lora.rank must be >= 1, got 0"),
        ({"lora__alpha": float("nan")}, "config.lora.alpha must be finite, got nan"),
        ({"lora__patterns": ()}, "config.lora.patterns must name the matrices to adapt, got ()"),
        ({"lora__patterns": ("*kernel", "head*")}, "config.lora.patterns must each match a matrix of params"),
        ({"dataset__labels": (10,)}, "dataset.labels of 'digits' must be in [0, 9], got 10"),
        ({"dataset__name": "mnist5k"}, "config.lora.base must be of images (28, 28, 1), got"),
    ],
)
def test_invalid_settings_of_a_run_raise(changes, message, runs, data_dir, tmp_path, capsys):
    workdir = tmp_path / "new"
    assert message in error_of_train(settings(data_dir, runs[0], **changes), workdir, capsys)
    assert not workdir.exists()


def test_a_classifier_does_not_support_adapters(runs, data_dir):
    config = settings(data_dir, runs[0])
    config.model = "classifier"
    with pytest.raises(ValueError, match=r"config.lora.base must be '' for config.model = 'classifier', got"):
        built(config)


@pytest.mark.slow
def test_the_commands_agree_for_all_kinds_of_parallelism(runs, data_dir, tmp_path):
    """train, sample and export run as processes. Adapters on 8 devices, by pmap and FSDP, equal those on one device."""
    base, adapted, results = tmp_path / "base", tmp_path / "pmap_1", []
    call("train", *training_flags(data_dir, base, "--config.train.num_steps=2"))
    for parallel, count in (("pmap", 1), ("pmap", 8), ("fsdp", 8)):
        workdir = tmp_path / f"{parallel}_{count}"
        flags = ("--config.dataset.labels=(8,9)", f"--config.lora.base={base}", f"--config.parallel={parallel}")
        text = call("train", *training_flags(data_dir, workdir, *flags), devices=count)
        assert "parameters of adapters, " in text.splitlines()[0]
        results.append(loading.load(workdir).params)
    for result in results[1:]:
        jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=1e-4, atol=1e-5), result, results[0])
    assert "done: step 20" in call("train", *training_flags(data_dir, adapted, *flags[:2]))
    call("export", f"--checkpoint={adapted}", f"--out={tmp_path / 'export'}")
    shards = []
    for folder in (adapted, tmp_path / "export"):
        out = tmp_path / f"out_{folder.name}"
        call("sample", f"--checkpoint={folder}", f"--out={out}", "--num=4", "--labels=8,9", "--num_steps=2")
        shards.append(np.load(out / "shard_00000.npz"))
    np.testing.assert_array_equal(shards[0]["samples"], shards[1]["samples"])
    assert shards[0]["labels"].tolist() == [8, 9, 8, 9]
    call("train", *training_flags(data_dir, base, "--config.train.num_steps=3"))
    message = call("sample", f"--checkpoint={adapted}", f"--out={tmp_path / 'no'}", ok=False)
    assert "must be step 2 of" in message
