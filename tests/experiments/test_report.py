"""Reports on sweeps: intervals, marks, comparable metrics, errors in a folder, two sweeps in pairs, plots."""

import csv
import dataclasses
import hashlib
import io
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from absl.testing import flagsaver
from commands import parse

from experiments import report
from experiments.reporting import compare, document, plots, summary, tables
from experiments.reporting.reading import read_curve, read_sweep
from experiments.reporting.statistics import estimate, half_width, marks, rule

ROOT = Path(__file__).parents[2]
ENV = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
CONDITIONS = {"extractor": "classifier 64", "extractor_hash": "ab12", "num_samples": 1000}


def result(metrics, seconds=1.0, floors=(), conditions=CONDITIONS, **cost):
    return {
        "metrics": metrics,
        "floors": dict(floors),
        "conditions": conditions,
        "cost": {**cost, "seconds": seconds},
    }


def sweep_folder(folder, runs, *, base=(), seed_keys=("config.seed",), name="losses", title="Which loss?"):
    """Write a sweep and return its ids; runs: (overrides, result | text of result.json | [error of the run] | None)."""
    ids = {}
    for overrides, content in runs:
        id = hashlib.sha256(json.dumps(overrides).encode()).hexdigest()[:12]
        ids[id] = overrides
        where = folder / "runs" / id
        where.mkdir(parents=True)
        if isinstance(content, dict):
            (where / "result.json").write_text(json.dumps({"id": id, **content}))
        elif isinstance(content, str):
            (where / "result.json").write_text(content)
        elif isinstance(content, list):
            (where / "failed.json").write_text(json.dumps({"error": content[0], "traceback": "..."}))
        else:
            where.rmdir()
    about = {"name": name, "task": "train", "base": dict(base), "seed_keys": list(seed_keys), "title": title}
    (folder / "sweep.json").write_text(json.dumps({**about, "runs": ids}))
    return list(ids)


def known(shift=0.0, seeds=(0, 1, 2), kinds=("eps", "v", "x0"), **more):
    """Three kinds: v is best, eps is worse by about 1 for every seed, x0 by 0.1 with differences of both signs."""
    fd = {"eps": [3.1, 4.0, 4.9, 6.0], "v": [2.0, 3.0, 4.0, 5.0], "x0": [2.6, 2.7, 4.0, 5.0]}
    return [
        (
            {"config.loss.prediction": kind, "config.train.num_steps": 100, "config.seed": seed, **more},
            result({"fd": fd[kind][seed] + shift, "accuracy": 0.9, "hue": 1.0 + seed}, floors={"fd": 1.64}),
        )
        for kind, seed in itertools.product(kinds, seeds)
    ]


def shown(folder, metrics=(), by=None, **settings):
    """The report as text."""
    sweep = read_sweep(folder)
    metrics = metrics or sweep.metrics
    grids = [tables.pivot(sweep, m, by) for m in metrics] if by else [tables.flat(sweep, metrics)]
    return document.report(sweep, metrics, grids, [], **settings)


def cells(report):
    """The cells of the table, without padding."""
    return [[c.strip() for c in line.strip("| ").split(" | ")] for line in report.splitlines() if line[:1] == "|"]


# Statistics


@pytest.mark.newest
def test_the_interval_is_that_of_student():
    of = estimate([1.0, 2.0, 3.0])
    assert (of.mean, of.std, of.n) == (2.0, 1.0, 3)
    assert of.half == pytest.approx(4.30265272991 / np.sqrt(3), rel=1e-10)  # t_{0.975, 2} of the published tables
    assert of.interval == pytest.approx((2 - 2.48413771175, 2 + 2.48413771175), rel=1e-10)
    ten = np.arange(10.0)
    assert estimate(ten).half == pytest.approx(2.26215716280 * np.sqrt(82.5 / 9) / np.sqrt(10), rel=1e-10)


@pytest.mark.newest
@pytest.mark.parametrize("n", [3, 5, 12])
def test_intervals_cover_the_expectation_with_95_percent(n):
    x = np.random.default_rng(n).normal(3.0, 2.0, (100_000, n))
    covered = np.abs(x.mean(-1) - 3.0) <= half_width(x)
    assert covered.mean() == pytest.approx(0.95, abs=0.0028)  # 4 standard errors


@pytest.mark.newest
def test_fewer_than_three_values_have_no_interval():
    assert estimate([1.0]) == (1.0, None, None, 1)
    assert estimate([1.0, 2.0]).half is None
    assert estimate([0.1] * 3) == (0.1, 0.0, 0.0, 3)
    assert estimate([1.0, 2.0, 3.0], interval=False).half is None


@pytest.mark.newest
def test_the_better_direction_follows_from_words_in_the_name():
    for name in ("loss", "fd", "fd_infinity", "FD(classifier)", "kid", "rms", "error of x0", "seconds", "calls"):
        assert rule(name) == "lower", name
    for name in ("accuracy", "precision", "recall", "density", "coverage", "psnr", "ssim"):
        assert rule(name) == "higher", name
    for name in ("sliced_wasserstein", "sinkhorn", "class_balance", "fd_infinity"):
        assert rule(name) == "lower", name
    assert rule("nn_ratio") == rule("memorisation") == 1.0
    assert rule("hue") is None
    assert rule("accuracy_loss") is None


