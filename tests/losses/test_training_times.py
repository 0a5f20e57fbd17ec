"""Training times: distributions against exact CDFs, draws of u against their cells, the resampler against a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

import diffax
from diffax.losses import resampling, training_times

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.newest]
KEY = jax.random.key(3)
U = np.linspace(0.01, 0.99, 50)
LOG_LINEAR = diffax.LogLinear(0.002, 80.0)


def logit(t):
    return np.log(t / (1 - t))


def mode_cdf(scale):
    """P(T <= t) of Esser et al. 2024: T = f(U), where f(u) = 1 - u - s (cos^2(pi u / 2) - 1 + u) decreases."""
    f = lambda u: 1 - u - scale * (np.cos(np.pi / 2 * u) ** 2 - 1 + u)
    return np.vectorize(lambda t: 1 - optimize.brentq(lambda u: f(u) - t, 0.0, 1.0, xtol=1e-14))


# name -> (distribution, its CDF, its density or None)
DISTRIBUTIONS = {
    "uniform": (
        training_times.uniform(t_min=0.1, t_max=0.7),
        lambda t: (t - 0.1) / 0.6,
        lambda t: np.full_like(t, 1 / 0.6),
    ),
    "logit_normal": (
        training_times.logit_normal(mean=-0.5, std=1.3),
        lambda t: stats.norm.cdf(logit(t), -0.5, 1.3),
        lambda t: stats.norm.pdf(logit(t), -0.5, 1.3) / (t * (1 - t)),
    ),
    "mode": (training_times.mode(), mode_cdf(1.29), None),
    "mode-negative": (training_times.mode(scale=-1.0), mode_cdf(-1.0), None),
    "cosmap": (
        training_times.cosmap(),
        lambda t: 2 / np.pi * np.arctan(t / (1 - t)),
        lambda t: 2 / (np.pi - 2 * np.pi * t + 2 * np.pi * t**2),
    ),
    "log_normal_sigma": (
        training_times.log_normal_sigma(LOG_LINEAR),
        lambda t: stats.norm.cdf(np.log(0.002 * 40_000.0**t), -1.2, 1.2),
        lambda t: stats.norm.pdf(np.log(0.002 * 40_000.0**t), -1.2, 1.2) * np.log(40_000.0),
    ),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_distribution_is_the_inverse_of_its_cdf(name):
    distribution, cdf, _ = DISTRIBUTIONS[name]
    np.testing.assert_allclose(cdf(np.asarray(distribution(U))), U, rtol=1e-9)


@pytest.mark.slow_cases("logit_normal")
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_weight_is_one_over_the_density(name):
    """A density without a closed form is the difference quotient of the CDF."""
    distribution, cdf, density = DISTRIBUTIONS[name]
    t, weight = training_times.draw(KEY, len(U), distribution, uniforms=lambda key, size: jnp.asarray(U))
    t = np.asarray(t)
    exact = density(t) if density else (cdf(t + 1e-6) - cdf(t - 1e-6)) / 2e-6
    np.testing.assert_allclose(1 / weight, exact, rtol=1e-9 if density else 1e-5)


def test_a_decreasing_distribution_and_a_wrong_std_fail_the_checks(monkeypatch):
    """Negative control: the paper's f(u) has the right distribution but decreases, so it is no quantile function."""
    monkeypatch.setitem(DISTRIBUTIONS, "mode", (lambda u: training_times.mode()(1 - u), *DISTRIBUTIONS["mode"][1:]))
    monkeypatch.setitem(
        DISTRIBUTIONS, "logit_normal", (training_times.logit_normal(mean=-0.5), *DISTRIBUTIONS["logit_normal"][1:])
    )
    for name in ("mode", "logit_normal"):
        with pytest.raises(AssertionError):
            test_a_distribution_is_the_inverse_of_its_cdf(name)
        with pytest.raises(AssertionError):
            test_the_weight_is_one_over_the_density(name)


