"""diffax: functional diffusion models in JAX.

Nouns are pytrees, verbs are functions, algorithms are pairs of functions.

    schedules    log-SNR curves x scalings (their base is in curves): t -> (alpha, sigma, log_snr)
    times        step grids from noise to data
    predictions  what a network predicts, as rows (a, b): diffuse, target, split
    denoisers    network -> denoiser (x, t) -> E[x0 | x]
    guidance     denoisers -> denoiser
    samplers     (init, step) pairs: ddpm, ddim
    sampling     the one loop: integrate, sample, unroll
    losses       the denoising loss
    analytic     oracles with a known answer
    nn           Flax networks           (needs flax; import diffax.nn)
    training     step, EMA, checkpoints  (needs optax, orbax; import diffax.training)
    metrics      distances between sets of features (import diffax.metrics)

Ten lines from a network to samples:

>>> import jax, diffax
>>> schedule = diffax.Cosine()
>>> data = diffax.analytic.Gaussian.from_covariance([0.7, -0.4], 0.25)
>>> @jax.jit
... def generate(key, eta, times):
...     start, steps = jax.random.split(key)
...     x = diffax.initial_noise(start, schedule, (5, 2))
...     return diffax.sample(steps, diffax.ddim(schedule, eta=eta), data.denoiser(schedule), x, times)
>>> generate(jax.random.key(0), 0.5, diffax.times.uniform(20)).shape
(5, 2)
"""

from diffax import (
    analytic,
    denoisers,
    guidance,
    losses,
    predictions,
    random,
    samplers,
    sampling,
    schedules,
    times,
)
from diffax.denoisers import clip_static, denoiser
from diffax.guidance import classifier_free
from diffax.losses import denoising_loss, drop_labels
from diffax.predictions import diffuse, initial_noise, split, target
from diffax.samplers import Sampler, ddim, ddpm
from diffax.sampling import integrate, sample, unroll
from diffax.schedules import (
    Cosine,
    Flow,
    Linear,
    LogLinear,
    Tabulated,
    cosine_betas,
    from_betas,
    linear_betas,
    rates,
    transition,
)
from diffax.typing import Denoiser, Level, Predict, Schedule

__version__ = "0.1.0"

__all__ = [
    "Cosine",
    "Denoiser",
    "Flow",
    "Level",
    "Linear",
    "LogLinear",
    "Predict",
    "Sampler",
    "Schedule",
    "Tabulated",
    "analytic",
    "classifier_free",
    "clip_static",
    "cosine_betas",
    "ddim",
    "ddpm",
    "denoiser",
    "denoisers",
    "denoising_loss",
    "diffuse",
    "drop_labels",
    "from_betas",
    "guidance",
    "initial_noise",
    "integrate",
    "linear_betas",
    "losses",
    "predictions",
    "random",
    "rates",
    "sample",
    "samplers",
    "sampling",
    "schedules",
    "split",
    "target",
    "times",
    "transition",
    "unroll",
]
