"""The optimiser of every kind of model."""

from typing import Any

import optax

from diffax import training
from diffax._pytrees import pytree, static
from diffax.nn.edm2 import forced_weight_norm


@pytree
class Optimizer:
    """An optimiser of `diffax.training`, with the settings of config.optimizer.

    normalises: whether a step normalises the weights, as for EDM2.
    """

    learning_rate: Any
    weight_decay: Any
    b1: Any
    b2: Any
    clip_norm: Any
    ema_decay: Any
    name: str = static()
    warmup_steps: int = static()
    decay: str = static()
    accumulate: int = static()
    num_steps: int = static()
    normalises: bool = static()

    def schedule(self) -> Any:
        """The learning rate by step."""
        names = ("learning_rate", "num_steps", "warmup_steps", "decay")
        return training.learning_rate_schedule(**{name: getattr(self, name) for name in names})

    def step(self, objective: Any) -> Any:
        """The training step of an `Objective`, see `training.train_step`."""
        return training.train_step(
            objective.loss,
            self.make(),
            ema_decay=self.ema_decay,
            update_memory=objective.update_memory,
            uses=objective.uses,
            accumulate=self.accumulate,
        )

    def make(self) -> optax.GradientTransformation:
        """The optimiser."""
        names = ("learning_rate", "weight_decay", "b1", "b2", "clip_norm", "warmup_steps", "decay", "num_steps")
        steps = training.optimizer(self.name, **{name: getattr(self, name) for name in names})
        return optax.chain(steps, optax.stateless(forced_weight_norm)) if self.normalises else steps
