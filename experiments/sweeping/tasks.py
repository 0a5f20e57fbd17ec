"""What a run may be, by config.task."""

from collections.abc import Callable
from typing import Any, NamedTuple

from experiments.sweeping import oracle_task, sample_task, train_task


class Task(NamedTuple):
    """A kind of run.

    check: config -> None, raises `ValueError` for settings that cannot be.
    alike: config -> a string, the same for runs that one program serves.
    run: (unit, folder, way, say) -> (run, result or what went wrong) one after another.
    inputs: configs -> what they depend on beside their settings, to be the same when a sweep goes on.
    ways: of `together`, on a CPU and on an accelerator.
    group: the most runs that share a program at a time.
    """

    check: Callable[[Any], None]
    alike: Callable[[Any], str]
    run: Callable[..., Any]
    inputs: Callable[[list[Any]], dict[str, Any]]
    ways: tuple[str, str]
    group: int


TASKS = {
    "train": Task(train_task.check, train_task.alike, train_task.run, lambda configs: {}, ("loop", "vmap"), 8),
    "sample": Task(sample_task.check, sample_task.alike, sample_task.run, sample_task.inputs, ("loop", "vmap"), 8),
    "oracle": Task(oracle_task.check, oracle_task.alike, oracle_task.run, lambda configs: {}, ("vmap", "vmap"), 1024),
}