@pytest.mark.newest
def test_marks():
    best, behind, near = {0: 1.0, 1: 2.0, 2: 3.0}, {0: 1.1, 1: 2.1, 2: 3.11}, {0: 1.4, 1: 1.9, 2: 3.1}
    assert marks([behind, best, near], "lower") == ["", "best", "alike"]
    assert marks([behind, best, near], "higher") == ["alike", "alike", "best"]
    other_seeds = {seed + 5: value for seed, value in behind.items()}
    assert marks([other_seeds, best], "lower") == ["alike", "best"]  # without pairs: the intervals overlap
    assert marks([{0: 0.9}, {0: 1.2}, {}], 1.0) == ["best", "", ""]
    assert marks([best, best], "lower") == ["best", "best"]
    assert marks([best, behind], None) == marks([best, {}], "lower") == ["", ""]
    ratios = [{i: m + d for i, d in enumerate((-0.01, 0, 0.01))} for m in (0.9, 1.11, 1.5)]
    assert marks(ratios, 1.0) == ["best", "alike", ""]  # on both sides of 1
    wide = {0: 0.87, 1: 0.95, 2: 1.03}  # 0.95 ± 0.2
    assert marks([{0: 1.0, 1: 1.0, 2: 1.0001}, wide], 1.0) == ["best", "alike"]


def test_equal_differences_and_differences_within_the_resolution_are_ties():
    near, far, spread = dict.fromkeys(range(3), 0.905), dict.fromkeys(range(3), 0.8), {0: 0.7, 1: 0.71, 2: 0.73}
    best = dict.fromkeys(range(3), 0.91)
    assert marks([near, best, far, spread], "higher", 0.005) == ["tie", "best", "alike", ""]
    assert marks([near, best], "higher") == ["alike", "best"]
    assert marks([{0: 0.905}, {0: 0.91}, {0: 0.9}], "higher", 0.005) == ["tie", "best", ""]
    assert marks([{i + 5: v for i, v in far.items()}, best], "higher") == ["alike", "best"]  # no seed in common


# The table


@pytest.mark.newest
def test_a_table_with_a_known_best(tmp_path):
    sweep_folder(tmp_path, known())
    text = shown(tmp_path)
    head, _, eps, v, x0, floor = cells(text)
    assert head == ["prediction", "fd", "accuracy", "hue", "n"]
    assert eps == ["eps", "4.0 ± 2.2", "**0.9000 ± 0**", "2.0 ± 2.5", "3"]
    assert v == ["v", "**3.0 ± 2.5**", "**0.9000 ± 0**", "2.0 ± 2.5", "3"]
    assert x0[1] == "*3.1 ± 1.9*"
    assert floor[:2] == ["*real against real*", "1.640"]
    for line in (
        "9 of 9 runs are done.",
        "Lower is better: fd.",
        "Higher is better: accuracy.",
        "Not marked, because the better direction is not known: hue.",
        "extractor classifier 64, extractor_hash ab12, num_samples 1000.",
        "In all runs `config.train.num_steps` = 100.",
        "accuracy: equal for all seeds, bit by bit, in 3 of 3 settings",
    ):
        assert line in text, line


def test_too_few_seeds_have_no_interval_and_the_report_says_so(tmp_path):
    sweep_folder(tmp_path, known(seeds=(0, 1)))
    text = shown(tmp_path, ["fd"])
    assert [row[1:] for row in cells(text)[2:]] == [["3.550", "2"], ["**2.500**", "2"], ["2.650", "2"], ["1.640"]]
    assert "±" not in text
    assert "n < 3: no setting has an interval" in text
    assert "bold compares means only" in text


def test_the_report_depends_only_on_results(tmp_path):
    for i, folder in enumerate(("a", "b")):
        runs = [(o, {**r, "cost": {"seconds": 1.0 + i + j}}) for j, (o, r) in enumerate(known())]
        sweep_folder(tmp_path / folder, runs)
    assert shown(tmp_path / "a") == shown(tmp_path / "b")
    head, *rows = cells(shown(tmp_path / "a", ["fd", "seconds"]))
    # Costs have neither an interval nor a best, because several runs may share a cost.
    costs = [row[head.index("seconds")] for row in rows[1:] if len(row) == len(head)]
    assert costs
    assert not any("±" in one or "*" in one for one in costs), costs
    sweep_folder(tmp_path / "c", known(shift=1.0))
    assert shown(tmp_path / "a") != shown(tmp_path / "c")


def test_different_conditions_are_reported_in_bold_and_no_best_is_marked(tmp_path):
    runs = known()
    runs[4][1]["conditions"] = {**CONDITIONS, "extractor_hash": "ff00"}
    ids = sweep_folder(tmp_path, runs)
    text = shown(tmp_path)
    assert text.index("WARNING") < text.index("| prediction")
    assert f"`extractor_hash`: **ab12** in 8 ({ids[0]}" in text
    assert f"**ff00** in 1 ({ids[4]})" in text
    assert not any(c.startswith("*") for row in cells(text)[:-1] for c in row)
    assert cells(text)[3][1] == "3"  # no interval, because its seeds are not comparable
    assert "No interval over seeds that were measured under different conditions." in text


