"""Measures of sample quality: pure functions of arrays and sets of features.

A set of features has shape (N, D), from any extractor, such as `diffax.nn.features`. Distances are computed in float64
on the host, in blocks of rows. (The Sinkhorn divergence is computed in one piece, on JAX's default device.) Report a
distance together with the extractor, both counts, and the same distance between two sets of real data: it has no
meaning without them.

    frechet     distance of Gaussian fits; streaming moments; limit for infinitely many examples
    kernel      kernel distance (KID), unbiased, with a standard error
    manifold    precision, recall, density, coverage; nearest training examples
    transport   sliced Wasserstein distance; Sinkhorn divergence (extra `metrics`)
    classes     accuracy and class balance, from a classifier's predictions
    images      PSNR and SSIM of reconstructions; they support jit, vmap and grad
    values      features of any data without a network: projections, and quantiles of sets of points
    spectrum    radially averaged power spectra of fields and signals, and their distance in dB
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
from diffax.metrics._spectrum import log_spectral_distance, radial_power_spectrum
from diffax.metrics._transport import sinkhorn_divergence, sliced_wasserstein
from diffax.metrics._values import orthonormal_projection, set_quantiles, unit_directions

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
    "log_spectral_distance",
    "merge",
    "moments",
    "nearest_neighbours",
    "orthonormal_projection",
    "precision_recall",
    "psnr",
    "radial_power_spectrum",
    "set_quantiles",
    "sinkhorn_divergence",
    "sliced_wasserstein",
    "ssim",
    "unit_directions",
]
