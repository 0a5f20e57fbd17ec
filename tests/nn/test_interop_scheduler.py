"""Schedules and grids of scheduler_config.json equal those of diffusers, recorded by interop/make_schedulers.py."""

import json
import math
import zlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from diffax.nn.interop import folder, scheduler
from diffax.nn.interop.scheduler_classes import CLASSES, IGNORED

FOLDERS = Path(__file__).parents[1] / "nn" / "interop"
RECORDED = json.loads((FOLDERS / "schedulers.json").read_text())
DDPM = {"_class_name": "DDPMScheduler"}
EULER = {"_class_name": "EulerDiscreteScheduler"}
STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}


def timesteps(result, n):
    """The timesteps of the grid of n steps."""
    return result.count * np.asarray(result.times(n), np.float64) - 1


def check(case):
    """Compare one config with diffusers."""
    result = scheduler.build(case["config"])
    for n, expected in case["grids"].items():
        np.testing.assert_allclose(timesteps(result, int(n)), expected, atol=2e-3, err_msg=str(case["config"]))
    indices = np.array([int(i) for i in case["alphas"]])
    table = np.asarray(result.schedule.log_snr_table, np.float64)
    alpha2 = 1 / (1 + np.exp(-table))
    atol = 1e-7 if case["config"].get("rescale_betas_zero_snr") else 1e-9  # the last is 2^-24 or 0 in diffusers
    np.testing.assert_allclose(alpha2[indices], list(case["alphas"].values()), rtol=2e-4, atol=atol)
    end = 1.0 if result.last is None else alpha2[round(result.last * result.count) - 1]
    np.testing.assert_allclose(end, case["end"], rtol=1e-6)
    assert result.clip == case["clip"]
    if "crc" in case:
        scheduler_class, values = scheduler.read(case["config"])
        num_usable = scheduler._num_usable(result.schedule, values)
        grids = np.concatenate([scheduler._timesteps(scheduler_class, values, num_usable, n) for n in range(1, 201)])
        assert zlib.crc32(grids.astype(np.int32).tobytes()) == case["crc"]


@pytest.mark.parametrize("name", CLASSES)
def test_grids_levels_and_ends_equal_those_of_diffusers(name):
    """The cases have every spacing, full and minimal configs, and some other fields."""
    cases = [case for case in RECORDED["cases"] if case["config"]["_class_name"] == name]
    assert len(cases) >= 10
    for case in cases:
        check(case)


def test_defaults_equal_those_of_diffusers():
    """Each field of a class in diffusers is either read here or in the list of ignored fields."""
    for name, scheduler_class in CLASSES.items():
        fields, recorded = scheduler_class.fields, RECORDED["defaults"][name]
        assert set(recorded) <= set(fields) | set(IGNORED), name
        defaults = {field: fields[field].default for field in fields if field != "predict_epsilon"}
        assert defaults == {field: recorded[field] for field in defaults}, name
        assert type(defaults["num_train_timesteps"]) is int


def test_predict_uses_the_number_of_timesteps_of_the_scheduler():
    """The config of the network has 1000 timesteps, that of the scheduler 500."""
    model = folder.load_model(FOLDERS / "unet_ddpm")
    result = scheduler.build(DDPM | {"num_train_timesteps": 500})
    assert result.count == 500
    received = []

    class Network:
        def clone(self, time_scale):
            self.scale = time_scale
            return self

        def apply(self, params, x, t, label):
            received.append(float(t * self.scale))
            return x

    model = model._replace(network=Network(), scheduler=result)
    for t in result.times(5):
        model.predict()(jnp.zeros(()), t)
    np.testing.assert_allclose(received, [400, 300, 200, 100, 0], atol=1e-3)
    np.testing.assert_allclose(timesteps(result, 5), [400, 300, 200, 100, 0], atol=1e-3)


