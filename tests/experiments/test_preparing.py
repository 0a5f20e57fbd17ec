"""Data sets from files of a user: pictures, arrays, tables and functions; splits, written sets and statistics."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from diffax.pretrained import Units
from experiments.data import kinds, prepared, sources
from experiments.data.array_files import array_file
from experiments.data.image_folder import image_folder
from experiments.data.picture_files import fit_picture, load_picture, open_picture
from experiments.model import Data

RED = (255, 0, 0)


def picture(path, size=(20, 10), colour=RED, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


# ---------------------------------------------------------------- pictures


def test_16_bit_and_float_pictures_keep_their_brightness(tmp_path):
    Image.fromarray(np.full((4, 4), 32768, np.uint16)).save(tmp_path / "a.png")
    Image.fromarray(np.full((4, 4), 32768, np.uint16)).save(tmp_path / "a.tif")
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "b.tiff")
    for name in ("a.png", "a.tif", "b.tiff"):
        np.testing.assert_array_equal(np.asarray(open_picture(tmp_path / name)), 128)


def test_float_pictures_outside_0_to_1_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 7.5, np.float32)).save(tmp_path / "b.tiff")
    with pytest.raises(ValueError, match=r"b.tiff must have float values in \[0, 1\], got \[7.5, 7.5\]"):
        open_picture(tmp_path / "b.tiff")


def test_the_orientation_in_exif_is_applied(tmp_path):
    pixels = np.zeros((10, 20, 3), np.uint8)
    pixels[:, :10] = RED
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate the picture by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    shown = np.asarray(open_picture(tmp_path / "a.png"))
    assert shown.shape == (20, 10, 3)
    assert (shown[:10] == RED).all()


@pytest.mark.parametrize(("ground", "value"), [("white", 255), ("#404040", 64)])
def test_transparent_pixels_have_the_colour_of_the_ground(tmp_path, ground, value):
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[..., 0] = 200  # a red that alpha 0 hides
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert (np.asarray(open_picture(tmp_path / "a.png", ground)) == value).all()


def test_a_circle_stays_a_circle():
    y, x = np.mgrid[:60, :100]
    circle = Image.fromarray(np.uint8(255 * ((x - 50) ** 2 + (y - 30) ** 2 < 20**2)))
    for fit, radius in (("crop", 20 * 30 / 60), ("pad", 20 * 30 / 100)):
        inside = fit_picture(circle, (30, 30), 1, fit=fit, ground="black")[..., 0] > 127
        assert abs(inside.any(0).sum() - 2 * radius) <= 1
        assert abs(inside.any(1).sum() - 2 * radius) <= 1


def test_random_crops_depend_only_on_the_seed():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 40), np.uint8))
    crops = [fit_picture(noise, (8, 8), 1, fit="random_crop", rng=np.random.default_rng(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(crops[0], crops[1])
    assert (crops[0] != crops[2]).any()


def test_init_image_is_cropped_not_squashed(tmp_path):
    path = picture(tmp_path / "a.png", (40, 20))
    data = Data((8, 8, 3), None, Units(range=(0.0, 16.0)))
    assert load_picture(path, data).max() == 16
    assert load_picture(path, data).shape == (8, 8, 3)
    with pytest.raises(ValueError, match=r"init_image must be a picture file, got .*b.png cannot be read"):
        load_picture(tmp_path / "b.png", data)


# ---------------------------------------------------------------- folders of pictures


def test_a_folder_with_classes(tmp_path):
    for name in ("dog/1.png", "dog/2.jpg", "cat/a.webp"):
        picture(tmp_path / name, (30, 20))
    (tmp_path / "dog" / "notes.md").write_text("no picture")
    picture(tmp_path / ".hidden" / "1.png")
    source = image_folder(tmp_path, size=8)
    assert (source.length, source.shape, source.dtype, source.classes) == (3, (8, 8, 3), "uint8", ("cat", "dog"))
    assert [source.example(i)["label"] for i in range(3)] == [0, 1, 1]
    assert source.example(0)["x"].shape == (8, 8, 3)


def test_grey_pictures_have_one_channel(tmp_path):
    Image.new("L", (8, 8), 30).save(tmp_path / "a.png")
    assert image_folder(tmp_path).shape == (8, 8, 1)


@pytest.mark.parametrize("form", ["txt", "jsonl"])
def test_captions_come_from_text_files_or_metadata(tmp_path, form):
    for name in ("a", "b"):
        picture(tmp_path / f"{name}.png")
        if form == "txt":
            (tmp_path / f"{name}.txt").write_text(f"picture {name}\n")
    if form == "jsonl":
        rows = [{"file_name": f"{name}.png", "text": f"picture {name}"} for name in ("a", "b")]
        (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [image_folder(tmp_path).example(i)["caption"] for i in range(2)] == ["picture a", "picture b"]


def bad_folder(folder, fault):
    folder.mkdir(exist_ok=True)
    if fault == "empty":
        (folder / "a.md").write_text("")
        return
    for number in range(4):
        picture(folder / f"{'dog/' if fault == 'class' else ''}{number}.png")
    if fault == "broken":
        (folder / "5.png").write_bytes((folder / "0.png").read_bytes()[:40])
    if fault == "sizes":
        picture(folder / "5.png", (7, 7))
    if fault == "class":
        (folder / "cat").mkdir()
    if fault == "mixed":
        picture(folder / "dog" / "5.png")
    if fault == "captions":
        (folder / "1.txt").write_text("one")
    if fault == "metadata":
        (folder / "metadata.jsonl").write_text('{"file": "0.png"}')


FOLDER_FAULTS = {
    "empty": r"images must be a folder with pictures \(.png .*\), got .* with 1 other files",
    "broken": r"1 of 5 files cannot be read: .*5.png .*--skip_bad leaves them out",
    "sizes": r"size must be given for pictures of 2 sizes \(20 x 10, 7 x 7 ...\): --size=64",
    "class": r"each class must have a picture, got none in cat",
    "mixed": r"images must all be in subfolders of classes or none, got 4 of 5 beside them",
    "captions": r"captions must exist for all pictures or for none, got 3 of 4 without, such as 0.png",
    "metadata": r"line 1 of .*metadata.jsonl must be JSON with file_name and text or caption or prompt",
}


@pytest.mark.parametrize("fault", FOLDER_FAULTS)
def test_a_folder_that_cannot_be_a_data_set_is_refused(tmp_path, fault):
    bad_folder(tmp_path, fault)
    with pytest.raises(ValueError, match=FOLDER_FAULTS[fault]):
        image_folder(tmp_path)


def test_bad_files_are_left_out_only_on_request(tmp_path):
    bad_folder(tmp_path, "broken")
    source = image_folder(tmp_path, skip_bad=True)
    assert source.length == 4
    assert "5.png" in " ".join(source.report)


# ---------------------------------------------------------------- arrays


def saved(path, x, **columns):
    """Write an array and columns to a file in the format of its suffix, and return the path."""
    if path.suffix == ".npy":
        np.save(path, x)
    elif path.suffix == ".npz":
        np.savez(path, x=x, **columns)
    elif path.suffix == ".csv":
        import pandas as pd

        pd.DataFrame({**{f"c{i}": column for i, column in enumerate(x.T)}, **columns}).to_csv(path, index=False)
    else:
        import xarray

        axes = ("time", "lat", "lon")
        data = xarray.Dataset({f"v{i}": (axes, x[..., i], {"units": "K"}) for i in range(x.shape[-1])})
        data.to_netcdf(path, engine="netcdf4") if path.suffix == ".nc" else data.to_zarr(path)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".csv", ".nc", ".zarr"])
def test_the_values_of_a_file_are_the_examples(tmp_path, suffix):
    shape = (6, 2) if suffix == ".csv" else (6, 4, 3, 2)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    source = array_file(saved(tmp_path / f"data{suffix}", x))
    np.testing.assert_allclose(np.stack([source.example(i)["x"] for i in range(6)]), x, rtol=1e-6)
    assert source.kind == ("points" if suffix == ".csv" else "field")
    assert source.ordered == (suffix in (".nc", ".zarr"))
    if suffix in (".nc", ".zarr"):
        assert (source.channels, source.units) == (("v0", "v1"), ("K", "K"))


@pytest.mark.parametrize(("labels", "classes"), [([3, 7, 7], ("3", "7")), (["b", "a", "b"], ("a", "b"))])
def test_labels_may_be_any_ints_or_strings(tmp_path, labels, classes):
    path = saved(tmp_path / "a.npz", np.zeros((3, 5)), kind_of=np.asarray(labels))
    source = array_file(path, label="kind_of")
    assert source.classes == classes
    assert [source.classes[source.example(i)["label"]] for i in range(3)] == [str(label) for label in labels]


def test_conditions_and_masks_are_read_with_the_array(tmp_path):
    mask = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1]])
    source = array_file(saved(tmp_path / "a.npz", np.ones((3, 3, 2)), condition=np.eye(3), mask=mask))
    example = source.example(1)
    assert (example["condition"].tolist(), example["mask"].tolist()) == ([0, 1, 0], [True, False, False])
    assert source.shapes == {"condition": (3,), "mask": (3,)}
    assert source.kind == "points"


def nan_at(*place):
    x = np.zeros((5, 4, 3))
    x[place] = np.nan
    return x


@pytest.mark.parametrize(
    ("x", "columns", "message"),
    [
        (nan_at(3, 1, 2), {}, r"x must be finite, got nan in example 3 at \(1, 2\), and values .* in 1 of 5 examples"),
        (np.full((2, 2), 1e300), {}, r"x must be finite, got 1e\+300 in example 0"),
        (np.zeros(4), {}, r"x must have shape \(N, ...\) with N >= 2 examples, got \(4,\)"),
        (np.zeros((2,) + (1,) * 6), {}, r"x must have examples of rank 1 to 5, got shape \(1, 1, 1, 1, 1, 1\)"),
        (np.array([["a"], ["b"]]), {}, r"x must be an array of numbers, got <U1"),
        (np.full((2, 2), 2**40), {}, r"x must fit into int32"),
        (np.zeros((3, 2)), {"label": np.zeros(2, int)}, r"label must have 3 entries, as x has, got 2"),
        (np.zeros((3, 2)), {"label": np.zeros(3)}, r"label must be one int or string for each example, got float64"),
        (np.zeros((3, 4, 2)), {"mask": np.ones((3, 3))}, r"mask must have the shape of the leading axes of x"),
    ],
)
def test_arrays_that_cannot_be_a_data_set_are_refused(x, columns, message):
    with pytest.raises(ValueError, match=message):
        sources.of_arrays(x, columns)


def test_names_that_a_file_lacks_are_refused(tmp_path):
    path = saved(tmp_path / "a.npz", np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"a.npz must have 'kind_of', got x"):
        array_file(path, label="kind_of")
    for name, message in (("a.txt", "must be a file .npz"), ("b.npz", "must be an existing file")):
        with pytest.raises(ValueError, match=f"arrays {message}|arrays must be a file, got .*{message}"):
            array_file(tmp_path / name)
    (tmp_path / "c.npz").write_bytes(b"PK broken")
    with pytest.raises(ValueError, match=r"c.npz"):
        array_file(tmp_path / "c.npz")


def test_a_codec_that_would_run_code_is_refused(tmp_path):
    """Zarr's codec `pickle` runs code of the file when it decodes. An earlier codec hides it from the check of Zarr."""
    store, trace = saved(tmp_path / "a.zarr", np.zeros((3, 2, 2, 1), np.float32)), tmp_path / "trace"
    variable = store / "v0"
    shutil.rmtree(variable)
    variable.mkdir()
    filters = [{"id": "vlen-utf8"}, {"id": "pickle", "protocol": 4}]
    layout = {"zarr_format": 2, "shape": [2, 2], "chunks": [2, 2], "order": "C", "fill_value": None}
    (variable / ".zarray").write_text(json.dumps({**layout, "dtype": "|O", "compressor": None, "filters": filters}))
    (variable / ".zattrs").write_text(json.dumps({"_ARRAY_DIMENSIONS": ["time", "lat"]}))
    (variable / "0.0").write_bytes(b"cbuiltins\nopen\n(V%b\nVw\ntR." % str(trace).encode())
    for name in ("zarr.json", ".zmetadata"):
        (store / name).unlink(missing_ok=True)
    (store / ".zgroup").write_text('{"zarr_format": 2}')
    with pytest.raises(ValueError, match=r"must be a readable file, got .*a.zarr \(Pickle.decode is disabled"):
        array_file(store, variables=["v0"])
    assert not trace.exists()


