"""Check an installed diffax: every public name, an export, the first Python block of a README.

    python -I .ci/check_wheel.py README.md

It needs the dependencies of the library and no others, and runs outside the checkout.
"""

import json
import re
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

import diffax
from diffax import pretrained

NETWORK = {
    "name": "mlp", "channels": 8, "depth": 1, "dropout_rate": 0.0, "num_classes": None, "outputs": 1,
    "text": None, "time_scale": 1000.0, "dtype": "float32",
}  # fmt: skip


def check_names() -> None:
    """Import every public name, and find the marker of type information."""
    for name in diffax.__all__:
        getattr(diffax, name)
    assert Path(diffax.__file__).with_name("py.typed").exists(), "py.typed must be in the wheel"


def check_export(folder: Path) -> None:
    """Save, load and sample a small model."""
    model = pretrained.Diffusion(
        curve=pretrained.Spec.of("cosine", {}),
        sigma_data=0.5,
        sampling=pretrained.Sampling(eta=None, guidance=None, interval=None, rescale=None, num_steps=4),
        network=json.dumps(NETWORK),
        prediction="v",
        time="t",
        condition="",
        num_classes=None,
        learned_variance=False,
        shape=(4,),
    )
    key = jax.random.key(0)
    units = pretrained.Units(dtype="float32", range=(-1.0, 1.0), kind="points")
    pretrained.save(folder, model, model.init(key), step=1, units=units)
    samples = np.asarray(diffax.load(folder).sample(key, 3))
    assert samples.shape == (3, 4), samples.shape
    assert np.isfinite(samples).all(), samples


def check_readme(readme: Path) -> None:
    """Run the first Python block."""
    block = re.search(r"```python\n(.*?)```", readme.read_text(), re.S)
    assert block, f"{readme} must have a Python block"
    exec(compile(block[1], str(readme), "exec"), {"__name__": "readme"})


def main(readme: str) -> None:
    """All checks."""
    check_names()
    with tempfile.TemporaryDirectory() as folder:
        check_export(Path(folder) / "export")
    check_readme(Path(readme))
    print("diffax", diffax.__version__, "works in", Path(diffax.__file__).parent)


if __name__ == "__main__":
    main(sys.argv[1])
