"""Training of variational autoencoders: pure functions, for any pair of encoder and decoder.

q(z | x) = N(mean, diag exp(log_variance)),   z = mean + exp(log_variance / 2) eps
L = (|x - y(z)|^2 + kl_weight KL(q(z | x) | N(0, 1))) / dim(x) + perceptual(x, y) + adversarial(y)
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from diffax import random
from diffax._checks import check, check_like, choose, non_negative
from diffax.typing import Array, Float, Key, Scalar

RECONSTRUCTIONS = {"squared": jnp.square, "absolute": jnp.abs}


def reparameterise(
    key: Key, mean: Float[Array, "batch ..."], log_variance: Float[Array, "batch ..."]
) -> Float[Array, "batch ..."]:
    """A random z = mean + exp(log_variance / 2) eps, eps ~ N(0, 1), differentiable in both moments.

    Args:
      key: () or (B,); consumed.
      mean: (B, ...).
      log_variance: (B, ...).

    Source: Kingma & Welling 2014, section 2.4.
    """
    eps: Array = random.noise(random.stream(key, "reparameterise"), mean)
    return mean + jnp.exp(0.5 * log_variance) * eps


def kl_to_standard_normal(
    mean: Float[Array, "batch ..."], log_variance: Float[Array, "batch ..."]
) -> Float[Array, " batch"]:
    """KL(N(mean, diag exp(log_variance)) | N(0, 1)) in nats, summed over the dimensions of each example: (B,).

        1/2 sum_i mean_i^2 + exp(log_variance_i) - 1 - log_variance_i

    Args:
      mean: (B, ...).
      log_variance: (B, ...).

    Source: Kingma & Welling 2014, appendix B.

    >>> kl_to_standard_normal(jnp.array([[1.0, 2.0]]), jnp.zeros((1, 2))).tolist()
    [2.5]
    """
    terms = mean**2 + jnp.expm1(log_variance) - log_variance
    return 0.5 * jnp.sum(terms, axis=tuple(range(1, terms.ndim)))


def autoencoder_loss(
    key: Key,
    encode: Callable[[Any], tuple[Any, Any]],
    decode: Callable[[Any], Any],
    x: Float[Array, "batch ..."],
    *,
    kl_weight: Scalar = 1e-6,
    reconstruction: str = "squared",
    perceptual: Callable[[Any, Any], Any] | None = None,
    adversarial: Callable[[Any], Any] | None = None,
) -> Float[Array, " batch"]:
    """The loss of each example, (B,), with one random z per example.

    The reconstruction error is averaged over the dimensions of x, and the KL term is divided by their number. Therefore
    `kl_weight` has the same meaning as with two sums: kl_weight = 1 with "squared" gives the evidence lower bound of a
    decoder with variance 1/2.

    Args:
      key: () or (B,); consumed.
      encode: x -> (mean, log_variance).
      decode: z -> y, of the shape of x.
      x: (B, ...).
      kl_weight: weight of the KL term, >= 0.
      reconstruction: error of the reconstruction x - y, "squared" or "absolute".
      perceptual: (x, y) -> (B,), a weighted distance in the features of some network, or None.
      adversarial: y -> (B,), the weighted loss of y under a discriminator, or None.

    Raises:
      ValueError: if kl_weight < 0, reconstruction is unknown, or `encode` or `decode` returns a wrong shape.

    Source: Rombach et al. 2022, appendix G, and their code: an absolute error, LPIPS, a patch discriminator, and a KL
    weight of 1e-6.
    """
    check("kl_weight", kl_weight, non_negative)
    error = choose("reconstruction", reconstruction, RECONSTRUCTIONS)
    mean, log_variance = encode(x)
    check_like("the log-variance of encode(x)", log_variance, mean)
    y = decode(reparameterise(key, mean, log_variance))
    check_like("decode(z)", y, x)
    loss = jnp.mean(error(x - y), axis=tuple(range(1, x.ndim)))
    loss = loss + kl_weight * kl_to_standard_normal(mean, log_variance) / x[0].size
    if perceptual is not None:
        loss = loss + perceptual(x, y)
    return loss if adversarial is None else loss + adversarial(y)
