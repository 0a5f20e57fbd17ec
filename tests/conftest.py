"""Eight simulated devices for every test; float64 where a test asks for it."""

import gc
import os
import tempfile
from importlib.metadata import version
from pathlib import Path

# Most programs here run once: what LLVM's passes take is never won back, nor what MLIR's take, where JAX still has the
# emitters before it. CI's run on the newest JAX, which sets the level in XLA_FLAGS, compiles as users do.
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    + ("--xla_cpu_use_fusion_emitters=false " if version("jaxlib").startswith("0.10.") else "")
    + f"--xla_force_host_platform_device_count=8 {os.environ.get('XLA_FLAGS', '')}"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The workers of xdist share the cores, and each would take all of them for the metrics' linear algebra on the host.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # What takes over a second to compile is shared by the workers and by the entrypoints they start.
    _cache = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name

import jax
import pytest

collect_ignore_glob = ["interop/make_*.py", "typing_user.py"]  # torch is needed; for type checkers alone


def pytest_addoption(parser):
    """How often faults are injected; see experiments/README.md for what was run."""
    parser.addoption("--flips", type=int, default=20, help="bits flipped in a checkpoint")
    parser.addoption("--kills", type=int, default=4, help="processes killed")


# Cases that are slow tests as if marked: each takes seconds to compile, and of its test others stay. By measurement
# (--durations=0), so not said at each test; a name without brackets stands for all cases of a test.
DEAR = frozenset((Path(__file__).parent / "dear.txt").read_text().splitlines())


@pytest.hookimpl(tryfirst=True)  # before the marks are looked at
def pytest_collection_modifyitems(items):
    """Marks what is listed as dear."""
    for item in items:
        case = item.nodeid.removeprefix("tests/")
        if not DEAR.isdisjoint({case, case.partition("[")[0]}):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module", autouse=True)
def _forget():
    """Thousands of compiled functions take gigabytes, and the garbage collector a tenth of the time: once is enough."""
    gc.disable()
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def x64():
    """Double precision within the test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def one_stream(monkeypatch):
    """Functions that get one key draw the same noise, so that their values can be compared."""
    from diffax import random

    monkeypatch.setattr(random, "stream", lambda key, name: key)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A folder for prepared data sets, shared by all tests of a run."""
    return tmp_path_factory.mktemp("datasets")
