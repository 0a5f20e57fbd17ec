"""Rows of schedules, betas, step grids, predictions, random draws and draws of training times."""

import jax
import jax.numpy as jnp
import numpy as np
from golden_inputs import BATCH, DIMENSIONS, array, compiled, data, grid, key, times

import diffax
from diffax import random, sde
from diffax.losses import resampling, training_times

SCHEDULES = {
    "linear": lambda: diffax.Linear(),
    "linear-ve": lambda: diffax.Linear(scaling="ve"),
    "quadratic": lambda: diffax.Quadratic(),
    "sub_vp": lambda: diffax.SubVP(),
    "cosine": lambda: diffax.Cosine(),
    "cosine-flow": lambda: diffax.Cosine(scaling="flow"),
    "sigmoid": lambda: diffax.Sigmoid(),
    "laplace": lambda: diffax.Laplace(mean=0.3, width=0.7),
    "laplace-sub_vp": lambda: diffax.Laplace(scaling="sub_vp"),
    "flow": lambda: diffax.Flow(),
    "flow-vp": lambda: diffax.Flow(scaling="vp"),
    "log_linear": lambda: diffax.LogLinear(0.002, 80.0),
    "edm": lambda: diffax.EDM(),
    "edm-flow": lambda: diffax.EDM(scaling="flow"),
    "table": lambda: diffax.from_betas(diffax.schedules.cosine_betas(20)),
    "table-ve": lambda: diffax.from_betas(diffax.schedules.linear_betas(50), scaling="ve"),
    "zero_terminal_snr": lambda: diffax.from_betas(
        diffax.schedules.zero_terminal_snr(diffax.schedules.linear_betas(50))
    ),
    "shifted": lambda: diffax.shifted(diffax.Linear(beta_min=0.2, beta_max=15.0, scaling="flow"), 3.0),
    "noise_floor": lambda: diffax.NoiseFloor(diffax.Cosine(), 0.2),
    "learned": lambda: diffax.Learned.init(key("learned"), units=8),
}
OF_SCHEDULE = {
    "level": lambda s, t: s(t),
    "log_snr": lambda s, t: s.log_snr(t),
    "inverse": lambda s, t: s.inverse(jnp.linspace(-12.0, 12.0, 9)),
    "rates": lambda s, t: diffax.schedules.rates(s, t[1:-1]),
    "transition": lambda s, t: diffax.schedules.transition(s, t[1:], t[:-1]),
    "coefficients": lambda s, t: sde.coefficients(s, t[1:-1]),
}
BETAS = {
    "linear": lambda: diffax.schedules.linear_betas(10),
    "quadratic": lambda: diffax.schedules.quadratic_betas(10),
    "cosine": lambda: diffax.schedules.cosine_betas(10),
    "sigmoid": lambda: diffax.schedules.sigmoid_betas(10),
    "zero_terminal_snr": lambda: diffax.schedules.zero_terminal_snr(diffax.schedules.linear_betas(10)),
}
GRIDS = {
    "uniform": lambda s: diffax.times.uniform(s, 7),
    "quadratic": lambda s: diffax.times.quadratic(s, 7, t_max=0.9, t_min=0.1),
    "beta": lambda s: compiled(lambda: diffax.times.beta(s, 7, a=0.7, b=0.5)),
    "path": lambda s: diffax.times.path(s, 7, 0.2, 0.8),
    "uniform_log_snr": lambda s: diffax.times.uniform_log_snr(s, 7),
    "uniform_log_snr-ends": lambda s: diffax.times.uniform_log_snr(s, 7, sigma_max=20.0, sigma_min=0.1),
    "exponential": lambda s: diffax.times.uniform_log_snr(s, 7),
    "polyexponential": lambda s: diffax.times.polyexponential(s, 7, rho=1.3),
    "karras": lambda s: diffax.times.karras(s, 7),
    "arctan": lambda s: diffax.times.arctan(s, 7),
    "from_sigmas": lambda s: diffax.times.from_sigmas(s, [10.0, 3.0, 1.0, 0.2]),
    "from_timesteps": lambda s: diffax.times.from_timesteps(20, [19, 12, 7, 0]),
    "leading": lambda s: diffax.times.leading(s, 7, offset=1),
    "trailing": lambda s: diffax.times.trailing(s, 7),
    "linspace": lambda s: diffax.times.linspace(s, 7),
    "lcm": lambda s: diffax.times.lcm(s, 4, original_steps=10),
    "restart_times": lambda s: diffax.times.restart(s, grid(), 0.1, 0.5, num_restarts=2, num_steps=3),
    "jumps": lambda s: diffax.times.jumps(grid(), length=2, repeats=2),
}
KINDS = ("x0", "eps", "score", "v", "velocity", "edm")
PREDICTIONS = {
    "row": lambda kind, s, x, y, t: diffax.predictions.row(kind, s, t),
    "target": lambda kind, s, x, y, t: diffax.predictions.target(kind, s, x, y, t),
    "split": lambda kind, s, x, y, t: diffax.predictions.split(kind, s, y, x, t),
}
LEVELS = {
    "diffuse": lambda s: diffax.diffuse(s, data(), array("eps", BATCH, DIMENSIONS), times()),
    "initial_noise": lambda s: diffax.initial_noise(key("initial"), s, (BATCH, DIMENSIONS), 0.9),
    "posterior": lambda s: diffax.likelihood.forward_posterior(
        s, data(), array("x", BATCH, DIMENSIONS), times(), 0.8 * times()
    ),
    "score": lambda s: sde.score(lambda x, t: 0.5 * x, s, array("x", BATCH, DIMENSIONS), times()),
}
RANDOM = {
    "stream": lambda: random.stream(key("a"), "name"),
    "stream-keys": lambda: random.stream(jax.random.split(key("a"), 3), "name"),
    "fold_in": lambda: random.fold_in(key("a"), 5),
    "per_example": lambda: random.per_example(key("a"), 3),
    "keys_at": lambda: random.keys_at(key("a"), jnp.array([4, 1])),
    "threefry": lambda: random.threefry(jax.random.key(3, impl="rbg")),
    "noise": lambda: random.noise(key("a"), data()),
    "noise-keys": lambda: random.noise(jax.random.split(key("a"), BATCH), data()),
    "noise-tree": lambda: random.noise(key("a"), {"a": data(), "b": array("b", BATCH, 2, 2)}),
    "uniform": lambda: random.unit_interval(key("a"), 5),
}
LAWS = {
    "uniform": lambda: training_times.uniform(t_min=0.1, t_max=0.9),
    "logit_normal": lambda: training_times.logit_normal(mean=-0.3, std=0.8),
    "mode": lambda: training_times.mode(),
    "cosmap": lambda: training_times.cosmap(),
    "log_normal_sigma": lambda: training_times.log_normal_sigma(diffax.EDM()),
}
WAYS = {
    "independent": lambda: training_times.independent,
    "stratified": lambda: training_times.stratified,
    "antithetic": lambda: training_times.antithetic,
}
DRAW = lambda law, way: training_times.draw(key("draw"), 6, law, uniforms=way)
DISCRETE = lambda drawn: training_times.discrete(drawn, 20)
LOSS_AWARE = lambda: resampling.loss_aware(3, history=2, uniform_fraction=0.05)