def test_missing_overrides_have_the_value_of_the_base(tmp_path):
    runs = [
        ({"config.seed": s, **more}, result({"fd": 1.0 + s})) for more in ({}, {"config.eta": 0.5}) for s in range(3)
    ]
    sweep_folder(tmp_path, runs, base={"eta": 0.25, "seed": 0})
    assert [row[0] for row in cells(shown(tmp_path))] == ["eta", "----", "0.25", "0.5"]


def test_missing_values_of_a_metric_are_reported(tmp_path):
    runs = known()
    del runs[1][1]["metrics"]["fd"]
    for _, of in runs[3:6]:
        del of["metrics"]["hue"]
    ids = sweep_folder(tmp_path, runs)
    text = shown(tmp_path)
    assert cells(text)[2][1] == "4 (n = 2)"
    assert cells(text)[3][3] == "-"
    assert f"fd: missing in 1 run of settings where other seeds have it ({ids[1]})." in text
    assert "hue: missing in 1 of 3 settings." in text


def test_a_long_table_has_only_the_best_rows(tmp_path):
    sweep_folder(tmp_path, [({"lr": i, "seed": 0}, result({"fd": 100.0 - i})) for i in range(70)], seed_keys=["seed"])
    rows = cells(shown(tmp_path, top=3))[2:]
    assert [row[0] for row in rows] == ["69", "68", "67"]
    assert len(cells(shown(tmp_path))) == 72


def test_a_pivot_marks_the_best_of_each_column(tmp_path):
    runs = [
        ({"sampler": s, "steps": n, "seed": i}, result({"rms": (1 + i / 100) * (n if s == "a" else 20 / n)}))
        for s, n, i in itertools.product("ab", (2, 10), range(3))
    ]
    sweep_folder(tmp_path, runs, seed_keys=["seed"])
    head, _, a, b = cells(shown(tmp_path, by="steps"))
    assert head == ["sampler", "steps 2", "steps 10"]
    assert a == ["a", "**2.020 ± 0.050**", "10.10 ± 0.25"]
    assert b == ["b", "10.10 ± 0.25", "**2.020 ± 0.050**"]


# Comparable losses


def losses(key, values, **conditions):
    """A sweep over one key: later values have a smaller loss and a larger fd."""
    return [
        (
            {key: value, "config.seed": seed},
            result(
                {"loss": 1.0 - i / 10 + seed**2 / 100 + i * seed / 1000, "fd": 2.0 + i + seed**2 / 100},
                conditions=conditions,
            ),
        )
        for (i, value), seed in itertools.product(enumerate(values), range(3))
    ]


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("config.prediction", ["eps", "v"]),
        ("config.sigma_data", [0.5, 0.6]),
        ("config.schedule.name", ["cosine", "linear"]),
        ("config.schedule.beta_max", [20.0, 25.0]),
        ("config.loss.weighting", ["eps", "edm"]),
        ("config.loss.weighting_parameters.gamma", [1.0, 5.0]),
        ("config.loss.times", ["uniform", "mode"]),
        ("config.loss.objective", ["hybrid", "vlb"]),
        ("config.loss.vlb_weight", [0.1, 0.01]),
    ],
)
def test_losses_of_different_definitions_are_not_marked(tmp_path, key, values):
    sweep_folder(tmp_path, losses(key, values))
    text = shown(tmp_path)
    _, _, first, second = cells(text)
    assert (first[1][0], second[1][0]) == ("1", "0")
    assert first[2].startswith("**2")
    assert f"loss: no best is marked. Its definition differs between the settings, in `{key}`." in text
    assert "Lower is better: fd." in text
    content = tables.summarise(read_sweep(tmp_path))
    assert content["incomparable"] == {"loss": [key]}
    assert [setting["metrics"]["loss"]["mark"] for setting in content["settings"]] == ["", ""]


def test_losses_of_one_definition_are_marked(tmp_path):
    sweep_folder(tmp_path, losses("config.optimizer.learning_rate", [1e-3, 2e-3]))
    text = shown(tmp_path)
    assert [row[1][:3] for row in cells(text)[2:]] == ["1.0", "**0"]
    assert "Lower is better: loss, fd." in text
    assert "no best is marked" not in text


def test_a_pivot_marks_losses_in_columns_of_one_definition(tmp_path):
    runs = [
        ({"config.prediction": kind, "config.rate": rate, "config.seed": seed}, result({"loss": rate + seed**2 / 100}))
        for kind, rate, seed in itertools.product(("eps", "v"), (1.0, 2.0), range(3))
    ]
    sweep_folder(tmp_path, runs)
    for by, marked in (("config.prediction", True), ("config.rate", False)):
        text = shown(tmp_path, by=by)
        assert any("**" in cell for row in cells(text)[2:] for cell in row) == marked, by
        assert ("no best is marked" in text) != marked, by


def test_a_pivot_marks_losses_in_all_columns_or_in_none(tmp_path):
    places = [("eps", 1.0, "a"), ("v", 1.0, "a"), ("eps", 2.0, "a"), ("eps", 2.0, "b")]
    runs = [
        ({"config.prediction": kind, "config.rate": rate, "config.name": name, "config.seed": i}, result({"loss": 1.0}))
        for kind, rate, name in places
        for i in range(3)
    ]
    sweep_folder(tmp_path, runs)
    text = shown(tmp_path, by="config.rate")  # the settings in the column of rate 2 have one definition of the loss
    assert not any("*" in cell for row in cells(text)[2:] for cell in row)
    assert "**Bold**" not in text


