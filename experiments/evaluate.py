"""Compare samples with real data, or measure the bits per dimension of a model on the test split of its data.

    python -m experiments.evaluate --samples=DIR [--extractor=efficientnet_lite0] [--metrics=kid,precision,recall]
    python -m experiments.evaluate --checkpoint=RUN [--routes=vlb,continuous,ode] [--variances=small,large] [--num=400]

Samples are compared with real test data in the features of an extractor (`evaluation.extractors`). Beside each number
is its floor, the same number for real training data and the same test data at the same counts. The extractor of images
with labels is a classifier, trained on real data outside the model's training set (config.dataset.classifier_split):

    accuracy        the share of samples whose predicted label is the label that they were drawn with, beside the
                    accuracy on real test data, which are outside the classifier's training set
    FD(classifier)  Fréchet distance of samples and real test data in the 64 features of the classifier

The extractor of all other data, also of images without labels, is `values`, the normalised values themselves:

    FD(values)            Fréchet distance in at most 65 features; left out unless there are more examples than features
    sliced_wasserstein    in the same features
    spectral_distance_db  of fields and signals: log spectral distance of the radially averaged power spectra
    channel               mean and standard deviation of each channel in its own units, of samples and of real data

The distances are means over 20 random choices of n samples (n training examples) against the same n test examples. FD
is not FID and is comparable only with its floor. Writes DIR/evaluation.json. `--extractor` and `--metrics` select
others (`evaluation.families`; `--metrics=all`). A Fréchet distance needs more samples than features.

With a checkpoint, the command measures bits per dimension (nats for floats) by the routes of
`experiments.evaluation.bits` and writes RUN/bits.json.
"""

from absl import flags

from experiments.data.datasets import open_dataset
from experiments.evaluation import bits, comparison
from experiments.evaluation.extractors import DIMENSIONS
from experiments.evaluation.families import NAMES
from experiments.run import devices
from experiments.run.command import launch, path_of, usage_errors
from experiments.run.loading import load
from experiments.run.sample_folder import load_samples
from experiments.run.workdir import read_json, write_json

SAMPLES = flags.DEFINE_string("samples", None, "Folder written by experiments.sample.")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Workdir of a run, or an export: bits per dimension.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of prepared data sets; default: that of the samples or run.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the classifier and of the random choices.")
COMPARISON = {
    "extractor": flags.DEFINE_string("extractor", None, f"One of {', '.join(DIMENSIONS)}. Default: by the data."),
    "metrics": flags.DEFINE_list("metrics", None, f"Some of {', '.join(NAMES)}, or all. Default: by the extractor."),
    "repeats": flags.DEFINE_integer("repeats", 20, "Random choices of n samples; distances are means over them."),
    "seed": SEED,
    "reference": flags.DEFINE_string("reference", "test", "The real data to compare samples with: test or train."),
    "allow_few": flags.DEFINE_bool("allow_few", False, "Whether fd may use fewer examples than features."),
    "classifier_steps": flags.DEFINE_integer("classifier_steps", 1500, "Training steps of the classifier."),
    "classifier_file": flags.DEFINE_string("classifier_file", None, "File of the classifier; written if missing."),
    "inception_weights": flags.DEFINE_string("inception_weights", None, "Weights file of inception_v3."),
}
ROUTES = flags.DEFINE_list("routes", None, f"For --checkpoint: {', '.join(bits.ROUTES)}. Default: by the data.")
VARIANCES = flags.DEFINE_list("variances", [], "For route vlb: learned, small, large. Default: those of the model.")
BITS = {
    "num": flags.DEFINE_integer("num", 400, "For --checkpoint: number of examples."),
    "levels": flags.DEFINE_integer("levels", None, "Levels of the discrete bound; default: all of a table, or 1,000."),
    "draws": flags.DEFINE_integer("draws", 200, "Times for each example in the continuous bound."),
    "steps": flags.DEFINE_integer("steps", 100, "Steps of the ODE."),
    "probes": flags.DEFINE_integer("probes", 4, "Probes of the divergence of the ODE."),
}
SHOWN = 8  # channels of the report


def main(argv):
    """Compare samples, or measure bits."""
    del argv
    devices.use_cores()
    with usage_errors():
        if (SAMPLES.value is None) == (CHECKPOINT.value is None):
            raise ValueError(f"either samples or checkpoint must be used, got {SAMPLES.value} and {CHECKPOINT.value}")
    if SAMPLES.value is None:
        measure_bits()
    else:
        compare_samples()


def compare_samples():
    """Metrics of samples beside their floors."""
    # ---------------------------------------------------------------- open: the samples, real data, the extractor
    with usage_errors():
        folder = path_of("samples", SAMPLES.value)
        drawn = read_json(folder / "settings.json")
        if drawn is None:
            raise ValueError(f"samples must be a folder written by experiments.sample, got {folder}")
        samples, labels, masks = load_samples(folder, drawn["num"], drawn["shard_size"])
        labels = labels if labels[0] >= 0 else None
        options = {name: flag.value for name, flag in COMPARISON.items()}
        for name in ("classifier_file", "inception_weights"):
            options[name] = options[name] and str(path_of(name, options[name]))
        data = drawn["dataset"] | ({} if DATA_DIR.value is None else {"data_dir": DATA_DIR.value})
        case = comparison.open_case(data, labels, comparison.Settings(**options), len(samples))

    # ---------------------------------------------------------------- compare
    with usage_errors():  # some faults of samples and data show only in their features
        measures = comparison.compare(case, samples, labels, masks)

    # ---------------------------------------------------------------- end: write and print
    write_json(folder / "evaluation.json", measures._asdict())
    print(report(measures, drawn))


