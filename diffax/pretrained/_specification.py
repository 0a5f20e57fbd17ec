"""The specification of a diffusion model: names are static, numbers are leaves that may be traced."""

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from diffax import denoisers, flow_maps, guidance, random, samplers, sampling, schedules
from diffax._masks import confined, inside
from diffax._pytrees import pytree, static
from diffax.denoisers import Moments, denoiser
from diffax.predictions import initial_noise
from diffax.pretrained import _calls
from diffax.typing import Array, Denoiser, Examples, Grid, Key, Keys, Kind, Params, Scalar, Schedule, Times, Tree

TIMES: dict[str, tuple[float, Callable[[Any, Any], Any]]] = {
    "t": (1000.0, lambda schedule, t: t),
    "timestep": (1000.0, lambda schedule, t: t - 1e-3),  # times 1000: the timestep i of a network of diffusers
    "log_snr": (25.0, lambda schedule, t: schedule.log_snr(t)),  # [-20, 20] spans as much as [0, 1] does at 1000
}
"""How a network gets the time: name -> (scale of its time embedding, (schedule, t) -> its second argument)."""


@pytree
class Spec:
    """A name with its parameters, from which `make` builds an object inside a jitted function.

    Attributes:
      name: a name in a table of constructors.
      numbers: {parameter: float}, which may be traced.
      rest: (parameter, value) for ints and strings, which are static.
    """

    name: str = static()
    numbers: dict[str, Any]
    rest: tuple[tuple[str, Any], ...] = static(())

    @classmethod
    def of(cls, name: str, parameters: Mapping[str, Any], *, is_static: bool = False) -> "Spec":
        """The specification with floats as leaves; with `is_static` all parameters are static."""
        numbers = {k: v for k, v in parameters.items() if isinstance(v, float) and not is_static}
        return cls(name, numbers, tuple((k, v) for k, v in parameters.items() if k not in numbers))

    @property
    def parameters(self) -> dict[str, Any]:
        """All parameters."""
        return {**self.numbers, **dict(self.rest)}

    def make(self, table: Mapping[str, Callable[..., Any]]) -> Any:
        """The object: `table[name](**parameters)`."""
        return table[self.name](**self.parameters)


SCHEDULES = {name: row.make for name, row in schedules.CATALOGUE.items()}
"""The schedules that a specification may name: name -> function that makes one."""


@pytree
class Sampling:
    """How samples are drawn. None is a part of the tree's structure: from None to a number the program compiles again.

    Attributes:
      eta: the noise level of the sampler; None for its own default.
      guidance: weight of classifier-free guidance; None for no guidance. A network with a guidance weight as its input
        gets it there, and no second branch is evaluated.
      interval: (low, high), the times at which guidance acts; None for all.
      rescale: phi of Lin et al. 2024, section 3.4; None for none.
      sampler: name of the sampler, or "jump" (`flow_maps.jump`) for a network with a second time.
      grid: name of the step grid.
      num_steps: number of denoiser calls, rounded down to what the steps of the sampler need.
      clip: whether x0 is clipped to [-1, 1].
    """

    eta: Any
    guidance: Any
    interval: Any
    rescale: Any
    sampler: str = static("ddim")
    grid: str = static("uniform_log_snr")
    num_steps: int = static(50)
    clip: bool = static(True)


