"""Guidance: functions from denoisers to a denoiser."""

from typing import Any

import jax.numpy as jnp

from diffax.pytrees import combine
from diffax.typing import Denoiser


def classifier_free(conditional: Denoiser, unconditional: Denoiser, weight: Any) -> Denoiser:
    """Classifier-free guidance: x0 = u + w (c - u), c and u the two denoisers' answers.

    On denoisers the rule is the same for every prediction kind, since x0 is affine in each of them.
    Ho & Salimans 2021, eq. 6, whose w is this one less 1.

    Args:
      conditional: (x, t) -> c with the condition bound.
      unconditional: (x, t) -> u, e.g. the same network at its null label.
      weight: () or (B,), may be traced; 1 is conditional, 0 unconditional, > 1 stronger guidance. A Python
        number 0 or 1 saves the call that has no say.

    >>> denoise = classifier_free(lambda x, t: 2.0 * x, lambda x, t: x, 3.0)
    >>> denoise(jnp.ones(1), 0.5).tolist()
    [4.0]
    """
    if isinstance(weight, (int, float)) and weight in (0, 1):
        return conditional if weight == 1 else unconditional

    def denoise(x, t):
        return combine((weight, conditional(x, t)), (1 - jnp.asarray(weight), unconditional(x, t)))

    return denoise
