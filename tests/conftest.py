"""Eight simulated devices for every test; float64 where a test asks for it."""

import gc
import os
import tempfile
from importlib.metadata import version

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

collect_ignore_glob = ["nn/interop/make_*.py"]  # they need torch


def pytest_addoption(parser):
    """How often faults are injected; see experiments/README.md for what was run."""
    parser.addoption("--flips", type=int, default=20, help="bits flipped in a checkpoint")
    parser.addoption("--kills", type=int, default=4, help="processes killed")


@pytest.hookimpl(tryfirst=True)  # before the marks are looked at
def pytest_collection_modifyitems(config, items):
    """Marks the cases that `slow_cases` names as slow: each takes seconds to compile, and others of its test stay."""
    whole = not any("::" in argument for argument in config.args)
    named = {}
    for item in items:
        mark = item.get_closest_marker("slow_cases")
        if mark is None:
            continue
        case, but = item.name.partition("[")[2].removesuffix("]"), mark.kwargs.get("but")
        if case not in but if but is not None else case in mark.args:
            item.add_marker(pytest.mark.slow)
        named.setdefault(item.nodeid.partition("[")[0], set(mark.args if but is None else but)).discard(case)
    missing = {test: cases for test, cases in named.items() if cases}
    if missing and whole:
        raise pytest.UsageError(f"slow_cases names cases that are not there: {missing}")


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
