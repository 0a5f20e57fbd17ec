"""Checkpoints: Orbax writes and reads the arrays; what is whole, what is kept and what is restored is decided here.

    DIRECTORY/<step>/          a checkpoint; it gets this name when it is whole, by one rename
    DIRECTORY/<step>/MANIFEST  a digest of each of its files, what its arrays are, its record; and a digest of itself
    DIRECTORY/<step>.part*     one that is being written, or was when its process was killed

Orbax restores flipped bits without a word, and takes an empty folder for the newest step. So a step is restored only if
every file has the digest that was written down; else the one before it is, and what was passed over is said.
"""

import contextlib
import dataclasses
import math
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from diffax._checks import check_count
from diffax.training import manifest
from diffax.training.arrays import abstract, by_itself, check_arrays, describe, filled
from diffax.training.manifest import CheckpointError
from diffax.training.state import TrainState
from diffax.typing import Tree


class Unsound(NamedTuple):
    """A step that was passed over, and why."""

    step: int
    reason: str


class Restored(NamedTuple):
    """What `Checkpoints.restore_latest` found."""

    step: int
    state: TrainState
    record: dict[str, Any]
    skipped: Sequence[Unsound]


class Checkpoints:
    """The checkpoints of one run. Use as a context manager, or call `close`.

    Keeps the latest `keep_latest`, every step that is a multiple of `keep_every` (0: none beside the latest), and the
    best by the metric `best` ("": none): the lowest, or the highest of "-name". A NaN is never the best.

    One run saves; all others open the folder `read_only`, which leaves alone what is being written. Over several
    processes all call `save` and `restore_latest`; they must see the same folder.

    Raises:
      ValueError: if keep_latest < 1 or keep_every < 0.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep_latest: int = 2,
        keep_every: int = 0,
        best: str = "",
        read_only: bool = False,
    ) -> None:
        check_count("keep_latest", keep_latest)
        check_count("keep_every", keep_every, 0)
        self._folder = Path(directory).absolute()
        self._keep_latest, self._keep_every, self._best = keep_latest, keep_every, best
        self._read_only = read_only
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._saving: tuple[int, Future[None]] | None = None
        if not read_only and _is_first():
            self._folder.mkdir(parents=True, exist_ok=True)
            for part in self._folder.glob("*.part*"):  # what a killed save left behind
                shutil.rmtree(part, ignore_errors=True)
        if not read_only:
            _meet("checkpoints are open")

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def steps(self) -> list[int]:
        """The steps that there are, ascending, sound or not; waits for what is being written."""
        self.wait()
        return self._steps()

    def _steps(self) -> list[int]:
        if not self._folder.is_dir():
            return []
        names = [path.name for path in self._folder.iterdir()]
        return sorted(int(name) for name in names if name.isdecimal() and name == str(int(name)))

    def save(
        self, step: int, state: TrainState, record: dict[str, Any], metrics: dict[str, float] | None = None
    ) -> None:
        """Writes the state, its record (JSON) and its metrics; goes on while they are written.

        The state is copied first: it may be donated to the next step.

        Raises:
          CheckpointError: if the save before this one failed; this one is under way all the same.
        """
        failed = None
        try:
            self.wait()
        except CheckpointError as error:
            failed = error
        part = self._part(step)
        if _is_first():
            shutil.rmtree(part, ignore_errors=True)
        _meet(f"room for step {step}")
        tree = filled(state)
        value = (metrics or {}).get(self._best.removeprefix("-"))
        body = {
            "step": step,
            "arrays": describe(tree),
            "measure": self._best.removeprefix("-"),
            "best": None if value is None or not math.isfinite(value) else value,
            "record": record,
        }
        try:
            response = ocp.save_async(part, tree)
        except Exception as error:
            raise self._failed(step, error) from error
        self._saving = step, self._thread.submit(self._commit, response, part, body)
        if failed:
            raise failed

    def wait(self) -> None:
        """Returns when what was saved is on disk.

        Raises:
          CheckpointError: if it could not be written, and why. The steps before it are whole.
        """
        if self._saving is None:
            return
        (step, future), self._saving = self._saving, None
        try:
            future.result()
        except Exception as error:
            raise self._failed(step, error) from error

    def close(self) -> None:
        """Waits for what is being written. Raises as `wait`."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def record(self, step: int) -> dict[str, Any]:
        """The record that was saved with a step.

        Raises:
          CheckpointError: if it is damaged.
        """
        record: dict[str, Any] = self._manifest(step)["record"]
        return record

    def verify(self, step: int) -> None:
        """Reads each file of a step.

        Raises:
          CheckpointError: if one is missing or is not what was written.
        """
        manifest.verify(self._folder / str(step))

    def newest(self) -> tuple[int | None, list[Unsound]]:
        """The newest sound step, None if there is no step at all; and those newer than it, with what is wrong.

        Raises:
          CheckpointError: if there are steps, but none is sound.
        """
        skipped: list[Unsound] = []
        for step in reversed(self.steps):
            try:
                self.verify(step)
            except CheckpointError as error:
                skipped.append(Unsound(step, str(error)))
            else:
                return step, skipped
        if skipped:
            reasons = "; ".join(f"step {step}: {reason}" for step, reason in skipped)
            raise CheckpointError(f"no checkpoint in {self._folder} is sound: {reasons}")
        return None, []

    def restore_latest(self, like: TrainState) -> Restored | None:
        """The newest sound state, with the shapes, dtypes and shardings of `like`; None if nothing was saved yet.

        Newer steps that are not sound are moved aside, to `unsound-<step>`.

        like: a state, or the same tree of `jax.ShapeDtypeStruct`s with shardings.

        Raises:
          CheckpointError: if there are steps, but none is sound.
          ValueError: if the arrays of that step are others than those of `like`.
        """
        step, skipped = self._agreed_newest()
        if step is None:
            return None
        state = self.restore(step, like)
        if not self._read_only and _is_first():
            for unsound, _ in skipped:
                aside = self._folder / f"unsound-{unsound}"
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(self._folder / str(unsound), aside)
        return Restored(step, state, self.record(step), skipped)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state saved at a step, unverified, with the shapes, dtypes and shardings of `like`.

        Raises:
          ValueError: if the arrays of that step are others than those of `like`; shows the first difference.
        """
        self.wait()
        tree = filled(like)
        check_arrays(self._folder / str(step), self._manifest(step)["arrays"], describe(tree))
        return dataclasses.replace(like, **ocp.load(self._folder / str(step), abstract(tree)))

    def restore_ema(self, step: int, like: Tree) -> Any:
        """The averaged parameters of a step alone, with the shapes, dtypes and shardings of `like`.

        Raises:
          ValueError: if `like` has other leaves; shows the first difference.
        """
        self.wait()
        saved = {path: v for path, v in self._manifest(step)["arrays"].items() if path.startswith("['ema']")}
        check_arrays(self._folder / str(step), saved, describe({"ema": like}))
        with by_itself(partial=True):
            return ocp.load(self._folder / str(step), abstract({"ema": like}))["ema"]

    def _part(self, step: int) -> Any:
        return self._folder / f"{step}.part"

    def _failed(self, step: int, error: Exception) -> Any:
        # What was half written must not take the room of the next.
        for part in self._folder.glob(f"{step}.part*") if _is_first() else ():
            shutil.rmtree(part, ignore_errors=True)
        whole = max(self._steps(), default=None)
        kept = "there is none before it" if whole is None else f"step {whole} is kept"
        message = next((line for line in str(error).splitlines() if "space" in line.lower()), str(error))
        return CheckpointError(f"step {step} could not be saved, {kept}: {message[:300]}")

    def _commit(self, response: Any, part: Path, body: dict[str, Any]) -> None:
        """In a thread: when Orbax has written all, the manifest, then the name."""
        response.result()
        if not _is_first():
            return
        manifest.seal(part, body)  # on the disk before it has its name
        final = self._folder / str(body["step"])
        if final.exists():
            shutil.rmtree(final)
        os.replace(part, final)
        manifest.sync(self._folder)
        self._prune()

    def _prune(self) -> None:
        values, measure = {}, self._best.removeprefix("-")
        for step in self._steps():
            with contextlib.suppress(CheckpointError):  # what is no checkpoint counts for nothing and is left alone
                body = self._manifest(step)
                values[step] = body["best"] if body.get("measure") == measure else None
        keep = set(list(values)[-self._keep_latest :])
        if self._keep_every:
            keep |= {step for step in values if step % self._keep_every == 0}
        if self._best:
            sign = -1 if self._best.startswith("-") else 1
            keep |= {step for _, step in sorted((sign * v, step) for step, v in values.items() if v is not None)[:1]}
        for step in values:
            if step not in keep:
                shutil.rmtree(self._folder / str(step), ignore_errors=True)

    def _manifest(self, step: int) -> dict[str, Any]:
        return manifest.read(self._folder / str(step))

    def _agreed_newest(self) -> Any:
        """Of several processes the first looks, and all do as it says."""
        if jax.process_count() == 1:
            return self.newest()
        step, problem = -1, None
        skipped: list[Any] = []
        if _is_first():
            try:
                found, skipped = self.newest()
                step = -1 if found is None else found
            except (CheckpointError, OSError) as error:
                step, problem = -2, error
        step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
        if step == -2:
            raise problem or CheckpointError(f"no checkpoint in {self._folder} is sound")
        return (None if step == -1 else step), skipped


def _is_first() -> bool:
    return jax.process_index() == 0


def _meet(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