def test_fields_of_other_classes_are_ignored():
    """The file of Stable Diffusion XL has such fields."""
    foreign = {"clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True, "sample_max_value": 1.0}
    result = scheduler.build(EULER | STABLE | foreign | {"thresholding": True, "use_lu_lambdas": True})
    assert (result.kind, result.clip, result.last) == ("eps", None, None)


def test_the_grid_of_a_multistep_solver_is_that_of_one_more_step_without_the_last():
    result = scheduler.build({"_class_name": "DPMSolverMultistepScheduler"})
    np.testing.assert_allclose(timesteps(result, 10), [999, 899, 799, 699, 599, 500, 400, 300, 200, 100], atol=1e-3)


@pytest.mark.parametrize(
    "name", ["DDIMInverseScheduler", "FlowMatchEulerDiscreteScheduler", "LCMScheduler", "IPNDMScheduler", None, 3, []]
)
def test_unsupported_classes_raise(name):
    message = r"_class_name of scheduler_config.json must be one of DDPMScheduler, .*, SASolverScheduler, got "
    with pytest.raises(ValueError, match=message):
        scheduler.build({"_class_name": name})


@pytest.mark.parametrize(
    ("config", "messages"),
    [
        (EULER | {"use_karras_sigmas": True}, ["1 fault: use_karras_sigmas must be False or None, got True"]),
        (EULER | {"interpolation_type": "log_linear"}, ["interpolation_type must be 'linear', got 'log_linear'"]),
        (EULER | {"beta_schedule": "sigmoid"}, ["beta_schedule must be one of linear, scaled_linear, squaredcos"]),
        (
            DDPM | {"beta_start": "a", "thresholding": True, "prediction_type": "flow", "brand_new": 1},
            [
                "scheduler_config.json is not supported, 4 faults: beta_start must be a number in (0, 1), got 'a'",
                "thresholding must be False or None, got True",
                "prediction_type must be one of epsilon, sample, v_prediction, got 'flow'",
                "brand_new = 1 is unknown",
            ],
        ),
        (DDPM | {"trained_betas": [0.1]}, ["trained_betas must have num_train_timesteps = 1000 entries, got 1"]),
        (DDPM | {"trained_betas": [0.1, 2.0], "num_train_timesteps": 2}, ["trained_betas must be in (0, 1), got 2"]),
        (DDPM | {"trained_betas": "a"}, ["trained_betas must be None or a list with each entry a number, got 'a'"]),
        (DDPM | {"num_train_timesteps": "x"}, ["num_train_timesteps must be an int >= 1, got 'x'"]),
        (DDPM | {"predict_epsilon": False}, ["predict_epsilon must be True, got False"]),
        (DDPM | {"beta_end": math.nan, "steps_offset": -1}, ["beta_end must be", "steps_offset must be an int >= 0"]),
        ([1, 2], ["scheduler_config.json must be a JSON object, got [1, 2]"]),
    ],
)
def test_all_faults_of_a_config_are_listed(config, messages):
    with pytest.raises(ValueError, match=r"scheduler_config\.json") as error:
        scheduler.build(config)
    for message in messages:
        assert message in str(error.value)


@pytest.mark.parametrize(
    ("config", "n", "message"),
    [
        (DDPM, 0, "n must be an int >= 1, got 0"),
        (DDPM, 1001, "n must be at most 1000 for this scheduler, got 1001"),
        (DDPM | {"steps_offset": 1}, 1000, "steps_offset must keep timesteps below 1000, got 1 for n = 1000"),
        (
            {"_class_name": "UniPCMultistepScheduler", "timestep_spacing": "leading"},
            1000,
            "n must be at most 999 for this scheduler, got 1000",
        ),
    ],
)
def test_invalid_grids_raise(config, n, message):
    with pytest.raises(ValueError, match=message):
        scheduler.build(config).times(n)


def test_save_restores_a_config_bit_for_bit(tmp_path):
    """An invalid config is not written."""
    original = FOLDERS / "unet_ddpm" / scheduler.FILE
    model = folder.load(FOLDERS / "unet_ddpm")
    scheduler.save(tmp_path / "new", model.scheduler_config)
    assert (tmp_path / "new" / scheduler.FILE).read_bytes() == original.read_bytes()
    for recorded in RECORDED["cases"]:
        scheduler.save(tmp_path, recorded["config"])
        assert json.loads((tmp_path / scheduler.FILE).read_text()) == recorded["config"]
    with pytest.raises(ValueError, match="beta_end"):
        scheduler.save(tmp_path / "invalid", DDPM | {"beta_end": "x"})
    assert not (tmp_path / "invalid").exists()


def test_the_scheduler_of_stable_diffusion_has_the_published_last_alpha():
    result = scheduler.build(STABLE | {"clip_sample": True, "_class_name": "PNDMScheduler"})
    assert (result.kind, result.clip, result.last) == ("eps", None, 1e-3)
    np.testing.assert_allclose(result.schedule(1.0).alpha ** 2, 0.0047, atol=5e-5)
    np.testing.assert_allclose(timesteps(result, 4), [751, 501, 251, 1], atol=1e-3)
    config = STABLE | {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True}
    assert scheduler.build(config).schedule.zero_terminal_snr
