r"""Guidance: functions from denoisers to a denoiser.

With c and u the conditional and the unconditional x0, d = c - u their difference, w a weight:

    classifier_free_guidance      u + w d; with u of a worse model of the same condition it is autoguidance
    adaptive_projected_guidance   c + (w - 1) (d_orthogonal + eta d_parallel),  d first cut to the norm r
    guidance_interval             guided inside an interval of noise levels, plain outside
    guidance_rescale              the guided answer with (part of) the conditional answer's standard deviation
    classifier_guidance           x0 + w sigma^2 / alpha grad_x log p(y | x_t)

On denoisers a linear rule is the same for every prediction kind, since x0 is affine in each of them. All of them act on
x0 alone: of learned variances (`Moments`) that of the conditional or guided answer stays.
A weight w is a number, an array of shape () or (B,), or a function of t; it may be traced.
What acts on the renoising instead is a wrapper of a sampler: `cfg_plus_plus`, `guidance_momentum`.
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
from diffax._pytrees import batch_size, combine, expand, promoted, safe_sqrt
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


def _at(name: str, weight: Weight, x: Tree, t: Times) -> Any:
    value = weight(t) if callable(weight) else weight
    check_per_example(x, **{name: value})
    return jnp.asarray(value)


def _literal(weight: Weight, value: int) -> bool:
    return isinstance(weight, (int, float)) and weight == value


def _need(**branches: object) -> None:
    for name, branch in branches.items():
        check_function(name, branch, "a denoiser (x, t) -> x0")


def classifier_free_guidance(conditional: Denoiser, unconditional: Denoiser, weight: Weight) -> Denoiser:
    """Classifier-free guidance: x0 = u + w (c - u), c and u the two denoisers' answers.

    Ho & Salimans 2021, eq. 6, whose w is this one less 1. Where one network gives both answers,
    `batched_classifier_free_guidance` calls it once. With `unconditional` a worse model of the same condition, less
    trained or smaller, it is autoguidance (Karras et al. 2024, eq. 6).

    Args:
      conditional: (x, t) -> c with the condition bound.
      unconditional: (x, t) -> u, e.g. the same network at its null label.
      weight: w; 1 is conditional, 0 unconditional, > 1 stronger guidance. A Python number 0 or 1 saves the call
        that has no say.

    Raises:
      ValueError: if a branch that has a say is missing; on calling it, if an answer has not the shape of x, or the
        weight is neither () nor (B,), as of every guidance here.

    >>> denoise = classifier_free_guidance(lambda x, t: 2.0 * x, lambda x, t: x, 3.0)
    >>> denoise(jnp.ones(1), 0.5).tolist()
    [4.0]
    >>> classifier_free_guidance(lambda x, t: 2.0 * x, lambda x, t: x, lambda t: 4 * t)(jnp.ones(1), 0.25).tolist()
    [2.0]
    """
    if _literal(weight, 1):
        _need(conditional=conditional)
        return conditional
    if _literal(weight, 0):
        _need(unconditional=unconditional)
        return unconditional
    _need(conditional=conditional, unconditional=unconditional)
    check_weight("weight", weight)
    conditional, unconditional = like_x("conditional", conditional), like_x("unconditional", unconditional)

    def denoise(x: Tree, t: Times) -> Any:
        w, c = _at("weight", weight, x, t), conditional(x, t)
        return with_x0(c, combine((w, x0_of(c)), (1 - w, x0_of(unconditional(x, t)))))

    return denoise


def batched_guidance(
    guide: Guide, denoise: Callable[[Any, Any, Any], Any], condition: Conditioning, null: Conditioning
) -> Denoiser:
    """Any guidance of two branches for the price of one call of a network, at twice the batch size.

    `guide` receives two denoisers that hold the answers c and u of this call, so it may ask each of them as often as
    it likes, but only at the (x, t) of the call:

        def guide(c, u):
            return guidance_rescale(classifier_free_guidance(c, u, 7.5), c, 0.7)

        batched_guidance(guide, denoise, condition, null)

    Args:
      guide: (conditional, unconditional) -> denoiser.
      denoise: (x, t, condition) -> x0; x, condition: leaves (2B, ...), t: () or (2B,). It must treat each example by
        itself; the two branches of an example are neighbours, which leaves a batch that is split over devices where
        it is.
      condition: what c is conditioned on, a tree with leaves (B, ...), or () for the same label everywhere.
      null: the same tree for u; leaves broadcast against those of `condition`.

    Raises:
      ValueError: if `null` is missing, another tree than `condition`, or does not broadcast to its shapes.

    >>> denoise = lambda x, t, label: x * label
    >>> guided = batched_guidance(lambda c, u: classifier_free_guidance(c, u, 3.0), denoise, jnp.array([2.0, 5.0]), 1.0)
    >>> guided(jnp.ones(2), 0.5).tolist()
    [4.0, 13.0]
    """
    _check_null(condition, null)

    def pair(first: Leaf, second: Leaf) -> Any:
        return jnp.stack([first, second], 1).reshape(2 * len(first), *first.shape[1:])

    def guided(x: Tree, t: Times) -> Any:
        x = jax.tree.map(jnp.asarray, x)
        size = len(jax.tree.leaves(x)[0])

        def conditions(c: Scalar, n: Scalar) -> Any:
            c = jnp.asarray(c)
            c = c if c.ndim else jnp.broadcast_to(c, (size,))
            return pair(c, jnp.broadcast_to(jnp.asarray(n), c.shape))

        both = jax.tree.map(conditions, condition, null)
        t2 = jnp.repeat(t, 2, axis=0) if jnp.ndim(t) else t
        x2 = jax.tree.map(lambda v: pair(v, v), x)
        x0 = like_x("denoise", lambda x, t: denoise(x, t, both))(x2, t2)
        c, u = (jax.tree.map(lambda v, i=i: v[i::2], x0) for i in range(2))
        return guide(lambda x, t: c, lambda x, t: u)(x, t)

    return guided


def _check_null(condition: Conditioning, null: Conditioning) -> None:
    if null is None:
        raise ValueError("null must be the condition of the unconditional branch, got None")
    trees: list[Any] = [jax.tree.structure(v) for v in (condition, null)]
    if trees[0] != trees[1]:
        raise ValueError(f"null must be a tree like condition, {trees[0]}, got {trees[1]}")
    for c, n in zip(*map(jax.tree.leaves, (condition, null)), strict=True):
        shape = jnp.shape(c)
        if jnp.ndim(n) > len(shape) or any(m not in (1, k) for m, k in zip(jnp.shape(n)[::-1], shape[::-1])):  # noqa: B905
            raise ValueError(f"null must broadcast to the condition's shape {shape}, got {jnp.shape(n)}")


def batched_classifier_free_guidance(
    denoise: Callable[[Any, Any, Any], Any], condition: Conditioning, null: Conditioning, weight: Weight
) -> Denoiser:
    """`classifier_free_guidance` with one call of the network for both branches: x0 = u + w (c - u).

    Args:
      denoise: (x, t, condition) -> x0, as in `batched_guidance`; for x0 of half the batch at a Python weight of 0 or 1.
      condition: a tree with leaves (B, ...) or ().
      null: its value for the unconditional branch.
      weight: w.

    Raises:
      ValueError: as in `batched_guidance`, unless the weight is the number 1, which needs no null.

    >>> guided = batched_classifier_free_guidance(lambda x, t, label: x * label, jnp.array([2.0, 5.0]), 1.0, 3.0)
    >>> guided(jnp.ones(2), 0.5).tolist()
    [4.0, 13.0]
    """
    if _literal(weight, 1):
        return lambda x, t: denoise(x, t, condition)
    _check_null(condition, null)
    if _literal(weight, 0):
        return lambda x, t: denoise(x, t, jax.tree.map(lambda c, n: jnp.broadcast_to(n, jnp.shape(c)), condition, null))
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

    Kynkäänniemi et al. 2024, eq. 6, who choose an interval of sigma. Where t and the bounds are one number for the
    batch, the branch that is not chosen costs nothing at run time (but under `vmap`).

    Args:
      guided: (x, t) -> x0 inside.
      plain: (x, t) -> x0 outside, usually the conditional denoiser.
      low: () or (B,), may be traced.
      high: () or (B,), may be traced; below `low` the interval is empty.
      of: what the bounds are bounds of, as a function of t: `schedule.log_snr`, `lambda t: schedule(t).sigma`; None
        for t itself.

    Raises:
      ValueError: if a denoiser is missing, or the bounds are known to be nan; on calling it, if one denoiser alone
        gives `Moments`.

    >>> denoise = guidance_interval(lambda x, t: 2.0 * x, lambda x, t: x, 0.2, 0.8)
    >>> denoise(jnp.ones(3), jnp.array([0.1, 0.2, 0.9])).tolist()
    [1.0, 2.0, 1.0]
    """
    _need(guided=guided, plain=plain)
    guided, plain = like_x("guided", guided), like_x("plain", plain)
    for name, bound in (("low", low), ("high", high)):
        check(name, bound, number)

    def denoise(x: Tree, t: Times) -> Any:
        level = jnp.asarray(t if of is None else of(t))
        check_per_example(x, low=low, high=high)
        inside = (low <= level) & (level <= high)
        kinds = []

        def cast(tree: Tree) -> Any:
            return jax.tree.map(lambda like, v: v.astype(combine((1.0, like)).dtype), x, tree)

        def like_x(answer: Tree) -> Any:  # both branches of a `cond` need one dtype, and one structure
            kinds.append("Moments" if isinstance(answer, Moments) else "x0")
            if len(set(kinds)) == 2:
                raise ValueError(f"plain must give {kinds[0]} as guided does, got {kinds[1]}")
            return Moments(*map(cast, answer)) if isinstance(answer, Moments) else cast(answer)

        if inside.ndim == 0:
            return jax.lax.cond(inside, lambda: like_x(guided(x, t)), lambda: like_x(plain(x, t)))
        return jax.tree.map(lambda g, p: jnp.where(expand(inside, g), g, p), like_x(guided(x, t)), like_x(plain(x, t)))

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
    """Guidance with the conditional answer's contrast: y = g (phi std(c) / std(g) + 1 - phi).

    Lin et al. 2024, eq. 15 and 16. std is over all axes of an example, in each leaf of x by itself. The paper rescales
    what its network predicts, v: `kind="v"` with a schedule does the same, by way of y = a x0 + b eps. The default
    rescales x0; the two agree in their aim, not in their numbers.

    Args:
      guided: (x, t) -> g.
      conditional: (x, t) -> c.
      strength: phi, () or (B,), in [0, 1], or a function of t; 0 changes nothing, the paper's choice is 0.7.
      kind: the prediction whose standard deviation is matched, a key of `diffax.predictions.KINDS`.
      schedule: for another kind than x0.
      sigma_data: standard deviation of the data, of `edm` alone.

    Raises:
      ValueError: if a denoiser is missing, the strength is known to lie outside [0, 1], for an unknown kind, and for
        one that needs a schedule without one.

    >>> denoise = guidance_rescale(lambda x, t: 3 * x, lambda x, t: x, 0.5)
    >>> denoise(jnp.array([[-1.0, 1.0]]), 0.5).tolist()
    [[-2.0, 2.0]]
    """
    _need(guided=guided, conditional=conditional)
    guided, conditional = like_x("guided", guided), like_x("conditional", conditional)
    choose("kind", kind, KINDS) if schedule is None else check_kind(kind, schedule)
    if not callable(strength):
        check("strength", strength, interval("[0, 1]"))
    if kind != "x0" and schedule is None:
        raise ValueError(f"schedule must be given to rescale kind {kind!r}, got None")

    def std(v: Leaf) -> Any:
        v = v.reshape(len(v), -1).astype(promoted(v.dtype, jnp.float32))
        return safe_sqrt(jnp.mean(jnp.square(v - v.mean(1, keepdims=True)), 1))

    def denoise(x: Tree, t: Times) -> Any:
        phi = _at("strength", strength, x, t)

        def prediction(x0: Tree) -> Any:
            if schedule is None or kind == "x0":
                return x0
            alpha, sigma, _ = schedule(t)
            return target(kind, schedule, x0, combine((1 / sigma, x), (-alpha / sigma, x0)), t, sigma_data=sigma_data)

        def matched(g: Leaf, c: Leaf) -> Any:
            spread = std(g)
            ratio = jnp.where(spread > 0, std(c) / jnp.where(spread > 0, spread, 1.0), 1.0)
            return combine((1 + phi * (ratio - 1), g))

        answer = guided(x, t)
        y = jax.tree.map(matched, *(prediction(x0_of(v)) for v in (answer, conditional(x, t))))
        if schedule is None or kind == "x0":
            return with_x0(answer, y)
        return with_x0(answer, split(kind, schedule, y, x, t, sigma_data=sigma_data)[0])

    return denoise


