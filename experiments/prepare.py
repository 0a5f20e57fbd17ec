"""Prepare a TFDS data set in the array_record format, which is read without TensorFlow.

    python -m experiments.prepare --name=cifar10 [--data_dir=DIR]

The embedded sets are built from installed packages. Other sets are downloaded; some of them need TensorFlow.
"""

from absl import flags

from experiments.data.datasets import EMBEDDED, data_folder, prepare_embedded
from experiments.run.command import launch, usage_errors
from experiments.run.workdir import check_writable

NAME = flags.DEFINE_string("name", None, "Name of the data set.", required=True)
DATA_DIR = flags.DEFINE_string("data_dir", "", "Folder of prepared data sets; TFDS's own if empty.")


def main(argv):
    """Check the folder, prepare."""
    del argv
    folder = data_folder(DATA_DIR.value)
    with usage_errors():
        check_writable(folder, "data_dir")
        prepare(folder)
    print(f"{NAME.value} is prepared in {folder}")


def prepare(folder):
    """Build an embedded set; download any other."""
    if NAME.value in EMBEDDED:
        prepare_embedded(NAME.value, folder)
    else:
        import tensorflow_datasets as tfds

        tfds.builder(NAME.value, data_dir=str(folder), file_format="array_record").download_and_prepare()


if __name__ == "__main__":
    launch(main)
