"""Rows of metrics."""

import jax.numpy as jnp
import numpy as np
from golden_inputs import array, key

from diffax import metrics

FIRST, SECOND = lambda: np.asarray(array("first", 24, 3)), lambda: np.asarray(0.8 * array("second", 20, 3) + 0.3)
IMAGES = lambda: (jnp.tanh(array("image", 2, 8, 8, 3)), jnp.tanh(array("image", 2, 8, 8, 3) + 0.1))
METRICS = {
    "psnr": lambda: metrics.psnr(*IMAGES(), data_range=2.0),
    "ssim": lambda: metrics.ssim(*IMAGES(), data_range=2.0, window=5),
    "frechet_distance": lambda: metrics.frechet_distance(FIRST(), SECOND()),
    "frechet_from_moments": lambda: metrics.frechet_from_moments(
        metrics.merge(metrics.moments(FIRST()[:9]), metrics.moments(FIRST()[9:])), metrics.moments(SECOND())
    ),
    "frechet_infinity": lambda: metrics.frechet_infinity(key("m"), FIRST(), SECOND(), points=5, smallest=10),
    "kernel_distance": lambda: metrics.kernel_distance(FIRST(), SECOND()),
    "kernel_distance_subsets": lambda: metrics.kernel_distance_subsets(key("m"), FIRST(), SECOND(), size=6),
    "precision_recall": lambda: metrics.precision_recall(FIRST(), SECOND()),
    "density_coverage": lambda: metrics.density_coverage(FIRST(), SECOND()),
    "nearest_neighbours": lambda: metrics.nearest_neighbours(FIRST(), SECOND()),
    "sliced_wasserstein": lambda: metrics.sliced_wasserstein(key("m"), FIRST(), SECOND(), projections=10),
    "sinkhorn_divergence": lambda: metrics.sinkhorn_divergence(FIRST(), SECOND()),
    "accuracy": lambda: metrics.accuracy(FIRST(), np.arange(24) % 3),
    "class_balance": lambda: metrics.class_balance(np.arange(24) % 5 % 3, [0.3, 0.3, 0.4]),
}

ROWS = dict(METRICS)