def adaptive_projected_guidance(
    conditional: Denoiser,
    unconditional: Denoiser,
    weight: Weight,
    *,
    eta: PerExample = 0.0,
    threshold: PerExample = jnp.inf,
) -> Denoiser:
    """Adaptive projected guidance: less of the part of guidance that only saturates.

        d  = (c - u) min(1, r / |c - u|)
        x0 = c + (w - 1) (d_orthogonal + eta d_parallel),   d_parallel = <d, c> / <c, c> c

    Sadat et al. 2024, eq. 6 to 10, without momentum, which needs a memory: `guidance_momentum`. Norms and products
    are those of an example, over all its axes and leaves. eta = 1 without a threshold is `classifier_free_guidance`.

    Args:
      conditional: (x, t) -> c.
      unconditional: (x, t) -> u.
      weight: w.
      eta: () or (B,), may be traced; the share of the parallel part that is kept.
      threshold: r > 0, () or (B,), may be traced.

    Raises:
      ValueError: if a branch is missing, or the threshold is known not to be positive.

    >>> denoise = adaptive_projected_guidance(lambda x, t: x, lambda x, t: x - jnp.array([[1.0, 1.0]]), 3.0)
    >>> denoise(jnp.array([[1.0, 0.0]]), 0.5).tolist()
    [[1.0, 2.0]]
    """
    _need(conditional=conditional, unconditional=unconditional)
    conditional, unconditional = like_x("conditional", conditional), like_x("unconditional", unconditional)
    check_weight("weight", weight)
    check("eta", eta, number)
    check("threshold", threshold, positive)

    def dot(a: Scalar, b: Scalar) -> Any:
        def leaf(u: Leaf, v: Leaf) -> Array:
            return jnp.sum((u * v).reshape(len(u), -1), 1, dtype=promoted(u.dtype, jnp.float32))

        return sum(jax.tree.leaves(jax.tree.map(leaf, a, b)))

    def denoise(x: Tree, t: Times) -> Any:
        check_per_example(x, eta=eta, threshold=threshold)
        answer = conditional(x, t)
        c = jax.tree.map(jnp.asarray, x0_of(answer))
        d = combine((1.0, c), (-1.0, x0_of(unconditional(x, t))))
        norm, square = safe_sqrt(dot(d, d)), dot(c, c)
        long = norm > threshold
        # r = inf must leave no inf / norm behind, not even in the gradient.
        shrink = jnp.where(long, threshold / jnp.where(long, norm, 1.0), 1.0)
        along = dot(d, c) / jnp.where(square > 0, square, 1.0)
        push = (_at("weight", weight, x, t) - 1) * shrink
        return with_x0(answer, combine((1 + push * (eta - 1) * along, c), (push, d)))

    return denoise


