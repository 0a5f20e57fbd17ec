"""The best results of diffax at 5 to 20 denoiser calls, beside the best of the published samplers and grids.

    python -m experiments.benchmarks.best
    python -m experiments.benchmarks.best --problems=3 --budgets 5 10

Mixtures whose probability flow is known, linear VP schedule from t = 1, 256 starts; the error is that of x at the end
against the flow's x0, root-mean-square and largest. At each budget and for each mixture, the best of all published
samplers and grids is compared with the best of `OURS`; each family has some hundred settings. `one` is a single setting
of ours at each budget, the one closest to the best on other mixtures (seed + 1).

    published  {unipc bh1, bh2, eps and x0, order 1-3, last orders lowered or not; dpmpp_2m, dpmpp_3m; deis; lms; ddim;
               ipndm; dpm_solver 2, 3 in both forms; heun} x {uniform, quadratic, log-SNR, karras} x t_min
               x {stop there, denoise there}
    ours       {gaussian_adams, and under noise_floor: gaussian_adams, unipc x0, flow} x {arctan(scale, power),
               uniform, quadratic}, to t = 0

Our settings use the mean and the root-mean-square deviation of the data and the std of the mixture's components.
"""

import argparse
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import diffax
from diffax import analytic, samplers

SCHEDULE = diffax.Linear()
BUDGETS = (5, 8, 10, 15, 20)
T_MIN = (1e-4, 1e-3, 3e-3, 6e-3, 1e-2, 1.5e-2, 2e-2, 3e-2)
SCALES, POWERS = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0), (0.8, 1.0, 1.25, 1.5, 2.0)
COMPONENTS, STARTS, FINE = 8, 256, 1000


class Problem(NamedTuple):
    """A mixture of D dimensions, padded with zeros; all leaves may have a leading axis of problems."""

    weights: Any  # (K,)
    means: Any  # (K, D)
    std: Any  # of the components
    mean: Any  # of the data
    spread: Any  # root-mean-square deviation of the data
    size: Any  # dimensions that are not padding
    x: Any  # (B, D) at t = 1
    x0: Any  # (B, D)

    def denoise(self, x, t):
        """E[x0 | x_t = x]."""
        return analytic.Mixture(self.weights, self.means, self.std).denoise(x, SCHEDULE(t))


def mixtures(seed, sizes=(2, 3, 4, 8, 16, 2, 3, 4, 8, 16)):
    """(weights, means, std) of random mixtures: 2-8 components, std 0.05-0.6, means of scale 0.5-2, half normalised."""
    rng = np.random.default_rng(seed)
    for i, size in enumerate(sizes):
        k, scale = int(rng.integers(2, COMPONENTS + 1)), rng.uniform(0.5, 2.0)
        std = np.exp(rng.uniform(np.log(0.05), np.log(0.6)))
        weights, means = rng.dirichlet(3 * np.ones(k)), scale * rng.normal(size=(k, size))
        if i % 2:
            means = means - weights @ means
            spread = np.sqrt(np.mean(weights @ means**2) + std**2)
            means, std = means / spread, std / spread
        yield weights, means, std


def problems(laws, *, starts=STARTS, seed=0, fine=FINE):
    """The problems of these (weights, means, std), stacked, with their flow from t = 1 to t = 0."""
    laws = list(laws)
    most = max(means.shape[1] for _, means, _ in laws)
    rng, stack = np.random.default_rng(seed), []
    for weights, means, std in laws:
        k, size = means.shape
        pad = ((0, COMPONENTS - k), (0, most - size))
        x = np.pad(float(SCHEDULE(1.0).sigma) * rng.normal(size=(starts, size)), ((0, 0), pad[1]))
        mean = weights @ means
        spread = np.sqrt(np.mean(weights @ (means - mean) ** 2) + std**2)
        padded = np.pad(weights, pad[0]), np.pad(means, pad), std, np.pad(mean, pad[1]), spread, size
        stack.append(Problem(*padded, x, x))
    batch = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(v, float) for v in leaves]), *stack)
    solve = jax.vmap(lambda p: analytic.flow(SCHEDULE, p.denoise, p.x, 1.0, 0.0, num_steps=fine))
    return batch._replace(x0=jax.jit(solve)(batch))


