"""How good samples are: pure functions on arrays and sets of features.

Sets of features are (N, D), computed by any extractor. Their distances are taken on the host in float64, in blocks (the
Sinkhorn divergence: whole, on JAX's default device), and no number means anything without the extractor, the counts,
and the value for two sets of real data.

    frechet     distance of Gaussian fits; its streaming moments; its limit for infinitely many examples
    kernel      kernel distance (KID), unbiased, with a standard error
    manifold    precision, recall, density, coverage; nearest training examples
    transport   sliced Wasserstein distance; Sinkhorn divergence (extra `metrics`)
    classes     accuracy and class balance, from a classifier's predictions
    images      PSNR and SSIM of reconstructions: jit, vmap and grad work
"""

from diffax.metrics._classes import ClassBalance, accuracy, class_balance
from diffax.metrics._frechet import (
    Extrapolation,
    FeatureMoments,
    frechet_distance,
    frechet_from_moments,
    frechet_infinity,
    merge,
    moments,
)
from diffax.metrics._images import psnr, ssim
from diffax.metrics._kernel import KernelEstimate, kernel_distance, kernel_distance_subsets
from diffax.metrics._manifold import (
    DensityCoverage,
    Neighbours,
    PrecisionRecall,
    density_coverage,
    nearest_neighbours,
    precision_recall,
)
from diffax.metrics._transport import sinkhorn_divergence, sliced_wasserstein

__all__ = [
    "ClassBalance",
    "DensityCoverage",
    "Extrapolation",
    "FeatureMoments",
    "KernelEstimate",
    "Neighbours",
    "PrecisionRecall",
    "accuracy",
    "class_balance",
    "density_coverage",
    "frechet_distance",
    "frechet_from_moments",
    "frechet_infinity",
    "kernel_distance",
    "kernel_distance_subsets",
    "merge",
    "moments",
    "nearest_neighbours",
    "precision_recall",
    "psnr",
    "sinkhorn_divergence",
    "sliced_wasserstein",
    "ssim",
]