def classifier_guidance(denoise: Denoiser, log_prob: Predict, schedule: Schedule, scale: PerExample) -> Denoiser:
    """Classifier guidance: x0 + w sigma^2 / alpha grad_x log p(y | x_t).

    The score of p(x_t) p(y | x_t)^w, by Tweedie's formula; Dhariwal & Nichol 2021, eq. 14 (algorithm 2, which does the
    same to eps). With w = 1 and the true p(y | x_t) it is the denoiser of the conditional law.

    Args:
      denoise: (x, t) -> x0.
      log_prob: (x, t) -> (B,), the log-probability of the label under a classifier of noisy x_t; for one that was
        trained with another schedule see `diffax.denoisers.reschedule`.
      schedule: the schedule of `denoise`.
      scale: w; the Python number 0 saves the classifier's call.

    Raises:
      ValueError: if the denoiser or the classifier is missing.

    >>> import diffax
    >>> guided = classifier_guidance(lambda x, t: 0 * x, lambda x, t: 3 * x.sum(-1), diffax.LogLinear(0.01, 1.0), 2.0)
    >>> guided(jnp.ones((1, 2)), 1.0).tolist()
    [[6.0, 6.0]]
    """
    _need(denoise=denoise)
    check_function("log_prob", log_prob, "a function (x, t) -> (B,)")
    check_schedule(schedule)
    if _literal(scale, 0):
        return denoise
    check_weight("scale", scale)

    denoise = like_x("denoise", denoise)

    def total(x: Tree, t: Times) -> Any:
        value, size = log_prob(x, t), batch_size(x)
        if jnp.shape(value) != (size,):
            raise ValueError(f"log_prob(x, t) must have shape ({size},), got {jnp.shape(value)}")
        return jnp.sum(value)

    def guided(x: Tree, t: Times) -> Any:
        slope = jax.grad(total)(x, t)  # examples do not mix: the sum's gradient is each one's
        alpha, sigma, _ = schedule(t)
        answer = denoise(x, t)
        return with_x0(answer, combine((1.0, x0_of(answer)), (_at("scale", scale, x, t) * sigma**2 / alpha, slope)))

    return guided