def test_log_normal_sigma_is_the_distribution_of_sigma_over_alpha():
    distribution = training_times.log_normal_sigma(diffax.Cosine(), mean=0.3, std=0.8)
    level = diffax.Cosine()(distribution(U))
    np.testing.assert_allclose(np.log(level.sigma / level.alpha), stats.norm.ppf(U, 0.3, 0.8), atol=1e-9)


def test_special_cases_have_known_log_snrs():
    np.testing.assert_allclose(training_times.mode(scale=0.0)(U), U, rtol=1e-12)
    cosmap = diffax.Flow().log_snr(training_times.cosmap()(U))
    np.testing.assert_allclose(cosmap, diffax.Cosine().log_snr(U), rtol=1e-9, atol=1e-12)
    logit_normal = diffax.Flow().log_snr(training_times.logit_normal(mean=0.5, std=2.0)(U))
    np.testing.assert_allclose(logit_normal, stats.norm.ppf(1 - U, -1.0, 4.0), rtol=1e-7, atol=1e-12)


HYPERPARAMETERS = {
    "t_min": (lambda v: training_times.uniform(t_min=v), 0.0),
    "mean": (lambda v: training_times.logit_normal(mean=v), 0.0),
    "std": (lambda v: training_times.logit_normal(std=v), 1.0),
    "scale": (lambda v: training_times.mode(scale=v), 0.0),
    "P_mean": (lambda v: training_times.log_normal_sigma(LOG_LINEAR, mean=v), -1.2),
    "P_std": (lambda v: training_times.log_normal_sigma(LOG_LINEAR, std=v), 1.2),
}


@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_hyperparameters_are_traced_and_the_ends_are_finite(name):
    make, value = HYPERPARAMETERS[name]
    u = jnp.array([0.0, 1e-30, 0.3, 1.0], jnp.float32)

    def draw(v):
        return training_times.draw(KEY, 4, make(v), uniforms=lambda key, size: u)

    (t, weight), slope = jax.jit(jax.vmap(lambda v: jax.jvp(draw, (v,), (jnp.ones_like(v),))))(
        jnp.array([value, value + 0.1], jnp.float32)
    )
    assert t.dtype == jnp.float32
    assert all(np.isfinite(v).all() for v in (t, weight, *slope))
    assert ((t >= 0) & (t <= 1)).all()
    assert np.abs(slope.t).max() > 0
    np.testing.assert_allclose(t[1], make(value + 0.1)(u), rtol=1e-5, atol=1e-7)


def test_draws_are_independent_by_default():
    t, weight = training_times.draw(KEY, 5)
    assert t.tolist() == training_times.independent(diffax.random.stream(KEY, "draw"), 5).tolist()
    assert weight.tolist() == [1.0] * 5


@pytest.mark.slow_cases("antithetic")
@pytest.mark.parametrize("uniforms", [training_times.independent, training_times.antithetic])
def test_sample_i_does_not_depend_on_the_batch_size(uniforms):
    keys = jax.random.split(KEY, 8)
    assert uniforms(KEY, 8)[:4].tolist() == uniforms(KEY, 4).tolist()
    assert uniforms(keys, 8)[4:].tolist() == uniforms(keys[4:], 4).tolist()


def cells(u):
    """The sorted indices of the cells [i / B, (i + 1) / B) of the draws u."""
    return np.sort(np.floor(np.asarray(u, np.float64) * len(u)).astype(int)).tolist()


@pytest.mark.slow_cases(but=["4093"])
@pytest.mark.parametrize("size", [1, 7, 4093])
def test_each_cell_holds_one_stratified_draw(size):
    """This also holds where float32 rounds u."""
    u = jax.vmap(lambda i: training_times.stratified(jax.random.fold_in(KEY, i), size))(jnp.arange(20))
    for row in (*u, training_times.stratified(jax.random.split(KEY, size), size)):
        assert cells(row) == list(range(size))
        assert row.max() < 1


def test_independent_draws_fail_the_check_of_cells(monkeypatch):
    """Negative control."""
    monkeypatch.setattr(training_times, "stratified", training_times.independent)
    with pytest.raises(AssertionError):
        test_each_cell_holds_one_stratified_draw(7)


