"""Measure an accelerator in a few minutes, the most valuable items first.

    python -m experiments.benchmark accelerator --out=DIR [--minutes=8] [--quick] [--only=exam,steps]

Items run in this order, each in a separate process, so that an error, a crash or a hang ends only that item:

    a exam       orders, likelihood and networks in float32 against the CPU
    b resume     bit-identical resume after SIGTERM; pmap, jit and FSDP
    c steps      training steps of the DDPM U-Net, DiT-B/2, DiT-XL/2 and EDM2-XS
    d torch      the same in PyTorch, where it is installed
    e attention  cuDNN's fused attention against XLA's
    f sampling   sampler overhead; images/s of a 50-call sampler
    g seeds      eight seeds in one program
    h digits     the digits config trained and scored

Each row is written to DIR/accelerator.json and DIR/accelerator.md at once. An item that does not fit into the remaining
time is skipped, and its row has the reason. --quick runs every item at toy size, also on a CPU: it tests this command,
and its numbers mean nothing.
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.benchmarks.accelerator import table
from experiments.benchmarks.accelerator.worker import one_line

PACKAGE = "experiments.benchmarks.accelerator"
WORKER = f"{PACKAGE}.worker"


class Item(NamedTuple):
    """A part of the measurement.

    module: defines `rows(context)` and `COLUMNS`. least: seconds that must be left to start it. most: seconds after
    which it is stopped. Both are for a run of 8 minutes and scale with --minutes.
    """

    letter: str
    name: str
    title: str
    module: str
    least: float
    most: float


ITEMS = (
    Item("a", "exam", "Float32 on the device against the CPU", f"{PACKAGE}.exam", 20, 100),
    Item("b", "resume", "Resume, and ways to spread a step", f"{PACKAGE}.resume", 25, 100),
    Item("c", "steps", "Training steps", f"{PACKAGE}.steps", 30, 210),
    Item("d", "torch", "The same steps in PyTorch", f"{PACKAGE}.torch_steps", 20, 180),
    Item("e", "attention", "Attention in bfloat16, forward and backward", f"{PACKAGE}.attention", 15, 45),
    Item("f", "sampling", "Sampling", f"{PACKAGE}.sampling", 20, 75),
    Item("g", "seeds", "Seeds in one program", f"{PACKAGE}.seeds", 20, 90),
    Item("h", "digits", "The digits config, trained and scored", f"{PACKAGE}.digits", 60, 240),
)
# Programs compile in seconds rather than minutes; the numbers of --quick have no meaning anyway.
QUICK_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    QUICK_FLAGS += " --xla_cpu_use_fusion_emitters=false"


def environment_of(quick: bool) -> dict[str, str]:
    """The environment of an item's process. Memory is not preallocated, since processes of one item share a device."""
    env = dict(os.environ)
    env.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    env.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    env.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    platforms = env.get("JAX_PLATFORMS", "")
    if platforms and "cpu" not in platforms.split(","):
        env["JAX_PLATFORMS"] = f"{platforms},cpu"  # the exam compares with the CPU
    if quick:
        env["XLA_FLAGS"] = f"{QUICK_FLAGS} {env.get('XLA_FLAGS', '')}".strip()
    return env


PROBE = """
import importlib.metadata as m, json, platform, jax
def version(name):
    try: return m.version(name)
    except m.PackageNotFoundError: return None
d = jax.local_devices()
memory = (d[0].memory_stats() or {}).get("bytes_limit")
names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "torch", "diffusers")
print(json.dumps({"platform": d[0].platform, "device": d[0].device_kind, "count": len(d), "memory": memory,
    "python": platform.python_version(), "versions": {n: version(n) for n in names if version(n)}}))
"""


