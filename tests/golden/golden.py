"""Golden file: outputs of every part of diffax, recorded before a refactoring that must not change them.

    PYTHONPATH=. python tests/golden/golden.py --compare          a table of differences by group
    PYTHONPATH=. python tests/golden/golden.py --compare --exact  exit status 1 unless all bits are equal
    PYTHONPATH=. python tests/golden/golden.py --write            record again, after an intended change of behaviour

The rows are in `golden_*.py`, one module for each group. A module uses names of diffax only in the tables at its top,
so a renamed function changes one line of a table. The names in the golden file stay.

The functions run without `jax.jit`, operation by operation. So the bits depend on the operations and their operands,
and not on fusion by XLA. Networks are the exception: they are compiled, in float32 only.

With JAX_COMPILATION_CACHE_DIR set to a folder and JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0, a second run takes half
the time.

A recorded output proves that nothing changed. It does not prove that the value is correct; the other tests do.
"""

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# As in tests/conftest.py: the programs are small and run once, so compilation takes most of the time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

import jax
import numpy as np

import diffax

FOLDER = Path(__file__).parent
FILE = FOLDER / "golden.npz"
GROUPS = ("schedules", "samplers", "inverse", "guidance", "losses", "likelihood", "networks", "training", "metrics")
PRECISIONS = ("float32", "float64")
SINGLE = ("networks", "training")  # groups in float32 only
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}  # relative to the largest magnitude of an array
# Adam divides each gradient by its own magnitude, which amplifies the rounding of small gradients. A sampler amplifies
# the rounding of its first steps.
LOOSE = {"float32/training": 1e-4, "float32/samplers": 1e-5}


def is_computed(name: str) -> bool:
    """Whether a row with this full name is computed. In float32, samplers run on one schedule only."""
    which, group, row = name.split("/", 2)
    if which == "float64":
        return group not in SINGLE
    return group != "samplers" or row.split("/")[0] in ("cosine", "keys", "sample")


def rows(group: str) -> dict[str, Callable[[], Any]]:
    """The rows of a group: {name: a function of no arguments that returns a tree of arrays}."""
    return importlib.import_module(f"golden_{group}").ROWS


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """Run operation by operation in this precision."""
    with jax.enable_x64(name == "float64"), jax.disable_jit():
        yield


def leaves(tree: Any, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of a tree by name: the keys of dicts, the places in tuples and other nodes."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{name}/{key}")
    elif isinstance(tree, tuple | list):
        for place, value in enumerate(tree):
            yield from leaves(value, f"{name}/{place}")
    elif hasattr(tree, "dtype") and jax.dtypes.issubdtype(tree.dtype, jax.dtypes.prng_key):
        yield name, np.asarray(jax.random.key_data(tree))
    elif tree is None or isinstance(tree, bool | int | float | np.generic | np.ndarray | jax.Array):
        if tree is not None:
            yield name, np.asarray(tree)
    else:
        yield from leaves(jax.tree.leaves(tree), name)


class Computed(NamedTuple):
    """arrays: {name: array}. errors: {name of a row: its exception}."""

    arrays: dict[str, np.ndarray]
    errors: dict[str, str]


def compute(groups: tuple[str, ...] = GROUPS, precisions: tuple[str, ...] = PRECISIONS, only: Any = None) -> Computed:
    """The outputs of the rows.

    Args:
      groups: names of groups.
      precisions: "float32", "float64" or both.
      only: name of a row -> whether to run it; None for all.
    """
    result = Computed({}, {})
    for which in precisions:
        for group in groups:
            for name, row in rows(group).items():
                full = f"{which}/{group}/{name}"
                if not is_computed(full) or (only is not None and not only(full)):
                    continue
                try:
                    with precision(which):
                        result.arrays.update(leaves(row(), full))
                except Exception as error:
                    result.errors[full] = f"{type(error).__name__}: {error}".splitlines()[0]
    return result


def compute_in_processes(groups: tuple[str, ...], jobs: int) -> Computed:
    """`compute` of these groups by several processes."""
    if jobs == 1:
        return compute(groups)
    parts = [(g, p) for p in PRECISIONS for g in groups]
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        results = list(pool.map(compute, [(g,) for g, _ in parts], [(p,) for _, p in parts]))
    return Computed(*({k: v for part in results for k, v in part[i].items()} for i in range(2)))


def write(arrays: dict[str, np.ndarray], file: Path = FILE) -> None:
    """Write the arrays as one vector of each dtype and an index: thousands of members would double the size."""
    index = [[name, value.dtype.name, value.shape] for name, value in arrays.items()]
    dtypes = sorted({dtype for _, dtype, _ in index})
    flat = {d: np.concatenate([v.ravel() for v in arrays.values() if v.dtype.name == d]) for d in dtypes}
    np.savez_compressed(file, index=np.frombuffer(json.dumps(index).encode(), np.uint8), **flat)


