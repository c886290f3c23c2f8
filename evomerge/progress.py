"""Progress bars on stderr: stages, and trials with the best so far, seconds a trial, time left."""

from __future__ import annotations

from collections import deque
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
)

_RECENT = 20  # trials that the speed is taken from


class Bars:
    """Progress bars, one line per stage; use as a context manager."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description:<16}", markup=False),
            BarColumn(bar_width=14),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            console=self._console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._seconds: deque[float] = deque(maxlen=_RECENT)

    def __enter__(self) -> Bars:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._tasks:
            self._progress.stop()

    def stage(self, text: str, done: int, total: int) -> None:
        """Move the bar of a stage, named `title: detail` or `title`."""
        title, _, detail = text.partition(": ")
        self._move(title, done, total, detail if done < total else "")

    def trial(self, done: int, total: int, best: float | None, seconds: float | None) -> None:
        """Move the bar of the trials."""
        parts = [] if best is None else [f"best {best:.4f}"]
        if seconds is not None:
            self._seconds.append(seconds)
        if self._seconds:
            speed = sum(self._seconds) / len(self._seconds)
            left = round(speed * (total - done))
            parts += [f"{speed:.2f} s/trial", f"{left // 60}:{left % 60:02d} left"]
        self._move("trials", done, total, " · ".join(parts))

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        self._console.print(f"note: {text}", markup=False, highlight=False)

    def _move(self, title: str, done: int, total: int, detail: str) -> None:
        if not self._tasks:
            self._progress.start()
        if title not in self._tasks:
            self._tasks[title] = self._progress.add_task(title, total=total, detail=detail)
        self._progress.update(self._tasks[title], completed=done, total=total, detail=detail)
