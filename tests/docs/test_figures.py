"""docs/figures/index.html is made by the current library: its data, its sources, and the check of the docs build."""

import copy
import re
import sys

import build
import exact_figures
import jax
import numpy as np
import pictures
import pytest
from packing import pack, unpack


def test_the_page_is_small_and_made_from_its_sources(data):
    assert build.PAGE.stat().st_size <= 500_000
    assert build.render(data) == build.PAGE.read_text(), "run python docs/figures/build.py --reuse"


def test_the_page_loads_nothing():
    text = build.PAGE.read_text()
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#|data:)""", text)
    assert not re.findall(r"\bfetch\(|XMLHttpRequest|\bimport\s*\(|@import|url\(", text)


def test_a_page_that_is_too_large_is_not_made(data, monkeypatch):
    monkeypatch.setattr(build, "LIMIT", 1000)
    with pytest.raises(ValueError, match=r"at most 1,000 bytes, got \d"):
        build.render(data)


def test_packed_arrays_keep_values_to_half_a_step():
    values = np.random.default_rng(0).normal(size=(5, 7))
    for dtype, largest in (("int16", 32767), ("int8", 127)):
        step = abs(values).max() / largest
        assert abs(unpack(pack(values, dtype)) - values).max() <= 0.51 * step
    with pytest.raises(ValueError, match="finite, got 1"):
        pack([0.0, np.nan])


def test_levels_and_points_are_current(data):
    """The numbers that are computed in seconds; `test_every_number...` computes all."""
    with jax.enable_x64(True):
        new = {
            "plane": exact_figures.mixture(exact_figures.data_in_the_plane()),
            "line": exact_figures.mixture(exact_figures.data_on_the_line()),
            "islands": exact_figures.mixture(exact_figures.two_islands()),
            "levels": exact_figures.schedules() | {"compass": exact_figures.levels(exact_figures.COMPASS)},
            "forward": exact_figures.forward(),
        }
    assert build.differences({key: data[key] for key in new}, new) == []


def test_a_page_without_data_is_refused(tmp_path):
    page = tmp_path / "index.html"
    page.write_text("<html></html>")
    with pytest.raises(ValueError, match="must hold the data of the figures, got none"):
        build.recorded(page)


@pytest.mark.slow  # trains both networks
def test_every_number_of_the_page_is_current(data):
    old, new = ({k: v for k, v in values.items() if k not in build.NO_NUMBERS} for values in (data, build.compute()))
    assert build.differences(old, new) == []


def changed(data, change):
    """A copy of the data, changed by a function."""
    other = copy.deepcopy(data)
    change(other)
    return other


CHANGES = {
    "levels.linear.alpha": lambda d: d["levels"]["linear"]["alpha"].__setitem__(20, 0.8),
    "reverse.runs.heun_19.states": lambda d: d["reverse"]["runs"]["heun_19"]["states"].update(scale=1e-5),
    "langevin.exact": lambda d: d["langevin"].update(exact=0.7),
    "digits.network_error": lambda d: d["digits"].update(network_error=[1.0] * 19),
    "paths has another shape": lambda d: d["paths"].pop("std"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_numbers_are_named(name, data, monkeypatch, tmp_path):
    monkeypatch.setattr(build, "compute", lambda: data)
    page = tmp_path / "index.html"
    page.write_text(build.render(changed(data, CHANGES[name]) | {"digest": "0" * 16}))
    assert [reason.startswith(name) and "run python" in reason for reason in build.stale(page)] == [True]


def test_a_change_of_the_library_that_moves_no_number_needs_no_new_page(data, monkeypatch, tmp_path):
    monkeypatch.setattr(build, "compute", lambda: data)
    page = tmp_path / "index.html"
    page.write_text(build.render(data | {"digest": "0" * 16}))
    assert build.stale(page) == []


def test_the_digest_follows_the_modules_that_the_numbers_depend_on(data, monkeypatch, tmp_path):
    assert {"diffax.analytic", "diffax.samplers._ddim", "diffax.samplers.engines.stages"} <= set(data["modules"])
    assert all(name.startswith("diffax") for name in data["modules"])
    before = build.digest_of(data["modules"])
    library = tmp_path / "diffax"
    library.mkdir()
    monkeypatch.setattr(build, "LIBRARY", library)
    assert build.digest_of(data["modules"]) != before
    (library / "analytic.py").write_text("x = 1\n")
    first = build.digest_of(["diffax.analytic"])
    (library / "analytic.py").write_text("x = 2\n")
    assert build.digest_of(["diffax.analytic"]) != first


def test_a_page_older_than_its_sources_is_stale_and_the_command_fails(data, monkeypatch, tmp_path):
    page = tmp_path / "index.html"
    page.write_text(build.render(data).replace("Diffusion in nine figures", "Diffusion"))
    monkeypatch.setattr(sys, "argv", ["build.py", "--check", f"--out={page}"])
    with pytest.raises(SystemExit, match="out of date: its HTML, CSS or JavaScript has changed"):
        build.main()


def test_still_pictures_are_small():
    files = {name: exact for name in pictures.PICTURES if (exact := pictures.IMAGES / f"figures_{name}.png")}
    assert all(path.stat().st_size < 150_000 for path in files.values())