def probe() -> dict[str, Any]:
    """The devices and versions, read in a separate process, since this one must not occupy a device.

    Raises:
      ValueError: if JAX does not start.
    """
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, env=environment_of(False))
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise ValueError(f"jax must start on this machine, got {last}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def commit() -> str:
    """The commit of this source tree, "unknown" outside a checkout."""
    run = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        where = Path(__file__).parent
        return subprocess.run(run, cwd=where, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    return "unknown"


def describe(machine: dict[str, Any], quick: bool, given_commit: str | None) -> dict[str, str]:
    """The environment as the table shows it."""
    memory = "" if not machine["memory"] else f", {machine['memory'] / 2**30:.0f} GiB each"
    return {
        "device": machine["device"],
        "devices": f"{machine['count']}{memory}",
        "versions": ", ".join(f"{name} {version}" for name, version in machine["versions"].items()),
        "Python": machine["python"],
        "commit": given_commit or commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        **({"sizes": "toy (--quick): these numbers measure nothing"} if quick else {}),
    }


def columns_of(item: Item) -> Any:
    """The columns of an item's table; () if its module cannot be imported: the item's process reports that error."""
    try:
        return importlib.import_module(item.module).COLUMNS
    except Exception:
        return ()


def kept(folder: Path, environment: dict[str, str], renewed: list[str]) -> dict[str, Any]:
    """Earlier results of other items in the same environment, so that several short runs fill one table."""
    path = folder / "accelerator.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    if {**before.get("environment", {}), "date": ""} != {**environment, "date": ""}:
        before = {}
    return {
        "environment": environment,
        "items": [item for item in before.get("items", []) if item["name"] not in renewed],
        "rows": [row for row in before.get("rows", []) if row["item"] not in renewed],
    }


def run(
    items: Sequence[Item],
    folder: Path,
    environment: dict[str, str],
    minutes: float,
    quick: bool,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Run the items in turn; every row is written before the next item starts."""
    deadline = time.time() + 60 * minutes
    columns = {item.name: columns_of(item) for item in (*ITEMS, *items)}
    results = kept(folder, environment, [item.name for item in items])

    def add(item: Item, row: dict[str, Any]) -> None:
        results["rows"].append({"item": item.name} | row)
        table.write(folder, results, columns)
        say(f"   {table.line(row, columns[item.name])}")

    for item in items:
        entry: dict[str, Any] = {"letter": item.letter, "name": item.name, "title": item.title}
        results["items"] = sorted([*results["items"], entry], key=lambda entry: entry["letter"])
        table.write(folder, results, columns)
        left, scale = deadline - time.time(), minutes / 8
        say(f"{item.letter}. {item.title} ({left:.0f} s left)")
        if left < item.least * min(scale, 1.0):
            add(item, {"name": item.name, "skipped": f"it needs about {item.least:.0f} s, {left:.0f} s are left"})
            continue
        start = time.time()
        time_for_it = left if quick else min(left, item.most * scale)
        run_item(item, folder, start + time_for_it, quick, lambda row, item=item: add(item, row))
        entry["seconds"] = round(time.time() - start, 1)
        table.write(folder, results, columns)
    return results


def run_item(item: Item, folder: Path, deadline: float, quick: bool, add: Callable[[dict[str, Any]], None]) -> None:
    """Run one item in a separate process: add its rows as they are written, then a row if the process failed."""
    with tempfile.TemporaryDirectory() as scratch:
        rows, log = Path(scratch) / "rows.jsonl", Path(scratch) / "log"
        rows.touch()
        command = [sys.executable, "-m", WORKER, item.module, f"--rows={rows}", f"--deadline={deadline}"]
        command += [f"--earlier={folder / 'accelerator.json'}", *(["--quick"] if quick else [])]
        with log.open("w") as output, rows.open() as reader:
            process = subprocess.Popen(
                command, stdout=output, stderr=output, env=environment_of(quick), start_new_session=True
            )
            try:
                _follow(process, reader, deadline, add)
            finally:
                _end(process)
        if process.returncode == -signal.SIGKILL and time.time() >= deadline:
            add({"name": item.name, "skipped": "stopped: its time was over"})
        elif process.returncode:
            last = (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
            add({"name": item.name, "error": f"the process ended with status {process.returncode}: {last[:200]}"})


def _follow(process: subprocess.Popen, reader: Any, deadline: float, add: Callable[[dict[str, Any]], None]) -> None:
    """Add the rows of a process until it ends or the deadline passes."""
    rest = ""
    while True:
        running = process.poll() is None
        rest += reader.read()
        *whole, rest = rest.split("\n")
        for text in whole:
            add(json.loads(text))
        if not running or time.time() > deadline:
            return
        time.sleep(0.2)


def _end(process: subprocess.Popen) -> None:
    """Kill a process and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def parse(arguments: list[str]) -> argparse.Namespace:
    """The flags.

    Raises:
      ValueError: for an unknown item or a time that is not positive.
    """
    parser = argparse.ArgumentParser(
        prog="experiments.benchmark accelerator", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/accelerator"), help="folder of the results")
    parser.add_argument("--minutes", type=float, default=8.0, help="time for everything (default 8)")
    parser.add_argument("--quick", action="store_true", help="toy sizes, on any device")
    parser.add_argument("--only", default="", help=f"some of {','.join(item.name for item in ITEMS)}")
    parser.add_argument("--commit", help="commit to record, outside a checkout")
    flags = parser.parse_args(arguments)
    names = [item.name for item in ITEMS]
    flags.only = [name for name in flags.only.split(",") if name] or names
    for name in flags.only:
        if name not in names:
            raise ValueError(f"only must be among {', '.join(names)}, got {name!r}")
    if not flags.minutes > 0:
        raise ValueError(f"minutes must be > 0, got {flags.minutes:g}")
    return flags


def main(arguments: list[str]) -> None:
    """The command."""
    try:
        flags = parse(arguments)
        machine = probe()
        if machine["platform"] == "cpu" and not flags.quick:
            raise ValueError(
                f"device must be an accelerator, got {machine['count']} x {machine['device']}; "
                "--quick runs every item at toy size on a CPU"
            )
        flags.out.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        print(f"error: {one_line(error).partition(': ')[2]}", file=sys.stderr)
        raise SystemExit(2) from error
    environment = describe(machine, flags.quick, flags.commit)
    print("\n".join(f"{name}: {value}" for name, value in environment.items()), flush=True)
    items = [item for item in ITEMS if item.name in flags.only]
    results = run(items, flags.out, environment, flags.minutes, flags.quick, lambda text: print(text, flush=True))
    failed = [row["name"] for row in results["rows"] if "error" in row or row.get("passed") is False]
    print(
        f"{len(results['rows'])} rows in {flags.out / 'accelerator.md'}"
        + (f"; failed: {', '.join(failed)}" if failed else "")
    )
