"""Arrays in files as a data set: .npz, .npy, .csv, .nc, .zarr."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.sources import Source, of_arrays

COLUMNS = ("label", "caption", "condition", "mask", "group")
SUFFIXES = (".npz", ".npy", ".csv", ".nc", ".zarr")
EXAMPLE_AXES = ("sample", "example", "time", "member", "number")  # of .nc and .zarr; otherwise the first axis


def array_file(path: Path, *, variables: Sequence[str] = (), kind: str | None = None, **columns: str) -> Source:
    """The examples of a file.

    .npz: the array `x`, or the only one; .npy: one array (N, ...); .csv: a row for each example; .nc and .zarr: the
    variables over one axis of examples, as channels.

    Args:
      path: the file.
      variables: of .npz, .csv, .nc, .zarr: the arrays, columns or variables of x; all by default.
      kind: name of the kind; None to choose by shape and type.
      columns: label, caption, condition, mask, group: the names of the arrays or columns for these.

    Raises:
      ValueError: for a file that cannot be read, a name that is not in the file, or arrays that do not fit.
    """
    readers = {".npz": _npz, ".npy": _npy, ".csv": _csv, ".nc": _xarray, ".zarr": _xarray}
    if path.suffix not in readers:
        raise ValueError(f"arrays must be a file {' '.join(SUFFIXES)}, got {path}")
    if not path.exists():
        raise ValueError(f"arrays must be an existing file, got {path}")
    named = {role: name for role, name in columns.items() if name}
    if path.suffix in (".npz", ".npy") and path.read_bytes()[:4] not in (b"PK\x03\x04", b"\x93NUM"):
        raise ValueError(f"arrays must be a file of NumPy arrays, got {path}")
    try:
        return readers[path.suffix](path, tuple(variables), kind, named)
    except (OSError, EOFError, UnicodeDecodeError, zipfile.BadZipFile, RuntimeError) as error:
        # netCDF4 raises RuntimeError for damaged data, numcodecs for a codec that would run code.
        raise ValueError(f"arrays must be a readable file, got {path} ({error})") from error


def _npz(path: Path, variables: tuple[str, ...], kind: str | None, columns: dict[str, str]) -> Source:
    with np.load(path, allow_pickle=False) as file:
        _check_names(path, [*variables, *columns.values()], file.files)
        # Arrays with the name of their role need no flag.
        columns = {role: role for role in (*COLUMNS, "split") if role in file.files} | columns
        rest = [name for name in file.files if name not in columns.values()]
        names = variables or (("x",) if "x" in rest else tuple(rest))
        if len(names) != 1:
            raise ValueError(f"variables must name one array of {path}, got {', '.join(names) or 'none'}")
        return of_arrays(file[names[0]], {role: file[name] for role, name in columns.items()}, kind=kind, name=names[0])


def _npy(path: Path, variables: tuple[str, ...], kind: str | None, columns: dict[str, str]) -> Source:
    if variables or columns:
        raise ValueError(f"{next(iter(columns), 'variables')} must be empty for a .npy file, which has one array")
    return of_arrays(np.load(path, allow_pickle=False), {}, kind=kind)


def _csv(path: Path, variables: tuple[str, ...], kind: str | None, columns: dict[str, str]) -> Source:
    import pandas as pd

    table = pd.read_csv(path)
    _check_names(path, [*variables, *columns.values()], list(table.columns))
    names = list(variables) or [name for name in table.columns if name not in columns.values()]
    for name in names:
        if table[name].dtype.kind not in "iufb":
            column = f"column {name} of {path}"
            raise ValueError(f"{column} must be numeric, got {table[name].dtype}: choose others with --variables")
    x = table[names].to_numpy(np.float32 if any(table[name].dtype.kind == "f" for name in names) else np.int32)
    own = {role: table[name].to_numpy() for role, name in columns.items()}
    return of_arrays(x, own, kind=kind, name=f"columns {', '.join(names)}", channels=names)


def _xarray(path: Path, variables: tuple[str, ...], kind: str | None, columns: dict[str, str]) -> Source:
    try:
        import xarray
    except ImportError as error:
        raise ValueError(f"{path.suffix} files need xarray: pip install 'diffax[experiments]'") from error
    with xarray.open_dataset(path, engine="zarr" if path.suffix == ".zarr" else None) as file:
        _check_names(path, [*variables, *columns.values()], list(map(str, file.variables)))
        names = list(variables) or [str(name) for name in file.data_vars if str(name) not in columns.values()]
        if not names:
            raise ValueError(f"variables must name at least one variable, got none in {path}")
        axes = {name: file[name].dims for name in names}
        if len(set(axes.values())) > 1:
            raise ValueError(f"variables must have the same axes, got {axes}: choose others with --variables")
        dims = axes[names[0]]
        first = next((axis for axis in EXAMPLE_AXES if axis in dims), dims[0])
        x = np.stack([file[name].transpose(first, ...).to_numpy() for name in names], -1)
        own = {role: file[name].to_numpy() for role, name in columns.items()}
        return of_arrays(
            x,
            own,
            kind=kind or "field",
            name=f"variables {', '.join(names)}",
            channels=names,
            units=[str(file[name].attrs.get("units", "")) for name in names],
            ordered=first == "time",
            report=(f"axes {', '.join(map(str, dims))}; examples along {first}",),
        )


def _check_names(path: Path, names: Sequence[Any], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{path} must have {name!r}, got {', '.join(map(str, known))}")
