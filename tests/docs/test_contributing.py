"""The worked diffs of CONTRIBUTING.md apply to the tree, and each adds its part everywhere."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECTIONS = re.findall(r"## Adding a ([\w ]+)\n.*?```diff\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)
DIFFS = dict(SECTIONS)
FILES = {"sampler": 2, "schedule": 3, "kind of data": 1}  # in each diff

CHECKS = {
    "sampler": """
import jax, exam, diffax
from diffax import pretrained
from experiments.benchmarks import rows
from experiments.models.samplers import check_sampler
from diffax.samplers import by_name

assert by_name("ralston", diffax.Cosine()).calls == 2
assert pretrained.entries("ralston", diffax.Cosine(), 21) == 11
check_sampler("sampler", "ralston")
assert "ralston" in rows.DETERMINISTIC and exam.CLAIMED["ralston"] == 2
assert "ralston" in diffax.__all__ and "ralston" in diffax.samplers.__doc__
with jax.enable_x64(True):
    orders = exam.check_order(exam.ORDERS["ralston"](exam.SCHEDULES["linear"]), exam.problem(exam.SCHEDULES["linear"]))
assert (orders < 2.3).all(), orders
""",
    "schedule": """
import numpy as np
import jax, exam, diffax
from commands import built
from experiments.configs import default

assert "Polynomial" in diffax.__all__ and "Polynomial" in diffax.schedules.__all__
assert "polynomial" in diffax.schedules.__doc__ and "polynomial" in exam.SCHEDULES
config = default.get_config()
config.schedule.name = "polynomial"
schedule = built(config).diffusion.schedule()
assert schedule == diffax.Polynomial()
with jax.enable_x64(True):
    t = np.linspace(0.01, 0.999, 100)
    np.testing.assert_allclose(schedule(t).alpha, 1 - t**2, rtol=1e-12)
    np.testing.assert_allclose(schedule.inverse(schedule.log_snr(t)), t, rtol=1e-12)
""",
    "kind of data": """
from pathlib import Path
import numpy as np
from commands import run
from experiments.data import kinds
from experiments.data.datasets import open_dataset

heights = np.random.default_rng(0).normal(500.0, 100.0, (20, 8, 6, 1)).astype(np.float32)
np.savez("heights.npz", x=heights)
run("prepare", "--name=hills", "--arrays=heights.npz", "--kind=terrain", "--data_dir=sets")
dataset, kind = open_dataset("hills", "sets"), kinds.of("terrain")
assert dataset.units.kind == "terrain" and Path("sets/hills.png").exists()
x = dataset.normalise(heights)
assert 0.45 < x.std() < 0.55
np.testing.assert_allclose(kind.denormalise(x, dataset.units), heights, rtol=1e-5)
files = kind.save(Path("sample"), heights, dataset.units)
assert len(files) == 20
np.testing.assert_allclose(np.loadtxt(files[3], skiprows=5), heights[3, ..., 0], rtol=1e-5)
# A slope that rises to the east is brighter than one that falls.
ramp = np.broadcast_to(np.abs(np.arange(6.0) - 3)[:, None], (1, 8, 6, 1))
picture = kind.picture(ramp, dataset.units, columns=1)
assert picture[0, 0].mean() < picture[0, -100].mean()
""",
}


def apply(diff, folder, *options):
    # Inside a checkout git would drop the paths that are outside of the current folder.
    env = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    subprocess.run(["git", "apply", *options, "-"], input=diff, text=True, cwd=folder, env=env, check=True)


def python(folder, *arguments):
    """Run Python in the copy, and fail with its output if it fails."""
    env = {**os.environ, "PYTHONPATH": f"{folder}:{folder / 'tests'}"}
    process = subprocess.run([sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """A copy of the tree with all diffs of the page, after the commands of the page."""
    folder = tmp_path_factory.mktemp("contributing")
    skip = shutil.ignore_patterns("__pycache__", "*.png", "*.csv", "golden")
    for name in ("diffax", "docs", "experiments", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=skip)
    for name in ("README.md", "CONTRIBUTING.md", "pyproject.toml", "setup.cfg"):
        shutil.copy(ROOT / name, folder)
    for diff in DIFFS.values():
        apply(diff, folder)
    python(folder, "docs/tables.py")
    python(folder, "-m", "ruff", "check", "--quiet", "--no-cache", "--fix", ".")
    return folder


def test_the_page_has_the_three_diffs():
    counts = {name: len(re.findall(r"^diff --git", diff, re.M)) for name, diff in DIFFS.items()}
    assert counts == FILES


@pytest.mark.parametrize("name", FILES)
def test_a_diff_applies_by_itself(name):
    apply(DIFFS[name], ROOT, "--check")


def test_the_changed_tree_is_formatted_and_its_tables_are_up_to_date(changed):
    python(changed, "-m", "ruff", "format", "--check", "--no-cache", "diffax", "experiments", "tests")
    python(changed, "docs/tables.py", "--check")


@pytest.mark.newest
@pytest.mark.parametrize("name", FILES)
def test_the_part_that_a_diff_adds_works_everywhere(changed, name):
    python(changed, "-c", CHECKS[name])


@pytest.mark.slow
def test_new_rows_pass_the_exam(changed):
    files = [f"tests/{name}" for name in ("samplers/test_samplers.py", "schedules/test_schedules.py")]
    python(changed, "-m", "pytest", "-n0", "-p", "no:cacheprovider", "-k", "ralston or polynomial", *files)
    python(changed, "-m", "pytest", "-n0", "-p", "no:cacheprovider", "tests/test_catalogue.py", "tests/test_layout.py")
