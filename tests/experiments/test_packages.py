"""The packages of experiments import only from lower levels, and no function below a command takes a config."""

import ast
import functools
from pathlib import Path

import pytest

import experiments

pytestmark = pytest.mark.newest
ROOT = Path(experiments.__path__[0])
LEVELS = [
    ("configs",),
    ("data",),
    ("models",),
    ("model",),
    ("run",),
    ("evaluation",),
    ("reporting", "launch"),
    ("benchmarks",),
    ("sweeping",),
    ("sweeps",),
]
COMMANDS = {"benchmark", "evaluate", "export", "prepare", "report", "sample", "sweep", "train"}
# Functions that may take a config: the parser, the rules between settings, and the constructors of objects.
PARSERS = {
    "model.py:build",
    "run/inputs.py:opened",
    "sweeping/definition.py:identity",
    "sweeping/settings.py:as_fid",
    "sweeping/oracle_task.py:parse",
    "sweeping/sample_task.py:parse",
    "sweeping/train_task.py:parse",
}


@functools.cache
def modules():
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}


def level(name):
    return next(i for i, names in enumerate(LEVELS) if name in names)


def imported(tree):
    """The first component of each import from experiments."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "experiments":
            names = node.module.split(".")[1:2] or [alias.name for alias in node.names]
            yield from names


def test_the_root_has_the_commands_and_the_model():
    files = {path.stem for path in ROOT.glob("*.py")}
    assert files == COMMANDS | {"model", "__init__"}


@pytest.mark.parametrize("path", [path for path in modules() if path != "__init__.py"])
def test_modules_import_only_from_lower_levels(path):
    own = path.split("/")[0].removesuffix(".py")
    for name in imported(modules()[path]):
        if own not in COMMANDS:
            assert name == own or level(name) < level(own), f"{path} imports {name}"


def test_no_function_below_a_command_takes_a_config():
    for path, tree in modules().items():
        if path.removesuffix(".py") in COMMANDS or path.startswith(("benchmarks/", "configs/")):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and f"{path}:{node.name}" not in PARSERS:
                names = [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]
                assert "config" not in names, f"{node.name} in {path}"


def test_files_are_short():
    lengths = {path: len((ROOT / path).read_text().splitlines()) for path in modules()}
    long = {path: n for path, n in lengths.items() if n > 300 and not path.startswith("benchmarks/")}
    assert not long
