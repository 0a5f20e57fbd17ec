"""The settings of the runs of a sweep, by config.task.

train    a config of `experiments.train` with a group `evaluation`: train, draw samples, measure them
sample   draw samples from one checkpoint, measure them
oracle   sample a Gaussian mixture by its exact denoiser, compare with the exact flow map and distribution
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import default
from experiments.configs.settings import OPEN_GROUPS


def _evaluation() -> ConfigDict:
    """The settings of the measurement of samples."""
    evaluation = ConfigDict()
    evaluation.num = 400  # samples
    evaluation.batch_size = 200  # drawn at a time
    evaluation.calls = ()  # of runs that train: denoiser calls at which to measure; (): config.sampling.num_steps
    evaluation.metrics = ("fd", "accuracy")  # names of evaluation.measures, or of the sweep file's get_metrics()
    evaluation.extractor = "classifier"
    evaluation.inception_weights = ""  # weights file of inception_v3
    evaluation.reference = "test"  # the real images to compare samples with, test or train; the floor uses the others
    evaluation.allow_few = False  # whether fd may use fewer images than features
    evaluation.classifier_steps = 1500
    evaluation.seed = 0  # of the classifier and of random choices; samples use config.seed
    return evaluation


def as_fid(config: ConfigDict) -> ConfigDict:
    """The settings of published FIDs: 50,000 samples against the training images in Inception's features."""
    config.evaluation.num = 50_000
    config.evaluation.batch_size = 500
    config.evaluation.extractor = "inception_v3"
    config.evaluation.reference = "train"
    config.evaluation.metrics = ("fd",)
    return config


def training(experiment: ConfigDict) -> ConfigDict:
    """A config of `experiments.train` as the base of a sweep."""
    config = ConfigDict(experiment.to_dict())
    config.task = "train"
    config.evaluation = _evaluation()
    return config


def sampling() -> ConfigDict:
    """The base of a sweep that draws from a checkpoint."""
    config = ConfigDict({"task": "sample", "seed": 0})
    config.checkpoint = ""  # a run's workdir, or an export
    config.calls = 20  # denoiser calls of a sample; they determine the length of the grid
    config.sampling = default.get_config().sampling
    del config.sampling.num_steps
    config.evaluation = _evaluation()
    return config


def oracle() -> ConfigDict:
    """The base of a sweep that samples a mixture by its exact denoiser, in float64."""
    config = ConfigDict({"task": "oracle", "seed": 0})
    config.schedule = "linear"  # this and the next four: names and values of `experiments.benchmarks.problems`
    config.dimension = 2
    config.examples = 256
    config.grid = "log_snr"
    config.end = 0.01  # sigma / alpha of the last grid entry
    config.calls = 20
    config.sampler = "ddim"
    config.eta = None  # the sampler's default
    return config


KNOWN = {"train": lambda: training(default.get_config()), "sample": sampling, "oracle": oracle}
COUNTS = ("num_steps", "units", "num_bins", "history", "first", "last", "stages", "num_levels")  # ints in open groups


def make_floats(group: Any, is_open: bool = False) -> None:
    """Convert ints in open groups to floats, so that equal values give equal ids and all values can be traced."""
    for name, value in group.items():
        if isinstance(value, ConfigDict):
            make_floats(value, name in OPEN_GROUPS)
        elif is_open and isinstance(value, int) and not isinstance(value, bool) and name not in COUNTS:
            with group.ignore_type():
                group[name] = float(value)
