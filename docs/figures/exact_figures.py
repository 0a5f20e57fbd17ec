"""The figures without a network: their numbers are computed by diffax in float64, from known denoisers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from packing import numbers, pack

import diffax
from diffax.analytic import Mixture

STEPS = 100  # the sliders of t have the positions i / STEPS
COUNT = 120  # data points in the plane
PLANE = diffax.Cosine()  # the schedule of the figures in the plane
COMPASS = diffax.LogLinear(0.02, 3.0)  # variance exploding, so that data and x_t share one plane
LINE = diffax.Linear()  # its SDE has bounded coefficients, which Euler-Maruyama needs
LANGEVIN = diffax.LogLinear(0.2, 4.0)


def figure_eight(u: np.ndarray) -> np.ndarray:
    """The points (2 sin u, sin 2u) of a figure-8; u: (n,), result (n, 2)."""
    return np.stack([2 * np.sin(u), np.sin(2 * u)], -1)


def data_in_the_plane() -> Mixture:
    """Narrow Gaussians with equal weights, evenly spaced along the figure-8."""
    u = np.linspace(0, 2 * np.pi, 20_001)
    points = figure_eight(u)
    length = np.append(0, np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1)))
    u = np.interp(np.arange(COUNT) / COUNT * length[-1], length, u)
    return Mixture(np.full(COUNT, 1 / COUNT), figure_eight(u), 0.05)


def data_on_the_line() -> Mixture:
    """Two Gaussians on a line, with the weights 0.3 and 0.7."""
    return Mixture(np.array([0.3, 0.7]), np.array([[1.0], [-0.6]]), 0.15)


def two_islands() -> Mixture:
    """Two Gaussians in the plane, far apart, with the weights 0.8 and 0.2: the data of Langevin dynamics."""
    return Mixture(np.array([0.8, 0.2]), np.array([[-1.8, 0.0], [1.8, 0.0]]), 0.4)


def mixture(data: Mixture) -> dict[str, Any]:
    """The parameters of a mixture, for the closed formulas of the page."""
    return {"weights": numbers(data.weights), "means": numbers(data.means, 9), "std": numbers(data.std)}


def levels(schedule: diffax.Schedule) -> dict[str, Any]:
    """Alpha, sigma and log-SNR at each position of a slider."""
    level = schedule(jnp.arange(STEPS + 1) / STEPS)
    return {name: numbers(value, 9) for name, value in level._asdict().items()}


def noise(name: str, *shape: int) -> jax.Array:
    """Standard normal numbers in the default float type; each name has its own stream."""
    key = diffax.random.stream(jax.random.key(0), f"figures.{name}")
    return diffax.random.noise(key, jax.ShapeDtypeStruct(shape, jnp.result_type(float)))


def key_of(name: str) -> jax.Array:
    """The key of the random numbers of a figure."""
    return diffax.random.stream(jax.random.key(1), f"figures.{name}")


# ----------------------------------------------------------------------------------------------- the figures


def forward() -> dict[str, Any]:
    """The clean points and their noise; place is the position of a point along the curve, in [0, 1)."""
    data = data_in_the_plane()
    x0 = data.sample(key_of("forward"), 288)
    nearest = jnp.argmin(jnp.linalg.norm(x0[:, None] - jnp.asarray(data.means), axis=-1), -1)
    return {"x0": pack(x0), "eps": pack(noise("forward", *x0.shape)), "place": numbers(nearest / COUNT, 4)}


RUNS = {
    "ddim_5": ("DDIM, 5 calls", diffax.ddim(PLANE), 5),
    "ddim_20": ("DDIM, 20 calls", diffax.ddim(PLANE), 20),
    "heun_19": ("Heun, 19 calls", diffax.heun(PLANE), 10),
    "ddpm_20": ("DDPM, 20 calls", diffax.ddpm(PLANE), 20),
}


def reverse(count: int = 120) -> dict[str, Any]:
    """The states of several samplers from the same noise, and how far their samples are from the curve."""
    data = data_in_the_plane()
    runs = {}
    for name, (label, sampler, n) in RUNS.items():
        times = diffax.times.uniform_log_snr(PLANE, n)
        x = PLANE(times[0]).sigma * noise("reverse", count, 2)
        states: jax.Array
        state, states = diffax.unroll(key_of("reverse"), sampler, data.denoiser(PLANE), x, times)
        samples = sampler.finish(key_of("finish"), data.denoiser(PLANE), state, times[-1])
        runs[name] = {
            "label": label,
            "times": numbers([*times, 0.0]),
            "states": pack(jnp.concatenate([x[None], states, samples[None]])),
            "distance": numbers(distance_to_curve(samples), 5),
        }
    return {"runs": runs, "data_distance": numbers(distance_to_curve(data.sample(key_of("data"), 4_000)), 5)}


def distance_to_curve(x: Any) -> float:
    """The mean distance of points (n, 2) to the figure-8."""
    curve = figure_eight(np.linspace(0, 2 * np.pi, 2_000, endpoint=False))
    return float(np.mean([np.linalg.norm(curve - point, axis=1).min() for point in np.asarray(x)]))


ETAS = (0.0, 0.25, 0.5, 0.75, 1.0)
SHOWN_PATHS = 10


def path_starts(many: int) -> jax.Array:
    """The starts of the paths, (many, 1): the quantiles of noise at 5 %, 15 % .. 95 %, then random noise."""
    quantiles = jax.scipy.special.ndtri((jnp.arange(SHOWN_PATHS) + 0.5) / SHOWN_PATHS)
    return jnp.concatenate([quantiles[:, None], noise("paths", many, 1)])[:many]


def paths(many: int = 4_000, n: int = 401) -> dict[str, Any]:
    """Paths of the reverse SDE on a line for several eta: eta = 0 is the ODE, eta = 1 the reverse SDE."""
    data = data_on_the_line()
    times = diffax.times.uniform(LINE, n, t_max=1.0, t_min=1e-3)
    x = path_starts(many)
    every, shown = 4, SHOWN_PATHS

    @jax.jit
    def solve(eta: jax.Array) -> tuple[jax.Array, jax.Array]:
        sampler = diffax.euler_maruyama(LINE, eta=eta)
        state, kept = diffax.unroll(
            key_of("paths"), sampler, data.denoiser(LINE), x, times, record=lambda state: state.x[:shown, 0]
        )
        return state.x[:, 0], jnp.concatenate([x[None, :shown, 0], kept])[::every]

    ends, kept = zip(*(solve(jnp.asarray(eta)) for eta in ETAS), strict=True)
    return {
        "etas": list(ETAS),
        "times": numbers(times[::every]),
        "paths": pack(jnp.stack(kept)),
        "upper": numbers([jnp.mean(end > 0.2) for end in ends], 4),
        "std": numbers([jnp.std(end) for end in ends], 4),
        "data_std": numbers(np.sqrt(0.15**2 + 0.3 * 0.7 * 1.6**2), 4),
        "many": many,
    }


def langevin(count: int = 130, many: int = 2_000) -> dict[str, Any]:
    """Langevin dynamics at the lowest noise level, and annealed from the highest; the share on the left island."""
    data, (num_levels, repeats), every = two_islands(), (20, 20), 10
    x = LANGEVIN(1.0).sigma * noise("langevin", many, 2)
    grids = {
        "annealed": jnp.repeat(jnp.linspace(1.0, 0.0, num_levels), repeats),
        "fixed": jnp.zeros(num_levels * repeats),
    }

    @jax.jit
    def run(times: jax.Array) -> tuple[jax.Array, jax.Array]:
        sampler = diffax.annealed_langevin(LANGEVIN, step_size=0.3)
        _, records = diffax.unroll(
            key_of("langevin"),
            sampler,
            data.denoiser(LANGEVIN),
            x,
            jnp.append(times[:1], times),
            record=lambda state: (state.x[:count], jnp.mean(state.x[:, 0] < 0)),
        )
        return records

    runs = {}
    for name, times in grids.items():
        states, shares = run(times)
        runs[name] = {
            "states": pack(jnp.concatenate([x[None, :count], states[every - 1 :: every]])),
            "share": numbers(jnp.append(jnp.mean(x[:, 0] < 0), shares[every - 1 :: every]), 4),
            "sigma": numbers(LANGEVIN(jnp.append(times[:1], times[every - 1 :: every])).sigma, 5),
        }
    return {"runs": runs, "every": every, "many": many, "exact": 0.8}


def schedules() -> dict[str, Any]:
    """The levels of three schedules at each position of the slider."""
    table = diffax.from_betas(diffax.schedules.cosine_betas(1000))
    return {"linear": levels(diffax.Linear()), "cosine": levels(diffax.Cosine()), "table": levels(table)}


def compute() -> dict[str, Any]:
    """The numbers of all figures without a network."""
    with jax.enable_x64(True):
        return {
            "steps": STEPS,
            "plane": mixture(data_in_the_plane()),
            "line": mixture(data_on_the_line()),
            "islands": mixture(two_islands()),
            "levels": schedules() | {"compass": levels(COMPASS)},
            "forward": forward(),
            "reverse": reverse(),
            "paths": paths(),
            "langevin": langevin(),
        }