def test_a_table_is_not_cut_to_the_best_by_incomparable_losses(tmp_path):
    sweep_folder(tmp_path, losses("config.prediction", ["x0", "eps", "v"]))
    text = shown(tmp_path, ["loss"], top=2)
    assert "The first 2 of 3 rows" in text
    assert [row[0] for row in cells(text)[2:]] == ["x0", "eps"]
    text = shown(tmp_path, ["loss", "fd"], top=1)
    assert "The best 1 of 3 rows" in text
    assert cells(text)[2][0] == "x0"


def test_means_within_the_resolution_of_the_best_are_ties(tmp_path):
    runs = [
        ({"a": name, "seed": seed}, result({"accuracy": value}, conditions={"num_samples": 200, "n": 100}))
        for name, value in (("first", 0.9), ("second", 0.905), ("third", 0.8))
        for seed in range(3)
    ]
    sweep_folder(tmp_path, runs, seed_keys=["seed"])
    text = shown(tmp_path)
    assert [row[1] for row in cells(text)[2:]] == ["**0.9000 ± 0**", "**0.9050 ± 0**", "*0.8000 ± 0*"]
    assert "ties: means within the resolution of it (accuracy 0.005)" in text
    lines = csv.DictReader(io.StringIO(tables.csv_text(read_sweep(tmp_path))))
    assert [line["mark"] for line in lines if line["metric"] == "accuracy"] == ["tie", "best", "alike"]


@pytest.mark.parametrize(
    ("metric", "conditions", "step"),
    [
        ("accuracy", {"num_samples": 200, "n": 100}, 1 / 200),
        ("class_balance", {"num_samples": 200}, 1 / 200),
        ("recall", {"num_samples": 200, "n": 100}, 1 / 100),
        ("accuracy", {"n": 100}, 1 / 100),
        ("accuracy", {"law": "none"}, None),
        ("fd", {"num_samples": 200, "n": 100}, None),
    ],
)
def test_the_resolution_follows_from_the_number_of_samples(tmp_path, metric, conditions, step):
    sweep_folder(tmp_path, [({"seed": 0}, result({metric: 0.5}, conditions=conditions))], seed_keys=["seed"])
    assert summary.resolution(metric, read_sweep(tmp_path).runs) == step


def test_the_time_of_compilation_is_a_separate_cost(tmp_path):
    runs = [
        ({"a": a, "seed": seed}, result({"fd": 2.0 + a + seed}, seconds=5.0 + a, compile_seconds=30.0 - a))
        for a, seed in itertools.product((0, 1), range(3))
    ]
    sweep_folder(tmp_path / "new", runs, seed_keys=["seed"])
    assert "seconds" not in shown(tmp_path / "new")
    text = shown(tmp_path / "new", ["fd", "seconds", "compile_seconds"])
    assert [row[2:4] for row in cells(text)[2:]] == [["5", "30"], ["6", "29"]]
    assert "seconds: without compilation, see compile_seconds." in text
    lines = list(csv.DictReader(io.StringIO(tables.csv_text(read_sweep(tmp_path / "new")))))
    assert [line["mean"] for line in lines if line["metric"] == "compile_seconds"] == ["30.0", "29.0"]
    for _, entry in runs[:3]:
        del entry["cost"]["compile_seconds"]
    sweep_folder(tmp_path / "old", runs, seed_keys=["seed"])
    text = shown(tmp_path / "old", ["seconds", "compile_seconds"])
    assert [row[1:3] for row in cells(text)[2:]] == [["5", "-"], ["6", "29"]]
    assert "seconds: with compilation in the 3 of 6 runs that have no compile_seconds." in text


def test_a_title_equal_to_the_name_is_printed_once(tmp_path):
    sweep_folder(tmp_path / "a", known(), title="losses")
    assert shown(tmp_path / "a").startswith("# losses\n\n9 of 9 runs")
    sweep_folder(tmp_path / "b", known())
    assert shown(tmp_path / "b").startswith("# losses\n\nWhich loss?\n\n9 of 9 runs")


def test_csv_has_a_line_for_each_setting_and_metric(tmp_path):
    sweep_folder(tmp_path, known())
    lines = list(csv.DictReader(io.StringIO(tables.csv_text(read_sweep(tmp_path)))))
    assert len(lines) == 3 * 4
    v = next(line for line in lines if line["config.loss.prediction"] == "v" and line["metric"] == "fd")
    assert (float(v["mean"]), float(v["std"]), v["n"], v["floor"], v["mark"]) == (3.0, 1.0, "3", "1.64", "best")
    assert float(v["low"]) == pytest.approx(3 - 2.48413771175)


