"""Make the page of interactive figures: diffax computes the numbers, and one self-contained HTML file shows them.

    python docs/figures/build.py              # writes docs/figures/index.html: 1.5 CPU minutes
    python docs/figures/build.py --reuse      # keeps the numbers of the page and takes new HTML, CSS and JavaScript
    python docs/figures/build.py --check      # exits with 1 if the page is older than the library or than its sources

The page holds a digest of the modules of diffax that computed its numbers. If it is that of the current code, the
numbers are current. If not, `--check` computes the numbers again and compares: a change of the library that moves no
number needs no new page.
"""

import argparse
import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import exact_figures
import numpy as np
import trained_figures
from packing import is_packed, unpack

import diffax

HERE = Path(__file__).parent
LIBRARY = Path(diffax.__file__).parent
PAGE = HERE / "index.html"
SCRIPTS = ("plot", "maths", "controls", "plane", "times", "networks")
LIMIT = 500_000  # bytes
DATA = re.compile(r'<script id="figure-data" type="application/json">(.*?)</script>', re.S)
NO_NUMBERS = ("version", "modules", "digest")
TRAINED = ("network", "digits")  # training differs between machines in the last bits, so these are compared loosely
CHAOTIC = ("weights", "sample")  # equally good weights may be far apart, and so may their samples


def modules() -> list[str]:
    """The modules of diffax that are loaded: after `compute`, those that the numbers depend on."""
    return sorted(name for name in sys.modules if name.partition(".")[0] == "diffax")


def digest_of(names: list[str]) -> str:
    """The digest of these modules of diffax and of the files here that compute the numbers."""
    digest = hashlib.sha256()
    paths = [LIBRARY.parent.joinpath(*name.split(".")) for name in names]
    files = [path / "__init__.py" if path.is_dir() else path.with_suffix(".py") for path in paths]
    for path in [*files, *sorted(HERE.glob("*_figures.py")), HERE / "packing.py"]:
        digest.update(path.read_bytes() if path.exists() else b"missing")
    return digest.hexdigest()[:16]


def compute() -> dict[str, Any]:
    """All numbers of the page, with the digest of the code that computed them."""
    numbers = exact_figures.compute() | trained_figures.compute()
    return {"version": diffax.__version__, "modules": modules(), "digest": digest_of(modules())} | numbers


def render(data: dict[str, Any]) -> str:
    """The page with these numbers.

    Raises:
      ValueError: if it is larger than `LIMIT`.
    """
    parts = {
        "style": (HERE / "style.css").read_text(),
        "script": "\n".join((HERE / "js" / f"{name}.js").read_text() for name in SCRIPTS),
        "data": json.dumps(data, separators=(",", ":")).replace("</", "<\\/"),
        "version": data["version"],
        "digest": data["digest"],
    }
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], (HERE / "page.html").read_text())
    if (size := len(page.encode())) > LIMIT:
        raise ValueError(f"the page must have at most {LIMIT:,} bytes, got {size:,}")
    return page


def recorded(page: Path = PAGE) -> dict[str, Any]:
    """The numbers that a page holds.

    Raises:
      ValueError: if there are none.
    """
    if (match := DATA.search(page.read_text())) is None:
        raise ValueError(f"{page} must hold the data of the figures, got none: run python docs/figures/build.py")
    data: dict[str, Any] = json.loads(match[1])
    return data


def differences(old: Any, new: Any, name: str = "", loose: bool = False) -> list[str]:
    """The names of the numbers that differ, each with the reason; [] if there are none.

    Numbers must agree to 1e-4 of the largest of their array, and pictures and errors of trained networks to one tenth,
    on average, except those of `CHAOTIC`.
    """
    if is_packed(old) and is_packed(new) and old["shape"] == new["shape"]:
        return [] if _agree(unpack(old), unpack(new), loose) else [f"{name} has other numbers"]
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        inner = [
            differences(old[key], new[key], f"{name}.{key}".lstrip("."), loose or key in TRAINED)
            for key in old
            if not (loose and key in CHAOTIC)
        ]
        return [text for texts in inner for text in texts]
    if _is_numbers(old) and _is_numbers(new) and np.shape(old) == np.shape(new):
        return [] if _agree(np.asarray(old), np.asarray(new), loose) else [f"{name} has other numbers"]
    return [] if old == new else [f"{name} has another shape, or other names"]


def _is_numbers(value: Any) -> bool:
    """Whether the value is a number or nested lists of numbers."""
    if isinstance(value, list):
        return all(_is_numbers(v) for v in value)
    return isinstance(value, (int, float))


def _agree(old: np.ndarray, new: np.ndarray, loose: bool) -> bool:
    """Whether two arrays of one shape agree."""
    if not old.size:
        return True
    difference, size = abs(old - new), max(abs(old).max(), abs(new).max())
    return bool(difference.mean() <= 0.1 * size if loose else difference.max() <= 1e-4 * size)


def stale(page: Path = PAGE) -> list[str]:
    """Why a page is out of date; [] if it is not."""
    data = recorded(page)
    if render(data) != page.read_text():
        return ["its HTML, CSS or JavaScript has changed: run python docs/figures/build.py --reuse"]
    if data["digest"] == digest_of(data["modules"]):
        return []
    old, new = ({key: value for key, value in values.items() if key not in NO_NUMBERS} for values in (data, compute()))
    return [f"{text}: run python docs/figures/build.py" for text in differences(old, new)]


def main() -> None:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description="Make the page of interactive figures.")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page to write or check")
    parser.add_argument("--reuse", action="store_true", help="keep the numbers of the page")
    parser.add_argument("--check", action="store_true", help="only report whether the page is up to date")
    options = parser.parse_args()
    if options.check:
        if reasons := stale(options.out):
            sys.exit("\n".join(f"{options.out} is out of date: {reason}" for reason in reasons))
        return
    page = render(recorded(options.out) if options.reuse else compute())
    options.out.write_text(page)
    print(f"wrote {options.out}, {len(page.encode()):,} bytes")


if __name__ == "__main__":
    main()
