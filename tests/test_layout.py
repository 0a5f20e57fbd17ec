"""Layout rules: allowed imports, shipped files and public names."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import diffax

pytestmark = pytest.mark.newest
ROOT = Path(diffax.__file__).parent
LEVELS = [
    {"typing"},
    {"_pytrees"},
    {"_checks"},
    {"_masks"},
    {"random"},
    {"schedules"},
    {"times"},
    {"predictions", "sde"},
    {"denoisers"},
    {"guidance", "samplers"},
    {"sampling"},
    {"analytic", "likelihood"},
    {"losses"},
    {"flow_maps"},
    {"inverse"},
    {"nn", "training", "metrics"},
    {"pretrained"},
]
ALLOWED = {
    "losses": {"optax"},  # for an assignment, where it is used
    "likelihood": {"diffrax", "equinox"},
    "nn": {"flax", "safetensors"},
    "pretrained": {"safetensors"},
    "training": {"optax", "orbax", "tensorboardX", "wandb"},  # the last two where they are installed
    "metrics": {"ott"},
}


def imports(path):
    """Absolute names of the imports of a module; `from diffax import x` gives diffax.x."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.module == "diffax":
                yield from (f"diffax.{alias.name}" for alias in node.names)
            else:
                yield node.module


def level(name):
    return next(i for i, names in enumerate(LEVELS) if name in names)


@pytest.mark.parametrize(
    "path",
    sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py"),
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_modules_import_only_from_lower_levels(path):
    part = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "diffax":
            assert rest[0] == part or level(rest[0]) < level(part), f"{part} imports {name}"
        elif top not in sys.stdlib_module_names:
            allowed = {"jax", "numpy", "jaxtyping"} | ALLOWED.get(part, set())
            assert top in allowed, f"{part} imports {name}"


def test_the_core_loads_jax_and_numpy_only():
    code = (
        "import sys, jax, numpy; before = {m.split('.')[0] for m in sys.modules}; import diffax;"
        "print(sorted({m.split('.')[0] for m in sys.modules} - before - set(sys.stdlib_module_names)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "['diffax']"


def test_namespaces_are_imported_at_their_first_use():
    lazy = ["analytic", "flow_maps", "inverse", "likelihood", "losses", "metrics", "nn", "pretrained", "training"]
    code = (
        f"import sys, diffax; lazy = {lazy};"
        "assert not [name for name in lazy if 'diffax.' + name in sys.modules] and set(lazy) < set(dir(diffax));"
        "assert diffax.nn.UNet and diffax.load is diffax.pretrained.load"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="module 'diffax' has no attribute 'unett'"):
        diffax.unett  # noqa: B018


def test_type_information_ships():
    assert (ROOT / "py.typed").exists()


def test_every_public_name_exists_and_is_documented():
    assert len(set(diffax.__all__)) == len(diffax.__all__)
    for name in diffax.__all__:
        value = getattr(diffax, name)
        assert not callable(value) or value.__doc__ or name in ("Denoiser", "Predict"), name
