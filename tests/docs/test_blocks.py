"""Every Python block of README.md and of the site runs, and the flags and settings of every command exist."""

import json
import re
import shlex
import shutil
from pathlib import Path

import jax
import pytest
from test_interop import FOLDERS
from test_pretrained import diffusion, saved

import diffax
from experiments.configs import settings
from experiments.sweeping import definition

ROOT = Path(__file__).parents[2]
PAGES = sorted(["README.md", "CONTRIBUTING.md", "experiments/README.md"]) + sorted(
    str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")
)
# Pages whose blocks another test runs, because it also checks their results or gives them files to read.
ELSEWHERE = {
    "docs/data.md": "tests/experiments/test_own_data.py",
    "docs/recipes.md": "tests/test_recipes.py",
    "docs/training.md": "tests/training/test_fit.py",
}
SLOW = ("docs/networks.md",)
# Values that are replaced so that a block runs in seconds.
SMALLER = {
    "docs/networks.md": [("channels=128, channel_multipliers=(1, 2, 2, 2)", "channels=8, channel_multipliers=(1, 2)")],
}
DDPM = {"_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_schedule": "linear", "clip_sample": True}
DDPM |= {"beta_start": 1e-4, "beta_end": 0.02, "prediction_type": "epsilon", "variance_type": "fixed_small"}


def blocks(page, language="python"):
    """The code blocks of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), re.M | re.S)


def write_models(folder):
    """Write the models that pages read: an export, and a folder of diffusers."""
    saved(folder / "exports" / "digits", diffusion(shape=(8, 8, 1)))
    shutil.copytree(FOLDERS / "unet_ddpm", folder / "ddpm-cifar10-32")
    (folder / "ddpm-cifar10-32" / "scheduler_config.json").write_text(json.dumps(DDPM))


def run_blocks(page, namespace):
    """Run the Python blocks of a page in order. The page of the commands uses `jax` and `diffax` without imports."""
    for number, block in enumerate(blocks(page)):
        for old, new in SMALLER.get(page, []):
            block = block.replace(old, new)
        exec(compile(block, f"{page}, Python block {number}", "exec"), namespace)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] if page in SLOW else [])
        for page in PAGES
        if blocks(page) and page not in ELSEWHERE
    ],
)
def test_the_python_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    write_models(tmp_path)
    monkeypatch.chdir(tmp_path)
    run_blocks(page, {"__name__": "page", "jax": jax, "diffax": diffax})


def test_pages_with_a_test_of_their_own_are_run_by_it():
    for page, test in ELSEWHERE.items():
        assert blocks(page), page
        assert re.search(rf'PAGE = .*"{Path(page).name}"', (ROOT / test).read_text()), test


def test_the_sweep_of_the_page_has_six_runs(tmp_path):
    (block,) = blocks("docs/sweeps.md")
    (tmp_path / "two_losses.py").write_text(block)
    runs = definition.load(tmp_path / "two_losses.py").runs.values()
    assert [run.config.loss.weighting for run in runs] == ["eps"] * 3 + ["min_snr"] * 3


# ---------------------------------------------------------------------------------------------- commands


def commands(text):
    """(module, positional arguments and flags) of every `python -m experiments.*` in lines of a shell."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        for command in " ".join(map(shlex.quote, words)).split(" '&&' "):
            words = shlex.split(command)
            if "-m" in words and words[words.index("-m") + 1].startswith("experiments."):
                module, *arguments = words[words.index("-m") + 1 :]
                yield module.removeprefix("experiments."), arguments


def flags_of(module, arguments):
    """All strings in the source of a command, which include the names of its flags (absl or argparse)."""
    files = {"launch.tpu_vm": "launch/arguments.py"}
    if module == "benchmark":  # its first argument names a module
        part = "loop" if arguments[0].startswith("--") else arguments[0]
        files = {module: "benchmarks/accelerator/command.py" if part == "accelerator" else f"benchmarks/{part}.py"}
    folder = ROOT / "experiments"
    sources = [folder / files.get(module, module.replace(".", "/") + ".py"), folder / "run" / "distributed.py"]
    return {name for source in sources for name in re.findall(r'"(?:--)?(\w+)"', source.read_text())}


def check(module, arguments):
    """Raise an error for a flag or a setting that does not exist."""
    if module == "launch.tpu_vm" and "--" in arguments:  # the flags of experiments.train follow
        arguments, training = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]
        check("train", training)
    flags = dict(argument[2:].partition("=")[::2] for argument in arguments if argument.startswith("--"))
    own = {name for name in flags if not name.startswith("config.")}
    unknown = own - flags_of(module, arguments)
    assert not unknown, f"{module}: {unknown}"
    if module == "train" and not flags["config"].isupper():  # NAME stands for any config
        changes = [f"{name}={flags[name]}" for name in flags if name not in own]
        settings.load_config(flags["config"], changes)


@pytest.mark.parametrize("page", [page for page in PAGES if "-m experiments." in " ".join(blocks(page, "bash"))])
def test_flags_and_settings_of_the_commands_of_a_page_exist(page, tmp_path, monkeypatch):
    write_models(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for block in blocks(page, "bash"):
        for module, arguments in commands(block):
            check(module, arguments)


def test_all_commands_are_found():
    modules = [module for page in PAGES for block in blocks(page, "bash") for module, _ in commands(block)]
    assert len(modules) > 80
    assert {"train", "sample", "evaluate", "export", "prepare", "sweep", "report", "benchmark"} <= set(modules)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("python -m experiments.train --config=digits --worddir=runs", AssertionError),
        ("cd there && python -m experiments.sample --checkpoint=runs --nums=3", AssertionError),
        ("python -m experiments.benchmark samplers --budget=5", AssertionError),
        ("python -m experiments.train --config=digits --config.train.steps=3", ValueError),
        ("python -m experiments.train --config=digit", ValueError),
    ],
)
def test_a_flag_setting_or_config_that_does_not_exist_is_detected(line, error):
    ((module, arguments),) = commands(line)
    with pytest.raises(error):
        check(module, arguments)
