"""A trained model in memory: its specification with its parameters, and the latent space that it works in."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffax import random
from diffax._checks import check_count, described
from diffax._pytrees import pytree, static
from diffax.pretrained._specification import Diffusion
from diffax.pretrained._tokenizer import Tokenizer
from diffax.pretrained._units import Units
from diffax.typing import Array, Denoiser, Examples, Key, Scalar


@pytree
class Latents:
    """A latent space: x0 = scale z for a code z of an autoencoder.

    Attributes:
      network: description of the autoencoder, as JSON.
      params: its parameters.
      scale: a number.
    """

    network: str = static()
    params: Any
    scale: Any


@pytree
class Pretrained:
    """A trained model. All methods may be jitted, except `encode` and `denormalise`.

    Attributes:
      diffusion: the specification.
      params: the parameters.
      latents: the latent space, None for a model of the data itself.
      step: the number of training steps.
      units: the units of the stored data.
      words: the vocabulary of a model of captions; () for other models.
      max_length: the number of words of a caption that the model reads.
      has_null: whether the condition was dropped in some examples of the training, as classifier-free guidance needs.
      condition_units: the units of an array condition; None for other models.
    """

    diffusion: Diffusion
    params: Any
    latents: Any
    step: int = static()
    units: Units = static()
    words: tuple[str, ...] = static(())
    max_length: int = static(0)
    has_null: bool = static(True)
    condition_units: Units | None = static(None)

    @property
    def schedule(self) -> Any:
        """The noise schedule."""
        return self.diffusion.schedule(self.params)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an example that the network denoises: of data, or of a code in latents."""
        return self.diffusion.shape

    def with_sampling(self, **changes: Any) -> "Pretrained":
        """The model with other settings of `Sampling`, such as `guidance=2.0, sampler="unipc", num_steps=20`.

        Raises:
          ValueError: for a guidance weight for a model that has no null condition.
        """
        self._check_guidance("guidance", changes.get("guidance"))
        sampling = dataclasses.replace(self.diffusion.sampling, **changes)
        return dataclasses.replace(self, diffusion=dataclasses.replace(self.diffusion, sampling=sampling))

    def denoiser(self, label: Examples | None = None, weight: Scalar | None = None) -> Denoiser:
        """The denoiser (x, t) -> x0 that `sample` uses: the posterior mean, guided and clipped by `diffusion.sampling`.

        Args:
          label: () or (B,) classes, tokens (B, m) of captions (`encode`), or array conditions (B, ...) in their own
            units; None for no condition.
          weight: of classifier-free guidance; None for `diffusion.sampling.guidance`.

        Raises:
          ValueError: for a weight for a model that has no null condition.
        """
        self._check_guidance("weight", weight)
        model = self if weight is None else self.with_sampling(guidance=weight)
        return model.diffusion.denoiser(self.params, self._condition(label))

    def _condition(self, label: Examples | None) -> Examples | None:
        """The condition of the network for a label: array conditions are standardised."""
        if label is None or self.condition_units is None:
            return label
        shape = self.diffusion.module.shape
        if jnp.shape(label)[1:] != shape:  # other shapes might broadcast to the channels of the units
            raise ValueError(f"label must have shape (B, {', '.join(map(str, shape))}), got {jnp.shape(label)}")
        return self.condition_units.standardise(label)

    def _check_guidance(self, name: str, weight: Scalar | None) -> None:
        if weight is not None and not (self.has_null and self.diffusion.null is not None):
            raise ValueError(f"{name} must be None for a model trained without a null label, got {described(weight)}")

    def encode(self, captions: Sequence[str]) -> np.ndarray:
        """Tokens (B, m) of captions, the `label` of `denoiser` and `sample` of a model of captions, on the host.

        Words after the first `max_length` are ignored, as are differences of case and punctuation.

        >>> model = diffax.load("exports/emoji_text")                                     # doctest: +SKIP
        >>> images = model.sample(jax.random.key(0), 2, model.encode(["red heart", "ambulance"]))  # doctest: +SKIP

        Raises:
          ValueError: if the model has no captions.
        """
        if not self.words:
            raise ValueError(f"captions must not be given to a model without a vocabulary, got {list(captions)}")
        return Tokenizer(self.words, self.max_length).encode(captions)

    def sample(self, key: Key, n: int, label: Examples | None = None) -> Array:
        """Samples (n, ...) in about [-1, 1]: (n, *shape), or the decoded data for a model in latents.

        Args:
          key: sample i depends on fold_in(key, i) alone.
          n: number of samples, >= 1.
          label: () or (n,) classes; tokens (n, m) of captions (`encode`); or array conditions in their own units, (n,
            ...) or one for all samples. None for all classes in turn, or for no condition.

        Raises:
          ValueError: for array conditions of another shape, or None for a model that was always trained with one.
        """
        check_count("n", n)
        if self.diffusion.condition == "array":
            label = self._conditions(label, n)
        if label is None and self.diffusion.condition == "label":
            label = jnp.arange(n) % self.diffusion.num_classes  # type: ignore[operator]
        elif label is not None and jnp.ndim(label) == 0:
            label = jnp.full(n, label)
        x: Array = self.diffusion.generate(self.params, random.keys_at(key, jnp.arange(n)), self._condition(label))
        return x if self.latents is None else self.decode(x)

    def _conditions(self, label: Examples | None, n: int) -> Examples | None:
        """Array conditions of n samples, from one for each or one for all."""
        shape = self.diffusion.module.shape
        if label is None and not self.has_null:
            raise ValueError(f"label must be conditions {(n, *shape)} for a model trained without a null one, got None")
        return jnp.broadcast_to(label, (n, *shape)) if label is not None and jnp.shape(label) == shape else label

    def decode(self, x0: Examples) -> Array:
        """The data of scaled codes x0."""
        variables, z = {"params": self.latents.params}, x0 / self.latents.scale
        decoded: Array = _autoencoder(self.latents.network).apply(variables, z, method="decode")
        return decoded

    def denormalise(self, x: Examples) -> np.ndarray:
        """Samples in the units of the data, on the host; see `Units.denormalise`."""
        return self.units.denormalise(x)


def _autoencoder(description: str) -> Any:
    from diffax.nn.description import autoencoder_from_description

    return autoencoder_from_description(json.loads(description))
