"""The benchmark of the samplers: counts of denoiser calls, reference values, padded grids, and a short run."""

import itertools
import json
import subprocess
import sys
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffax
from diffax import analytic
from experiments.benchmarks import accuracy, distributions, peer_rows, peers, problems, rows
from experiments.benchmarks.rows import ROWS

pytestmark = [pytest.mark.usefixtures("x64")]
BUDGETS = (5, 10)


def counted_calls(row, moves, ending):
    """Number of denoiser calls of a run, counted by a callback."""
    schedule, calls = diffax.Linear(), []

    def denoise(x, t):
        jax.debug.callback(calls.append, t)
        return 0.3 * x

    @jax.jit
    def run(times):
        x = diffax.integrate(jax.random.key(0), row.build(schedule, 1.0), denoise, jnp.ones((1, 2)), times).x
        return denoise(x, times[-1]) if ending == "sample" else x

    jax.block_until_ready(run(jnp.linspace(0.9, 0.1, moves + 1)))
    jax.effects_barrier()
    return len(calls)


def check_calls(row, budget, ending):
    moves = row.moves(budget, ending)
    assert counted_calls(row, moves, ending) == row.spent(moves, ending) <= budget


@pytest.mark.slow_cases("dpm_solver-3", "unipc-3", "ddim-langevin")
@pytest.mark.parametrize("name", ["ddim", "heun", "dpm_solver-3", "unipc-3", "pndm", "pndm-prk", "ddim-langevin"])
def test_the_counted_calls_are_those_of_a_run(name):
    check_calls(ROWS[name], 14, "sample")
    assert ROWS[name].moves(14, "integrate") >= ROWS[name].moves(14, "sample")


def test_the_check_rejects_a_call_that_is_not_counted():
    """Negative control: the extra calls of the first steps of PNDM are not counted."""
    build = lambda *args: ROWS["pndm"].build(*args)._replace(start_calls=0)
    with pytest.raises(AssertionError):
        check_calls(ROWS["pndm"]._replace(build=build), 14, "sample")


def test_no_row_exceeds_a_budget_and_one_step_more_would():
    for row in ROWS.values():
        for budget in (5, 8, 20):
            for ending in rows.ENDINGS:
                moves = row.moves(budget, ending)
                assert moves == 0 or row.spent(moves, ending) <= budget
                assert row.spent(moves + 1, ending) > budget


@pytest.fixture(scope="module")
def small():
    with jax.enable_x64(True):
        yield problems.problem("linear", 2, 8)


@pytest.mark.slow_cases(but=["deis-3"])
@pytest.mark.parametrize("name", ["pndm", "unipc-3-final", "deis-3"])
def test_padding_changes_nothing(name, small):
    """Also for samplers that use the end of the grid, and for samplers with a start of their own."""
    row, schedule = ROWS[name], problems.SCHEDULES["linear"]
    runs = problems.cases(row, BUDGETS, ("karras",), (1,))
    padded, denoise, case = accuracy.measure(row, small, runs), small.law.denoiser(schedule), runs[0]
    times = problems.step_grid("linear", case.grid, case.moves + 1, problems.ENDS[case.end])
    x0 = diffax.sample(jax.random.key(0), row.build(schedule, 1.0), denoise, small.x, times)
    assert max(case.moves for case in runs) > case.moves
    np.testing.assert_allclose(padded[0, 0], accuracy.rms(x0 - small.x0), rtol=1e-9)


def test_padding_does_not_change_the_churn():
    row, schedule = ROWS["heun-churn10"], "edm"
    run = problems.Case("uniform", 0, "sample", 15, 7, 15)
    longer = problems.Case("uniform", 0, "sample", 31, 15, 31)
    alone, beside = distributions.measure(row, schedule, [run]), distributions.measure(row, schedule, [run, longer])
    np.testing.assert_allclose(alone[0], beside[0], rtol=1e-9)


