"""diffax: functional diffusion models in JAX.

Nouns are pytrees, verbs are functions, algorithms are pairs of functions.

    schedules    log-SNR curves x scalings: t -> (alpha, sigma, log_snr)
    times        step grids from noise to data
    predictions  what a network predicts, as rows (a, b): diffuse, target, split
    denoisers    network -> denoiser (x, t) -> E[x0 | x]
    guidance     denoisers -> denoiser
    samplers     (init, step) pairs and their wrappers; the table of names is in `diffax.samplers`
    sampling     the one loop: integrate, sample, unroll
    losses       the denoising loss and the bounds; losses.weightings, losses.training_times, losses.resampling
    sde          drift and diffusion of a schedule; the score of a denoiser
    likelihood   log-density by the probability-flow ODE, the bound term by term, bits per dimension
                 likelihood.adaptive: the ODE by an adaptive solver (needs diffrax; import it)
    analytic     oracles with a known answer
    inverse      measurements y = A x0 + noise, and samplers of x0 given y
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
>>> generate(jax.random.key(0), 0.5, diffax.times.uniform_log_snr(schedule, 20)).shape
(5, 2)
"""

from diffax import (
    analytic,
    denoisers,
    guidance,
    inverse,
    likelihood,
    losses,
    predictions,
    random,
    samplers,
    sampling,
    schedules,
    sde,
    times,
)
from diffax.denoisers import Moments, clip_dynamic, clip_static, denoiser, mean_only, on_x0, reschedule
from diffax.guidance import (
    apg,
    autoguidance,
    classifier,
    classifier_free,
    classifier_free_batched,
    guide_batched,
    interval,
    rescale,
)
from diffax.likelihood import (
    Lattice,
    LogLikelihood,
    bits_per_dim,
    continuous_bound,
    dequantize,
    log_likelihood,
    posterior,
    variational_bound,
)
from diffax.losses import denoising_loss, drop_labels, hybrid_loss, vdm_loss, vlb_loss
from diffax.predictions import diffuse, initial_noise, split, target
from diffax.samplers import (
    Corrector,
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
    euler_ancestral,
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
    predictor_corrector,
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
    cosine_betas,
    from_betas,
    linear_betas,
    quadratic_betas,
    rates,
    shifted,
    sigmoid_betas,
    transition,
    zero_terminal_snr,
)
from diffax.typing import Denoiser, Level, Predict, Schedule

__version__ = "0.1.0"

__all__ = [
    "EDM",
    "Corrector",
    "Cosine",
    "Denoiser",
    "Flow",
    "Laplace",
    "Lattice",
    "Learned",
    "Level",
    "Linear",
    "LogLikelihood",
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
    "analytic",
    "ancestral",
    "annealed_langevin",
    "apg",
    "autoguidance",
    "bits_per_dim",
    "cfg_plus_plus",
    "churn",
    "classifier",
    "classifier_free",
    "classifier_free_batched",
    "clip_dynamic",
    "clip_static",
    "consistency",
    "continuous_bound",
    "corrected",
    "cosine_betas",
    "ddim",
    "ddpm",
    "deis",
    "denoiser",
    "denoisers",
    "denoising_loss",
    "dequantize",
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
    "drop_labels",
    "euler",
    "euler_ancestral",
    "euler_maruyama",
    "exponential_adams",
    "from_betas",
    "gaussian_adams",
    "guidance",
    "guidance_momentum",
    "guide_batched",
    "heun",
    "hybrid_loss",
    "initial_noise",
    "integrate",
    "interval",
    "inverse",
    "ipndm",
    "langevin",
    "lcm",
    "likelihood",
    "linear_betas",
    "lms",
    "log_likelihood",
    "losses",
    "mean_only",
    "noise_floor",
    "on_x0",
    "pndm",
    "posterior",
    "predictions",
    "predictor_corrector",
    "quadratic_betas",
    "random",
    "rates",
    "rescale",
    "reschedule",
    "restart",
    "sa_solver",
    "sample",
    "samplers",
    "sampling",
    "schedules",
    "sde",
    "shifted",
    "sigmoid_betas",
    "split",
    "stochastic_heun",
    "target",
    "tcd",
    "times",
    "transition",
    "unipc",
    "unroll",
    "variational_bound",
    "vdm_loss",
    "vlb_loss",
    "zero_terminal_snr",
]