# Damaged folders


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{", "result.json is not JSON"),
        ("[]", "result.json must be an object, got list"),
        (lambda r: r.pop("metrics"), "result.json lacks the key metrics"),
        (lambda r: r["cost"].pop("seconds"), "lacks the key cost.seconds"),
        (lambda r: r["metrics"].update(fd=float("nan")), "metrics.fd must be finite, got nan"),
        (lambda r: r["metrics"].update(fd="low"), "metrics.fd must be a number, got 'low'"),
        (lambda r: r["floors"].update(fd=float("inf")), "floors.fd must be finite, got inf"),
        (lambda r: r.update(id="0" * 12), "the result of another run"),
    ],
)
def test_the_error_of_a_corrupt_result_names_the_key_and_other_results_are_reported(tmp_path, change, message):
    runs = known()
    if callable(change):
        change(runs[0][1])
    else:
        runs[0] = (runs[0][0], change)
    ids = sweep_folder(tmp_path, runs)
    corrupt = read_sweep(tmp_path).having("corrupt")
    assert [run.id for run in corrupt] == ids[:1]
    assert message in corrupt[0].error
    text = shown(tmp_path)
    assert f"- {ids[0]} (prediction=eps, num_steps=100, seed=0): {corrupt[0].error}" in text
    assert cells(text)[2][-1] == "2 of 3"
    assert cells(text)[3][1] == "**3.0 ± 2.5**"


def test_failed_and_missing_runs_are_listed(tmp_path):
    runs = known()
    runs[0], runs[1] = (runs[0][0], ["loss is\nnot finite"]), (runs[1][0], None)
    runs.append(({**runs[8][0], "config.loss.prediction": "score"}, None))
    ids = sweep_folder(tmp_path, runs)
    (tmp_path / "runs" / ids[2] / "result.json").unlink()
    (tmp_path / "runs" / ("f" * 12)).mkdir()
    text = shown(tmp_path)
    assert "6 of 10 runs are done, 1 failed, 1 started, 2 waiting." in text
    assert f"## Failed: 1\n\n- {ids[0]} (prediction=eps, num_steps=100, seed=0): loss is not finite" in text
    assert f"## Waiting: 2\n\n- {ids[1]}" in text
    assert f"running, or killed): 1\n\n- {ids[2]}" in text
    assert f"left out: 1\n\n- {'f' * 12}" in text
    assert [row[0] for row in cells(text)[2:]] == ["eps", "v", "x0", "*real against real*"]
    assert cells(text)[2] == ["eps", "-", "-", "-", "0 of 3"]
    assert "1 setting without a finished run is not in the table." in text


def test_a_folder_without_a_result_has_a_report(tmp_path):
    sweep_folder(tmp_path, [({"lr": 1, "seed": 0}, None)], seed_keys=["seed"])
    assert "0 of 1 runs are done, 1 waiting." in shown(tmp_path)
    assert plots.draw(read_sweep(tmp_path), []) == []


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"name": "a", "seed_keys": [], "runs": {"..": {}}}'])
def test_an_invalid_sweep_json_is_refused(tmp_path, text):
    with pytest.raises(ValueError, match=r"has no sweep\.json"):
        read_sweep(tmp_path)
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(ValueError, match=r"sweep\.json"):
        read_sweep(tmp_path)


# Two sweeps


def changes(tmp_path, a, b, metrics=("fd",), **settings):
    for name, runs in (("a", a), ("b", b)):
        sweep_folder(tmp_path / name, runs, **settings)
    sweeps = read_sweep(tmp_path / "a"), read_sweep(tmp_path / "b")
    pairs = compare.pair(*sweeps)
    rows = compare.changes(pairs, metrics)
    return pairs, rows, compare.comparison(*sweeps, pairs, rows)


def test_differences_are_computed_for_each_pair(tmp_path):
    b = known(kinds=("v", "eps"))
    for (_, content), shift in zip(b, (-0.3, -0.4, -0.5, 1.0, -1.0, 0.5), strict=True):
        content["metrics"]["fd"] += shift
    pairs, rows, text = changes(tmp_path, known(), b)
    eps, v = rows  # only A has x0
    assert (v.a.mean, v.b.mean, v.change.n, v.verdict) == (3.0, pytest.approx(2.6), 3, "better")
    assert v.change.mean == pytest.approx(-0.4)
    assert v.change.half == pytest.approx(0.248413771175)  # of the differences 0.3, 0.4, 0.5, not of the values (2.5)
    assert eps.verdict == "undecided"
    assert [len(alone) for alone in pairs.alone] == [3, 0]
    assert cells(text)[3] == ["v", "fd", "3", "2.600", "-0.40 ± 0.25", "**better**", "3"]
    assert "Done in A only: 3" in text


def test_two_pairs_have_no_interval(tmp_path):
    _, rows, text = changes(tmp_path, known(seeds=(0, 1)), known(shift=1.0, seeds=(1, 0)))
    assert {(c.change.n, c.change.half, c.verdict) for c in rows} == {(2, None, "")}
    assert "±" not in text
    assert "n < 3: no interval" in text


def test_pairs_have_equal_seeds_and_may_differ_in_a_setting_of_all_runs(tmp_path):
    more = {"config.ema": 0.99}
    pairs, rows, text = changes(tmp_path, known(), known(shift=1.0, **more), base={"ema": 0.9, "lr": 0.1, "seed": 7})
    assert [c.change.n for c in rows] == [3, 3, 3]
    assert pairs.between == {"config.ema": (0.9, 0.99)}
    assert "`config.ema`: A 0.9, B 0.99" in text
    a, b = read_sweep(tmp_path / "a"), read_sweep(tmp_path / "b")
    one = [run for run in a.runs if run.overrides["config.seed"] == 0]
    two = [run for run in b.runs if run.overrides["config.seed"] == 1]
    assert compare.pair(dataclasses.replace(a, runs=one), dataclasses.replace(b, runs=two)).settings == []
    assert compare.pair(a, dataclasses.replace(b, base={"lr": 0.2, "seed": 8})).between == {
        "config.ema": (0.9, 0.99),
        "lr": (0.1, 0.2),
    }