def published(small=False):
    """Name -> (schedule -> sampler), as in the papers and their code."""
    unipc = samplers.unipc
    table = {"unipc1-eps": functools.partial(unipc, order=1, variant="bh1")}
    for form, order, variant, final in itertools.product(("eps", "x0"), (2, 3), ("bh1", "bh2"), (False, True)):
        name = f"unipc{order}-{form}-{variant}{'-final' * final}"
        table[name] = functools.partial(unipc, order=order, variant=variant, form=form, lower_order_final=final)
    table |= {"dpmpp_2m": samplers.dpmpp_2m, "ipndm": samplers.ipndm}
    if small:
        strong = (
            "unipc1-eps",
            "unipc2-x0-bh2-final",
            "unipc3-x0-bh2-final",
            "unipc3-eps-bh1-final",
            "dpmpp_2m",
            "ipndm",
        )
        return {name: table[name] for name in strong}
    table["unipc1-x0"] = functools.partial(unipc, order=1, variant="bh1", form="x0")
    table["unipc1-eps-bh2"] = functools.partial(unipc, order=1, variant="bh2")
    table["dpmpp_2m-final"] = functools.partial(samplers.dpmpp_2m, lower_order_final=True)
    table["dpmpp_3m"] = functools.partial(samplers.dpmpp_3m, start="cold")
    table["dpmpp_3m-final"] = functools.partial(samplers.dpmpp_3m, start="cold", lower_order_final=True)
    table |= {f"deis{p}": functools.partial(samplers.deis, order=p) for p in (2, 3)}
    table |= {f"lms{p}": functools.partial(samplers.lms, order=p) for p in (2, 3, 4)}
    table |= {"ddim": samplers.ddim, "heun": samplers.heun}
    for order, form in itertools.product((2, 3), ("eps", "x0")):
        table[f"dpm_solver{order}-{form}"] = functools.partial(samplers.dpm_solver, order=order, form=form)
    return table


def published_grids(n, t_min=T_MIN):
    """Name -> (n,) times."""
    curves = {
        "uniform": diffax.times.uniform,
        "quadratic": diffax.times.quadratic,
        "log_snr": diffax.times.uniform_log_snr,
        "karras": diffax.times.karras,
    }
    return {f"{name} {t:g}": curve(SCHEDULE, n, t_max=1.0, t_min=t) for name, curve in curves.items() for t in t_min}


class Ours(NamedTuple):
    """A setting of ours: with or without the noise floor, with or without a call at t = 1."""

    name: str
    make: Any  # (schedule, problem, spread) -> sampler
    floor: bool = False
    skips: bool = False


def _adams(order, **settings):
    return lambda schedule, p, spread: diffax.gaussian_adams(schedule, mean=p.mean, std=spread, order=order, **settings)


def _unipc(order, final, **settings):
    settings = {"form": "x0", "lower_order_final": final} | settings
    return lambda schedule, p, spread: samplers.unipc(schedule, order=order, **settings)


def _flow(order, final=False):
    settings = {"form": "flow", "corrected": True, "lower_order_final": final}
    return lambda schedule, p, spread: samplers.exponential_adams(schedule, order=order, **settings)


