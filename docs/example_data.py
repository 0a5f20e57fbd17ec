"""Write the data of docs/data.md into a folder: fields.nc, signals.npz, points.csv, volumes.npy and photos/.

    python docs/example_data.py DIR [PICTURES ...]

photos/ has 200 crops of the pictures of scikit-image, if that is installed, and of the folders PICTURES; the page used
/usr/share of a Debian.
"""

import csv
import importlib.util
import sys
from pathlib import Path

import numpy as np
import xarray
from PIL import Image

RNG = np.random.default_rng(0)


def fields(count=300):
    """Waves of temperature (K) and wind (m/s) on a periodic grid: (count, 32, 64, 2)."""
    y, x = np.mgrid[:32, :64]
    waves = [2 * np.pi * ((j % 3 + 1) * x / 64 + (j // 3) * y / 32) for j in range(6)]
    examples = []
    for _ in range(count):
        k, phase = RNG.normal(size=(2, 6)), RNG.uniform(0, 2 * np.pi, (2, 6))
        u = sum(k[0, j] * np.sin(wave + phase[0, j]) for j, wave in enumerate(waves))
        v = sum(k[1, j] * np.cos(wave + phase[1, j]) for j, wave in enumerate(waves))
        examples.append(np.stack([280 + 5 * u, 30 * v], -1))
    return np.array(examples, np.float32)


def signals(count=400):
    """Bursts of a sine: (count, 4096, 1)."""
    t = np.arange(4096) / 4096

    def burst():
        wave = np.sin(2 * np.pi * (RNG.uniform(2, 12) * t + RNG.uniform()))
        return wave * np.exp(-(((t - RNG.uniform(0.3, 0.7)) / 0.2) ** 2)) * 1000

    return np.array([burst() for _ in range(count)], np.float32)[..., None]


def ring(count=3000):
    """Points on a noisy ring: (count, 2)."""
    angle = RNG.uniform(0, 2 * np.pi, count)
    radius = 5 + 0.3 * RNG.normal(size=count)
    return np.stack([100 + radius * np.cos(angle), 50 + radius * np.sin(angle)], 1)


def volumes(count=300):
    """Soft balls: (count, 16, 16, 16, 1)."""
    grid = np.stack(np.mgrid[:16, :16, :16], -1)
    examples = []
    for _ in range(count):
        centre, radius = RNG.uniform(5, 11, 3), RNG.uniform(3, 5)
        examples.append(np.exp(-((np.square(grid - centre).sum(-1) / radius**2) ** 2)))
    return np.array(examples, np.float32)[..., None]


def photos(folders, target, count=200):
    """Random crops, as PNG, JPEG and WebP in turn, of the pictures of at least 100 pixels in these folders."""
    pictures = []
    for path in (path for folder in folders for path in sorted(folder.rglob("*")) if path.suffix in (".png", ".jpg")):
        try:
            image = Image.open(path)
            image.load()
        except (OSError, ValueError, SyntaxError):
            continue
        if min(image.size) >= 100:
            pictures.append(image.convert("RGBA" if image.has_transparency_data else "RGB"))
    rng = np.random.default_rng(0)
    target.mkdir(exist_ok=True)
    for number in range(count if pictures else 0):
        image = pictures[number % len(pictures)]
        size = int(rng.integers(90, min(image.size) + 1))
        x, y = (int(rng.integers(0, side - size + 1)) for side in image.size)
        part = image.crop((x, y, x + size, min(image.size[1], y + int(size * rng.uniform(0.6, 1)))))
        suffix = ("png", "jpg", "webp")[number % 3]
        (part.convert("RGB") if suffix == "jpg" else part).save(target / f"{number:03d}.{suffix}")


def main():
    """Write all files."""
    folder, *pictures = map(Path, sys.argv[1:])
    folder.mkdir(parents=True, exist_ok=True)
    x, axes = fields(), ("time", "lat", "lon")
    units = {"temperature": "K", "wind": "m/s"}
    arrays = {name: (axes, x[..., i], {"units": unit}) for i, (name, unit) in enumerate(units.items())}
    xarray.Dataset(arrays).to_netcdf(folder / "fields.nc")
    np.savez(folder / "signals.npz", x=signals())
    with (folder / "points.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("east", "north"), *ring().tolist()])
    np.save(folder / "volumes.npy", volumes())
    if found := importlib.util.find_spec("skimage"):
        pictures.insert(0, Path(found.origin).parent / "data")
    photos(pictures, folder / "photos")


if __name__ == "__main__":
    main()
