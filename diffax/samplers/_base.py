"""The interface of a sampler: a pair of pure functions, like an Optax optimiser.

t is the current time, s the next one. Generation has t > s; over a reversed grid the same sampler inverts.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from diffax._checks import described
from diffax._pytrees import select, widen
from diffax.denoisers import mean_only
from diffax.typing import Denoiser, Grid, Keys, SamplerState, Schedule, Times, Tree, X

Init = Callable[[Tree, Grid], SamplerState]  # (x, times) -> state
Step = Callable[[Keys, Denoiser, SamplerState, Times, Times], SamplerState]  # (key, denoise, state, t, s) -> state at s
Finish = Callable[[Keys, Denoiser, SamplerState, Times], Tree]  # (key, denoise, state, t) -> x0


class State(NamedTuple):
    """The state of a single-step sampler. x: (B, ...), an array or a pytree of arrays."""

    x: Any


def init(x: Tree, times: Grid | None) -> State:
    """The `init` of a single-step sampler. x in half precision is carried in float32."""
    return State(widen(x))


def denoise_last(key: Keys, denoise: Denoiser, state: SamplerState, t: Times) -> Tree:
    """The `finish` of most samplers: x0 from one denoiser call at the last time, without noise."""
    return mean_only(denoise)(state.x, t)


class Sampler(NamedTuple):
    """A sampler. It contains functions, so build it inside the function that is jitted.

    init: (x, times) -> state, a NamedTuple whose first field is x, in float32 if x is in half precision; times is the
      whole grid.
    step: (key, denoise, state, t, s) -> state at time s.
    order: order of convergence, in the number of steps, to the solution of the ODE or to the distribution of the SDE,
      with an exact history. From a cold start a multistep method may converge at a lower order, see `adams`.
    calls: denoiser calls in a step.
    finish: (key, denoise, state, t) -> x0, the end of `sample` at times[-1]; by default one denoiser call.
    start_calls: extra denoiser calls in the first step or steps: 1 for `pndm`.
    noisy: whether it draws noise with its settings; a traced noise level counts as noise.
    renoises: whether a step towards noise adds noise, so that the grid may turn back.
    memory: whether a step uses earlier steps of the same path (multistep methods).
    schedule: its noise schedule, with which `sample` checks the initial x; None for no check.

    A wrapper, sampler -> sampler, that edits x returns `state._replace(x=edited)`: every sampler continues from the x
    in its state. A wrapper with a state of its own stores the wrapped state without x (`state._replace(x=None)`), so
    that x is stored only once.
    """

    init: Init
    step: Step
    order: int
    calls: int
    finish: Finish = denoise_last
    start_calls: int = 0
    noisy: bool = False
    renoises: bool = False
    memory: bool = False
    schedule: Schedule | None = None


def unless_still(t: Times, s: Times, new: X, old: X) -> X:
    """The tree `new`, and `old` for examples with t = s: a zero-length step changes nothing.

    Each sampler says which parts of its state this is about, with leaves (B, ...) or (). A guard around whole states in
    the loop would copy the ring buffer of `pndm` in each step, and some leaves have other leading axes than the batch.
    """
    return select(jnp.asarray(t) == s, old, new)


def check_of_data(wrapper: str, denoise: Denoiser) -> None:
    """Raise `ValueError` for the denoiser inside `noise_floor`, which returns a centre of the data instead of x0.

    For wrappers that compare the result with an x0 from another denoiser or from a measurement.
    """
    if getattr(denoise, "of_centres", False):
        raise ValueError(
            f"{wrapper} must be put around noise_floor, got it inside, where denoisers return centres instead of x0"
        )


def check_sampler(sampler: object) -> None:
    """Raise `ValueError` for a value that is not a `Sampler`, such as a function that makes one, or a plain pair.

    >>> check_sampler((lambda x, times: x, lambda key, denoise, state, t, s: state))
    Traceback (most recent call last):
    ...
    ValueError: sampler must be a Sampler, such as ddim(schedule) or Sampler(init, step, order, calls), got a tuple of 2
    """
    if not isinstance(sampler, Sampler):
        condition = "a Sampler, such as ddim(schedule) or Sampler(init, step, order, calls)"
        raise ValueError(f"sampler must be {condition}, got {described(sampler)}")


def check_single_step(sampler: Sampler) -> None:
    """Raise `ValueError` for a multistep sampler.

    Noise that is added between steps moves x to another path, for which the history of a multistep sampler is wrong;
    the step would divide this error by its length.
    """
    check_sampler(sampler)
    if sampler.memory:
        raise ValueError(
            "sampler must be single-step (churn and ancestral add noise between steps), got a multistep sampler of "
            f"order {sampler.order}; stochastic multistep samplers are dpmpp_2m_sde, dpmpp_3m_sde and sa_solver"
        )


def check_open(sampler: Sampler) -> None:
    """Raise `ValueError` for a sampler that renoises.

    It calls its denoiser inside `lax.cond`, so a wrapper outside cannot read the values of these calls.
    """
    check_sampler(sampler)
    if sampler.renoises:
        raise ValueError("sampler must not renoise, got one that does; use restart(wrapper(sampler), ..) instead")
