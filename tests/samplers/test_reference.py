"""Results of other libraries' samplers: k-diffusion, EDM, dpm-solver, UniPC, azula; from reference/samplers.json.

147 of the 173 cases of the file are compared here. The others:

    cases  library             sampler
    6      k-diffusion and     sample_dpm_adaptive, DPM_Solver adaptive: adaptive steps, so no fixed grid
           dpm-solver
    4      azula               REABSampler: order 1 instead of 2, it mixes levels t and s in one square root
    4      k-diffusion         sample_dpmpp_3m_sde: order 2 instead of 3, phi_3 is truncated
    4      dpm-solver          multistep, order 3: order 2 for the same reason
    8      UniPC               vary_coeff of order 2 and 3, in both forms: order 1

The schedules of azula and those with sigma = 0 are defined here: any object with the three methods is a schedule.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffax
from diffax import analytic, samplers
from diffax.samplers.engines import adams as engine
from diffax.samplers.wrappers._ancestral import ancestral_levels
from diffax.typing import Level

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.newest]
FACTS = json.loads((Path(__file__).parents[1] / "samplers" / "reference" / "samplers.json").read_text())
U = np.array(FACTS["U"])
KEY = jax.random.key(0)


class ScheduleFromFunctions(NamedTuple):
    """A schedule from functions alpha(t) and sigma(t), where sigma may be 0."""

    alpha: Any
    sigma: Any
    time_at_rho: Any = None

    def log_snr(self, t):
        return 2 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))

    def inverse(self, log_snr):
        return self.time_at_rho(jnp.exp(-log_snr / 2))

    def __call__(self, t):
        t = jnp.asarray(t)
        return Level(self.alpha(t), self.sigma(t), self.log_snr(t))


def variance_exploding(sigma_max):
    """alpha = 1, sigma = sigma_max t."""
    return ScheduleFromFunctions(lambda t: jnp.ones_like(t), lambda t: sigma_max * t, lambda rho: rho / sigma_max)


def low_noise(alpha):
    return ScheduleFromFunctions(alpha, lambda t: jnp.sqrt(1 - alpha(t) ** 2 + 1e-6))


AZULA = {
    "VPSchedule()": low_noise(lambda t: jnp.exp(np.log(1e-3) * t**2)),
    "CosineSchedule()": low_noise(lambda t: jnp.cos(np.arccos(1e-3) * t)),
    "RectifiedSchedule()": ScheduleFromFunctions(lambda t: t * 1e-3 + (1 - t), lambda t: t + (1 - t) * 1e-3),
    "VESchedule(1e-3,1e2)": diffax.LogLinear(1e-3, 1e2),
}
LINEAR = diffax.Linear(0.1, 20.0)


def inject_noise(monkeypatch, shape, draws=1):
    """Replace draw k of a run by sqrt(2) sin(0.1 i + 1.7 k), i the flat index of `shape`. A step has `draws` draws."""
    i = np.arange(np.prod(shape)).reshape(shape)

    def fold_in(key, data):
        outermost = jnp.issubdtype(jnp.asarray(key).dtype, jax.dtypes.prng_key)
        return data * draws if outermost else key + (data if draws > 1 else 0)

    monkeypatch.setattr(diffax.random, "fold_in", fold_in)
    monkeypatch.setattr(
        diffax.random,
        "noise",
        lambda k, like: (jnp.sqrt(2.0) * jnp.sin(0.1 * i + 1.7 * k)).astype(like.dtype),
    )


def karras(n, low=0.02, high=10.0, rho=7):
    ramp = np.linspace(0, 1, n)
    return np.minimum((high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho, high)


# Each function returns (schedule, start, list of (sampler, times), whether the run ends with a denoiser call).


def k_diffusion(name, args):
    schedule, name = variance_exploding(10.0), name.removeprefix("sample_")
    if name == "dpm_fast":  # 12 calls: orders 3, 3, 3, 2, 1
        return schedule, 10 * U, singlestep(schedule, np.geomspace(10, 0.02, 6) / 10, [3, 3, 3, 2, 1]), False
    times = karras(args["n"]) / 10
    churn = {k: args[k] for k in ("s_churn", "s_tmin", "s_tmax", "s_noise") if k in args}
    if name == "lms":
        return schedule, 10 * U, [(samplers.lms(schedule, order=args["order"]), np.append(times, 0.0))], False
    make = {
        "euler": lambda: samplers.euler(schedule, **churn),
        "heun": lambda: samplers.heun(schedule, **churn),
        "dpm_2": lambda: samplers.dpm2(schedule),
        "dpmpp_2m": lambda: samplers.dpmpp_2m(schedule),
        "dpmpp_2m_sde": lambda: samplers.dpmpp_2m_sde(schedule, eta=args["eta"], solver=args["solver_type"]),
        "euler_ancestral": lambda: samplers.ddim(schedule, eta=args["eta"]),
        "dpm_2_ancestral": lambda: samplers.dpm2_ancestral(schedule, eta=args["eta"]),
        "dpmpp_2s_ancestral": lambda: samplers.dpmpp_2s_ancestral(schedule, eta=args["eta"]),
        "dpmpp_sde": lambda: samplers.dpmpp_sde(schedule, eta=args["eta"]),
    }[name]
    return schedule, 10 * U, [(make(), times)], True


def edm(name, args):
    schedule, n = variance_exploding(80.0), args["num_steps"]
    churn = {f"s_{k}": args.get(f"S_{v}", d) for k, v, d in (("churn", "churn", 0), ("noise", "noise", 1))}
    churn |= {"s_tmin": args.get("S_min", 0.0), "s_tmax": args.get("S_max", np.inf)}
    if name == "edm_sampler":
        return schedule, 80 * U, [(samplers.heun(schedule, **churn), karras(n, 0.002, 80.0) / 80)], True
    if args["discretization"] == "edm":
        sampler = samplers.heun(schedule, alpha=args["alpha"])
        return schedule, 80 * U, [(sampler, karras(n, 0.002, 80.0) / 80)], True
    if args["discretization"] == "iddpm":
        sigmas = iddpm_sigmas(n)
        return schedule, sigmas[0] * U, [(samplers.heun(schedule), sigmas / 80)], True
    if args["discretization"] == "ve":  # time is sigma^2
        schedule = ScheduleFromFunctions(lambda t: jnp.ones_like(t), lambda t: 100 * jnp.sqrt(t))
        times, start = np.geomspace(1, (0.02 / 100) ** 2, n), 100 * U
    else:
        beta_d, beta_min = vp_betas()
        alpha = lambda t: jnp.exp(-0.25 * beta_d * t**2 - 0.5 * beta_min * t)
        schedule = ScheduleFromFunctions(alpha, lambda t: jnp.sqrt(-jnp.expm1(-0.5 * beta_d * t**2 - beta_min * t)))
        times, start = np.linspace(1, 1e-3, n), float(schedule(1.0).sigma) * U
    method = samplers.heun if args["solver"] == "heun" else samplers.euler
    last = (samplers.euler(schedule, space="time"), np.append(times[-1], 0.0))
    return schedule, start, [(method(schedule, space="time"), times), last], False


def vp_betas():
    """The betas in EDM's ablation, solved from its sigma(1e-3) and sigma(1) at beta_d = 19.9 and beta_min = 0.1."""
    low, high = (0.5 * 19.9 * t**2 + 0.1 * t for t in (1e-3, 1.0))
    beta_d = 2 * (low / 1e-3 - high) / (1e-3 - 1)
    return beta_d, high - 0.5 * beta_d