def measure_bits():
    """Bits per dimension of a model on the test split of its data."""
    # ---------------------------------------------------------------- open: the model and its data
    with usage_errors():
        folder = path_of("checkpoint", CHECKPOINT.value)
        settings = bits.Settings(**{name: flag.value for name, flag in BITS.items()})
        model = load(folder)
        names = bits.routes_of(model.data) if ROUTES.value is None else ROUTES.value
        bits.check(model, names, VARIANCES.value, settings)
        data = model.dataset
        data_dir = data["data_dir"] if DATA_DIR.value is None else DATA_DIR.value
        dataset = open_dataset(data["name"], data_dir, data["labels"])
        case = bits.open_case(model, dataset, VARIANCES.value, settings)

    # ---------------------------------------------------------------- measure
    routes = bits.measure(case, names, settings, SEED.value)

    # ---------------------------------------------------------------- end: write and print
    write_json(folder / "bits.json", settings._asdict() | {"step": model.step, "seed": SEED.value, "routes": routes})
    print(f"step {model.step} of {folder}, {settings.num} examples")
    for name, value in routes.items():
        unit, note = ("nats", " of the normalised values") if "nats" in value else ("bits", "")
        print(f"  {name:24s} {value[unit]:.4f} +- {value['stderr']:.4f} {unit} per dimension{note}")


def report(measures, drawn):
    """The metrics as text, each with its floor, and the extractor and counts. drawn: settings.json of the samples."""
    metrics, floors, conditions, sampling = measures.metrics, measures.floors, measures.conditions, drawn["sampling"]
    how = f"{sampling['sampler']}, {sampling['num_steps']} calls, guidance {sampling['guidance']:g}"
    lines = [f"{drawn['num']} samples of step {drawn['step']} ({how})"]
    if "accuracy" in metrics:
        lines.append(f"  accuracy on samples   {metrics['accuracy']:.2%}   given their own label by the classifier")
    if "fd" in metrics:
        lines += report_fd(measures)
    for name in (name for name in metrics if name not in ("fd", "accuracy")):
        value, floor = with_spread(measures, name, ".4g")
        lines.append(f"  {name:21} {value}   real-to-real floor {floor}")
    if "accuracy" in metrics:
        lines.append(f"  accuracy on real      {floors['accuracy']:.2%}   of {conditions['num_test']} test images")
    lines += report_channels(measures.channels or [])
    if measures.class_counts is not None:
        lines.append(f"  samples per class     {' '.join(map(str, measures.class_counts))}")
    counts = ", ".join(f"{value} {key[4:]}" for key, value in conditions.items() if key.startswith("num_"))
    n = f", n = {conditions['n']} of each" if "n" in conditions else ""
    hashes = [f"{conditions[key]} {conditions[f'{key}_hash']}" for key in ("extractor", "judge") if key in conditions]
    lines.append(f"  measured by           {', judged by '.join(hashes)}; {counts}{n}")
    titles = {"features": "features", "left_out": "left out"}
    lines += [f"  {title:21} {conditions[key]}" for key, title in titles.items() if key in conditions]
    return "\n".join(lines)


def report_channels(channels):
    """A line for each of the first channels: mean and standard deviation in its own units."""
    lines = []
    for one in channels[:SHOWN]:
        title = one["channel"] + (f" [{one['units']}]" if one["units"] else "")
        values = [f"{name} {one[name][0]:.6g} +- {one[name][1]:.4g}" for name in ("samples", "test", "train")]
        lines.append(f"  {title:21} {'   '.join(values)}   (mean +- std)")
    return lines + ([f"  {len(channels) - SHOWN} more channels in evaluation.json"] if len(channels) > SHOWN else [])


def report_fd(measures):
    """The lines of fd: of n samples, or of all if their number is too large for one piece."""
    conditions = measures.conditions
    value, floor = with_spread(measures, "fd", ".3f")
    if "fd" in measures.spread:
        reference = conditions["reference"]
        names = "samples", "test" if reference == "train" else "train"
        sizes = [f"{name} / {reference},".ljust(16) + f"n = {conditions['n']} each" for name in names]
    else:
        num = "fd_num" if "fd_num_samples" in conditions else "num"
        total = conditions[f"{num}_reference"]
        sizes = [f"all, {conditions[f'{num}_{name}']} against {total}" for name in ("samples", "floor")]
    title = f"FD({conditions['extractor']})"
    return [
        f"  {title:21} {value}   {sizes[0]}",
        f"  real-to-real floor    {floor}   {sizes[1]}",
        f"  ratio to the floor    {measures.metrics['fd'] / measures.floors['fd']:.2f}",
    ]


def with_spread(measures, name, form):
    """The value and its floor as text, with standard deviations where there are any."""
    spread = measures.spread.get(name, (0, 0))
    values = zip((measures.metrics[name], measures.floors[name]), spread, strict=True)
    return [f"{value:{form}}" + (f" +- {std:{form}}" if any(spread) else "") for value, std in values]


if __name__ == "__main__":
    launch(main)
