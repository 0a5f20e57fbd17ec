"""A progress line that a terminal overwrites and a log file keeps."""

import sys
import time


def clock(seconds: float) -> str:
    """4:05, or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """`name done/total text, rate, ETA`: rewritten in place on a terminal, a line of its own elsewhere.

    The rate leaves out what happened before the first `update`, where the compiler is at work; until the second it
    is not known.
    """

    def __init__(self, name: str, total: int, unit: str = "steps", *, silent: bool = False):
        self._name, self._total, self._unit = name, total, unit
        self._first: tuple[int, float] | None = None
        self._live, self._silent = sys.stdout.isatty(), silent

    def update(self, done: int, text: str = "") -> float:
        """Shows the line and returns the rate in units per second, 0 where it is not known yet."""
        now = time.monotonic()
        self._first = self._first or (done, now)
        rate = (done - self._first[0]) / max(now - self._first[1], 1e-9)
        pace = f"{rate:.2f} {self._unit}/s  ETA {clock((self._total - done) / rate)}" if rate else ""
        parts = [f"{self._name} {done}/{self._total}", text, pace]
        line = "  ".join(p for p in parts if p)
        if self._silent:
            return rate
        if self._live:
            print(f"\r{line}\x1b[K", end="" if done < self._total else "\n", flush=True)
        else:
            print(line, flush=True)
        return rate

    def message(self, text: str) -> None:
        """Prints a line of its own without spoiling the progress line."""
        if not self._silent:
            print(f"\r\x1b[K{text}" if self._live else text, flush=True)
