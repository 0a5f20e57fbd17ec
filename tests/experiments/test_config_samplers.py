"""The samplers and grids that a config names: the whole catalogue, numbers of denoiser calls, eta."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import built

import diffax
from diffax import pretrained
from experiments.configs import default, settings
from experiments.model import sampling
from experiments.models import samplers


def config_of(**sampling):
    config = default.get_config()
    config.sampling.update(sampling)
    return config


def grid(**changes):
    """The step grid of a config with changed sampling settings."""
    return built(config_of(**changes)).diffusion.times()


def test_every_sampler_of_the_catalogue_has_a_name():
    names = diffax.samplers.CATALOGUE.keys() | diffax.samplers.NAMED.keys()
    assert {"lcm", "tcd", "restart", "noise_floor", "annealed_langevin"} <= names
    for name in names:
        assert sampling(config_of(sampler=name).sampling).sampler == name


def test_every_grid_has_a_name():
    grids = {"arctan", "polyexponential", "karras", "beta", "quadratic", "trailing", "lcm"}
    assert grids <= diffax.times.CATALOGUE.keys()
    for name in diffax.times.CATALOGUE:
        assert grid(grid=name, num_steps=4).shape == (4,)


@pytest.mark.parametrize(
    ("name", "calls", "entries", "spent"),
    [
        ("ddim", 20, 20, 20),
        ("heun", 20, 10, 19),
        ("heun", 2, 1, 1),
        ("dpmpp_sde", 21, 11, 21),
        ("dpm_solver", 20, 7, 19),
        ("pndm", 20, 19, 20),
        ("pndm", 1, 1, 1),
        ("restart", 20, 18, 20),  # two more moves after the jump
        ("restart", 3, 1, 1),
    ],
)
def test_num_steps_are_denoiser_calls(name, calls, entries, spent, capsys):
    schedule = diffax.Cosine()
    assert pretrained.entries(name, schedule, calls) == entries
    assert pretrained.spent(name, schedule, entries) == spent
    turns = 3 if name == "restart" and entries > 1 else 0
    assert grid(sampler=name, num_steps=calls).shape == (entries + turns,)
    samplers.report_rounding(name, schedule, calls)
    message = f"num_steps = {calls} is rounded down to {spent}, the denoiser calls of whole steps of {name}"
    assert capsys.readouterr().out.startswith(message if spent < calls else "")


def test_the_grid_of_a_restart_has_one_jump():
    times = np.asarray(grid(sampler="restart", num_steps=20))
    assert (np.diff(times) > 0).sum() == 1
    level = diffax.Cosine()(times[np.argmax(np.diff(times) > 0) + 1])
    np.testing.assert_allclose(level.sigma / level.alpha, 0.3, rtol=1e-5)


@pytest.mark.parametrize("calls", [5, 10, 20])
def test_a_restart_on_a_grid_that_ends_early_begins_at_its_end(calls):
    """`trailing` ends at t = 1 / n, which is above the interval of the restart."""
    times = np.asarray(grid(sampler="restart", grid="trailing", num_steps=calls))
    turn = np.argmax(np.diff(times) > 0)
    assert (np.diff(times) > 0).sum() == 1
    assert times[turn] == times[-1] == times.min()
    ratio = np.exp((diffax.Cosine().log_snr(times[turn]) - diffax.Cosine().log_snr(times[turn + 1])) / 2)
    np.testing.assert_allclose(ratio, 5, rtol=1e-4)


def test_unipc_has_the_form_for_guidance():
    schedule, times = diffax.Cosine(), jnp.linspace(0.9, 0.1, 6)
    denoise = lambda x, t: jnp.tanh(x) * (1 - t)
    runs = [
        diffax.sample(jax.random.key(0), make, denoise, jnp.ones((2, 1)), times)
        for make in (
            diffax.samplers.by_name("unipc", schedule, None),
            diffax.unipc(schedule, form="x0", order=2, lower_order_final=True),
            diffax.unipc(schedule),
        )
    ]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert np.abs(runs[0] - runs[2]).max() > 1e-4


def test_eta_is_none_or_a_float():
    config = default.get_config()
    assert config.sampling.eta is None
    config.sampling.eta = 0.5
    with pytest.raises(TypeError):
        config.sampling.eta = "0.5"
    defaults = default.get_config()
    for eta in (None, 0.5, 1):
        settings.check_keys(config_of(eta=eta), defaults, "config")
    settings.change(config, "config.sampling.eta", 1, defaults)
    assert isinstance(config.sampling.eta, float)
    with pytest.raises(ValueError, match=r"config.sampling.eta must be of type float or None, got 'a'"):
        settings.change(config, "config.sampling.eta", "a", defaults)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: samplers.check_eta("eta", "heun", 0.5), "eta must be 0 for heun, which has none, got 0.5"),
        (lambda: samplers.check_eta("eta", "ddim", -1.0), "eta must be >= 0, got -1.0"),
        (lambda: pretrained.moves("heun", diffax.Cosine(), 1), "num_steps must be >= 2 for heun, got 1"),
        (lambda: pretrained.entries("ddim", diffax.Cosine(), 0), "num_steps must be an int >= 1, got 0"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