def read(file: Path = FILE) -> dict[str, np.ndarray]:
    """The arrays of a golden file."""
    with np.load(file) as stored:
        index, flat = json.loads(stored["index"].tobytes()), {key: stored[key] for key in stored.files}
    arrays, places = {}, dict.fromkeys(flat, 0)
    for name, dtype, shape in index:
        size = int(np.prod(shape))
        arrays[name] = flat[dtype][places[dtype] : places[dtype] + size].reshape(shape)
        places[dtype] += size
    return arrays


def same_bits(value: np.ndarray, known: np.ndarray) -> bool:
    """Whether dtype, shape and every bit are equal."""
    return value.dtype == known.dtype and value.shape == known.shape and value.tobytes() == known.tobytes()


def difference(value: np.ndarray, known: np.ndarray) -> float:
    """The largest difference, relative to the largest finite magnitude of `known`.

    Infinite for another dtype or shape, for integers and bools that differ, and where NaN or infinity differ.
    """
    if value.dtype != known.dtype or value.shape != known.shape:
        return np.inf
    if same_bits(value, known):
        return 0.0
    if not np.issubdtype(known.dtype, np.floating):
        return np.inf
    finite = np.isfinite(known)
    if not np.array_equal(np.where(finite, 0, value), np.where(finite, 0, known), equal_nan=True):
        return np.inf
    value, known = value[finite].astype(np.float64), known[finite].astype(np.float64)
    largest = np.abs(value - known).max(initial=0.0)
    return float(largest / np.abs(known).max()) if largest > 0 else 0.0


def tolerance(name: str) -> float:
    """The largest difference that is allowed for an array."""
    which, group, _ = name.split("/", 2)
    return LOOSE.get(f"{which}/{group}", TOLERANCE[which])


def failures(computed: Computed, known: dict[str, np.ndarray], exact: bool = False) -> list[str]:
    """A line for each array that differs by more than its tolerance, is missing or is new, and for each error.

    With `exact`, a line for each array with a different bit.
    """
    lines = [f"{name}: {error}" for name, error in computed.errors.items()]
    for name in sorted(known.keys() | computed.arrays.keys()):
        if name not in computed.arrays:
            lines.append(f"{name}: missing")
        elif name not in known:
            lines.append(f"{name}: not in the golden file")
        elif exact and not same_bits(computed.arrays[name], known[name]):
            lines.append(f"{name}: other bits, differs by {difference(computed.arrays[name], known[name]):.1e}")
        elif (found := difference(computed.arrays[name], known[name])) > tolerance(name):
            lines.append(f"{name}: differs by {found:.1e}")
    return lines


def table(computed: Computed, known: dict[str, np.ndarray]) -> str:
    """The comparison by group."""
    lines = [f"{'group':<12}{'arrays':>8}{'equal bits':>12}{'float32':>10}{'float64':>10}{'missing':>9}{'new':>6}"]
    for group in GROUPS:
        mine = {n for n in known if n.split("/")[1] == group}
        now = {n for n in computed.arrays if n.split("/")[1] == group}
        both = sorted(mine & now)
        equal = sum(same_bits(computed.arrays[n], known[n]) for n in both)
        worst = {p: [difference(computed.arrays[n], known[n]) for n in both if n.startswith(p)] for p in PRECISIONS}
        cells = "".join(f"{max(v):>10.1e}" if v else f"{'-':>10}" for v in worst.values())
        lines.append(f"{group:<12}{len(mine):>8}{equal:>12}{cells}{len(mine - now):>9}{len(now - mine):>6}")
    return "\n".join(lines)


def main() -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write golden.npz")
    parser.add_argument("--compare", action="store_true", help="print a table of differences by group")
    parser.add_argument("--exact", action="store_true", help="with --compare: exit 1 unless all bits are equal")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=GROUPS, help="the groups to compute")
    parser.add_argument("--jobs", type=int, default=1, help="the number of processes that compute")
    options = parser.parse_args()
    if options.write == options.compare:
        parser.error("exactly one of --write and --compare must be given")
    start = time.time()
    computed = compute_in_processes(tuple(options.groups), options.jobs)
    if options.write:
        if computed.errors or tuple(options.groups) != GROUPS:
            print(*(f"{n}: {e}" for n, e in computed.errors.items()), sep="\n")
            parser.error("--write needs all groups and rows without errors")
        write(computed.arrays)
        print(f"{len(computed.arrays)} arrays, {FILE.stat().st_size} bytes, {time.time() - start:.0f} s")
        return 0
    known = {n: v for n, v in read().items() if n.split("/")[1] in options.groups}
    print(f"diffax from {Path(diffax.__file__).parent}, jax {jax.__version__}")
    print(table(computed, known))
    wrong = failures(computed, known, options.exact)
    print(*wrong[:100], sep="\n", end="\n" if wrong else "")
    print(f"{len(computed.arrays)} arrays compared, {len(wrong)} failures, {time.time() - start:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.modules["golden"] = sys.modules["__main__"]
    sys.exit(main())