def test_stratified_draws_share_one_offset():
    u = np.asarray(training_times.stratified(KEY, 8))
    np.testing.assert_allclose(np.mod(u - u[0], 1), np.arange(8) / 8, atol=1e-6)


def test_stratified_draws_are_uniform():
    """Each u_i is uniform over keys: Kolmogorov-Smirnov test at a fixed seed."""
    keys = jax.random.split(KEY, 2000)
    u = jax.vmap(lambda key: training_times.stratified(key, 3))(keys)
    assert min(stats.kstest(np.asarray(u[:, i]), "uniform").pvalue for i in range(3)) > 0.01


@pytest.mark.parametrize("one_key", [True, False])
def test_stratified_draws_do_not_depend_on_the_layout(one_key):
    keys = KEY if one_key else jax.random.split(KEY, 12)
    whole = training_times.stratified(keys, 12)
    for start in (0, 4, 8):
        index = jnp.arange(start, start + 4)
        part = training_times.stratified(keys if one_key else keys[index], 4, index=index, total=12)
        assert part.tolist() == whole[index].tolist()


def test_antithetic_draws_come_in_pairs():
    for key in (KEY, jax.random.split(KEY, 10)):
        u = np.asarray(training_times.antithetic(key, 10))
        np.testing.assert_allclose(u[0::2] + u[1::2], 1, rtol=1e-6)
        assert len(set(u[0::2])) == 5
    assert training_times.antithetic(KEY, 3).shape == (3,)


def test_each_way_to_draw_u_has_its_known_variance():
    """The variance of the mean of f(t) = t^2 over B = 32 draws of a uniform t.

    Independent: Var t^2 / B = 4 / 45 / B.
    Antithetic: (Var t^2 + Cov(t^2, (1 - t)^2)) / B, with the covariance -7 / 90.
    Stratified, one offset u_0: the mean's error is (f(1) - f(0)) (u_0 - 1/2) / B, so its variance is 1 / (12 B^2).
    Stratified, a key for each example: the sum over cells of f'^2 / (12 B^2) / B^2, with f' = 2 t.
    """

    def variance(uniforms, keys):
        mean = lambda key: jnp.mean(training_times.draw(key, 32, uniforms=uniforms).t ** 2)
        return float(jnp.var(jax.jit(jax.vmap(mean))(keys)))

    one_key, own_keys = jax.random.split(KEY, 4000), jax.random.split(KEY, (4000, 32))
    np.testing.assert_allclose(variance(training_times.independent, one_key), 4 / 45 / 32, rtol=0.1)
    np.testing.assert_allclose(variance(training_times.antithetic, one_key), (4 / 45 - 7 / 90) / 32, rtol=0.1)
    np.testing.assert_allclose(variance(training_times.stratified, one_key), 1 / 12 / 32**2, rtol=0.1)
    np.testing.assert_allclose(variance(training_times.stratified, own_keys), 4 / 3 / 12 / 32**3, rtol=0.1)


def test_discrete_times_are_the_levels_of_a_table():
    """Uniform t reach each of 10 levels equally often; other distributions do so under their weights."""
    t, _ = training_times.discrete(training_times.draw(KEY, 1000, uniforms=training_times.stratified), 10)
    assert np.unique(np.round(10 * np.asarray(t, np.float64), 5), return_counts=True)[1].tolist() == [100] * 10
    drawn = training_times.draw(KEY, 1000, training_times.cosmap(), uniforms=training_times.stratified)
    t, weight = training_times.discrete(drawn, 10)
    assert (t >= drawn.t).all()
    np.testing.assert_allclose(np.mean(weight * t**3), np.mean((np.arange(1, 11) / 10) ** 3), rtol=5e-3)


@pytest.mark.parametrize("num_steps", [7, 1000])
def test_each_level_of_a_table_has_its_own_bin(num_steps):
    """This also holds where float32 rounds (i + 1) / T, and `discrete` does not change a level."""
    level = np.arange(1, num_steps + 1)
    for t in (level / num_steps, level.astype(np.float32) * np.float32(1 / num_steps)):
        np.testing.assert_array_equal(resampling.bin_of(t, num_steps), level - 1)
        unchanged = training_times.discrete(training_times.Draw(jnp.asarray(t), jnp.ones(num_steps)), num_steps).t
        np.testing.assert_allclose(unchanged, level / num_steps, rtol=1e-6)


