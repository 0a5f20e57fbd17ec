"""The denoising loss, and random replacement of labels for classifier-free guidance.

    L = E_{t, eps} |y_hat(x_t, t) - y|^2,   x_t = alpha x0 + sigma eps,   y = a x0 + b eps

A weighting w(lambda) multiplies the squared error of eps, for every kind of prediction (Kingma & Gao 2023). Here lambda
is the log-SNR, log(alpha^2 / sigma^2), twice the lambda of the samplers:

    L = E w(lambda_t) |eps_hat - eps|^2 = E w(lambda_t) (alpha / det)^2 |y_hat - y|^2,   det = alpha b - sigma a

`diffax.losses.weightings` has weightings, `diffax.losses.training_times` draws t. With measure "log_snr" a weighting
is a weight per unit of log-SNR, so that over uniform t the loss depends on the schedule through its ends alone:

    L = E_t -lambda'(t) w(lambda_t) |eps_hat - eps|^2 = int w(lambda) |eps_hat - eps|^2 dlambda
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffax import random
from diffax._checks import check, check_float, check_function, check_like, check_per_example, choose, interval
from diffax._masks import check_mask, inside, mean
from diffax._pytrees import as_float, batch_size, promoted
from diffax.predictions import check_kind, diffuse, row
from diffax.predictions import target as prediction_target
from diffax.schedules._curve import LOG_SNR_MAX
from diffax.typing import Array, Float, Key, Kind, Leaf, PerExample, Predict, Scalar, Schedule, Shaped, Times, Tree


def _rate(schedule: Schedule, t: Times) -> Any:
    """-d lambda / dt, and 0 where lambda is clipped, because it is constant there."""
    t = as_float(t)
    log_snr, slope = jax.jvp(schedule.log_snr, (t,), (jnp.ones_like(t),))
    return jnp.where(jnp.abs(log_snr) < LOG_SNR_MAX, -slope, 0.0)


MEASURES = {"t": lambda schedule, t: 1.0, "log_snr": _rate}


def denoising_loss(
    key: Key,
    predict: Predict,
    schedule: Schedule,
    kind: Kind,
    x0: Tree,
    t: Times,
    *,
    weighting: Callable[[Any], Any] | None = None,
    measure: str = "t",
    sigma_data: PerExample = 0.5,
    mask: Tree | None = None,
    eps: Tree | None = None,
) -> Float[Array, " batch"]:
    """The denoising loss (score matching or flow matching) of each example, its mean over dimensions: (B,).

    With `weightings.simple()` the loss is L_simple of DDPM. Without a weighting it is the loss of flow matching for
    `velocity`, and the loss of EDM for `edm` (`weightings.edm` gives the same loss with any other kind). If t is not
    uniform and the objective must stay the same, multiply the losses by the weights of the draw.

    Args:
      key: () or (B,); consumed.
      predict: (x, t) -> y.
      schedule: noise schedule.
      kind: the prediction y, a key of `diffax.predictions.KINDS`.
      x0: (B, ...) clean data.
      t: () or (B,) training times.
      weighting: w(log_snr), a factor of the squared error of eps, from `diffax.losses.weightings` or your own; None
        (default) is the plain mean squared error of the prediction.
      measure: "t" (default) if w is a weight per unit of t; "log_snr" if it is a weight per unit of log-SNR, such as
        `sigmoid` and `elbo`.
      sigma_data: standard deviation of the data, for the kind `edm` alone; default 0.5.
      mask: true for the entries that belong to an example, of the shape of the leading axes of x0, such as (B, N) for
        padded sets (B, N, d). Outside, x is 0 for the network, and the mean leaves these entries out. None (default)
        for no padding.
      eps: the other end of the path, like x0, from `losses.couplings` or of given pairs; None (default) for noise.

    Returns:
      (B,) losses.

    Raises:
      ValueError: if the kind or the measure is unknown, the kind is eps or score with zero terminal SNR, the measure is
        "log_snr" without a weighting, the prediction does not have the shape of x0, t or a weight is neither () nor
        (B,), the mask does not fit x0, or x0 is not of a float type.

    Source: Ho et al. 2020, eq. 14; Lipman et al. 2023, eq. 14 (`velocity`); Karras et al. 2022, eq. 8 (`edm`);
    Kingma & Gao 2023 (weightings).

    >>> from diffax import schedules
    >>> from diffax.losses import weightings
    >>> x0, t = jnp.ones((3, 2)), jnp.array([0.2, 0.5, 0.8])
    >>> w = weightings.min_snr(gamma=5.0)
    >>> denoising_loss(jax.random.key(0), lambda x, t: x, schedules.Cosine(), "v", x0, t, weighting=w).shape
    (3,)
    """
    check_function("predict", predict, "a function (x, t) -> y")
    check_kind(kind, schedule)
    check_float("x0", x0)
    check_per_example(x0, t=t, sigma_data=sigma_data)
    rate = choose("measure", measure, MEASURES)
    if weighting is None and measure != "t":
        raise ValueError(f"measure must be 't' without a weighting, got {measure!r}")
    check_mask(x0, mask)
    x0 = inside(x0, mask)
    eps = random.noise(random.stream(key, "denoising_loss"), x0) if eps is None else inside(eps, mask)
    check_like("eps", eps, x0)
    y = prediction_target(kind, schedule, x0, eps, t, sigma_data=sigma_data)
    y_hat = predict(inside(diffuse(schedule, x0, eps, t), mask), t)
    check_like("predict(x, t)", y_hat, x0)

    def squared_error(u: Leaf, v: Leaf) -> Array:
        dtype = promoted(u.dtype, v.dtype, jnp.float32)
        return jnp.square(u.astype(dtype) - v.astype(dtype))

    loss: Array = mean(jax.tree.map(squared_error, y, y_hat), mask)
    if weighting is None:
        return loss
    alpha, sigma, log_snr = schedule(t)
    a, b = row(kind, schedule, t, sigma_data=sigma_data)
    weight = weighting(log_snr)
    check_per_example(x0, **{"weighting(log_snr)": weight})
    loss = rate(schedule, t) * weight * (alpha / (alpha * b - sigma * a)) ** 2 * loss
    return loss


def drop_labels(
    key: Key, labels: Shaped[Any, " batch"], null_label: int, *, p_uncond: Scalar
) -> Shaped[Array, " batch"]:
    """Replace each label by the null label with probability p_uncond, to train for classifier-free guidance.

    Args:
      key: () or (B,); consumed.
      labels: (B,).
      null_label: the label of the unconditional model.
      p_uncond: () or (B,), in [0, 1], may be traced.

    Returns:
      (B,) labels.

    Raises:
      ValueError: if a concrete p_uncond is outside [0, 1].

    Source: Ho & Salimans 2021, algorithm 1.
    """
    check("p_uncond", p_uncond, interval("[0, 1]"))
    check_per_example(labels, p_uncond=p_uncond)
    drop = random.unit_interval(random.stream(key, "drop_labels"), batch_size(labels)) < p_uncond
    return jnp.where(drop, null_label, labels)