def test_different_conditions_of_pairs_are_reported_in_bold(tmp_path):
    b = known()
    for _, of in b:
        of["conditions"] = {**CONDITIONS, "num_samples": 400}
    _, rows, text = changes(tmp_path, known(), b)
    assert "WARNING" in text
    assert "**400** in 9" in text
    assert all(c.verdict == "" for c in rows)


@pytest.mark.parametrize(
    ("between", "verdicts"),
    [
        ({"config.loss.weighting": ("eps", "edm")}, ["not comparable", "better"]),
        ({"config.sigma_data": (0.5, 1.0)}, ["not comparable", "better"]),
        ({"config.optimizer.b1": (0.9, 0.8)}, ["better", "better"]),
    ],
)
def test_losses_of_different_definitions_are_not_compared(tmp_path, between, verdicts):
    ((key, values),) = between.items()
    sides = [
        [
            ({key: value, "config.seed": seed}, result(dict.fromkeys(("loss", "fd"), 2.0 - i + i * seed / 100)))
            for seed in range(3)
        ]
        for i, value in enumerate(values)
    ]
    _, rows, text = changes(tmp_path, *sides, metrics=("loss", "fd"))
    assert [row.verdict for row in rows] == verdicts
    note = f"not comparable: the definition of a loss differs between A and B, in `{key}`."
    assert (note in text) == ("not comparable" in verdicts)


def test_losses_of_bases_with_different_definitions_are_not_compared(tmp_path):
    for name, kind in (("a", "eps"), ("b", "v")):
        runs = [({"config.seed": seed}, result({"loss": 1.0 + seed})) for seed in range(2)]
        sweep_folder(tmp_path / name, runs, base={"prediction": kind, "seed": 0})
    pairs = compare.pair(read_sweep(tmp_path / "a"), read_sweep(tmp_path / "b"))
    assert pairs.between == {"prediction": ("eps", "v")}
    assert [row.verdict for row in compare.changes(pairs, ["loss"])] == ["not comparable"]


@pytest.mark.parametrize(
    ("metric", "shift", "verdict"),
    [
        ("accuracy", 0.005, "undecided (resolution 0.005)"),
        ("accuracy", 0.1, "undecided (resolution 0.005)"),
        ("accuracy", 0.0, "undecided (resolution 0.005)"),
        ("fd", -0.1, "undecided (zero width)"),
        ("fd", 0.0, "equal"),
        ("hue", 0.1, "undecided (zero width)"),
    ],
)
def test_equal_differences_are_undecided(tmp_path, metric, shift, verdict):
    sides = [
        [
            ({"config.seed": seed}, result({metric: 0.9 + seed / 200 + d}, conditions={"num_samples": 200}))
            for seed in range(3)
        ]
        for d in (0.0, shift)
    ]
    _, (row,), text = changes(tmp_path, *sides, metrics=(metric,))
    assert row.verdict == verdict
    assert verdict in text
    assert ("all pairs have the same difference" in text) == verdict.startswith("undecided")


# Plots


def drawn(folder, runs, metrics, by, **settings):
    """(legend title, legend labels, y labels, titles of the panels) of a plot; by: "curves" or a cost."""
    sweep_folder(folder, runs, **settings)
    sweep = read_sweep(folder)
    if by == "curves":
        for run in sweep.runs:
            lines = [json.dumps({"step": step, "loss": 1.0, "norm": 2.0}) for step in (10, 20)]
            (run.folder / "metrics.jsonl").write_text("\n".join(lines))
    figure = plots.curves(sweep, metrics) if by == "curves" else plots.pareto(sweep, metrics, by)
    panels = [axis for axis in figure.axes if axis.get_visible()]
    (legend,) = figure.legends
    return (
        legend.get_title().get_text(),
        [entry.get_text() for entry in legend.get_texts()],
        [axis.get_ylabel() for axis in panels],
        [axis.get_title(loc="left") for axis in panels],
    )


def test_plots_do_not_rank_losses_of_different_definitions(tmp_path):
    values = [f"kind{i}" for i in range(10)]
    metrics = ["loss", "fd"]
    title, labels, _, panels = drawn(tmp_path / "a", losses("config.prediction", values), metrics, "curves")
    assert title == "prediction (in colour: the best 8 by fd)"
    assert labels == [*values[:8], "2 others"]
    assert panels == ["mean, least to largest of 3 seeds\nnot comparable: differs in prediction", ""]
    title, *_ = drawn(tmp_path / "b", losses("config.prediction", values), ["loss"], "curves")
    assert title == "prediction (in colour: the first 8)"
    title, labels, _, panels = drawn(tmp_path / "c", losses("config.rate", values), metrics, "curves")
    assert (title, labels[0]) == ("rate (in colour: the best 8 by loss)", "kind9")
    assert panels == ["mean, least to largest of 3 seeds", ""]
    assert drawn(tmp_path / "d", losses("config.prediction", values), metrics, "seconds")[2] == ["fd"]
    assert drawn(tmp_path / "e", losses("config.rate", values), metrics, "seconds")[2] == metrics


