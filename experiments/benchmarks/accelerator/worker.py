"""One item in a separate process, so that a crash, a hang or out of memory ends only that item.

    python -m experiments.benchmarks.accelerator.worker MODULE --rows=FILE --deadline=TIME [--quick]

MODULE has `rows(context)`, a generator of rows. Each row is a dict with a `name`; it is appended to FILE as a line of
JSON as soon as it is yielded. An exception becomes a row with an `error`.
"""

import argparse
import importlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Context(NamedTuple):
    """The arguments of an item.

    quick: toy sizes. deadline: `time.time()` at which the process is stopped. earlier: the rows of earlier items.
    """

    quick: bool
    deadline: float
    earlier: list[dict[str, Any]]

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.time()


def one_line(error: BaseException) -> str:
    """Type and message of an exception, shortened to fit a table cell."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300].rstrip(": ")


def lines(module: str, context: Context) -> Iterator[dict[str, Any]]:
    """The rows of an item; an exception becomes the last row."""
    try:
        yield from importlib.import_module(module).rows(context)
    except Exception as error:
        yield {"name": module.rpartition(".")[2], "error": one_line(error)}


def main() -> None:
    """The process of an item."""
    parser = argparse.ArgumentParser()
    parser.add_argument("module")
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--deadline", type=float, required=True)
    parser.add_argument("--earlier", type=Path)
    parser.add_argument("--quick", action="store_true")
    flags = parser.parse_args()
    earlier = json.loads(flags.earlier.read_text())["rows"] if flags.earlier and flags.earlier.exists() else []
    with flags.rows.open("a") as file:
        for row in lines(flags.module, Context(flags.quick, flags.deadline, earlier)):
            file.write(json.dumps(row) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
