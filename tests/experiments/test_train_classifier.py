"""The noise-aware classifier: short training runs, checkpoints, and guided samples."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import DATA, built, save_run
from test_experiments import call

import diffax
from diffax.pretrained import Diffusion
from diffax.training import Checkpoints
from experiments.configs import digits, digits_classifier, smoke
from experiments.model import build
from experiments.models.noisy_classifier import ClassifierModel
from experiments.run import loading


def training_flags(data_dir, workdir, *more):
    config = "--config=experiments/configs/smoke.py"
    common = ("--config.model=classifier", f"--config.dataset.data_dir={data_dir}")
    return (config, f"--workdir={workdir}", *common, *more)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The workdir of a diffusion model whose parameters are 0, so that it predicts v = 0."""
    config = smoke.get_config()
    shapes = jax.eval_shape(build(config, DATA["digits"]).init, jax.random.key(0))
    params = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), shapes)
    return save_run(tmp_path_factory.mktemp("model"), config, params)


def load(folder):
    return loading.load(folder, "classifier", "classifier")


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    """The workdir of a classifier that was trained for 20 steps."""
    workdir = tmp_path_factory.mktemp("classifier")
    call("train", *training_flags(data_dir, workdir))
    return workdir


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_training_lowers_the_loss_and_writes_the_log_and_checkpoints(trained):
    lines = metrics(trained)
    assert [line["step"] for line in lines] == [1, 5, 10, 15, 20]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert 0 <= lines[-1]["accuracy_t0"] <= 1
    assert isinstance(load(trained).model, ClassifierModel)
    assert sorted(p.name for p in (trained / "checkpoints").iterdir()) == ["10", "20"]


@pytest.mark.slow
def test_a_run_resumes_from_its_last_checkpoint(trained, data_dir, tmp_path):
    call("train", *training_flags(data_dir, tmp_path, "--config.train.num_steps=10"))
    text = call("train", *training_flags(data_dir, tmp_path, "--config.optimizer.decay=constant"), ok=False)
    assert "config.optimizer.decay" in text
    assert "restored step 10" in call("train", *training_flags(data_dir, tmp_path))
    assert load(tmp_path).step == load(trained).step == 20


@pytest.fixture(scope="module")
def log_prob(trained):
    """(schedule, labels, x, t) -> (B,) of the trained classifier."""
    classifier = load(trained)
    return jax.jit(lambda onto, label, x, t: classifier.model.log_prob(classifier.params, onto)(label)(x, t))


def test_probabilities_of_the_classes_sum_to_one_at_any_noise(log_prob):
    """They depend only on x / alpha and log-SNR."""
    x, labels = jax.random.normal(jax.random.key(0), (1, 8, 8, 1)), jnp.arange(10)
    flow, cosine = diffax.Flow(), diffax.Cosine()
    own = log_prob(cosine, labels, jnp.repeat(x, 10, 0), 0.3)
    np.testing.assert_allclose(jnp.exp(own).sum(), 1.0, rtol=1e-5)
    level = cosine(0.3)
    t = flow.inverse(level.log_snr)
    moved = log_prob(flow, labels, jnp.repeat(x, 10, 0) * flow(t).alpha / level.alpha, t)
    np.testing.assert_allclose(moved, own, rtol=1e-4)


def test_the_loss_is_the_cross_entropy_of_the_noised_image(monkeypatch):
    """Against NumPy, with the mean of x_t as the logit of class 0 and 0 as the logit of class 1."""
    logits = lambda self, params, x, t, key: jnp.stack([x.mean((1, 2, 3)), jnp.zeros(len(x))], -1)
    monkeypatch.setattr(ClassifierModel, "logits", logits)
    config = smoke.get_config()
    config.model = "classifier"
    batch = {"x": jnp.full((3, 2, 2, 1), 0.5), "label": jnp.array([0, 1, 0])}
    keys = jax.random.split(jax.random.key(0), 3)
    time = np.asarray(diffax.random.unit_interval(diffax.random.fold_in(keys, 1), 3))
    eps = np.asarray(diffax.random.noise(diffax.random.fold_in(keys, 0), batch["x"]))
    score = (np.cos(np.pi * time / 2)[:, None] * 0.5 + np.sin(np.pi * time / 2)[:, None] * eps.reshape(3, 4)).mean(1)
    expected = np.log1p(np.exp(-np.array([1, -1, 1]) * score))
    losses = built(config).objective().loss({}, batch, keys)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


