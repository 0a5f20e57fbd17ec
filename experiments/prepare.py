"""Prepare a data set: your own pictures, arrays or examples, or one of TFDS by name.

    python -m experiments.prepare --name=pets --images=photos [--size=64 --fit=crop]
    python -m experiments.prepare --name=winds --arrays=winds.nc [--variables=u,v --split_by=time]
    python -m experiments.prepare --name=mine --module=mymodule:make
    python -m experiments.prepare --name=cifar10

--images is a folder of PNG, JPEG, WebP or TIFF files; subfolders are classes; NAME.txt or metadata.jsonl has captions.
--arrays is a .npz, .npy, .csv, .nc or .zarr file; --label, --condition, --mask, --group and --caption name the arrays
or columns for these. A condition is a vector (N, D) or a field (N, *space, C) with the spatial axes of x.
--module=MODULE:FUNCTION returns dicts with "x" and any of these. Before it writes the set, the command prints a summary
and draws a contact sheet NAME.png in the folder of the data sets. Afterwards config.dataset.name=NAME works in every
command.

A set of TFDS is downloaded (some sets need TensorFlow); the embedded sets are built from installed packages.
"""

import importlib
import math
import sys
from pathlib import Path

import numpy as np
from absl import flags

from experiments.data import prepared, sources
from experiments.data.array_files import array_file
from experiments.data.datasets import EMBEDDED, data_folder, prepare_embedded
from experiments.data.image_folder import image_folder
from experiments.data.pictures import save_picture
from experiments.run.command import launch, path_of, usage_errors
from experiments.run.workdir import check_writable

NAME = flags.DEFINE_string("name", None, "Name of the data set.", required=True)
DATA_DIR = flags.DEFINE_string("data_dir", "", "Folder of prepared data sets; TFDS's default if empty.")
IMAGES = flags.DEFINE_string("images", None, "A folder of pictures.")
ARRAYS = flags.DEFINE_string("arrays", None, "A file .npz, .npy, .csv, .nc or .zarr.")
MODULE = flags.DEFINE_string("module", None, "MODULE:FUNCTION that returns examples.")
SIZE = flags.DEFINE_integer("size", None, "For --images: height and width.")
FIT = flags.DEFINE_string("fit", "crop", "For --images: how to make a picture square: crop, random_crop or pad.")
GROUND = flags.DEFINE_string(
    "ground", "white", "For --images: the colour behind transparent pictures and around padded ones."
)
SKIP_BAD = flags.DEFINE_bool("skip_bad", False, "For --images: skip files that cannot be read.")
VARIABLES = flags.DEFINE_list("variables", [], "For --arrays: the arrays, columns or variables of x; all if empty.")
COLUMNS = {
    role: flags.DEFINE_string(role, None, f"For --arrays: the array or column for the {role}.")
    for role in ("label", "caption", "condition", "mask", "group")
}
KIND = flags.DEFINE_string("kind", None, "The kind of data. Default: by shape and type.")
SPLIT_BY = flags.DEFINE_string("split_by", None, "records, time or group. Default: time if there is a time axis.")
TEST = flags.DEFINE_float("test", 0.1, "Share of the test split.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the split and of random crops.")
MANY = 2000  # positions of an example; with more, a step of the network of `own` takes seconds on a CPU
SHOWN = 60  # examples on the contact sheet; points (d,) are drawn together, up to 2,000


def main(argv):
    """Open, show, write."""
    del argv
    # ---------------------------------------------------------------- open
    folder = data_folder(DATA_DIR.value)
    own = [flag for flag in (IMAGES, ARRAYS, MODULE) if flag.value is not None]
    with usage_errors():
        if len(own) > 1:
            raise ValueError(f"one of images, arrays and module must be used, got {' and '.join(f.name for f in own)}")
        check_writable(folder, "data_dir")
        if not own:
            return by_name(folder)
        source = opened()
        if KIND.value:
            source = source._replace(kind=KIND.value)
        by = SPLIT_BY.value or ("group" if source.groups is not None else "time" if source.ordered else "records")
        splits = sources.split(source, by=by, test=TEST.value, seed=SEED.value)
        prepared.check(NAME.value, source, folder)

    # ---------------------------------------------------------------- show: a summary and a contact sheet
    print(*source.report, sep="\n")
    print(f"kind {source.kind}, shape {source.shape}, {source.dtype}")
    for split, index in splits.items():
        print(f"{split} {len(index)} by {by}" + counts(source, index))
    with usage_errors():
        show(source, splits["train"], folder / f"{NAME.value}.png")

    # ---------------------------------------------------------------- write
    with usage_errors():
        try:
            path = prepared.write(NAME.value, source, splits, folder)
        except BaseException:
            (folder / f"{NAME.value}.png").unlink(missing_ok=True)
            raise
    print(f"{NAME.value} is prepared in {path}")
    own_flags = [f"--config.{key}={value}" for key, value in settings_for(source, len(splits["train"])).items()]
    print(f"next: python -m experiments.train --config=own {' '.join(own_flags)} --workdir=DIR")


