r"""Exponential Adams methods: one engine, of which most multistep samplers are special cases.

A form of `diffax.samplers.engines.forms` gives the integrand f, the node y, carry, gain and the moments M_j. Let
y_0 = y_t, let y_1, y_2 .. be the previous nodes, and let f[..] be Newton's divided differences. A step of order p from
t to s is

    predictor   x_s = carry x_t + gain_s sum_(m < p) N_m f[y_t, y_1 .. y_m],     N_m = int prod_(0 <= i < m) (y - y_i)
    corrector   x_t += gain_t C_k f[y_1 .. y_k, y_t],                            C_k = int prod_(1 <= i <= k) (y - y_i)

N_m is an integral over the step, from y_t to y_s. C_k is an integral over the previous step, from y_1 to y_t. All
integrals carry the weight of the form's M_j. The corrector is applied once f(x_t) is known, to the step of order k that
ended at t. It raises the order of that step by one and costs no call. It is an increment, so that an edit of x between
the two steps is kept. f is not evaluated again at the corrected x (PEC). Two shortcuts replace the exact M_1 where only
one slope is used (in a predictor of order 2, and in the corrector of a step of order 1):

    bh1   h^2 / 2           bh2   h M_0 / 2           (B(h) = h and B(h) = expm1 of Zhao et al. 2023)

For k = 2 the corrector also replaces the shortcut of that step's predictor by the exact integral, so that the corrected
step has order 3 with every rule.

With noise (form x0 only), a = 1 + eta for an SDE of noise level eta, and h = lambda_s - lambda_t:

    x_s = e^(-(a - 1) h) sigma_s / sigma_t x_t + alpha_s sum_m N_m f[..]
          + noise_scale sigma_s sqrt(1 - e^(-2 (a - 1) h)) z

    sampler            form  order  rule   corrector  a          source
    dpmpp_2m           x0    2      bh2    -          1          Lu et al. 2022b, algorithm 2
    dpmpp_3m           x0    3      exact  start      1          Lu et al. 2022b, appendix B.5
    dpmpp_2m_sde       x0    2      bh2    -          1 + eta    Lu et al. 2022b, algorithm 4
    dpmpp_3m_sde       x0    3      exact  start      1 + eta    k-diffusion
    deis               eps   1-3    exact  -          1          Zhang & Chen 2023, eq. 15 in log rho
    exponential_adams  any   1-4    exact  optional   1          Hochbruck & Ostermann 2010, section 2.5
    lms                rho   1-4    exact  -          1          Zhang & Chen 2023 (rho AB); Crowson's k-diffusion
    unipc             x0/eps 1-3    bh1/2  yes        1          Zhao et al. 2023, algorithms 1 and 2
    sa_solver          x0    1-3    exact  yes        1 + tau^2  Xue et al. 2023, algorithm 1

`dpmpp_3m` and `dpmpp_3m_sde` have the factor 2 in M_2 that other codes omit.

The history is dropped where a step does not begin at the end of the previous step (a jump of `restart`) and where the
grid turns back. A step of length zero changes nothing, so the history is kept.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffax import random
from diffax._checks import check, check_per_example, check_schedule, choose, described, non_negative
from diffax._pytrees import combine, is_zero, safe_sqrt, select, widen
from diffax.samplers._base import Sampler, unless_still
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

    x: (B, ...).
    values: previous integrands f_1, f_2 .., newest first.
    nodes: (K, ...) the nodes y_1, y_2 .. at which they were evaluated.
    tail: the last distinct nodes of the grid; () without `lower_order_final`.
    arrived: the node at which the last step ended.
    used, a: order and 1 + eta of the last step, for the corrector; () without one.
    """

    x: Any
    values: tuple[Any, ...]
    nodes: Any
    tail: Any
    arrived: Any
    used: Any
    a: Any


class Method(NamedTuple):
    """The static part of a method: form, order, rule and corrected, from the arguments of `adams`."""

    form: Form
    order: int
    rule: Callable[..., Any]
    corrected: bool | str


def newton_integrals(moments: list[Any], offsets: list[Any]) -> list[Any]:
    """Integrals [int_0^h prod_(i < m) (u - d_i)] for m = 0 .. len(moments) - 1, with d_0 = 0, d_i = offsets[i - 1]."""
    polynomial, integrals = [1.0], []
    for moment, root in zip(moments, [0.0, *offsets, 0.0], strict=False):
        del moment
        integrals.append(sum(c * moments[i] for i, c in enumerate(polynomial)))
        times_u, times_root = [0.0, *polynomial], [*(-root * c for c in polynomial), 0.0]
        polynomial = [u + v for u, v in zip(times_u, times_root, strict=True)]
    return integrals


