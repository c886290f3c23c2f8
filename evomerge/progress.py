"""What a user sees while something runs: a frame on a terminal, now and then a line in a log."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

import psutil
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from evomerge.sizes import as_size

if TYPE_CHECKING:
    from evomerge.study.standing import Reader, Standing

_READ_SECONDS = 1.0  # between two looks into the database of a study that this process runs
_POLL_SECONDS = 2.0  # … that another process runs
_LINE_SECONDS = 30.0  # between two lines of a log, …
_LINE_SHARE = 10  # … unless a tenth of the trials has been done since
_BAR = 14  # columns
_FEW_WORKERS = 8  # of which each has a line
_LABEL = 9  # columns at least; more than a third of the terminal's only where these are
_OTHER_LINES = 8  # of a frame beside those of the stages and the tasks, at most
_WORDS = {
    "baselines": "scoring the baselines, {} so far",
    "final scores": "scoring the finalists and baselines again, {} so far",
    "finished": "finished",
}


class Bars:
    """Shows how far things are; use as a context manager.

    On a terminal it is a frame that is drawn again and again, elsewhere now and then a line, with
    `quiet` nothing. It goes to stderr, or to stdout where it is all that a command does
    (`watching` another process). `read` tells of a study what a watcher is not told; where it
    fails, which must not end the study, the frame says less.
    """

    def __init__(
        self,
        quiet: bool = False,
        read: Callable[[], Standing] | None = None,
        watching: bool = False,
    ) -> None:
        self._quiet = quiet
        self._console = Console(stderr=not watching, highlight=False)
        self._draws = self._console.is_terminal and not self._console.is_dumb_terminal
        self._memory: Callable[[], str] = (lambda: "") if watching else memory
        self._read = read
        self._stages: dict[str, tuple[int, int, str]] = {}
        self._before = 0  # stages that came before the trials
        self._standing: Standing | None = None
        self._notes: Mapping[str, str] = {}
        self._read_at = self._line_at = -_LINE_SECONDS
        self._tenth = 0
        self._live = Live(console=self._console, get_renderable=self._frame, refresh_per_second=2)

    def __enter__(self) -> Bars:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def stage(self, text: str, done: int, total: int) -> None:
        """Tell how far a stage is, named `title: detail` or `title`."""
        title, _, detail = text.partition(": ")
        new = title not in self._stages
        if new and self._standing is not None:  # the trials are over, maybe before their number
            self._standing = replace(self._seen(self._standing), phase="final scores")
        self._stages[title] = (done, total, detail if done < total else "")
        self._show([f"{title} {done}/{total}", detail], new)

    def trial(self, done: int, total: int, best: float | None, seconds: float | None) -> None:
        """Tell how far the trials are; what else there is to see is read, if it can be."""
        from evomerge.study.standing import Scored, Standing

        now = time.monotonic()
        if seconds is not None and done < total and now - self._read_at < _READ_SECONDS:
            return
        self._read_at = now
        scored = None if best is None else Scored("", best, {})
        self.stand(self._seen(Standing(done, total, best=scored, seconds=seconds)))

    def _seen(self, otherwise: Standing) -> Standing:
        if self._read is not None:
            with contextlib.suppress(Exception):
                return self._read()
        return otherwise

    def stand(self, standing: Standing, notes: Mapping[str, str] | None = None) -> None:
        """Show how far a study is, and what else there is to say, by labels."""
        self._hold(standing, notes)
        tenth = standing.done * _LINE_SHARE // standing.total
        new, self._tenth = tenth != self._tenth, tenth
        self._show([*_facts(standing), *self._notes.values()], new)

    def once(self, standing: Standing, notes: Mapping[str, str]) -> None:
        """Print the frame a single time, wherever it goes."""
        self._hold(standing, notes)
        self._console.print(self._frame())

    def note(self, text: str) -> None:
        """Print a line above the frame."""
        if not self._quiet:
            self.warn(f"note: {text}")

    def warn(self, text: str) -> None:
        """Print a line, also where it is to be quiet."""
        self._console.print(text, markup=False, soft_wrap=not self._draws)

    def _hold(self, standing: Standing, notes: Mapping[str, str] | None) -> None:
        if self._standing is None:
            self._before = len(self._stages)
        self._standing, self._notes = standing, notes or {}

    def _show(self, facts: list[str], new: bool) -> None:
        now = time.monotonic()
        if self._quiet:
            return
        if self._draws:
            self._live.start()  # which does nothing where it has begun
        elif new or now - self._line_at >= _LINE_SECONDS:
            self._line_at = now
            line = ", ".join(filter(None, [*facts, self._memory()]))
            self._console.print(f"{time.strftime('%H:%M:%S')} {line}", markup=False, soft_wrap=True)

    def _frame(self) -> Table:
        rows = Table.grid(padding=(0, 1))
        rows.add_column(no_wrap=True, overflow="ellipsis")
        rows.add_column(no_wrap=True, overflow="ellipsis")
        standing, stages = self._standing, list(self._stages.items())
        before = len(stages) if standing is None else self._before
        for title, stage in stages[:before]:
            rows.add_row(Text(title), _bar(*stage))
        if standing is not None:
            most = max(2, self._console.height - _OTHER_LINES - len(stages) - len(self._notes))
            _add_standing(rows, standing, most)
        for title, stage in stages[before:]:
            rows.add_row(Text(title), _bar(*stage))
        if used := self._memory():
            rows.add_row("memory", Text(used))
        for label, text in self._notes.items():  # whole, since one may be a command
            rows.add_row(label, Text(text, no_wrap=False, overflow="fold"))
        labels, texts = rows.columns
        longest = max((len(str(label)) for label in labels.cells), default=0)
        labels.width = max(_LABEL, min(longest, self._console.width // 3))
        texts.max_width = max(1, self._console.width - labels.width - 1)
        return rows


def watch(reader: Reader, once: bool) -> None:
    """Show on stdout how far a study is, until it is finished; `once` shows it and returns.

    A server that goes away meanwhile is asked again until it is back.
    """
    from evomerge.study.failures import DatabaseAwayError

    standing = None
    with Bars(watching=True) as bars:
        while True:
            try:
                standing = reader.read()
                notes = {"now": _WORDS.get(standing.phase, "").format(standing.scored)}
                if standing.phase != "finished":
                    notes["note"] = reader.unattended() or ""
            except DatabaseAwayError as away:
                if once or standing is None:
                    raise
                notes = {"note": f"the database is away ({away.reason}); trying again"}
            notes = {label: text for label, text in notes.items() if text}
            if once:
                bars.once(standing, notes)
            else:
                bars.stand(standing, notes)
            if once or standing.phase == "finished":
                return
            time.sleep(_POLL_SECONDS)


def memory() -> str:
    """Return how much memory this process has, and of each GPU that it uses."""
    parts = [as_size(psutil.Process().memory_info().rss)]
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        for index in range(torch.cuda.device_count()):
            reserved = torch.cuda.memory_reserved(index)
            if reserved:
                whole = torch.cuda.get_device_properties(index).total_memory
                parts.append(f"cuda:{index} {as_size(reserved)} of {as_size(whole)}")
    return ", ".join(parts)


def _bar(done: int, total: int, text: str) -> Table:
    row = Table.grid(padding=(0, 1))
    row.add_column(no_wrap=True)
    row.add_column(no_wrap=True)
    row.add_column(no_wrap=True, overflow="ellipsis")
    bar = ProgressBar(total=max(total, 1), completed=done, width=_BAR)
    row.add_row(bar, f"{done}/{total}", Text(text))
    return row


def _add_standing(rows: Table, standing: Standing, most: int) -> None:
    """Add the rows of a study, those of `most` tasks among them."""
    failed = f"{standing.failed} failed" if standing.failed else ""
    rows.add_row("trials", _bar(standing.done, standing.total, failed))
    if standing.seconds is not None:
        rows.add_row("time", Text(", ".join(_times(standing))))
    _add_workers(rows, standing)
    if standing.answered is not None and standing.answered < 1:
        rows.add_row("items", Text(f"{standing.answered:.0%} answered, the others estimated"))
    best, base = standing.best, standing.baseline
    if best is not None:
        rows.add_row("best", Text(f"{best.fitness:.4f} {best.name}"))
    if base is not None:
        gain = "" if best is None else f" (best {best.fitness - base.fitness:+.4f})"
        rows.add_row("baseline", Text(f"{base.fitness:.4f}{gain} {base.name}"))
    if best is None or base is None or not best.tasks:
        return
    tasks = list(best.tasks)
    listed = tasks if len(tasks) <= most else tasks[: most - 1]
    for task in listed:
        rows.add_row(Text(f"  {task}"), f"{best.tasks[task]:.4f}, baseline {base.tasks[task]:.4f}")
    if len(listed) < len(tasks):
        rows.add_row("", f"… and {len(tasks) - len(listed)} tasks more")


def _add_workers(rows: Table, standing: Standing) -> None:
    """Add a row of all workers, and of each where they are few."""
    if not standing.workers:
        return
    rows.add_row("workers", Text(_workers(standing)))
    for one in standing.workers if len(standing.workers) <= _FEW_WORKERS else ():
        speed = "" if one.seconds is None else f", {one.seconds:.2f} s each, {one.idle:.0%} idle"
        where = f"{one.node} {one.device}".strip()
        rows.add_row(f"  {one.number}", Text(f"{one.state}{speed} {where}".rstrip()))


def _workers(standing: Standing) -> str:
    states = [one.state for one in standing.workers]
    parts = [f"{states.count(state)} {state}" for state in ("busy", "idle", "loading")]
    idle = [one.idle for one in standing.workers if one.done]
    parts = [part for part in parts if not part.startswith("0 ")]
    return ", ".join([*parts, f"{sum(idle) / len(idle):.0%} of the time idle"] if idle else parts)


def _facts(standing: Standing) -> list[str]:
    """Return how far a study is as parts of a line."""
    best, base = standing.best, standing.baseline
    parts = [f"trials {standing.done}/{standing.total}"]
    parts += [f"{standing.failed} failed"] if standing.failed else []
    parts += [f"best {best.fitness:.4f} {best.name}".rstrip()] if best else []
    parts += [f"baseline {base.fitness:.4f} {base.name}"] if base else []
    parts += [f"{task} {score:.4f}" for task, score in (best.tasks if best else {}).items()]
    parts += _times(standing)
    parts += [f"workers: {_workers(standing)}"] if standing.workers else []
    if standing.answered is not None and standing.answered < 1:
        parts.append(f"{standing.answered:.0%} of the items answered")
    return parts


def _times(standing: Standing) -> list[str]:
    if standing.seconds is None:
        return []
    at_once = max(1, sum(one.state == "busy" for one in standing.workers))
    speed = f"{standing.seconds:.2f} s/trial"
    if standing.phase != "trials" or standing.done >= standing.total:
        return [speed]
    left = round(standing.seconds * (standing.total - standing.done) / at_once)
    minutes = f"{left // 60}" if left < 3600 else f"{left // 3600}:{left % 3600 // 60:02d}"
    return [speed, f"{minutes}:{left % 60:02d} left"]
