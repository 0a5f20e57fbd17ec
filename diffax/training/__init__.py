"""Training: state, step, parallel step, optimiser, checkpoints and exports; learned step grids."""

from diffax.training._learned_grid import LearnedGrid, learn_grid
from diffax.training.checkpoints import Checkpoints
from diffax.training.exports import load_export, save_export
from diffax.training.manifest import CheckpointError
from diffax.training.optimizers import adamw
from diffax.training.parallel import data_parallel, make_mesh, place, sharded
from diffax.training.state import TrainState, init_state
from diffax.training.step import train_step

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "LearnedGrid",
    "TrainState",
    "adamw",
    "data_parallel",
    "init_state",
    "learn_grid",
    "load_export",
    "make_mesh",
    "place",
    "save_export",
    "sharded",
    "train_step",
]
