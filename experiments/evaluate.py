"""Compares samples with real data, or says how many bits held-out data cost a model.

    python -m experiments.evaluate --samples=DIR
    python -m experiments.evaluate --checkpoint=RUN [--routes=vlb,continuous,ode] [--variances=small,large] [--num=400]

A classifier is trained on real data that the diffusion model never saw (config.dataset.classifier_split). Then

    accuracy        of the samples: how many it gives the label that they were drawn with,
                    beside its accuracy on real test data, which it never saw either
    FD(classifier)  Fréchet distance of samples and real test data in the classifier's 64 features
    floor           the same distance, at the same counts, of real training data and real test data

Both distances are the mean over 20 random choices of n samples (n training images) against the same n test
images. FD(classifier) is not FID: compare it with its floor and with nothing else. Writes DIR/evaluation.json.
With a checkpoint: bits per dimension by the ways of `experiments.bits`; writes RUN/bits.json.
"""

from pathlib import Path

import numpy as np
from absl import flags

from diffax.metrics import frechet_distance
from experiments import bits, classifier
from experiments.checkpoint import load_model
from experiments.data.datasets import open_dataset
from experiments.workdir import launch, read_json, usage_errors, write_json

SAMPLES = flags.DEFINE_string("samples", None, "Folder that experiments.sample wrote.")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Workdir of a run, or an export: bits per dimension.")
ROUTES = flags.DEFINE_list("routes", list(bits.ROUTES), "Of --checkpoint: which ways to measure bits.")
VARIANCES = flags.DEFINE_list("variances", [], "Of the bound: learned, small, large; not given, the model's own.")
SPENT = {
    name: flags.DEFINE_integer(name, value, f"Of --checkpoint: {what}.")
    for (name, value), what in zip(
        bits.Settings()._asdict().items(),
        (
            "images",
            "levels of the discrete bound, all of a table or 1,000 if not given",
            "times for each image",
            "steps of the ODE",
            "probes of its divergence",
        ),
        strict=True,
    )
}
STEPS = flags.DEFINE_integer("classifier_steps", 1500, "Training steps of the classifier.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of prepared data sets; the samples' own if not given.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the classifier and of the random choices.")

REPEATS = 20


