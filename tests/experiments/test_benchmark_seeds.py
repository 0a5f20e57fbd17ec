"""The benchmark of seeds in one program: the ratio of times, the comparison of losses, bad flags, and a small run."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from commands import imported
from test_experiments import ROOT, xla_flags

seeds, FLAGS = imported("benchmarks.seeds")

LOSSES = {0: (1.0, 0.5), 1: (1.2, 0.4), 2: (0.9, 0.7)}
SECONDS = {0: 30.0, 1: 10.0, 2: 20.0}


def write(folder, losses):
    """Write runs as `experiments.sweep` does."""
    for seed, values in losses.items():
        run = folder / "runs" / f"id{seed}"
        run.mkdir(parents=True)
        (run / "config.json").write_text(json.dumps({"seed": seed}))
        steps = enumerate(values, 1)
        (run / "metrics.jsonl").write_text("".join(json.dumps({"step": i, "loss": v}) + "\n" for i, v in steps))


def commands(whole, shared, calls):
    """Replacement for `command`, which returns the seconds of a sweep without running it.

    Args:
      whole: seconds of all seeds in one program; one seed alone takes its entry of SECONDS.
      shared: losses of the seeds in one program.
      calls: list that gets the arguments of each call.
    """

    def command(sweep, folder, *options):
        calls.append((folder.name, *options))
        assert "seeds(3)" in sweep.read_text()
        if options[0].startswith("--only"):
            seed = int(options[0].removeprefix("--only=config.seed="))
            write(folder, {seed: LOSSES[seed]})
            return SECONDS[seed]
        write(folder, shared)
        return whole

    return command


def run(out, *more):
    """(seeds.json, the rows of seeds.md)."""
    for name in FLAGS:
        FLAGS[name].unparse()
    FLAGS(["seeds", f"--out={out}", *more])
    seeds.main([])
    rows = [line.strip("| ").split(" | ") for line in (out / "seeds.md").read_text().splitlines() if line[:1] == "|"]
    return json.loads((out / "seeds.json").read_text()), rows


def test_the_ratio_and_the_losses(tmp_path, monkeypatch):
    calls, moved = [], LOSSES | {1: (1.2, 0.4 * 1.25)}
    monkeypatch.setattr(seeds, "command", commands(15.0, moved, calls))
    report, lines = run(tmp_path, "--networks=unet,mlp", "--ways=vmap", "--seeds=3")
    alone = [(f"unet_{seed}", f"--only=config.seed={seed}", "--way=loop") for seed in range(3)]
    assert calls[:4] == [*alone, ("unet_vmap", "--way=vmap", "--group=3")]
    assert [call[0] for call in calls[4:]] == ["mlp_0", "mlp_1", "mlp_2", "mlp_vmap"]
    for row, line, network in zip(report["rows"], lines[2:], ("unet", "mlp"), strict=True):
        assert row["alone"] == [30.0, 10.0, 20.0]
        assert (row["one_program"], row["ratio"]) == (15.0, 0.25)  # 15 / (30 + 10 + 20), not 15 / 30 / 3
        assert row["apart"] == pytest.approx(0.25)
        assert line == [network, "vmap", "3", "60.0", "15.0", "0.25", "2.5e-01"]
    assert lines[0][2:4] == ["own commands run", "their seconds"]


@pytest.mark.parametrize(
    ("shared", "apart"),
    [
        (LOSSES, "0.0e+00"),
        (LOSSES | {2: (0.9, 0.7 * (1 - 1e-3))}, "1.0e-03"),
        (LOSSES | {2: (float("nan"), 0.7)}, "nan"),
        ({0: LOSSES[1], 1: LOSSES[0], 2: LOSSES[2]}, "2.5e-01"),  # the losses of another seed
    ],
)
def test_the_table_has_the_largest_difference_of_the_losses(shared, apart, tmp_path, monkeypatch):
    monkeypatch.setattr(seeds, "command", commands(15.0, shared, []))
    assert run(tmp_path, "--networks=mlp", "--ways=loop", "--seeds=3")[1][2][-1] == apart


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--networks=foo", "networks must be among mlp, unet, got 'foo'"),
        ("--networks=mlp,foo", "networks must be among mlp, unet, got 'mlp,foo'"),
        ("--networks=", "networks must be among mlp, unet, got ''"),
        ("--ways=scan", "ways must be among loop, vmap, got 'scan'"),
        ("--out=/proc/nowhere", "out must be a writable folder, got /proc/nowhere ("),
    ],
)
def test_bad_flags_are_one_line_and_start_nothing(flag, message, tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(seeds, "command", commands(15.0, LOSSES, calls))
    with pytest.raises(SystemExit) as ended:
        run(tmp_path / "out", "--seeds=3", flag)
    output = capsys.readouterr()
    assert (ended.value.code, output.out, output.err.count("\n")) == (2, "", 1)
    assert output.err.startswith(f"error: {message}")
    assert calls == []


def test_bad_flags_of_the_command():
    for flag, message in (("--networks=foo", "error: networks must be among"), ("--seeds=1", "error: flag --seeds=1")):
        line = [sys.executable, "-m", "experiments.benchmark", "seeds", flag]
        done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, timeout=120)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert done.stderr.startswith(message)


@pytest.mark.slow
def test_a_small_run(tmp_path, data_dir, monkeypatch):
    """Two seeds of the MLP with two steps each, in three real commands."""
    monkeypatch.setenv("XLA_FLAGS", xla_flags(1))
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    inner, times, runs = seeds.command, {}, {}

    def command(sweep, folder, *options):
        times[folder.name] = inner(sweep, folder, *options)
        runs[folder.name] = seeds.losses(folder)
        return times[folder.name]

    monkeypatch.setattr(seeds, "command", command)
    report, lines = run(tmp_path, "--networks=mlp", "--ways=loop", "--seeds=2", "--steps=2")
    assert list(times) == ["mlp_0", "mlp_1", "mlp_loop"]
    (row,), alone, whole = report["rows"], times["mlp_0"] + times["mlp_1"], times["mlp_loop"]
    assert row["ratio"] == pytest.approx(whole / alone)
    assert lines[2][:6] == ["mlp", "loop", "2", f"{alone:.1f}", f"{whole:.1f}", f"{whole / alone:.2f}"]
    assert {name: {seed: len(v) for seed, v in of.items()} for name, of in runs.items()} == {
        "mlp_0": {0: 2},
        "mlp_1": {1: 2},
        "mlp_loop": {0: 2, 1: 2},
    }
    assert row["apart"] < 1e-5
    # Negative control: the losses of the two seeds differ from each other.
    assert np.abs(runs["mlp_loop"][0] / runs["mlp_1"][1] - 1).max() > 1e-3
