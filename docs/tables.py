"""Writes the tables that are made from the catalogues into docstrings, README.md and pages of docs/.

    python docs/tables.py            # writes them
    python docs/tables.py --check    # exits with 1 and names the files that are not up to date

A new sampler or schedule is a file and a row of its `_catalogue.py`; this adds its name to the lists of exports too.
"""

import ast
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from diffax.samplers import _catalogue as samplers
from diffax.schedules import _catalogue as schedules
from diffax.times import _catalogue as times

ROOT = Path(__file__).parents[1]


def block(text: str, first: str, table: str) -> str:
    """The text with the lines from the one that starts with `first` to the next blank line replaced."""
    return re.sub(rf"^{re.escape(first)}.*?(?=\n\n)", lambda _: table, text, count=1, flags=re.M | re.S)


def section(text: str, name: str, table: str) -> str:
    """The text with what is between <!-- name --> and <!-- end --> replaced."""
    return re.sub(rf"(<!-- {name} -->\n).*?(<!-- end -->)", lambda m: m[1] + table + m[2], text, flags=re.S)


def markdown(head: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    """A table of Markdown."""
    rule = ("---",) * len(head)
    return "".join("| " + " | ".join(line) + " |\n" for line in (head, rule, *lines))


def ticks(values: tuple[str, ...], suffix: str = "") -> str:
    """Names in backticks."""
    return ", ".join(f"`{value}{suffix}`" for value in values)


def exports() -> dict[str, dict[str, Callable[..., Any]]]:
    """The public names that the catalogue of a package lists, with what they make."""
    curves = {entry.title: entry.make for entry in schedules.CATALOGUE.values() if entry.make.__name__ == entry.title}
    return {
        "diffax.samplers": {name: entry.make for name, entry in samplers.CATALOGUE.items()},
        "diffax.schedules": curves,
    }


def exported(text: str, package: str, makers: Mapping[str, Callable[..., Any]]) -> str:
    """An `__init__.py` whose imports and `__all__` contain every name; `ruff check --fix` sorts them.

    `diffax` imports the names from the package, and the package imports each from its own module.
    """
    in_diffax = f"from {package} import (\n"
    for name, make in makers.items():
        if f'"{name}"' not in text:
            text = text.replace("\n__all__ = [\n", f'\n__all__ = [\n    "{name}",\n', 1)
            if in_diffax in text:
                text = text.replace(in_diffax, f"{in_diffax}    {name},\n", 1)
            else:
                text = text.replace("\n__all__ = [\n", f"from {make.__module__} import {name}\n\n__all__ = [\n", 1)
    return text


def reference(text: str) -> str:
    """Links from the names that a module exports to their entries in the API reference."""
    listed = ast.literal_eval(re.search(r"^__all__ = (\[.*?\])", text, re.M | re.S)[1])
    return "\n".join(f"[`{name}`][diffax.{name}] ·" for name in sorted(listed, key=str.lower)).removesuffix(" ·") + "\n"


def texts() -> dict[str, str]:
    """The files, as they should be."""
    of = lambda path: (ROOT / path).read_text()  # noqa: E731
    coming = section(
        of("docs/coming_from.md"),
        "samplers",
        markdown(
            ("diffax", "k-diffusion `sample_*`", "diffusers `*Scheduler`"),
            [
                (f"`{name}`", ticks(entry.k_diffusion), ticks(entry.diffusers))
                for name, entry in samplers.CATALOGUE.items()
            ],
        ),
    )
    coming = section(
        coming,
        "grids",
        markdown(
            ("`diffax.times`", "k-diffusion `get_sigmas_*`", "diffusers"),
            [
                (f"`{name}`", ticks(entry.k_diffusion), ticks(entry.diffusers))
                for name, entry in times.CATALOGUE.items()
                if entry.make.__name__ == name
            ],
        ),
    )
    files = {
        "diffax/samplers/__init__.py": block(of("diffax/samplers/__init__.py"), "    here ", samplers.table()),
        "diffax/schedules/__init__.py": block(of("diffax/schedules/__init__.py"), "    name ", schedules.table()),
        "diffax/times/__init__.py": block(of("diffax/times/__init__.py"), "    here ", times.table()),
        "diffax/__init__.py": of("diffax/__init__.py"),
        "docs/coming_from.md": coming,
    }
    for package, makers in exports().items():
        for path in (f"{package.replace('.', '/')}/__init__.py", "diffax/__init__.py"):
            files[path] = exported(files[path], package, makers)
    files["docs/api/index.md"] = section(of("docs/api/index.md"), "names", reference(files["diffax/__init__.py"]))
    return files


def main() -> None:
    """Writes, or checks."""
    stale = {path: text for path, text in texts().items() if text != (ROOT / path).read_text()}
    if "--check" in sys.argv:
        sys.exit(f"not up to date, run python docs/tables.py: {', '.join(stale)}" if stale else 0)
    for path, text in stale.items():
        (ROOT / path).write_text(text)
        print("wrote", path)


if __name__ == "__main__":
    main()
