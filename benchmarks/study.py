"""The tool's own time: a trial less its merge and its score, a resume, the commands that read."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from evomerge.proxy_tasks import ItemScores  # noqa: E402
from evomerge.study import loop  # noqa: E402
from evomerge.study.file import CheckedStudy  # noqa: E402
from tests.study import fake_study  # noqa: E402

WINDOW = 60  # trials that a figure is the mean of: several generations
AT = (10, 2000)
EXPERTS = 2
KNOTS = {20: 9, 96: 47}  # of two curves, beside a scale for each expert
SIZES = {"search": 128, "select": 256, "heldout": 512}
COMMANDS = (["status", "s"], ["report", "s"], ["export", "s"], ["export", "s", "--trial", "7"])


class Scorer(fake_study.FakeScorer):
    """Gives scores that are ready, and says when it began and ended."""

    def __init__(self, checked: CheckedStudy) -> None:
        super().__init__(checked)
        draw = np.random.default_rng(0).random
        self._ready = {
            split: {task: ItemScores(draw(size), draw(size).round()) for task in fake_study.TASKS}
            for split, size in SIZES.items()
        }
        self._chance = np.random.default_rng(1)
        self.busy = 0.0

    def _scores(self, what: object, split: str) -> dict[str, ItemScores]:
        begun = time.perf_counter()
        shift = 0.1 * self._chance.random()
        found = {
            task: ItemScores(items.score * 0.9 + shift, items.correct)
            for task, items in self._ready[split].items()
        }
        self.busy += time.perf_counter() - begun
        return found


class Clock(fake_study.Silent):
    """Keeps the time at which each trial ended, less what the scorer took."""

    def __init__(self) -> None:
        super().__init__()
        self.scorer: Scorer | None = None
        self.times: list[float] = []

    def trial(self, done: int, total: int, best: float | None, seconds: float | None) -> None:
        """Note the time."""
        busy = 0.0 if self.scorer is None else self.scorer.busy
        self.times.append(time.perf_counter() - busy)

    def mean(self, first: int) -> float:
        """Return the milliseconds of a trial, from the first of a window on."""
        return (self.times[first + WINDOW] - self.times[first]) / WINDOW * 1e3


def study_file(folder: Path, dimensions: int, trials: int) -> Path:
    data = fake_study.mapping("cma_es")
    data["space"] = fake_study.curve(KNOTS[dimensions])
    data["search"] |= {"trials": trials, "racing": True}
    return fake_study.write_study(folder, data)


def run(dimensions: int, trials: int, url: str | None, name: str = "s") -> tuple[Clock, float]:
    """Start or resume a study in the working directory; returns its clock and its seconds."""
    study = study_file(Path.cwd(), dimensions, trials)
    clock = Clock()

    def scorer(checked: CheckedStudy, watcher: object, machine: object) -> Scorer:
        if len(checked.space.holes) != dimensions:
            raise SystemExit(f"expected {dimensions} dimensions, got {len(checked.space.holes)}")
        clock.scorer = Scorer(checked)
        return clock.scorer

    with fake_study.faked() as patch:
        patch.setattr(loop, "_scorer", scorer)
        options: dict[str, Any] = {"url": url, "watcher": clock, "trials": None}
        begun = time.perf_counter()
        if name in loop.studies(url):
            loop.resume(name, **options)
        else:
            loop.search(study, name, seed=None, **options)
    return clock, time.perf_counter() - begun


def own_time(rounds: int, url: str | None) -> dict[str, float]:
    """Return milliseconds per trial by dimensions and trial, the median of rounds in turns."""
    found: dict[str, list[float]] = {}
    for round_ in range(rounds):
        for dimensions in KNOTS:
            with tempfile.TemporaryDirectory() as folder:
                os.chdir(folder)
                name = f"d{dimensions}-{round_}-{os.getpid()}"
                clock, _ = run(dimensions, AT[-1] + WINDOW + 1, url, name)
                os.chdir(ROOT)
            for first in AT:
                key = f"{dimensions} dimensions, trial {first}"
                found.setdefault(key, []).append(clock.mean(first))
    return {key: statistics.median(values) for key, values in found.items()}


def long_study(trials: int, rounds: int) -> dict[str, float]:
    """Return the seconds that a resume and each reading command take on a long study."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run(20, trials, None)
        size = Path("runs/s/study.db").stat().st_size
        for _ in range(rounds):
            found.setdefault("resume", []).append(run(20, trials, None)[1])
            for words in COMMANDS:
                command = [sys.executable, "-m", "evomerge", *words]
                begun = time.perf_counter()
                environment = {**os.environ, "PYTHONPATH": str(ROOT)}
                subprocess.run(command, check=True, capture_output=True, env=environment)
                seconds = time.perf_counter() - begun
                found.setdefault(" ".join(words), []).append(seconds)
        os.chdir(ROOT)
    seconds = {key: statistics.median(values) for key, values in found.items()}
    return {**seconds, "megabytes": size / 1e6}


def show(title: str, figures: dict[str, float], unit: str) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("what")
    table.add_column(unit, justify="right")
    for key, value in figures.items():
        table.add_row(key, f"{value:.1f}")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=10_000, help="of the long study")
    parser.add_argument("--storage", help="a server's URL, for the time of a trial")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    given = parser.parse_args()
    trial = own_time(given.rounds, given.storage)
    show("A trial of CMA-ES less merge and score", trial, "ms")
    long = long_study(given.trials, given.rounds)
    show(f"A study of {given.trials} trials in 20 dimensions", long, "s")
    if given.json:
        given.json.write_text(json.dumps({"trial": trial, "long": long}, indent=2))


if __name__ == "__main__":
    main()
