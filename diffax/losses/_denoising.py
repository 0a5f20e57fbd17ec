"""Training losses.

    L = E_{t, eps} |y_hat(x_t, t) - y|^2,   x_t = alpha x0 + sigma eps,   y = a x0 + b eps

A weighting w(lambda) weighs the error of eps, whatever is predicted (Kingma & Gao 2023):

    L = E w(lambda_t) |eps_hat - eps|^2 = E w(lambda_t) (alpha / det)^2 |y_hat - y|^2,   det = alpha b - sigma a

Weightings are in `diffax.losses.weightings`, draws of t in `diffax.losses.training_times`. With measure "log_snr" a
weighting counts per unit of log-SNR, so that over uniform t the loss depends on the schedule through its ends alone:

    L = E_t -lambda'(t) w(lambda_t) |eps_hat - eps|^2 = int w(lambda) |eps_hat - eps|^2 dlambda
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffax import random
from diffax._checks import check, check_float, check_function, check_like, check_per_example, choose, interval
from diffax._pytrees import as_float, batch_size, promoted
from diffax.predictions import check_kind, diffuse, row
from diffax.predictions import target as prediction_target
from diffax.schedules._curve import LOG_SNR_MAX
from diffax.typing import Array, Float, Key, Kind, Leaf, PerExample, Predict, Scalar, Schedule, Shaped, Times, Tree


def _rate(schedule: Schedule, t: Times) -> Any:
    """-d lambda / dt; 0 where lambda is clipped, since there it does not change."""
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
) -> Float[Array, " batch"]:
    """The denoising (score-matching, flow-matching) loss of each example, its mean over dimensions: (B,).

    Args:
      key: shape () or (B,); consumed.
      predict: (x, t) -> y.
      schedule: noise schedule.
      kind: what y is, a key of `diffax.predictions.KINDS`.
      x0: (B, ...) clean data.
      t: () or (B,) training times.
      weighting: w(log_snr) on the error of eps, from `diffax.losses.weightings` or your own; None leaves the plain mean
        square of what is predicted.
      measure: what the weighting counts: "t", equal steps of t, or "log_snr", equal steps of log-SNR, as `sigmoid`
        and `likelihood` are meant.
      sigma_data: standard deviation of the data, of the prediction `edm` alone.

    It reduces to DDPM's L_simple with `weightings.simple()`, to the loss of flow matching for `velocity` without a
    weighting, to that of EDM for `edm` without one (which is `weightings.edm` on any other kind).
    Times that are not uniform: multiply by the draw's weight where the objective must stay the same.

    Source: Ho et al. 2020, eq. 14; Lipman et al. 2023, eq. 14 (`velocity`); Karras et al. 2022, eq. 8 (`edm`);
    Kingma & Gao 2023 (weightings).

    Raises:
      ValueError: for an unknown kind, eps or score with zero terminal SNR, an unknown measure, or measure "log_snr"
        without a weighting; for a prediction that has not the shape of x0, a t or a weight that is neither () nor (B,),
        or an x0 that is not of a float type.

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
    eps = random.noise(random.stream(key, "denoising_loss"), x0)
    y = prediction_target(kind, schedule, x0, eps, t, sigma_data=sigma_data)
    y_hat = predict(diffuse(schedule, x0, eps, t), t)
    check_like("predict(x, t)", y_hat, x0)

    def squared_error(u: Leaf, v: Leaf) -> Array:
        dtype = promoted(u.dtype, v.dtype, jnp.float32)
        return jnp.square(u.astype(dtype) - v.astype(dtype))

    square = jax.tree.map(squared_error, y, y_hat)
    size = batch_size(x0)
    total = sum(leaf.reshape(size, -1).sum(1) for leaf in jax.tree.leaves(square))
    loss: Array = total / sum(leaf.size // size for leaf in jax.tree.leaves(square))
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
    """(B,) labels, each replaced by the null label with probability p_uncond, to train for guidance.

    Ho & Salimans 2021, algorithm 1.

    Raises:
      ValueError: if p_uncond is known to lie outside [0, 1].
    """
    check("p_uncond", p_uncond, interval("[0, 1]"))
    check_per_example(labels, p_uncond=p_uncond)
    drop = random.unit_interval(random.stream(key, "drop_labels"), batch_size(labels)) < p_uncond
    return jnp.where(drop, null_label, labels)