def points(keys, by="seconds"):
    """(settings, signs) of all combinations of the values of keys; a setting costs its value of the key calls."""
    settings = [
        summary.Setting(dict(zip(keys, values, strict=True)), [], {}) for values in itertools.product(*keys.values())
    ]
    costs = [float(setting.overrides.get("calls", i)) for i, setting in enumerate(settings)]
    return settings, plots.signs(settings, list(keys), by, costs)


def test_two_values_of_one_key_have_a_colour_each():
    for key, by in (("num_steps", "calls"), ("calls", "calls"), ("num_steps", "seconds")):
        _, signs = points({key: [10, 20]}, by)
        assert signs.title == key
        assert signs.entries == {"10": (plots.COLOURS[0], "o"), "20": (plots.COLOURS[1], "s")}
        assert (signs.colours, signs.markers) == ([*plots.COLOURS[:2]], ["o", "s"])


def test_colours_show_one_key_and_markers_a_second_one():
    keys = {"calls": [5, 10], "sampler": ["ddim", "heun"], "grid": ["a", "b", "c"], "eta": [0.0, 1.0]}
    settings, signs = points(keys, "calls")
    assert signs.title == "colour: sampler, marker: grid (not shown: eta)"
    assert [*signs.entries] == ["sampler ddim", "sampler heun", "grid a", "grid b", "grid c"]
    for setting, colour, marker in zip(settings, signs.colours, signs.markers, strict=True):
        assert colour == plots.COLOURS[keys["sampler"].index(setting.overrides["sampler"])]
        assert marker == plots.MARKERS[keys["grid"].index(setting.overrides["grid"])]
    assert points(keys, "seconds")[1].title == "colour: sampler, marker: grid (not shown: calls, eta)"
    # The axis of calls shows the key calls, the axis of seconds does not.
    two = {"calls": [5, 10], "eta": [0.0, 1.0]}
    assert points(two, "calls")[1].title == "eta"
    assert points(two, "seconds")[1].title == "colour: calls, marker: eta"


def test_values_after_the_first_eight_are_grey_or_dots():
    _, signs = points({"a": [f"a{i}" for i in range(10)], "b": [f"b{i}" for i in range(9)]})
    assert len(set(signs.colours)) == len(set(signs.markers)) == 9
    assert signs.colours[-1] == plots.GREY
    assert signs.markers[-1] == plots.DOT
    assert signs.entries["a 2 others"] == (plots.GREY, "o")
    assert signs.entries["b 1 other"] == ("#444444", plots.DOT)
    # A key with few values is shown before one with many.
    assert points({"a": [f"a{i}" for i in range(10)], "b": [1, 2]})[1].title == "colour: b, marker: a"


def test_the_legend_of_a_pareto_plot_names_both_keys(tmp_path):
    runs = [
        (
            {"sampler": s, "grid": g, "seed": i},
            result({"fd": 1.0 + i}, seconds=2.0, calls=5 * len(s), compile_seconds=3),
        )
        for s, g, i in itertools.product(("ddim", "dpmpp"), "xy", range(3))
    ]
    title, labels, names, _ = drawn(tmp_path, runs, ["fd", "compile_seconds"], "calls", seed_keys=["seed"])
    assert title == "colour: sampler, marker: grid"
    assert labels == ["sampler ddim", "sampler dpmpp", "grid x", "grid y", "not dominated"]
    assert names == ["fd"]  # costs are not metrics


def methods(seeds=(0, 1, 2)):
    """Two methods, each with several settings that follow from its name, measured at 1 and 4 calls."""
    rows = {"mean_flow": (True, "flow", 2.0), "consistency": (False, "cosine", 3.0), "denoising": (False, "flow", 9.0)}
    for (name, (second, schedule, fd)), seed in itertools.product(rows.items(), seeds):
        overrides = {"config.loss.objective": name, "config.network.second_time": second, "config.seed": seed}
        metrics = {"fd_1": fd + seed, "fd_4": fd / 2 + seed, "accuracy_1": 0.9, "accuracy_4": 1.0}
        yield overrides | {"config.schedule.name": schedule}, result(metrics, floors={"fd_1": 1.6, "fd_4": 1.6})


def test_settings_that_follow_from_a_method_have_no_column(tmp_path):
    sweep_folder(tmp_path, list(methods()))
    sweep = read_sweep(tmp_path)
    assert sweep.varying == ["config.loss.objective"]
    assert sweep.implied == ["config.network.second_time", "config.schedule.name"]
    text = shown(tmp_path, ["fd_1"])
    assert cells(text)[0][:2] == ["objective", "fd_1"]
    assert "follow from those in the table: `config.network.second_time`, `config.schedule.name`" in text
    assert "In all runs" not in text


