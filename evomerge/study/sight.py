"""What the workers of a study do, as files of its folder: a log of each, and all of them now."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from evomerge.files import write_json
from evomerge.study.store import run_folder

_FOLDER = "workers"
_NOW = "now.json"
_SECONDS = 2.0  # between two writings
_STALE = 30.0  # seconds after which nobody writes it any more


@dataclass(frozen=True)
class WorkerState:
    """A worker as it is seen: `seconds` is what a piece of work takes it, `idle` a share."""

    number: int
    state: str  # loading, idle or busy
    node: str
    device: str
    done: int
    seconds: float | None
    idle: float


class Sight:
    """Writes what is seen of the workers of a study."""

    def __init__(self, name: str) -> None:
        self._folder = run_folder(name) / _FOLDER
        self._written = -_SECONDS

    def log(self, number: int, text: str) -> None:
        """Append to a worker's log; each line gets the time."""
        self._folder.mkdir(parents=True, exist_ok=True)
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        with (self._folder / f"worker-{number}.log").open("a") as file:
            file.writelines(f"{now} {line}\n" for line in text.splitlines())

    def show(self, workers: Sequence[WorkerState]) -> None:
        """Write what they do now, if that was some time ago."""
        if time.monotonic() - self._written >= _SECONDS:
            self._written = time.monotonic()
            self._folder.mkdir(parents=True, exist_ok=True)
            write_json(self._folder / _NOW, [asdict(one) for one in workers])

    def close(self) -> None:
        """There are no workers any more."""
        (self._folder / _NOW).unlink(missing_ok=True)


def workers_now(name: str) -> tuple[WorkerState, ...]:
    """Return the workers of a study that a process of this folder runs."""
    path: Path = run_folder(name) / _FOLDER / _NOW
    with contextlib.suppress(OSError, ValueError, TypeError):
        if time.time() - path.stat().st_mtime < _STALE:
            return tuple(WorkerState(**one) for one in json.loads(path.read_text()))
    return ()