def followed():
    """A resampler after 12 losses: its state and draws of its distribution."""
    resampler, state = LOSS_AWARE(), LOSS_AWARE().init()
    for i in range(2):
        t = jnp.linspace(0.05, 1.0, 6)
        state = resampler.update(state, t, jnp.abs(array(f"losses{i}", 6)))
    return state, DRAW(resampler.distribution(state), WAYS["stratified"]())


def rows():
    """All rows of the group."""
    for name, make in SCHEDULES.items():
        for what, f in OF_SCHEDULE.items():
            if not (name == "noise_floor" and what == "inverse"):
                yield f"schedule/{name}/{what}", lambda make=make, f=f: f(make(), jnp.linspace(0.0, 1.0, 9))
    for name, make in BETAS.items():
        yield f"betas/{name}", lambda make=make: np.asarray(make())
    for schedule in ("cosine", "table"):
        for name, make in GRIDS.items():
            yield f"times/{schedule}/{name}", lambda make=make, s=SCHEDULES[schedule]: make(s())
    for schedule in ("cosine", "flow", "edm"):
        for kind in KINDS:
            for name, f in PREDICTIONS.items():
                yield (
                    f"predictions/{schedule}/{kind}/{name}",
                    lambda f=f, kind=kind, s=SCHEDULES[schedule]: f(
                        kind, s(), data(), array("y", BATCH, DIMENSIONS), times()
                    ),
                )
        for name, f in LEVELS.items():
            yield f"levels/{schedule}/{name}", lambda f=f, s=SCHEDULES[schedule]: f(s())
    for name, f in RANDOM.items():
        yield f"random/{name}", f
    for law_name, law in LAWS.items():
        for way_name, way in WAYS.items():
            yield f"draws/{law_name}/{way_name}", lambda law=law, way=way: DRAW(law(), way())
    yield "draws/discrete", lambda: DISCRETE(DRAW(LAWS["uniform"](), WAYS["antithetic"]()))
    yield "resampling", followed


ROWS = dict(rows())