def divided_difference(nodes: list[Any]) -> list[Any]:
    """Coefficients of f(nodes[j]) in the divided difference f[nodes[0], .., nodes[-1]]."""
    return [1 / math.prod(node - other for i, other in enumerate(nodes) if i != j) for j, node in enumerate(nodes)]


def history_offsets(nodes: Iterable[Any], start: Times, h: PerExample, close: PerExample) -> tuple[list[Any], Any]:
    """Offsets d_i = y_i - start of the previous nodes, and the number of them that a step of length h can use.

    A node can be used if all newer ones can, and if it is behind the next newer one, against the direction of h, by
    more than `close`. The other offsets (a cold start, a grid that turned back) are replaced by distinct dummy values,
    so that divided differences do not divide by 0.
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
    """Weights of f_t, f_1 .. in the integral over a step of length h from `start`, and the order of that step."""
    order = method.order
    offsets, count = history_offsets(state.nodes[: order - 1], start, h, _round_off(start, method.form))
    k = 1 + count
    if len(state.tail):  # lower_order_final: the order is at most the number of moves left, this one included
        y_s, close = start + h, _round_off(start + h, method.form)
        k = jnp.minimum(k, 1 + sum(((node - y_s) * jnp.sign(h) > close).astype(int) for node in state.tail))
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
    """Weights of f_t, f_1 .. in the increment that corrects the step which ended at y."""
    order, start = method.order, state.nodes[0]
    h = jnp.where(y == start, 1.0, y - start)
    offsets, _ = history_offsets(state.nodes[1:], start, h, _round_off(start, method.form))
    moments = method.form.moments(h, order + 1, state.a)
    integrals, shortcut = newton_integrals(moments, offsets), method.rule(h, moments)
    used = state.used
    if method.corrected == "start":
        used = jnp.where(used < order, used, 0)
    weights = [jnp.zeros_like(h)] * (order + 1)
    for k in range(1, order + 1):
        integral = jnp.where(used == k, shortcut if k == 1 else integrals[k], 0.0)
        for j, c in enumerate(divided_difference([h, 0.0, *offsets[: k - 1]])):
            weights[j] = weights[j] + integral * c
    if order > 1:
        # The predictor of a step of order 2 used the shortcut: replace it by the exact integral.
        missing = jnp.where(used == 2, integrals[1] - shortcut, 0.0)
        for j, c in enumerate(divided_difference([0.0, offsets[0]]), start=1):
            weights[j] = weights[j] + missing * c
    return weights


def _check_noise(form: str | Form, eta: PerExample, noise_scale: PerExample) -> Any:
    """Check eta and noise_scale; return whether the steps draw noise (True for a traced eta)."""
    noisy = not is_zero(eta)
    if noisy and form != "x0":
        raise ValueError(f"eta must be 0 in form {described(form)}, got {eta}")
    check("noise_scale", noise_scale, non_negative)
    if not callable(eta):
        check("eta", eta, non_negative)
    return noisy


def _round_off(y: Times, form: Form) -> Any:
    """The largest difference between nodes near y that may be round-off.

    Divided differences need nodes that are further apart.
    """
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
    """Exponential Adams method of order p, one denoiser call a step: the equations at the head of this module.

    Args:
      schedule: noise schedule, with any scaling.
      form: the integrand and its node, "x0", "eps", "rho", "flow" or "time"; or a `Form`, such as `forms.trig(std)`.
      order: p, an int in 1 .. 4; the first steps have order 1, 2 .. p - 1.
      rule: "exact", "bh1" or "bh2", the weight of the slope where only one slope is used.
      corrected: True corrects every step, "start" only steps whose history is shorter than p - 1, False none. With
        True the order is p + 1 if the history is exact. From a cold start the order of convergence is at most 2 without
        the corrector and 3 with it; with noise it is at most 2 (weak order).
      eta: noise level of the SDE, >= 0: () or (B,), or a function of t; form x0 only. A
        step towards noise is the ODE step and adds no noise.
      noise_scale: factor of the noise, >= 0, () or (B,) (k-diffusion's s_noise).
      lower_order_final: whether the last moves have order .. 3, 2, 1. This is safer where the grid ends in long steps;
        the order of convergence is then at most 2.

    Raises:
      ValueError: if form or rule is unknown, order is out of range, eta or noise_scale is negative, or eta is not 0 in
        another form than x0.

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

    def noise_level(t: Times) -> Any:
        return jnp.asarray(eta(t) if callable(eta) else eta)

    def init(x: Tree, times: Grid) -> SamplerState:
        x, y = widen(x), node(times[0])
        values = tuple(jax.tree.map(jnp.zeros_like, x) for _ in range(length))
        nodes = jnp.stack([y] * length) if length else ()
        tail = _last_nodes(jax.vmap(node)(times), order, method.form) if lower_order_final else ()
        if not corrected:
            return History(x, values, nodes, tail, y, (), ())
        a = jnp.broadcast_to(jnp.ones_like(y), jnp.broadcast_shapes(jnp.shape(y), jnp.shape(noise_level(times[0]))))
        return History(x, values, nodes, tail, y, jnp.zeros(jnp.shape(y), int), a)

    def step(key: Keys, denoise: Denoiser, state: SamplerState, t: Times, s: Times) -> SamplerState:
        check_per_example(state.x, eta=noise_level(t), noise_scale=noise_scale)
        level_t, level_s = schedule(t), schedule(s)
        y_t, y_s = method.form.node(t, level_t), method.form.node(s, level_s)
        h = method.form.length(t, level_t, s, level_s)
        f = evaluate(method.form, schedule, denoise, state.x, t, level_t)
        f = jax.tree.map(lambda v, like: v.astype(like.dtype), f, state.x)
        a = jnp.where(h > 0, 1 + noise_level(t), 1.0) if noisy else jnp.ones_like(h)
        state = _drop_stale_history(state, y_t, _round_off(y_t, method.form))
        weights, used = predictor(method, h, a, y_t, state)
        if begins_in_noise(schedule, t) is not False:
            # The step from pure noise must stay at order 1; used = 0 disables its corrector.
            used = jnp.where(begins_in_noise(schedule, t), 0, used)
        carry, gain = method.form.carry(level_t, level_s), method.form.gain(level_s)
        if noisy:
            carry = carry * jnp.exp(-(a - 1) * h)
        weights = [gain * w for w in weights]
        if corrected:
            increments = [carry * method.form.gain(level_t) * w for w in corrector(method, y_t, state)]
            weights = [u + v for u, v in zip([*weights, 0.0], increments, strict=True)]
        terms = [(carry, state.x), *zip(weights, (f, *state.values), strict=True)]
        if noisy:
            c_noise = noise_scale * level_s.sigma * safe_sqrt(-jnp.expm1(-2 * (a - 1) * h))
            terms.append((c_noise, random.noise(key, state.x)))
        short = jnp.abs(h) <= _round_off(y_t, method.form)
        return _next_state(state, combine(*terms), f, y_t, h, (y_s, used, a) if corrected else (y_s,), (t, s), short)

    ode_order = order + (corrected is True)
    return Sampler(
        init,
        step,
        order=min(ode_order, 2) if noisy or lower_order_final else ode_order,
        calls=1,
        noisy=noisy,
        memory=length > 0,
        schedule=schedule,
    )


def _last_nodes(nodes: Leaf, count: int, form: Form) -> Any:
    """The last `count` distinct nodes of a grid, last one first: steps of length zero are not counted."""
    moves = jnp.abs(jnp.diff(nodes, axis=0)) > _round_off(nodes[1:], form)
    remaining = jnp.concatenate([jnp.cumsum(moves[::-1], 0)[::-1], jnp.zeros((1, *nodes.shape[1:]), int)])
    indices = jnp.stack([jnp.argmax(remaining <= j, 0) for j in range(count)])
    return jnp.take_along_axis(nodes, indices, 0)


def _drop_stale_history(state: History, y: Times, close: PerExample) -> Any:
    """The state for a step that begins at y: without its history if the last step ended elsewhere.

    All nodes are then set to y, which `history_offsets` does not count, and used = 0 disables the corrector.
    """
    if not len(state.nodes):
        return state
    continues = jnp.abs(y - state.arrived) <= close
    used = () if isinstance(state.used, tuple) else jnp.where(continues, state.used, 0)
    return state._replace(nodes=jnp.where(continues, state.nodes, y), used=used)


def _next_state(
    state: History, x: Tree, f: Tree, y: Times, h: PerExample, last: tuple[Any, ...], times: Any, short: Scalar
) -> Any:
    """The state after a step from the node y.

    last: the node at its end, and with a corrector its order and 1 + eta. times: (t, s).
    short: a step no longer than round-off, which moves x but adds nothing to the history.
    """
    values, nodes = state.values, state.nodes
    if len(values):
        values = tuple(select(short, u, v) for u, v in zip(values, (f, *values[:-1]), strict=True))
        nodes = jnp.where(short, nodes, jnp.concatenate([jnp.broadcast_to(y, jnp.shape(h))[None], nodes[:-1]]))
    arrived, *rest = last
    if rest:
        rest[0] = jnp.where(short, 0, rest[0])
    old = (state.x, state.arrived, *(state.used, state.a)[: len(rest)])
    t, s = times
    x, arrived, *rest = unless_still(t, s, (x, arrived, *rest), old)
    new = state._replace(x=x, values=values, nodes=nodes, arrived=arrived)
    return new._replace(used=rest[0], a=rest[1]) if rest else new
