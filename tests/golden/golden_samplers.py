"""Rows of samplers and their wrappers: the last state, on the mixture."""

import jax
import jax.numpy as jnp
from golden_inputs import BATCH, DENOISER, DIMENSIONS, GAUSSIAN, MIXTURE, array, grid, key

import diffax
from diffax import analytic, samplers
from diffax.samplers.engines.adams import adams

SCHEDULES = {
    "cosine": lambda: diffax.Cosine(),
    "linear": lambda: diffax.Linear(),
    "flow": lambda: diffax.Flow(),
    "edm": lambda: diffax.EDM(),
    "table": lambda: diffax.from_betas(diffax.schedules.cosine_betas(20)),
}
THIRDS = ("linear", "flow", "table")
OTHER = lambda s: DENOISER(GAUSSIAN(), s)  # the second branch of guidance
UNIPC = {
    f"unipc-{order}-{variant}-{form}": lambda s, order=order, variant=variant, form=form: samplers.unipc(
        s, order=order, variant=variant, form=form
    )
    for order in (2, 3)
    for variant in ("bh1", "bh2")
    for form in ("eps", "x0")
}
SAMPLERS = {
    "ddim": lambda s: samplers.ddim(s),
    "ddim-eta": lambda s: samplers.ddim(s, eta=0.6),
    "ddpm-small": lambda s: samplers.ddpm(s),
    "ddpm-large": lambda s: samplers.ddpm(s, variance="large"),
    "euler": lambda s: samplers.euler(s),
    "euler-time": lambda s: samplers.euler(s, space="time"),
    "euler-churn": lambda s: samplers.euler(s, s_churn=2.0),
    "euler_ancestral": lambda s: samplers.ddim(s, eta=0.8),
    "heun": lambda s: samplers.heun(s),
    "heun-alpha": lambda s: samplers.heun(s, alpha=0.7),
    "heun-time": lambda s: samplers.heun(s, space="time"),
    "heun-churn": lambda s: samplers.heun(s, s_churn=3.0, s_tmin=0.05, s_tmax=50.0, s_noise=1.003),
    "dpm2": lambda s: samplers.dpm2(s),
    "dpm2-churn": lambda s: samplers.dpm2(s, s_churn=2.0),
    "dpm2_ancestral": lambda s: samplers.dpm2_ancestral(s, eta=0.8),
    "dpmpp_2s": lambda s: samplers.dpmpp_2s(s),
    "dpmpp_2s_ancestral": lambda s: samplers.dpmpp_2s_ancestral(s, eta=0.8, noise_scale=0.9),
    "dpmpp_sde": lambda s: samplers.dpmpp_sde(s, eta=0.8, r=0.4),
    "dpm_solver-1": lambda s: samplers.dpm_solver(s, order=1),
    "dpm_solver-2": lambda s: samplers.dpm_solver(s, order=2),
    "dpm_solver-2-x0": lambda s: samplers.dpm_solver(s, order=2, form="x0"),
    "dpm_solver-3": lambda s: samplers.dpm_solver(s, order=3),
    "dpm_solver-3-x0": lambda s: samplers.dpm_solver(s, order=3, form="x0"),
    "dpm_solver-3-taylor": lambda s: samplers.dpm_solver(s, order=3, taylor=True),
    "dpm_solver-3-time": lambda s: samplers.dpm_solver(s, order=3, space="time"),
    "dpmpp_2m": lambda s: samplers.dpmpp_2m(s),
    "dpmpp_2m-heun": lambda s: samplers.dpmpp_2m(s, solver="heun"),
    "dpmpp_2m-final": lambda s: samplers.dpmpp_2m(s, lower_order_final=True),
    "dpmpp_3m": lambda s: samplers.dpmpp_3m(s),
    "dpmpp_3m-cold": lambda s: samplers.dpmpp_3m(s, start="cold"),
    "dpmpp_2m_sde": lambda s: samplers.dpmpp_2m_sde(s, eta=0.8),
    "dpmpp_2m_sde-heun": lambda s: samplers.dpmpp_2m_sde(s, solver="heun", noise_scale=0.9),
    "dpmpp_3m_sde": lambda s: samplers.dpmpp_3m_sde(s, eta=0.8),
    "deis-1": lambda s: samplers.deis(s, order=1),
    "deis-3": lambda s: samplers.deis(s),
    "deis-3-final": lambda s: samplers.deis(s, lower_order_final=True),
    "lms-2": lambda s: samplers.lms(s, order=2),
    "lms-4": lambda s: samplers.lms(s),
    "exponential_adams-3-flow": lambda s: samplers.exponential_adams(s, form="flow", order=3, corrected=True),
    "exponential_adams-4-rho": lambda s: samplers.exponential_adams(s, form="rho", order=4),
    "exponential_adams-3-eps": lambda s: samplers.exponential_adams(s, form="eps", order=3),
    "adams-time": lambda s: adams(s, form="time", order=2),
    "adams-corrected": lambda s: adams(s, order=4, corrected="start", lower_order_final=True),
    "adams-eta": lambda s: adams(s, order=2, eta=0.5, noise_scale=0.9),
    **UNIPC,
    "unip": lambda s: samplers.unipc(s, order=3, corrected=False),
    "unipc-final": lambda s: samplers.unipc(s, form="x0", variant="bh1", lower_order_final=True),
    "sa_solver": lambda s: samplers.sa_solver(s, tau=0.8),
    "sa_solver-0": lambda s: samplers.sa_solver(s, tau=0.0, order=2),
    "sa_solver-tau": lambda s: samplers.sa_solver(s, tau=lambda t: jnp.where(t > 0.5, 1.0, 0.0)),
    "sa_solver-predictor": lambda s: samplers.sa_solver(s, order=2, corrected=False),
    "pndm": lambda s: samplers.pndm(s),
    "pndm-prk": lambda s: samplers.pndm(s, start="prk"),
    "ipndm": lambda s: samplers.ipndm(s),
    "ipndm-2": lambda s: samplers.ipndm(s, order=2),
    "gaussian_adams": lambda s: samplers.gaussian_adams(s, std=1.3),
    "gaussian_adams-mean": lambda s: samplers.gaussian_adams(s, mean=jnp.ones(3), std=0.5, end="smooth", start=1),
    "consistency": lambda s: samplers.consistency(s),
    "consistency-t_min": lambda s: samplers.consistency(s, t_min=0.01),
    "lcm": lambda s: samplers.lcm(s),
    "tcd": lambda s: samplers.tcd(s),
    "tcd-steps": lambda s: samplers.tcd(s, gamma=0.5, num_train_steps=20),
    "euler_maruyama": lambda s: samplers.euler_maruyama(s, eta=0.7),
    "stochastic_heun": lambda s: samplers.stochastic_heun(s, eta=0.7),
    "annealed_langevin": lambda s: samplers.annealed_langevin(s, step_size=0.1),
    "annealed_langevin-snr": lambda s: samplers.annealed_langevin(s, snr=0.1),
    "noise_floor": lambda s: samplers.noise_floor(lambda s: samplers.unipc(s, order=2, form="x0"), s, 0.2),
    "noise_floor-ddpm": lambda s: samplers.noise_floor(samplers.ddpm, s, 0.2),
    "churn": lambda s: samplers.churn(samplers.ddim(s), s, 2.0, s_noise=1.01),
    "ancestral": lambda s: samplers.ancestral(samplers.heun(s), s, eta=0.5, noise_scale=0.9),
    "corrected": lambda s: samplers.corrected(samplers.ddim(s), samplers.langevin(s, step_size=0.1, num_steps=2)),
    "predictor_corrector": lambda s: samplers.corrected(samplers.ddpm(s), samplers.langevin(s, snr=0.16)),
    "cfg_plus_plus": lambda s: samplers.cfg_plus_plus(samplers.ddim(s), s, OTHER(s), 0.3),
    "cfg_plus_plus-2m": lambda s: samplers.cfg_plus_plus(samplers.dpmpp_2m(s), s, OTHER(s), 0.3),
    "guidance_momentum": lambda s: samplers.guidance_momentum(
        samplers.ddim(s), OTHER(s), lambda c, u: diffax.classifier_free_guidance(c, u, 2.0)
    ),
    "runge_kutta": lambda s: analytic.runge_kutta(s),
}
# These samplers run on the grid of `restart_times`, which has jumps back to noise.
TURNING = {
    "restart": lambda s: samplers.restart(samplers.dpmpp_2m(s), s),
    "restart-ddim": lambda s: samplers.restart(samplers.ddim(s), s, noise_scale=1.003),
}
LEARNED = lambda s: samplers.ddpm(s, variance="learned")
MOMENTS = lambda s: lambda x, t: diffax.Moments(DENOISER(MIXTURE(), s)(x, t), 0.5 + 0.25 * jnp.cos(x))
START = lambda s: s(grid()[0]).sigma * array("start", BATCH, DIMENSIONS)
GRID = lambda s: grid()
TURNING_GRID = lambda s: diffax.times.restart(s, grid(), 0.1, 0.5, num_restarts=1, num_steps=3)
RUN = {
    "end": lambda *args: diffax.integrate(*args).x,
    "sample": lambda *args: diffax.sample(*args),
    "path": lambda *args: diffax.unroll(*args)[1],
}


