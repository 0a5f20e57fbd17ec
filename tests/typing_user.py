"""A user's script for type checkers: tests/test_types.py runs mypy, and pyright where it is installed, on it."""

from typing import Any, assert_type

import jax
import jax.numpy as jnp

import diffax
from diffax import denoisers, times


def network(params: jax.Array, x: jax.Array, t: jax.Array, label: jax.Array) -> jax.Array:
    return params * x + label[:, None] * t


def loss(params: jax.Array, key: jax.Array, x0: jax.Array, label: jax.Array) -> jax.Array:
    schedule = diffax.Cosine()
    t = diffax.random.unit_interval(key, len(x0))
    assert_type(t, jax.Array)
    predict = lambda x, t: network(params, x, t, label)
    losses = diffax.denoising_loss(key, predict, schedule, "v", x0, t)
    assert_type(losses, jax.Array)
    return losses.mean()


def generate(params: jax.Array, key: jax.Array, label: jax.Array) -> jax.Array:
    schedule = diffax.Cosine()
    assert_type(schedule(0.5), diffax.Level)
    conditional = diffax.denoiser(lambda x, t: network(params, x, t, label), schedule, "v")
    unconditional = diffax.denoiser(lambda x, t: network(params, x, t, 0 * label), schedule, "v")
    guided = diffax.guidance_interval(
        diffax.classifier_free_guidance(conditional, unconditional, 2.0), conditional, 0.2, 0.8
    )
    assert_type(denoisers.clip_static(guided), diffax.Denoiser)
    sampler = diffax.churn(diffax.heun(schedule), schedule, 10.0)
    assert_type(sampler, diffax.Sampler)
    grid = times.karras(schedule, 20)
    assert_type(grid, jax.Array)
    x = diffax.initial_noise(key, schedule, (4, 2), grid[0])
    assert_type(x, jax.Array)
    x0 = diffax.sample(key, sampler, guided, x, grid)
    assert_type(x0, jax.Array)
    assert_type(diffax.diffuse(schedule, x0, x, 0.5), jax.Array)
    _, records = diffax.unroll(key, sampler, guided, x, grid, record=lambda state: jnp.mean(state.x))
    assert_type(records, jax.Array)
    return x0


def generate_tree(key: jax.Array, sampler: diffax.Sampler, denoise: diffax.Denoiser, grid: jax.Array) -> None:
    x = {"positions": jnp.ones((4, 3)), "features": jnp.ones((4, 8))}
    assert_type(diffax.sample(key, sampler, denoise, x, grid), dict[str, jax.Array])


class Straight:
    """A schedule of the user's own: alpha = 1 - t, sigma = t."""

    def log_snr(self, t: Any) -> Any:
        return 2 * jnp.log((1 - t) / t)

    def inverse(self, log_snr: Any) -> Any:
        return jax.nn.sigmoid(-log_snr / 2)

    def __call__(self, t: Any) -> diffax.Level:
        return diffax.Level(1 - t, t, self.log_snr(t))


def halved(sampler: diffax.Sampler) -> diffax.Sampler:
    """A wrapper of the user's own."""

    def step(key: Any, denoise: diffax.Denoiser, state: Any, t: Any, s: Any) -> Any:
        state = sampler.step(key, denoise, state, t, s)
        return state._replace(x=state.x / 2)

    return sampler._replace(step=step)


own: diffax.Schedule = Straight()
assert_type(halved(diffax.ddim(own)).order, int)
