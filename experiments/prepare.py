"""Prepare a TFDS data set in the array_record format, which is read without TensorFlow.

    python -m experiments.prepare --name=cifar10 [--data_dir=DIR]

The embedded sets are built from installed packages. Other sets are downloaded; some of them need TensorFlow.
"""

import tensorflow_datasets as tfds
from absl import flags

from experiments.data.datasets import EMBEDDED, data_folder, prepare_embedded
from experiments.run.command import launch, usage_errors
from experiments.run.workdir import check_writable

NAME = flags.DEFINE_string("name", None, "Name of the data set.", required=True)
DATA_DIR = flags.DEFINE_string("data_dir", "", "Folder of prepared data sets; TFDS's own if empty.")


def main(argv):
    """Check the folder, prepare."""
    del argv
    name, folder = NAME.value, data_folder(DATA_DIR.value)
    # ---------------------------------------------------------------- check the folder
    with usage_errors():
        check_writable(folder, "data_dir")

        # ------------------------------------------------------------ prepare: build an embedded set, download others
        if name in EMBEDDED:
            prepare_embedded(name, folder)
        else:
            tfds.builder(name, data_dir=str(folder), file_format="array_record").download_and_prepare()
    print(f"{name} is prepared in {folder}")


if __name__ == "__main__":
    launch(main)
