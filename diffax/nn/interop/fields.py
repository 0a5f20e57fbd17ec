"""What a config may say: a table of fields, read in one place, all faults of a config in one error."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

REQUIRED = object()


class Kind(NamedTuple):
    """Values that are known here. says: in words, after "must be"."""

    says: str
    holds: Callable[[Any], bool]


class Field(NamedTuple):
    """One field. default: where the config does not say it; `REQUIRED` has none."""

    kind: Kind
    default: Any = REQUIRED


class Rule(NamedTuple):
    """What several fields must do together. holds, says: functions of their values, in the order of `names`."""

    names: tuple[str, ...]
    holds: Callable[..., Any]
    says: Callable[..., str]


def _is_int(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def one_of(*values: Any) -> Kind:
    """One of these values, of the same type: 1 is not True."""
    return Kind(" or ".join(map(repr, values)), lambda v: any(v == one and type(v) is type(one) for one in values))


def many(kind: Kind, *, one: bool = False) -> Kind:
    """A list of at least one of a kind; with `one` also a value by itself."""

    def holds(value):
        listed = isinstance(value, (list, tuple)) and len(value) > 0 and all(map(kind.holds, value))
        return listed or (one and kind.holds(value))

    return Kind(f"{kind.says}, or a list of such" if one else f"a list, each {kind.says}", holds)


def or_none(kind: Kind) -> Kind:
    """Of the kind, or null."""
    return Kind(f"{kind.says} or None", lambda v: v is None or kind.holds(v))


def number(says: str, holds: Callable[[Any], bool]) -> Kind:
    """A finite int or float of which `holds`."""
    return Kind(f"a number {says}".rstrip(), lambda v: _is_number(v) and math.isfinite(v) and bool(holds(v)))


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
    "an int >= 1, two such or None",
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
    """{field: value} of a config, defaults filled in; names that begin with "_" are left out.

    ignored: names that a config may have and that nothing here reads.

    Raises:
      ValueError: if a field is unknown, missing or of another kind, or a rule is broken; lists it all.
    """
    check_object(config, file)
    ignored, faults, bad = set(ignored), [], set()
    for name, value in config.items():
        if name in fields and not fields[name].kind.holds(value):
            bad.add(name)
            faults.append(f"{name} must be {fields[name].kind.says}, got {_short(value)}")
        elif name not in fields and name not in ignored and not name.startswith("_"):
            faults.append(f"{name} = {_short(value)} is unknown")
    for name, field in fields.items():
        if name not in config and field.default is REQUIRED:
            bad.add(name)
            faults.append(f"{name} is missing")
    full = {name: config.get(name, field.default) for name, field in fields.items()}
    for rule in rules:
        values = [full[name] for name in rule.names if name not in bad]
        if len(values) == len(rule.names) and not rule.holds(*values):
            faults.append(rule.says(*values))
    if faults:
        count = f"{len(faults)} fault{'s' if len(faults) > 1 else ''}"
        raise ValueError(f"{file} is not supported, {count}: {'; '.join(faults)}")
    return full


def check_object(config: Any, file: str = "config.json", where: str = "") -> None:
    """Raises `ValueError` for what is no JSON object."""
    if not isinstance(config, dict):
        raise ValueError(f"{file} must hold an object of fields, got {_short(config)}{where}")


def equal(value: Any) -> bool:
    """Whether a list says one thing; what is no list does."""
    return not isinstance(value, (list, tuple)) or all(one == value[0] for one in value)


def single(value: Any) -> Any:
    """The one value of a list of equal ones; what is no list, itself."""
    return value[0] if isinstance(value, (list, tuple)) else value


def same(name: str) -> Rule:
    """A list must say one thing."""
    return Rule((name,), equal, lambda v: f"{name} must be one number, got {list(v)}")


def counted(name: str, like: str) -> Rule:
    """A list must be as long as another."""
    return Rule(
        (name, like),
        lambda value, other: len(value) == len(other),
        lambda value, other: f"{name} must have {len(other)} entries as {like}, got {list(value)}",
    )


def _short(value):
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def write(path: Path, put: Callable[[Path], Any]) -> None:
    """`put(path)`, at once: another reader, or a stop half-way, finds the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        put(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
