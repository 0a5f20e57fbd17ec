"""Training: state, step, parallel step, loop, optimiser, logs, checkpoints; learned step grids.

`flops` counts the operations of a step and has the peaks of devices.
"""

from diffax.training import flops
from diffax.training._fit import Every, Fitted, Stopped, fit
from diffax.training._learned_grid import LearnedGrid, learn_grid
from diffax.training.checkpoints import Checkpoints
from diffax.training.logs import JsonLog, Log, Logs, Progress, TensorBoardLog, WandbLog
from diffax.training.manifest import CheckpointError
from diffax.training.optimizers import learning_rate_schedule, optimizer
from diffax.training.parallel import data_parallel, make_mesh, over_runs, place, sharded
from diffax.training.profiling import Profile
from diffax.training.running import NotFiniteError
from diffax.training.state import TrainState, init_state
from diffax.training.step import train_step

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "Every",
    "Fitted",
    "JsonLog",
    "LearnedGrid",
    "Log",
    "Logs",
    "NotFiniteError",
    "Profile",
    "Progress",
    "Stopped",
    "TensorBoardLog",
    "TrainState",
    "WandbLog",
    "data_parallel",
    "fit",
    "flops",
    "init_state",
    "learn_grid",
    "learning_rate_schedule",
    "make_mesh",
    "optimizer",
    "over_runs",
    "place",
    "sharded",
    "train_step",
]