def opened():
    """The source selected by the flags."""
    if IMAGES.value is not None:
        options = {"size": SIZE.value, "fit": FIT.value, "ground": GROUND.value, "skip_bad": SKIP_BAD.value}
        return image_folder(path_of("images", IMAGES.value), **options, seed=SEED.value)
    if ARRAYS.value is not None:
        columns = {role: flag.value or "" for role, flag in COLUMNS.items()}
        return array_file(path_of("arrays", ARRAYS.value), variables=VARIABLES.value, kind=KIND.value, **columns)
    module, _, function = MODULE.value.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"module must be MODULE:FUNCTION that can be imported, got {MODULE.value} ({error})"
        ) from error
    return sources.of_examples(make())


def show(source, rows, path):
    """Draw the contact sheet: examples of these rows, evenly spaced; a column for each class if there are few."""
    titles = source.classes if 1 < len(source.classes) <= 10 and len(source.shape) > 1 else ()
    if titles:
        labels = np.asarray([source.example(int(row))["label"] for row in rows])
        by_class = [rows[labels == label][: SHOWN // 10] for label in range(len(titles))]
        count = min(map(len, by_class))
        titles = titles if count else ()
        rows = np.stack([own[:count] for own in by_class], 1).reshape(-1) if count else rows
    count = min(2000 if len(source.shape) == 1 else SHOWN, len(rows))
    examples = [source.example(int(rows[i])) for i in np.linspace(0, len(rows) - 1, count).astype(int)]
    x = np.stack([example["x"] for example in examples])
    units = prepared.units(source, x)
    masks = np.stack([example["mask"] for example in examples]) if "mask" in source.features else None
    save_picture(path, units.normalise(x), units, len(titles) or 10, titles, masks)
    print(f"contact sheet: {path}")


def settings_for(source, num_train):
    """Settings of config that fit a data set: its name, and a network for its shape and conditions."""
    result = {"dataset.name": NAME.value}
    if DATA_DIR.value:
        result["dataset.data_dir"] = DATA_DIR.value
    if len(source.shape) == 1:
        result |= {"network.name": "mlp", "network.channels": 256}
    elif source.kind == "points":
        result |= {"network.name": "dit", "network.patch_size": 0, "network.positions": "none"}
    elif math.prod(source.shape[:-1]) > MANY:  # fewer channels on the first level, more levels
        result |= {"network.channels": 16, "network.channel_multipliers": "1,2,4,4", "network.attention_levels": 3}
    if not source.classes and "condition" not in source.features:
        result["network.conditional"] = False
    if "caption" in source.features:
        result |= {"text.enabled": True, "network.conditional": False}
    if num_train < 16:  # the batch of `own`
        result["dataset.batch_size"] = num_train
    return result


def counts(source, index):
    """The number of examples of each class, as text."""
    if not source.classes or len(source.classes) > 20:
        return f", {len(source.classes)} classes" if source.classes else ""
    labels = np.bincount([source.example(int(i))["label"] for i in index], minlength=len(source.classes))
    return ": " + ", ".join(f"{name} {count}" for name, count in zip(source.classes, labels, strict=True))


def by_name(folder):
    """Build an embedded set; download any other."""
    if NAME.value in EMBEDDED:
        prepare_embedded(NAME.value, folder)
    else:
        import tensorflow_datasets as tfds

        tfds.builder(NAME.value, data_dir=str(folder), file_format="array_record").download_and_prepare()
    print(f"{NAME.value} is prepared in {folder}")


if __name__ == "__main__":
    launch(main)