@pytree
class Diffusion:
    """A diffusion model without its parameters. The methods build objects inside the function that is jitted.

    Attributes:
      curve: specification of the schedule. A learned schedule is a part of the parameters: {"network", "schedule"}.
      sigma_data: standard deviation of the data, for the prediction kind "edm".
      sampling: how samples are drawn.
      network: description of the network as JSON, see `nn.from_description`.
      prediction: the prediction kind.
      time: "t", "timestep" or "log_snr", the second argument of the network.
      condition: "label", "tokens", "array" (see `nn.conditioning`), or "" for none.
      num_classes: number of classes of the data, None without classes.
      learned_variance: whether the second half of the network's channels is a variance, see `Moments`.
      shape: of one example, (*space, C).
    """

    curve: Spec
    sigma_data: Any
    sampling: Sampling
    network: str = static()
    prediction: Kind = static()
    time: str = static()
    condition: str = static()
    num_classes: int | None = static()
    learned_variance: bool = static()
    shape: tuple[int, ...] = static()

    @property
    def module(self) -> Any:
        """The network, a Linen module."""
        return _module(self.network)

    @property
    def second_time(self) -> bool:
        """Whether the network has a second time, so that it is a flow map (x, t, s) -> y."""
        return bool(json.loads(self.network).get("second_time"))

    @property
    def guidance_input(self) -> bool:
        """Whether the network has a guidance weight as an input."""
        return bool(json.loads(self.network).get("guidance_input"))

    @property
    def learns_schedule(self) -> bool:
        """Whether the schedule is trained, so that the parameters contain it."""
        return self.curve.name == "learned"

    @property
    def null(self) -> int | float | None:
        """What stands for "no condition": the null label, the padding token, or 0 for an array; None without one."""
        if self.condition == "array":
            return 0.0
        if self.condition == "tokens":
            from diffax.nn.text import PADDING

            return PADDING
        return self.num_classes if self.condition == "label" else None

    def init(self, key: Key) -> Params:
        """The first parameters."""
        params = self.module.init(key, jnp.zeros((1, *self.shape)), jnp.zeros(1))["params"]
        if not self.learns_schedule:
            return params
        curve = self.schedule()
        leaves = {name: getattr(curve, name) for name in curve.__dataclass_fields__ if name != "scaling"}
        return {"network": params, "schedule": leaves}

    def schedule(self, params: Params | None = None) -> Any:
        """The noise schedule. params: for a learned schedule; None for its initial values."""
        curve: Any = self.curve.make(SCHEDULES)
        if params is None or not self.learns_schedule:
            return curve
        return schedules.Learned(**params["schedule"], scaling=curve.scaling)

    def predict(
        self,
        params: Params,
        condition: Examples | None = None,
        *,
        key: Key | None = None,
        of_time: Callable[[Schedule, Any], Any] | None = None,
        module: Any = None,
        mask: Examples | None = None,
        weight: Any = None,
    ) -> Callable[..., Any]:
        """The network as a function (x, t) -> y; with a second time also (x, t, s) -> y.

        Args:
          params: the parameters.
          condition: labels () or (B,), tokens (B, m), or standardised arrays (B, ...); None for none.
          key: () or (B,) dropout keys; None to disable dropout.
          of_time: (schedule, t) -> second argument of the network; None for that of `time`.
          module: a copy of the network with other settings, such as `nn.with_implementation`; None for the network.
          mask: (B, n), the points of x (B, n, C) that belong to an example, for a `DiT` of sets; None for all.
          weight: () or (B,), the guidance weight, for a network that has it as an input; None for 1.
        """
        second = of_time or TIMES[self.time][1]
        curve, module = self.schedule(params), module or self.module
        network_params = params["network"] if self.learns_schedule else params
        given = {name: value for name, value in (("mask", mask), ("weight", weight)) if value is not None}

        def bound(x: Any, t: Times, *s: Times) -> Any:
            options = given | {"s": second(curve, s[0])} if s else given
            y = module.apply({"params": network_params}, x, second(curve, t), condition, key=key, **options)
            return Moments(*jnp.split(y, 2, -1)) if self.learned_variance else y

        return bound

    def denoiser(
        self,
        params: Params,
        condition: Examples | None = None,
        *,
        log_prob: Callable[..., Array] | None = None,
        scale: Scalar = 1.0,
        module: Any = None,
        mask: Examples | None = None,
    ) -> Denoiser:
        """The denoiser that samples are drawn with: guided and clipped as `sampling` says.

        With a second time it is a flow map (x, t, s) -> x0, and at (x, t) the denoiser of s = t.

        log_prob: (x, t) -> (B,), the log-probability of a classifier to guide with as well, at this scale.
        mask: as in `predict`; x0 is 0 outside.
        """
        curve = self.schedule(params)

        weight = self.sampling.guidance if self.guidance_input else None
        form = flow_maps.map_denoiser if self.second_time else denoiser

        def conditional(x: Tree, t: Any, *rest: Any) -> Any:
            *s, condition = rest
            # Batched guidance evaluates both branches in one call, for twice as many examples.
            repeats = 1 if mask is None else len(x) // len(mask)
            whole = None if mask is None else jnp.concatenate([mask] * repeats)
            predict = self.predict(params, condition, module=module, mask=whole, weight=weight)
            times = (t, *(s or (t,))) if self.second_time else (t,)
            return form(predict, curve, self.prediction, sigma_data=self.sigma_data)(x, *times)

        result: Any = lambda x, *times: conditional(x, *times, None)  # noqa: E731
        if condition is not None and self.null is not None:
            result = self._guided(curve, conditional, condition)
        if log_prob is not None:
            result = denoisers.on_x0(lambda d: guidance.classifier_guidance(d, log_prob, curve, scale), result)
        if self.sampling.clip:
            result = denoisers.on_x0(denoisers.clip_static, result)
        return confined(result if self.sampling.sampler == "ddpm_learned" else denoisers.mean_only(result), mask)

    def _guided(self, curve: Schedule, conditional: Callable[..., Any], condition: Examples) -> Any:
        """The conditional denoiser, with classifier-free guidance unless `guidance` is None.

        One call of the network has both branches; with a learned variance there are two calls.
        """
        weight, rescale, null = self.sampling.guidance, self.sampling.rescale, self.null

        def plain(x: Tree, *times: Any) -> Any:
            return conditional(x, *times, condition)

        def unconditional(x: Tree, *times: Any) -> Any:
            return conditional(x, *times, None)

        def guide(conditional: Denoiser, unconditional: Denoiser) -> Any:
            guided = guidance.classifier_free_guidance(conditional, unconditional, weight)
            kind = {"kind": self.prediction, "schedule": curve, "sigma_data": self.sigma_data}
            return guidance.guidance_rescale(guided, conditional, 0.0 if rescale is None else rescale, **kind)

        if weight is None or self.guidance_input:
            return plain
        if self.learned_variance:
            guided = denoisers.on_x0(guide, plain, unconditional)
        elif rescale is not None:
            guided = guidance.batched_guidance(guide, conditional, condition, null)
        else:
            guided = guidance.batched_classifier_free_guidance(conditional, condition, null, weight)
        return (
            guided
            if self.sampling.interval is None
            else guidance.guidance_interval(guided, plain, *self.sampling.interval)
        )

    def sampler(self, params: Params | None = None) -> samplers.Sampler:
        """The sampler.

        Raises:
          ValueError: for the sampler "jump" of a network without a second time.
        """
        if self.sampling.sampler == "jump" and not self.second_time:
            raise ValueError("sampler must not be 'jump' for a network without a second time")
        return _calls.by_name(self.sampling.sampler, self.schedule(params), self.sampling.eta)

    def times(self, params: Params | None = None) -> Grid:
        """The step grid: as many entries as `sampling.num_steps` denoiser calls suffice for."""
        curve, name = self.schedule(params), self.sampling.sampler
        return _calls.step_grid(name, self.sampling.grid, curve, _calls.entries(name, curve, self.sampling.num_steps))

    def noise(self, params: Params, keys: Keys, t: Scalar) -> Any:
        """The noise (B, *shape) at time t that `generate` starts from with these keys (B,)."""
        return initial_noise(random.fold_in(keys, 0), self.schedule(params), (len(keys), *self.shape), t)

    def generate(
        self,
        params: Params,
        keys: Keys,
        condition: Examples | None = None,
        *,
        times: Grid | None = None,
        start: Tree | None = None,
        classify: Callable[..., Any] | None = None,
        scale: Scalar = 1.0,
        mask: Examples | None = None,
    ) -> Any:
        """Samples (B, *shape), for keys (B,) and conditions of B examples or None.

        Args:
          params: the parameters.
          keys: (B,); sample i depends on key i alone.
          condition: labels (B,), tokens (B, m), or standardised arrays (B, ...).
          times: the step grid; None for that of `times`.
          start: an example (*shape) to start from, with the noise of times[0]; None for noise alone.
          classify: condition -> log_prob as in `denoiser`.
          scale: of the guidance by `classify`.
          mask: as in `predict`; samples are 0 outside.
        """
        curve, grid = self.schedule(params), self.times(params) if times is None else times
        steps, x = random.fold_in(keys, 1), self.noise(params, keys, grid[0])
        if start is not None:
            x = x + curve(grid[0]).alpha * start
        log_prob = None if classify is None else classify(condition)
        denoise = self.denoiser(params, condition, log_prob=log_prob, scale=scale, mask=mask)
        return inside(sampling.sample(steps, self.sampler(params), denoise, inside(x, mask), grid), mask)


@functools.lru_cache
def _module(description: str) -> Any:
    from diffax.nn.description import from_description

    return from_description(json.loads(description))
