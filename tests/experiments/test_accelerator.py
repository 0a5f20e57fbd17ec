"""The accelerator benchmark: a run at toy size, items that fail, and operations counted by hand."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from diffax.nn import EDM2
from diffax.training import flops
from experiments.benchmarks.accelerator import command, networks, sampling, steps, table
from experiments.benchmarks.accelerator.worker import Context

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"device": "a device", "commit": "abc"}


def run(*flags, **env):
    line = [sys.executable, "-m", "experiments.benchmark", "accelerator", *flags]
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"} | env
    return subprocess.run(line, capture_output=True, text=True, env=env, cwd=ROOT, timeout=900)


@pytest.mark.slow
def test_quick_runs_every_item(tmp_path):
    done = run("--quick", "--minutes=14", f"--out={tmp_path}", "--commit=abc")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "accelerator.json").read_text())
    assert [item["name"] for item in report["items"]] == [item.name for item in command.ITEMS]
    assert {row["item"] for row in report["rows"]} == {item.name for item in command.ITEMS}
    assert not [row for row in report["rows"] if "error" in row or row.get("passed") is False]
    assert not [row for row in report["rows"] if "skipped" in row and "not installed" not in row["skipped"]]
    page = (tmp_path / "accelerator.md").read_text()
    for text in ("| device | cpu |", f"jax {jax.__version__}", "| commit | abc |", "DiT-XL/2, remat", "images/s"):
        assert text in page
    assert "% of peak" not in page  # the list of peaks has no CPU


MODULES = {
    "good": "def rows(context):\n    yield {'name': 'one', 'value': 1.0}\n    yield {'name': 'two', 'value': 2.0}\n",
    "failing": "def rows(context):\n    yield {'name': 'before', 'value': 1.0}\n    raise RuntimeError('it broke')\n",
    "crashing": "import os\ndef rows(context):\n    os._exit(7)\n    yield\n",
    "hanging": "import time\ndef rows(context):\n    yield {'name': 'soon', 'value': 1.0}\n    time.sleep(60)\n",
    "broken": "import no_such_module\n",
}


def items(folder, **most):
    for name, text in MODULES.items():
        (folder / f"item_{name}.py").write_text("COLUMNS = (('value', 'value', '.1f'),)\n" + text)
    return [command.Item("x", name, name, f"item_{name}", 0, most.get(name, 60)) for name in MODULES]


def test_an_item_that_fails_does_not_stop_the_others(tmp_path, monkeypatch):
    """Items fail by an exception, by the exit of their process, at import, or by exceeding their time."""
    chosen = items(tmp_path, hanging=6)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    report = command.run([*chosen[1:], chosen[0]], tmp_path, ENVIRONMENT, 8, False, lambda text: None)
    rows = {(row["item"], row["name"]): row for row in report["rows"]}
    assert rows["failing", "before"]["value"] == 1.0
    assert rows["failing", "item_failing"]["error"] == "RuntimeError: it broke"
    assert "status 7" in rows["crashing", "crashing"]["error"]
    assert rows["hanging", "soon"]["value"] == 1.0
    assert rows["hanging", "hanging"]["skipped"] == "stopped: its time was over"
    assert "no_such_module" in rows["broken", "item_broken"]["error"]
    assert rows["good", "two"]["value"] == 2.0
    page = (tmp_path / "accelerator.md").read_text()
    assert "error: RuntimeError: it broke" in page
    assert json.loads((tmp_path / "accelerator.json").read_text()) == report


def test_an_item_that_does_not_fit_the_time_is_skipped(tmp_path, monkeypatch):
    chosen = [item._replace(least=1e6) for item in items(tmp_path)[:1]]
    monkeypatch.syspath_prepend(tmp_path)
    report = command.run(chosen, tmp_path, ENVIRONMENT, 8, False, lambda text: None)
    assert "it needs about 1000000 s" in report["rows"][0]["skipped"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--only=exams"], "only must be among exam, resume, steps, torch, attention, sampling, seeds, digits"),
        (["--minutes=0"], "minutes must be > 0, got 0"),
        (["--out=runs/never"], "device must be an accelerator, got 1 x cpu; --quick runs every item"),
    ],
)
def test_bad_input_is_one_line(flags, message):
    done = run(*flags)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1
    assert not (ROOT / "runs" / "never").exists()


FULL = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 byte"


def test_too_little_memory_halves_the_batch_and_ends_in_a_row(monkeypatch):
    tried = []

    def measure(case, dtype, size, quick, fits=16):
        tried.append(size)
        if size > fits:
            raise RuntimeError(FULL)
        return {"batch": size}

    case = networks.CASES["ddpm"]
    monkeypatch.setattr(steps, "measure", measure)
    assert steps.fitting(case, "float32", False) == {"batch": 16}
    assert tried == [512, 256, 128, 64, 32, 16]
    monkeypatch.setattr(steps, "measure", functools.partial(measure, fits=0))
    row = steps.fitting(case, "float32", False)
    assert row["batch"] == 8
    assert row["error"].startswith("batch 8 does not fit: RuntimeError: RESOURCE_EXHAUSTED")


def test_a_network_that_fails_does_not_stop_the_others(monkeypatch):
    def measure(case, dtype, size, quick):
        if dtype == "bfloat16" and case.net.__class__.__name__ == "DiT":
            raise ValueError("a shape is wrong")
        return {"batch": size}

    monkeypatch.setattr(steps, "measure", measure)
    rows = {row["name"]: row for row in steps.rows(Context(True, 0.0, []))}
    assert rows["dit_b2 bfloat16"]["error"] == rows["dit_xl2 bfloat16"]["error"] == "ValueError: a shape is wrong"
    assert rows["edm2_xs bfloat16"]["batch"] == rows["ddpm float32"]["batch"] == 8


def test_short_runs_add_up_to_one_table(tmp_path, monkeypatch):
    """The table has the results of one environment; results of another device are dropped."""
    chosen = [item for item in items(tmp_path) if item.name in ("good", "failing")]
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    for item in (*chosen, chosen[0]):
        results = command.run([item], tmp_path, ENVIRONMENT, 8, False, lambda text: None)
    assert sorted(row["name"] for row in results["rows"]) == ["before", "item_failing", "one", "two"]
    assert sorted(item["name"] for item in results["items"]) == ["failing", "good"]
    results = command.run(chosen[:1], tmp_path, {"device": "another"}, 8, False, lambda text: None)
    assert sorted(row["name"] for row in results["rows"]) == ["one", "two"]


def test_a_step_that_needs_more_memory_than_the_device_has_raises(monkeypatch):
    monkeypatch.setattr(steps, "memory_limit", lambda: 1000)
    with pytest.raises(MemoryError, match="the device has"):
        steps.measure(networks.TOYS["dit_b2"], "float32", 8, True)


def test_peaks_are_stated_with_their_source():
    for kind in (
        "NVIDIA H100 80GB HBM3",
        "NVIDIA H200",
        "NVIDIA A100-SXM4-40GB",
        "NVIDIA L4",
        "NVIDIA GeForce RTX 4090",
    ):
        peak = flops.peak(kind)
        assert peak.source
        assert peak.float32 == pytest.approx(peak.bfloat16 / 2, rel=0.01)  # TF32
    for kind in ("TPU v4", "TPU v5 lite", "TPU v5p", "TPU v6e", "TPU v6 lite"):
        assert "TPU" in flops.peak(kind).source
    for kind in ("NVIDIA GeForce GTX 1080", "NVIDIA L40S", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA H200 NVL"):
        assert flops.peak(kind) is None
    assert flops.peak("NVIDIA H100 NVL").bfloat16 < flops.peak("NVIDIA H100 80GB HBM3").bfloat16


# Operations by hand. A multiply-add counts as two operations. A convolution over p positions has
# 2 p (window inputs) outputs operations.


def conv(places, inputs, outputs, window=9):
    return 2 * places * window * inputs * outputs


def dit(channels, depth, tokens=256, patch=4 * 4, out=4 * 4):
    """Peebles & Xie 2023: 4 D x D maps for q, k, v and output, 8 in the feed-forward net; the modulation has 6."""
    block = 2 * tokens * 12 * channels**2 + 4 * tokens**2 * channels + 2 * 6 * channels**2
    embedding = 2 * (256 + channels) * channels
    ends = 2 * tokens * (patch + out) * channels + 2 * 2 * channels**2
    return depth * block + embedding + ends


def ddpm():
    """Ho et al. 2020, appendix B: four levels of two blocks, with attention at 16x16 and in the middle."""
    widths, sizes, emb = (128, 256, 256, 256), (32, 16, 8, 4), 512

    def block(inputs, outputs, size):
        skip = conv(size**2, inputs, outputs, 1) if inputs != outputs else 0
        return conv(size**2, inputs, outputs) + conv(size**2, outputs, outputs) + 2 * emb * outputs + skip

    def attention(channels, size):
        return 4 * conv(size**2, channels, channels, 1) + 4 * size**4 * channels

    total = 2 * (128 * emb + emb * emb) + conv(32**2, 3, 128)
    width, skips = 128, [128]
    for level, (outputs, size) in enumerate(zip(widths, sizes, strict=True)):
        for _ in range(2):
            total += block(width, outputs, size) + (attention(outputs, size) if size == 16 else 0)
            width = outputs
            skips.append(width)
        if level < 3:
            total += conv((size // 2) ** 2, width, width)
            skips.append(width)
    total += 2 * block(256, 256, 4) + attention(256, 4)
    for level in (3, 2, 1, 0):
        outputs, size = widths[level], sizes[level]
        for _ in range(3):
            total += block(width + skips.pop(), outputs, size) + (attention(outputs, size) if size == 16 else 0)
            width = outputs
        if level > 0:
            total += conv((2 * size) ** 2, width, width)
    return total + conv(32**2, 128, 3)


def edm2(side):
    """Karras et al. 2024, figure 21, width 128: four levels of three blocks, with attention in the two lowest."""
    widths, emb = (128, 256, 384, 512), 512
    sizes = [side >> level for level in range(4)]

    def block(inputs, outputs, size, attention, encoder):
        first = conv(size**2, outputs if encoder else inputs, outputs)
        skip = conv(size**2, inputs, outputs, 1) if inputs != outputs else 0
        heads = 4 * conv(size**2, outputs, outputs, 1) + 4 * size**4 * outputs if attention else 0
        return first + conv(size**2, outputs, outputs) + skip + 2 * emb * outputs + heads

    total = 2 * emb * (128 + 1001) + conv(side**2, 5, 128)
    width, skips = 128, [128]
    for level in range(4):
        if level:
            total += block(width, width, sizes[level], False, True)
            skips.append(width)
        for _ in range(3):
            total += block(width, widths[level], sizes[level], level >= 2, True)
            width = widths[level]
            skips.append(width)
    total += block(512, 512, sizes[3], True, False) + block(512, 512, sizes[3], False, False)
    for level in (3, 2, 1, 0):
        if level < 3:
            total += block(width, width, sizes[level], False, False)
        for _ in range(4):
            total += block(width + skips.pop(), widths[level], sizes[level], level >= 2, False)
            width = widths[level]
    return total + conv(side**2, 128, 4)


@functools.cache
def forward_flops(case):
    """Operations of one forward pass on one image, as `steps` counts them."""
    params = jax.eval_shape(case.net.init, jax.random.key(0), jnp.zeros((1, *case.shape)), jnp.zeros(1))["params"]
    batch = {name: jax.ShapeDtypeStruct(v.shape, v.dtype) for name, v in networks.batch_of(case, 1).items()}
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    return flops.training_flops(networks.loss_of(case.net), params, batch, keys) / 3


BY_HAND = {"ddpm": ddpm(), "dit_b2": dit(768, 12), "dit_xl2": dit(1152, 28), "edm2_xs": edm2(32)}


@pytest.mark.parametrize("name", BY_HAND)
def test_operations_equal_the_counts_by_hand(name):
    assert forward_flops(networks.CASES[name]) == pytest.approx(BY_HAND[name], rel=0.02)


@pytest.mark.parametrize(("name", "published"), [("dit_b2", 23.01), ("dit_xl2", 118.64)])
def test_operations_equal_the_published_figures(name, published):
    """Gflops of Peebles & Xie 2023, table 4, which counts a multiply-add as one operation."""
    assert forward_flops(networks.CASES[name]) / 2e9 == pytest.approx(published, rel=0.002)


def test_operations_of_edm2_at_the_published_size():
    """Latents of 64x64x4, the training data of Karras et al. 2024."""
    case = networks.Case(EDM2(channels=128, num_classes=1000), (64, 64, 4), 1, 1000)
    assert forward_flops(case) == pytest.approx(edm2(64), rel=0.02)


def test_the_check_of_operations_rejects_a_missing_layer():
    """Negative control: without the operations of attention the DiT does not have the published figure."""
    assert dit(768, 12) - 12 * 4 * 256**2 * 768 != pytest.approx(2 * 23.01e9, rel=0.02)


@pytest.mark.parametrize("name", networks.CASES)
def test_the_networks_in_pytorch_have_the_same_parameters_and_operations(name):
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    from torch.utils.flop_counter import FlopCounterMode

    from experiments.benchmarks.accelerator import torch_networks

    case = networks.CASES[name]
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        net = torch_networks.build(name, case.net, case.shape)
        net(torch.randn(1, case.shape[-1], *case.shape[:-1]), torch.rand(1), torch.zeros(1, dtype=torch.long))
    shapes = jax.eval_shape(case.net.init, jax.random.key(0), jnp.zeros((1, *case.shape)), jnp.zeros(1))["params"]
    assert sum(p.numel() for p in net.parameters()) == sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert counter.get_total_flops() == pytest.approx(forward_flops(case), rel=1e-3)


def test_every_sampler_of_diffusers_is_timed():
    pytest.importorskip("diffusers")
    for name in sampling.PEERS:
        assert sampling.overhead(name, 1)["ratio"] > 0


def test_readme_quotes_the_table():
    path = ROOT / "docs" / "benchmarks" / "accelerator.json"
    report = json.loads(path.read_text()) if path.exists() else None
    assert table.performance(report) in " ".join((ROOT / "README.md").read_text().split())
    page = (ROOT / "docs" / "benchmarks" / "accelerator.md").read_text()
    assert (table.UNMEASURED in page) == (report is None)


def test_the_sentence_about_performance():
    row = {
        "item": "steps",
        "name": "dit_b2 bfloat16",
        "dtype": "bfloat16",
        "images_per_s": 1234.5,
        "percent_of_peak": 36.4,
    }
    report = {"environment": {"device": "NVIDIA H100"}, "rows": [row]}
    expected = "Training steps in bfloat16 on one NVIDIA H100: DiT-B/2 1234 images/s (36 % of the peak)."
    assert table.performance(report) == expected
    assert table.performance(report | {"rows": []}).startswith(table.UNMEASURED)
