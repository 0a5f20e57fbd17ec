"""Settings and fixtures of all tests: eight simulated CPU devices, fast compilation, the mark `slow_cases`."""

import gc
import os
import tempfile
from importlib.metadata import version

# Most test programs run once, so compiler optimisation costs more time than it saves: LLVM's passes are switched off,
# and on jaxlib 0.10, which still has the older emitters, the MLIR fusion emitters too. The CI run on the newest JAX
# sets the optimisation level in XLA_FLAGS, so that it compiles as users do.
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    + ("--xla_cpu_use_fusion_emitters=false " if version("jaxlib").startswith("0.10.") else "")
    + f"--xla_force_host_platform_device_count=8 {os.environ.get('XLA_FLAGS', '')}"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The xdist workers share the cores. Without this limit each worker would start a BLAS thread on every core for the
# linear algebra of the metrics.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Programs that compile for more than a second are shared by the workers and the entry points that they start.
    _cache = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name

import jax
import pytest

# make_*.py needs torch; typing_user.py is for type checkers.
collect_ignore_glob = ["nn/interop/make_*.py", "typing_user.py"]


def pytest_addoption(parser):
    """Add options for the number of injected faults; docs/experiments/notebook.md has the results."""
    parser.addoption("--flips", type=int, default=20, help="bits flipped in a checkpoint")
    parser.addoption("--kills", type=int, default=4, help="processes killed")


@pytest.hookimpl(tryfirst=True)  # before pytest selects by mark
def pytest_collection_modifyitems(config, items):
    """Apply `slow_cases`: mark the named cases of a test, or all except `but`, as slow.

    Each of these cases compiles for seconds; the other cases of the test stay in the quick run.
    """
    whole_files = not any("::" in argument for argument in config.args)
    unused = {}
    for item in items:
        mark = item.get_closest_marker("slow_cases")
        if mark is None:
            continue
        case, fast = item.name.partition("[")[2].removesuffix("]"), mark.kwargs.get("but")
        if case not in fast if fast is not None else case in mark.args:
            item.add_marker(pytest.mark.slow)
        unused.setdefault(item.nodeid.partition("[")[0], set(mark.args if fast is None else fast)).discard(case)
    missing = {test: cases for test, cases in unused.items() if cases}
    if missing and whole_files:
        raise pytest.UsageError(f"slow_cases must name existing cases, got {missing}")


@pytest.fixture(scope="module", autouse=True)
def _clear_caches():
    """Clear JAX's caches and collect garbage once per module.

    Thousands of compiled functions take gigabytes, and automatic garbage collection takes a tenth of the time.
    """
    gc.disable()
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def x64():
    """Enable float64 in the test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def one_stream(monkeypatch):
    """Make functions with the same key draw the same noise, so that their values can be compared."""
    from diffax import random

    monkeypatch.setattr(random, "stream", lambda key, name: key)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A folder for prepared data sets, shared by all tests of a session."""
    return tmp_path_factory.mktemp("datasets")
