"""Masks: losses, bounds, densities and metrics of a padded example do not depend on the padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffax
from diffax import likelihood, losses, metrics

pytestmark = pytest.mark.newest
LENGTHS, DIM = (3, 5, 1), 2
SCHEDULE, LEARNED = diffax.Cosine(), diffax.Learned.init(jax.random.key(1), log_snr_max=10.0, log_snr_min=-10.0)
T = jnp.array([0.3, 0.6, 0.9])
KEYS = jax.random.split(jax.random.key(0), len(LENGTHS))


def attend(x, t):
    """A network of sets that gives entries of 0 no weight."""
    present = (x != 0).any(-1, keepdims=True)
    return jnp.tanh(x + present * x.sum(-2, keepdims=True) / 4 + t.reshape(-1, 1, 1)) * 0.5


def attend_moments(x, t):
    return diffax.Moments(attend(x, t), jnp.sin(x))


@functools.cache
def padded(length, fill):
    """Examples of LENGTHS points, padded to `length` with the value `fill`."""
    x0 = np.full((len(LENGTHS), length, DIM), fill, np.float32)
    mask = np.zeros((len(LENGTHS), length), bool)
    for i, count in enumerate(LENGTHS):
        x0[i, :count] = np.sin(np.arange(count * DIM, dtype=np.float32) + i).reshape(count, DIM) / 2
        mask[i, :count] = True
    return jnp.asarray(x0), jnp.asarray(mask)


GRID = diffax.times.uniform_log_snr(SCHEDULE, 6, t_max=1.0, t_min=1e-3)
OUTPUTS = {
    "denoising_loss": lambda k, x0, t, **m: losses.denoising_loss(k, attend, SCHEDULE, "v", x0, t, **m),
    "weighted": lambda k, x0, t, **m: losses.denoising_loss(
        k, attend, SCHEDULE, "eps", x0, t, weighting=losses.weightings.min_snr(gamma=5.0), **m
    ),
    "hybrid_loss": lambda k, x0, t, **m: losses.hybrid_loss(
        k, attend_moments, SCHEDULE, "eps", x0, jnp.round(t * 10) / 10, num_steps=10, **m
    ),
    "vlb_loss": lambda k, x0, t, **m: losses.vlb_loss(
        k, attend_moments, SCHEDULE, "x0", x0, jnp.floor(t * 10) / 10 - 0.2, num_steps=10, **m
    ),
    "vdm_loss": lambda k, x0, t, **m: losses.vdm_loss(k, attend, LEARNED, "eps", x0, t, **m),
    "variational_bound": lambda k, x0, t, **m: (
        likelihood.variational_bound(k, SCHEDULE, attend, x0, GRID, lattice=likelihood.Lattice(0.5), **m).total
    ),
    "continuous_bound": lambda k, x0, t, **m: likelihood.continuous_bound(k, SCHEDULE, attend, x0, t, **m).total,
    "exact density": lambda k, x0, t, **m: (
        diffax.log_likelihood(k, SCHEDULE, attend, x0, GRID[::-1], divergence="exact", **m).log_prob
    ),
    "estimated density": lambda k, x0, t, **m: diffax.log_likelihood(k, SCHEDULE, attend, x0, GRID[::-1], **m).log_prob,
    "psnr": lambda k, x0, t, **m: metrics.psnr(x0, x0 + 0.1 * jnp.sin(9 * x0), data_range=2.0, **m),
    "ssim": lambda k, x0, t, **m: metrics.ssim(x0, x0 + 0.1 * jnp.sin(9 * x0), data_range=2.0, window=1, **m),
}


@functools.cache
def masked(name, length, fill):
    x0, mask = padded(length, fill)
    return OUTPUTS[name](KEYS, x0, T, mask=mask)


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_masked_output_is_that_of_the_unpadded_example(name):
    result = masked(name, 7, 9.0)
    for i, count in enumerate(LENGTHS):
        row = slice(i, i + 1)
        expected = OUTPUTS[name](KEYS[row], padded(7, 9.0)[0][row, :count], T[row])[0]
        np.testing.assert_allclose(result[i], expected, rtol=2e-5)


@pytest.mark.parametrize("name", OUTPUTS)
def test_padding_changes_nothing(name):
    np.testing.assert_array_equal(masked(name, 7, 9.0), masked(name, 7, np.nan))
    np.testing.assert_allclose(masked(name, 7, 9.0), masked(name, 12, 0.5), rtol=2e-5)


def test_gradients_are_finite_for_nan_padding_and_for_empty_examples():
    x0, mask = padded(7, np.nan)
    mask = mask.at[2].set(False)

    def loss(scale):
        return losses.denoising_loss(KEYS, lambda x, t: scale * x, SCHEDULE, "v", x0, T, mask=mask)

    assert loss(0.5)[2] == 0
    assert jnp.isfinite(jax.jacobian(loss)(0.5)).all()


def test_a_tree_may_have_one_mask_for_all_leaves_or_one_for_each():
    x0, mask = padded(7, 9.0)
    tree, predict = {"a": x0, "b": x0[..., 0]}, lambda x, t: x
    once = losses.denoising_loss(KEYS, predict, SCHEDULE, "v", tree, T, mask=mask)
    each = losses.denoising_loss(KEYS, predict, SCHEDULE, "v", tree, T, mask={"a": mask, "b": mask})
    np.testing.assert_array_equal(once, each)


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_mask_that_does_not_fit_is_an_error(name):
    x0, mask = padded(7, 9.0)
    with pytest.raises(ValueError, match=r"mask must have the shape of the leading axes of \w+, .* got \(3, 6\)"):
        OUTPUTS[name](KEYS, x0, T, mask=mask[:, :6])
