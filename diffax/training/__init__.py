"""The training state, the step, its parallel form, the optimiser and checkpoints."""

from diffax.training.checkpoints import Checkpoints, load_export, save_export
from diffax.training.optimizers import adamw
from diffax.training.parallel import data_parallel, replicate
from diffax.training.state import TrainState, init_state
from diffax.training.step import train_step

__all__ = [
    "Checkpoints",
    "TrainState",
    "adamw",
    "data_parallel",
    "init_state",
    "load_export",
    "replicate",
    "save_export",
    "train_step",
]