def iddpm_sigmas(n, levels=1000):
    """Levels of improved DDPM (Karras et al. 2022, table 1): C_1 = 0.001, C_2 = 0.008."""
    bar = lambda j: np.sin(0.5 * np.pi * j / levels / 1.008) ** 2
    u = np.zeros(levels + 1)
    for j in range(levels, 0, -1):
        u[j - 1] = np.sqrt((u[j] ** 2 + 1) / max(bar(j - 1) / bar(j), 0.001) - 1)
    u = u[(u >= 0.002) & (u <= 80)]
    return u[np.round((len(u) - 1) / (n - 1) * np.arange(n)).astype(int)]


def grid(args, n):
    make = diffax.times.uniform_log_snr if args["skip_type"] == "logSNR" else diffax.times.uniform
    return make(LINEAR, n + 1, t_max=1.0, t_min=1e-3)


def singlestep(schedule, times, orders, **settings):
    return [(samplers.dpm_solver(schedule, order=p, **settings), times[i : i + 2]) for i, p in enumerate(orders)]


def dpm_solver(name, args):
    form, order, n = "x0" if "++" in args["algorithm_type"] else "eps", args["order"], args["steps"]
    if args["method"] == "multistep":
        rule = "bh2" if args["solver_type"] == "dpmsolver" else "exact"
        return LINEAR, U, [(engine.adams(LINEAR, form=form, order=order, rule=rule), grid(args, n))], False
    inner = {"form": form, "space": "log_snr" if args["skip_type"] == "logSNR" else "time"}
    if args["method"] == "singlestep_fixed" or order < 3:
        return LINEAR, U, [(samplers.dpm_solver(LINEAR, order=order, **inner), grid(args, n // order))], False
    orders = [3] * (n // 3 - 1) + [2, 1]
    ends = grid(args, len(orders)) if args["skip_type"] == "logSNR" else grid(args, n)[np.cumsum([0, *orders])]
    return LINEAR, U, singlestep(LINEAR, ends, orders, **inner), False


def unipc(name, args):
    form = {"noise_prediction": "eps", "data_prediction": "x0"}[args["algorithm_type"]]
    settings = {"form": form, "order": args["order"], "lower_order_final": True}
    if args["variant"] == "vary_coeff":  # at order 1 the weight of the single slope is exact
        return LINEAR, U, [(engine.adams(LINEAR, corrected=True, **settings), grid(args, args["steps"]))], False
    return LINEAR, U, [(samplers.unipc(LINEAR, variant=args["variant"], **settings), grid(args, args["steps"]))], False


def azula(name, args):
    schedule = AZULA[args["schedule"]]
    sampler = {
        "DDPMSampler": lambda: samplers.ddpm(schedule),
        "DDIMSampler": lambda: samplers.ddim(schedule, eta=args["eta"]),
        "EulerSampler": lambda: samplers.euler(schedule),
        "HeunSampler": lambda: samplers.heun(schedule),
        "zABSampler": lambda: samplers.lms(schedule, order=2),
        "vABSampler": lambda: samplers.exponential_adams(schedule, form="flow", order=2),
        "zEABSampler": lambda: samplers.exponential_adams(schedule, form="eps", order=2),
        "xEABSampler": lambda: samplers.exponential_adams(schedule, form="x0", order=2),
    }[name]()
    return schedule, schedule(1.0).sigma * U, [(sampler, np.linspace(1, 0, args["steps"] + 1))], False


SETTINGS = {"k-diffusion": k_diffusion, "NVlabs/edm": edm, "dpm-solver (official)": dpm_solver, "azula": azula}
SETTINGS["UniPC (official)"] = unipc
NOT_OURS = ("sample_dpm_adaptive", "REABSampler")
CASES = [c for c in FACTS["cases"] if c["sampler"] not in NOT_OURS and c["args"].get("method") != "adaptive"]


def oracle():
    parameters = FACTS["gauss"]
    return analytic.Mixture(np.array(parameters["weights"]), np.array(parameters["means"]), parameters["std"])


def case_id(case):
    values = "-".join(str(v) for k, v in case["args"].items() if k not in ("x0", "lower_order_final"))
    return f"{case['sampler']}-{values}"


@pytest.mark.slow_cases(
    but=[
        "sample_euler-10",
        "sample_lms-10-1",
        "sample_lms-10-2",
        "sample_lms-10-3",
        "sample_euler_ancestral-10-1.0",
        "sample_euler_ancestral-10-0.0",
        "sample_dpmpp_2s_ancestral-10-0.0",
        "sample_euler-10-4.0-0.05-50.0-1.003",
        "sample_dpmpp_2m_sde-10-0.0-midpoint",
        "sample_euler-20",
        "sample_heun-20",
        "sample_dpm_2-20",
        "sample_dpmpp_2m-20",
        "sample_lms-20-1",
        "sample_lms-20-2",
        "sample_lms-20-3",
        "sample_euler_ancestral-20-1.0",
        "sample_euler_ancestral-20-0.0",
        "sample_dpmpp_2s_ancestral-20-0.0",
        "sample_euler-20-4.0-0.05-50.0-1.003",
        "edm_sampler-7-18-0.002-80",
        "edm_sampler-7-10-0.002-80",
        "ablation_sampler-18-U-heun-ve-ve-none-0.02-100.0",
        "ablation_sampler-18-U-heun-iddpm-linear-none-0.002-80.0",
        "ablation_sampler-18-U-heun-edm-linear-none-0.5-0.002-80.0",
        "DPM_Solver.sample-dpmsolver-multistep-1-time_uniform-dpmsolver-12",
        "DPM_Solver.sample-dpmsolver-singlestep-1-logSNR-dpmsolver-12",
        "DPM_Solver.sample-dpmsolver-singlestep-1-time_uniform-dpmsolver-12",
        "DPM_Solver.sample-dpmsolver-singlestep_fixed-1-logSNR-dpmsolver-12",
        "DPM_Solver.sample-dpmsolver-singlestep_fixed-1-time_uniform-dpmsolver-12",
        "DPM_Solver.sample-dpmsolver++-multistep-1-logSNR-dpmsolver-12",
        "DPM_Solver.sample-dpmsolver++-singlestep-1-logSNR-dpmsolver-12",
        "DPM_Solver.sample-dpmsolver++-singlestep-1-time_uniform-dpmsolver-12",
        "DPM_Solver.sample-dpmsolver++-singlestep_fixed-1-logSNR-dpmsolver-12",
        "DPM_Solver.sample-dpmsolver++-singlestep_fixed-1-time_uniform-dpmsolver-12",
        "EulerSampler-VPSchedule()-16",
        "HeunSampler-VPSchedule()-16",
        "zABSampler-VPSchedule()-16",
        "vABSampler-VPSchedule()-16",
        "DDPMSampler-CosineSchedule()-16",
        "DDIMSampler-CosineSchedule()-16-0.0",
        "DDIMSampler-CosineSchedule()-16-1.0",
        "EulerSampler-CosineSchedule()-16",
        "HeunSampler-CosineSchedule()-16",
        "zABSampler-CosineSchedule()-16",
        "vABSampler-CosineSchedule()-16",
        "DDIMSampler-RectifiedSchedule()-16-0.0",
        "DDIMSampler-RectifiedSchedule()-16-1.0",
        "EulerSampler-RectifiedSchedule()-16",
        "HeunSampler-RectifiedSchedule()-16",
        "zABSampler-RectifiedSchedule()-16",
        "EulerSampler-VESchedule(1e-3,1e2)-16",
        "HeunSampler-VESchedule(1e-3,1e2)-16",
    ]
)
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_results_are_those_of_the_released_samplers(case, monkeypatch):
    schedule, x, segments, denoised = SETTINGS[case["library"]](case["sampler"], case["args"])
    inject_noise(monkeypatch, x.shape, draws=2 if case["sampler"] == "sample_dpmpp_sde" else 1)
    denoise = oracle().denoiser(schedule)

    @jax.jit
    def run(x):
        for sampler, times in segments:
            x = diffax.integrate(KEY, sampler, denoise, x, times).x
        return denoise(x, segments[-1][1][-1]) if denoised else x

    np.testing.assert_allclose(run(jnp.asarray(x)), case["result"], rtol=1e-9)


def test_the_number_of_cases_is_147():
    """The module docstring lists the cases that are left out."""
    assert len(CASES) == 147


@pytest.mark.parametrize("case", FACTS["ancestral_steps"], ids=str)
def test_ancestral_levels_are_those_of_k_diffusion(case):
    high, low = case["sigma_from"], max(case["sigma_to"], 1e-30)
    schedule = variance_exploding(high)
    down, up = ancestral_levels(schedule(1.0), schedule(low / high), case["eta"])
    np.testing.assert_allclose([down, up], [case["sigma_down"], case["sigma_up"]], rtol=1e-12, atol=1e-29)


def test_a_wrong_weight_is_detected(monkeypatch):
    """Negative control: a slope that is 1 % too large."""
    case = next(c for c in CASES if c["sampler"] == "sample_dpmpp_2m")
    test_results_are_those_of_the_released_samplers(case, monkeypatch)
    original = engine.RULES["bh2"]
    monkeypatch.setitem(engine.RULES, "bh2", lambda h, moments: 1.01 * original(h, moments))
    with pytest.raises(AssertionError):
        test_results_are_those_of_the_released_samplers(case, monkeypatch)
