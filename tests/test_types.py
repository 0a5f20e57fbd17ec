"""Types: a user's script under mypy and pyright, and the number of arguments annotated with `Any`."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "tests" / "typing_user.py"
MOST_ANY = 100


def errors(*command):
    """The output of a type checker that fails; "" if it passes."""
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return result.stdout + result.stderr if result.returncode else ""


@pytest.fixture(scope="module")
def mypy(tmp_path_factory):
    """The mypy command, with one cache for all tests of this module."""
    pytest.importorskip("mypy")
    return sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path_factory.mktemp("mypy")


@pytest.mark.slow
def test_mypy_accepts_a_users_script(mypy):
    assert not errors(*mypy, SCRIPT)


@pytest.mark.slow
def test_mypy_rejects_wrong_arguments(mypy, tmp_path):
    script = tmp_path / "wrong.py"
    script.write_text(
        "import diffax\n"
        "schedule = diffax.Cosine()\n"
        'diffax.denoiser(lambda x, t: x, schedule, "noise")\n'
        'diffax.unipc(schedule, variant="bh3")\n'
        "diffax.ddim(lambda t: t)\n"
    )
    output = errors(*mypy, script)
    assert [line for line in (3, 4, 5) if f"wrong.py:{line}: error" not in output] == []


def test_pyright_accepts_a_users_script():
    checker = shutil.which("basedpyright") or shutil.which("pyright")
    if checker is None:
        pytest.skip("pyright is not installed")
    assert not errors(checker, "--pythonpath", sys.executable, "--level", "error", SCRIPT)


def test_few_arguments_are_any():
    untyped = []
    for path in sorted((ROOT / "diffax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                every = ast.walk(node.args)
                named = [a for a in every if isinstance(a, ast.arg) and isinstance(a.annotation, ast.Name)]
                untyped += [f"{path.name}: {node.name}({a.arg})" for a in named if a.annotation.id == "Any"]
    assert len(untyped) <= MOST_ANY, untyped
