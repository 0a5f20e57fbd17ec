"""The rows of the catalogues are correct, and every list of names follows from the catalogues."""

import importlib.util
import inspect
from pathlib import Path

import exam
import jax
import numpy as np
import pytest

import diffax
from diffax import samplers, schedules, times
from diffax.losses import training_times, weightings
from experiments.benchmarks import peer_rows, rows
from experiments.models import samplers as config_samplers

pytestmark = pytest.mark.newest
ROOT = Path(__file__).parents[1]


def tables():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", samplers.CATALOGUE)
def test_a_row_describes_its_sampler(name):
    row = samplers.CATALOGUE[name]
    parameters = inspect.signature(row.make).parameters
    assert {*row.settings, *row.exam, *([row.noise] if row.noise else [])} <= parameters.keys()
    required = {"snr": 0.1} if name == "annealed_langevin" else {}
    sampler = row.make(diffax.Cosine(), **required)
    for field in ("order", "calls", "start_calls", "noisy"):
        assert getattr(sampler, field) == getattr(row, field), field
    assert row.make is getattr(diffax, name)


@pytest.mark.parametrize("name", samplers.names())
def test_every_name_builds(name):
    assert isinstance(samplers.by_name(name, diffax.Linear()), diffax.Sampler)


def test_by_name_passes_the_noise_to_the_keyword_of_the_sampler():
    assert samplers.by_name("ddim", diffax.Cosine(), 0.5).noisy
    assert not samplers.by_name("sa_solver", diffax.Cosine(), 0.0).noisy
    # heun has no noise keyword, so the value is ignored.
    assert samplers.by_name("heun", diffax.Cosine(), 0.5).order == 2


def test_every_public_sampler_has_a_row():
    makers = {
        name
        for name in samplers.__all__
        if inspect.isfunction(value := getattr(samplers, name))
        and list(inspect.signature(value).parameters)[:1] == ["schedule"]
        and inspect.signature(value).return_annotation is diffax.Sampler
    }
    assert makers == samplers.CATALOGUE.keys()


def test_configs_accept_every_name():
    for name in samplers.names():
        config_samplers.check_sampler("sampler", name)
    for name in times.CATALOGUE:
        config_samplers.check_grid("grid", name)


def test_the_exam_covers_every_sampler_that_claims_an_order():
    claims = {name for name, row in samplers.CATALOGUE.items() if row.order and name != "euler"}
    assert claims <= exam.SAMPLERS.keys()
    assert {name for name in claims if not samplers.CATALOGUE[name].noisy} <= exam.CLAIMED.keys()
    assert samplers.CATALOGUE["euler"].make(diffax.Cosine()).step.__module__ == diffax.ddim.__module__


def test_the_benchmark_covers_every_sampler_that_claims_an_order():
    for name, row in samplers.CATALOGUE.items():
        if row.order and name != "euler":
            row_names = [row_name for row_name in rows.ROWS if row_name.partition("-")[0] == name]
            assert row_names, name
            assert all((row_name in rows.STOCHASTIC) >= row.noisy for row_name in row_names if row_name == name)


def test_the_catalogue_lists_every_peer_of_the_benchmark():
    names = {"k-diffusion": set(), "diffusers": set()}
    for row in samplers.CATALOGUE.values():
        names["k-diffusion"] |= set(row.k_diffusion)
        names["diffusers"] |= set(row.diffusers)
    for peer in peer_rows.PEERS.values():
        assert peer.name in names[peer.library], peer


def test_every_schedule_has_a_row():
    classes = {name for name in schedules.__all__ if inspect.isclass(getattr(schedules, name))}
    assert {row.title for row in schedules.CATALOGUE.values()} == classes - {"NoiseFloor", "Tabulated"} | {
        "shifted",
        "from_betas",
    }
    for name, row in schedules.CATALOGUE.items():
        required = {"shift": 2.0, "sigma_min": 0.01, "sigma_max": 50.0}
        parameters = inspect.signature(row.make).parameters
        schedule = row.make(**{key: value for key, value in required.items() if key in parameters})
        level = jax.device_get(jax.jit(lambda schedule, t: schedule(t))(schedule, 0.3))
        sums = {"vp": level.alpha**2 + level.sigma**2, "ve": level.alpha, "flow": level.alpha + level.sigma}
        sums["sub_vp"] = level.alpha**2 + level.sigma
        np.testing.assert_allclose(sums[row.scaling], 1, rtol=1e-6, err_msg=name)


def test_every_grid_has_a_row():
    functions = {
        name
        for name in times.__all__
        if inspect.isfunction(value := getattr(times, name))
        and list(inspect.signature(value).parameters)[:2] == ["schedule", "n"]
    }
    assert {row.make.__name__ for row in times.CATALOGUE.values()} == functions - {"path"}


def test_every_weighting_and_distribution_has_a_row():
    functions_that_return = lambda module, kind: {
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value) and inspect.signature(value).return_annotation is kind
    }
    assert {row.make.__name__ for row in weightings.CATALOGUE.values()} == functions_that_return(
        weightings, weightings.Weighting
    )
    assert training_times.DISTRIBUTIONS.keys() == functions_that_return(training_times, training_times.Distribution)


def test_tables_are_up_to_date():
    for path, text in tables().texts().items():
        assert text == (ROOT / path).read_text(), f"{path}: run python docs/tables.py"


def test_a_table_that_is_not_up_to_date_is_detected(monkeypatch):
    monkeypatch.setitem(samplers.CATALOGUE, "magic", samplers.CATALOGUE["heun"])
    stale = {path for path, text in tables().texts().items() if text != (ROOT / path).read_text()}
    assert {"diffax/samplers/__init__.py", "diffax/__init__.py", "docs/coming_from.md"} <= stale


@pytest.mark.parametrize(
    ("check", "value", "message"),
    [
        (
            config_samplers.check_sampler,
            "euler_ancestral",
            "a name of diffax, got 'euler_ancestral', which is 'ddim' here",
        ),
        (config_samplers.check_sampler, "UniPCMultistepScheduler", "which is 'unipc' here"),
        (config_samplers.check_sampler, "huen", "got 'huen'; did you mean 'heun'"),
        (
            config_samplers.check_grid,
            "exponential",
            "a name of diffax, got 'exponential', which is 'uniform_log_snr' here",
        ),
        (config_samplers.check_grid, "karas", "did you mean 'karras'"),
    ],
)
def test_the_error_for_an_unknown_name_suggests_a_known_one(check, value, message):
    with pytest.raises(ValueError, match=message):
        check("s", value)
