"""Metrics by name against direct calls, their floors, streams, and errors; `evaluate` on the command line."""

import itertools
import json
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_experiments import call

import experiments.evaluation.measures as module
from diffax import metrics as library
from diffax.pretrained import Units
from experiments.data.datasets import Dataset
from experiments.evaluation import comparison as scoring
from experiments.evaluation.batches import in_batches
from experiments.evaluation.extractors import Extractor
from experiments.evaluation.families import NAMES
from experiments.evaluation.features import stream_moments
from experiments.evaluation.measures import Real, Settings, measure, stream_fd

SHAPE = (4, 4, 1)
MATRIX = np.random.default_rng(9).normal(size=(16, 5)) / 4


def features(images):
    return np.tanh(images.reshape(len(images), 16) @ MATRIX)


def classify(images):
    """Classes by brightness: 0, 1, 2."""
    return np.clip(images.mean((1, 2, 3)).round().astype(int) + 1, 0, 2), features(images)


BARE = Extractor("bare", "ab" * 16, 5, features)
JUDGE = Extractor("judge", "cd" * 16, 5, features, classify)


def draw(seed, count, noise=0.3):
    """Images with three levels of brightness, and their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    return (labels[:, None, None, None] - 1 + noise * rng.normal(size=(count, *SHAPE))).astype(np.float32), labels


REAL = Real(*draw(0, 90), *draw(1, 60))
SAMPLES, LABELS = draw(2, 80, 0.7)


def test_all_metrics_with_their_floors():
    result = measure(JUDGE, SAMPLES, REAL, labels=LABELS, names=("all",))
    assert tuple(result.metrics) == tuple(result.floors) == tuple(NAMES)
    assert result.conditions["n"] == 60
    assert [result.conditions[f"num_{k}"] for k in ("samples", "train", "test")] == [80, 90, 60]
    assert (result.conditions["extractor"], result.conditions["extractor_hash"]) == ("judge", "cd" * 8)
    assert result.metrics["fd"] > 2 * result.floors["fd"]
    assert json.loads(json.dumps(result._asdict()))["metrics"] == result.metrics
    again = measure(JUDGE, SAMPLES, REAL, labels=LABELS, names=NAMES)
    assert again == result
    other = measure(JUDGE, SAMPLES, REAL, labels=LABELS, names=("fd",), settings=Settings(seed=1))
    assert other.metrics["fd"] != result.metrics["fd"]


def test_features_of_real_images_are_computed_once():
    counts, memory = [], {}
    watched = JUDGE._replace(classify=lambda x: (counts.append(len(x)), classify(x))[1])
    options = {"labels": LABELS, "names": ("fd", "sliced_wasserstein", "accuracy")}
    first = measure(watched, SAMPLES, REAL, **options, memory=memory)
    assert measure(watched, SAMPLES, REAL, **options, memory=memory) == first
    assert counts == [80, 90, 60, 80]
    others = (Settings(seed=1), Settings(reference="train"), Settings(repeats=3))
    for changes in ({"names": ("kid", "fd")}, *({"settings": other} for other in others)):
        again = measure(watched, SAMPLES, REAL, **(options | changes), memory=memory)
        assert again == measure(JUDGE, SAMPLES, REAL, **(options | changes))
    fewer = measure(watched, SAMPLES[:50], REAL, labels=LABELS[:50], memory=memory)
    assert fewer == measure(JUDGE, SAMPLES[:50], REAL, labels=LABELS[:50])
    assert counts == [80, 90, 60, *[80] * 5, 50]


def test_with_equal_counts_metrics_equal_those_of_the_library():
    samples, real = SAMPLES[:60], Real(REAL.train[:60], REAL.train_labels[:60], REAL.test, REAL.test_labels)
    names = tuple(name for name in NAMES if name not in ("fd_infinity", "memorisation", "accuracy", "class_balance"))
    result = measure(BARE, samples, real, names=names)
    y, key = features(REAL.test), jax.random.key(0)
    for values, x in ((result.metrics, features(samples)), (result.floors, features(real.train))):
        expected = {
            "fd": library.frechet_distance(x, y),
            "kid": library.kernel_distance(x, y),
            **library.precision_recall(y, x)._asdict(),
            **library.density_coverage(y, x)._asdict(),
            "sliced_wasserstein": library.sliced_wasserstein(key, x, y),
            "sinkhorn": library.sinkhorn_divergence(x, y),
        }
        assert values == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert set(result.spread.values()) == {(0.0, 0.0)}
    assert result.class_counts is None


def test_metrics_are_means_over_random_subsets_and_the_reference_may_be_train():
    result = measure(BARE, SAMPLES, REAL, names=("fd",), settings=Settings(repeats=5, seed=3))
    rng = np.random.default_rng(3)
    sets = [features(images) for images in (SAMPLES, REAL.train, REAL.test)]
    y = sets[2][rng.permutation(60)]
    means = []
    for x in sets[:2]:
        means.append(np.mean([library.frechet_distance(x[rng.permutation(len(x))[:60]], y) for _ in range(5)]))
    assert [result.metrics["fd"], result.floors["fd"]] == pytest.approx(means, rel=1e-12)
    turned = Real(REAL.test, REAL.test_labels, REAL.train, REAL.train_labels)
    against_train = measure(BARE, SAMPLES, REAL, names=("kid", "fd"), settings=Settings(reference="train"))
    other = measure(BARE, SAMPLES, turned, names=("kid", "fd"))
    assert (against_train.metrics, against_train.floors) == (other.metrics, other.floors)


def test_memorisation_distinguishes_copies_from_new_images(monkeypatch):
    new, _ = draw(5, 80)
    ratio = lambda samples: measure(BARE, samples, REAL, names=("memorisation",)).metrics["memorisation"]
    assert ratio(REAL.train[:80]) == 0
    half = np.concatenate([REAL.train[:60], new[:20]])
    assert ratio(half) < 0.5
    assert 0.7 < ratio(new) < 1.4
    whole = measure(BARE, new[:40], REAL._replace(test=REAL.test[:40]), names=("memorisation",))
    monkeypatch.setattr(module, "MAX_IMAGES", 40)  # training images are compared in blocks
    assert measure(BARE, new[:40], REAL._replace(test=REAL.test[:40]), names=("memorisation",)).metrics == whole.metrics


def test_labels_by_a_judge():
    wrong = np.where(np.arange(80) < 8, (classify(SAMPLES)[0] + 1) % 3, classify(SAMPLES)[0])
    names = ("accuracy", "class_balance")
    result = measure(BARE, SAMPLES, REAL, labels=wrong, names=names, judge=JUDGE)
    assert result.metrics["accuracy"] == pytest.approx(0.9)
    assert result.floors["accuracy"] == np.mean(classify(REAL.test)[0] == REAL.test_labels)
    counts = [np.bincount(v, minlength=3) for v in (classify(SAMPLES)[0], wrong)]
    assert result.metrics["class_balance"] == pytest.approx(np.abs(counts[0] - counts[1]).sum() / 160)
    assert result.class_counts == counts[0].tolist()
    assert result.conditions["judge"] == "judge"
    one = measure(JUDGE, SAMPLES[LABELS == 1], REAL, labels=LABELS[LABELS == 1], names=("class_balance",))
    assert one.metrics["class_balance"] < 0.1


def test_samples_that_cannot_be_measured_raise():
    few = {"names": ("fd",)}
    with pytest.raises(
        ValueError, match=r"fd needs at least 6 examples of each set \(or allow_few\) in the 5 features of"
    ):
        measure(BARE, SAMPLES[:5], REAL, **few)
    assert measure(BARE, SAMPLES[:5], REAL, **few, settings=Settings(allow_few=True)).metrics["fd"] > 0
    bad = SAMPLES.copy()
    bad[17, 0, 0] = np.nan
    with pytest.raises(
        ValueError, match=r"features of samples by extractor bare must be finite, got nan of number 17 \("
    ):
        measure(BARE, bad, REAL)
    broken = BARE._replace(features=lambda x: np.where(len(x) == 60, np.inf, features(x)))
    with pytest.raises(ValueError, match=r"features of test by extractor bare must be finite, got inf of number 0$"):
        measure(broken, SAMPLES, REAL)
    with pytest.raises(ValueError, match=r"features of samples by extractor bare .* got nan of number 17"):
        stream_moments(BARE, "samples", (bad[:10], bad[10:]))
    for names, message in (
        (("fid",), "metrics must be one of fd, fd_infinity, .* got 'fid'"),
        ((), "metrics must have at least one of .*, got none"),
        (("accuracy",), "metric accuracy needs a judge"),
        (("fd_infinity",), "fd_infinity needs at least 11 examples of each set in"),
    ):
        with pytest.raises(ValueError, match=message):
            measure(BARE, SAMPLES[:8], REAL, names=names)
    with pytest.raises(ValueError, match="accuracy needs samples that were drawn with labels"):
        measure(JUDGE, SAMPLES, REAL, names=("accuracy",))
    alike = REAL._replace(test=np.zeros_like(REAL.test))
    with pytest.raises(ValueError, match=r"^sinkhorn of train: epsilon must be > 0 and finite, got 0"):
        measure(BARE, SAMPLES, alike, names=("sinkhorn",))
    with pytest.raises(ValueError, match="memorisation needs at least two test images"):
        measure(BARE, SAMPLES, REAL._replace(test=REAL.train), names=("memorisation",))


# Streams


def over_devices():
    """The extractor BARE, with features that are computed on all devices."""
    f = lambda w, images: jnp.tanh(jnp.dot(images.reshape(len(images), 16), w, precision="highest"))
    return BARE._replace(features=in_batches(f, MATRIX.astype(np.float32), 16))


@pytest.mark.parametrize("make", [lambda: BARE, over_devices])
def test_moments_of_a_stream_are_those_of_the_whole_set(make):
    """For eight devices and parts of uneven sizes. At most one part of the features is in memory."""
    extractor, seen, most = make(), [], []

    def watched(images):
        most.append(sum(one() is not None for one in seen))
        result = np.asarray(extractor.features(images))
        seen.append(weakref.ref(result))
        return result

    ends = (0, 13, 14, 50, 80)
    parts = (SAMPLES[at:end] for at, end in itertools.pairwise(ends))
    result = stream_moments(extractor._replace(features=watched), "samples", parts)
    assert max(most) <= 1
    whole = library.moments(features(SAMPLES))
    assert result.examples == 80
    np.testing.assert_allclose(result.mean, whole.mean, atol=1e-6)
    np.testing.assert_allclose(result.scatter, whole.scatter, rtol=1e-5, atol=1e-5)


def test_streamed_distance(monkeypatch):
    monkeypatch.setattr(module, "PART", 7)
    cut = lambda images: (images[at : at + 7] for at in range(0, len(images), 7))
    result = stream_fd(BARE, cut(SAMPLES), REAL)
    x, floor, y = features(SAMPLES), features(REAL.train[:80]), features(REAL.test)
    assert result.metrics["fd"] == pytest.approx(library.frechet_distance(x, y), rel=1e-8)
    assert result.floors["fd"] == pytest.approx(library.frechet_distance(floor, y), rel=1e-8)
    assert [result.conditions[f"num_{k}"] for k in ("samples", "floor", "reference")] == [80, 80, 60]
    with pytest.raises(ValueError, match="fd needs at least 6 examples"):
        stream_fd(BARE, cut(SAMPLES[:4]), REAL)
    with pytest.raises(ValueError, match="samples must have images, got none"):
        stream_fd(BARE, iter(()), REAL)


def test_many_samples_are_streamed(monkeypatch):
    pixels = np.clip((SAMPLES + 2) * 60, 0, 255).astype(np.uint8)
    dataset = Dataset("made", None, "image", SHAPE, Units(), ("a", "b", "c"))
    case = scoring.Case(dataset, REAL, JUDGE, None, ("fd", "accuracy"), Settings(), {})
    whole = scoring.compare(case, pixels, LABELS)
    monkeypatch.setattr(module, "MAX_IMAGES", 30)
    monkeypatch.setattr(module, "PART", 11)
    result = scoring.compare(case, pixels, LABELS)
    x = dataset.normalise(pixels)
    assert result.metrics["fd"] == pytest.approx(library.frechet_distance(features(x), features(REAL.test)), rel=1e-8)
    assert result.metrics["fd"] == pytest.approx(whole.metrics["fd"], rel=0.3)
    assert (result.conditions["fd_num_samples"], result.conditions["num_samples"]) == (80, 30)
    alone = scoring.compare(case._replace(names=("fd",)), pixels, LABELS)
    assert alone.metrics == {"fd": result.metrics["fd"]}
    by_train = Settings(reference="train")
    turned = scoring.compare(case._replace(names=("fd",), settings=by_train), pixels, LABELS)
    expected = library.frechet_distance(features(x), features(REAL.train))
    assert turned.metrics["fd"] == pytest.approx(expected, rel=1e-8)
    with pytest.raises(ValueError, match=r"samples must be examples of shape \(4, 4, 1\), got \(4, 4\)"):
        scoring.compare(case, pixels[..., 0], LABELS)


# Metrics of digits


@pytest.fixture(scope="module")
def folders(data_dir, tmp_path_factory):
    """{name: folder as `experiments.sample` writes it}; each set is less like the digits than the set before."""
    from experiments.configs import digits
    from experiments.data.datasets import open_dataset

    data = digits.get_config().dataset.to_dict() | {"data_dir": str(data_dir)}
    images, labels = open_dataset("digits", str(data_dir)).arrays(data["train_split"])
    images, rng = (images + 1) * 8, np.random.default_rng(0)
    flat = images.reshape(len(images), -1)
    fake = rng.multivariate_normal(flat.mean(0), np.cov(flat.T), len(images)).reshape(images.shape)
    sets = {
        "real": images,
        "noised": images + 2 * rng.normal(size=images.shape),
        "fake": fake,
        "noise": rng.uniform(0, 16, images.shape),
    }
    sampling = {"sampler": "none", "num_steps": 1, "guidance": 1.0}
    result = {}
    for name, pixels in sets.items():
        result[name] = tmp_path_factory.mktemp(name)
        pixels = np.clip(pixels, 0, 16).round().astype(np.uint8)
        np.savez(result[name] / "shard_00000.npz", samples=pixels, labels=labels)
        settings = {"num": len(images), "shard_size": 1000, "step": 1, "sampling": sampling, "dataset": data}
        (result[name] / "settings.json").write_text(json.dumps(settings))
    return result


@pytest.mark.slow
def test_fd_and_kid_grow_from_real_digits_to_noise(folders, tmp_path):
    """Real < noised < Gaussian fakes < noise. The FD of real digits is at its floor."""
    flags = ("--metrics=fd,kid", f"--classifier_file={tmp_path}/c.npz")
    result = {}
    for name, folder in folders.items():
        assert "measured by           classifier " in call("evaluate", f"--samples={folder}", *flags)
        result[name] = json.loads((folder / "evaluation.json").read_text())
    assert len({one["conditions"]["extractor_hash"] for one in result.values()}) == 1
    for metric in ("fd", "kid"):
        values = [result[name]["metrics"][metric] for name in folders]
        assert values == sorted(values)
    assert result["real"]["metrics"]["fd"] == pytest.approx(result["real"]["floors"]["fd"], rel=0.3)
