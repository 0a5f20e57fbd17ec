r"""One exponential Adams method, of which most multistep samplers are special cases.

In a form of `diffax.samplers.engines.forms` (integrand f, node y, carry, gain, moments M_j), with previous nodes y_1,
y_2 ... and Newton's divided differences, a step of order p is

    predictor   x_s = carry x_t + gain_s sum_(m < p) N_m f[y_t, y_1 .. y_m],     N_m = int prod_(i < m) (y - y_i)
    corrector   x_t += gain_t N_k f[y_1 .. y_k, y_t]     for the step of order k that led to t, once f(x_t) is known

The corrector raises that step's order by one, costs no call, and is an increment: whoever edited x in between keeps his
edit. f is not evaluated again at the corrected x (PEC). Two shortcuts replace the exact M_1 where it stands alone
(a predictor of order 2, the corrector of a step of order 1):

    bh1   h^2 / 2           bh2   h M_0 / 2           (B(h) = h and B(h) = expm1 of Zhao et al. 2023)

Stochastic (form x0): with a = 1 + eta the law's SDE has noise eta, and with h = lambda_s - lambda_t

    x_s = e^(-(a - 1) h) sigma_s / sigma_t x_t + alpha_s sum_m N_m f[..] + sigma_s sqrt(1 - e^(-2 (a - 1) h)) z

    sampler                  form  order  rule   corrector   a
    dpmpp_2m                 x0    2      bh2    -           1        Lu et al. 2022b, algorithm 2
    dpmpp_3m                 x0    3      exact  to start    1        Lu et al. 2022b, appendix B.5, with phi_3 in full
    dpmpp_2m_sde, 3m_sde     x0    2, 3   bh2, exact         1 + eta  Lu et al. 2022b, algorithm 4
    deis                     eps   1-3    exact  -           1        Zhang & Chen 2023, eq. 15 in log rho
    exponential_adams        any   1-4    exact  optional    1        Hochbruck & Ostermann 2010, section 2.5
    lms                      rho   1-4    exact  -           1        Zhang & Chen 2023 (rho AB); Crowson's k-diffusion
    unipc                    both  1-3    bh1/2  yes         1        Zhao et al. 2023, algorithms 1 and 2
    sa_solver                x0    1-3    exact  yes         1 + tau^2  Xue et al. 2023, algorithm 1

History is dropped where a step does not begin at the end of the one before it (a jump of `restart`) or the grid turns
back, and kept over a step of length zero, which changes nothing.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffax import random
from diffax._checks import check, check_per_example, check_schedule, choose, non_negative
from diffax._pytrees import combine, expand, is_zero, safe_sqrt, widen
from diffax.samplers._base import Sampler
from diffax.samplers.engines.forms import Form, begins_in_noise, check_order, evaluate, form_of
from diffax.typing import Denoiser, Grid, Keys, Leaf, PerExample, SamplerState, Scalar, Schedule, Times, Tree

FORM_NAMES = ("x0", "eps", "rho", "flow", "time")


RULES: dict[str, Callable[..., Any]] = {
    "exact": lambda h, moments: moments[1],
    "bh1": lambda h, moments: h * h / 2,
    "bh2": lambda h, moments: h * moments[0] / 2,
}


class History(NamedTuple):
    """The state of a multistep sampler.

    x: (B, ...). values: previous integrands, newest first. nodes: (K, ...) where they were taken. tail: the last
    nodes of the grid. arrived: the end of the last step. used, a: its order and 1 + eta, for the corrector.
    """

    x: Any
    values: tuple[Any, ...]
    nodes: Any
    tail: Any
    arrived: Any
    used: Any
    a: Any


class Method(NamedTuple):
    """The static part of a method: the arguments of `adams` that have the same names."""

    form: Form
    order: int
    rule: Callable[..., Any]
    corrector: Any


def newton_integrals(moments: list[Any], offsets: list[Any]) -> list[Any]:
    """[int prod_(i < m) (u - d_i)] for m = 0 .. len(moments) - 1, with d_0 = 0 and d_i = offsets[i - 1]."""
    polynomial, integrals = [1.0], []
    for moment, root in zip(moments, [0.0, *offsets, 0.0], strict=False):
        del moment
        integrals.append(sum(c * moments[i] for i, c in enumerate(polynomial)))
        raised, lowered = [0.0, *polynomial], [*(-root * c for c in polynomial), 0.0]
        polynomial = [u + v for u, v in zip(raised, lowered, strict=True)]
    return integrals


def divided_difference(nodes: list[Any]) -> list[Any]:
    """The coefficients of f(nodes[j]) in the divided difference f[nodes[0], .., nodes[-1]]."""
    return [1 / math.prod(node - other for i, other in enumerate(nodes) if i != j) for j, node in enumerate(nodes)]


def history_offsets(nodes: Iterable[Any], start: Times, h: PerExample, close: PerExample) -> tuple[list[Any], Any]:
    """Offsets d_i = y_i - start, and how many lie behind `start` by more than `close`, seen in the direction of h.

    Those that do not (a cold start, a grid that turned back) are replaced by distinct ones: nothing divides by 0.
    """
    unit = jnp.where(h == 0, 1.0, h)
    valid, count, last, offsets = h != 0, jnp.zeros(jnp.shape(h), int), jnp.zeros_like(h), []
    for node in nodes:
        valid = valid & ((last - (node - start)) * jnp.sign(h) > close)
        last = jnp.where(valid, node - start, last - unit)
        count = count + valid.astype(count.dtype)
        offsets.append(last)
    return offsets, count


def predictor(method: Method, h: PerExample, a: Scalar, start: Times, state: History) -> tuple[list[Any], Any]:
    """Weights of f_t, f_1 .. in the integral over a step of length h from `start`, and the order they have."""
    order = method.order
    offsets, count = history_offsets(state.nodes[: order - 1], start, h, _close(start, method.form))
    k = 1 + count
    if len(state.tail):
        s, close = start + h, _close(start + h, method.form)
        k = jnp.minimum(k, 1 + sum(((end - s) * jnp.sign(h) > close).astype(int) for end in state.tail))
    moments = method.form.moments(h, max(order, 2), a)
    integrals = newton_integrals(moments[:order], offsets)
    weights = [integrals[0]] + [jnp.zeros_like(h)] * (order - 1)
    for m in range(1, order):
        integral = jnp.where(k == 2, method.rule(h, moments), integrals[1]) if m == 1 else integrals[m]
        integral = jnp.where(k > m, integral, 0.0)
        for j, c in enumerate(divided_difference([0.0, *offsets[:m]])):
            weights[j] = weights[j] + integral * c
    return weights, k


def corrector(method: Method, y: Times, state: History) -> list[Any]:
    """Weights of f_t, f_1 .. in the increment that the step which ended at y is corrected by."""
    order, first = method.order, state.nodes[0]
    h = jnp.where(y == first, 1.0, y - first)
    offsets, _ = history_offsets(state.nodes[1:], first, h, _close(first, method.form))
    moments = method.form.moments(h, order + 1, state.a)
    integrals, shortcut = newton_integrals(moments, offsets), method.rule(h, moments)
    used = state.used
    if method.corrector == "start":
        used = jnp.where(used < order, used, 0)
    weights = [jnp.zeros_like(h)] * (order + 1)
    for k in range(1, order + 1):
        integral = jnp.where(used == k, shortcut if k == 1 else integrals[k], 0.0)
        for j, c in enumerate(divided_difference([h, 0.0, *offsets[: k - 1]])):
            weights[j] = weights[j] + integral * c
    if order > 1:  # a predictor of order 2 took the shortcut
        repair = jnp.where(used == 2, integrals[1] - shortcut, 0.0)
        for j, c in enumerate(divided_difference([0.0, offsets[0]]), start=1):
            weights[j] = weights[j] + repair * c
    return weights


def _check_noise(form: str | Form, eta: PerExample, noise_scale: PerExample) -> Any:
    """Whether there may be noise; `ValueError` for settings of it that fit no method."""
    noisy = not is_zero(eta)
    if noisy and form != "x0":
        raise ValueError(f"eta must be 0 in form {form}, got {eta}")
    check("noise_scale", noise_scale, non_negative)
    if not callable(eta):
        check("eta", eta, non_negative)
    return noisy


def _close(y: Times, form: Form) -> Any:
    """What may be round-off in a node y: a step that short is no base for a divided difference."""
    return 16 * jnp.finfo(jnp.result_type(y)).eps * jnp.maximum(jnp.abs(y), form.scale)


def adams(
    schedule: Schedule,
    *,
    form: str | Form = "x0",
    order: int = 2,
    rule: str = "exact",
    corrected: bool | str = False,
    eta: PerExample = 0.0,
    noise_scale: PerExample = 1.0,
    lower_order_final: bool = False,
) -> Sampler:
    """The method at the head of this module. One denoiser call a step.

    Args:
      schedule: noise schedule, with any scaling.
      form: "x0", "eps", "rho", "flow" or "time": what is interpolated, in what; or a `Form`, such as `forms.trig(std)`.
      order: p, an int in 1 .. 4; the first steps have order 1, 2 .. p - 1.
      rule: "exact", "bh1" or "bh2".
      corrected: True corrects every step, "start" only those whose history is shorter than p - 1, False none. With
        True the order is p + 1, from exact history. From a cold start none exceeds 2 uncorrected, 3 corrected; with
        noise none exceeds 2, in law.
      eta: noise of the SDE, a number, () or (B,), or a function of t; form x0 only.
      noise_scale: factor of the noise, k-diffusion's s_noise.
      lower_order_final: whether the last moves have order .. 3, 2, 1, which is safer where the grid ends in long steps;
        with it the order of convergence is at most 2.

    Raises:
      ValueError: for an unknown form or rule, an order out of range, a negative noise_scale, or noise in another form
        than x0.

    >>> import diffax
    >>> sampler = adams(diffax.Cosine(), form="eps", order=3, corrected=True)
    >>> sampler.order, sampler.calls
    (4, 1)
    """
    check_schedule(schedule)
    if corrected not in (True, False, "start"):
        raise ValueError(f"corrected must be True, False or 'start', got {corrected!r}")
    method = Method(form_of(form, FORM_NAMES), check_order(order, 4), choose("rule", rule, RULES), corrected)
    length = order if corrected else order - 1
    noisy = _check_noise(form, eta, noise_scale)

    def node(t: Times) -> Any:
        return method.form.node(t, schedule(t))

    def noise(t: Times) -> Any:
        return jnp.asarray(eta(t) if callable(eta) else eta)

    def init(x: Tree, times: Grid) -> SamplerState:
        x, first = widen(x), node(times[0])
        values = tuple(jax.tree.map(jnp.zeros_like, x) for _ in range(length))
        nodes = jnp.stack([first] * length) if length else ()
        tail = _last(jax.vmap(node)(times), order, method.form) if lower_order_final else ()
        if not corrected:
            return History(x, values, nodes, tail, first, (), ())
        a = jnp.broadcast_to(jnp.ones_like(first), jnp.broadcast_shapes(jnp.shape(first), jnp.shape(noise(times[0]))))
        return History(x, values, nodes, tail, first, jnp.zeros(jnp.shape(first), int), a)

    def step(key: Keys, denoise: Denoiser, state: SamplerState, t: Times, s: Times) -> SamplerState:
        check_per_example(state.x, eta=noise(t), noise_scale=noise_scale)
        level_t, level_s = schedule(t), schedule(s)
        y, end = method.form.node(t, level_t), method.form.node(s, level_s)
        h = method.form.length(t, level_t, s, level_s)
        f = evaluate(method.form, schedule, denoise, state.x, t, level_t)
        f = jax.tree.map(lambda v, like: v.astype(like.dtype), f, state.x)
        a = jnp.where(h > 0, 1 + noise(t), 1.0) if noisy else jnp.ones_like(h)
        state = _on_one_path(state, y, _close(y, method.form))
        weights, used = predictor(method, h, a, y, state)
        if begins_in_noise(schedule, t) is not False:
            used = jnp.where(begins_in_noise(schedule, t), 0, used)  # not corrected
        carry, gain = method.form.carry(level_t, level_s), method.form.gain(level_s)
        if noisy:
            carry = carry * jnp.exp(-(a - 1) * h)
        weights = [gain * w for w in weights]
        if corrected:
            increments = [carry * method.form.gain(level_t) * w for w in corrector(method, y, state)]
            weights = [u + v for u, v in zip([*weights, 0.0], increments, strict=True)]
        terms = [(carry, state.x), *zip(weights, (f, *state.values), strict=True)]
        if noisy:
            std = noise_scale * level_s.sigma * safe_sqrt(-jnp.expm1(-2 * (a - 1) * h))
            terms.append((std, random.noise(key, state.x)))
        short = jnp.abs(h) <= _close(y, method.form)
        return _remember(state, combine(*terms), f, y, h, (end, used, a) if corrected else (end,), t == s, short)

    reached = order + (corrected is True)
    return Sampler(
        init,
        step,
        order=min(reached, 2) if noisy or lower_order_final else reached,
        calls=1,
        noisy=noisy,
        memory=length > 0,
        schedule=schedule,
    )


def _last(nodes: Leaf, count: int, form: Form) -> Any:
    """(count, ...) the last nodes of a grid that differ: repeats of its end are no steps."""
    moves = jnp.abs(jnp.diff(nodes, axis=0)) > _close(nodes[1:], form)
    left = jnp.concatenate([jnp.cumsum(moves[::-1], 0)[::-1], jnp.zeros((1, *nodes.shape[1:]), int)])  # moves to come
    first = jnp.stack([jnp.argmax(left <= j, 0) for j in range(count)])
    return jnp.take_along_axis(nodes, first, 0)


def _on_one_path(state: History, y: Times, close: PerExample) -> Any:
    """The state without what another path left: nodes where the step begins count for nothing."""
    if not len(state.nodes):
        return state
    same = jnp.abs(y - state.arrived) <= close
    used = () if isinstance(state.used, tuple) else jnp.where(same, state.used, 0)
    return state._replace(nodes=jnp.where(same, state.nodes, y), used=used)


def _remember(
    state: History, x: Tree, f: Tree, y: Times, h: PerExample, last: tuple[Any, ...], still: Scalar, short: Scalar
) -> Any:
    """The next state. A step of length zero changes nothing; one of the length of round-off leaves no history."""

    def keep(old: Tree, new: Tree, condition: Tree) -> Any:
        return jax.tree.map(lambda u, v: jnp.where(expand(condition, v), u, v), old, new)

    values, nodes = state.values, state.nodes
    if len(values):
        values = tuple(keep(u, v, short) for u, v in zip(values, (f, *values[:-1]), strict=True))
        nodes = jnp.where(short, nodes, jnp.concatenate([jnp.broadcast_to(y, jnp.shape(h))[None], nodes[:-1]]))
    arrived, *rest = last
    new = state._replace(
        x=keep(state.x, x, still), values=values, nodes=nodes, arrived=jnp.where(still, state.arrived, arrived)
    )
    if not rest:
        return new
    used, a = (jnp.where(still, u, v) for u, v in zip((state.used, state.a), rest, strict=True))
    return new._replace(used=jnp.where(short & ~jnp.asarray(still), 0, used), a=a)
