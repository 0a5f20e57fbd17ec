"""What every schedule and sampler is examined on, and how.

The rows: adding a schedule or a sampler to diffax means adding a line to a table here.
"""

import jax
import jax.numpy as jnp
import numpy as np

import diffax
from diffax import analytic

BETAS = diffax.linear_betas(1000)

SCHEDULES = {
    "linear": diffax.Linear(),
    "linear-sub_vp": diffax.Linear(beta_min=0.2, beta_max=15.0, scaling="sub_vp"),
    "cosine": diffax.Cosine(),
    "cosine-ve": diffax.Cosine(scaling="ve"),
    "flow": diffax.Flow(),
    "flow-vp": diffax.Flow(scaling="vp"),
    "log_linear": diffax.LogLinear(0.002, 80.0),
    "log_linear-flow": diffax.LogLinear(0.002, 80.0, scaling="flow"),
    "linear_betas": diffax.from_betas(BETAS),
    "cosine_betas": diffax.from_betas(diffax.cosine_betas(1000)),
    "zero_terminal_snr": diffax.from_betas(np.append(BETAS[:-1], 1.0)),
}

# name -> (sampler of a schedule and its float hyperparameters, their values, deterministic)
SAMPLERS = {
    "ddim": (diffax.ddim, {"eta": 0.0}, True),
    "ddim-eta": (diffax.ddim, {"eta": 0.6}, False),
    "ddpm": (diffax.ddpm, {}, False),
    "ddpm-large": (lambda schedule: diffax.ddpm(schedule, variance="large"), {}, False),
}

START = np.array([[0.5, -1.0], [1.2, 0.3], [-0.7, 0.8], [0.1, 0.1], [-1.3, -0.4]])


def gaussian():
    """A correlated Gaussian in two dimensions."""
    return analytic.Gaussian.from_covariance(np.array([0.7, -0.4]), np.array([[0.4, 0.15], [0.15, 0.2]]))


def mixture():
    """The three-component mixture of the reference cases."""
    means = np.array([[-1.5, 0.5], [1.0, 1.2], [0.3, -1.4]])
    return analytic.Mixture(np.array([0.2, 0.5, 0.3]), means, 0.3)


ORACLES = {"gaussian": gaussian, "mixture": mixture}


def measured_order(sampler, schedule, oracle, *, t_max=0.95, t_min=0.1, steps=(80, 160, 320)):
    """The slope of log error against log step between the two finest grids, on the probability-flow ODE."""
    denoise = oracle.denoiser(schedule)
    x = schedule(t_max).sigma * START
    exact = analytic.flow(schedule, denoise, x, t_max, t_min, num_steps=1500)
    errors = []
    for n in steps:
        times = diffax.times.uniform_log_snr(schedule, n + 1, t_max=t_max, t_min=t_min)
        end = diffax.integrate(jax.random.key(0), sampler, denoise, x, times).x
        errors.append(float(jnp.abs(end - exact).max()))
    return float(np.log2(errors[-2] / errors[-1])), errors


def check_order(sampler, schedule, oracle):
    """The measured order equals the claimed one."""
    order, errors = measured_order(sampler, schedule, oracle)
    assert abs(order - sampler.order) < 0.15, f"claims order {sampler.order}, measured {order:.2f}: {errors}"


def affine(sampler, denoise, x, times, monkeypatch):
    """Mean and covariance of the last state of a sampler that is affine in its noise, for x (1, D).

    The noise of step k is replaced by row k of a table Z; the mean is the result at Z = 0, and the columns of
    the Jacobian in Z are the directions of the noise.
    """
    monkeypatch.setattr(diffax.random, "fold_in", lambda key, data: data)

    def end(table):
        monkeypatch.setattr(diffax.random, "noise", lambda key, like: table[key][None])
        return diffax.integrate(jax.random.key(0), sampler, denoise, x, times).x[0]

    zeros = jnp.zeros((len(times) - 1, x.shape[-1]), x.dtype)
    mean, jacobian = end(zeros), jax.jacobian(end)(zeros)
    flat = jacobian.reshape(x.shape[-1], -1)
    return mean, flat @ flat.T
