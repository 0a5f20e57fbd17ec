"""Compares samples with real data, or says how many bits held-out data cost a model.

    python -m experiments.evaluate --samples=DIR [--extractor=efficientnet_lite0] [--metrics=kid,precision,recall]
    python -m experiments.evaluate --checkpoint=RUN [--routes=vlb,continuous,ode] [--variances=small,large] [--num=400]

Samples are compared with real test data in the features of an extractor (`evaluation.extractors`), and beside each
number stands its floor, the same of real training data and real test data at the same counts. By default that is a
classifier, trained on real data that the diffusion model never saw (config.dataset.classifier_split), and

    accuracy        of the samples: how many it gives the label that they were drawn with,
                    beside its accuracy on real test data, which it never saw either
    FD(classifier)  Fréchet distance of samples and real test data in the classifier's 64 features

Both distances are the mean over 20 random choices of n samples (n training images) against the same n test
images. FD(classifier) is not FID: compare it with its floor and with nothing else. Writes DIR/evaluation.json.
`--extractor` and `--metrics` choose others (`evaluation.families`; `--metrics=all`): a Fréchet distance needs more
samples than features.
With a checkpoint: bits per dimension by the ways of `experiments.evaluation.bits`; writes RUN/bits.json.
"""

import numpy as np
from absl import flags

from experiments.data.datasets import open_dataset
from experiments.evaluation import bits, comparison
from experiments.evaluation.extractors import MAKERS
from experiments.evaluation.families import NAMES
from experiments.run.command import launch, path_of, usage_errors
from experiments.run.loading import load
from experiments.run.workdir import read_json, write_json

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
DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of prepared data sets; the samples' own if not given.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the classifier and of the random choices.")
HOW = {
    "extractor": flags.DEFINE_string("extractor", "classifier", f"Features: one of {', '.join(MAKERS)}."),
    "metrics": flags.DEFINE_list("metrics", None, f"Some of {', '.join(NAMES)}; all. Not given: fd and accuracy."),
    "repeats": flags.DEFINE_integer("repeats", 20, "Random choices of n samples that distances are means of."),
    "seed": SEED,
    "reference": flags.DEFINE_string("reference", "test", "The real images that samples are compared with, or train."),
    "allow_few": flags.DEFINE_bool("allow_few", False, "Whether fd may do with fewer images than features."),
    "classifier_steps": flags.DEFINE_integer("classifier_steps", 1500, "Training steps of the classifier."),
    "classifier_file": flags.DEFINE_string("classifier_file", None, "Keeps the classifier; read if it is there."),
    "inception_weights": flags.DEFINE_string("inception_weights", None, "Weights file of inception_v3."),
}