def test_the_exact_answer_is_the_closed_form_of_one_component(monkeypatch):
    """x0 = m + s / sqrt(alpha^2 s^2 + sigma^2) (x - alpha m)."""
    one = analytic.Mixture(np.array([1.0]), np.array([[0.7, -0.4]]), 0.3)
    monkeypatch.setattr(problems, "mixture", lambda dimension: one)
    monkeypatch.setattr(problems, "RUNGE_KUTTA", 600)
    for name in ("linear", "edm"):  # the last level of edm is 0.002
        problem, level = problems.problem(name, 2, 4), problems.SCHEDULES[name](1.0)
        scale = 0.3 / np.sqrt(level.alpha**2 * 0.09 + level.sigma**2)
        np.testing.assert_allclose(problem.x0, one.means + scale * (problem.x - level.alpha * one.means), atol=1e-8)


def recursion(times, noise=1.0):
    """DDPM of small variance on the Gaussian, in numpy: (mean, deviation) of x at the last time."""
    schedule, data = diffax.Linear(), problems.gaussian()
    levels = [tuple(float(v) for v in schedule(t)[:2]) for t in times]
    alpha, sigma = levels[0]
    m, v = alpha * data.mean, alpha**2 * data.variances + sigma**2
    for (alpha, sigma), (alpha_s, sigma_s) in itertools.pairwise(levels):
        step = (alpha / alpha_s) ** 2  # the ratio of alpha bar, Ho et al. 2020
        tilde = sigma_s**2 / sigma**2 * (1 - step)
        gain = alpha * data.variances / (alpha**2 * data.variances + sigma**2)
        c_x0, c_x = alpha_s * (1 - step) / sigma**2, np.sqrt(step) * sigma_s**2 / sigma**2
        slope = c_x0 * gain + c_x
        m = slope * m + c_x0 * (1 - gain * alpha) * data.mean
        v = slope**2 * v + noise * tilde
    return m, np.sqrt(v)


def test_the_measured_distribution_follows_the_recursion_of_the_paper():
    runs = problems.cases(ROWS["ddpm"], BUDGETS, ("uniform",), (0,))
    measured, data = distributions.measure(ROWS["ddpm"], "linear", runs), problems.gaussian()
    for case, errors in zip(runs, measured, strict=True):
        m, s = recursion(problems.step_grid("linear", case.grid, case.moves + 1, 0.05))
        exact = np.sqrt(np.mean((m - data.mean) ** 2 + (s - np.sqrt(data.variances)) ** 2))
        np.testing.assert_allclose(errors[1], exact, rtol=1e-8)


def test_the_check_rejects_noise_of_a_wrong_variance():
    """Negative control: the variance of the noise is 2 % too large."""
    times = problems.step_grid("linear", "uniform", 11, 0.05)
    assert abs(recursion(times)[1] / recursion(times, 1.02)[1] - 1).max() > 1e-3


def test_quantiles_and_the_sliced_distance():
    """With one component the quantiles are those of a normal distribution.

    In direction v the distance of draws that are shifted by d is |d . v|.
    """
    one = analytic.Mixture(np.array([1.0]), np.array([[0.7, -0.4]]), 0.3)
    exact, v = distributions.quantiles(one, 9), distributions.directions(2)
    for k in (0, 5):
        normal = NormalDist(float(one.means[0] @ v[:, k]), 0.3)
        np.testing.assert_allclose(exact[:, k], [normal.inv_cdf((i + 0.5) / 9) for i in range(9)], atol=1e-5)
    # If all draws are one point, the squared distance to a distribution along v is E (point . v - q)^2.
    d = np.array([0.3, 0.1])
    expected = np.sqrt(np.mean((d @ v - exact) ** 2))
    np.testing.assert_allclose(distributions.sliced(jnp.broadcast_to(d, (9, 2)), exact), expected, rtol=1e-12)


def test_slope():
    assert accuracy.slope([10, 20, 40], [1.0, 0.25, 0.0625]) == pytest.approx(2.0)
    assert accuracy.slope([10, 20], [1.0, 1e-12]) is None
    assert accuracy.slope([10], [1.0]) is None


def test_best():
    errors = {"a": [0.3, None], "b": [0.1, None]}
    assert accuracy.best(errors, 0) == (0.1, "b")
    assert accuracy.best(errors, 1) is None