@pytest.mark.slow
def test_sampling_with_a_classifier(trained, model, log_prob, tmp_path):
    """The classifier gives guided samples a higher probability than the samples without guidance, which v = 0 gives."""
    flags = ("--num=10", "--num_steps=3", "--guidance=0", "--classifier_scale=50", f"--classifier={trained}")
    call("sample", f"--checkpoint={model}", f"--out={tmp_path}", *flags, devices=4)
    shard, settings = np.load(tmp_path / "shard_00000.npz"), json.loads((tmp_path / "settings.json").read_text())
    assert shard["labels"].tolist() == list(range(10))
    assert (settings["classifier_step"], settings["classifier_scale"]) == (20, 50)

    labels, times, cosine = jnp.arange(10), diffax.times.uniform_log_snr(diffax.Cosine(), 3), diffax.Cosine()
    keys = diffax.random.fold_in(jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), labels), 0)
    noise = diffax.initial_noise(keys, cosine, (10, 8, 8, 1))
    denoise = lambda x, t: jnp.clip(cosine(t).alpha * x, -1, 1)
    plain = diffax.sample(keys, diffax.ddim(cosine), denoise, noise, times)
    pushed = jnp.asarray(shard["samples"] / 8.0 - 1, jnp.float32)
    assert (log_prob(cosine, labels, pushed, 0.01) > log_prob(cosine, labels, plain, 0.01)).mean() > 0.7


def test_bad_guidance(model):
    for folder, message in (
        (model, "classifier must have a model of kind 'classifier', got .* with kind 'diffusion'"),
        (model / "nowhere", "classifier must be a run's workdir or an export, got"),
    ):
        with pytest.raises(ValueError, match=message):
            load(folder)
    for key, value, message in (
        ("rescale", 2.0, r"guidance_rescale must be in \[0, 1\], got 2.0"),
        ("interval", (0.8, 0.2), r"guidance_interval must be two times, 0 <= low <= high <= 1, got \(0.8, 0.2\)"),
    ):
        config = smoke.get_config()
        config.sampling[f"guidance_{key}"] = value
        with pytest.raises(ValueError, match=message):
            built(config)


def test_the_workdir_of_a_diffusion_model_is_refused(model, data_dir):
    assert "has a run with config.model = 'diffusion', got 'classifier'" in call(
        "train", *training_flags(data_dir, model), ok=False
    )
    with Checkpoints(model / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps == [1]


def test_the_config_has_the_schedule_of_the_model_it_guides():
    built(digits_classifier.get_config())
    assert digits_classifier.get_config().schedule == digits.get_config().schedule
    for word in ("python -m experiments.train ", "Hardware", "Time", "Metric"):
        assert word in digits_classifier.__doc__


def test_guidance_from_the_config(monkeypatch):
    """The built denoiser is u + w (c - u), rescaled, inside its interval; one call of the network for both branches."""
    config = smoke.get_config()
    config.sampling.update({"clip": False, "guidance": 3.0})
    calls = []

    def predict(self, params, label, *, module=None, mask=None, weight=None):
        def f(x, t):
            calls.append(x.shape)
            own = jnp.broadcast_to(10 if label is None else label, x.shape[:1])
            return jnp.sin(x) * (1.0 + own.reshape(-1, 1, 1, 1))

        return f

    monkeypatch.setattr(Diffusion, "predict", predict)
    x, label, t = jnp.linspace(-1, 1, 32).reshape(2, 4, 4, 1), jnp.array([3, 7]), 0.4
    alpha, sigma = np.cos(0.2 * np.pi), np.sin(0.2 * np.pi)
    c, u = (np.sin(x) * (1 + np.array(own).reshape(-1, 1, 1, 1)) for own in ([3, 7], [10, 10]))
    cfg = u + 3 * (c - u)
    for phi, high in itertools.product((0.0, 0.7), (1.0, 0.3)):
        config.sampling.update({"guidance_rescale": phi, "guidance_interval": (0.0, high)})
        denoise = built(config).diffusion.denoiser({}, label)
        calls.clear()
        x0 = denoise(x, t)
        ratio = np.std(c, (1, 2, 3)) / np.std(cfg, (1, 2, 3))
        v = cfg * (1 + phi * (ratio - 1)).reshape(-1, 1, 1, 1) if t <= high else c
        np.testing.assert_allclose(x0, alpha * np.asarray(x) - sigma * v, atol=1e-5)
        assert (4, 4, 4, 1) in calls
        assert len(calls) == (1 if high == 1 else 2)
