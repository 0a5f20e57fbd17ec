"""config.loss.*: the loss of each setting, and invalid settings."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import built

import diffax
from experiments.configs import default
from experiments.models import objectives

# A network without parameters that returns half of its input. The loss needs no other attributes of a network.
NET = types.SimpleNamespace(apply=lambda params, x, *args, key: x / 2, num_classes=10)
SIZE = 8


def config_of(**loss):
    config = default.get_config()
    config.dataset.batch_size = SIZE
    config.loss.update(loss)
    return config


def losses(config, part=slice(None)):
    """The losses of a batch, or of the part of it on one device."""
    image = jnp.sin(jnp.arange(SIZE * 4.0)).reshape(SIZE, 2, 2, 1)
    batch = {"x": image, "label": jnp.zeros(SIZE, int), "index": np.arange(SIZE, dtype=np.int32)}
    keys = jax.random.split(jax.random.key(0), SIZE)
    loss, memory, update_memory, *_ = built(config).objective(module=NET)
    arguments = ({}, jax.tree.map(lambda v: v[part], batch), keys[part])
    return loss(*arguments) if update_memory is None else loss(*arguments, memory)[0]


def uniform(spread="independent"):
    """The u of each example, drawn with its key 1."""
    key = diffax.random.fold_in(jax.random.split(jax.random.key(0), SIZE), 1)
    return diffax.random.unit_interval(diffax.random.stream(diffax.random.stream(key, "draw"), spread), SIZE)


def by_hand(config, t_of_u=lambda u: u, spread="independent", **keywords):
    """The losses by functions of the library: u is drawn with key 1 of each example, noise with key 0."""
    keys = jax.random.split(jax.random.key(0), SIZE)
    image = jnp.sin(jnp.arange(SIZE * 4.0)).reshape(SIZE, 2, 2, 1)
    t = t_of_u(uniform(spread))
    noise, predict = diffax.random.fold_in(keys, 0), lambda x, t: x / 2
    return diffax.denoising_loss(noise, predict, diffax.Cosine(), config.prediction, image, t, **keywords)


@pytest.mark.newest
def test_the_default_loss_is_the_mean_square_at_uniform_independent_times():
    """Equal to the last bit."""
    assert losses(config_of()).tolist() == by_hand(config_of()).tolist()


@pytest.mark.newest
def test_weighting_times_and_spread_change_the_loss():
    config = config_of(weighting="min_snr", weighting_parameters={"gamma": 2.0})
    np.testing.assert_allclose(
        losses(config), by_hand(config, weighting=lambda log_snr: jnp.minimum(1, 2 * jnp.exp(-log_snr))), rtol=1e-6
    )
    config = config_of(weighting="elbo")
    slope = lambda t: jnp.pi / jnp.sin(jnp.pi * t)  # half of -d log_snr / dt of the cosine schedule
    plain = by_hand(config, weighting=lambda log_snr: 1.0)
    np.testing.assert_allclose(losses(config), slope(uniform()) * plain, rtol=1e-4)
    config = config_of(times="cosmap")
    expected = by_hand(config, lambda u: 1 - 1 / (jnp.tan(jnp.pi / 2 * u) + 1))
    np.testing.assert_allclose(losses(config), expected, rtol=1e-5)
    config = config_of(times="uniform", spread="stratified")
    expected = by_hand(config, lambda u: (np.arange(SIZE) + u) / SIZE, "stratified")
    np.testing.assert_allclose(losses(config), expected, rtol=1e-4)


@pytest.mark.newest
def test_loss_aware_times_follow_the_losses_and_the_weights_cancel_their_density():
    config = config_of(times="loss_aware", times_parameters={"num_bins": 2, "history": 1})
    loss, memory, update_memory, *_ = built(config).objective(module=NET)
    assert losses(config).tolist() == losses(config_of()).tolist()  # with an empty history
    past = update_memory(memory, (jnp.array([0.2, 0.7]), jnp.array([1.0, 3.0])))
    chosen = diffax.losses.resampling.loss_aware(2, history=1).distribution(past)  # 3 of 4 times are above t = 1/2
    keys = jax.random.split(jax.random.key(0), SIZE)
    t, weight = diffax.losses.training_times.draw(diffax.random.fold_in(keys, 1), SIZE, chosen)
    assert {round(w, 2) for w in weight.tolist()} == {0.67, 2.0}
    batch = {"x": jnp.ones((SIZE, 2, 2, 1)), "label": jnp.zeros(SIZE, int), "index": np.arange(SIZE)}
    losses_of_past, seen = loss({}, batch, keys, past)
    noise = diffax.random.fold_in(keys, 0)
    plain = diffax.denoising_loss(noise, lambda x, t: x / 2, diffax.Cosine(), "v", batch["x"], t)
    np.testing.assert_allclose(losses_of_past, weight * plain, rtol=1e-5)
    for ours, theirs in zip(seen, (t, plain), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.slow_cases("independent")
@pytest.mark.parametrize("spread", objectives.SPREADS)
def test_losses_do_not_depend_on_the_layout(spread):
    config = config_of(spread=spread)
    parts = [losses(config, slice(start, start + 4)) for start in (0, 4)]
    np.testing.assert_allclose(losses(config), jnp.concatenate(parts), rtol=1e-6)


@pytest.mark.slow_cases("times")
@pytest.mark.parametrize(
    "setting", [("weighting", objectives.WEIGHTINGS), ("times", objectives.TIMES)], ids=["weighting", "times"]
)
def test_every_name_builds_and_is_finite(setting):
    key, names = setting
    for name in names:
        config = config_of(**{key: name})
        built(config)
        assert np.isfinite(losses(config)).all()


@pytest.mark.newest
@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"weighting": "snr"}, "config.loss.weighting must be one of target, eps, .* got 'snr'"),
        ({"times": "gamma"}, "config.loss.times must be one of uniform, logit_normal, .* got 'gamma'"),
        ({"spread": "sobol"}, "config.loss.spread must be one of independent, .* got 'sobol'"),
        (
            {"weighting": "p2", "weighting_parameters": {"sigma": 1.0}},
            "config.loss.weighting_parameters.sigma is no parameter of p2; those are gamma, k",
        ),
        (
            {"weighting_parameters": {"gamma": 1.0}},
            "config.loss.weighting_parameters.gamma is no parameter of target; those are none",
        ),
        (
            {"weighting": "edm", "weighting_parameters": {"sigma_data": 1.0}},
            "config.loss.weighting_parameters.sigma_data is no parameter of edm; those are none",
        ),
        (
            {"times": "logit_normal", "times_parameters": {"mean": "0"}},
            "config.loss.times_parameters.mean must be a number, got '0'",
        ),
        ({"weighting": "min_snr", "weighting_parameters": {"gamma": -1.0}}, "gamma must be > 0, got -1.0"),
        ({"times": "loss_aware", "times_parameters": {"num_bins": 0}}, "num_bins must be an int >= 1, got 0"),
    ],
)
def test_bad_settings(loss, message):
    with pytest.raises(ValueError, match=message):
        built(config_of(**loss))


def test_antithetic_pairs_stay_on_one_device():
    built(config_of(spread="antithetic"), 4)
    with pytest.raises(ValueError, match=r"batch_size must be even on each device, .* got 8 on 8 in 1"):
        built(config_of(spread="antithetic"), 8)
    config = config_of(spread="antithetic")
    config.optimizer.accumulate = 4
    with pytest.raises(ValueError, match=r"in each of config\.optimizer\.accumulate parts, .* got 8 on 2 in 4"):
        built(config, 2)