OURS = [
    *[Ours(f"gaussian{p}-{end}", _adams(p, end=end)) for p in (2, 3, 4) for end in ("open", "smooth")],
    *[Ours(f"gaussian{p}-smooth-start", _adams(p, end="smooth", start=1.0), skips=True) for p in (2, 3, 4)],
    *[Ours(f"floor gaussian{p}", _adams(p), floor=True) for p in (2, 3, 4)],
    *[Ours(f"floor gaussian{p}-start", _adams(p, start=1.0), floor=True, skips=True) for p in (2, 3)],
    *[Ours(f"floor unipc{p}-x0", _unipc(p, False), floor=True) for p in (1, 2, 3)],
    *[Ours(f"floor unipc{p}-x0-final", _unipc(p, True), floor=True) for p in (2, 3)],
    Ours("floor unipc2-x0-bh1-final", _unipc(2, True, variant="bh1"), floor=True),
    Ours("floor unipc1-eps-bh1", _unipc(1, False, variant="bh1", form="eps"), floor=True),
    *[Ours(f"floor flow{p}", _flow(p), floor=True) for p in (1, 2, 3)],
    Ours("floor flow2-final", _flow(2, True), floor=True),
]


def our_times(ours, p, n, scale, power):
    """(n + 1,) times for n calls."""
    schedule = diffax.NoiseFloor(SCHEDULE, p.std) if ours.floor else SCHEDULE
    times = diffax.times.arctan(schedule, n + 1 + ours.skips, scale=scale * p.spread, power=power, t_max=1.0, t_min=0.0)
    return times[ours.skips :]


def our_sampler(ours, p):
    """The sampler of this setting for this problem."""
    if not ours.floor:
        return ours.make(SCHEDULE, p, p.spread)
    rest = jnp.sqrt(p.spread**2 - p.std**2)
    return diffax.noise_floor(lambda schedule: ours.make(schedule, p, rest), SCHEDULE, p.std)


def errors(p, x):
    """(2,) the root-mean-square error over starts and coordinates, and the largest."""
    wrong = x - p.x0
    return jnp.stack([jnp.sqrt(jnp.sum(wrong**2) / (len(wrong) * p.size)), jnp.abs(wrong).max()])


def measured(make, stacked, grids, denoised=False):
    """(problems, grids, 2) errors, or (problems, grids, 2, 2) at the end of the grid and with a denoising step there.

    make: problem -> sampler. grids: (grids, n) or (problems, grids, n).
    """

    def one(p, times):
        x = diffax.integrate(jax.random.key(0), make(p), p.denoise, p.x, times).x
        return jnp.stack([errors(p, x), errors(p, p.denoise(x, times[-1]))]) if denoised else errors(p, x)

    over = jax.vmap(one, (None, 0))
    return np.asarray(jax.jit(jax.vmap(over, (0, 0 if grids.ndim == 3 else None)))(stacked, grids))


def padded(times, n):
    """n times, the first one repeated: zero-length steps change nothing, and one compilation serves all lengths."""
    return jnp.concatenate([jnp.broadcast_to(times[:1], (n - len(times),)), times])


def best_published(stacked, budgets=BUDGETS, *, small=False, t_min=T_MIN):
    """Budget -> ((problems, 2) errors, names of the best)."""
    candidates = {n: [] for n in budgets}
    for name, make in published(small).items():
        sampler, rows, labels = make(SCHEDULE), [], []
        for n in budgets:
            for denoises in (0, 1):
                moves = (n - denoises) // sampler.calls
                for label, times in published_grids(moves + 1, t_min).items():
                    rows.append(padded(times, max(budgets) + 1))
                    labels.append((n, denoises, f"{name}, {label}{', denoised' * denoises}"))
        table = measured(lambda p, sampler=sampler: sampler, stacked, jnp.stack(rows), denoised=True)
        for i, (n, denoises, label) in enumerate(labels):
            candidates[n].append((table[:, i, denoises], label))
    return {n: _least(rows) for n, rows in candidates.items()}