def test_a_sweep_compiles_once_and_ends_at_the_bare_sampler():
    build = lambda of, stretch, eta: diffax.ddim(of, eta=eta)
    swept = distributions.sweep(build, "linear", [0.0, 0.5, 1.0], BUDGETS)
    runs = [c for c in problems.cases(ROWS["ddpm"], BUDGETS, ("log_snr",), (1,)) if c.ending == "sample"]
    assert swept["compiles"] == 1
    np.testing.assert_allclose(
        swept["errors"][-1], distributions.measure(ROWS["ddpm"], "linear", runs)[:, 0], rtol=1e-3
    )


def test_the_betas_that_make_diffusers_table_the_linear_schedule():
    t = np.arange(1, 1001) / 1000
    bars = np.cumprod(1 - peers.linear_betas())
    np.testing.assert_allclose(bars, np.asarray(diffax.Linear()(t).alpha) ** 2, rtol=1e-9)


LIKE = {
    "k-diffusion euler": ("log_snr", 0.05, "sample"),
    "k-diffusion heun": ("karras", 0.01, "integrate"),
    "k-diffusion dpmpp_2m": ("uniform", 0.01, "sample"),
    "k-diffusion dpmpp_sde": ("log_snr", 0.01, "sample"),
}


@pytest.mark.parametrize("name", LIKE)
def test_samplers_of_k_diffusion_have_the_errors_of_their_rows(name, small):
    """The row of k-diffusion has the errors of the row of diffax. Skipped without k-diffusion."""
    if "k-diffusion" not in peers.libraries():
        pytest.skip("k-diffusion is not installed")
    peer, setting = peer_rows.PEERS[name], LIKE[name]
    grid, end, ending = setting
    row, alpha = ROWS[peer.ours], float(problems.SCHEDULES["linear"](1.0).alpha)
    runs = problems.cases(row, BUDGETS, (grid,), (problems.ENDS.index(end),))
    runs = [case for case in runs if case.ending == ending]
    if peer.stochastic:
        data = problems.gaussian()
        errors = distributions.measure(row, "linear", runs)
        u = np.asarray(distributions.unit_examples(data, problems.SCHEDULES["linear"](1.0), 40)) / alpha
        error = lambda end: distributions.wasserstein(*distributions.moments(jnp.asarray(end)), data)
        measured = peers.measure(peer, data, u, BUDGETS, error, [setting], peers.unit_noise)
    else:
        errors = accuracy.measure(row, small, runs)
        error = lambda end: np.sqrt(np.mean((end - np.asarray(small.x0)) ** 2))
        measured = peers.measure(peer, small.law, np.asarray(small.x) / alpha, BUDGETS, error, [setting], peers.draws)
    result = measured["errors"][f"{grid} {end:g} {ending}"]
    # `integrate` returns x / alpha in k-diffusion and x in diffax.
    np.testing.assert_allclose(result, errors[:, int(ending == "integrate")], rtol=1e-3 if ending == "sample" else 5e-3)
    assert measured["calls"][ending] == [case.calls for case in runs]


def command(*flags):
    return subprocess.run(
        [sys.executable, "-m", "experiments.benchmark", *flags], capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow_cases("flags1-samplers must be among ddim")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["samplers", "--budgets=5,x"], "budgets must be ints >= 2, got '5,x'"),
        (["samplers", "--samplers=dimm"], "samplers must be among ddim"),
    ],
)
def test_bad_input_is_one_line(flags, message):
    done = command(*flags)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


@pytest.mark.slow
def test_quick_writes_all_files(tmp_path):
    done = command("samplers", "--quick", "--samplers=dpmpp_2s,ddpm-large", "--budgets=3,6", f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "samplers.json").read_text())
    assert report["errors"]["linear, 2-D"]["dpmpp_2s"]["calls"] == {"sample": [3, 5], "integrate": [2, 6]}
    assert {row["sampler"] for row in report["speed"]} == {"dpmpp_2s", "ddpm-large"}
    text = (tmp_path / "samplers.md").read_text()
    for heading in (
        "Best at each budget",
        "Measured order",
        "Error in distribution",
        "swept in one compile",
        "Compile time",
    ):
        assert heading in text
