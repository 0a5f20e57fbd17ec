"""Inverse problems: operators against dense matrices, methods against exact posteriors and the steps of the papers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exam import gaussian, mixture

import diffax
from diffax import analytic, inverse
from experiments.benchmarks.inverse import MATRIX, affine_law, errors, problems

pytestmark = pytest.mark.usefixtures("x64")
SCHEDULE = diffax.Cosine()
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def posterior_by_precision(mean, covariance, matrix, y, std):
    """(mean, covariance) of a Gaussian posterior in the form where precisions add; std > 0."""
    precision = np.linalg.inv(covariance) + matrix.T @ matrix / std**2
    posterior_covariance = np.linalg.inv(precision)
    return posterior_covariance @ (np.linalg.solve(covariance, mean) + matrix.T @ y / std**2), posterior_covariance


def dense(forward, shape):
    """The matrix of a linear function of (B, *shape)."""
    size = int(np.prod(shape))
    return np.asarray(forward(jnp.eye(size).reshape(size, *shape))).reshape(size, -1).T


# --- operators


def operators():
    kernel = np.array([[0.1, 0.2, 0.0], [0.05, 0.4, 0.1], [0.0, 0.05, 0.3]])
    return {
        "mask": (inverse.Mask(np.array([[1, 0, 1], [0, 1, 1]])), (2, 3)),
        "mask of channels": (inverse.Mask(np.array([[[True], [False]]])), (1, 2, 3)),
        "boxes": (inverse.BoxDownsample(2, (4, 2, 3)), (4, 2, 3)),
        "boxes along one axis": (inverse.BoxDownsample(3, (2, 6), axes=(1,)), (2, 6)),
        "blur": (inverse.Blur(kernel, (4, 5, 2)), (4, 5, 2)),
        "blur, other axes": (inverse.Blur(kernel[:2], (2, 5, 4), axes=(2, 1)), (2, 5, 4)),
        "gaussian blur": (inverse.gaussian_blur(0.8, (6, 2), radius=2, axes=(0,)), (6, 2)),
        "matrix": (inverse.linear(lambda x: jnp.asarray(MATRIX) @ x, jnp.zeros(4)), (4,)),
        "wide matrix": (inverse.linear(lambda x: jnp.asarray(MATRIX).T @ x, jnp.zeros(2)), (2,)),
    }


NAMES = ("mask", "mask of channels", "boxes", "boxes along one axis", "blur", "blur, other axes", "gaussian blur")


@pytest.mark.slow_cases(but=["boxes", "boxes along one axis"])
@pytest.mark.newest
@pytest.mark.parametrize("name", [*NAMES, "matrix", "wide matrix"])
def test_adjoint_solve_and_pseudo_inverse_are_those_of_the_matrix(name):
    operator, shape = operators()[name]
    matrix = dense(operator.forward, shape)
    y = operator.forward(RNG.normal(size=(3, *shape)))
    flat = np.asarray(y).reshape(3, -1)
    np.testing.assert_allclose(np.asarray(operator.adjoint(y)).reshape(3, -1), flat @ matrix, atol=1e-12)
    back = np.asarray(inverse.pseudo_inverse(operator, y)).reshape(3, -1)
    np.testing.assert_allclose(back, flat @ np.linalg.pinv(matrix).T, atol=1e-9)
    a, b = np.array([0.5, 2.0, 1.0]), np.array([0.3, 1e-3, 2.0])
    solved = np.asarray(operator.solve(y, jnp.asarray(a), jnp.asarray(b))).reshape(3, -1)
    for i in range(3):
        expected = np.linalg.solve(a[i] * matrix @ matrix.T + b[i] * np.eye(len(matrix)), flat[i])
        np.testing.assert_allclose(matrix.T @ solved[i], matrix.T @ expected, atol=1e-9)
    assert not np.any(np.asarray(operator.solve(y, 0.7, jnp.inf)))
    operator.check(y)
    operator.check(y[:1])


def test_forward_operators_equal_their_definitions():
    x = RNG.normal(size=(2, 4, 6, 3))
    blocks = x.reshape(2, 2, 2, 3, 2, 3).mean((2, 4))
    np.testing.assert_allclose(inverse.BoxDownsample(2, (4, 6, 3)).forward(x), blocks, rtol=1e-12)
    kernel = RNG.normal(size=(3, 2))
    expected = np.zeros_like(x)
    for i in range(3):
        for j in range(2):
            expected += kernel[i, j] * np.roll(x, (i - 1, j - 1), axis=(1, 2))
    np.testing.assert_allclose(inverse.Blur(kernel, (4, 6, 3)).forward(x), expected, atol=1e-12)
    blur = inverse.gaussian_blur(1.3, (8, 8), radius=3)
    line = np.exp(-0.5 * (np.arange(-3, 4) / 1.3) ** 2)
    np.testing.assert_allclose(blur.kernel, np.outer(line, line) / line.sum() ** 2, rtol=1e-12)
    tree = inverse.Mask({"a": np.array([1, 0]), "b": np.array([0])})
    masked = tree.forward({"a": jnp.ones((1, 2)), "b": jnp.ones((1, 1))})
    assert masked["a"].tolist() == [[1, 0]]
    assert masked["b"].tolist() == [[0]]


def test_conjugate_residuals_solve_each_example_separately():
    square = RNG.normal(size=(3, 5, 5))
    matrices = jnp.asarray(square @ square.transpose(0, 2, 1) * np.array([1.0, 1e4, 1e-4])[:, None, None])
    y = jnp.asarray(RNG.normal(size=(3, 5)))
    apply = lambda matrices: lambda v: (v, jnp.einsum("bij,bj->bi", matrices, v))
    solved, residual = inverse.conjugate_residuals(apply(matrices), y, 40)
    for i in range(3):
        np.testing.assert_allclose(solved[i], np.linalg.solve(matrices[i], y[i]), rtol=1e-6)
    np.testing.assert_allclose(residual, 0, atol=1e-9)
    in_batch, _ = inverse.conjugate_residuals(apply(matrices), y, 2)
    single, _ = inverse.conjugate_residuals(apply(matrices[1:2]), y[1:2], 2)
    np.testing.assert_allclose(in_batch[1:2], single, rtol=1e-12)
    assert not np.any(inverse.conjugate_residuals(apply(matrices), 0 * y, 3)[0])


def test_conjugate_residuals_stop_at_a_matrix_that_is_not_positive():
    """Known results; the residual never grows, for any matrix; a bad example does not affect the others."""
    examples = np.array(
        [
            [[0.0, 1.0], [-1.0, 0.0]],  # <r, M r> = 0 at once: z = 0
            [[2.0, 0.0], [0.0, -1.0]],  # positive in the first step, a = 1 / 5, negative in the second
            [[2.0, 1.0], [1.0, 3.0]],
            [[np.nan, 0.0], [0.0, 1.0]],
        ]
    )
    solve = functools.partial(inverse.conjugate_residuals, iterations=2)
    apply = lambda matrices: lambda r: (r, jnp.einsum("bij,bj->bi", matrices, r))
    z, residual = solve(apply(jnp.asarray(examples)), jnp.ones((4, 2)))
    np.testing.assert_allclose(z, [[0, 0], [0.2, 0.2], [0.4, 0.2], [0, 0]], atol=1e-14)
    np.testing.assert_allclose(residual, [[1, 1], [0.6, 1.2], [0, 0], [1, 1]], atol=1e-14)
    np.testing.assert_array_equal(solve(apply(jnp.asarray(examples[2:3])), jnp.ones((1, 2)))[0][0], z[2])
    matrices, y = jnp.asarray(RNG.normal(size=(500, 6, 6))), jnp.asarray(RNG.normal(size=(500, 6)))
    residuals = [inverse.conjugate_residuals(apply(matrices), y, n)[1] for n in (1, 2, 4, 8)]
    norms = np.linalg.norm([y, *residuals], axis=-1)
    assert (np.diff(norms, axis=0) <= 1e-12).all()


def test_the_pseudo_inverse_is_least_squares_where_y_is_not_in_the_range():
    """Four noisy measurements of two unknowns."""
    matrix, y = RNG.normal(size=(4, 2)), RNG.normal(size=(20, 4))
    for dtype, atol in ((jnp.float64, 1e-12), (jnp.float32, 1e-5)):
        operator = inverse.linear(functools.partial(jnp.matmul, jnp.asarray(matrix, dtype)), jnp.zeros(2, dtype))
        x0 = inverse.pseudo_inverse(operator, jnp.asarray(y, dtype))
        np.testing.assert_allclose(x0, y @ np.linalg.pinv(matrix).T, atol=atol)


def test_operators_are_pytrees():
    for operator, shape in (operators()[name] for name in ("mask", "boxes", "blur", "matrix")):
        x = jnp.ones((2, *shape))
        jitted = jax.jit(lambda operator, x: operator.forward(x))(operator, x)
        np.testing.assert_allclose(jitted, operator.forward(x), atol=1e-14)
    masks = inverse.Mask(jnp.array([[1, 0], [0, 1]]))
    assert jax.vmap(lambda m: m.forward(jnp.ones((1, 2)))[0])(masks).tolist() == [[1, 0], [0, 1]]
    wide = jax.vmap(lambda std: inverse.gaussian_blur(std, (4, 4), radius=1).forward(jnp.eye(4)[None]))
    assert wide(jnp.array([0.5, 1.0])).shape == (2, 1, 4, 4)


# --- the exact posterior


@pytest.mark.parametrize("std", [0.3, 1.5])
def test_the_posterior_of_a_gaussian_adds_precisions(std):
    for problem in problems()[1:3]:
        matrix = dense(problem.operator.forward, (4,))
        y = np.asarray(problem.y)[0]
        posterior = inverse.posterior(problem.prior, problem.operator, problem.y, std=std)
        expected = posterior_by_precision(*inverse.moments(problem.prior), matrix, y, std)
        for result, value in zip(inverse.moments(posterior), expected, strict=True):
            np.testing.assert_allclose(result, value, atol=1e-12)


def test_the_posterior_of_a_mixture_is_that_of_bayes_rule_on_a_grid():
    """Moments and E[x0 | x_t, y] against sums of prior times likelihood over a grid of two dimensions."""
    prior, std, row = mixture(), 0.4, np.array([[1.0, -0.6]])
    operator = inverse.linear(lambda x: jnp.asarray(row) @ x, jnp.zeros(2))
    posterior = inverse.posterior(prior, operator, np.array([[0.7]]), std=std)
    line = np.linspace(-5, 5, 201)
    x = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    log_joint = np.asarray(prior.log_prob(x)) - 0.5 * ((x @ row[0] - 0.7) / std) ** 2
    weights = np.exp(log_joint) / np.exp(log_joint).sum()
    mean = weights @ x
    moments = inverse.moments(posterior)
    np.testing.assert_allclose(moments[0], mean, atol=1e-8)
    np.testing.assert_allclose(moments[1], (weights[:, None] * (x - mean)).T @ (x - mean), atol=1e-8)
    level, point = SCHEDULE(0.4), np.array([0.2, -0.5])
    log_joint_t = log_joint - 0.5 * (((point - float(level.alpha) * x) / float(level.sigma)) ** 2).sum(-1)
    weights = np.exp(log_joint_t - log_joint_t.max())
    np.testing.assert_allclose(posterior.denoise(point[None], level)[0], weights @ x / weights.sum(), atol=1e-8)
    slope = jax.grad(lambda v: posterior.log_prob(v, level))(jnp.asarray(point))
    tweedie = (point + level.sigma**2 * slope) / level.alpha
    np.testing.assert_allclose(posterior.denoise(point[None], level)[0], tweedie, rtol=1e-10)
    draws = jax.jit(lambda key: posterior.sample(key, 20000))(KEY)
    np.testing.assert_allclose(draws.mean(0), moments[0], atol=0.02)
    np.testing.assert_allclose(np.cov(draws.T), moments[1], atol=0.02)


def test_no_measurement_gives_the_prior_and_a_full_one_gives_y():
    for prior in (gaussian(), mixture()):
        prior_moments, y = inverse.moments(prior), np.array([[0.4, -0.2]])
        for known, std in (([0, 0], 0.1), ([1, 1], np.inf)):
            posterior_moments = inverse.moments(inverse.posterior(prior, inverse.Mask(np.array(known)), y, std=std))
            np.testing.assert_allclose(posterior_moments[0], prior_moments[0], atol=1e-14)
            np.testing.assert_allclose(posterior_moments[1], prior_moments[1], atol=1e-14)
        mean, covariance = inverse.moments(inverse.posterior(prior, inverse.Mask(np.array([1, 1])), y, std=0.0))
        np.testing.assert_allclose(mean, y[0], atol=1e-12)
        np.testing.assert_allclose(covariance, 0, atol=1e-12)


# --- exact methods


def denoisers_of(method, problem, **settings):
    """(the method's denoiser, the denoiser of the exact posterior)."""
    prior = problem.prior
    guided = method(prior.denoiser(SCHEDULE), SCHEDULE, problem.operator, problem.y, std=problem.std, **settings)
    exact = inverse.posterior(prior, problem.operator, problem.y, std=problem.std).denoiser(SCHEDULE)
    return guided, exact


def check_denoiser(guided, exact):
    x, times = jnp.asarray(RNG.normal(size=(5, 4))), jnp.array([0.02, 0.3, 0.7, 0.99])
    both = jax.jit(lambda: jax.vmap(lambda t: (guided(x, t), exact(x, t)))(times))
    np.testing.assert_allclose(*both(), atol=1e-8)


def isotropic_problems():
    """Problems with the prior N(m, v I), one for each kind of measurement."""
    problem = problems()[0]
    matrix = problems()[2]
    yield problem
    yield problem._replace(operator=matrix.operator, y=matrix.y)
    yield problem._replace(operator=inverse.BoxDownsample(2, (4,), axes=(0,)), y=np.array([[0.3, -0.8]]))
    yield problem._replace(operator=inverse.gaussian_blur(0.7, (4,), radius=1, axes=(0,)), std=0.05)


@pytest.mark.newest
def test_pigdm_is_exact_for_isotropic_gaussians():
    for problem in isotropic_problems():
        check_denoiser(*denoisers_of(inverse.pigdm, problem, data_variance=0.4))


@pytest.mark.newest
def test_mmps_is_exact_for_every_gaussian():
    for problem in (*isotropic_problems(), *problems()[1:3]):
        check_denoiser(*denoisers_of(inverse.mmps, problem))


def test_a_wrong_variance_and_a_missing_factor_fail_the_check(monkeypatch):
    """Negative controls: v = 1 for data of variance 0.4; Tweedie's factor sigma^2 / alpha without its 1 / alpha."""
    with pytest.raises(AssertionError):
        check_denoiser(*denoisers_of(inverse.pigdm, problems()[0], data_variance=1.0))
    with pytest.raises(AssertionError):
        check_denoiser(*denoisers_of(inverse.pigdm, problems()[1], data_variance=0.4))

    class UnitAlpha(type(SCHEDULE)):
        def __call__(self, t):
            level = super().__call__(t)
            return level._replace(alpha=jnp.ones_like(level.alpha))

    problem = problems()[0]
    guided = inverse.pigdm(
        problem.prior.denoiser(SCHEDULE), UnitAlpha(), problem.operator, problem.y, data_variance=0.4
    )
    with pytest.raises(AssertionError):
        check_denoiser(guided, denoisers_of(inverse.pigdm, problem)[1])


def denoise_with_bad_jacobians(x, t):
    """A denoiser with a Jacobian for each example: a Gaussian's, two that are not positive, one far from symmetric."""
    matrices = np.array(
        [
            [[0.6, 0.2, 0.0], [0.2, 0.5, 0.1], [0.0, 0.1, 0.4]],
            [[-0.1, 0.5, 2.0], [-0.5, -0.1, 1.0], [3.0, 1.0, 0.0]],
            -np.eye(3),
            [[0.01, 0.0, 0.5], [-9.0, 0.4, 0.0], [7.0, 8.0, 0.1]],
        ]
    )
    fixed = jax.lax.stop_gradient(x)
    return 0.1 + 0.3 * fixed + jnp.einsum("bij,bj->bi", jnp.asarray(matrices[: len(x)]), x - fixed)


def test_mmps_falls_back_where_the_jacobian_is_no_covariance():
    """x0 and slopes stay finite and bounded; x0 is that of an isotropic covariance where the first iteration fails."""
    mask, t, x = inverse.Mask(np.array([1, 1, 0])), 0.9, jnp.asarray(RNG.normal(size=(4, 3)))
    y = np.array([[0.7, -0.4, 0.0]])

    @jax.jit
    def guided(x, std):
        return inverse.mmps(denoise_with_bad_jacobians, SCHEDULE, mask, y, std=std)(x, t)

    for std in (0.0, 0.2):
        x0, unguided = np.asarray(guided(x, std)), np.asarray(denoise_with_bad_jacobians(x, t))
        variance = 1 / (1 + float(np.exp(SCHEDULE(t).log_snr)))
        isotropic = unguided + np.where([1, 1, 0], variance / (variance + std**2), 0) * (y - unguided)
        np.testing.assert_allclose(x0[1:3], isotropic[1:3], rtol=1e-12)
        error_before, error_after = (np.abs((v - y)[:, :2]).max(1) for v in (unguided, x0))
        assert (error_after <= error_before + 1e-12).all()
        assert np.abs(x0).max() < 10
        np.testing.assert_allclose(x0[:1], guided(x[:1], std), rtol=1e-12)
    slopes = jax.grad(lambda x, std: jnp.sum(guided(x, std) ** 2), (0, 1))(x, 0.2)
    assert all(np.isfinite(slope).all() for slope in slopes)
    np.testing.assert_allclose(jax.vmap(guided, (None, 0))(x, jnp.array([0.0, 0.2]))[1], x0, rtol=1e-12)


@pytest.mark.slow
def test_pigdm_and_mmps_reach_the_posterior_distribution_at_order_one():
    """Ancestral sampling, its mean and covariance by Jacobians: their error halves with the step."""
    from experiments.benchmarks.inverse import _mmps, _pigdm

    for problem, build in ((problems()[0], _pigdm), (problems()[2], _mmps)):
        posterior = inverse.posterior(problem.prior, problem.operator, problem.y, std=problem.std)
        moments = jax.jit(functools.partial(affine_law, functools.partial(build, problem)))
        differences = [
            errors(*moments(diffax.times.uniform(SCHEDULE, n, t_max=0.999, t_min=1e-3).astype(float)), posterior)
            for n in (100, 200)
        ]
        assert differences[1][0] < 1e-3
        assert differences[1][1] < 0.05
        assert 0.8 < np.log2(differences[0][1] / differences[1][1]) < 1.3


# --- biased methods: the steps of the papers in NumPy


def inject(monkeypatch):
    """Replaces noise by fixed tables, one for each tuple of integers that was folded into the key."""
    tables = {}

    def noise(key, like):
        name = key[1:]
        tables.setdefault(name, np.random.default_rng(len(tables) + 7).normal(size=like.shape))
        return jnp.asarray(tables[name])

    fold_in = lambda key, data: (*key, data) if isinstance(key, tuple) else (data,)
    monkeypatch.setattr(diffax.random, "noise", noise)
    monkeypatch.setattr(diffax.random, "fold_in", fold_in)
    return tables


X = np.array([[0.3, -0.8], [1.1, 0.4]])
Y = np.array([[0.9, 0.0], [-0.5, 0.0]])
FIRST = np.array([True, False])
T, S = 0.6, 0.45


def levels():
    (a_t, s_t), (a_s, s_s) = ((np.cos(np.pi * v / 2), np.sin(np.pi * v / 2)) for v in (T, S))
    return a_t, s_t, a_s, s_s


def ancestral(x0, z):
    """Ho et al. 2020, eq. 6 and 7, in alpha and sigma."""
    a_t, s_t, a_s, s_s = levels()
    beta = 1 - (a_t / a_s) ** 2
    mean = a_s * beta / s_t**2 * x0 + a_t / a_s * s_s**2 / s_t**2 * X
    return mean, s_s / s_t * np.sqrt(beta) * z


def step(sampler, denoise, x=X, t=T, s=S):
    state = sampler.init(jnp.asarray(x), jnp.array([t, s]))
    return np.asarray(sampler.step((0,), denoise, state, t, s).x)


@pytest.mark.newest
def test_replacement_is_the_step_of_song_et_al(monkeypatch):
    tables = inject(monkeypatch)
    denoise = gaussian().denoiser(SCHEDULE)
    end = step(inverse.replacement(diffax.ddpm(SCHEDULE), SCHEDULE, inverse.Mask(FIRST), Y), denoise)
    (measurement_key,) = tables.keys() - {()}
    mean, noise = ancestral(np.asarray(denoise(X, T)), tables[()])
    _, _, a_s, s_s = levels()
    expected = np.where(FIRST, a_s * Y + s_s * tables[measurement_key], mean + noise)
    np.testing.assert_allclose(end, expected, rtol=1e-12)


def test_repaint_jumps_back_by_the_forward_process(monkeypatch):
    tables = inject(monkeypatch)
    sampler = inverse.repaint(diffax.ddpm(SCHEDULE), SCHEDULE, inverse.Mask(FIRST), Y)
    plain = inverse.replacement(diffax.ddpm(SCHEDULE), SCHEDULE, inverse.Mask(FIRST), Y)
    denoise = gaussian().denoiser(SCHEDULE)
    np.testing.assert_allclose(step(sampler, denoise), step(plain, denoise), rtol=1e-14)
    a_t, _, a_s, _ = levels()
    beta = 1 - (a_t / a_s) ** 2  # of one forward step from S to T
    up = step(sampler, lambda x, t: jnp.full_like(x, jnp.nan), t=S, s=T)
    np.testing.assert_allclose(up, np.sqrt(1 - beta) * X + np.sqrt(beta) * tables[()], rtol=1e-12)


def repaint_schedule(num, length, repeats):
    """Times as in the code of the paper: steps down, and at each multiple of `length` `repeats` - 1 jumps up."""
    jumps_left = dict.fromkeys(range(0, num - length, length), repeats - 1)
    t, path = num, []
    while t >= 1:
        t -= 1
        path.append(t)
        if jumps_left.get(t, 0) > 0:
            jumps_left[t] -= 1
            for _ in range(length):
                t += 1
                path.append(t)
    return path


@pytest.mark.parametrize(("num", "length", "repeats"), [(250, 10, 10), (10, 3, 2), (7, 6, 3), (5, 1, 4), (6, 2, 1)])
def test_jumps_are_those_of_the_paper(num, length, repeats):
    path = diffax.times.jumps(jnp.arange(num)[::-1], length=length, repeats=repeats)
    assert path.tolist() == repaint_schedule(num, length, repeats)
    assert len(path) == num + 2 * length * (repeats - 1) * -(-(num - length) // length)


def test_dps_is_the_step_of_chung_et_al(monkeypatch):
    """The gradient is a finite difference of the norm, separately for each example."""
    tables = inject(monkeypatch)
    denoise = mixture().denoiser(SCHEDULE)
    matrix = np.array([[1.0, -0.6]])
    operator = inverse.linear(lambda x: jnp.asarray(matrix) @ x, jnp.zeros(2))
    y = np.array([[0.7], [-0.2]])
    zeta = np.array([0.3, 0.8])
    end = step(inverse.dps(diffax.ddpm(SCHEDULE), operator, y, scale=zeta), denoise)
    mean, noise = ancestral(np.asarray(denoise(X, T)), tables[()])
    gradient = np.zeros_like(X)
    for d in range(2):
        h = np.zeros(2)
        h[d] = 1e-5
        norm = lambda x: np.linalg.norm(y - np.asarray(denoise(x, T)) @ matrix.T, axis=-1)
        gradient[:, d] = (norm(X + h) - norm(X - h)) / 2e-5
    np.testing.assert_allclose(end, mean + noise - zeta[:, None] * gradient, rtol=1e-8)
    by_function = inverse.dps(diffax.ddpm(SCHEDULE), lambda x0: x0 @ matrix.T, y, scale=zeta)
    np.testing.assert_allclose(step(by_function, denoise), end, rtol=1e-12)


@pytest.mark.newest
def test_ddnm_is_that_of_wang_et_al():
    """Eq. 13 with NumPy's pseudo-inverse; a measurement of the corrected x0 is y."""
    for problem in problems()[1:3]:
        matrix = dense(problem.operator.forward, (4,))
        pinv, x = np.linalg.pinv(matrix), RNG.normal(size=(3, 4))
        denoise = problem.prior.denoiser(SCHEDULE)
        result = inverse.ddnm(denoise, problem.operator, problem.y)(x, T)
        x0 = np.asarray(denoise(x, T))
        np.testing.assert_allclose(result, problem.y @ pinv.T + x0 @ (np.eye(4) - pinv @ matrix).T, atol=1e-12)
        np.testing.assert_allclose(problem.operator.forward(result), np.repeat(problem.y, 3, 0), atol=1e-12)


@pytest.mark.parametrize("std", [0.0, 0.2, 5.0])
def test_ddnm_plus_is_the_step_of_wang_et_al(std, monkeypatch):
    """Eq. 17 to 19 for a mask: in its range the noise of the measurement replaces a part of the added noise."""
    tables = inject(monkeypatch)
    denoise = gaussian().denoiser(SCHEDULE)
    end = step(inverse.ddnm_plus(SCHEDULE, inverse.Mask(FIRST), Y, std=std), denoise)
    a_t, s_t, a_s, s_s = levels()
    beta = 1 - (a_t / a_s) ** 2
    a, tau = a_s * beta / s_t**2, s_s / s_t * np.sqrt(beta)
    scale = 1.0 if tau >= a * std else tau / (a * std)
    x0 = np.asarray(denoise(X, T))
    mean, _ = ancestral(np.where(FIRST, x0 + scale * (Y - x0), x0), 0)
    phi = np.where(FIRST, tau**2 - (a * scale * std) ** 2, tau**2)
    np.testing.assert_allclose(end, mean + np.sqrt(np.maximum(phi, 0)) * tables[()], rtol=1e-7, atol=1e-7)
    # In the range of the mask the noise of y and the added noise together have the variance of ddpm.
    np.testing.assert_allclose(phi + np.where(FIRST, (a * scale * std) ** 2, 0), tau**2)


def test_ddnm_plus_without_noise_is_ddpm_with_ddnm(monkeypatch):
    inject(monkeypatch)
    denoise = mixture().denoiser(SCHEDULE)
    x, y = RNG.normal(size=(2, 4, 2)), RNG.normal(size=(2, 2, 1))
    boxes = inverse.BoxDownsample(2, (4, 2))
    ends = (
        step(inverse.ddnm_plus(SCHEDULE, boxes, y, std=0.0), denoise, x),
        step(diffax.ddpm(SCHEDULE), inverse.ddnm(denoise, boxes, y), x),
    )
    np.testing.assert_allclose(*ends, rtol=1e-10)


@pytest.mark.newest
def test_diffpir_is_the_step_of_zhu_et_al(monkeypatch):
    """The proximal step by NumPy's least squares of the stacked system, the renoising by the paper's formula."""
    tables = inject(monkeypatch)
    problem = problems()[2]
    matrix, x = dense(problem.operator.forward, (4,)), RNG.normal(size=(2, 4))
    denoise, std, weight, zeta = problem.prior.denoiser(SCHEDULE), 0.3, 7.0, 0.4
    guided = inverse.diffpir(denoise, SCHEDULE, problem.operator, problem.y, std=std, weight=weight)
    a_t, s_t, a_s, s_s = levels()
    root = np.sqrt(weight * std**2 * a_t**2 / s_t**2)
    x0_proximal = []
    for x0 in np.asarray(denoise(x, T)):
        stacked = np.concatenate([matrix, root * np.eye(4)]), np.concatenate([problem.y[0], root * x0])
        x0_proximal.append(np.linalg.lstsq(*stacked, rcond=None)[0])
    x0_proximal = np.array(x0_proximal)
    np.testing.assert_allclose(guided(x, T), x0_proximal, atol=1e-10)
    end = step(inverse.renoising(SCHEDULE, zeta=zeta), guided, x)
    eps = (x - a_t * x0_proximal) / s_t
    expected = a_s * x0_proximal + s_s * (np.sqrt(1 - zeta) * eps + np.sqrt(zeta) * tables[()])
    np.testing.assert_allclose(end, expected, rtol=1e-10)
    plain = step(diffax.ddim(SCHEDULE), guided, x)
    np.testing.assert_allclose(step(inverse.renoising(SCHEDULE, zeta=0.0), guided, x), plain, rtol=1e-12)


def test_replacement_has_the_moments_of_its_recursion():
    """Mean and covariance of both entries, propagated step by step in NumPy for a Gaussian of two dimensions."""
    prior, y = gaussian(), 1.2
    m, c = inverse.moments(prior)
    times = np.linspace(0.98, 0.05, 30)
    alpha, sigma = np.cos(np.pi * times / 2), np.sin(np.pi * times / 2)
    mean, cov = np.zeros(2), sigma[0] ** 2 * np.eye(2)
    for i in range(len(times) - 1):
        gain = alpha[i] * c @ np.linalg.inv(alpha[i] ** 2 * c + sigma[i] ** 2 * np.eye(2))
        beta = 1 - (alpha[i] / alpha[i + 1]) ** 2
        c_x0 = alpha[i + 1] * beta / sigma[i] ** 2
        c_x = alpha[i] / alpha[i + 1] * sigma[i + 1] ** 2 / sigma[i] ** 2
        move = c_x * np.eye(2) + c_x0 * gain
        mean = move @ mean + c_x0 * (m - alpha[i] * gain @ m)
        cov = move @ cov @ move.T + (sigma[i + 1] / sigma[i]) ** 2 * beta * np.eye(2)
        mean[0], cov[0], cov[:, 0] = alpha[i + 1] * y, 0, 0  # the known entry is redrawn independently
        cov[0, 0] = sigma[i + 1] ** 2

    def run(key):
        sampler = inverse.replacement(diffax.ddpm(SCHEDULE), SCHEDULE, inverse.Mask(FIRST), jnp.array([[y, 0.0]]))
        x = sigma[0] * diffax.random.noise(jax.random.fold_in(key, 1), jnp.zeros((40000, 2)))
        return diffax.integrate(key, sampler, prior.denoiser(SCHEDULE), x, jnp.asarray(times)).x

    x = jax.jit(run)(KEY)
    np.testing.assert_allclose(x.mean(0), mean, atol=0.015)
    np.testing.assert_allclose(np.cov(x.T), cov, atol=0.015)


# --- neutral settings and full measurements


def methods(operator, y, *, std, scale):
    """name -> (sampler, denoiser), for the mixture or for an isotropic Gaussian."""
    denoise = mixture().denoiser(SCHEDULE)
    ddpm = diffax.ddpm(SCHEDULE)
    iso = analytic.Gaussian.from_covariance(np.array([0.2, 0.1]), np.array(0.4)).denoiser(SCHEDULE)
    return {
        "unguided": (ddpm, denoise),
        "unguided, isotropic": (ddpm, iso),
        "ddnm": (ddpm, inverse.ddnm(denoise, operator, y)),
        "pigdm": (ddpm, inverse.pigdm(denoise, SCHEDULE, operator, y, std=std)),
        "pigdm, isotropic": (ddpm, inverse.pigdm(iso, SCHEDULE, operator, y, std=std, data_variance=0.4)),
        "mmps": (ddpm, inverse.mmps(denoise, SCHEDULE, operator, y, std=std)),
        "diffpir": (ddpm, inverse.diffpir(denoise, SCHEDULE, operator, y, std=std)),
        "replacement": (inverse.replacement(ddpm, SCHEDULE, operator, y), denoise),
        "repaint": (inverse.repaint(ddpm, SCHEDULE, operator, y), denoise),
        "dps": (inverse.dps(ddpm, operator, y, scale=scale), denoise),
        "ddnm_plus": (inverse.ddnm_plus(SCHEDULE, operator, y, std=std), denoise),
    }


@functools.partial(jax.jit, static_argnames="names")
def samples_of(known, y, std, scale, x, times, names=None):
    """name -> samples from x; the mask `known`, the noise level and the scale are traced."""
    pairs = methods(inverse.Mask(known), y, std=std, scale=scale)
    return {name: diffax.sample(KEY, *pairs[name], x, times) for name in names or pairs}


NOISY = ("pigdm", "mmps", "diffpir", "ddnm_plus")


def results(known, *, y=Y, std=0.1, scale=0.7, grid=(0.95, 0.6, 0.3, 0.1, 0.02)):
    return samples_of(jnp.asarray(known), jnp.asarray(y), std, scale, jnp.asarray(X), jnp.asarray(grid))


def unguided(samples, name):
    return samples["unguided, isotropic" if "isotropic" in name else "unguided"]


@pytest.mark.newest
def test_without_measurements_every_method_is_the_unguided_sampler():
    samples = results([0, 0])
    for name, x0 in samples.items():
        np.testing.assert_allclose(x0, unguided(samples, name), rtol=1e-14, err_msg=name)


@pytest.mark.newest
def test_entries_outside_the_mask_are_ignored():
    """Where the mask is 0, y may have any value, also NaN."""
    for std in (0.0, 0.1):
        plain, filled = (results([1, 0], y=np.stack([Y[:, 0], v], 1), std=std) for v in (Y[:, 1], [7.0, np.nan]))
        for name, x0 in plain.items():
            np.testing.assert_array_equal(filled[name], x0, err_msg=name)
    mask, prior = inverse.Mask(np.array([1, 0])), gaussian()
    posteriors = [inverse.posterior(prior, mask, np.array([[0.9, v]]), std=0.1) for v in (0.0, np.nan)]
    np.testing.assert_array_equal(posteriors[0].mean, posteriors[1].mean)


def test_mmps_is_finite_in_single_precision_for_any_noise():
    """Entries outside the mask once made the inverse diverge, and |r|^2 once underflowed at a large std."""
    mask, x = inverse.Mask(np.array([1, 0, 1, 0])), jnp.ones((2, 4), jnp.float32)
    total = lambda std: inverse.mmps(lambda x, t: 0.4 * jnp.tanh(x), SCHEDULE, mask, x, std=std)(x, 0.5).sum()
    values, slopes = jax.vmap(jax.value_and_grad(total))(jnp.array([0.0, 1e-3, 1e9, 1e25, jnp.inf], jnp.float32))
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values[0], values[1], rtol=1e-4)
    np.testing.assert_allclose(values[2:], 8 * 0.4 * np.tanh(1.0), rtol=1e-6)
    assert np.isfinite(slopes).all()


def test_infinite_noise_is_the_unguided_sampler():
    samples = results([1, 0], std=jnp.inf, scale=0.0)
    for name in ("pigdm", "pigdm, isotropic", "mmps", "diffpir", "dps"):
        np.testing.assert_allclose(samples[name], unguided(samples, name), rtol=1e-14, err_msg=name)
    matrix = inverse.linear(lambda x: jnp.array([[1.0, -0.6]]) @ x, jnp.zeros(2))
    boxes = inverse.BoxDownsample(2, (2,), axes=(0,))
    denoise, y = mixture().denoiser(SCHEDULE), np.array([[0.4]])
    for operator in (matrix, boxes):
        for method in (inverse.pigdm, inverse.mmps, inverse.diffpir):
            guided = method(denoise, SCHEDULE, operator, y, std=jnp.inf)
            np.testing.assert_array_equal(guided(jnp.asarray(X), 0.4), denoise(jnp.asarray(X), 0.4))


def test_infinite_noise_has_finite_slopes():
    def total(std, grid):
        samples = samples_of(jnp.asarray([1, 0]), jnp.asarray(Y), std, 0.0, jnp.asarray(X), grid, names=NOISY)
        return sum(jnp.sum(x0**2) for x0 in samples.values())

    slopes = jax.grad(total, (0, 1))(jnp.inf, jnp.asarray([0.9, 0.6, 0.3, 0.1]))
    assert slopes[0] == 0
    assert np.isfinite(slopes[1]).all()
    assert (np.asarray(slopes[1]) != 0).all()


@pytest.mark.newest
def test_samples_equal_a_full_measurement_without_noise():
    y = np.array([[0.9, 0.3], [-0.5, 1.4]])
    samples = results([1, 1], y=y, std=0.0, grid=(0.9, 0.6, 0.4, 0.1, 0.0))
    for name in ("ddnm", "diffpir", "mmps", "pigdm, isotropic"):
        np.testing.assert_allclose(samples[name], y, atol=1e-8, err_msg=name)
    for name in ("replacement", "repaint", "ddnm_plus"):
        np.testing.assert_allclose(samples[name], y, atol=3e-4, err_msg=name)  # sigma(0) is exp(-10)
        np.testing.assert_allclose(inverse.project(inverse.Mask(np.array([1, 1])), y, samples[name]), y, rtol=1e-12)


def test_a_measurement_changes_the_samples_of_every_method():
    """Negative control: with one known entry no method equals the unguided sampler."""
    samples = results([1, 0])
    for name in samples.keys() - {"unguided", "unguided, isotropic"}:
        assert np.abs(np.asarray(samples[name] - unguided(samples, name))).max() > 0.05, name


def test_a_step_of_length_zero_changes_nothing():
    samples = results([1, 0], grid=(0.1,) * 5)
    for name in ("unguided", "replacement", "repaint", "dps", "ddnm_plus"):
        expected = mixture().denoise(X, SCHEDULE(0.1))  # the last call denoises the initial x
        np.testing.assert_allclose(samples[name], expected, rtol=1e-12, err_msg=name)
    sampler = inverse.renoising(SCHEDULE, zeta=0.5)
    np.testing.assert_allclose(step_to(sampler, T), X, rtol=1e-14)
    assert np.abs(step_to(sampler, S) - X).max() > 0.1


def step_to(sampler, s):
    state = sampler.init(jnp.asarray(X), jnp.array([T, s]))
    return np.asarray(sampler.step(KEY, mixture().denoiser(SCHEDULE), state, T, s).x)


# --- traced, batched, any shape


def squared_norms(hyper, y, known):
    """(methods, B) squared norms of the samples of every method, images of 4 x 4 x 2; `hyper` is (4,) or (4, B)."""
    std, scale, weight, zeta = hyper
    shape = (4, 4, 2)
    mask, boxes = inverse.Mask(known), inverse.BoxDownsample(2, shape)
    blur = inverse.gaussian_blur(0.7, shape, radius=1)
    downsampled, blurred = boxes.forward(y), blur.forward(y)
    denoise = lambda x, t: jnp.tanh(x) * 0.8
    times = jnp.array([0.9, 0.5, 0.1], y.dtype)
    ddpm, ddim = diffax.ddpm(SCHEDULE), diffax.ddim(SCHEDULE)
    proximal = inverse.diffpir(denoise, SCHEDULE, mask, y, std=std, weight=weight)
    runs = [
        (inverse.replacement(ddim, SCHEDULE, mask, y), denoise),
        (inverse.dps(ddpm, boxes, downsampled, scale=scale), denoise),
        (inverse.ddnm_plus(SCHEDULE, boxes, downsampled, std=std), denoise),
        (ddim, inverse.pigdm(denoise, SCHEDULE, blur, blurred, std=std, data_variance=weight)),
        (ddim, inverse.mmps(denoise, SCHEDULE, boxes, downsampled, std=std, iterations=3)),
        (inverse.renoising(SCHEDULE, zeta=zeta), proximal),
    ]
    x = jnp.linspace(-1, 1, y.size, dtype=y.dtype).reshape(y.shape)
    return jnp.stack([jnp.square(diffax.sample(KEY, *run, x, times)).sum((1, 2, 3)) for run in runs])


@pytest.mark.slow
def test_hyperparameters_may_be_traced_swept_and_differentiated():
    y, known = jnp.asarray(RNG.normal(size=(3, 4, 4, 2))), jnp.asarray([[[1]], [[0]], [[1]], [[1]]])
    traces = []

    def run(hyper, y):
        traces.append(1)
        return squared_norms(hyper, y, known)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def slopes(hyper):
        norms = run(hyper, y)
        return norms.sum(), norms

    hyper, other, zero = (jnp.array(v) for v in ((0.3, 0.5, 2.0, 0.4), (0.1, 0.2, 1.0, 0.9), (0.0, 0.0, 1.0, 0.0)))
    assert np.all(np.isfinite(slopes(zero)[0]))
    slope, norms_at_hyper = slopes(hyper)
    h = 1e-5
    for i in range(4):
        step = h * jnp.eye(4)[i]
        difference = (slopes(hyper + step)[1].sum() - slopes(hyper - step)[1].sum()) / (2 * h)
        np.testing.assert_allclose(slope[i], difference, rtol=1e-5)
    assert len(traces) == 1  # one compilation for all values
    # In the second sweep one example has other hyperparameters and one another y: the examples stay independent.
    cases = jnp.stack([jnp.stack([a, b, c], 1) for a, b, c in ((hyper, hyper, hyper), (hyper, other, hyper))])
    swept = jax.jit(jax.vmap(run))(cases, jnp.stack([y, y.at[2].mul(100.0)]))
    np.testing.assert_allclose(norms_at_hyper, swept[0], rtol=1e-9)
    np.testing.assert_allclose(swept[1, :, 0], norms_at_hyper[:, 0], rtol=1e-9)
    np.testing.assert_allclose(swept[1, :, 1], slopes(other)[1][:, 1], rtol=1e-9)
    assert np.all(np.asarray(swept[0, :, 2] != swept[1, :, 2]))


def test_methods_take_trees_and_a_grid_for_each_example():
    x = {"a": jnp.asarray(X), "b": jnp.asarray(RNG.normal(size=(2, 3, 1)))}
    y = jax.tree.map(lambda v: 0.5 * v, x)
    known = {"a": np.array([1, 0]), "b": np.array([[1], [0], [1]])}
    denoise = lambda x, t: jax.tree.map(lambda v: 0.5 * jnp.sin(v), x)
    mask = inverse.Mask(known)
    matrix = inverse.linear(lambda v: v["a"].sum() + 2 * v["b"][:, 0], jax.tree.map(lambda v: v[0], x))
    measured = matrix.forward(y)
    times = jnp.stack([jnp.linspace(0.9, 0.1, 4), jnp.linspace(0.8, 0.2, 4)], 1)
    ddim = diffax.ddim(SCHEDULE)
    runs = [
        (inverse.repaint(ddim, SCHEDULE, mask, y), denoise),
        (inverse.dps(ddim, matrix, measured, scale=0.3), denoise),
        (ddim, inverse.pigdm(denoise, SCHEDULE, mask, y, std=0.1)),
        (ddim, inverse.mmps(denoise, SCHEDULE, matrix, measured, std=0.1, iterations=2)),
        (ddim, inverse.diffpir(denoise, SCHEDULE, matrix, measured, std=0.1)),
    ]
    for end in jax.jit(lambda x: [diffax.sample(KEY, *run, x, times) for run in runs])(x):
        assert jax.tree.map(jnp.shape, end) == jax.tree.map(jnp.shape, x)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(end))
    exact = inverse.ddnm(denoise, matrix, measured)(x, 0.5)
    np.testing.assert_allclose(matrix.forward(exact), measured, atol=1e-10)


