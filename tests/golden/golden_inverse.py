"""Rows of inverse problems: operators, posteriors, the methods' denoisers and samplers."""

import jax.numpy as jnp
from golden_inputs import BATCH, DENOISER, DIMENSIONS, GAUSSIAN, MIXTURE, array, compiled, grid, key, times

import diffax
from diffax import inverse

IMAGE = (4, 4, 1)
SCHEDULES = {"cosine": lambda: diffax.Cosine(), "flow": lambda: diffax.Flow()}
MASK = lambda: inverse.Mask(jnp.array([1, 0, 1]))
MATRIX = lambda: inverse.linear(lambda v: v @ array("matrix", DIMENSIONS, 2), jnp.zeros(DIMENSIONS))
OPERATORS = {
    "mask": lambda: inverse.Mask(array("known", *IMAGE) > 0),
    "box": lambda: inverse.BoxDownsample(2, IMAGE),
    "blur": lambda: inverse.gaussian_blur(1.0, IMAGE, radius=1),
    "linear": lambda: inverse.linear(lambda v: jnp.cumsum(v, 0)[1:3], jnp.zeros(IMAGE)),
}
OF_OPERATOR = {
    "forward": lambda op, x, y: op.forward(x),
    "adjoint": lambda op, x, y: op.adjoint(y),
    "solve": lambda op, x, y: op.solve(y, 1.0, 0.1),
    "pseudo_inverse": lambda op, x, y: inverse.pseudo_inverse(op, y),
    "project": lambda op, x, y: inverse.project(op, y, x),
}
METHODS = {
    "ddnm": lambda d, s, op, y: inverse.ddnm(d, op, y),
    "pigdm": lambda d, s, op, y: inverse.pigdm(d, s, op, y, std=0.1, data_variance=0.8),
    "mmps": lambda d, s, op, y: inverse.mmps(d, s, op, y, std=0.1),
    "diffpir": lambda d, s, op, y: inverse.diffpir(d, s, op, y, std=0.1, weight=0.7),
}
SAMPLERS = {
    "replacement": lambda s, op, y: inverse.replacement(diffax.ddim(s), s, op, y),
    "dps": lambda s, op, y: inverse.dps(diffax.ddpm(s), op, y, scale=0.5),
    "renoising": lambda s, op, y: inverse.renoising(s, zeta=0.3),
    "ddnm_plus": lambda s, op, y: inverse.ddnm_plus(s, op, y, std=0.1),
}
REPAINT = lambda s, op, y: inverse.repaint(diffax.ddpm(s), s, op, y)
JUMPS = lambda: diffax.times.jumps(grid(), length=2, repeats=2)
POSTERIOR = lambda law: inverse.posterior(law, MASK(), jnp.array([[0.5, 0.0, -0.2]]), std=0.2)
MOMENTS = lambda law: inverse.moments(law)
OF_LAW = {
    "denoise": lambda law: law.denoise(array("x", BATCH, DIMENSIONS), diffax.Cosine()(times())),
    "log_prob": lambda law: law.log_prob(array("x", BATCH, DIMENSIONS), diffax.Cosine()(times())),
    "sample": lambda law: law.sample(key("law"), BATCH),
    "moments": MOMENTS,
}
SAMPLE = diffax.sample


def measured(f, make):
    """f(operator, x, y) for an image x and a measurement y of another image."""
    operator = make()
    y = operator.forward(array("other", BATCH, *IMAGE))
    return f(operator, array("image", BATCH, *IMAGE), y)


def problem(schedule, make):
    """(schedule, denoiser, operator, y)."""
    s, operator = SCHEDULES[schedule](), make()
    return s, DENOISER(MIXTURE(), s), operator, operator.forward(array("truth", BATCH, DIMENSIONS))


def method(schedule, make, f):
    """The denoiser of a method at times of the examples, and a sample with it."""
    s, denoise, operator, y = problem(schedule, make)
    wrapped, x = f(denoise, s, operator, y), array("x", BATCH, DIMENSIONS)
    return wrapped(x, times()), SAMPLE(key("method"), diffax.ddim(s, eta=0.5), wrapped, x, grid())


def sampled(schedule, make, f, walk):
    """A sample by a sampler of an inverse problem."""
    s, denoise, operator, y = problem(schedule, make)
    return SAMPLE(key("sampled"), f(s, operator, y), denoise, array("x", BATCH, DIMENSIONS), walk())


def plain(f):
    """f(), operation by operation."""
    return f()


def rows():
    """All rows of the group. Those with an iterative `solve` are compiled: it takes hundreds of operations."""
    for name, make in OPERATORS.items():
        for what, f in OF_OPERATOR.items():
            how = compiled if name == "linear" else plain
            yield f"operators/{name}/{what}", lambda f=f, make=make, how=how: how(lambda: measured(f, make))
    for schedule in SCHEDULES:
        for operator, make in {"mask": MASK, "matrix": MATRIX}.items():
            how = compiled if operator == "matrix" else plain
            for name, f in METHODS.items():
                full = f"methods/{schedule}/{operator}/{name}"
                yield full, lambda a=schedule, b=make, c=f, how=how: how(lambda: method(a, b, c))
        for name, f in SAMPLERS.items():
            yield f"samplers/{schedule}/{name}", lambda a=schedule, f=f: sampled(a, MASK, f, grid)
        yield f"samplers/{schedule}/repaint", lambda a=schedule: sampled(a, MASK, REPAINT, JUMPS)
        yield (
            f"samplers/{schedule}/dps-matrix",
            lambda a=schedule: compiled(lambda: sampled(a, MATRIX, SAMPLERS["dps"], grid)),
        )
    for name, law in {"gaussian": GAUSSIAN, "mixture": MIXTURE}.items():
        for what, f in OF_LAW.items():
            yield f"posterior/{name}/{what}", lambda f=f, law=law: f(POSTERIOR(law()))
        yield f"prior/{name}/moments", lambda law=law: MOMENTS(law())


ROWS = dict(rows())