def best_ours(stacked, budgets=BUDGETS, ours=None, scales=SCALES, powers=POWERS):
    """Budget -> ((problems, 2) errors, names of the best), and name -> (problems, 2) of every setting."""
    pairs = list(itertools.product(scales, powers))
    runs = {n: [] for n in budgets}

    @functools.cache
    def grids(floor, skips):
        """(problems, budgets x pairs, n + 1) times, which settings share."""
        setting = Ours("", None, floor, skips)

        def times_for(p, n):
            times = jax.vmap(lambda pair: our_times(setting, p, n, *pair))(jnp.asarray(pairs))
            plain = [
                curve(SCHEDULE, n + 1 + skips, t_max=1.0, t_min=0.0)[skips:]
                for curve in (diffax.times.uniform, diffax.times.quadratic)
            ]
            times = jnp.concatenate([times, jnp.stack(plain)])
            return jax.vmap(lambda row: padded(row, max(budgets) + 1))(times)

        return jnp.concatenate([jax.jit(jax.vmap(functools.partial(times_for, n=n)))(stacked) for n in budgets], 1)

    for setting in OURS if ours is None else ours:
        table = measured(functools.partial(our_sampler, setting), stacked, grids(setting.floor, setting.skips))
        labels = [*(f"{scale:g} {power:g}" for scale, power in pairs), "uniform", "quadratic"]
        for i, (n, label) in enumerate(itertools.product(budgets, labels)):
            runs[n].append((table[:, i], f"{setting.name}, {label}"))
    return {n: _least(rows) for n, rows in runs.items()}, {n: {k: v for v, k in rows} for n, rows in runs.items()}


def _least(rows):
    table = np.stack([errors for errors, _ in rows])
    return np.nanmin(table, 0), [rows[i][1] for i in np.nanargmin(table[..., 0], 0)]


def split(results, count):
    """(the first `count` problems, the others) of the result of `best_ours`."""
    least, every = results

    def part(rows):
        best = {n: (errors[rows], names[rows]) for n, (errors, names) in least.items()}
        return best, {n: {name: errors[rows] for name, errors in table.items()} for n, table in every.items()}

    return part(slice(None, count)), part(slice(count, None))


def one_setting(results):
    """Budget -> the setting whose errors are closest to the least errors, in geometric mean over problems."""
    least, every = results
    return {
        n: min(table, key=lambda name, n=n, table=table: np.log(table[name][:, 0] / least[n][0][:, 0]).mean())
        for n, table in every.items()
    }


def report(budgets, bars, results, ones):
    """For each budget the ratios of errors on each mixture, and their summary."""
    least, every = results
    for n in budgets:
        (bar, names), (err, own) = bars[n], least[n]
        ratio, single = err / bar, every[n][ones[n]] / bar
        print(f"\n{n} calls: ours / published, rms and max; one ({ones[n]}); the best published; the best of ours")
        for i, (a, b) in enumerate(zip(ratio, single, strict=True)):
            print(f"  {i}: {a[0]:.2f} {a[1]:.2f}; {b[0]:.2f} {b[1]:.2f}; {bar[i, 0]:.1e} {names[i]}; {own[i]}")
        mean, single_mean = (np.exp(np.log(v).mean(0)) for v in (ratio, single))
        print(
            f"  geometric mean {mean[0]:.2f} {mean[1]:.2f}, worst {ratio[:, 0].max():.2f} {ratio[:, 1].max():.2f}, "
            f"at most 0.8: {(ratio[:, 0] <= 0.8).sum()} {(ratio[:, 1] <= 0.8).sum()} of {len(ratio)}; "
            f"one: {single_mean[0]:.2f} {single_mean[1]:.2f}",
            flush=True,
        )


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=10, help="how many mixtures")
    parser.add_argument("--seed", type=int, default=2024, help="of the mixtures")
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS, help="numbers of denoiser calls")
    args = parser.parse_args()
    with jax.enable_x64(True):
        laws = [itertools.islice(mixtures(seed), args.problems) for seed in (args.seed + 1, args.seed)]
        stacked = problems(itertools.chain(*laws))
        others, ours = split(best_ours(stacked, args.budgets), args.problems)
        bars = best_published(jax.tree.map(lambda v: v[args.problems :], stacked), args.budgets)
        report(args.budgets, bars, ours, one_setting(others))


if __name__ == "__main__":
    main()
