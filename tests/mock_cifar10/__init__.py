"""A mock of TFDS's cifar10. TFDS requires that a builder is in a package."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


class Cifar10(tfds.core.GeneratorBasedBuilder):
    """Random pixels with the features of TFDS's cifar10, PNG-encoded as there."""

    VERSION = tfds.core.Version("3.0.2")

    def _info(self):
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(32, 32, 3)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            )
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(8), "test": self._generate_examples(4)}

    def _generate_examples(self, count):
        rng = np.random.default_rng(count)
        for i in range(count):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(file, "png")
            file.seek(0)
            yield i, {"id": str(i), "image": file, "label": i % 10}