def test_methods_are_finite_in_float32_at_both_ends():
    prior = analytic.Gaussian.from_covariance(np.array([0.2, 0.1], np.float32), np.float32(0.4))
    with jax.enable_x64(False):
        y, x = jnp.asarray(Y, jnp.float32), jnp.asarray(X, jnp.float32)
        mask, times = inverse.Mask(FIRST), jnp.array([0.0, 0.3, 1.0])
        names, grid = ("pigdm", "mmps", "replacement", "dps", "ddnm_plus"), jnp.array([1.0, 0.5, 0.5, 0.2, 0.0])
        for name, end in samples_of(jnp.asarray([1, 0]), y, 0.0, 0.7, x, grid, names).items():
            assert end.dtype == jnp.float32, name
            assert np.all(np.isfinite(end)), name
        exact = inverse.posterior(prior, mask, y[:1], std=0.1).denoiser(SCHEDULE)
        denoise = prior.denoiser(SCHEDULE)
        for guided in (
            inverse.mmps(denoise, SCHEDULE, mask, y[:1], std=0.1),
            inverse.pigdm(denoise, SCHEDULE, mask, y[:1], std=0.1, data_variance=0.4),
        ):
            both = [jax.jit(jax.vmap(f, (None, 0)))(x, times) for f in (guided, exact)]
            np.testing.assert_allclose(*both, atol=2e-5)


