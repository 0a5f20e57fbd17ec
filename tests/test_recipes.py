"""The code blocks of docs/recipes.md run in order, and their results are those that the text states."""

import contextlib
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from test_pretrained import diffusion, saved

import diffax

PAGE = Path(__file__).parent.parent / "docs" / "recipes.md"


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """Names that the code blocks define, in a folder with the export that one of them reads."""
    namespace: dict = {}
    folder = tmp_path_factory.mktemp("recipes")
    saved(folder / "exports" / "digits", diffusion(shape=(8, 8, 1), num_classes=10, network={"num_classes": 10}))
    with contextlib.chdir(folder):
        run_blocks(namespace)
    return namespace


def run_blocks(namespace):
    for i, block in enumerate(re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)):
        exec(compile(block, f"{PAGE.name}, block {i}", "exec"), namespace)


def distance_in_stds(x, components):
    """The distance of each row to the nearest component, in standard deviations."""
    return np.min(np.linalg.norm(np.asarray(x)[:, None] - components, axis=-1), axis=1) / 0.3


@pytest.mark.slow
def test_sdedit_moves_from_the_sketch_to_the_data_with_the_strength(names):
    sketch, edited, components = names["sketch"], names["edited"], np.asarray(names["data"].means)
    assert float(jnp.abs(edited[0.02] - sketch).max()) < 0.3  # nearly unchanged
    # At strength 0.4 the flow of the nearer component N(m, 0.3^2) maps x_t to m + 0.3 / sqrt(c) (x_t - alpha m).
    alpha, sigma, _ = names["schedule"](0.4)
    gain = 0.3 / np.sqrt(alpha**2 * 0.09 + sigma**2)
    edited_half = np.asarray(edited[0.4])
    edited_half = edited_half[edited_half[:, 0] > 0]
    assert len(edited_half) > 0.9 * 64
    expected_mean = components[1] + gain * alpha * (sketch[0] - components[1])
    np.testing.assert_allclose(edited_half.mean(0), expected_mean, atol=0.12)
    np.testing.assert_allclose(edited_half.std(0), gain * sigma, atol=0.08)
    assert distance_in_stds(sketch, components).min() > 3 > distance_in_stds(expected_mean[None], components)[0] * 2
    assert 0.2 < np.mean(np.asarray(edited[1.0])[:, 0] > 0) < 0.8  # independent of the sketch
    assert names["sdedit"]._cache_size() == 1  # all strengths share one compilation


def test_inpainting_keeps_the_known_entry_and_samples_the_other(names):
    components = np.asarray(names["data"].means)
    for x in names["inpainted"].values():
        np.testing.assert_allclose(x[:, 0], 2.2, atol=1e-3)
        assert np.mean(distance_in_stds(x, components) < 3) > 0.9  # near the component that contains the known entry
        assert 0.15 < float(jnp.std(x[:, 1])) < 0.4


def test_inversion_recovers_the_images_and_moves_them(names):
    images = names["images"]
    assert float(jnp.abs(names["images_again"] - images).max()) < 0.1
    assert float(jnp.abs(names["noise"].std() - 1)) < 0.2
    shift = names["moved"] - images
    assert float(jnp.abs(shift - jnp.array([0.0, 1.0])).max()) < 0.15


def test_trajectories_are_recorded_and_watched(names):
    x, path, x0_path = names["x"], names["path"], names["x0_path"]
    assert path.shape == x0_path.shape == (19, 64, 2)
    np.testing.assert_array_equal(path[-1], x)
    np.testing.assert_allclose(names["watched_path"], path, atol=1e-5)
    np.testing.assert_allclose(names["watched_x0"][1:], x0_path[:-1], atol=1e-4)
    times = diffax.times.uniform_log_snr(names["schedule"], 20)
    np.testing.assert_allclose(x0_path[3], names["denoise"](path[3], times[4]), atol=1e-5)


@pytest.mark.parametrize("name", ["corrected", "restarted", "generated"])
def test_wrapped_samplers_sample_the_data(name, names):
    x = np.asarray(names[name])
    assert np.mean(distance_in_stds(x, np.asarray(names["data"].means)) < 2.5) > 0.9
    assert 0.35 < np.mean(x[:, 0] > 0) < 0.65


def test_the_model_of_an_export_is_a_denoiser(names):
    x = jnp.zeros((2, 8, 8, 1))
    assert names["denoise_digits"](x, 0.5).shape == x.shape
