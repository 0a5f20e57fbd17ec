"""Where metrics go: a progress line, lines of JSON, TensorBoard, Weights & Biases, or any function of the user."""

import contextlib
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Log(Protocol):
    """What `fit` writes metrics to. A value is a number, or a list of K numbers of K runs (`over_runs`)."""

    def start(self, step: int) -> None:
        """Called once, after `step` was restored: later lines, of a run that was killed, are written again."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write the values of a step."""

    def sync(self) -> None:
        """Flush to disk. Called before each checkpoint, after which the lines are not written again."""


class FunctionLog:
    """A log that calls a function (step, values), such as `lambda step, values: wandb.log(values, step)`."""

    def __init__(self, write: Callable[[int, dict[str, float]], Any]) -> None:
        self._write = write

    def start(self, step: int) -> None:
        """Nothing."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Call the function."""
        self._write(step, values)

    def sync(self) -> None:
        """Nothing."""


class JsonLog:
    """A file with a line of JSON for each step that is logged: {"step": 100, "loss": 0.5, ...}.

    If the disk is full, lines wait in memory until the next write.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path, self._unwritten = Path(path).expanduser(), b""
        self._file: Any = None

    def start(self, step: int) -> None:
        """Open the file without the lines after `step`."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        kept = [line for line in lines if _step_of(line) <= step]
        part = self._path.with_name(f".{self._path.name}.part")
        part.write_text("".join(line + "\n" for line in kept))
        os.replace(part, self._path)
        self._file = self._path.open("ab", buffering=0)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write a line."""
        self._unwritten += json.dumps({"step": step, **values}).encode() + b"\n"
        self._flush()

    def _flush(self) -> None:
        size = self._file.seek(0, os.SEEK_END)
        rest = self._unwritten
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._file.truncate(size)
            print(f"warning: {self._path.name} cannot be written now ({error.strerror})", file=sys.stderr, flush=True)
        else:
            self._unwritten = b""

    def sync(self) -> None:
        """Write the lines that wait, and flush to disk."""
        self._flush()
        with contextlib.suppress(OSError):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Write the lines that wait, and close the file."""
        if self._file is not None:
            self._flush()
            self._file.close()


class TensorBoardLog:
    """Scalars and pictures for TensorBoard, if tensorboardX is installed. A full disk ends the log, not the run."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder).expanduser()
        self._board: Any = None

    def start(self, step: int) -> None:
        """Open the folder; TensorBoard drops the values after `step`."""
        with contextlib.suppress(ImportError, OSError):
            import tensorboardX

            self._board = tensorboardX.SummaryWriter(str(self._folder), purge_step=step + 1)

    def _call(self, name: str, *arguments: Any, **options: Any) -> None:
        try:
            if self._board is not None:
                getattr(self._board, name)(*arguments, **options)
        except OSError as error:
            self._board = None
            print(f"warning: the TensorBoard log ends here ({error.strerror})", file=sys.stderr, flush=True)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write scalars."""
        for name, value in values.items():
            if not isinstance(value, list):
                self._call("add_scalar", name, value, step)

    def picture(self, step: int, name: str, picture: Any) -> None:
        """Write a picture (H, W, C) uint8."""
        self._call("add_image", name, picture, step, dataformats="HWC")

    def sync(self) -> None:
        """Nothing: TensorBoard drops values that a killed run wrote twice."""

    def close(self) -> None:
        """Flush and close."""
        self._call("close")


