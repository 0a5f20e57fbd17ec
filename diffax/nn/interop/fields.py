"""Validation of config files: a table of the supported fields, and one error that lists all faults of a config."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

REQUIRED = object()


class Kind(NamedTuple):
    """A set of supported values. text: its description, after "must be". holds: whether a value is in the set."""

    text: str
    holds: Callable[[Any], bool]


class Field(NamedTuple):
    """One field. default: its value if the config does not have it; `REQUIRED` for a field without a default."""

    kind: Kind
    default: Any = REQUIRED


class Rule(NamedTuple):
    """A condition on several fields.

    holds, text: functions of their values, in the order of `names`; whether the condition is met, and the error text
    if it is not.
    """

    names: tuple[str, ...]
    holds: Callable[..., Any]
    text: Callable[..., str]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def one_of(*values: Any) -> Kind:
    """One of these values, with the same type, so that 1 does not match True."""

    def holds(value: Any) -> bool:
        return any(value == allowed and type(value) is type(allowed) for allowed in values)

    return Kind(" or ".join(map(repr, values)), holds)


def many(kind: Kind, *, one: bool = False) -> Kind:
    """A non-empty list with entries of a kind; with `one`, a single value of the kind is also allowed."""

    def holds(value: Any) -> bool:
        is_list = isinstance(value, (list, tuple)) and len(value) > 0 and all(map(kind.holds, value))
        return is_list or (one and kind.holds(value))

    list_text = f"a list with each entry {kind.text}"
    return Kind(f"{kind.text}, or {list_text}" if one else list_text, holds)


def or_none(kind: Kind) -> Kind:
    """A value of the kind, or null."""
    return Kind(f"None or {kind.text}", lambda v: v is None or kind.holds(v))


def number(text: str, holds: Callable[[Any], bool]) -> Kind:
    """A finite int or float for which `holds` is true."""
    return Kind(f"a number {text}".rstrip(), lambda v: _is_number(v) and math.isfinite(v) and bool(holds(v)))


ANY = Kind("anything", lambda _: True)
FLAG = Kind("true or false", lambda v: isinstance(v, bool))
TEXT = Kind("a string", lambda v: isinstance(v, str))
COUNT = Kind("an int >= 1", lambda v: _is_int(v) and v >= 1)
TWO = Kind("an int >= 2", lambda v: _is_int(v) and v >= 2)
WHOLE = Kind("an int >= 0", lambda v: _is_int(v) and v >= 0)
COUNTS = Kind("a list of ints >= 1", many(COUNT).holds)
NUMBER = number("", lambda v: True)
POSITIVE = number("> 0", lambda v: v > 0)
UNIT = number("in (0, 1)", lambda v: 0 < v < 1)
SIZE = Kind(
    "None, an int >= 1 or a list of two ints >= 1",
    or_none(Kind("", lambda v: COUNT.holds(v) or (COUNTS.holds(v) and len(v) == 2))).holds,
)
NORM_GROUPS = Rule(
    ("block_out_channels", "norm_num_groups"),
    lambda widths, groups: all(width % groups == 0 for width in widths),
    lambda widths, groups: f"norm_num_groups must divide the block_out_channels {list(widths)}, got {groups}",
)


def read(
    config: Any,
    fields: dict[str, Field],
    rules: Iterable[Rule] = (),
    ignored: Iterable[str] = (),
    file: str = "config.json",
) -> dict[str, Any]:
    """{field: value} of a config, with defaults for missing fields and without names that begin with "_".

    ignored: names that a config may have, although they are not read.

    Raises:
      ValueError: if a field is unknown, missing or of another kind, or a rule is broken; the error lists all faults.
    """
    check_object(config, file)
    ignored, faults, invalid = set(ignored), [], set()
    for name, value in config.items():
        if name in fields and not fields[name].kind.holds(value):
            invalid.add(name)
            faults.append(f"{name} must be {fields[name].kind.text}, got {_short(value)}")
        elif name not in fields and name not in ignored and not name.startswith("_"):
            faults.append(f"{name} = {_short(value)} is unknown")
    for name, field in fields.items():
        if name not in config and field.default is REQUIRED:
            invalid.add(name)
            faults.append(f"{name} is missing")
    values = {name: config.get(name, field.default) for name, field in fields.items()}
    for rule in rules:
        arguments = [values[name] for name in rule.names if name not in invalid]
        if len(arguments) == len(rule.names) and not rule.holds(*arguments):
            faults.append(rule.text(*arguments))
    if faults:
        count = f"{len(faults)} fault{'s' if len(faults) > 1 else ''}"
        raise ValueError(f"{file} is not supported, {count}: {'; '.join(faults)}")
    return values


def check_object(config: Any, file: str = "config.json", where: str = "") -> None:
    """Raise `ValueError` unless the config is a JSON object."""
    if not isinstance(config, dict):
        raise ValueError(f"{file} must be a JSON object, got {_short(config)}{where}")


def equal(value: Any) -> bool:
    """Whether all entries of a list are equal; True for a value that is not a list."""
    return not isinstance(value, (list, tuple)) or all(entry == value[0] for entry in value)


def single(value: Any) -> Any:
    """The first entry of a list, whose entries are equal; a value that is not a list is returned unchanged."""
    return value[0] if isinstance(value, (list, tuple)) else value


def same(name: str) -> Rule:
    """The rule that all entries of a list are equal."""
    return Rule((name,), equal, lambda v: f"{name} must be a number or a list of equal numbers, got {list(v)}")


def counted(name: str, like: str) -> Rule:
    """The rule that a list is as long as another."""
    return Rule(
        (name, like),
        lambda value, other: len(value) == len(other),
        lambda value, other: f"{name} must have {len(other)} entries, as many as {like}, got {list(value)}",
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def write(path: Path, put: Callable[[Path], Any]) -> None:
    """Write a file atomically: `put` writes to a temporary path, which then replaces `path`.

    If writing is interrupted, the old file stays, and readers never see a partial file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    try:
        put(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
