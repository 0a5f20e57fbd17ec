"""The exam on the device in float32: a U-Net, a DiT, orders and likelihood against the CPU's answer.

    networks     |device - CPU| / |CPU| of a U-Net and a DiT, at the default matmul precision and at "highest"; the CPU
                 computes in float32 at "highest"
    likelihood   log p of points of a Gaussian by the probability-flow ODE, nats per dimension; the CPU in float64
    orders       error of x against a float64 run of many steps on the CPU, at n and 2 n steps: log2 of their ratio,
                 beside the same slope in float64 on the CPU, and the distance of the two end points. The steps are few,
                 so that float32 resolves the error; the slope may therefore differ from the claimed order

On NVIDIA's GPUs JAX multiplies float32 matrices in TF32 by default, which keeps 10 bits of each factor: the networks
are compared under both settings. The library sets "highest" where digits matter: the oracles, `log_likelihood`, LoRA's
merge, metrics.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffax
from diffax import analytic, samplers
from experiments.benchmarks.accelerator import networks
from experiments.benchmarks.accelerator.worker import Context, one_line

COLUMNS = (
    ("claimed", "claimed", "d"),
    ("device", "value", ".3g"),
    ("CPU", "reference", ".3g"),
    ("difference", "difference", ".1e"),
    ("at most", "bound", ".0e"),
    ("passed", "passed", ""),
)
SLOPE_BOUND, STATE_BOUND, LIKELIHOOD_BOUND = 0.1, 2e-5, 1e-3
NETWORK_BOUNDS = {"default": 5e-3, "highest": 1e-4}
# sampler -> (factory, steps n): few enough that the error of 2 n steps is well above float32's rounding
ORDERS: dict[str, tuple[Callable[..., Any], int]] = {
    "ddim": (diffax.ddim, 40),
    "heun": (samplers.heun, 20),
    "dpm2": (samplers.dpm2, 20),
    "dpmpp_2m": (samplers.dpmpp_2m, 20),
    "dpmpp_3m": (samplers.dpmpp_3m, 20),
    "dpm_solver": (samplers.dpm_solver, 8),
    "deis": (samplers.deis, 20),
    "unipc": (samplers.unipc, 12),
    "pndm": (samplers.pndm, 20),
}
QUICK_ORDERS = ("ddim", "dpmpp_2m")
T_MAX, T_MIN = 0.9, 0.1  # fixed ends, so that the difference is that of the steps alone


def rows(context: Context) -> Iterator[dict[str, Any]]:
    """A row for each network, the likelihood and each sampler."""
    for name in ("ddpm", "dit_b2"):
        for precision in NETWORK_BOUNDS:
            yield _guarded(f"{name}, precision {precision}", network, name, precision, context.quick)
    yield _guarded("log-likelihood, nats per dimension", likelihood, 50)
    for name in QUICK_ORDERS if context.quick else ORDERS:
        yield _guarded(f"order of {name}", order, name)


def _guarded(name: str, part: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """The row of a part, or a row with its error, so that later parts still run."""
    try:
        return {"name": name} | part(*args)
    except Exception as error:
        return {"name": name, "error": one_line(error)}


def cpu() -> Any:
    """The host's CPU device."""
    return jax.local_devices(backend="cpu")[0]


def mixture() -> analytic.Mixture:
    """Three components in the plane."""
    means = np.array([[-1.5, 0.5], [1.0, 1.2], [0.3, -1.4]])
    return analytic.Mixture(np.array([0.2, 0.5, 0.3]), means, 0.3)


def order(name: str) -> dict[str, Any]:
    """Slopes of the error on the device in float32 and on the CPU in float64."""
    make, steps = ORDERS[name]
    ends_on_device = _ends(make, steps, jnp.float32)
    with jax.enable_x64(True), jax.default_device(cpu()):
        ends = _ends(make, steps, jnp.float64)
    exact = _exact()
    measured, reference = _slope(ends_on_device, exact), _slope(ends, exact)
    apart = float(np.abs(ends_on_device - ends).max())
    return {
        "claimed": make(diffax.Linear()).order,
        "value": measured,
        "reference": reference,
        "difference": abs(measured - reference),
        "bound": SLOPE_BOUND,
        "state_difference": apart,
        "passed": abs(measured - reference) <= SLOPE_BOUND and apart <= STATE_BOUND,
    }


