"""Sources of a data set: examples with a shape, a kind and classes, and their splits."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

OPTIONAL = ("label", "caption", "condition", "mask")
SPLITS = ("train", "test")


class Source(NamedTuple):
    """Examples for a data set.

    Attributes:
      example: index -> {"x": (*shape), and "label", "caption", "condition", "mask" where `features` has them}.
      length: number of examples.
      shape: of x.
      dtype: of x: "uint8", "int32" or "float32".
      kind: name of a module of `experiments.data.kinds`.
      range: (low, high) of the values; None to normalise by mean and standard deviation of each channel.
      classes: names of the classes, () for none.
      features: the optional features that examples have.
      shapes: shapes of "condition" and "mask".
      channels: names of the channels, or (); units: their units, or ().
      groups: the group of each example; all examples of a group are in one split. None for none.
      splits: the split of each example, "train" or "test"; None to choose.
      ordered: whether the examples are in the order of time, so that the last ones are the test split.
      report: lines that describe the source.
    """

    example: Callable[[int], dict[str, Any]]
    length: int
    shape: tuple[int, ...]
    dtype: str
    kind: str
    range: tuple[float, float] | None = None
    classes: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    shapes: dict[str, tuple[int, ...]] = {}  # noqa: RUF012 (never changed)
    channels: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    groups: Sequence[Any] | None = None
    splits: Sequence[str] | None = None
    ordered: bool = False
    report: tuple[str, ...] = ()


def of_examples(examples: Iterable[dict[str, Any]], **settings: Any) -> Source:
    """A source from dicts of arrays, as `--module=mymodule:make` returns them; kept in memory.

    An example has "x" and may have "label" (an int or a str), "caption", "condition", "mask", "group", "split".

    Raises:
      ValueError: if there is no example, they differ in shape or features, or x has NaN.
    """
    rows = list(examples)
    if not rows:
        raise ValueError("module must return at least one example, got none")
    columns: dict[str, list[Any]] = {}
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or "x" not in row or set(row) != set(rows[0]):
            keys = sorted(row) if isinstance(row, dict) else type(row).__name__
            expected = f"example {number} must be a dict with x and the keys of the first example"
            raise ValueError(f"{expected}, got {keys}")
        for key, value in row.items():
            columns.setdefault(key, []).append(value)
    x = [np.asarray(value) for value in columns.pop("x")]
    if len({value.shape for value in x}) > 1:
        number = next(i for i, value in enumerate(x) if value.shape != x[0].shape)
        raise ValueError(f"examples must have one shape, got {x[0].shape} and, example {number}, {x[number].shape}")
    return of_arrays(np.stack(x), {name: np.asarray(column) for name, column in columns.items()}, **settings)


def of_arrays(
    x: np.ndarray,
    columns: dict[str, np.ndarray],
    *,
    kind: str | None = None,
    name: str = "x",
    channels: Sequence[str] = (),
    units: Sequence[str] = (),
    ordered: bool = False,
    report: Sequence[str] = (),
) -> Source:
    """A source from arrays (N, ...). columns: "label", "caption", "condition", "mask", "group", "split".

    Raises:
      ValueError: for values that are not finite, a column of another length or of a wrong type.
    """
    if x.ndim < 2 or len(x) < 2:
        raise ValueError(f"{name} must have shape (N, ...) with N >= 2 examples, got {x.shape}")
    if not 1 <= x.ndim - 1 <= 5:
        raise ValueError(f"{name} must have examples of rank 1 to 5, got shape {x.shape[1:]}")
    mask = columns.get("mask")
    if mask is not None:
        mask = mask.astype(bool)
        if mask.shape != x.shape[: mask.ndim] or mask.ndim < 2:
            raise ValueError(f"mask must have the shape of the leading axes of {name}, {x.shape}, got {mask.shape}")
        columns = {**columns, "mask": mask}
        x = np.where(mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)), x, np.zeros((), x.dtype))
    x = _as_stored(x, name)
    for key, column in columns.items():
        if len(column) != len(x):
            raise ValueError(f"{key} must have {len(x)} entries, as {name} has, got {len(column)}")
    classes: tuple[str, ...] = ()
    if "label" in columns:
        classes, columns = _numbered(columns)
    if "condition" in columns:
        columns = {**columns, "condition": _with_channels(columns["condition"], x.shape)}
    features = tuple(key for key in OPTIONAL if key in columns)

    def example(index: int) -> dict[str, Any]:
        own = {key: columns[key][index] for key in features}
        if "caption" in own:
            own["caption"] = str(own["caption"])
        if "label" in own:
            own["label"] = int(own["label"])
        return {"x": x[index], **own}

    is_picture = x.dtype == np.uint8 and x.ndim == 4 and x.shape[-1] in (1, 3)
    return Source(
        example,
        len(x),
        x.shape[1:],
        str(x.dtype),
        kind=kind or ("image" if is_picture else "points" if x.ndim == 2 or mask is not None else "field"),
        range=(0.0, 255.0) if x.dtype == np.uint8 else None,
        classes=classes,
        features=features,
        shapes={key: columns[key].shape[1:] for key in ("condition", "mask") if key in columns},
        channels=tuple(channels),
        units=tuple(units),
        groups=list(columns["group"]) if "group" in columns else None,
        splits=[str(value) for value in columns["split"]] if "split" in columns else None,
        ordered=ordered,
        report=(f"{len(x)} examples {x.shape[1:]} {x.dtype}", *report),
    )


def _with_channels(condition: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Conditions (N, D) or (N, *space, C) as float32. Conditions without channels, (N,) or (N, *space), get one."""
    stored = _as_stored(condition, "condition").astype(np.float32)
    is_field = len(shape) > 3 and stored.shape == shape[:-1]
    return stored[..., None] if stored.ndim == 1 or is_field else stored


