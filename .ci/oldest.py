"""Print a constraint NAME==VERSION for the lower bound of each dependency of the library in pyproject.toml."""

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def constraints() -> list[str]:
    """The constraints.

    Raises:
      ValueError: for a dependency without a lower bound.
    """
    dependencies = tomllib.loads(PROJECT.read_text())["project"]["dependencies"]
    bounds = {text: re.fullmatch(r"([\w.-]+)>=([\w.]+)", text) for text in dependencies}
    for text, bound in bounds.items():
        if bound is None:
            raise ValueError(f"dependencies must be NAME>=VERSION, got {text!r}")
    return [f"{bound[1]}=={bound[2]}" for bound in bounds.values() if bound]


if __name__ == "__main__":
    print(*constraints(), sep="\n")