@functools.cache
def _exact() -> np.ndarray:
    """x by many steps in float64 on the CPU."""
    with jax.enable_x64(True), jax.default_device(cpu()):
        return _ends(diffax.heun, 400, jnp.float64)[1]


def _ends(make: Callable[..., Any], steps: int, dtype: Any) -> np.ndarray:
    """x after `steps` and after twice as many, (2, B, 2), in float64."""
    distribution, schedule = mixture(), diffax.Linear()
    start = np.array([[0.5, -1.0], [1.2, 0.3], [-0.7, 0.8], [0.1, 0.1], [-1.3, -0.4]])

    @jax.jit
    def run(x):
        def end(n):
            times = jnp.linspace(jnp.asarray(T_MAX, dtype), T_MIN, n + 1)
            return diffax.integrate(jax.random.key(0), make(schedule), distribution.denoiser(schedule), x, times).x

        return jnp.stack([end(steps), end(2 * steps)])

    return np.asarray(run(jnp.asarray(start, dtype)), np.float64)


def _slope(ends: np.ndarray, exact: np.ndarray) -> float:
    errors = [float(np.sqrt(np.mean((end - exact) ** 2))) for end in ends]
    return float(np.log2(errors[0] / errors[1]))


def likelihood(steps: int) -> dict[str, Any]:
    """log p of points of a Gaussian: float32 on the device, and the same steps in float64 on the CPU."""
    value = _log_prob(steps, jnp.float32)
    with jax.enable_x64(True), jax.default_device(cpu()):
        reference = _log_prob(steps, jnp.float64)
    apart, bound = float(np.abs(value - reference).max() / 2), LIKELIHOOD_BOUND
    row = {"value": float(value.mean() / 2), "reference": float(reference.mean() / 2)}
    return row | {"difference": apart, "bound": bound, "passed": apart <= bound}


def _log_prob(steps: int, dtype: Any) -> np.ndarray:
    """(B,) log-likelihoods by the probability-flow ODE with the exact divergence."""
    covariance = np.array([[0.4, 0.15], [0.15, 0.2]])
    distribution, schedule = analytic.Gaussian.from_covariance(np.array([0.7, -0.4]), covariance), diffax.Linear()
    x = jnp.array([[0.7, -0.4], [0.1, 0.2], [1.5, 0.1], [0.9, -1.0]], dtype)
    times = jnp.asarray(diffax.times.uniform_log_snr(schedule, steps, t_max=1.0, t_min=0.0)[::-1], dtype)

    @jax.jit
    def solve(x):
        denoise = distribution.denoiser(schedule)
        return diffax.log_likelihood(jax.random.key(1), schedule, denoise, x, times, divergence="exact").log_prob

    return np.asarray(solve(x), np.float64)


def network(name: str, precision: str, quick: bool) -> dict[str, Any]:
    """A float32 network on the device against the same on the CPU at the highest precision."""
    reference = _answer(name, quick, "cpu", "highest")
    value = _answer(name, quick, None, None if precision == "default" else precision)
    apart = float(np.linalg.norm(value - reference) / np.linalg.norm(reference))
    row = {"value": float(np.linalg.norm(value)), "reference": float(np.linalg.norm(reference))}
    bound = NETWORK_BOUNDS[precision]
    return row | {"difference": apart, "bound": bound, "passed": apart <= bound}


@functools.cache
def _answer(name: str, quick: bool, backend: str | None, precision: str | None) -> np.ndarray:
    """The network's result on fixed inputs. backend: None for the default device."""
    case = networks.case(name, quick)
    params = networks.random_params(case.net, case.shape)
    x = jax.random.normal(jax.random.key(2), (2, *case.shape))
    device = cpu() if backend == "cpu" else jax.local_devices()[0]
    with jax.default_matmul_precision(precision), jax.default_device(device):
        own_params, own_x = jax.device_put((params, x), device)
        apply = jax.jit(lambda params, x: case.net.apply({"params": params}, x, jnp.array([0.3, 0.7])))
        return np.asarray(apply(own_params, own_x), np.float64)