def test_examples_of_a_function_must_have_one_shape_and_dtype():
    with pytest.raises(ValueError, match=r"examples must have one shape, got \(2,\) and, example 1, \(3,\)"):
        sources.of_examples([{"x": np.zeros(2)}, {"x": np.zeros(3)}])
    with pytest.raises(ValueError, match="example 1 must be a dict with x and the keys of the first example"):
        sources.of_examples([{"x": np.zeros(2)}, {"x": np.zeros(2), "label": 1}])
    with pytest.raises(ValueError, match="module must return at least one example, got none"):
        sources.of_examples([])


# ---------------------------------------------------------------- splits


def grouped(count=40, **columns):
    return sources.of_arrays(np.arange(float(count)).reshape(-1, 1), columns)


def test_splits_by_records_time_and_group():
    groups = np.arange(40) // 4
    for by, source in (("records", grouped()), ("time", grouped()), ("group", grouped(group=groups))):
        parts = sources.split(source, by=by, test=0.25)
        assert sorted(np.concatenate(list(parts.values()))) == list(range(40))
        assert len(parts["test"]) in (8, 10)
        if by == "time":
            assert parts["test"].tolist() == list(range(30, 40))
        if by == "group":
            assert not set(groups[parts["test"]]) & set(groups[parts["train"]])


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (grouped(group=np.arange(40) % 2), {}, r"a group must be in one split, got .* in both: use --split_by=group"),
        (grouped(split=["test"] * 20 + ["tset"] * 20), {}, "split must be train or test, got 'tset'"),
        (grouped(split=["test"] * 40), {}, "each split must have examples, got 40 of 40 in test"),
        (grouped(), {"by": "group"}, "split_by must be records or time without groups, got 'group'"),
        (grouped(), {"by": "day"}, "split_by must be records, time or group, got 'day'"),
        (grouped(), {"test": 1.5}, r"test must be in \(0, 1\), got 1.5"),
    ],
)
def test_splits_that_leak_or_are_empty_are_refused(source, options, message):
    source = source._replace(splits=None if source.splits is None else list(source.splits))
    with pytest.raises(ValueError, match=message):
        sources.split(source, **options)