def load_samples(folder, settings):
    """All shards: samples (N, *shape) in pixels, labels (N,)."""
    count = -(-settings["num"] // settings["shard_size"])
    paths = [folder / f"shard_{i:05d}.npz" for i in range(count)]
    missing = [p.name for p in paths if not p.exists()]
    if missing:
        raise ValueError(f"samples {folder} lacks {missing[0]}: run experiments.sample again to finish it")
    shards = [np.load(path) for path in paths]
    return tuple(np.concatenate([shard[name] for shard in shards]) for name in ("samples", "labels"))


def report(found, settings):
    """The numbers as text: each with its floor, and below how they were measured."""
    sampling, conditions = settings["sampling"], found.conditions
    how = f"{sampling['sampler']}, {sampling['num_steps']} calls, guidance {sampling['guidance']:g}"
    lines = [f"{settings['num']} samples of step {settings['step']} ({how})"]
    if "accuracy" in found.metrics:
        lines.append(
            f"  accuracy on samples   {found.metrics['accuracy']:.2%}   given their own label by the classifier"
        )
    if "fd" in found.metrics:
        lines += _report_fd(found)
    for name in (name for name in found.metrics if name not in ("fd", "accuracy")):
        texts = _pair(found, name, ".4g")
        lines.append(f"  {name:21} {texts[0]}   real-to-real floor {texts[1]}")
    if "accuracy" in found.metrics:
        lines.append(
            f"  accuracy on real      {found.floors['accuracy']:.2%}   of {conditions['num_test']} test images"
        )
    if found.class_counts is not None:
        lines.append(f"  samples per class     {' '.join(map(str, found.class_counts))}")
    counts = ", ".join(f"{value} {key[4:]}" for key, value in conditions.items() if key.startswith("num_"))
    n = f", n = {conditions['n']} of each" if "n" in conditions else ""
    hashes = [f"{conditions[k]} {conditions[f'{k}_hash']}" for k in ("extractor", "judge") if k in conditions]
    lines.append(f"  measured by           {', judged by '.join(hashes)}; {counts}{n}")
    return "\n".join(lines)


def _pair(found, name, form):
    """The value and its floor as text, with standard deviations where there are any."""
    spread = found.spread.get(name, (0, 0))
    values = zip((found.metrics[name], found.floors[name]), spread, strict=True)
    return [f"{value:{form}}" + (f" +- {std:{form}}" if any(spread) else "") for value, std in values]


def _report_fd(found):
    conditions, (value, floor) = found.conditions, _pair(found, "fd", ".3f")
    reference = conditions["reference"]
    other = {"test": "train", "train": "test"}[reference]
    sizes = [f"{what} / {reference},".ljust(16) + f"n = {conditions.get('n')} each" for what in ("samples", other)]
    if "fd" not in found.spread:
        front = "fd_num_" if "fd_num_samples" in conditions else "num_"
        held = conditions[f"{front}reference"]
        sizes = [f"all, {conditions[front + what]} against {held}" for what in ("samples", "floor")]
    title = f"FD({conditions['extractor']})"
    return [
        f"  {title:21} {value}   {sizes[0]}",
        f"  real-to-real floor    {floor}   {sizes[1]}",
        f"  ratio to the floor    {found.metrics['fd'] / found.floors['fd']:.2f}",
    ]


def measure_bits(folder):
    """Bits per dimension of a model's own held-out data."""
    with usage_errors():
        settings = bits.Settings(**{name: flag.value for name, flag in SPENT.items()})
        model = load(folder)
        bits.check(model, ROUTES.value, VARIANCES.value, settings)
        data = model.dataset
        folder_of_data = data["data_dir"] if DATA_DIR.value is None else DATA_DIR.value
        dataset = open_dataset(data["name"], folder_of_data, data["labels"])
        case = bits.open_case(model, dataset, VARIANCES.value, settings)
    found = bits.measure(case, ROUTES.value, settings, SEED.value)
    write_json(folder / "bits.json", settings._asdict() | {"step": model.step, "seed": SEED.value, "routes": found})
    print(f"step {model.step} of {folder}, {settings.num} images\n{bits.report(found)}")


def main(argv):
    """Evaluates."""
    del argv
    with usage_errors():
        if (SAMPLES.value is None) == (CHECKPOINT.value is None):
            raise ValueError(f"either samples or checkpoint must be used, got {SAMPLES.value} and {CHECKPOINT.value}")
        folder = path_of(*(("checkpoint", CHECKPOINT.value) if SAMPLES.value is None else ("samples", SAMPLES.value)))
    if CHECKPOINT.value is not None:
        measure_bits(folder)
        return
    with usage_errors():
        settings = read_json(folder / "settings.json")
        if settings is None:
            raise ValueError(f"samples must be a folder that experiments.sample wrote, got {folder}")
        samples, labels = load_samples(folder, settings)
        labels = labels if labels[0] >= 0 else None
        chosen = comparison.Settings(**{name: flag.value for name, flag in HOW.items()})
        files = {name: getattr(chosen, name) for name in ("classifier_file", "inception_weights")}
        chosen = chosen._replace(**{name: text and str(path_of(name, text)) for name, text in files.items()})
        chosen = chosen._replace(metrics=None if chosen.metrics is None else tuple(chosen.metrics))
        data = settings["dataset"] | ({} if DATA_DIR.value is None else {"data_dir": DATA_DIR.value})
        case = comparison.open_case(data, labels, chosen, len(samples))
    with usage_errors():  # some of what is wrong with samples and data shows only in their features
        found = comparison.compare(case, samples, labels)
    write_json(folder / "evaluation.json", found._asdict())
    print(report(found, settings))


if __name__ == "__main__":
    launch(main)
