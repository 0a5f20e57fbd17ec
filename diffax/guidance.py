r"""Guidance: functions from denoisers to a denoiser.

With c and u the conditional and the unconditional x0, d = c - u their difference, w a weight:

    classifier_free_guidance      u + w d; with u from a worse model of the same condition it is autoguidance
    adaptive_projected_guidance   c + (w - 1) (d_orthogonal + eta d_parallel),  d first clipped to the norm r
    guidance_interval             guided inside an interval of noise levels, plain outside
    guidance_rescale              the guided x0 with (part of) the standard deviation of the conditional x0
    classifier_guidance           x0 + w sigma^2 / alpha grad_x log p(y | x_t)

On denoisers a linear rule is the same for every prediction kind, since x0 is affine in each of them. All functions act
only on x0: learned variances (`Moments`) are passed through from the first denoiser argument, or from the denoiser that
is selected.
A weight w is a number, an array of shape () or (B,), or a function of t; it may be traced.
Methods that change the renoising are wrappers of a sampler: `cfg_plus_plus`, `guidance_momentum`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffax._checks import (
    check,
    check_function,
    check_per_example,
    check_schedule,
    check_weight,
    choose,
    interval,
    number,
    positive,
)
from diffax._pytrees import batch_size, combine, promoted, safe_sqrt, select
from diffax.denoisers import Moments, like_x, with_x0, x0_of
from diffax.predictions import KINDS, check_kind, split, target
from diffax.typing import (
    Array,
    Conditioning,
    Denoiser,
    Guide,
    Kind,
    Leaf,
    PerExample,
    Predict,
    Scalar,
    Schedule,
    Times,
    Tree,
    Weight,
)


def _weight_at(name: str, weight: Weight, x: Tree, t: Times) -> Any:
    """The value of a weight at t, checked against the batch size of x."""
    value = weight(t) if callable(weight) else weight
    check_per_example(x, **{name: value})
    return jnp.asarray(value)


def _is_literal(weight: Weight, value: int) -> bool:
    """Whether the weight is a Python number with this value, known without tracing."""
    return isinstance(weight, (int, float)) and weight == value


def _check_denoisers(**branches: object) -> None:
    """Raise `ValueError` for a branch that is not a denoiser."""
    for name, branch in branches.items():
        check_function(name, branch, "a denoiser (x, t) -> x0")


def classifier_free_guidance(conditional: Denoiser, unconditional: Denoiser, weight: Weight) -> Denoiser:
    """Classifier-free guidance: x0 = u + w (c - u), with c and u from the two denoisers.

    If one network computes both, `batched_classifier_free_guidance` calls it once. With a worse model of the same
    condition (smaller, or trained for a shorter time) as `unconditional` it is autoguidance.

    Args:
      conditional: (x, t) -> c with the condition bound.
      unconditional: (x, t) -> u, such as the same network with its null label.
      weight: w; 1 is conditional, 0 unconditional, > 1 stronger guidance. For a Python number 0 or 1 the branch
        without effect is not called and may be None; the other one is returned unchanged, so its results are not
        checked.

    Raises:
      ValueError: if a branch with an effect is missing; when called, here and for every guidance in this module, if the
        result of a denoiser does not have the shape of x, or the shape of the weight is neither () nor (B,).

    Source: Ho & Salimans 2021, eq. 6; the w of the paper is our w - 1. Autoguidance: Karras et al. 2024, eq. 6.

    >>> denoise = classifier_free_guidance(lambda x, t: 2.0 * x, lambda x, t: x, 3.0)
    >>> denoise(jnp.ones(1), 0.5).tolist()
    [4.0]
    >>> classifier_free_guidance(lambda x, t: 2.0 * x, lambda x, t: x, lambda t: 4 * t)(jnp.ones(1), 0.25).tolist()
    [2.0]
    """
    if _is_literal(weight, 1):
        _check_denoisers(conditional=conditional)
        return conditional
    if _is_literal(weight, 0):
        _check_denoisers(unconditional=unconditional)
        return unconditional
    _check_denoisers(conditional=conditional, unconditional=unconditional)
    check_weight("weight", weight)
    conditional, unconditional = like_x("conditional", conditional), like_x("unconditional", unconditional)

    def denoise(x: Tree, t: Times, *s: Times) -> Any:
        w, c = _weight_at("weight", weight, x, t), conditional(x, t, *s)
        return with_x0(c, combine((w, x0_of(c)), (1 - w, x0_of(unconditional(x, t, *s)))))

    return denoise


def batched_guidance(
    guide: Guide, denoise: Callable[..., Any], condition: Conditioning, null: Conditioning
) -> Denoiser:
    """Guidance of two branches with one call of a network, at twice the batch size.

    `guide` receives two denoisers that return the results c and u of this call. It may call each any number of times,
    but only at the (x, t) of the call:

        def guide(c, u):
            return guidance_rescale(classifier_free_guidance(c, u, 7.5), c, 0.7)

        batched_guidance(guide, denoise, condition, null)

    Args:
      guide: (conditional, unconditional) -> denoiser.
      denoise: (x, t, condition) -> x0, or (x, t, s, condition) for a flow map; x, condition: leaves (2B, ...), t: ()
        or (2B,). Its result for an example must
        not depend on the other examples. The two branches of an example are neighbours in the batch, so that a batch
        that is sharded over devices is not moved.
      condition: the condition of c, a tree with leaves (B, ...), or () for the same label in each example.
      null: the condition of u, a tree of the same structure; its leaves broadcast to those of `condition`.

    Raises:
      ValueError: if `null` is missing, is not a tree like `condition`, or does not broadcast to its shapes.

    >>> denoise = lambda x, t, label: x * label
    >>> guided = batched_guidance(lambda c, u: classifier_free_guidance(c, u, 3.0), denoise, jnp.array([2.0, 5.0]), 1.0)
    >>> guided(jnp.ones(2), 0.5).tolist()
    [4.0, 13.0]
    """
    _check_null(condition, null)

    def interleave(first: Leaf, second: Leaf) -> Any:
        return jnp.stack([first, second], 1).reshape(2 * len(first), *first.shape[1:])

    def guided(x: Tree, *times: Times) -> Any:
        x = jax.tree.map(jnp.asarray, x)
        size = len(jax.tree.leaves(x)[0])

        def conditions(c: Scalar, n: Scalar) -> Any:
            c = jnp.asarray(c)
            c = c if c.ndim else jnp.broadcast_to(c, (size,))
            return interleave(c, jnp.broadcast_to(jnp.asarray(n), c.shape))

        condition2 = jax.tree.map(conditions, condition, null)
        times2 = [jnp.repeat(t, 2, axis=0) if jnp.ndim(t) else t for t in times]
        x2 = jax.tree.map(lambda v: interleave(v, v), x)
        x0 = like_x("denoise", lambda x, *times: denoise(x, *times, condition2))(x2, *times2)
        c, u = (jax.tree.map(lambda v, i=i: v[i::2], x0) for i in range(2))
        return guide(lambda x, *times: c, lambda x, *times: u)(x, *times)

    return guided


def _check_null(condition: Conditioning, null: Conditioning) -> None:
    """Raise `ValueError` unless `null` is a tree like `condition` whose leaves broadcast to it."""
    if null is None:
        raise ValueError("null must be the condition of the unconditional branch, got None")
    structures: list[Any] = [jax.tree.structure(v) for v in (condition, null)]
    if structures[0] != structures[1]:
        raise ValueError(f"null must be a tree like condition, {structures[0]}, got {structures[1]}")
    for c, n in zip(*map(jax.tree.leaves, (condition, null)), strict=True):
        shape = jnp.shape(c)
        if jnp.ndim(n) > len(shape) or any(m not in (1, k) for m, k in zip(jnp.shape(n)[::-1], shape[::-1])):  # noqa: B905
            raise ValueError(f"null must broadcast to the condition's shape {shape}, got {jnp.shape(n)}")


def batched_classifier_free_guidance(
    denoise: Callable[..., Any], condition: Conditioning, null: Conditioning, weight: Weight
) -> Denoiser:
    """`classifier_free_guidance` with one call of the network for both branches: x0 = u + w (c - u).

    Args:
      denoise: (x, t, condition) -> x0, as in `batched_guidance`. For a Python weight of 0 or 1 its batch size is B and
        not 2B, as only one branch is needed.
      condition: a tree with leaves (B, ...) or ().
      null: the condition of u, a tree of the same structure.
      weight: w, as for `classifier_free_guidance`.

    Raises:
      ValueError: as in `batched_guidance`; a weight that is the Python number 1 needs no null.

    >>> guided = batched_classifier_free_guidance(lambda x, t, label: x * label, jnp.array([2.0, 5.0]), 1.0, 3.0)
    >>> guided(jnp.ones(2), 0.5).tolist()
    [4.0, 13.0]
    """
    if _is_literal(weight, 1):
        return lambda x, *times: denoise(x, *times, condition)
    _check_null(condition, null)
    if _is_literal(weight, 0):
        unconditional = jax.tree.map(lambda c, n: jnp.broadcast_to(n, jnp.shape(c)), condition, null)
        return lambda x, *times: denoise(x, *times, unconditional)
    return batched_guidance(lambda c, u: classifier_free_guidance(c, u, weight), denoise, condition, null)


def guidance_interval(
    guided: Denoiser,
    plain: Denoiser,
    low: PerExample = 0.0,
    high: PerExample = 1.0,
    *,
    of: Callable[[Any], Any] | None = None,
) -> Denoiser:
    """Guidance where low <= t <= high, the plain denoiser elsewhere.

    If t and the bounds are scalars, the branch that is not chosen costs nothing at run time (except under `vmap`).

    Args:
      guided: (x, t) -> x0 inside the interval.
      plain: (x, t) -> x0 outside, usually the conditional denoiser.
      low: () or (B,), may be traced. Default 0.
      high: () or (B,), may be traced; below `low` the interval is empty. Default 1.
      of: the bounded quantity as a function of t, such as `schedule.log_snr` or `lambda t: schedule(t).sigma`; None
        for t.

    Raises:
      ValueError: if a denoiser is missing, or a bound is known to be nan; when called, if only one of the two denoisers
        returns `Moments`.

    Source: Kynkäänniemi et al. 2024, eq. 6, with an interval of sigma.

    >>> denoise = guidance_interval(lambda x, t: 2.0 * x, lambda x, t: x, 0.2, 0.8)
    >>> denoise(jnp.ones(3), jnp.array([0.1, 0.2, 0.9])).tolist()
    [1.0, 2.0, 1.0]
    """
    _check_denoisers(guided=guided, plain=plain)
    guided, plain = like_x("guided", guided), like_x("plain", plain)
    for name, bound in (("low", low), ("high", high)):
        check(name, bound, number)

    def denoise(x: Tree, t: Times, *s: Times) -> Any:
        level = jnp.asarray(t if of is None else of(t))
        check_per_example(x, low=low, high=high)
        inside = (low <= level) & (level <= high)
        kinds = []

        def cast(tree: Tree) -> Any:
            return jax.tree.map(lambda like, v: v.astype(combine((1.0, like)).dtype), x, tree)

        def unify(output: Tree) -> Any:
            """The output in the dtype of x: both branches of `cond` must have the same structure and dtypes."""
            kinds.append("Moments" if isinstance(output, Moments) else "x0")
            if len(set(kinds)) == 2:
                raise ValueError(f"plain must return {kinds[0]} like guided, got {kinds[1]}")
            return Moments(*map(cast, output)) if isinstance(output, Moments) else cast(output)

        if inside.ndim == 0:
            return jax.lax.cond(inside, lambda: unify(guided(x, t, *s)), lambda: unify(plain(x, t, *s)))
        return select(inside, unify(guided(x, t, *s)), unify(plain(x, t, *s)))

    return denoise


def guidance_rescale(
    guided: Denoiser,
    conditional: Denoiser,
    strength: Weight,
    *,
    kind: Kind = "x0",
    schedule: Schedule | None = None,
    sigma_data: PerExample = 0.5,
) -> Denoiser:
    """Guidance rescaled to the standard deviation of the conditional denoiser: y = g (phi std(c) / std(g) + 1 - phi).

    std is taken over all axes of an example, separately in each leaf of x. The paper rescales the prediction of its
    network, v; `kind="v"` with a schedule does this, by converting y = a x0 + b eps. The default rescales x0, which has
    the same purpose but gives other numbers.

    Args:
      guided: (x, t) -> g.
      conditional: (x, t) -> c.
      strength: phi, () or (B,), in [0, 1], or a function of t; 0 changes nothing, the paper uses 0.7.
      kind: the prediction whose standard deviation is matched, a key of `diffax.predictions.KINDS`. Default x0.
      schedule: noise schedule, required for a kind other than x0.
      sigma_data: standard deviation of the data, only for kind `edm`. Default 0.5.

    Raises:
      ValueError: if a denoiser is missing, if the strength is known to be outside [0, 1], for an unknown kind, or if
        the kind needs a schedule and there is none.

    Source: Lin et al. 2024, eq. 15 and 16.

    >>> denoise = guidance_rescale(lambda x, t: 3 * x, lambda x, t: x, 0.5)
    >>> denoise(jnp.array([[-1.0, 1.0]]), 0.5).tolist()
    [[-2.0, 2.0]]
    """
    _check_denoisers(guided=guided, conditional=conditional)
    guided, conditional = like_x("guided", guided), like_x("conditional", conditional)
    choose("kind", kind, KINDS) if schedule is None else check_kind(kind, schedule)
    if not callable(strength):
        check("strength", strength, interval("[0, 1]"))
    if kind != "x0" and schedule is None:
        raise ValueError(f"schedule must be a noise schedule to rescale kind {kind!r}, got None")

    def std(v: Leaf) -> Any:
        v = v.reshape(len(v), -1).astype(promoted(v.dtype, jnp.float32))
        return safe_sqrt(jnp.mean(jnp.square(v - v.mean(1, keepdims=True)), 1))

    def denoise(x: Tree, t: Times, *s: Times) -> Any:
        phi = _weight_at("strength", strength, x, t)

        def prediction(x0: Tree) -> Any:
            if schedule is None or kind == "x0":
                return x0
            alpha, sigma, _ = schedule(t)
            return target(kind, schedule, x0, combine((1 / sigma, x), (-alpha / sigma, x0)), t, sigma_data=sigma_data)

        def matched(g: Leaf, c: Leaf) -> Any:
            std_g = std(g)
            ratio = jnp.where(std_g > 0, std(c) / jnp.where(std_g > 0, std_g, 1.0), 1.0)
            return combine((1 + phi * (ratio - 1), g))

        output = guided(x, t, *s)
        y = jax.tree.map(matched, *(prediction(x0_of(v)) for v in (output, conditional(x, t, *s))))
        if schedule is None or kind == "x0":
            return with_x0(output, y)
        return with_x0(output, split(kind, schedule, y, x, t, sigma_data=sigma_data)[0])

    return denoise


def adaptive_projected_guidance(
    conditional: Denoiser,
    unconditional: Denoiser,
    weight: Weight,
    *,
    eta: PerExample = 0.0,
    threshold: PerExample = jnp.inf,
) -> Denoiser:
    """Adaptive projected guidance: a smaller weight for the part of d parallel to c, which only adds saturation.

        d  = (c - u) min(1, r / |c - u|)
        x0 = c + (w - 1) (d_orthogonal + eta d_parallel),   d_parallel = <d, c> / <c, c> c

    Norms and products are those of an example, over all its axes and leaves. eta = 1 without a threshold is
    `classifier_free_guidance`. The momentum of the paper needs a state, so it is a wrapper of the sampler:
    `guidance_momentum`.

    Args:
      conditional: (x, t) -> c.
      unconditional: (x, t) -> u.
      weight: w, as for `classifier_free_guidance`.
      eta: factor of the parallel part, () or (B,), may be traced. Default 0.
      threshold: r > 0, () or (B,), may be traced. Default infinity, which does not clip.

    Raises:
      ValueError: if a branch is missing, or the threshold is known not to be positive.

    Source: Sadat et al. 2024, eq. 6 to 10.

    >>> denoise = adaptive_projected_guidance(lambda x, t: x, lambda x, t: x - jnp.array([[1.0, 1.0]]), 3.0)
    >>> denoise(jnp.array([[1.0, 0.0]]), 0.5).tolist()
    [[1.0, 2.0]]
    """
    _check_denoisers(conditional=conditional, unconditional=unconditional)
    conditional, unconditional = like_x("conditional", conditional), like_x("unconditional", unconditional)
    check_weight("weight", weight)
    check("eta", eta, number)
    check("threshold", threshold, positive)

    def dot(a: Scalar, b: Scalar) -> Any:
        def leaf(u: Leaf, v: Leaf) -> Array:
            return jnp.sum((u * v).reshape(len(u), -1), 1, dtype=promoted(u.dtype, jnp.float32))

        return sum(jax.tree.leaves(jax.tree.map(leaf, a, b)))

    def denoise(x: Tree, t: Times, *s: Times) -> Any:
        check_per_example(x, eta=eta, threshold=threshold)
        output = conditional(x, t, *s)
        c = jax.tree.map(jnp.asarray, x0_of(output))
        d = combine((1.0, c), (-1.0, x0_of(unconditional(x, t, *s))))
        norm_d, c_c = safe_sqrt(dot(d, d)), dot(c, c)
        clipped = norm_d > threshold
        # The inner `where` replaces norm_d where it is not used. Otherwise its gradient there would be 0 * inf = NaN
        # (r = inf, or norm_d = 0).
        shrink = jnp.where(clipped, threshold / jnp.where(clipped, norm_d, 1.0), 1.0)
        d_c = dot(d, c) / jnp.where(c_c > 0, c_c, 1.0)
        scale = (_weight_at("weight", weight, x, t) - 1) * shrink
        return with_x0(output, combine((1 + scale * (eta - 1) * d_c, c), (scale, d)))

    return denoise


def classifier_guidance(denoise: Denoiser, log_prob: Predict, schedule: Schedule, scale: PerExample) -> Denoiser:
    """Classifier guidance: x0 + w sigma^2 / alpha grad_x log p(y | x_t).

    By Tweedie's formula this is the denoiser with the score of p(x_t) p(y | x_t)^w. With w = 1 and the true p(y | x_t)
    it is the denoiser of the conditional distribution.

    Args:
      denoise: (x, t) -> x0.
      log_prob: (x, t) -> (B,), the log-probability of the label from a classifier of noisy x_t; for a classifier that
        was trained with another schedule see `diffax.denoisers.reschedule`.
      schedule: the schedule of `denoise`.
      scale: w; for the Python number 0 the classifier is not called.

    Raises:
      ValueError: if the denoiser or the classifier is missing; when called, if log_prob does not return shape (B,).

    Source: Dhariwal & Nichol 2021, eq. 14 (algorithm 2, which applies the same rule to eps).

    >>> import diffax
    >>> guided = classifier_guidance(lambda x, t: 0 * x, lambda x, t: 3 * x.sum(-1), diffax.LogLinear(0.01, 1.0), 2.0)
    >>> guided(jnp.ones((1, 2)), 1.0).tolist()
    [[6.0, 6.0]]
    """
    _check_denoisers(denoise=denoise)
    check_function("log_prob", log_prob, "a function (x, t) -> (B,)")
    check_schedule(schedule)
    if _is_literal(scale, 0):
        return denoise
    check_weight("scale", scale)

    denoise = like_x("denoise", denoise)

    def total(x: Tree, t: Times) -> Any:
        value, size = log_prob(x, t), batch_size(x)
        if jnp.shape(value) != (size,):
            raise ValueError(f"log_prob(x, t) must have shape ({size},), got {jnp.shape(value)}")
        return jnp.sum(value)

    def guided(x: Tree, t: Times) -> Any:
        # Each log-probability depends on its own example only, so the gradient of the sum contains the gradient of each
        # example.
        gradient = jax.grad(total)(x, t)
        alpha, sigma, _ = schedule(t)
        output = denoise(x, t)
        w = _weight_at("scale", scale, x, t)
        return with_x0(output, combine((1.0, x0_of(output)), (w * sigma**2 / alpha, gradient)))

    return guided
