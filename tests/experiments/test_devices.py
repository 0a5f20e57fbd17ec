"""What is said of the devices: operations, shares of the peak, profiles; the table of training steps."""

import json
import subprocess

import jax
import jax.numpy as jnp
import pytest
from test_experiments import ENV, ROOT, command

from diffax.training import Profile
from experiments.benchmarks import train as benchmark
from experiments.run import devices


class Device:
    """A device that says what it is."""

    def __init__(self, kind, peak_bytes=None):
        self.device_kind, self.process_index = kind, 0
        self._stats = None if peak_bytes is None else {"peak_bytes_in_use": peak_bytes}

    def memory_stats(self):
        return self._stats


def test_operations_of_a_product():
    a, b = jax.ShapeDtypeStruct((8, 16), jnp.float32), jax.ShapeDtypeStruct((16, 4), jnp.float32)
    assert devices.matmul_flops(lambda a, b: a @ b, a, b) == 2 * 8 * 16 * 4
    assert devices.training_flops(lambda a, b: jnp.tanh(a @ b), a, b) == 3 * 2 * 8 * 16 * 4


def test_operations_inside_loops_and_branches():
    square = jnp.ones((4, 4))
    five = lambda x: jax.lax.scan(lambda y, _: (y @ square, None), x, length=5)[0]
    assert devices.matmul_flops(five, square) == 5 * 2 * 4**3
    assert devices.matmul_flops(jax.checkpoint(jax.jit(lambda x: x @ square)), square) == 2 * 4**3
    branch = lambda x: jax.lax.cond(x.sum() > 0, lambda x: x @ x @ x, lambda x: x @ x, x)
    assert devices.matmul_flops(branch, square) == 2 * 2 * 4**3


def test_operations_of_a_convolution():
    """Each of 5 x 5 x 7 results sums 3 x 3 x 2 products."""
    x, w = jnp.ones((1, 5, 5, 2)), jnp.ones((3, 3, 2, 7))
    conv = lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    assert devices.matmul_flops(conv, x, w) == 2 * (5 * 5 * 7) * (3 * 3 * 2)
    grouped = lambda x, w: jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
    )
    assert devices.matmul_flops(grouped, x, jnp.ones((3, 3, 1, 8))) == 2 * (5 * 5 * 8) * (3 * 3)


def test_rates():
    """Two H100 at 100 steps a second of 1e12 operations each: a twentieth of their peak."""
    chips = [Device("NVIDIA H100 80GB HBM3", 5), Device("NVIDIA H100 80GB HBM3", 7)]
    result = devices.rates(64, 1e12, chips, 100.0)
    assert result["images_per_second"] == 6400
    assert result["flops_per_second"] == 1e14
    assert result["share_of_peak"] == pytest.approx(1e14 / (2 * 989.4e12))
    assert result["memory_per_device"] == 7
    assert devices.rates(4, None, [Device("cpu")], 2.0) == {"steps_per_second": 2.0, "images_per_second": 8.0}
    assert devices.peak("NVIDIA H100 PCIe").bfloat16 == 756e12


def test_a_profile_is_of_the_steps_it_was_asked_for(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: said.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: said.append("stop"))
    for steps, expected in (((2, 3), ["1", "start", "2", "3", "stop", "4"]), ((), ["1", "2", "3", "4"])):
        said.clear()
        profile = Profile(steps, tmp_path)
        for step in range(1, 5):
            profile.before(step)
            said.append(str(step))
            profile.after(step, jnp.ones(1))
        profile.close()
        assert said == expected
    said.clear()
    profile = Profile((1, 9), tmp_path)
    profile.before(1)
    profile.close()  # a run that ends before
    assert said == ["start", "stop"]


def test_the_compile_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    devices.cache_compilations(tmp_path)  # the tests' own environment names a folder
    assert jax.config.jax_compilation_cache_dir == before
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    try:
        devices.cache_compilations(tmp_path)
        assert jax.config.jax_compilation_cache_dir == str(tmp_path)
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


TINY = benchmark.Network(
    (4, 4, 1), 8, {"channels": 8, "channel_multipliers": (1,), "num_res_blocks": 1, "attention_levels": ()}
)


@pytest.mark.slow
def test_the_table_of_training_steps(monkeypatch, tmp_path, capsys):
    """One row for each case, the same in the terminal, the table and the JSON."""
    monkeypatch.setitem(benchmark.SIZES, "digits", TINY)
    monkeypatch.setattr(benchmark.train_peers, "libraries", dict)
    flags = ["--networks=digits", "--devices=1", "--forms=jit", "--repeats=2", f"--out={tmp_path}"]
    benchmark.flags.FLAGS(["benchmark", "train", *flags])
    try:
        benchmark.main(["benchmark", "train"])
    finally:
        benchmark.flags.FLAGS.unparse_flags()
    table = (tmp_path / "train.md").read_text()
    assert table.strip() in capsys.readouterr().out
    rows = json.loads((tmp_path / "train.json").read_text())["rows"]
    assert [row["what"] for row in rows] == ["diffax jit"]
    for row in rows:
        assert row["step_s"] > 0
        assert row["flops_per_s"] > 0
        assert row["images_per_s"] == pytest.approx(8 / row["step_s"])
    assert len([line for line in table.splitlines() if line.startswith("| digits")]) == 1


@pytest.mark.slow_cases(but=["flags3-flags must be --NAME=VALUE, got 'all'"])
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--networks=mnist"], "networks must be among digits, pixels32, ddpm, got 'mnist'"),
        (["--devices=99"], "devices must be among 1, got '99'"),
        (["--forms=pjit"], "forms must be among pmap, jit, fsdp, got 'pjit'"),
        (["all"], "flags must be --NAME=VALUE, got 'all'"),
    ],
)
def test_bad_flags(flags, message):
    line = [*command("benchmark", "train", *flags)]
    done = subprocess.run(line, capture_output=True, text=True, env=ENV, cwd=ROOT, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip() == f"error: {message}"
