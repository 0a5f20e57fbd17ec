"""The contract of a sampler: a pair of pure functions, as Optax has for optimisers.

t is now, s is next. Generating goes t > s; over a reversed grid the same sampler inverts.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from diffax._checks import described
from diffax._pytrees import widen
from diffax.denoisers import mean_only
from diffax.typing import Denoiser, Grid, Keys, SamplerState, Schedule, Times, Tree

Init = Callable[[Tree, Grid], SamplerState]  # (x, times) -> state
Step = Callable[[Keys, Denoiser, SamplerState, Times, Times], SamplerState]  # (key, denoise, state, t, s) -> state at s
Finish = Callable[[Keys, Denoiser, SamplerState, Times], Tree]  # (key, denoise, state, t) -> x0


class State(NamedTuple):
    """The state of a sampler without memory. x: (B, ...), an array or a pytree of arrays."""

    x: Any


def init(x: Tree, times: Grid) -> State:
    """The `init` of a sampler without memory. x of half precision is carried in float32."""
    return State(widen(x))


def denoise_last(key: Keys, denoise: Denoiser, state: SamplerState, t: Times) -> Tree:
    """The `finish` of most samplers: x0 of one denoiser call at the last time. It draws nothing."""
    return mean_only(denoise)(state.x, t)


class Sampler(NamedTuple):
    """A sampler. It holds functions, so it is built inside the function that is jitted.

    init: (x, times) -> state, a NamedTuple whose first field is x, in float32 where x is of half precision; it sees the
      whole grid.
    step: (key, denoise, state, t, s) -> state at time s.
    order: the order of convergence, in the number of steps, to the distribution or the ODE that it solves.
    calls: denoiser calls of a step.
    finish: (key, denoise, state, t) -> x0, how `sample` ends at times[-1]: by default one denoiser call.
    start_calls: the extra denoiser calls of the first step or steps: 1 for `pndm`.
    noisy: whether it draws noise at its settings; a traced noise level counts as noise.
    renoises: whether its step may go back towards noise by adding noise, so that its grid may turn back.
    memory: whether a step looks at earlier ones of the same path, as multistep methods do.
    schedule: the noise schedule that it steps along, by which `sample` checks the start; None for no check.

    A wrapper, sampler -> sampler, that edits x returns `state._replace(x=edited)`: the x in a state is the truth,
    and every sampler goes on from it. One that needs a memory of its own holds the wrapped state in it without
    its x (`state._replace(x=None)`), so that x is there once.
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


def check_of_data(wrapper: str, denoise: Denoiser) -> None:
    """Raises `ValueError` for the denoiser that `noise_floor` steps with, which returns a centre of the data.

    For wrappers that compare this result with an x0: of another denoiser, or of a measurement.
    """
    if getattr(denoise, "of_centres", False):
        raise ValueError(f"{wrapper} must be put around noise_floor, as its x0 is no centre of the data: got it inside")


def check_sampler(sampler: object) -> None:
    """Raises `ValueError` for a value that is not a `Sampler`: a function that makes one, or a plain pair.

    >>> check_sampler((lambda x, times: x, lambda key, denoise, state, t, s: state))
    Traceback (most recent call last):
    ...
    ValueError: sampler must be a Sampler, as ddim(schedule) or Sampler(init, step, order, calls) is, got a tuple of 2
    """
    if not isinstance(sampler, Sampler):
        made = "a Sampler, as ddim(schedule) or Sampler(init, step, order, calls) is"
        raise ValueError(f"sampler must be {made}, got {described(sampler)}")


def check_single_step(sampler: Sampler) -> None:
    """Refuses multistep samplers: what they remember is of another path, and is divided by the length of a step."""
    check_sampler(sampler)
    if sampler.memory:
        raise ValueError(
            "sampler must be without memory, which new noise would make another path's, got one of order "
            f"{sampler.order} with it; stochastic multistep samplers are dpmpp_2m_sde, dpmpp_3m_sde and sa_solver"
        )


def check_open(sampler: Sampler) -> None:
    """Refuses a sampler that renoises, since it calls its denoiser inside a branch, where nobody can listen."""
    check_sampler(sampler)
    if sampler.renoises:
        raise ValueError("sampler must not renoise, got one that does; put its wrapper outside: restart(wrapped, ..)")
