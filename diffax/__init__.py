"""diffax: functional diffusion models in JAX.

Data types are pytrees, operations are functions, and algorithms are pairs of functions.

    schedules    log-SNR curves times scalings: t -> (alpha, sigma, log_snr)
    times        step grids from noise to data
    predictions  the kinds of network predictions, as rows (a, b): diffuse, target, split
    denoisers    network -> denoiser (x, t) -> E[x0 | x]
    guidance     denoisers -> denoiser
    samplers     (init, step) pairs and their wrappers; the docstring of `diffax.samplers` has the table of names
    sampling     the sampling loop: integrate, sample, unroll
    losses       the denoising loss and the variational bounds; losses.weightings, losses.training_times,
                 losses.resampling, losses.couplings
    sde          drift and diffusion of a schedule; the score of a denoiser
    likelihood   log-density by the probability-flow ODE, the variational bound term by term, bits per dimension
                 likelihood.adaptive: the ODE by an adaptive solver (needs diffrax; import it yourself)
    analytic     oracles: data distributions with a known denoiser and log-density
    flow_maps    few-step models: networks with two times, their losses, and the sampler `jump`
    inverse      measurements y = A x0 + noise, and sampling of x0 given y
    pretrained   specifications of trained models; load, which reads an export
    nn           Flax networks                    (needs flax)
    training     training step, EMA, checkpoints  (needs optax, orbax)
    metrics      distances between sets of features

Losses and the namespaces from likelihood on are imported at their first use.

Ten lines from a network to samples:

>>> import jax, diffax
>>> schedule = diffax.Cosine()
>>> data = diffax.analytic.Gaussian.from_covariance([0.7, -0.4], 0.25)
>>> @jax.jit
... def generate(key, eta, times):
...     start, steps = jax.random.split(key)
...     x = diffax.initial_noise(start, schedule, (5, 2))
...     return diffax.sample(steps, diffax.ddim(schedule, eta=eta), data.denoiser(schedule), x, times)
>>> generate(jax.random.key(0), 0.5, diffax.times.uniform_log_snr(schedule, 20)).shape
(5, 2)
"""

import importlib
from typing import TYPE_CHECKING, Any

from diffax import denoisers, guidance, predictions, random, samplers, schedules, sde, times
from diffax.denoisers import Moments, denoiser
from diffax.guidance import (
    adaptive_projected_guidance,
    batched_classifier_free_guidance,
    batched_guidance,
    classifier_free_guidance,
    classifier_guidance,
    guidance_interval,
    guidance_rescale,
)
from diffax.predictions import diffuse, initial_noise
from diffax.samplers import (
    Sampler,
    ancestral,
    annealed_langevin,
    cfg_plus_plus,
    churn,
    consistency,
    corrected,
    ddim,
    ddpm,
    deis,
    dpm2,
    dpm2_ancestral,
    dpm_solver,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s,
    dpmpp_2s_ancestral,
    dpmpp_3m,
    dpmpp_3m_sde,
    dpmpp_sde,
    euler,
    euler_maruyama,
    exponential_adams,
    gaussian_adams,
    guidance_momentum,
    heun,
    ipndm,
    langevin,
    lcm,
    lms,
    noise_floor,
    pndm,
    restart,
    sa_solver,
    stochastic_heun,
    tcd,
    unipc,
)
from diffax.sampling import integrate, sample, unroll
from diffax.schedules import (
    EDM,
    Cosine,
    Flow,
    Laplace,
    Learned,
    Linear,
    LogLinear,
    NoiseFloor,
    Quadratic,
    Sigmoid,
    SubVP,
    Tabulated,
    from_betas,
    shifted,
)
from diffax.typing import Denoiser, Level, Predict, Schedule

if TYPE_CHECKING:
    from diffax import analytic, flow_maps, inverse, likelihood, losses, pretrained
    from diffax import metrics as metrics
    from diffax import nn as nn
    from diffax import training as training
    from diffax.likelihood import log_likelihood
    from diffax.losses import denoising_loss
    from diffax.pretrained import load

__version__ = "0.1.0"

__all__ = [
    "EDM",
    "Cosine",
    "Denoiser",
    "Flow",
    "Laplace",
    "Learned",
    "Level",
    "Linear",
    "LogLinear",
    "Moments",
    "NoiseFloor",
    "Predict",
    "Quadratic",
    "Sampler",
    "Schedule",
    "Sigmoid",
    "SubVP",
    "Tabulated",
    "adaptive_projected_guidance",
    "analytic",
    "ancestral",
    "annealed_langevin",
    "batched_classifier_free_guidance",
    "batched_guidance",
    "cfg_plus_plus",
    "churn",
    "classifier_free_guidance",
    "classifier_guidance",
    "consistency",
    "corrected",
    "ddim",
    "ddpm",
    "deis",
    "denoiser",
    "denoisers",
    "denoising_loss",
    "diffuse",
    "dpm2",
    "dpm2_ancestral",
    "dpm_solver",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_2s_ancestral",
    "dpmpp_3m",
    "dpmpp_3m_sde",
    "dpmpp_sde",
    "euler",
    "euler_maruyama",
    "exponential_adams",
    "flow_maps",
    "from_betas",
    "gaussian_adams",
    "guidance",
    "guidance_interval",
    "guidance_momentum",
    "guidance_rescale",
    "heun",
    "initial_noise",
    "integrate",
    "inverse",
    "ipndm",
    "langevin",
    "lcm",
    "likelihood",
    "lms",
    "load",
    "log_likelihood",
    "losses",
    "noise_floor",
    "pndm",
    "predictions",
    "pretrained",
    "random",
    "restart",
    "sa_solver",
    "sample",
    "samplers",
    "schedules",
    "sde",
    "shifted",
    "stochastic_heun",
    "tcd",
    "times",
    "unipc",
    "unroll",
]

# A third of the time of `import diffax` would go to these, and some need flax, optax or orbax.
_NAMESPACES = ("analytic", "flow_maps", "inverse", "likelihood", "losses", "metrics", "nn", "pretrained", "training")
_FUNCTIONS = {"denoising_loss": "losses", "load": "pretrained", "log_likelihood": "likelihood"}


def __getattr__(name: str) -> Any:
    """Import a namespace, or a function of one, at its first use (PEP 562)."""
    if name in _NAMESPACES:
        value = importlib.import_module(f"diffax.{name}")
    elif name in _FUNCTIONS:
        value = getattr(importlib.import_module(f"diffax.{_FUNCTIONS[name]}"), name)
    else:
        raise AttributeError(f"module 'diffax' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMESPACES, *_FUNCTIONS})
