"""Hosted checks call the parts of .ci/run; templates and metadata are valid; .ci finds interpreters and bounds."""

import importlib.util
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

import diffax

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted(set((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")) - {ROOT / ".github/ISSUE_TEMPLATE/config.yml"})


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_ci(*parts):
    return subprocess.run([ROOT / ".ci" / "run", *parts], capture_output=True, text=True, timeout=60)


def parts():
    """The parts that .ci/run lists in its error for an unknown part."""
    process = run_ci("nothing")
    assert process.returncode == 2
    return re.fullmatch(r"error: part must be one of ([\w ]+), got nothing\n", process.stderr)[1].split()


def test_an_unknown_part_is_refused_before_the_others_run():
    process = run_ci("lint", "nothing")
    assert (process.returncode, process.stdout) == (2, "")


def test_every_part_is_a_function_of_the_script():
    functions = re.findall(r"^run_(\w+)\(\)", (ROOT / ".ci" / "run").read_text(), re.M)
    assert sorted(functions) == sorted(parts())


def test_workflows_call_every_part_and_no_other():
    called = set()
    for path in WORKFLOWS:
        workflow = yaml.safe_load(path.read_text())
        assert workflow[True], "the key `on` is True in YAML 1.1"
        for job in workflow["jobs"].values():
            assert ("uses" in job) != ("runs-on" in job and bool(job["steps"]))
            for step in job.get("steps", []):
                for line in re.findall(r"\.ci/run\b(.*)", step.get("run", "")):
                    assert line.split(), f"{path.name} must name the parts, got {step['run']!r}"
                    called |= set(line.split())
    assert called == set(parts())


def test_variables_of_workflows_are_read_by_the_script():
    text = (ROOT / ".ci" / "run").read_text()
    names = {
        name
        for path in WORKFLOWS
        for job in yaml.safe_load(path.read_text())["jobs"].values()
        for name in job.get("env", {})
    }
    assert names == {"PYTHON", "NEWEST", "OLDEST", "DIST"}
    assert all(re.search(rf"\${{{name}:-", text) for name in names)


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms_have_the_keys_that_they_need(path):
    form = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= form.keys()
    identifiers = [field["id"] for field in form["body"]]
    assert len(identifiers) == len(set(identifiers))
    for field in form["body"]:
        assert field["type"] in ("textarea", "input", "dropdown")
        assert field["attributes"]["label"]
        assert ("options" in field["attributes"]) == (field["type"] == "dropdown")


def test_the_citation_has_the_required_keys_and_the_version_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["cff-version"] == "1.2.0"
    assert citation["authors"] == [{"name": "The diffax authors"}]
    assert str(citation["version"]) == diffax.__version__


def interpreter(path, body):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def newest_python(*folders):
    # PATH has the tools of the script, but not the interpreters of this machine.
    env = {"PATH": ":".join(map(str, folders))}
    command = ["/bin/bash", str(ROOT / ".ci" / "newest_python")]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def tools(tmp_path):
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("ls", "sort", "sh"):
        source = next(path for path in (Path("/bin") / name, Path("/usr/bin") / name) if path.exists())
        (folder / name).symlink_to(source)
    return folder


def test_an_interpreter_that_does_not_start_is_skipped(tmp_path, tools):
    names = tmp_path / "launchers"
    interpreter(names / "python3", f"echo {tmp_path}/versions/3.11.2")
    interpreter(names / "python3.13", "exit 127")
    expected = interpreter(tmp_path / "versions" / "3.13.1" / "bin" / "python3.13", "exit 0")
    interpreter(tmp_path / "versions" / "3.12.1" / "bin" / "python3.12", "exit 0")
    (tmp_path / "versions" / "3.11.2").mkdir()
    assert os.path.realpath(newest_python(names, tools)) == str(expected)


def test_an_interpreter_on_the_path_is_found_and_a_missing_one_is_no_error(tmp_path, tools):
    assert newest_python(tools) == ""
    expected = interpreter(tmp_path / "bin" / "python3.12", "exit 0")
    assert newest_python(tmp_path / "bin", tools) == str(expected)


def test_the_oldest_versions_are_the_bounds_of_the_project(tmp_path, monkeypatch):
    oldest = script("oldest")
    names = [constraint.partition("==")[0] for constraint in oldest.constraints()]
    assert names == ["jax", "flax", "optax", "orbax-checkpoint", "safetensors"]
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["jax>=0.10.2", "flax"]\n')
    monkeypatch.setattr(oldest, "PROJECT", tmp_path / "pyproject.toml")
    with pytest.raises(ValueError, match="dependencies must be NAME>=VERSION, got 'flax'"):
        oldest.constraints()


def test_the_check_of_the_wheel_passes_here(capsys):
    script("check_wheel").main(str(ROOT / "README.md"))
    assert f"diffax {diffax.__version__} works" in capsys.readouterr().out
