"""Physical quantities of fields: the power spectrum, and mean and standard deviation in the data's own units."""

import dataclasses
from typing import Any

import numpy as np

from diffax.metrics import log_spectral_distance
from experiments.data.datasets import Dataset
from experiments.evaluation.measures import Real
from experiments.evaluation.values import split_masks

SPECTRUM = "spectral_distance_db"


def spectral(x: np.ndarray, real: Real, reference: str, seed: int) -> tuple[float, float] | None:
    """(value, floor): the log spectral distance in dB of samples x and the reference, and that of the other real set.

    The three sets have equally many examples, chosen at random. Channels whose reference is constant in space are left
    out; None if no channel remains.
    """
    rng, sets = np.random.default_rng(seed), {"samples": x, "train": real.train, "test": real.test}
    n = min(len(values) for values in sets.values())
    sets = {name: values[rng.permutation(len(values))[:n]] for name, values in sets.items()}
    other, y = "train" if reference == "test" else "test", sets[reference]
    varies = np.ptp(y, axis=tuple(range(1, y.ndim - 1))).any(0)
    if not varies.any():
        return None
    value, floor = (log_spectral_distance(sets[name][..., varies], y[..., varies]) for name in ("samples", other))
    return value, floor


def channels(dataset: Dataset, x: np.ndarray, real: Real) -> list[dict[str, Any]]:
    """For each channel {channel, units, samples, test, train: [mean, standard deviation]}, inside the masks.

    x: normalised samples, in the form of `values.with_masks`.
    """
    units = dataset.units
    exact = dataclasses.replace(units, dtype="float64")  # means are not rounded to integers
    count, moments = dataset.shape[-1], {}
    for name, values in (("samples", x), ("test", real.test), ("train", real.train)):
        values, masks = split_masks(values, dataset)
        own = exact.denormalise(values)
        parts = [own[..., i] if masks is None else own[..., i][masks[..., i]] for i in range(count)]
        moments[name] = [[float(part.mean()), float(part.std())] for part in parts]
    names = units.channels or [f"channel_{i}" for i in range(count)]
    own_units = units.units or [""] * len(names)
    return [
        {"channel": name, "units": unit, **{which: values[i] for which, values in moments.items()}}
        for i, (name, unit) in enumerate(zip(names, own_units, strict=True))
    ]
