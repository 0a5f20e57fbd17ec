"""The site: its navigation and links are whole, and every public name is documented."""

import ast
import importlib
import importlib.util
import inspect
import itertools
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import yaml

import diffax

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "hooks.py")
hooks = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(hooks)
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
PAGES = sorted(str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")) + sorted(hooks.OUTSIDE)
REFERENCE = [
    name
    for path in sorted((ROOT / "docs" / "api").glob("*.md"))
    for name in re.findall(r"^::: (\S+)$", path.read_text(), re.M)
]


# ---------------------------------------------------------------------------------------------- navigation and links


def in_nav(entry):
    """The pages of the navigation below an entry."""
    if isinstance(entry, str):
        return [entry]
    values = entry.values() if isinstance(entry, dict) else entry
    return [page for value in values for page in in_nav(value)]


def test_the_navigation_has_every_page_once():
    listed = in_nav(CONFIG["nav"])
    assert sorted(page for page in listed if page.endswith(".md")) == sorted(PAGES)
    assert [page for page in listed if page not in PAGES and not (ROOT / "docs" / page).exists()] == []


def anchors(path):
    """The anchors of the headings of a page, as Python-Markdown makes them."""
    text = hooks.FENCE.sub("", path.read_text())
    titles = [re.sub(r"\[([^\]]*)\]\([^)]*\)|`", r"\1", title) for title in re.findall(r"^#+ (.*)$", text, re.M)]
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


def broken(source, text):
    """The relative links of a page without a target."""
    for link in hooks.relative_links(text):
        target, anchor = hooks.target_of(source, link)
        path = ROOT / target
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            yield link


@pytest.mark.parametrize("source", ["README.md", *map(hooks.source_of, PAGES)])
def test_links_lead_to_files_and_headings(source):
    assert list(broken(source, (ROOT / source).read_text())) == []


def test_a_broken_link_is_detected():
    text = "[a](data.md) [b](dat.md) [c](data.md#augmentation) [d](data.md#augment) [e](#here) ![f](images/none.png)"
    assert list(broken("docs/index.md", text)) == ["dat.md", "data.md#augment", "#here", "images/none.png"]


def test_links_are_rewritten_for_the_site():
    text = "[a](../experiments/README.md#start) [b](../tests/exam.py) [c](data.md) [d](https://x.org) [e](nowhere.md)\n"
    code = "```python\n[a](../tests/exam.py)\n```\n"
    expected = "[a](commands.md#start) b [c](data.md) [d](https://x.org) [e](nowhere.md)\n"
    assert hooks.site_links(text + code, "index.md") == expected + code
    assert hooks.site_links("![a](docs/images/digits.png)", "changelog.md") == "![a](images/digits.png)"
    assert hooks.site_links("[docs/data.md](../docs/data.md)", "commands.md") == "[Your own data](data.md)"
    assert hooks.site_links("[a](../sweeps.md#x)", "sweeps/results.md") == "[a](../sweeps.md#x)"


# ---------------------------------------------------------------------------------------------- reference


def namespaces():
    """The namespaces in the map of `diffax.__init__`."""
    return re.findall(r"^    ([a-z][\w.]*) {2,}\S", diffax.__doc__.partition("Ten lines")[0], re.M)


def public(name):
    """The public names of a module: those of __all__, or the functions and classes that it defines."""
    module = importlib.import_module(name)
    if hasattr(module, "__all__"):
        return module.__all__
    is_own = lambda value: inspect.isroutine(value) or inspect.isclass(value)
    return [
        key
        for key, value in vars(module).items()
        if not key.startswith("_") and is_own(value) and value.__module__ == name
    ]


def constants_with_docstrings():
    """Names that a module of diffax assigns and documents by a string below, as "diffax.NAMESPACE.NAME"."""
    for path in (ROOT / "diffax").rglob("*.py"):
        namespace = path.relative_to(ROOT / "diffax").parts[0].removesuffix(".py")
        body = ast.parse(path.read_text()).body
        for before, after in itertools.pairwise(body):
            target = before.targets[0] if isinstance(before, ast.Assign) else getattr(before, "target", None)
            if isinstance(target, ast.Name) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                yield f"diffax.{namespace}.{target.id}"


def undocumented(names, constants):
    """The names, as (module, attribute), of functions, classes and constants without a docstring."""
    for module, key in names:
        value = getattr(importlib.import_module(module), key)
        if inspect.isroutine(value) or inspect.isclass(value) or inspect.ismodule(value):
            documented = bool((value.__doc__ or "").strip()) and not value.__doc__.startswith(f"{key}(")
        else:
            documented = ".".join([*module.split(".")[:2], key]) in constants
        if not documented:
            yield f"{module}.{key}"


def test_every_namespace_is_in_the_reference():
    listed = {f"diffax.{name}" for name in namespaces()}
    assert len(listed) > 15
    assert listed <= set(REFERENCE)
    assert len(REFERENCE) == len(set(REFERENCE))


def test_every_public_name_has_a_docstring():
    names = [(name, key) for name in REFERENCE for key in public(name)]
    assert len(names) > 250
    assert list(undocumented(names, set(constants_with_docstrings()))) == []


def test_every_name_of_diffax_is_in_a_namespace_of_the_reference():
    described = {id(getattr(importlib.import_module(name), key)) for name in REFERENCE for key in public(name)}
    described |= {id(importlib.import_module(name)) for name in REFERENCE}
    missing = [name for name in diffax.__all__ if id(getattr(diffax, name)) not in described]
    assert missing == ["Denoiser", "Predict"]  # aliases of `Any`, described in diffax.typing


def test_an_undocumented_name_is_detected(monkeypatch):
    class Bare(tuple):
        pass

    module = types.ModuleType("bare")
    module.f, module.Bare, module.CONSTANT = (lambda x: x), Bare, 3
    monkeypatch.setitem(sys.modules, "bare", module)
    names = [("bare", "f"), ("bare", "Bare"), ("bare", "CONSTANT")]
    assert list(undocumented(names, {"diffax.times.CONSTANT"})) == ["bare.f", "bare.Bare", "bare.CONSTANT"]


@pytest.mark.slow
def test_the_site_builds_and_shows_every_public_name(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-4000:]
    html = "".join(path.read_text() for path in (tmp_path / "site" / "api").rglob("*.html"))
    shown = set(re.findall(r'id="(diffax\.[\w.]+)"', html))
    assert {f"{name}.{key}" for name in REFERENCE for key in public(name)} <= shown
