"""Step grids: (n,) times that fall from noise to data.

A grid is an ordinary array: you may write your own, differentiate through it, or reverse it for inversion.
`sample` over n entries costs n denoiser calls with a sampler that makes one call a step.

    grid             kind      evenly spaced                                         source
    uniform_log_snr  noise     log(sigma / alpha)                                    Lu et al. 2022, section 3.4
    karras           noise     (sigma / alpha)^(1 / rho)                             Karras et al. 2022, eq. 5
    polyexponential  noise     log(sigma / alpha), a power of an evenly spaced ramp  Crowson 2022, k-diffusion
    arctan           noise     atan((sigma / alpha / scale)^(1 / power))             docs/best.md
    uniform          time      t                                                     Ho et al. 2020
    starts           time      t, without the end of the last move                   Geng et al. 2025
    quadratic        time      sqrt(t)                                               Song, Meng & Ermon 2021
    beta             time      quantiles of a Beta distribution                      Lee et al. 2024, section 4.1
    leading          discrete  k floor(T / n)                                        Ho et al. 2020
    trailing         discrete  T - k T / n - 1                                       Lin et al. 2024
    linspace         discrete  T - 1 to 0                                            Nichol & Dhariwal 2021
    lcm              discrete  n of the 50 timesteps used in distillation            Luo et al. 2023

`from_sigmas` and `from_timesteps` build grids from your own lists: timestep i of T is t = (i + 1) / T. `restart` and
`jumps` turn a grid back towards noise, for samplers that renoise. `diffax.training.learn_grid` learns a grid for a
sampler.

The arguments of a grid are `(schedule, n, *, t_max=None, t_min=None)`, those of a discrete grid `(schedule, n, *,
num_train_steps=None)`. The grids in time and in noise run from t_max to t_min, both included. Their default ends
(`default_ends`) are at sigma / alpha = 80 and 0.02, or at the schedule's own ends if it does not reach that far. The
default avoids larger sigma / alpha, such as 22,026 at t = 1 of `Cosine` or `Flow`: a second-order step from there
multiplies the error of the first denoiser call by the ratio of sigma / alpha at the two ends of the step. Most grids in
noise also take sigma_max and sigma_min, the ends in sigma / alpha, instead of t_max and t_min. Likelihood and inversion
need wider ends than the default: t_max=1, and t_min=0 or a small t_min such as 1e-3.

With zero terminal SNR, x at t = 1 is pure noise without any signal, so sampling must start there (Lin et al. 2024,
section 3.3). The default grid of such a table is therefore t = 1, followed by n - 1 entries from the level at 80. The
step from t = 1 has order 1.

Every float argument may be traced. The counts (n, num_train_steps, num_restarts, num_steps, length, repeats) are Python
ints. Discrete grids are computed on the host, from concrete arguments.
The names of discrete grids are those of Lin et al. 2024, table 2, and of the diffusers library. The names of grids in
noise are those of k-diffusion; its `vp` is `uniform` under a `Linear` schedule from t_max=1 to t_min=1e-3.
"""

from diffax.times._catalogue import CATALOGUE, suggestion
from diffax.times._discrete import from_timesteps, lcm, leading, linspace, table_length, trailing
from diffax.times._ends import SIGMA_MAX, SIGMA_MIN, default_ends
from diffax.times._grid import check_grid
from diffax.times._in_noise import (
    arctan,
    from_sigmas,
    karras,
    path,
    polyexponential,
    uniform_log_snr,
)
from diffax.times._in_time import beta, quadratic, starts, uniform
from diffax.times._turning import jumps, restart

__all__ = [
    "CATALOGUE",
    "SIGMA_MAX",
    "SIGMA_MIN",
    "arctan",
    "beta",
    "check_grid",
    "default_ends",
    "from_sigmas",
    "from_timesteps",
    "jumps",
    "karras",
    "lcm",
    "leading",
    "linspace",
    "path",
    "polyexponential",
    "quadratic",
    "restart",
    "starts",
    "suggestion",
    "table_length",
    "trailing",
    "uniform",
    "uniform_log_snr",
]
