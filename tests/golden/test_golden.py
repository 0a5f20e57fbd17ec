"""The outputs equal those of the golden file. golden.py describes the file and compares all of it bit by bit."""

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_training import CHECKPOINT, RESTORE, SAVE, arrays, fresh, trained

# Groups that are compared in every run, and the rows of them; all others are slow tests.
FAST = {
    "samplers": lambda name: name.startswith("float64/samplers/flow/"),
    "guidance": lambda name: name.startswith("float64/") and not name.endswith("/one-time"),
    "losses": lambda name: name.startswith("float64/losses/denoising/flow/") and not name.endswith("/min_snr"),
    "networks": lambda name: name.endswith(("/unet-ddpm", "/mlp")),
    "training": lambda name: name.endswith("/steps"),
}


@pytest.fixture(scope="module")
def known():
    """The golden file."""
    return golden.read()


def row_of(name, rows):
    """The row of an array: the longest name of a row that is a prefix of the name of the array."""
    while name not in rows:
        name = name.rpartition("/")[0]
    return name


def compare(known, group, only=lambda name: True):
    """Compute the rows of a group and compare them with the golden file."""
    rows = {f"{which}/{group}/{row}" for row in golden.rows(group) for which in golden.PRECISIONS}
    mine = {name: value for name, value in known.items() if name.split("/")[1] == group}
    chosen = {name: value for name, value in mine.items() if only(row_of(name, rows))}
    assert chosen, "no row was chosen"
    assert golden.failures(golden.compute((group,), only=only), chosen) == []


@pytest.mark.parametrize("group", FAST)
def test_outputs_are_those_of_the_golden_file(known, group):
    compare(known, group, FAST[group])


@pytest.mark.slow
@pytest.mark.parametrize("group", golden.GROUPS)
def test_all_outputs_are_those_of_the_golden_file(known, group):
    compare(known, group)


def test_the_checkpoint_restores_the_golden_state(known):
    """Parameters, average, optimizer, step and key of a checkpoint that an earlier version wrote."""
    like = fresh()
    restored = RESTORE(CHECKPOINT, like)
    leaves = dict(golden.leaves(arrays(restored), "float32/training/steps/state"))
    wanted = {name: v for name, v in known.items() if name.startswith("float32/training/steps/state/")}
    assert leaves.keys() == wanted.keys()
    assert all(golden.same_bits(leaves[name], wanted[name]) for name in wanted)
    assert not np.array_equal(*(jax.tree.leaves(state.ema)[-1] for state in (restored, like)))


def test_a_saved_state_is_restored_bit_by_bit(tmp_path):
    state, _ = trained()
    SAVE(tmp_path, 3, state)
    leaves, wanted = (dict(golden.leaves(arrays(s), "s")) for s in (RESTORE(tmp_path, fresh()), state))
    assert leaves.keys() == wanted.keys()
    assert all(golden.same_bits(leaves[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("scale", [1e-5, -1e-5])
def test_a_perturbed_array_fails_the_comparison(known, scale):
    """Negative control: one entry of one array, a missing array and a new one."""
    arrays = dict(known)
    name = "float64/samplers/cosine/ddim"
    arrays[name] = arrays[name].copy()
    arrays[name][0, 0] *= 1 + scale
    assert [line.partition(":")[0] for line in golden.failures(golden.Computed(arrays, {}), known)] == [name]
    arrays["float64/samplers/new"] = arrays.pop(name)
    lines = golden.failures(golden.Computed(arrays, {"float32/a": "ValueError"}), known)
    assert [line.partition(": ")[2] for line in lines] == ["ValueError", "missing", "not in the golden file"]


def test_different_dtypes_shapes_and_special_values_are_infinite_differences():
    value = np.array([1.0, np.nan, np.inf], np.float32)
    assert golden.difference(value, value.copy()) == 0
    assert golden.difference(np.array([1.0, np.nan, -np.inf], np.float32), value) == np.inf
    assert golden.difference(np.array([1.0, 2.0, np.inf], np.float32), value) == np.inf
    assert golden.difference(value.astype(np.float64), value) == np.inf
    assert golden.difference(value[:2], value) == np.inf
    assert golden.difference(np.array([1, 2]), np.array([1, 3])) == np.inf


def test_read_restores_the_written_arrays(tmp_path):
    arrays = {"a/b": np.arange(6.0).reshape(2, 3), "a/c": np.array(3), "d": np.zeros((0, 2), np.float32)}
    golden.write(arrays, tmp_path / "file.npz")
    restored = golden.read(tmp_path / "file.npz")
    assert list(restored) == list(arrays)
    assert all(golden.same_bits(restored[name], arrays[name]) for name in arrays)


def test_a_row_that_fails_is_reported(monkeypatch):
    def broken():
        raise AttributeError("no such function")

    monkeypatch.setattr(golden, "rows", lambda group: {"row": broken, "other": lambda: jnp.ones(2)})
    computed = golden.compute(("metrics",), ("float32",))
    assert computed.errors == {"float32/metrics/row": "AttributeError: no such function"}
    assert list(computed.arrays) == ["float32/metrics/other"]
    assert not jax.config.jax_disable_jit
