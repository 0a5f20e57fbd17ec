"""Measure a training step: time, images/s, FLOP/s, compile time, memory; by layout and devices.

    python -m experiments.benchmark train --out=DIR [--networks=digits,pixels32] [--devices=1,8] [--forms=pmap,jit,fsdp]

The step is that of `experiments.train` (AdamW, clipping, EMA, dropout) on random images. Where torch and diffusers are
installed, the same step of their UNet2DModel of the same shape is timed in turn with ours, in the same run.

    compile     tracing and compiling, without a cache
    step        median and range over `--repeats` steps, with synchronisation after each
    FLOP/s      model FLOPs (`flops.training_flops`) over the median; share of the bfloat16 peak of all devices
    memory      of a device, reported by XLA: state, batch and temporaries of the compiled step
"""

import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags

import diffax
from diffax.nn.description import DTYPES as NAMES_OF_DTYPES
from diffax.pretrained import Units
from diffax.training import flops, init_state, make_mesh, train_step
from experiments.benchmarks import train_peers
from experiments.configs import default
from experiments.model import Data, build
from experiments.run import inputs

NETWORKS = flags.DEFINE_list("networks", ["digits", "pixels32"], "Of digits, pixels32, ddpm.")
DEVICES = flags.DEFINE_list("devices", None, "Numbers of devices; by default 1 and all.")
FORMS = flags.DEFINE_list("forms", list(inputs.FORMS), "Of pmap, jit, fsdp.")
DTYPES = flags.DEFINE_list("dtypes", ["float32"], "Of float32, bfloat16.")
REMAT = flags.DEFINE_list("remat", ["False"], "Of False, True.")
REPEATS = flags.DEFINE_integer("repeats", 20, "Timed steps.", lower_bound=1)
OUT = flags.DEFINE_string("out", "benchmark", "Folder for train.md and train.json.")


class Network(NamedTuple):
    """A network and its data."""

    shape: tuple[int, ...]
    batch_size: int
    settings: dict[str, Any]


SIZES = {
    "digits": Network((8, 8, 1), 128, {}),
    "pixels32": Network((32, 32, 3), 32, {"channels": 32, "channel_multipliers": (1, 2, 2), "attention_levels": (2,)}),
    "ddpm": Network((32, 32, 3), 128, {"channels": 128, "channel_multipliers": (1, 2, 2, 2), "attention_levels": (1,)}),
}


def config_of(network: Network, dtype: str, remat: bool) -> Any:
    """The config of a case: the defaults except for its network."""
    config = default.get_config()
    config.dataset.batch_size = network.batch_size
    config.network.update({**network.settings, "dtype": dtype, "remat": remat, "conditional": False})
    return config


def seconds(step: Any, state: Any, batch: Any) -> tuple[float, Any]:
    """(time of one step including synchronisation, the state after it)."""
    start = time.perf_counter()
    state, metrics = step(state, batch)
    jax.block_until_ready((state, metrics))
    return time.perf_counter() - start, state


def measure(name: str, form: str, count: int, dtype: str, remat: bool, repeats: int) -> dict[str, Any]:
    """A row of the table."""
    network = SIZES[name]
    config = config_of(network, dtype, remat)
    model = build(config, Data(network.shape, None, Units()))
    params = jax.jit(model.init)(jax.random.key(0))
    objective, optimizer, mesh = model.objective(), model.optimizer.make(), make_mesh(jax.devices()[:count])
    one = train_step(objective.loss, optimizer, ema_decay=config.optimizer.ema_decay)
    step, batch = inputs.FORMS[form](one, mesh), example_batch(network)
    state = step.place(init_state(jax.random.key(1), params, optimizer))
    operations = flops.training_flops(objective.loss, params, batch, jax.random.split(state.key, network.batch_size))
    start = time.perf_counter()
    memory = step.lower(state, batch).compile().memory_analysis()
    compiling = time.perf_counter() - start
    _, state = seconds(step, state, batch)
    times = []
    for _ in range(repeats):
        took, state = seconds(step, state, batch)
        times.append(took)
    median = float(np.median(times))
    known = flops.peak(jax.devices()[0].device_kind)
    return {
        "network": name,
        "what": f"diffax {form}",
        "devices": count,
        "dtype": dtype,
        "remat": remat,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "batch": network.batch_size,
        "compile_s": compiling,
        "step_s": median,
        "step_range_s": [min(times), max(times)],
        "images_per_s": network.batch_size / median,
        "flops_per_s": operations / median,
        "share_of_peak": operations / median / known.bfloat16 / count if known else None,
        "memory_bytes": memory and memory.argument_size_in_bytes + memory.temp_size_in_bytes,
    }


