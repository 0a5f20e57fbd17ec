"""The tensors of a file of weights: what torch saves, safetensors, npz. No code of the file is run.

`torch.save` writes a pickle that names functions to call, and the numbers beside it, in a zip archive (since torch 1.6)
or one after another. Only dicts and tensors of numbers are built from it here: a tensor is (storage, offset, sizes,
strides). A pickle that names anything else is refused before the name is looked up.
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

# Names of dtypes, not dtypes, because a pickle cannot change a string.
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


def load_tensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The tensors of a file by name: .safetensors and .npz by the suffix, otherwise what `torch.save` wrote.

    Raises:
      ValueError: if it is none of these, is damaged, is no dict of tensors, or names a global that a dict of tensors
        does not need; the error names it.
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
    except Exception as error:  # pickle raises errors of many types for a damaged file
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"weights must be a file of tensors, got {path} ({reason})") from error


class _Unpickler(pickle.Unpickler):
    """Builds dicts, numbers, strings and `_Tensor`s; imports nothing."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            # A new function each time, because a pickle may set attributes of the objects that it gets.
            return lambda storage, offset, sizes, strides, *rest: _Tensor(storage, offset, sizes, strides)
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise ValueError(f"it names {module}.{name}, which is refused")

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, key, _, count, *view = pid
        if kind != "storage" or dtype not in STORAGES.values() or any(part is not None for part in view):
            raise ValueError(f"it has a storage of another kind: {str(pid)[:100]}")
        return _Storage(str(key), dtype, int(count))


def _load(file: io.BufferedIOBase) -> Any:
    return _Unpickler(file, encoding="utf-8").load()


def _of_archive(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        names = {name.partition("/")[2]: name for name in archive.namelist()}
        if "byteorder" in names and archive.read(names["byteorder"]) != b"little":
            raise ValueError("its numbers are big-endian")
        if "data.pkl" not in names:
            raise ValueError("it is an archive without data.pkl")
        tensors = _checked(_load(io.BytesIO(archive.read(names["data.pkl"]))))
        storages = {tensor.storage for tensor in tensors.values()}  # tensors may share one
        data = {storage: archive.read(names[f"data/{storage.key}"]) for storage in storages}
    return {name: _numbers(name, tensor, data[tensor.storage]) for name, tensor in tensors.items()}


def _of_sequence(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        if _load(file) != MAGIC or _load(file) != PROTOCOL:
            raise ValueError("it is nothing that torch wrote")
        if not _load(file)["little_endian"]:
            raise ValueError("its numbers are big-endian")
        tensors = _checked(_load(file))
        storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
        data = {}
        for key in _load(file):
            (count,) = struct.unpack("<q", file.read(8))
            data[storages[key]] = file.read(count * np.dtype(storages[key].dtype).itemsize)
    return {name: _numbers(name, tensor, data[tensor.storage]) for name, tensor in tensors.items()}


def _checked(value: Any) -> dict[str, _Tensor]:
    if not isinstance(value, dict):
        raise ValueError(f"it must hold a dict of tensors, got a {type(value).__name__}")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, _Tensor) or not isinstance(tensor.storage, _Storage):
            raise ValueError(f"it must hold tensors by name, got a {type(tensor).__name__} at {str(name)[:100]!r}")
    return value


def _numbers(name: str, tensor: _Tensor, data: bytes) -> np.ndarray:
    """A copy of the tensor. `as_strided` does not check that it lies within its storage, so it is checked here."""
    dtype, length = np.dtype(tensor.storage.dtype), tensor.storage.length
    if len(data) != length * dtype.itemsize:
        raise ValueError(f"storage {tensor.storage.key} must have {length * dtype.itemsize} bytes, got {len(data)}")
    offset, sizes, strides = tensor.offset, tuple(tensor.sizes), tuple(tensor.strides)
    valid = all(type(n) is int and n >= 0 for n in (offset, *sizes, *strides)) and len(sizes) == len(strides)
    if not valid or math.prod(sizes) > length:
        raise ValueError(f"{name} must be a part of its storage, got sizes {sizes} and strides {strides}")
    if math.prod(sizes) == 0:
        return np.empty(sizes, dtype)
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if last >= length:
        raise ValueError(f"{name} must be a part of its storage of {length} numbers, got one up to {last}")
    numbers = np.frombuffer(data, dtype)[offset:]
    return np.lib.stride_tricks.as_strided(numbers, sizes, [stride * dtype.itemsize for stride in strides]).copy()
