"""diffusers' scheduler_config.json: the grids, levels and ends of its own classes, from interop/make_schedulers.py."""

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


def steps(found, n):
    """The timesteps of a grid."""
    return found.count * np.asarray(found.times(n), np.float64) - 1


def check(case):
    """One config against diffusers."""
    found = scheduler.build(case["config"])
    for n, expected in case["grids"].items():
        np.testing.assert_allclose(steps(found, int(n)), expected, atol=2e-3, err_msg=str(case["config"]))
    at = np.array([int(i) for i in case["alphas"]])
    table = np.asarray(found.schedule.log_snr_table, np.float64)
    alpha2 = 1 / (1 + np.exp(-table))
    atol = 1e-7 if case["config"].get("rescale_betas_zero_snr") else 1e-9  # theirs is 2^-24, or 0, at the last level
    np.testing.assert_allclose(alpha2[at], list(case["alphas"].values()), rtol=2e-4, atol=atol)
    end = 1.0 if found.last is None else alpha2[round(found.last * found.count) - 1]
    np.testing.assert_allclose(end, case["end"], rtol=1e-6)
    assert found.clip == case["clip"]
    if "crc" in case:
        law, of = scheduler.read(case["config"])
        last = scheduler._usable(found.schedule, of)
        grids = np.concatenate([scheduler._steps(law, of, last, n) for n in range(1, 201)])
        assert zlib.crc32(grids.astype(np.int32).tobytes()) == case["crc"]


@pytest.mark.parametrize("name", CLASSES)
def test_the_grids_levels_and_ends_are_those_of_the_class(name):
    """Of each spacing, by full and bare configs, and of some fields more."""
    cases = [case for case in RECORDED["cases"] if case["config"]["_class_name"] == name]
    assert len(cases) >= 10
    for case in cases:
        check(case)


def test_defaults_are_the_class_s():
    """And each field of a class is read, refused unless it is off, or known to be of stepping alone."""
    for name, law in CLASSES.items():
        recorded = RECORDED["defaults"][name]
        assert set(recorded) <= set(law.fields) | set(IGNORED), name
        own = {field: law.fields[field].default for field in law.fields if field != "predict_epsilon"}
        assert own == {field: recorded[field] for field in own}, name
        assert type(own["num_train_timesteps"]) is int


def test_the_times_of_500_steps_are_those_of_the_scheduler():
    """The network says 1000; its scheduler 500."""
    model = folder.load_model(FOLDERS / "unet_ddpm")
    found = scheduler.build(DDPM | {"num_train_timesteps": 500})
    assert found.count == 500
    heard = []

    class Network:
        def clone(self, time_scale):
            self.scale = time_scale
            return self

        def apply(self, params, x, t, label):
            heard.append(float(t * self.scale))
            return x

    model = model._replace(network=Network(), scheduler=found)
    for t in found.times(5):
        model.predict()(jnp.zeros(()), t)
    np.testing.assert_allclose(heard, [400, 300, 200, 100, 0], atol=1e-3)
    np.testing.assert_allclose(steps(found, 5), [400, 300, 200, 100, 0], atol=1e-3)


def test_fields_of_other_classes_say_nothing():
    """As those that Stable Diffusion XL's file has."""
    foreign = {"clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True, "sample_max_value": 1.0}
    found = scheduler.build(EULER | STABLE | foreign | {"thresholding": True, "use_lu_lambdas": True})
    assert (found.kind, found.clip, found.last) == ("eps", None, None)


def test_a_solver_drops_the_last_of_one_more():
    found = scheduler.build({"_class_name": "DPMSolverMultistepScheduler"})
    np.testing.assert_allclose(steps(found, 10), [999, 899, 799, 699, 599, 500, 400, 300, 200, 100], atol=1e-3)


@pytest.mark.parametrize(
    "name", ["DDIMInverseScheduler", "FlowMatchEulerDiscreteScheduler", "LCMScheduler", "IPNDMScheduler", None, 3, []]
)
def test_other_classes_are_refused(name):
    message = r"scheduler_config.json must be that of one of DDPMScheduler, .*, SASolverScheduler, got "
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
        (DDPM | {"trained_betas": [0.1, 2.0], "num_train_timesteps": 2}, ["trained_betas must lie in (0, 1), got 2"]),
        (DDPM | {"trained_betas": "a"}, ["trained_betas must be a list, each a number or None, got 'a'"]),
        (DDPM | {"num_train_timesteps": "x"}, ["num_train_timesteps must be an int >= 1, got 'x'"]),
        (DDPM | {"predict_epsilon": False}, ["predict_epsilon must be True, got False"]),
        (DDPM | {"beta_end": math.nan, "steps_offset": -1}, ["beta_end must be", "steps_offset must be an int >= 0"]),
        ([1, 2], ["scheduler_config.json must hold an object of fields, got [1, 2]"]),
    ],
)
def test_faults_are_listed(config, messages):
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
def test_bad_grids(config, n, message):
    with pytest.raises(ValueError, match=message):
        scheduler.build(config).times(n)


def test_a_scheduler_is_written_as_it_was_read(tmp_path):
    """Bit for bit, and not at all if it is none."""
    original = FOLDERS / "unet_ddpm" / scheduler.FILE
    model = folder.load(FOLDERS / "unet_ddpm")
    scheduler.save(tmp_path / "new", model.scheduler_config)
    assert (tmp_path / "new" / scheduler.FILE).read_bytes() == original.read_bytes()
    for recorded in RECORDED["cases"]:
        scheduler.save(tmp_path, recorded["config"])
        assert json.loads((tmp_path / scheduler.FILE).read_text()) == recorded["config"]
    with pytest.raises(ValueError, match="beta_end"):
        scheduler.save(tmp_path / "none", DDPM | {"beta_end": "x"})
    assert not (tmp_path / "none").exists()


def test_stable_diffusion_s():
    """With the alphas that its authors print."""
    found = scheduler.build(STABLE | {"clip_sample": True, "_class_name": "PNDMScheduler"})
    assert (found.kind, found.clip, found.last) == ("eps", None, 1e-3)
    np.testing.assert_allclose(found.schedule(1.0).alpha ** 2, 0.0047, atol=5e-5)
    np.testing.assert_allclose(steps(found, 4), [751, 501, 251, 1], atol=1e-3)
    config = STABLE | {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True}
    assert scheduler.build(config).schedule.zero_terminal_snr
