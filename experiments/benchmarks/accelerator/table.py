"""The rows of a run as JSON and Markdown, and the line about performance that the README quotes."""

import json
import os
from pathlib import Path
from typing import Any

NAMES = {
    "dit_b2": "DiT-B/2",
    "dit_xl2": "DiT-XL/2, remat",
    "ddpm": "DDPM U-Net, CIFAR-10",
    "edm2_xs": "EDM2-XS",
}
UNMEASURED = "No accelerator has been measured yet"
HEAD = """# An accelerator, measured

`python -m experiments.benchmark accelerator` wrote this; `accelerator.json` has every number.

| | |
| --- | --- |
{environment}
"""


def write(folder: Path, results: dict[str, Any], columns: dict[str, Any]) -> None:
    """Write accelerator.json and accelerator.md, each atomically."""
    for name, text in {
        "accelerator.json": json.dumps(results, indent=1) + "\n",
        "accelerator.md": markdown(results, columns),
    }.items():
        part = folder / f".{name}.part"
        part.write_text(text)
        os.replace(part, folder / name)


def markdown(results: dict[str, Any], columns: dict[str, Any]) -> str:
    """The whole page. columns: {item: ((heading, key, format), ...)}; only those with a value in some row appear."""
    environment = "\n".join(f"| {name} | {value} |" for name, value in results["environment"].items())
    parts = [HEAD.format(environment=environment)]
    for item in results["items"]:
        rows = [row for row in results["rows"] if row["item"] == item["name"]]
        parts.append(f"## {item['letter']}. {item['title']}\n\n{_table(rows, columns.get(item['name'], ()))}")
    return "\n".join(parts)


def _table(rows: list[dict[str, Any]], columns: Any) -> str:
    used = [column for column in columns if any(row.get(column[1]) is not None for row in rows)]
    notes = any(note(row) for row in rows)
    head = ["", *(heading for heading, _, _ in used), *(["note"] if notes else [])]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        cells = [cell(row.get(key), form) for _, key, form in used]
        lines.append([title(row["name"]), *cells, *([note(row)] if notes else [])])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def title(name: str) -> str:
    """The displayed name of a row: networks by their published names."""
    first, _, rest = name.partition(" ")
    known = NAMES.get(first.rstrip(","))
    return name if known is None else f"{known}{',' if first.endswith(',') or rest else ''} {rest}".strip()


def cell(value: Any, form: str) -> str:
    """A value as text; empty where there is none."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    return format(value, form)


def note(row: dict[str, Any]) -> str:
    """The reason for missing values of a row, or its note."""
    if "error" in row:
        return f"error: {row['error']}".replace("|", "/")
    return f"skipped: {row['skipped']}" if "skipped" in row else row.get("note", "")


def line(row: dict[str, Any], columns: Any) -> str:
    """A row for the terminal."""
    values = [f"{heading} {cell(row[key], form)}" for heading, key, form in columns if row.get(key) is not None]
    return "  ".join([title(row["name"]), *values, *([note(row)] if note(row) else [])])


def performance(results: dict[str, Any] | None) -> str:
    """The sentence of the README: the training steps in bfloat16 of a run, or a note that none was measured."""
    rows = [] if results is None else [row for row in results["rows"] if row.get("dtype") == "bfloat16"]
    if results is None or not rows:
        return f"{UNMEASURED}; `python -m experiments.benchmark accelerator` does it within 8 minutes."
    steps = []
    for row in rows:
        share = "" if row.get("percent_of_peak") is None else f" ({row['percent_of_peak']:.0f} % of the peak)"
        steps.append(f"{title(row['name'].split()[0])} {row['images_per_s']:.0f} images/s{share}")
    return f"Training steps in bfloat16 on one {results['environment']['device']}: {', '.join(steps)}."
