"""Training losses.

    L = E_{t, eps} |y_hat(x_t, t) - y|^2,   x_t = alpha x0 + sigma eps,   y = a x0 + b eps

A weighting w(lambda) weighs the error of eps, whatever is predicted (Kingma & Gao 2023):

    L = E w(lambda_t) |eps_hat - eps|^2 = E w(lambda_t) (alpha / det)^2 |y_hat - y|^2,   det = alpha b - sigma a
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffax import random
from diffax.predictions import diffuse, row
from diffax.predictions import target as prediction_target
from diffax.pytrees import batch_size, check
from diffax.typing import Array, Float, Key, Num, Predict, Schedule


def denoising_loss(
    key: Key,
    predict: Predict,
    schedule: Schedule,
    kind: str,
    x0: Any,
    t: Any,
    *,
    weighting: Callable[[Any], Any] | None = None,
    sigma_data: Any = 0.5,
) -> Float[Array, " batch"]:
    """The denoising (score-matching, flow-matching) loss of each example, its mean over dimensions: (B,).

    Args:
      key: shape () or (B,); consumed.
      predict: (x, t) -> y.
      schedule: noise schedule.
      kind: what y is, a key of `diffax.predictions.KINDS`.
      x0: (B, ...) clean data.
      t: () or (B,) training times.
      weighting: w(log_snr) on the error of eps, `lambda log_snr: 1.0` being DDPM's L_simple; None leaves
        the plain mean square of what is predicted.
      sigma_data: standard deviation of the data, of `edm` alone.

    Source: Ho et al. 2020, eq. 14; Lipman et al. 2023, eq. 14 (`velocity`).
    """
    eps = random.noise(key, x0)
    y = prediction_target(kind, schedule, x0, eps, t, sigma_data=sigma_data)
    y_hat = predict(diffuse(schedule, x0, eps, t), t)
    square = jax.tree.map(lambda u, v: jnp.square(u.astype(jnp.promote_types(u.dtype, jnp.float32)) - v), y, y_hat)
    size = batch_size(x0)
    total = sum(leaf.reshape(size, -1).sum(1) for leaf in jax.tree.leaves(square))
    loss = total / sum(leaf.size // size for leaf in jax.tree.leaves(square))
    if weighting is None:
        return loss
    alpha, sigma, log_snr = schedule(t)
    a, b = row(kind, schedule, t, sigma_data=sigma_data)
    return weighting(log_snr) * (alpha / (alpha * b - sigma * a)) ** 2 * loss


def drop_labels(key: Key, labels: Num[Any, " batch"], null_label: int, *, p_uncond: Any) -> Num[Array, " batch"]:
    """(B,) labels, each replaced by the null label with probability p_uncond, to train for guidance.

    Ho & Salimans 2021, algorithm 1.

    Raises:
      ValueError: if p_uncond is known to lie outside [0, 1].
    """
    check("p_uncond", p_uncond, "in [0, 1]", lambda v: (v >= 0) & (v <= 1))
    drop = random.uniform(key, batch_size(labels)) < p_uncond
    return jnp.where(drop, null_label, labels)
