"""The tensors of a file of weights, without running any code of it: what torch saves, safetensors, npz.

What `torch.save` writes is a pickle that names functions to call, and the numbers beside it, in a zip archive (since
torch 1.6) or one after another. Here only dicts and tensors of numbers are made of it: a tensor is (storage, offset,
sizes, strides), and a pickle that names anything else is refused before that is looked up.
"""

import collections
import io
import math
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffax.nn.interop import weights

# Names of dtypes, not dtypes: a string is nothing that a pickle could change.
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the format before the archive


class _Tensor(NamedTuple):
    """A part of a storage; strides in numbers, not bytes."""

    storage: Any
    offset: Any
    sizes: Any
    strides: Any


class _Storage(NamedTuple):
    key: str
    dtype: str
    length: int


def load_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a file by their names: .safetensors and .npz by the ending, else what `torch.save` wrote.

    Raises:
      ValueError: if it is none of these, is damaged, is no dict of tensors, or names a global other than those that a
        dict of tensors needs; names it.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return weights.load_file(path)
    if not path.is_file():
        raise ValueError(f"weights must be a file, got {path}, which is not there")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        return _of_archive(path) if zipfile.is_zipfile(path) else _of_sequence(path)
    except Exception as error:  # whatever a damaged pickle makes pickle raise
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"weights must be a file of tensors, got {path} ({reason})") from error


class _Unpickler(pickle.Unpickler):
    """Makes dicts, numbers, strings and `_Tensor`s; nothing is imported."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            # A new function each time: a pickle may set attributes of what it is given.
            return lambda storage, offset, sizes, strides, *rest: _Tensor(storage, offset, sizes, strides)
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise ValueError(f"it names {module}.{name}, which is refused")

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, key, _, count, *view = pid
        if kind != "storage" or dtype not in STORAGES.values() or any(part is not None for part in view):
            raise ValueError(f"it has a storage of another kind: {str(pid)[:100]}")
        return _Storage(str(key), dtype, int(count))


def _load(file: io.BytesIO) -> Any:
    return _Unpickler(file, encoding="utf-8").load()


def _of_archive(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        names = {name.partition("/")[2]: name for name in archive.namelist()}
        if "byteorder" in names and archive.read(names["byteorder"]) != b"little":
            raise ValueError("its numbers are big-endian")
        if "data.pkl" not in names:
            raise ValueError("it is an archive without data.pkl")
        value = _load(io.BytesIO(archive.read(names["data.pkl"])))
        read = {}
        for storage in {tensor.storage for tensor in _check(value).values()}:
            name = names[f"data/{storage.key}"]
            _check_size(storage, archive.getinfo(name).file_size)
            read[storage] = np.frombuffer(archive.read(name), storage.dtype)
    return {name: _numbers(name, tensor, read[tensor.storage]) for name, tensor in value.items()}


def _of_sequence(path: Path) -> dict[str, np.ndarray]:
    file = io.BytesIO(path.read_bytes())
    if _load(file) != MAGIC or _load(file) != PROTOCOL:
        raise ValueError("it is nothing that torch wrote")
    if not _load(file)["little_endian"]:
        raise ValueError("its numbers are big-endian")
    value = _load(file)
    storages = {tensor.storage.key: tensor.storage for tensor in _check(value).values()}
    read = {}
    for key in _load(file):
        (count,) = struct.unpack("<q", file.read(8))
        storage = storages[key]
        if count != storage.length:
            raise ValueError(f"storage {key} must have {storage.length} numbers, got {count}")
        data = file.read(count * np.dtype(storage.dtype).itemsize)
        _check_size(storage, len(data))
        read[storage] = np.frombuffer(data, storage.dtype)
    return {name: _numbers(name, tensor, read[tensor.storage]) for name, tensor in value.items()}


def _check(value: Any) -> dict[str, _Tensor]:
    if not isinstance(value, dict):
        raise ValueError(f"it must hold a dict of tensors, got a {type(value).__name__}")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, _Tensor) or not isinstance(tensor.storage, _Storage):
            raise ValueError(f"it must hold tensors by name, got a {type(tensor).__name__} at {str(name)[:100]!r}")
    return value


def _check_size(storage: _Storage, found: int) -> None:
    wanted = storage.length * np.dtype(storage.dtype).itemsize
    if found != wanted:
        raise ValueError(f"storage {storage.key} must have {wanted} bytes, got {found}")


def _numbers(name: str, tensor: _Tensor, storage: np.ndarray) -> np.ndarray:
    """A copy of the part, after a check that it lies within the storage: `as_strided` makes none."""
    offset, sizes, strides = tensor.offset, tuple(tensor.sizes), tuple(tensor.strides)
    whole = all(type(n) is int and n >= 0 for n in (offset, *sizes, *strides)) and len(sizes) == len(strides)
    if not whole or math.prod(sizes) > len(storage):
        raise ValueError(f"{name} must be a part of its storage, got sizes {sizes} and strides {strides}")
    if math.prod(sizes) == 0:
        return np.empty(sizes, storage.dtype)
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if last >= len(storage):
        raise ValueError(f"{name} must be a part of its storage of {len(storage)} numbers, got one up to {last}")
    bytes_of = tuple(stride * storage.itemsize for stride in strides)
    return np.lib.stride_tricks.as_strided(storage[offset:], sizes, bytes_of).copy()