def run(schedule, sampler, *, times=GRID, denoise=None, split=False, output="end"):
    """The last state, or another output."""
    s = SCHEDULES[schedule]()
    denoise = DENOISER(MIXTURE(), s) if denoise is None else denoise(s)
    start = jax.random.split(key("run"), BATCH) if split else key("run")
    return RUN[output](start, sampler(s), denoise, START(s), times(s))


def rows():
    """All rows of the group.

    cosine and edm have all samplers; each other schedule has every third one, because a row takes half a second.
    """
    for schedule in SCHEDULES:
        every = schedule in ("cosine", "edm")
        for place, (name, sampler) in enumerate(SAMPLERS.items()):
            if every or place % 3 == THIRDS.index(schedule):
                yield f"{schedule}/{name}", lambda s=schedule, f=sampler: run(s, f)
        for name, sampler in TURNING.items():
            yield f"{schedule}/{name}", lambda s=schedule, f=sampler: run(s, f, times=TURNING_GRID)
        yield f"{schedule}/ddpm-learned", lambda s=schedule: run(s, LEARNED, denoise=MOMENTS)
    for name in ("ddpm-small", "dpmpp_2m_sde", "unipc-3-bh2-eps"):
        yield f"keys/{name}", lambda f=SAMPLERS[name]: run("cosine", f, split=True, output="path")
    for name in ("ddim-eta", "unipc-3-bh2-x0", "noise_floor", "noise_floor-ddpm"):
        yield f"sample/{name}", lambda f=SAMPLERS[name]: run("cosine", f, output="sample")


ROWS = dict(rows())