def _as_stored(x: np.ndarray, name: str) -> np.ndarray:
    """The array as uint8, int32 or float32.

    Raises:
      ValueError: for another type, or values that are not finite or do not fit; the error has the first one.
    """
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind in "iu":
        if x.min() < -(2**31) or x.max() >= 2**31:
            raise ValueError(f"{name} must fit into int32, got values in [{x.min()}, {x.max()}]")
        return x.astype(np.int32)
    if x.dtype.kind == "b":
        return x.astype(np.uint8) * np.uint8(255)
    if x.dtype.kind != "f":
        raise ValueError(f"{name} must be an array of numbers, got {x.dtype}")
    with np.errstate(over="ignore"):
        stored = x.astype(np.float32)
    bad = ~np.isfinite(stored)
    if bad.any():
        first, *place = (int(i) for i in np.argwhere(bad)[0])
        count = int(bad.reshape(len(x), -1).any(1).sum())
        raise ValueError(
            f"{name} must be finite, got {x[(first, *place)]} in example {first} at {tuple(place)}, and values that "
            f"are not finite in {count} of {len(x)} examples"
        )
    return stored


def _numbered(columns: dict[str, np.ndarray]) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Labels as numbers from 0, with the names of the classes in their order."""
    labels = columns["label"]
    if labels.ndim != 1 or labels.dtype.kind not in "iuUOSb":
        raise ValueError(f"label must be one int or string for each example, got {labels.dtype} {labels.shape}")
    names, numbers = np.unique(labels.astype(str) if labels.dtype.kind in "UOS" else labels, return_inverse=True)
    return tuple(str(name) for name in names), {**columns, "label": numbers}


def split(source: Source, *, by: str = "records", test: float = 0.1, seed: int = 0) -> dict[str, np.ndarray]:
    """The examples of each split: {"train": indices, "test": indices}.

    Args:
      source: the examples.
      by: "records" at random; "time", the last ones are the test split; "group", whole groups at random. The splits of
        the source have priority.
      test: the share of the test split, in (0, 1).
      seed: of the random choice.

    Raises:
      ValueError: if a split would be empty, or a group would be in both.
    """
    if not 0 < test < 1:
        raise ValueError(f"test must be in (0, 1), got {test}")
    number = np.arange(source.length)
    if source.splits is not None:
        if unknown := sorted(set(source.splits) - set(SPLITS)):
            raise ValueError(f"split must be train or test, got {unknown[0]!r}")
        is_test = np.asarray([own == "test" for own in source.splits])
    elif by == "group":
        if source.groups is None:
            raise ValueError("split_by must be records or time without groups, got 'group': set them with --group=KEY")
        names = np.unique(np.asarray(source.groups))
        names = np.random.default_rng(seed).permutation(names)
        is_test = np.isin(np.asarray(source.groups), names[: max(1, round(test * len(names)))])
    elif by == "time":
        is_test = number >= source.length - max(1, round(test * source.length))
    elif by == "records":
        order = np.random.default_rng(seed).permutation(source.length)
        is_test = np.isin(number, order[: max(1, round(test * source.length))])
    else:
        raise ValueError(f"split_by must be records, time or group, got {by!r}")
    if is_test.all() or not is_test.any():
        raise ValueError(f"each split must have examples, got {int(is_test.sum())} of {source.length} in test")
    if source.groups is not None:
        groups = np.asarray(source.groups)
        if len(both := np.intersect1d(groups[is_test], groups[~is_test])):
            raise ValueError(f"a group must be in one split, got {both[0]!r} in both: use --split_by=group")
    return {"train": number[~is_test], "test": number[is_test]}
