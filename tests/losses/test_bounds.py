"""Variational objectives: the losses that configs build, refused settings, and `evaluate`, which reports bits."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import DATA, built, save_run
from test_experiments import call

import diffax
from experiments.configs import digits, digits_hybrid, digits_vdm, digits_vlb

SIZE = 8


def changed(module, **changes):
    """The config of a module with small batches and some changes; `loss__times` sets config.loss.times."""
    config = module.get_config()
    config.dataset.batch_size = SIZE
    for path, value in changes.items():
        group, key = path.split("__")
        config[group][key] = value
    return config


def mean_and_variance(params, x, t, label, key):
    """A network that returns a mean and a variance in twice as many channels."""
    return jnp.concatenate([0.5 * x, 0.1 * x], -1)


def losses(config, apply=mean_and_variance, params=None):
    image = jnp.sin(jnp.arange(SIZE * 4.0)).reshape(SIZE, 2, 2, 1)
    batch = {"x": image, "label": jnp.zeros(SIZE, int), "index": np.arange(SIZE, dtype=np.int32)}
    net = types.SimpleNamespace(apply=apply, num_classes=10)
    return built(config).objective(module=net).loss(params or {}, batch, jax.random.split(jax.random.key(0), SIZE))


@pytest.mark.slow
@pytest.mark.newest
def test_the_objectives_of_configs_equal_the_library_losses():
    config = changed(digits_hybrid)
    keys = jax.random.split(jax.random.key(0), SIZE)
    noise, u = diffax.random.fold_in(keys, 0), diffax.losses.training_times.draw(diffax.random.fold_in(keys, 1), SIZE).t
    image = jnp.sin(jnp.arange(SIZE * 4.0)).reshape(SIZE, 2, 2, 1)
    t = (jnp.floor(u * 1000) + 1) / 1000
    schedule, predict = (
        diffax.from_betas(diffax.schedules.cosine_betas(1000)),
        lambda x, t: diffax.Moments(0.5 * x, 0.1 * x),
    )
    settings = {"num_steps": 1000, "lattice": diffax.likelihood.Lattice(2 / 16)}
    expected = diffax.losses.hybrid_loss(noise, predict, schedule, "eps", image, t, **settings)
    np.testing.assert_allclose(losses(config), expected, rtol=1e-5)
    expected = diffax.losses.vlb_loss(noise, predict, schedule, "eps", image, t, **settings)
    config = changed(digits_vlb, loss__spread="independent", loss__times="uniform")
    np.testing.assert_allclose(losses(config), expected, rtol=1e-4)


@pytest.mark.slow
def test_a_learned_schedule_is_trained_with_the_network():
    """The parameters hold its leaves, the schedule uses them, and the loss has a gradient with respect to them."""
    config = changed(digits_vdm)
    diffusion = built(config).diffusion
    shapes = jax.eval_shape(diffusion.init, jax.random.key(0))
    assert set(shapes) == {"network", "schedule"}
    assert set(shapes["schedule"]) == {"ends", "slope", "weights", "biases", "heights"}
    initial = diffusion.schedule()
    leaves = {name: getattr(initial, name) for name in shapes["schedule"]}
    trained = leaves | {"slope": leaves["slope"] + 1, "heights": leaves["heights"] + 3}
    assert abs(float(diffusion.schedule({"schedule": trained}).log_snr(0.3) - initial.log_snr(0.3))) > 0.01

    def total_loss(schedule):
        return losses(config, lambda params, x, t, label, key: 0.5 * x, {"network": {}, "schedule": schedule}).sum()

    grads = jax.grad(total_loss)(leaves)
    assert all(np.isfinite(v).all() for v in grads.values())
    assert np.abs(grads["heights"]).max() > 0
    assert np.abs(grads["ends"]).min() > 0


def test_the_vdm_network_receives_the_log_snr():
    """The config's loss equals the library's loss for a network that depends on the log-SNR."""
    config = changed(digits_vdm, loss__spread="independent")
    schedule = built(config).diffusion.schedule()
    leaves = {name: getattr(schedule, name) for name in ("ends", "slope", "weights", "biases", "heights")}

    def network(params, x, log_snr, label, key):
        return 0.5 * x + 0.1 * diffax._pytrees.expand(jnp.tanh(log_snr), x)

    keys = jax.random.split(jax.random.key(0), SIZE)
    noise, t = diffax.random.fold_in(keys, 0), diffax.losses.training_times.draw(diffax.random.fold_in(keys, 1), SIZE).t
    image = jnp.sin(jnp.arange(SIZE * 4.0)).reshape(SIZE, 2, 2, 1)
    expected = diffax.losses.vdm_loss(
        noise, lambda x, log_snr: network(None, x, log_snr, None, None), schedule, "eps", image, t,
        learn_ends=True, lattice=diffax.likelihood.Lattice(2 / 16),
    )  # fmt: skip
    np.testing.assert_allclose(losses(config, network, {"network": {}, "schedule": leaves}), expected, rtol=1e-5)
    wrong = lambda x, log_snr: network(None, x, 0.5 * log_snr, None, None)
    assert not np.allclose(
        diffax.losses.vdm_loss(noise, wrong, schedule, "eps", image, t, learn_ends=True), expected, rtol=1e-2
    )


@pytest.mark.parametrize("module", [digits_hybrid, digits_vlb, digits_vdm])
def test_the_configs_pass_their_checks(module):
    built(module.get_config())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            lambda: changed(digits, loss__objective="elbo"),
            "config.loss.objective must be one of denoising, hybrid, vlb",
        ),
        (lambda: changed(digits, loss__bin_width=0.1), "config.loss.bin_width must be 0 for denoising, got 0.1"),
        (lambda: changed(digits_vlb, loss__bin_width=0.0), "config.loss.bin_width must be > 0 for vlb, got 0.0"),
        (lambda: changed(digits, network__learned_variance=True), "learned_variance must be False for denoising"),
        (lambda: changed(digits_hybrid, network__learned_variance=False), "learned_variance must be True for hybrid"),
        (lambda: changed(digits_vdm, schedule__name="cosine"), "config.schedule"),
        (lambda: changed(digits_vdm, network__time="t"), "config.network.time must be log_snr for vdm, got 't'"),
        (lambda: changed(digits_hybrid, loss__vlb_weight=-1.0), "config.loss.vlb_weight must be >= 0, got -1.0"),
        (lambda: changed(digits, sampling__sampler="ddpm_learned"), "must not be ddpm_learned without"),
    ],
)
def test_bad_settings_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        built(config())


def test_bin_width_must_be_that_of_the_data():
    built(digits_vlb.get_config())
    bytes_ = DATA["digits"]._replace(units=DATA["mnist5k"].units)
    built(digits.get_config(), data=bytes_)
    with pytest.raises(ValueError, match=r"loss\.bin_width must be 0\.00784314 for these data, got 0\.125"):
        built(digits_vlb.get_config(), data=bytes_)


@pytest.mark.slow
@pytest.mark.parametrize("module", [digits_vdm, digits_hybrid])
def test_evaluate_reports_the_bits_of_an_untrained_model(module, data_dir, tmp_path):
    """Every route reports finite bits; each bad flag gives an error of one line."""
    config = module.get_config()
    config.network.channels, config.network.num_res_blocks, config.dataset.data_dir = 8, 1, str(data_dir)
    save_run(tmp_path, config, jax.jit(built(config).init)(jax.random.key(0)))
    flags = (f"--checkpoint={tmp_path}", "--num=4", "--levels=5", "--draws=2", "--steps=3", "--probes=2")
    one_device = call("evaluate", *flags, f"--data_dir={data_dir}")
    text = call("evaluate", *flags, f"--data_dir={data_dir}", devices=4)
    assert text == one_device  # the number of devices changes no printed digit
    routes = json.loads((tmp_path / "bits.json").read_text())["routes"]
    assert all(np.isfinite(v["bits"]) and v["stderr"] > 0 for v in routes.values())
    for name in routes:
        assert name in text
    for name in (name for name in routes if name.startswith("vlb")):
        parts = routes[name]
        assert len(parts["steps"]) == 4
        assert np.isclose(parts["prior"] + sum(parts["steps"]) + parts["decoder"], parts["bits"], rtol=1e-5)
    if module is digits_vdm:
        # The untrained network predicts eps = 0, so at the last level x0_hat differs from x0 by the noise alone,
        # which is at most half a bin.
        assert all(routes[f"vlb, {variance}"]["decoder"] < 1 for variance in ("small", "large"))
    assert "routes must be one of vlb, continuous, ode, got 'fid'" in call("evaluate", *flags, "--routes=fid", ok=False)
    expected = "learned" if module is digits_hybrid else "small, large"
    message = call("evaluate", *flags, "--variances=none", ok=False)
    assert f"variances must be one of {expected}" in message
    if module is digits_hybrid:
        message = call("evaluate", *flags, "--levels=1001", ok=False)
        assert "levels must be at most the 1000 of the model's schedule, got 1001" in message
    assert "num must be at most the" in call("evaluate", *flags, "--num=1000", f"--data_dir={data_dir}", ok=False)
    assert "probes must be an int >= 1, got 0" in call("evaluate", *flags, "--probes=0", ok=False)
    assert "either samples or checkpoint must be used, got None and None" in call("evaluate", ok=False)