def test_the_resampler_draws_levels_with_large_losses_more_often():
    """Losses at the levels of a table fill every bin, also the first, whose loss is the largest."""
    resampler = resampling.loss_aware(4, history=2)
    update, state = jax.jit(resampler.update), resampler.init()
    for i in range(8):
        t, _ = training_times.discrete(
            training_times.draw(
                jax.random.fold_in(KEY, i), 16, resampler.distribution(state), uniforms=training_times.stratified
            ),
            4,
        )
        state = update(state, t, jnp.where(t < 0.3, 9.0, 1.0))
    assert (state.counts >= 2).all()
    assert resampler.distribution(state)(0.5) < 0.25


BINS, HISTORY, FRACTION = 5, 3, 0.01


def compiled_resampler(*args, **keywords):
    """`loss_aware`, with each function compiled as a whole: compiling its small operations one by one is slow."""
    resampler = resampling.loss_aware(*args, **keywords)
    evaluate = jax.jit(lambda state, u: resampler.distribution(state)(u))
    distribution = lambda state: lambda u: evaluate(state, u)
    return resampling.Resampler(resampler.init, jax.jit(resampler.update), distribution)


def reference(batches, squares=True):
    """Probabilities of the bins by Nichol & Dhariwal 2021: a loop over examples, p from the last losses of each bin."""
    by_bin = [[] for _ in range(BINS)]
    for t, losses in batches:
        for time, value in zip(t, losses, strict=True):
            by_bin[max(int(np.ceil(time * BINS)) - 1, 0)].append(value)
    if any(len(values) < HISTORY for values in by_bin):
        return np.full(BINS, 1 / BINS)
    last = np.array([values[-HISTORY:] for values in by_bin])
    weights = np.sqrt((last**2).mean(1)) if squares else last.mean(1)
    return (1 - FRACTION) * weights / weights.sum() + FRACTION / BINS


def batches(count, size=16):
    rng = np.random.default_rng(0)
    return [(rng.uniform(size=size), rng.gamma(2.0, size=size)) for _ in range(count)]


def probabilities(resampler, state):
    """Probability of each bin: the share of a uniform grid of u that the distribution maps into the bin."""
    t = np.asarray(resampler.distribution(state)(np.linspace(0, 1, 100_001)))
    return np.histogram(t, np.linspace(0, 1, BINS + 1))[0] / 100_001


def check_resampler(resampler=None, **keywords):
    resampler = resampler or compiled_resampler(BINS, history=HISTORY, uniform_fraction=FRACTION)
    state, update = resampler.init(), resampler.update
    for count, (t, losses) in enumerate(batches(6), 1):
        state = update(state, jnp.asarray(t), jnp.asarray(losses))
        expected = reference(batches(count), **keywords)
        np.testing.assert_allclose(probabilities(resampler, state), expected, atol=2e-5)
        t, weight = training_times.draw(KEY, 64, resampler.distribution(state), uniforms=training_times.stratified)
        bins = np.floor(np.asarray(t, np.float64) * BINS).astype(int)
        np.testing.assert_allclose(weight, 1 / (BINS * expected[bins]), rtol=1e-5)
    assert count == 6
    assert not np.allclose(expected, 1 / BINS)


def test_the_resampler_follows_the_paper():
    """A batch has more losses of a bin than the history keeps, so the order within a batch matters."""
    check_resampler()


def test_wrong_resamplers_fail_the_check():
    """Negative controls: mean losses instead of mean squares; the first losses of a batch instead of the last."""
    with pytest.raises(AssertionError):
        check_resampler(squares=False)
    resampler = compiled_resampler(BINS, history=HISTORY, uniform_fraction=FRACTION)
    reversed_batches = resampler._replace(
        update=lambda state, t, losses: resampler.update(state, t[::-1], losses[::-1])
    )
    with pytest.raises(AssertionError):
        check_resampler(reversed_batches)


