"""The power spectra of fields and signals, averaged over examples and directions, and the distance of two of them.

    P_k  = mean of |FFT x|^2 over the examples and over the wave vectors f with |f| L in [k - 1/2, k + 1/2)
    LSD  = sqrt(mean_(k, c) (10 log10(P_kc / Q_kc))^2)   in dB

f is in cycles for each cell of the grid, L is the size of the longest axis and k = 1 .. L / 2. Fields that are not
periodic have power at all k from the jump at their borders, in both spectra.

Source: Gray & Markel 1976 (log spectral distance); Harris et al. 2022 (of radially averaged spectra).
"""

import numpy as np

from diffax.metrics._sets import blocks, check_finite
from diffax.typing import Examples, Float

ROUNDING = float(np.finfo(np.float32).eps) ** 2  # power of rounding to float32, as a share of the total


def radial_power_spectrum(x: Examples) -> Float[np.ndarray, "k c"]:
    """The radially averaged power spectrum (L / 2, C) for k = 1 .. L / 2; the mean of a field is no part of it.

    Args:
      x: (N, *space, C), fields on a grid with one axis of space or more, the longest of at least 2 cells.

    Raises:
      ValueError: if the shape is wrong or a value is not finite.

    >>> x = np.sin(2 * np.pi * 3 * np.arange(16) / 16)[None, :, None]
    >>> int(np.argmax(radial_power_spectrum(x)[:, 0])) + 1
    3
    """
    return _spectrum("x", x)


def log_spectral_distance(first: Examples, second: Examples) -> float:
    """The root mean square difference in dB of two radially averaged power spectra, over wavenumbers and channels.

    Powers below the rounding of float32 values, 1.4e-14 of the total of `second` in the channel, count as this much.

    Args:
      first: (N, *space, C).
      second: (M, *space, C), the reference.

    Raises:
      ValueError: if a shape is wrong, a value is not finite, or a channel of `second` is constant.

    >>> x = np.random.default_rng(0).normal(size=(4, 8, 8, 1))
    >>> round(log_spectral_distance(10 * x, x), 6)
    20.0
    """
    if np.shape(first)[1:] != np.shape(second)[1:]:
        raise ValueError(f"second must have examples of shape {np.shape(first)[1:]}, got {np.shape(second)[1:]}")
    p, q = _spectrum("first", first), _spectrum("second", second)
    floor = ROUNDING * q.sum(0)
    if not floor.all():
        raise ValueError(f"second must vary in each channel, got a constant channel {int(np.argmin(floor))}")
    ratio = 10 * np.log10(np.maximum(p, floor) / np.maximum(q, floor))
    return float(np.sqrt(np.mean(ratio**2)))


def _spectrum(name: str, x: Examples) -> Float[np.ndarray, "k c"]:
    array = np.asarray(x)
    if array.ndim < 3 or not len(array) or max(array.shape[1:-1]) < 2:
        raise ValueError(
            f"{name} must have shape (N, *space, C) with at least 2 cells along an axis, got {array.shape}"
        )
    space, axes = array.shape[1:-1], tuple(range(1, array.ndim - 1))
    power = np.zeros(array.shape[1:])
    for rows in blocks(len(array), array[0].size):
        values = np.asarray(array[rows], np.float64)
        check_finite(name, values)
        power += np.square(np.abs(np.fft.fftn(values, axes=axes))).sum(0)
    squares = np.zeros(space)
    for axis, size in enumerate(space):
        squares = squares + np.square(np.fft.fftfreq(size)).reshape(-1, *[1] * (len(space) - 1 - axis))
    shell = np.floor(np.sqrt(squares) * max(space) + 0.5).astype(int).ravel()
    count = np.bincount(shell)
    sums = [np.bincount(shell, channel) for channel in power.reshape(shell.size, -1).T]
    return np.stack(sums, -1)[1 : max(space) // 2 + 1] / count[1 : max(space) // 2 + 1, None] / len(array)
