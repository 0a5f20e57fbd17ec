"""Rows of training losses: the loss of each example, and the gradient of a weighted sum in the parameters."""

import jax
import jax.numpy as jnp
from golden_inputs import BATCH, DIMENSIONS, array, data, key, times

import diffax
from diffax import losses
from diffax.losses import training_times, weightings

SCHEDULES = {
    "cosine": lambda: diffax.Cosine(),
    "linear": lambda: diffax.Linear(),
    "flow": lambda: diffax.Flow(),
    "edm": lambda: diffax.EDM(),
}
KINDS = ("x0", "eps", "score", "v", "velocity", "edm")
WEIGHTINGS = {
    "none": lambda: {},
    "simple": lambda: {"weighting": weightings.simple()},
    "min_snr": lambda: {"weighting": weightings.min_snr()},
    "truncated_snr": lambda: {"weighting": weightings.truncated_snr()},
    "p2": lambda: {"weighting": weightings.p2()},
    "edm": lambda: {"weighting": weightings.edm()},
    "sigmoid": lambda: {"weighting": weightings.sigmoid(), "measure": "log_snr"},
    "likelihood": lambda: {"weighting": weightings.elbo(), "measure": "log_snr"},
}
TIMES = {
    "uniform-independent": lambda: training_times.draw(key("t"), BATCH, training_times.uniform(t_min=0.01)),
    "uniform-stratified": lambda: training_times.draw(
        key("t"), BATCH, training_times.uniform(t_min=0.01), uniforms=training_times.stratified
    ),
    "logit_normal-antithetic": lambda: training_times.draw(
        key("t"), BATCH, training_times.logit_normal(), uniforms=training_times.antithetic
    ),
    "mode-stratified": lambda: training_times.draw(
        key("t"), BATCH, training_times.mode(), uniforms=training_times.stratified
    ),
}
LATTICES = {"density": lambda: None, "lattice": lambda: diffax.likelihood.Lattice(0.25, -4.0, 4.0)}
MOMENTS = diffax.Moments
DENOISING = lambda predict, s, kind, x, t, **options: diffax.denoising_loss(
    key("loss"), predict, s, kind, x, t, **options
)
BOUNDS = {
    "hybrid": lambda predict, s, x, t, lattice: losses.hybrid_loss(
        key("loss"), predict, s, "v", x, t, num_steps=20, weight=0.1, lattice=lattice
    ),
    "vlb": lambda predict, s, x, t, lattice: losses.vlb_loss(
        key("loss"), predict, s, "eps", x, t, num_steps=20, lattice=lattice
    ),
}
LEARNED = lambda: diffax.Learned.init(key("schedule"), units=4, log_snr_max=8.0, log_snr_min=-8.0)
VDM = lambda predict, s, x, t, lattice, ends: losses.vdm_loss(
    key("loss"), predict, s, "v", x, t, lattice=lattice, learn_ends=ends
)
DROP_LABELS = lambda: diffax.losses.drop_labels(key("labels"), jnp.arange(16), 99, p_uncond=0.4)
SNAP = lambda x: jnp.round(x * 4) / 4


def parameters():
    """The parameters of a tiny network."""
    return {"w": 0.5 * array("w", DIMENSIONS, DIMENSIONS), "b": array("b", DIMENSIONS), "v": array("v", DIMENSIONS)}


def network(params):
    """y = tanh(x w + t b)."""
    return lambda x, t: jnp.tanh(x @ params["w"] + jnp.asarray(t).reshape(-1, 1) * params["b"])


def with_variance(params):
    """A network with a second output for the variance."""
    return lambda x, t: MOMENTS(network(params)(x, t), jnp.sin(x * params["v"]))


def value_and_gradient(loss, params):
    """loss(params) (B,), and the gradient of a weighted sum of it."""
    weights = jnp.arange(1, BATCH + 1) / BATCH
    return loss(params), jax.grad(lambda p: jnp.sum(weights * loss(p)))(params)


def denoising(schedule, kind, weighting, drawn):
    """A row of `DENOISING`."""
    s, (t, weight) = SCHEDULES[schedule](), drawn()
    return value_and_gradient(lambda p: weight * DENOISING(network(p), s, kind, data(), t, **weighting()), parameters())


def bound(loss, schedule, lattice):
    """A row of `BOUNDS`."""
    s, t = SCHEDULES[schedule](), jnp.array([1, 5, 12, 20]) / 20
    return value_and_gradient(lambda p: loss(with_variance(p), s, SNAP(data()), t, LATTICES[lattice]()), parameters())


def vdm(lattice, ends):
    """A row of `VDM`: the gradient in the network's parameters and in the schedule."""
    return value_and_gradient(
        lambda p: VDM(network(p[0]), p[1], SNAP(data()), times(), LATTICES[lattice](), ends), (parameters(), LEARNED())
    )


def rows():
    """All rows of the group."""
    fixed = lambda: (times(), 1.0)
    for schedule in SCHEDULES:
        for kind in KINDS:
            full = f"denoising/{schedule}/{kind}"
            yield full, lambda s=schedule, k=kind: denoising(s, k, WEIGHTINGS["none"], fixed)
            yield f"{full}/min_snr", lambda s=schedule, k=kind: denoising(s, k, WEIGHTINGS["min_snr"], fixed)
    for name, weighting in WEIGHTINGS.items():
        for kind in ("v", "eps"):
            for law, drawn in TIMES.items():
                full = f"denoising/{kind}/{name}/{law}"
                yield full, lambda k=kind, w=weighting, d=drawn: denoising("cosine", k, w, d)
    for name, loss in BOUNDS.items():
        for schedule in ("cosine", "linear"):
            for lattice in LATTICES:
                full = f"{name}/{schedule}/{lattice}"
                yield full, lambda f=loss, s=schedule, x=lattice: bound(f, s, x)
    for lattice in LATTICES:
        for ends in (False, True):
            yield f"vdm/{lattice}/{ends}", lambda x=lattice, e=ends: vdm(x, e)
    yield "drop_labels", DROP_LABELS


ROWS = dict(rows())