def test_the_resampler_is_uniform_until_every_bin_is_full():
    resampler = compiled_resampler(4, history=2)
    t = jnp.array([0.1, 0.3, 0.6])  # no loss in the last bin
    state = resampler.init()
    for _ in range(5):
        state = resampler.update(state, t, jnp.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(resampler.distribution(state)(U), U, rtol=1e-12)
    assert state.counts.max() < 4
    for _ in range(2):
        state = resampler.update(state, jnp.array([1.0]), jnp.array([0.0]))
    assert not np.allclose(resampler.distribution(state)(U), U)


def test_resampling_cuts_the_variance_and_keeps_the_mean():
    """The losses are constant in each bin, so with the optimal distribution every weighted loss equals the mean."""
    resampler = compiled_resampler(4, history=1, uniform_fraction=0.0)
    level = jnp.array([8.0, 1.0, 0.5, 2.5])
    state = resampler.update(resampler.init(), (jnp.arange(4) + 0.5) / 4, level)
    t, weight = training_times.draw(KEY, 100, resampler.distribution(state))
    np.testing.assert_allclose(weight * level[jnp.floor(4 * t).astype(int)], 3.0, rtol=1e-5)


def test_the_resampler_ignores_losses_that_are_not_finite():
    resampler = compiled_resampler(2, history=1)
    full = resampler.update(resampler.init(), jnp.array([0.1, 0.9]), jnp.array([1.0, 2.0]))
    state = resampler.update(full, jnp.array([0.1, 0.9]), jnp.array([jnp.nan, jnp.inf]))
    assert state.squares.tolist() == full.squares.tolist()
    zero = resampler.update(full, jnp.array([0.1, 0.9]), jnp.zeros(2))
    np.testing.assert_allclose(resampler.distribution(zero)(U), U, rtol=1e-12)


def test_the_resampler_works_inside_a_compiled_loop():
    """A bin whose loss is 7 times that of each of the 7 others gets half of the draws."""
    resampler = compiled_resampler(8, history=4, uniform_fraction=1e-3)
    losses = jnp.where(jnp.arange(8) == 2, 7.0, 1.0)

    def step(state, key):
        t, _ = training_times.draw(key, 64, resampler.distribution(state), uniforms=training_times.stratified)
        return resampler.update(state, t, losses[jnp.floor(8 * t).astype(int)]), None

    state, _ = jax.jit(lambda keys: jax.lax.scan(step, resampler.init(), keys))(jax.random.split(KEY, 20))
    t = resampler.distribution(state)(np.linspace(0, 1, 10_001))
    np.testing.assert_allclose(np.mean((t >= 0.25) & (t < 0.375)), 0.5, atol=2e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: training_times.uniform(t_min=-0.1), r"t_min must be in \[0, 1\], got -0.1"),
        (lambda: training_times.logit_normal(std=0.0), "std must be > 0, got 0.0"),
        (lambda: training_times.mode(scale=1.8), r"scale must be in \[-1, 2 / \(pi - 2\)\], got 1.8"),
        (lambda: training_times.log_normal_sigma(LOG_LINEAR, std=-1.0), "std must be > 0, got -1.0"),
        (
            lambda: training_times.stratified(KEY, 4, index=jnp.arange(4)),
            "total must be the size of the whole batch if index is passed, got None",
        ),
        (lambda: training_times.stratified(KEY, 4, total=3), "total must be at least size = 4, got 3"),
        (lambda: training_times.discrete(training_times.draw(KEY, 2), 0), "num_train_steps must be an int >= 1, got 0"),
        (lambda: resampling.loss_aware(0), "num_bins must be an int >= 1, got 0"),
        (lambda: resampling.loss_aware(4, history=0), "history must be an int >= 1, got 0"),
        (lambda: resampling.loss_aware(4, uniform_fraction=1.5), r"uniform_fraction must be in \[0, 1\], got 1.5"),
        (
            lambda: training_times.antithetic(jax.random.split(KEY, 3), 4),
            r"key must have shape \(\) or \(4,\), got \(3,\)",
        ),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