class WandbLog:
    """Scalars and pictures for Weights & Biases (`pip install wandb`).

    A run that is killed and started again continues the same run there: its id is in `folder`. Set WANDB_MODE=offline
    for machines without network; `wandb sync` sends the files later.

    Args:
      folder: of the run; the files go to folder/wandb.
      project: name of the project.
      name: name of the run; None for that of the folder.
      config: settings that are shown with the run.

    Raises:
      ValueError: if wandb is not installed.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        project: str = "diffax",
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ValueError("wandb must be installed to log to it: pip install wandb") from error
        self._wandb, self._folder = wandb, Path(folder).expanduser()
        self._settings: dict[str, Any] = {"project": project, "name": name or self._folder.name, "config": config}
        self._run: Any = None

    def start(self, step: int) -> None:
        """Start the run, or continue it. Lines that it has already are the same and are dropped there."""
        own = self._folder / "wandb" / "run_id"
        own.parent.mkdir(parents=True, exist_ok=True)
        if not own.exists():
            own.write_text(secrets.token_hex(4))
        settings = self._wandb.Settings(console="off", silent=True)
        self._run = self._wandb.init(
            id=own.read_text(), resume="allow", dir=str(self._folder), settings=settings, **self._settings
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write scalars."""
        self._run.log({name: value for name, value in values.items() if not isinstance(value, list)}, step=step)

    def picture(self, step: int, name: str, picture: Any) -> None:
        """Write a picture (H, W, C) uint8."""
        if self._run is not None:
            self._run.log({name: self._wandb.Image(picture)}, step=step)

    def sync(self) -> None:
        """Nothing: wandb writes in the background."""

    def close(self) -> None:
        """Send the rest, and end the run."""
        if self._run is not None:
            self._run.finish()


class Logs:
    """Several logs as one."""

    def __init__(self, logs: Iterable[Log]) -> None:
        self._logs = list(logs)

    def start(self, step: int) -> None:
        """Start each."""
        for log in self._logs:
            log.start(step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write to each."""
        for log in self._logs:
            log.write(step, values)

    def sync(self) -> None:
        """Sync each."""
        for log in self._logs:
            log.sync()

    def picture(self, step: int, name: str, picture: Any) -> None:
        """Give a picture (H, W, C) uint8 to each log that shows pictures."""
        for log in self._logs:
            if show := getattr(log, "picture", None):
                show(step, name, picture)

    def close(self) -> None:
        """Close each log that can be closed."""
        for log in self._logs:
            if close := getattr(log, "close", None):
                close()


def clock(seconds: float) -> str:
    """A duration as minutes and seconds, or with hours.

    >>> clock(245), clock(3723)
    ('4:05', '1:02:03')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """A line `name done/total  text  rate  ETA`: rewritten in place on a terminal, a new line elsewhere.

    The rate is that of the time since the last update, without the time in `paused`. It is unknown until the second
    update: the first step compiles.

    Args:
      name: of one unit, such as "step".
      total: number of units.
      unit: the plural.
      silent: print nothing, as on all processes except the first.
    """

    def __init__(self, name: str, total: int, unit: str = "steps", *, silent: bool = False) -> None:
        self._name, self._total, self._unit = name, total, unit
        self._last: tuple[int, float] | None = None
        self._paused, self._rate = 0.0, 0.0
        self._live, self._silent = sys.stdout.isatty(), silent

    @contextlib.contextmanager
    def paused(self) -> Any:
        """A block whose time does not count in the rate: a picture, a checkpoint."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._paused += time.monotonic() - start

    def update(self, done: int, text: str = "") -> float:
        """Print the line. Returns the rate in units per second, 0 while it is unknown."""
        now = time.monotonic()
        if self._last is not None and done > self._last[0]:
            self._rate = (done - self._last[0]) / max(now - self._last[1] - self._paused, 1e-9)
        self._last, self._paused = (done, now), 0.0
        if self._silent:
            return self._rate
        pace = f"{self._rate:.2f} {self._unit}/s  ETA {clock((self._total - done) / self._rate)}" if self._rate else ""
        line = "  ".join(part for part in (f"{self._name} {done}/{self._total}", text, pace) if part)
        if self._live:
            print(f"\r{line}\x1b[K", end="" if done < self._total else "\n", flush=True)
        else:
            print(line, flush=True)
        return self._rate

    def message(self, text: str) -> None:
        """Print a line without spoiling the progress line."""
        if not self._silent:
            print(f"\r\x1b[K{text}" if self._live else text, flush=True)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a line that a kill cut short
        return float("inf")