# ---------------------------------------------------------------- written sets


def test_statistics_equal_those_of_numpy_for_a_large_offset():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(1000, 500, 2)) * [1.0, 30.0] + [1e5, -3.0]).astype(np.float32)
    statistics = prepared.Statistics()
    for example in x:
        statistics.add(example)
    whole = x.reshape(-1, 2).astype(np.float64)
    np.testing.assert_allclose(statistics.mean, whole.mean(0), rtol=1e-12)
    np.testing.assert_allclose(statistics.std, whole.std(0), rtol=1e-9)


def test_statistics_ignore_entries_outside_the_mask():
    statistics, x = prepared.Statistics(), np.arange(12.0).reshape(6, 2)
    statistics.add(x, np.array([1, 1, 1, 0, 0, 0], bool))
    np.testing.assert_allclose(statistics.mean, x[:3].mean(0))
    assert (prepared.Statistics().std == 1).all()


def test_sets_of_points_have_one_scale_and_tables_have_one_for_each_column():
    x = np.random.default_rng(0).normal(size=(50, 6, 2)) * [1.0, 7.0]
    sets, table = (sources.of_arrays(value, {}, kind="points") for value in (x, x[:, 0]))
    std = prepared.units(sets, x).std
    np.testing.assert_allclose(std, np.sqrt(np.mean(x.reshape(-1, 2).std(0) ** 2)))
    np.testing.assert_allclose(prepared.units(table, x[:, 0]).std, x[:, 0].std(0))