def load_samples(folder, settings):
    """All shards: samples (N, *shape) in pixels, labels (N,)."""
    count = -(-settings["num"] // settings["shard_size"])
    paths = [folder / f"shard_{i:05d}.npz" for i in range(count)]
    missing = [p.name for p in paths if not p.exists()]
    if missing:
        raise ValueError(f"samples {folder} lacks {missing[0]}: run experiments.sample again to finish it")
    shards = [np.load(path) for path in paths]
    return tuple(np.concatenate([shard[name] for shard in shards]) for name in ("samples", "labels"))


def distances(rng, features, reference):
    """Mean and standard deviation of the distance over random choices of as many features as the reference has."""
    values = [
        frechet_distance(features[rng.permutation(len(features))[: len(reference)]], reference, allow_few=True)
        for _ in range(REPEATS)
    ]
    return float(np.mean(values)), float(np.std(values))


def compare(classify, samples, labels, train, test, test_labels, seed):
    """The numbers, as a dict."""
    rng = np.random.default_rng(seed)
    found, features = classify(samples)
    found_test, test_features = classify(test)
    _, train_features = classify(train)
    n = min(len(samples), len(train), len(test))
    reference = test_features[rng.permutation(len(test))[:n]]
    fd, fd_std = distances(rng, features, reference)
    floor, floor_std = distances(rng, train_features, reference)
    conditional = labels[0] >= 0
    return {
        "accuracy": float(np.mean(found == labels)) if conditional else None,
        "accuracy_real": float(np.mean(found_test == test_labels)),
        "fd_classifier": fd,
        "fd_classifier_std": fd_std,
        "floor": floor,
        "floor_std": floor_std,
        "ratio": fd / floor,
        "n": n,
        "num_samples": len(samples),
        "num_test": len(test),
        "num_train": len(train),
        "class_counts": np.bincount(found, minlength=int(test_labels.max()) + 1).tolist(),
    }


def report(result, settings):
    """The numbers as text."""
    sampling = settings["sampling"]
    how = f"{sampling['sampler']}, {sampling['num_steps']} calls, guidance {sampling['guidance']:g}"
    lines = [
        f"{result['num_samples']} samples of step {settings['step']} ({how})",
        f"  FD(classifier)        {result['fd_classifier']:.3f} +- {result['fd_classifier_std']:.3f}"
        f"   samples / test, n = {result['n']} each",
        f"  real-to-real floor    {result['floor']:.3f} +- {result['floor_std']:.3f}"
        f"   train / test,   n = {result['n']} each",
        f"  ratio to the floor    {result['ratio']:.2f}",
        f"  accuracy on real      {result['accuracy_real']:.2%}   of {result['num_test']} test images",
        f"  samples per class     {' '.join(map(str, result['class_counts']))}",
    ]
    if result["accuracy"] is not None:
        lines.insert(1, f"  accuracy on samples   {result['accuracy']:.2%}   given their own label by the classifier")
    return "\n".join(lines)


def measure_bits(folder):
    """Bits per dimension of a model's own held-out data."""
    with usage_errors():
        settings = bits.Settings(**{name: flag.value for name, flag in SPENT.items()})
        model = load_model(folder)
        bits.check(model, ROUTES.value, VARIANCES.value, settings)
        data = model.config.dataset
        folder_of_data = data.data_dir if DATA_DIR.value is None else DATA_DIR.value
        dataset = open_dataset(data.name, folder_of_data, data.labels)
        case = bits.open_case(model, dataset, VARIANCES.value, settings)
    found = bits.measure(case, ROUTES.value, settings, SEED.value)
    write_json(folder / "bits.json", settings._asdict() | {"step": model.step, "seed": SEED.value, "routes": found})
    print(f"step {model.step} of {folder}, {settings.num} images\n{bits.report(found)}")


def main(argv):
    """Evaluates."""
    del argv
    with usage_errors():
        if (SAMPLES.value is None) == (CHECKPOINT.value is None):
            raise ValueError(f"one of samples and checkpoint must be given, got {SAMPLES.value} and {CHECKPOINT.value}")
    if CHECKPOINT.value is not None:
        measure_bits(Path(CHECKPOINT.value).absolute())
        return
    folder = Path(SAMPLES.value).absolute()
    with usage_errors():
        settings = read_json(folder / "settings.json")
        if settings is None:
            raise ValueError(f"samples must be a folder that experiments.sample wrote, got {folder}")
        if STEPS.value < 1:
            raise ValueError(f"classifier_steps must be >= 1, got {STEPS.value}")
        samples, labels = load_samples(folder, settings)
        if len(samples) < 2:
            raise ValueError(f"samples must be at least 2 to have a covariance, got {len(samples)} in {folder}")
        data = settings["dataset"]
        dataset = open_dataset(data["name"], data["data_dir"] if DATA_DIR.value is None else DATA_DIR.value)
        if dataset.num_classes is None:
            raise ValueError(f"dataset {dataset.name!r} has no labels to train a classifier on")
        parts = [dataset.arrays(data[f"{part}_split"]) for part in ("classifier", "train", "test")]
    (known, known_labels), *rest = parts
    if labels[0] >= 0:  # some classes alone are compared with these alone
        rest = [(images[np.isin(of, labels)], of[np.isin(of, labels)]) for images, of in rest]
    (train, _), (test, test_labels) = rest
    classify = classifier.fit(known, known_labels, dataset.num_classes, num_steps=STEPS.value, seed=SEED.value)
    samples = dataset.normalise(samples)
    result = compare(classify, samples, labels, train, test, test_labels, SEED.value)
    write_json(folder / "evaluation.json", result)
    print(report(result, settings))


if __name__ == "__main__":
    launch(main)
