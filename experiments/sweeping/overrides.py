"""Lists of overrides, one for each run of a sweep, each a dict {"config.a.b": value}.

An axis {"config.a": [1, 2]} is the list [{"config.a": 1}, {"config.a": 2}].
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Override = dict[str, Any]
Axis = Mapping[str, Sequence[Any]] | Iterable[Override]


def _listed(axis: Axis) -> list[Override]:
    """An axis as a list of overrides; for a mapping with several keys, every combination."""
    if not isinstance(axis, Mapping):
        return [dict(one) for one in axis]
    for key, values in axis.items():
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise ValueError(f"the values of {key} must be a list, got {values!r}")
    return [dict(zip(axis, values, strict=True)) for values in itertools.product(*axis.values())]


def _joined(parts: Iterable[Override]) -> Override:
    result: Override = {}
    for part in parts:
        for key in part:
            if key in result:
                raise ValueError(f"{key} must be in one axis only, got {result[key]!r} and {part[key]!r}")
        result |= part
    return result


def product(*axes: Axis) -> list[Override]:
    """Every combination; the last axis varies fastest.

    Raises:
      ValueError: if a key is in two axes.

    >>> product({"config.a": [1, 2]}, seeds(2))[:2]
    [{'config.a': 1, 'config.seed': 0}, {'config.a': 1, 'config.seed': 1}]
    """
    return [_joined(parts) for parts in itertools.product(*map(_listed, axes))]


def zipped(*axes: Axis) -> list[Override]:
    """The first override of each axis joined, then the second of each, and so on.

    Raises:
      ValueError: if the axes differ in length, or a key is in two axes.

    >>> zipped({"config.a": [1, 2]}, {"config.b": [3, 4]})
    [{'config.a': 1, 'config.b': 3}, {'config.a': 2, 'config.b': 4}]
    """
    lists = [_listed(axis) for axis in axes]
    if len({len(one) for one in lists}) > 1:
        raise ValueError(f"zipped axes must have one length, got {', '.join(str(len(one)) for one in lists)}")
    return [_joined(parts) for parts in zip(*lists, strict=True)]


def chain(*lists: Axis) -> list[Override]:
    """The overrides of all lists, one list after another.

    >>> chain({"config.a": [1]}, {"config.a": [2], "config.b": [3]})
    [{'config.a': 1}, {'config.a': 2, 'config.b': 3}]
    """
    return [one for axis in lists for one in _listed(axis)]


def seeds(n: int, first: int = 0) -> list[Override]:
    """The overrides config.seed = first .. first + n - 1.

    >>> seeds(2)
    [{'config.seed': 0}, {'config.seed': 1}]
    """
    if n < 1:
        raise ValueError(f"seeds must be at least 1, got {n}")
    return [{"config.seed": first + i} for i in range(n)]
