"""Checkpoints. Orbax writes and reads the arrays; this module commits, verifies, prunes and restores the steps.

    DIRECTORY/<step>/          a complete checkpoint: its folder is renamed to this name after the last write
    DIRECTORY/<step>/MANIFEST  the digests of all files, the description of the arrays, the record, and a digest of the
                               manifest itself
    DIRECTORY/<step>.part*     an incomplete checkpoint, still being written or left by a killed process
    DIRECTORY/unsound-<step>/  a damaged checkpoint, renamed by `restore_latest`

Orbax reports no error for flipped bits, and accepts an empty folder as the newest step. Therefore `restore_latest`
restores a step only if every file matches its digest. Otherwise it restores the previous step and reports the skipped
steps. `restore` and `restore_ema` do not verify the digests.
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
from diffax.training.processes import is_first
from diffax.training.state import TrainState
from diffax.typing import Tree


class Damaged(NamedTuple):
    """A skipped step, and the reason why it cannot be restored."""

    step: int
    reason: str


class Restored(NamedTuple):
    """The result of `Checkpoints.restore_latest`. skipped: the newer steps, which are damaged."""

    step: int
    state: TrainState
    record: dict[str, Any]
    skipped: Sequence[Damaged]


class Checkpoints:
    """The checkpoints of one run. Use as a context manager, or call `close`.

    Only one run may save into the folder. All other users must open it with `read_only`, which does not touch a step
    that is being written. With several processes, all must create this object and call `save` and `restore_latest`, on
    a shared folder.

    Args:
      directory: the folder of the checkpoints; created unless `read_only`.
      keep_latest: number of latest steps to keep, >= 1.
      keep_every: also keep each step that is a multiple of this number; 0 for none.
      best: metric that also selects one step to keep: "loss" keeps the lowest value, "-accuracy" the highest; "" for
        none. A NaN or infinite value is never the best.
      read_only: whether to leave the folder unchanged.

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
        self._folder = Path(directory).expanduser().absolute()
        self._keep_latest, self._keep_every, self._best = keep_latest, keep_every, best
        self._read_only = read_only
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._saving: tuple[int, Future[None]] | None = None
        if not read_only and is_first():
            self._folder.mkdir(parents=True, exist_ok=True)
            for part in self._folder.glob("*.part*"):  # incomplete saves of a killed process
                shutil.rmtree(part, ignore_errors=True)
        if not read_only:
            _barrier("checkpoints are open")

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def folder(self) -> Path:
        """The folder of the checkpoints."""
        return self._folder

    @property
    def steps(self) -> list[int]:
        """All steps in the folder, ascending, unverified. Waits for a save that is under way."""
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
        """Save the state, its record (JSON) and its metrics in the background.

        The state is copied before the method returns, so that it may be donated to the next step.

        Raises:
          CheckpointError: if the previous save failed (this save has started nevertheless), or this one cannot start.
        """
        previous_error = None
        try:
            self.wait()
        except CheckpointError as error:
            previous_error = error
        part = self._part(step)
        if is_first():
            shutil.rmtree(part, ignore_errors=True)
        _barrier(f"room for step {step}")
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
            raise self._save_error(step, error) from error
        self._saving = step, self._thread.submit(self._commit, response, part, body)
        if previous_error:
            raise previous_error

    def wait(self) -> None:
        """Wait until the last save is on disk.

        Raises:
          CheckpointError: if it could not be written; the message gives the reason. Earlier steps are not affected.
        """
        if self._saving is None:
            return
        (step, future), self._saving = self._saving, None
        try:
            future.result()
        except Exception as error:
            raise self._save_error(step, error) from error

    def close(self) -> None:
        """Wait for the last save and stop the thread. Raises as in `wait`."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def record(self, step: int) -> dict[str, Any]:
        """The record that was saved with a step.

        Raises:
          CheckpointError: if the manifest is missing or damaged.
        """
        record: dict[str, Any] = self._manifest(step)["record"]
        return record

    def verify(self, step: int) -> None:
        """Read each file of a step and compare it with its digest.

        Raises:
          CheckpointError: if a file is missing or does not match its digest.
        """
        manifest.verify(self._folder / str(step))

    def newest(self) -> tuple[int | None, list[Damaged]]:
        """(step, skipped): the newest intact step, or None if the folder has no steps; and the newer, damaged steps.

        Raises:
          CheckpointError: if there are steps, but none is intact.
        """
        skipped: list[Damaged] = []
        for step in reversed(self.steps):
            try:
                self.verify(step)
            except CheckpointError as error:
                skipped.append(Damaged(step, str(error)))
            else:
                return step, skipped
        if skipped:
            reasons = "; ".join(f"step {step}: {reason}" for step, reason in skipped)
            raise CheckpointError(f"no checkpoint in {self._folder} is intact: {reasons}")
        return None, []

    def restore_latest(self, like: TrainState) -> Restored | None:
        """The newest intact state, with the shapes, dtypes and shardings of `like`; None if the folder has no steps.

        Newer steps, which are damaged, are renamed to `unsound-<step>`, unless the folder is `read_only`.

        Args:
          like: a state, or the same tree of `jax.ShapeDtypeStruct`s with shardings.

        Raises:
          CheckpointError: if there are steps, but none is intact.
          ValueError: if the arrays of that step do not match those of `like`.
        """
        step, skipped = self._agreed_newest()
        if step is None:
            return None
        state = self.restore(step, like)
        if not self._read_only and is_first():
            for damaged, _ in skipped:
                target = self._folder / f"unsound-{damaged}"
                shutil.rmtree(target, ignore_errors=True)
                os.replace(self._folder / str(damaged), target)
        return Restored(step, state, self.record(step), skipped)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of a step, with the shapes, dtypes and shardings of `like`. Does not verify the digests.

        Raises:
          CheckpointError: if the manifest is missing or damaged.
          ValueError: if the arrays of that step do not match those of `like`; the message shows the first difference.
        """
        self.wait()
        tree = filled(like)
        check_arrays(self._folder / str(step), self._manifest(step)["arrays"], describe(tree))
        return dataclasses.replace(like, **ocp.load(self._folder / str(step), abstract(tree)))

    def restore_ema(self, step: int, like: Tree) -> Any:
        """Only the averaged parameters of a step, with the shapes, dtypes and shardings of `like`.

        Does not verify the digests.

        Raises:
          CheckpointError: if the manifest is missing or damaged.
          ValueError: if they do not match `like`; the message shows the first difference.
        """
        self.wait()
        saved = {path: v for path, v in self._manifest(step)["arrays"].items() if path.startswith("['ema']")}
        check_arrays(self._folder / str(step), saved, describe({"ema": like}))
        with by_itself(partial=True):
            return ocp.load(self._folder / str(step), abstract({"ema": like}))["ema"]

    def _part(self, step: int) -> Any:
        return self._folder / f"{step}.part"

    def _save_error(self, step: int, error: Exception) -> Any:
        # Delete the incomplete files, so that they do not use the disk space of the next save.
        for part in self._folder.glob(f"{step}.part*") if is_first() else ():
            shutil.rmtree(part, ignore_errors=True)
        latest = max(self._steps(), default=None)
        consequence = "no step is saved yet" if latest is None else f"step {latest} is kept"
        # Prefer the line that reports a full disk.
        message = next((line for line in str(error).splitlines() if "space" in line.lower()), str(error))
        return CheckpointError(f"step {step} could not be saved, {consequence}: {message[:300]}")

    def _commit(self, response: Any, part: Path, body: dict[str, Any]) -> None:
        """Wait for Orbax, write the manifest, then give the folder its final name. Runs in the thread."""
        response.result()
        if not is_first():
            return
        manifest.seal(part, body)  # syncs all files to disk before the rename
        final = self._folder / str(body["step"])
        if final.exists():
            shutil.rmtree(final)
        os.replace(part, final)
        manifest.sync(self._folder)
        self._prune()

    def _prune(self) -> None:
        values, measure = {}, self._best.removeprefix("-")
        for step in self._steps():
            # Skip folders without a readable manifest: they are neither counted nor deleted.
            with contextlib.suppress(CheckpointError):
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
        """`newest` of process 0, broadcast to all processes, so that all restore the same step.

        The list of skipped steps is empty on the other processes.
        """
        if jax.process_count() == 1:
            return self.newest()
        step, failure = -1, None  # -1: the folder has no steps; -2: no step can be restored
        skipped: list[Any] = []
        if is_first():
            try:
                newest, skipped = self.newest()
                step = -1 if newest is None else newest
            except (CheckpointError, OSError) as error:
                step, failure = -2, error
        step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
        if step == -2:
            raise failure or CheckpointError(f"no checkpoint in {self._folder} is intact")
        return (None if step == -1 else step), skipped


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