def test_metrics_at_several_numbers_of_calls_have_a_plot(tmp_path):
    sweep_folder(tmp_path, list(methods()))
    sweep = read_sweep(tmp_path)
    figure = plots.by_calls(sweep, sweep.metrics)
    fd, accuracy = figure.axes
    assert (fd.get_ylabel(), accuracy.get_ylabel()) == ("fd", "accuracy")
    lines = {bars.get_label(): bars[0].get_xydata().tolist() for bars in fd.containers}
    assert lines["mean_flow"] == [[1.0, 3.0], [4.0, 2.0]]
    assert set(lines) == {"mean_flow", "consistency", "denoising"}
    assert [line.get_ydata()[0] for line in fd.lines if line.get_label() == "real against real"] == [1.6]
    assert plots.by_calls(sweep, ["fd_1"]) is None
    assert "calls" in plots.draw(sweep, sweep.metrics)


def test_colours_are_distinct():
    rgb = [np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) for colour in (*plots.COLOURS, plots.GREY)]
    distances = [np.abs(x - y).sum() for x, y in itertools.combinations(rgb, 2)]
    assert min(distances) > 80
    assert len(plots.COLOURS) == len(plots.MARKERS) == 8


def test_the_pareto_front():
    assert plots.front([(1, 5), (2, 3), (3, 4), (2, 6), (4, 1), (5, 1)]) == [0, 1, 4]


def test_curves_are_means_over_the_seeds(tmp_path):
    sweep_folder(tmp_path, known())
    runs = read_sweep(tmp_path).runs[:3]
    for i, run in enumerate(runs):
        lines = [json.dumps({"step": step, "loss": step + i, "bad": float("nan")}) for step in (10, 20, 20)]
        (run.folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 30, "lo']))
    assert read_curve(runs[1]) == {10: {"loss": 11.0}, 20: {"loss": 21.0}}
    steps, mean, low, high = plots.mean_curve([read_curve(run) for run in runs], "loss")
    assert [list(v) for v in (steps, mean, low, high)] == [[10, 20], [11, 21], [10, 20], [12, 22]]
    assert plots.draw(read_sweep(tmp_path), ["fd"]) == ["curves", "pareto_seconds"]


# The command


def run(capsys, *argv):
    """(status, standard output, standard error) of the command in this process."""
    with flagsaver.flagsaver():
        status = report.main(parse(["report", *map(str, argv)]))
    return status, *capsys.readouterr()


def test_the_command_writes_the_report_and_returns_a_status(tmp_path, capsys):
    runs = known()
    sweep_folder(tmp_path / "b", known(shift=-0.5))
    assert run(capsys, tmp_path / "b")[0] == 0
    runs[0] = (runs[0][0], '{"id": ')
    (id, *_) = sweep_folder(tmp_path / "a", runs)
    status, out, err = run(capsys, tmp_path / "a", "--metrics=fd", "--by=prediction")
    assert status == 1
    assert err.startswith(f"error: run {id}: result.json is not JSON")
    assert "**3.0 ± 2.5**" in out
    written = {path.name for path in (tmp_path / "a").iterdir()} - {"runs", "sweep.json"}
    assert written == {"report.md", "report.csv", "report.json", "pareto_seconds.png"}
    assert "prediction v" in (tmp_path / "a" / "report.md").read_text()
    assert json.loads((tmp_path / "a" / "report.json").read_text())["corrupt"][0]["id"] == id


def test_a_table_by_a_key_does_not_need_results(tmp_path, capsys):
    sweep_folder(tmp_path, [({"lr": lr, "seed": 0}, None) for lr in (1, 2)], seed_keys=["seed"])
    status, out, _ = run(capsys, tmp_path, "--by=lr")
    assert status == 0
    assert "0 of 2 runs are done, 2 waiting." in out


def test_the_command_compares(tmp_path, capsys):
    for name, shift in (("a", 0.0), ("b", 0.5)):
        sweep_folder(tmp_path / name, known(shift=shift))
    status, out, _ = run(capsys, tmp_path / "a", tmp_path / "b", "--metrics=fd")
    assert status == 0
    assert "+0.5000 ± 0" in out
    assert (tmp_path / "a" / "comparison_b.md").read_text() in out
    assert len(json.loads((tmp_path / "a" / "comparison_b.json").read_text())) == 3
    assert (tmp_path / "a" / "comparison_b.csv").read_text().startswith("config.loss.prediction,metric,a,b,difference")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--metrics=fid", "metrics must be of fd, accuracy, hue, seconds, got 'fid'"),
        ("--by=seed", "by must be one of the keys that vary (config.loss.prediction), got 'seed'"),
    ],
)
def test_unknown_metrics_and_keys_are_errors_of_one_line(tmp_path, capsys, flag, message):
    sweep_folder(tmp_path, known())
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as raised:
        report.main(parse(["report", str(tmp_path), flag]))
    assert raised.value.code == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_folder_without_a_sweep_is_an_error_of_one_line_with_status_2(tmp_path):
    command = [sys.executable, "-m", "experiments.report", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENV, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr == f"error: DIR must be the workdir of a sweep, got {tmp_path}, which has no sweep.json\n"


def test_settings_without_the_metric_are_left_out(tmp_path):
    runs = [({"a": a, "seed": seed}, result({"fd": 2.0} if a else {"kid": 1.0})) for a in (0, 1) for seed in range(3)]
    sweep_folder(tmp_path, runs, seed_keys=["seed"])
    sweep = read_sweep(tmp_path)
    assert [line[0] for line in tables.flat(sweep, ["fd"]).lines] == ["1"]
    assert [line[0] for line in tables.flat(sweep, ["fd", "kid"]).lines] == ["0", "1"]
