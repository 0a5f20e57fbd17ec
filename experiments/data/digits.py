"""`digits`: 1,797 handwritten digits of 8x8 pixels with values 0 to 16, which scikit-learn ships (UCI, BSD-3)."""

import numpy as np
import tensorflow_datasets as tfds

NUM_TRAIN = 997


class Digits(tfds.core.GeneratorBasedBuilder):
    """997 digits to train on and 800 to test with, in an order shuffled once and for all."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return self.dataset_info_from_configs(
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            metadata=tfds.core.MetadataDict({"range": [0, 16]}),
        )

    def _split_generators(self, dl_manager):
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(labels))
        images, labels = images.reshape(-1, 8, 8, 1)[order].astype(np.uint8), labels[order]
        return {
            "train": self._generate_examples(images[:NUM_TRAIN], labels[:NUM_TRAIN]),
            "test": self._generate_examples(images[NUM_TRAIN:], labels[NUM_TRAIN:]),
        }

    def _generate_examples(self, images, labels):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"image": image, "label": int(label)}