# --- bad input

MASK = inverse.Mask(FIRST)
BOXES = inverse.BoxDownsample(2, (4, 4, 1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: inverse.Mask(np.array([0.5, 1.0])), "known must be 0 or 1"),
        (lambda: inverse.ddnm(None, MASK, np.ones((2, 3))), r"y must have the shape .* known \(2,\) .* got \(2, 3\)"),
        (lambda: inverse.ddnm(None, MASK, np.ones(())), r"y must have the shape \(B, ...\).*got \(\)"),
        (
            lambda: inverse.Mask(np.ones((3, 2))).check(np.ones((2, 2))),
            r"known \(3, 2\) must broadcast to it, got \(2, 2\)",
        ),
        (lambda: MASK.forward(jnp.ones((1, 3))), r"known must broadcast to x of shape \(1, 3\), got \(2,\)"),
        (
            lambda: MASK.select(jnp.ones((1, 3)), jnp.ones((1, 2))),
            r"inside must broadcast to x of shape \(1, 2\), got \(1, 3\)",
        ),
        (
            lambda: inverse.ddnm(jnp.add, 3, Y),
            "operator must have the methods forward, adjoint, solve and check, such as Mask, got 3",
        ),
        (lambda: inverse.Mask({"a": FIRST}).check(Y), "y must be a tree like known"),
        (lambda: inverse.BoxDownsample(3, (4, 4, 1)), r"factor must divide shape \(4, 4, 1\) .* got 3"),
        (lambda: inverse.BoxDownsample(0, (4, 4, 1)), "factor must be an int >= 1, got 0"),
        (lambda: inverse.BoxDownsample(2, (4, 4), axes=(0, 2)), r"axes must be .* got \(0, 2\)"),
        (
            lambda: inverse.pigdm(jnp.add, SCHEDULE, BOXES, np.ones((1, 4, 4, 1))),
            r"y must have shape \(B, 2, 2, 1\), got",
        ),
        (lambda: BOXES.forward(np.ones((1, 2, 2, 1))), r"x must have shape \(B, 4, 4, 1\), got \(1, 2, 2, 1\)"),
        (lambda: inverse.Blur(np.ones(3), (4, 4, 1)), r"kernel must have 2 axes .* got shape \(3,\)"),
        (lambda: inverse.Blur(np.ones((5, 1)), (4, 4, 1)), r"kernel must have 2 axes .* up to \(4, 4\)"),
        (lambda: inverse.gaussian_blur(0.0, (4, 4), radius=1), "std must be > 0, got 0.0"),
        (lambda: inverse.gaussian_blur(1.0, (4, 4), radius=1.5), "radius must be an int >= 0, got 1.5"),
        (lambda: inverse.linear(jnp.sin, jnp.zeros(2)), "f must be linear"),
        (lambda: inverse.linear(lambda x: x + 1, jnp.zeros(2)), r"f\(0\) must be 0 for a linear f"),
        (lambda: inverse.linear(lambda x: x, jnp.zeros(2), iterations=0), "iterations must be an int >= 1, got 0"),
        (lambda: inverse.linear(lambda x: x, jnp.zeros(2)).check(np.ones((1, 3))), r"y must have shape \(B, 2\), got"),
        (lambda: inverse.pigdm(jnp.add, SCHEDULE, MASK, Y, std=-1.0), "std must be >= 0, got -1.0"),
        (lambda: inverse.pigdm(jnp.add, SCHEDULE, MASK, Y, data_variance=0.0), "data_variance must be > 0, got 0.0"),
        (lambda: inverse.mmps(jnp.add, SCHEDULE, MASK, Y, std=-0.5), "std must be >= 0, got -0.5"),
        (lambda: inverse.mmps(jnp.add, SCHEDULE, MASK, Y, iterations=0), "iterations must be an int >= 1, got 0"),
        (lambda: inverse.diffpir(jnp.add, SCHEDULE, MASK, Y, std=0.1, weight=0.0), "weight must be > 0, got 0.0"),
        (lambda: inverse.dps(diffax.ddim(SCHEDULE), MASK, Y, scale=-1.0), "scale must be >= 0, got -1.0"),
        (
            lambda: inverse.dps(diffax.ddim(SCHEDULE), 3, Y),
            "operator must have the methods of `Operator`, such as Mask, or be a function x0 -> y, got 3",
        ),
        (lambda: inverse.renoising(SCHEDULE, zeta=1.5), r"zeta must be in \[0, 1\], got 1.5"),
        (lambda: inverse.replacement(diffax.ddim(SCHEDULE), SCHEDULE, BOXES, Y), "operator must be a Mask, got Box"),
        (lambda: inverse.ddnm_plus(SCHEDULE, inverse.Blur(np.ones(1), (2,), axes=(0,)), Y, std=0.1), "got Blur"),
        (lambda: diffax.times.jumps(np.arange(5), length=5), "length must be at most n - 1 = 4, got 5"),
        (lambda: diffax.times.jumps(np.arange(5), length=2, repeats=0), "repeats must be an int >= 1, got 0"),
        (lambda: inverse.posterior(gaussian(), MASK, Y, std=0.1), r"y must be one measurement, .* got \(2, 2\)"),
        (
            lambda: inverse.posterior(gaussian(), inverse.Mask(np.ones(3)), np.ones((1, 3)), std=0.1),
            r"y must be a measurement of x0",
        ),
        (lambda: inverse.posterior(None, MASK, Y[:1], std=0.1), "prior must be a Gaussian or a Mixture, got NoneType"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_measurement_of_another_batch_size_is_refused():
    three = np.ones((3, 2))
    for guided in (inverse.ddnm(lambda x, t: x, MASK, three), inverse.pigdm(lambda x, t: x, SCHEDULE, MASK, three)):
        with pytest.raises(ValueError, match=r"y must have shape \(2, 2\), or batch size 1, got \(3, 2\)"):
            guided(jnp.asarray(X), 0.5)
    sampler = inverse.replacement(diffax.ddim(SCHEDULE), SCHEDULE, MASK, three)
    state = sampler.init(jnp.asarray(X), None)
    with pytest.raises(ValueError, match="y must have shape"):
        sampler.step(KEY, lambda x, t: x, state, T, S)
