"""Old names raise ordinary errors, and docs/renamed.md lists new names that exist."""

import importlib
import re
from pathlib import Path

import pytest

import diffax

ROWS = re.findall(r"^\| (`.*) \| (.*) \|$", (Path(__file__).parents[1] / "docs" / "renamed.md").read_text(), re.M)
OLD = re.findall(r"`diffax\.([a-zA-Z_]\w*)`", " ".join(old for old, _ in ROWS))
NEW = re.findall(r"`(diffax(?:\.[A-Za-z_]\w*)+)", " ".join(new for _, new in ROWS))
KEPT = {"guidance"}


@pytest.mark.parametrize("name", sorted(set(OLD) - KEPT))
def test_an_old_name_raises_an_ordinary_error(name):
    with pytest.raises(AttributeError, match=name):
        getattr(diffax, name)
    with pytest.raises(ImportError):
        importlib.import_module(f"diffax.{name}")


@pytest.mark.parametrize("path", sorted(set(NEW)))
def test_a_new_name_exists(path):
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            value = getattr(value, part)
        return
    raise AssertionError(path)
