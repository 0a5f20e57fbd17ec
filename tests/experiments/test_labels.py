"""A data set restricted to some labels: its records, their numbers, batches, and errors."""

import numpy as np
import pytest
from commands import built

from experiments.configs import smoke
from experiments.data.datasets import open_dataset
from experiments.data.pipeline import batches, records_of_batch


@pytest.fixture(scope="module")
def both(data_dir):
    """(all digits, only the digits 3 and 8)."""
    return open_dataset("digits", str(data_dir)), open_dataset("digits", str(data_dir), (8, 3))


def test_the_records_with_the_labels_keep_their_order(both):
    whole, some = both
    (images, labels), (chosen, chosen_labels) = whole.arrays("train[:300]"), some.arrays("train[:300]")
    wanted = np.isin(labels, [3, 8])
    assert 30 < wanted.sum() < 90
    np.testing.assert_array_equal(chosen_labels, labels[wanted])
    np.testing.assert_array_equal(chosen, images[wanted])
    assert list(some.source("train[:300]").numbers) == np.flatnonzero(wanted).tolist()
    assert list(whole.source("train[:300]").numbers) == list(range(300))
    assert len(some.source("train[:300]")) == wanted.sum()
    assert some.num_classes == 10  # labels keep their values


@pytest.mark.parametrize("cache", [False, True])
def test_an_epoch_has_each_record_once_and_the_numbers_of_the_whole_split(both, cache):
    whole, some = both
    count, (_, labels) = len(some.source("train")), whole.arrays("train")
    size = count // 4
    stream, seen = batches(some, "train", size, seed=5, cache=cache), []
    raw = whole.source("train")
    for number in range(3):
        batch = next(stream)
        records = records_of_batch(some, "train", size, 5, number)
        assert batch["label"].tolist() == labels[records].tolist()
        expected = np.stack([whole.normalise(raw[record]["x"]) for record in records])
        np.testing.assert_array_equal(batch["x"], expected)
        seen += records
    assert len(set(seen)) == len(seen)


def test_an_error_names_the_number_of_the_record_in_the_whole_split(both):
    """The third of four records with label 3 is number 5 of the split, and cannot be read a second time."""
    labels = [0, 3, 1, 3, 0, 3, 3]

    class Source(list):
        reads = 0

        def __getitem__(self, place):
            record = super().__getitem__(place)
            self.reads += 1
            if place == 5 and self.reads > len(self):
                raise OSError("checksum mismatch")
            return record

    source = Source({"image": np.zeros((8, 8, 1), np.uint8), "label": label} for label in labels)

    class Builder:
        def as_data_source(self, split):
            return source

    dataset = both[1]._replace(builder=Builder(), labels=(3,))
    stream = batches(dataset, "train", 4, seed=0)
    with pytest.raises(ValueError, match="record 5 of split 'train' of digits cannot be read: OSError: checksum"):
        next(stream)
    with pytest.raises(ValueError, match="record 5 of split 'train' of digits cannot be read: OSError: checksum"):
        dataset.source("train")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: open_dataset("digits", d, (3, 10)), r"dataset.labels of 'digits' must be in \[0, 9\], got 10"),
        (lambda d: open_dataset("digits", d, (-1,)), r"dataset.labels of 'digits' must be in \[0, 9\], got -1"),
        (
            lambda d: open_dataset("digits", d, (9,)).source("train[:2]"),
            r"split 'train\[:2\]' of dataset 'digits' has no records with labels \(9,\)",
        ),
        (
            lambda d: batches(open_dataset("digits", d, (9,)), "train[:100]", 64, seed=0),
            r"dataset.batch_size must be at most the \d+ examples of split 'train\[:100\]', got 64",
        ),
    ],
)
def test_bad_input(make, message, data_dir):
    with pytest.raises(ValueError, match=message):
        make(str(data_dir))


def test_the_setting_is_a_tuple_of_ints():
    config = smoke.get_config()
    config.dataset.labels = (8, 9)
    built(config)
    config.dataset.labels = ("8",)
    with pytest.raises(ValueError, match=r"config.dataset.labels must be of type tuple, got \('8',\)"):
        built(config)
