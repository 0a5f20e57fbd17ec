"""Training of low-rank adapters of a trained model, whose parameters do not change."""

from pathlib import Path
from typing import Any, NamedTuple

from diffax.nn import lora
from experiments.models.objectives import Objective


class Adapters(NamedTuple):
    """Adapters of a base model. folder, step, digest: of the checkpoint or export of the base; params: of the base."""

    folder: Path
    step: int
    params: Any
    digest: str
    rank: int
    alpha: float
    patterns: tuple[str, ...]

    def identity(self) -> dict[str, Any]:
        """The values that must not change when a run is resumed."""
        return {"step": self.step, "digest": self.digest}

    def record(self) -> dict[str, Any]:
        """The base in the record of a checkpoint."""
        return {"base": str(self.folder), **self.identity()}

    def init(self, key: Any) -> Any:
        """The first adapters.

        Raises:
          ValueError: if a pattern matches nothing.
        """
        return lora.init(key, self.params, self.patterns, rank=self.rank)

    def merge(self, adapters: Any) -> Any:
        """The parameters of the network: base plus adapters."""
        return lora.merge(self.params, adapters, alpha=self.alpha)


def wrap(adapters: Adapters | None, objective: Objective) -> Objective:
    """The objective as a function of the adapters. adapters: None to train all parameters of the model."""
    if adapters is None:
        return objective

    def loss(params: Any, *rest: Any, **used: Any) -> Any:
        merged = {name: adapters.merge(value) if name == "ema" else value for name, value in used.items()}
        return objective.loss(adapters.merge(params), *rest, **merged)

    return objective._replace(loss=loss)