def test_nothing_is_written_for_a_name_that_exists_or_a_kind_that_does_not_fit(tmp_path):
    source = grouped()
    parts = sources.split(source)
    for name, own, message in (
        ("My set", source, "name must be a word in lower case such as my_photos, got 'My set'"),
        ("taken", source, "name must be new, got 'taken', which is in"),
        ("digits", source, r"name must not be that of an embedded set \(digits, emoji, mnist5k\), got 'digits'"),
        ("new", source._replace(kind="image"), "kind must fit the data: 'image' takes examples with 3 axes"),
        ("new", source._replace(kind="sound"), "kind must be one of field, image, points, got 'sound'"),
    ):
        (tmp_path / "taken" / "2.0.0").mkdir(parents=True, exist_ok=True)
        with pytest.raises(ValueError, match=message):
            prepared.write(name, own, parts, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_failed_write_leaves_no_files(tmp_path):
    def fail(index):
        raise OSError(28, "No space left on device")

    source = grouped()
    with pytest.raises(OSError, match="No space left"):
        prepared.write("full", source._replace(example=fail), sources.split(source), tmp_path)
    assert not list(tmp_path.rglob("*.array_record*"))
    assert not (tmp_path / "full").exists()


def test_an_incomplete_folder_of_a_killed_run_does_not_block_the_name(tmp_path):
    (tmp_path / "again" / "1.0.0.incomplete.1234").mkdir(parents=True)
    prepared.check("again", grouped(), tmp_path)


def test_entries_outside_the_mask_are_replaced_by_zero():
    x, mask = np.ones((4, 3, 2), np.float32), np.ones((4, 3), bool)
    x[1, 2], mask[1, 2] = np.nan, False
    source = sources.of_arrays(x, {"mask": mask})
    np.testing.assert_array_equal(source.example(1)["x"][2], 0)
    with pytest.raises(ValueError, match="x must be finite, got nan in example 1"):
        sources.of_arrays(x, {"mask": ~mask})


def test_every_module_of_kinds_has_the_functions_of_a_kind():
    assert {"field", "image", "points"} <= {*kinds.names()}
    for name in kinds.names():
        kind = kinds.of(name)
        assert all(callable(getattr(kind, part)) for part in ("normalise", "denormalise", "save", "picture"))
