"""Rates and memory in the log, profiles, the compile cache, and the table of training steps."""

import json
import os
import subprocess
from pathlib import Path
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import pytest
from test_experiments import ENV, ROOT, command

from diffax.training import Profile
from experiments.benchmarks import train as benchmark
from experiments.configs import settings, smoke
from experiments.run import devices


def device(kind, peak_bytes=None):
    """A device of this kind. It has no memory statistics if peak_bytes is None."""
    result = Mock(spec=jax.Device, device_kind=kind, process_index=0)
    result.memory_stats.return_value = None if peak_bytes is None else {"peak_bytes_in_use": peak_bytes}
    return result


def test_rates():
    """100 steps a second of 1e12 operations each are a twentieth of the peak of two H100."""
    chips = [device("NVIDIA H100 80GB HBM3", 5), device("NVIDIA H100 80GB HBM3", 7)]
    result = devices.rates(64, 1e12, chips, 100.0)
    assert result["images_per_second"] == 6400
    assert result["flops_per_second"] == 1e14
    assert result["share_of_peak"] == pytest.approx(1e14 / (2 * 989.4e12))
    assert result["memory_per_device"] == 7
    assert "memory_of_process" not in result


def test_rates_of_a_backend_that_does_not_report_memory():
    """The peak memory of the process is at least its present size, and less than the memory of the machine."""
    result = devices.rates(4, None, [device("cpu")], 2.0)
    assert result.keys() == {"steps_per_second", "images_per_second", "memory_of_process"}
    assert (result["steps_per_second"], result["images_per_second"]) == (2.0, 8.0)
    page = os.sysconf("SC_PAGE_SIZE")
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * page
    assert 0.9 * resident < result["memory_of_process"] < page * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("cores", "parts", "count"), [(2, 64, 2), (2, 63, 1), (16, 64, 8), (6, 64, 4), (6, 21, 3), (4, 0, 4)]
)
def test_a_cpu_has_a_device_for_each_core_that_a_batch_can_use(cores, parts, count, monkeypatch):
    updates = []
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    monkeypatch.setattr(type(jax.config), "update", lambda config, name, value: updates.append((name, value)))
    devices.use_cores(parts)
    assert updates == [("jax_num_cpu_devices", count)]
    patience = f"{devices.PATIENCE}=3600" if count > 1 else None
    assert os.environ.get("XLA_FLAGS") == patience


def test_a_number_of_devices_in_xla_flags_is_kept(monkeypatch):
    updates = []
    monkeypatch.setattr(type(jax.config), "update", lambda config, name, value: updates.append((name, value)))
    devices.use_cores()  # XLA_FLAGS of the tests contains the number
    assert not updates


def test_a_group_of_examples_stays_on_one_device():
    config = smoke.get_config()
    assert settings.group_size(config) == 1
    config.optimizer.accumulate, config.loss.spread = 4, "antithetic"
    assert settings.group_size(config) == 8


def test_a_profile_covers_the_requested_steps(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    for steps, expected in (((2, 3), ["1", "start", "2", "3", "stop", "4"]), ((), ["1", "2", "3", "4"])):
        calls.clear()
        profile = Profile(steps, tmp_path)
        for step in range(1, 5):
            profile.before(step)
            calls.append(str(step))
            profile.after(step, jnp.ones(1))
        profile.close()
        assert calls == expected
    calls.clear()
    profile = Profile((1, 9), tmp_path)
    profile.before(1)
    profile.close()  # the run ends before the last step of the profile
    assert calls == ["start", "stop"]


def test_the_environment_overrides_the_folder_of_the_compile_cache(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    devices.cache_compilations(tmp_path)  # the environment of the tests names a folder
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
    """The terminal, the table and the JSON file have the same row for each case."""
    monkeypatch.setitem(benchmark.SIZES, "digits", TINY)
    monkeypatch.setattr(benchmark.train_peers, "libraries", dict)
    flags = ["--networks=digits", "--devices=1", "--forms=jit", "--repeats=2", f"--out={tmp_path}"]
    benchmark.flags.FLAGS(["benchmark", "train", *flags])
    try:
        benchmark.main(["benchmark"])
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