def example_batch(network: Network) -> dict[str, np.ndarray]:
    """Random images."""
    images = np.random.default_rng(0).uniform(-1, 1, (network.batch_size, *network.shape)).astype(np.float32)
    numbers = np.arange(network.batch_size, dtype=np.int32)
    return {"x": images, "label": 0 * numbers, "index": numbers}


COLUMNS = ["network", "what", "devices", "parameters", "batch", "compile s", "step ms [range]"]
COLUMNS += ["images/s", "GFLOP/s", "% of peak", "MiB"]


def line(row: dict[str, Any]) -> str:
    """A row as Markdown."""
    low, high = row["step_range_s"]

    def number(value, scale, form):
        return "" if value is None else format(value / scale, form)

    what = [row["what"], *([] if row["dtype"] == "float32" else [row["dtype"]]), *(["remat"] if row["remat"] else [])]
    cells = [
        row["network"],
        ", ".join(what),
        row["devices"],
        f"{row['parameters']:,}",
        row["batch"],
        number(row["compile_s"], 1, ".1f"),
        f"{1e3 * row['step_s']:.1f} [{1e3 * low:.1f}, {1e3 * high:.1f}]",
        f"{row['images_per_s']:.0f}",
        number(row["flops_per_s"], 1e9, ".1f"),
        number(row["share_of_peak"], 1e-2, ".1f"),
        number(row["memory_bytes"], 2**20, ".0f"),
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def cases() -> list[tuple[str, str, int, str, bool]]:
    """The cases that the flags select.

    Raises:
      ValueError: for an unknown name, or a number of devices that does not exist or does not divide a batch.
    """
    here = len(jax.devices())
    counts = DEVICES.value or sorted({"1", str(here)}, key=int)
    for flag, chosen, known in (
        ("networks", NETWORKS.value, SIZES),
        ("forms", FORMS.value, inputs.FORMS),
        ("dtypes", DTYPES.value, NAMES_OF_DTYPES),
        ("remat", REMAT.value, ("False", "True")),
        ("devices", counts, [str(n) for n in range(1, here + 1)]),
    ):
        for one in chosen:
            if one not in known:
                raise ValueError(f"{flag} must be among {', '.join(known)}, got {one!r}")
    for name in NETWORKS.value:
        for count in counts:
            if SIZES[name].batch_size % int(count):
                raise ValueError(f"devices must divide the batch of {name}, {SIZES[name].batch_size}, got {count}")
    return [
        (name, form, int(count), dtype, remat == "True")
        for name in NETWORKS.value
        for count in counts
        for form in FORMS.value
        for dtype in DTYPES.value
        for remat in REMAT.value
    ]


def main(argv: list[str]) -> None:
    """Measure, print, write."""
    try:
        if argv[1:]:
            raise ValueError(f"flags must be --NAME=VALUE, got {' '.join(argv[1:])!r}")
        wanted = cases()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    libraries = {"jax": jax.__version__, "diffax": diffax.__version__, **train_peers.libraries()}
    where = f"{len(jax.devices())} x {jax.devices()[0].device_kind}"
    versions = ", ".join(f"{library} {version}" for library, version in libraries.items())
    lines = [f"{where}, {versions}", "", f"| {' | '.join(COLUMNS)} |", "| --- " * len(COLUMNS) + "|"]
    print("\n".join(lines), flush=True)
    rows: list[dict[str, Any]] = []
    for case in wanted:
        rows.append(measure(*case, REPEATS.value))
        lines.append(line(rows[-1]))
        print(lines[-1], flush=True)
    for name in NETWORKS.value:
        config = config_of(SIZES[name], "float32", False)
        for row in train_peers.rows(name, SIZES[name], config, REPEATS.value):
            rows.append(row)
            lines.append(line(row))
            print(lines[-1], flush=True)
    out = Path(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    (out / "train.md").write_text("\n".join(lines) + "\n")
    (out / "train.json").write_text(json.dumps({"where": where, "libraries": libraries, "rows": rows}, indent=1) + "\n")
    print(f"train.md, train.json in {out}")


def run() -> None:
    """The command."""
    app.run(main)
