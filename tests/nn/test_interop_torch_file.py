"""Weight files saved by torch, and refused files that would run code."""

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from diffax.nn.interop.torch_file import load_tensors

FOLDER = Path(__file__).parent / "interop"


@pytest.mark.parametrize("name", ["torch_archive.pth", "torch_sequence.pth"])
def test_tensors_with_strides_offsets_and_a_shared_storage(name):
    result, expected = load_tensors(FOLDER / name), load_tensors(FOLDER / "torch_tensors.npz")
    assert list(result) == list(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(result[key], value)
        assert result[key].dtype == value.dtype
    assert not np.shares_memory(result["plain"], result["turned"])


class Code:
    def __reduce__(self):
        return os.mkdir, ("was_run",)


def archive(path, body):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", body)
        file.writestr("archive/data/0", np.arange(6, dtype=np.float32).tobytes())
    return path


def sequence(path, body):
    info = {"little_endian": True}
    path.write_bytes(b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, info)) + body)
    return path


@pytest.mark.parametrize("write", [archive, sequence])
def test_code_is_refused_by_name_and_not_run(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "bad.pth", pickle.dumps({"w": Code()}, 2))
    with pytest.raises(ValueError, match=r"it names posix\.mkdir, which is refused"):
        load_tensors(path)
    assert not Path("was_run").exists()
    for value in (np.float64, io.StringIO, getattr):
        with pytest.raises(ValueError, match=r"it names .*, which is refused"):
            load_tensors(write(path, pickle.dumps({"w": value}, 2)))


def tensor(sizes, strides, offset=0, length=6, dtype="FloatStorage", kind="storage"):
    """A handwritten pickle of {"w": tensor}."""
    text = lambda s: b"X" + struct.pack("<I", len(s)) + s.encode()
    numbers = lambda values: b"(" + b"".join(b"I%d\n" % v for v in values) + b"t"
    storage = b"(" + text(kind) + b"ctorch\n" + dtype.encode() + b"\n" + text("0") + text("cpu") + b"I%d\nt" % length
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"QI%d\n" % offset
    return b"\x80\x02}" + text("w") + call + numbers(sizes) + numbers(strides) + b"\x89}tRs."


def test_a_tensor_is_a_part_of_its_storage(tmp_path):
    path = tmp_path / "w.pth"
    np.testing.assert_array_equal(load_tensors(archive(path, tensor((2, 2), (1, 3), 1)))["w"], [[1, 4], [2, 5]])
    for bad, message in (
        (tensor((2, 2), (1, 3), 2), "w must be a part of its storage of 6 numbers, got one up to 6"),
        (tensor((2,), (-1,), 3), r"w must be a part of its storage, got sizes \(2,\) and strides \(-1,\)"),
        (tensor((10**9,), (0,)), r"w must be a part of its storage, got sizes \(1000000000,\)"),
        (tensor((2,), (1, 1)), "w must be a part of its storage"),
        (tensor((2,), (1,), length=7), "storage 0 must have 28 bytes, got 24"),
        (tensor((2,), (1,), dtype="QInt8Storage"), r"it names torch\.QInt8Storage, which is refused"),
        (tensor((2,), (1,), kind="other"), "it has a storage of another kind"),
        (pickle.dumps({"w": 3}, 2), "it must hold tensors by name, got a int at 'w'"),
        (pickle.dumps([1], 2), "it must hold a dict of tensors, got a list"),
    ):
        with pytest.raises(ValueError, match=message):
            load_tensors(archive(path, bad))


@pytest.mark.parametrize("name", ["torch_archive.pth", "torch_sequence.pth", "torch_tensors.npz"])
def test_damaged_files_raise_value_error(name, tmp_path):
    whole = (FOLDER / name).read_bytes()
    path = tmp_path / name
    for end in (0, 3, 40, len(whole) // 2, len(whole) - 9):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"weights must be a file of tensors, got .*torch_"):
            load_tensors(path)
    with pytest.raises(ValueError, match="which is not there"):
        load_tensors(tmp_path / "none.pth")
