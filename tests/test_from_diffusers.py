"""`experiments.sample --from_diffusers`: as people run it."""

import shutil

import numpy as np
import pytest
from test_experiments import call
from test_interop import FOLDERS


def test_a_folder_is_sampled(tmp_path):
    """Of pixels: the shard holds the chain of the same noise, in pixels."""
    flags = (f"--from_diffusers={FOLDERS / 'unet_ddpm'}", "--num=3", "--num_steps=4")
    text = call("sample", *flags, f"--out={tmp_path}")
    assert "3 samples" in text
    shard = np.load(tmp_path / "shard_00000.npz")
    assert shard["samples"].shape == (3, 8, 8, 3)
    assert shard["labels"].tolist() == [-1, -1, -1]
    again = tmp_path / "again"
    call("sample", *flags, f"--out={again}", "--batch_size=2", devices=2)
    np.testing.assert_allclose(np.load(again / "shard_00000.npz")["samples"], shard["samples"], atol=1)


@pytest.mark.slow
def test_a_pipeline_with_a_context_and_an_autoencoder_is_sampled(tmp_path):
    """Latents, guided by given embeddings, decoded: a folder as Stable Diffusion's."""
    pipeline = tmp_path / "pipeline"
    shutil.copytree(FOLDERS / "unet_sd", pipeline / "unet")
    shutil.copytree(FOLDERS / "autoencoder_plain", pipeline / "vae")
    (pipeline / "scheduler").mkdir()
    shutil.copy(FOLDERS / "unet_ddpm" / "scheduler_config.json", pipeline / "scheduler")
    np.save(tmp_path / "context.npy", np.random.default_rng(0).standard_normal((3, 6)))
    flags = (f"--from_diffusers={pipeline}", f"--context={tmp_path / 'context.npy'}", "--num=2", "--num_steps=3")
    found = {}
    for guidance in (1, 5):
        out = tmp_path / f"out_{guidance}"
        call("sample", *flags, f"--out={out}", f"--guidance={guidance}")
        found[guidance] = np.load(out / "shard_00000.npz")["samples"]
    assert found[1].shape[0] == 2
    assert found[1].shape[1] > 6  # decoded
    assert (found[1] != found[5]).any()


DDPM = f"--from_diffusers={FOLDERS / 'unet_ddpm'}"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "one of checkpoint and from_diffusers must be given, got None and None"),
        (("--from_diffusers=nowhere",), "folder must be one that diffusers saved, got"),
        ((f"--from_diffusers={FOLDERS / 'unet_plain'}",), "from_diffusers must hold a scheduler_config.json, got"),
        (
            (DDPM, "--context=a.npy"),
            "context must not be given to a network without",
        ),
        (
            (DDPM, "--init_image=a.png"),
            "init_image is for --checkpoint, got a.png",
        ),
    ],
)
def test_bad_input(flags, message, tmp_path):
    assert message in call("sample", *flags, f"--out={tmp_path / 'out'}", ok=False)
    assert not (tmp_path / "out").exists()
