"""Prepares a TFDS data set in the array_record format, which is read without TensorFlow.

    python -m experiments.data.prepare --name=cifar10 [--data_dir=DIR]

Other sets than the embedded ones are downloaded, and some of them need TensorFlow to be prepared.
"""

from absl import flags

from experiments.data.datasets import EMBEDDED, data_folder, prepare_embedded
from experiments.run.workdir import check_writable, launch, usage_errors

NAME = flags.DEFINE_string("name", None, "Name of the data set.", required=True)
DATA_DIR = flags.DEFINE_string("data_dir", "", "Folder of prepared data sets; TFDS's own if empty.")


def main(argv):
    """Prepares the data set."""
    del argv
    folder = data_folder(DATA_DIR.value)
    with usage_errors():
        check_writable(folder, "data_dir")
        prepare(folder)
    print(f"{NAME.value} is prepared in {folder}")


def prepare(folder):
    """Builds an embedded set, downloads any other."""
    if NAME.value in EMBEDDED:
        prepare_embedded(NAME.value, folder)
    else:
        import tensorflow_datasets as tfds

        tfds.builder(NAME.value, data_dir=str(folder), file_format="array_record").download_and_prepare()


if __name__ == "__main__":
    launch(main)
