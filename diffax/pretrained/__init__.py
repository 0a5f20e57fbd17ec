"""Trained models: the specification of a diffusion model, and exports, which `load` reads. Needs flax and safetensors.

Spec         a name with its parameters
Diffusion    schedule, kind, network, guidance, sampler and grid of a model, without its parameters
Tokenizer    captions -> tokens
load         a folder -> a model that samples
save         a model -> a folder: safetensors and JSON
read_config  a folder -> the content of its config.json
folders      samples from a folder that diffusers saved (to be imported by itself)
"""

from diffax.pretrained._calls import by_name, entries, moves, spent, step_grid
from diffax.pretrained._export import is_export, load, read_config, save
from diffax.pretrained._model import Latents, Pretrained
from diffax.pretrained._specification import SCHEDULES, TIMES, Diffusion, Sampling, Spec
from diffax.pretrained._tokenizer import Tokenizer
from diffax.pretrained._units import Units

__all__ = [
    "SCHEDULES",
    "TIMES",
    "Diffusion",
    "Latents",
    "Pretrained",
    "Sampling",
    "Spec",
    "Tokenizer",
    "Units",
    "by_name",
    "entries",
    "is_export",
    "load",
    "moves",
    "read_config",
    "save",
    "spent",
    "step_grid",
]
