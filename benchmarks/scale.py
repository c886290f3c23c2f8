"""Trials an hour with 1 to 32 workers on Ray, which only wait; the driver's own time."""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from evomerge.proxy_tasks import ItemScores  # noqa: E402
from evomerge.study import baselines, loop, resident  # noqa: E402
from evomerge.study.crew import Crew  # noqa: E402
from evomerge.study.workers import Elsewhere  # noqa: E402
from tests.study import fake_study  # noqa: E402

SIZES = (1, 2, 4, 8, 16, 32)
ROUNDS = 4  # trials of each worker
POPULATION = 63  # with its center two rounds of 32 workers
TABLES = ("trials", "trial_params", "trial_values", "trial_user_attributes")


class Waiting:
    """A worker's scorer, which waits for as long as a GPU would take; its models are nothing."""

    side_by_side = False
    tasks = ()
    device = "none"

    def __init__(self, seconds: float, refs: list[str]) -> None:
        self.seconds = seconds
        self.fingerprints = dict.fromkeys(refs, "as ever")

    def fit_temperatures(self) -> dict[str, float]:
        """Find that there are none."""
        return {}

    def set_temperatures(self, found: Any) -> None:
        """Use none."""

    def digest(self, recipe: Any) -> str:
        """Tell no weights from others."""
        return ""

    def candidate(self, recipe: Any, split: str) -> Any:
        """Return what waits and scores."""

        def scores(places: Any) -> Any:
            time.sleep(self.seconds)
            return self.recipe(recipe, split, exact=False)

        return scores

    def recipe(self, recipe: Any, split: str, exact: bool) -> Any:
        """Score by the first model's weight, a little worse the further from 0.7."""
        worth = 0.5
        if recipe is not None:
            weight = recipe.to_mapping()["models"][0]["parameters"]["weight"]
            weight = weight[0]["value"] if isinstance(weight, list) else weight
            weight = weight[0] if isinstance(weight, list) else weight
            worth = float(np.clip(0.8 - 0.2 * abs(weight - 0.7), 0, 1))
        size = {"search": 20, "select": 6, "heldout": 7}[split]
        score = np.full(size, worth) + np.linspace(-0.1, 0.1, size)
        return {task: ItemScores(score, (score > 0.5).astype(float)) for task in ("sums", "words")}

    def model(self, ref: Any, split: str, exact: bool) -> Any:
        """Score all inputs alike."""
        return self.recipe(None, split, exact)


class Clock(fake_study.Silent):
    """Keeps when the first trial of the optimizer's own began, and when each ended."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []
        self.cpu: list[float] = []

    def trial(self, done: int, total: int, best: float | None, seconds: float | None) -> None:
        """Note the time."""
        if seconds is not None:
            self.times.append(time.perf_counter())
            self.cpu.append(time.process_time())


class Whole(Crew):
    """All workers, once all of them are there."""

    def __init__(self, pool: Any, tasks: Any) -> None:
        super().__init__(pool, tasks)
        while sum(one.loaded is not None for one in pool._workers) < pool.size:
            pool.turn()


def own_trials(optimizer: str, workers: int) -> int:
    """Return so many trials that the last ones end together: a generation more is a round more."""
    most = ROUNDS * workers
    return most - 1 if optimizer == "cma_es" and most > POPULATION else most


def study_file(folder: Path, optimizer: str, workers: int) -> tuple[Path, int]:
    """Write a study of 14 dimensions; returns its path and its starting points."""
    data = fake_study.mapping("cma_es")
    data["space"] = fake_study.curve(6)
    own = {"population": POPULATION} if optimizer == "cma_es" else {"lag": workers + workers // 8}
    starts = 3
    data["search"] = {
        "optimizer": optimizer,
        "trials": starts + own_trials(optimizer, workers),
        "racing": False,
        "seed": 0,
        **own,
    }
    return fake_study.write_study(folder, data), starts


def run(optimizer: str, workers: int, seconds: float) -> dict[str, float]:
    """Run a study; returns its rate, its share of the ideal one, and what the driver did."""
    clock, here = Clock(), Path.cwd()
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        os.chdir(name)
        study, starts = study_file(Path(name), optimizer, workers)
        fake_study.fake_models(patch)

        def opened(study: Any) -> Waiting:
            models = study.record["study"]["models"]
            return Waiting(seconds, [models["base"], *models["experts"].values()])

        patch.setattr(resident, "open_scorer", opened)
        patch.setattr(loop, "_tell", lambda checked, watcher: None)
        patch.setattr(baselines, "LINE", (0.3, 0.6))
        from evomerge.study import finals, ray_workers

        patch.setattr(ray_workers, "Crew", Whole)
        patch.setattr(finals, "examples", lambda *arguments: [])
        loop.search(
            study,
            "s",
            trials=None,
            seed=None,
            url=None,
            watcher=clock,
            elsewhere=Elsewhere(workers, deadline=1e6),
        )
        with sqlite3.connect("runs/s/study.db") as connection:
            rows = sum(
                connection.execute(f"select count(*) from {table}").fetchone()[0]  # noqa: S608
                for table in TABLES
            )
        os.chdir(here)
    trials = len(clock.times)
    own = trials - starts
    wall = clock.times[-1] - clock.times[starts - 1]
    return {
        "workers": workers,
        "trials": own,
        "rate": 3600 * own / wall,
        "ideal": own * seconds / (workers * wall),
        "driver": (clock.cpu[-1] - clock.cpu[starts - 1]) / own,
        "rows": rows / trials,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="that an evaluation takes")
    parser.add_argument("--optimizers", nargs="+", default=["cma_es", "tpe", "gp"])
    parser.add_argument("--workers", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {}
    console = Console()
    for optimizer in given.optimizers:
        table = Table(title=f"{optimizer}: evaluations of {given.seconds:g} s")
        for column in ("workers", "trials", "an hour", "of ideal", "driver ms/trial", "rows/trial"):
            table.add_column(column, justify="right")
        for workers in given.workers:
            one = run(optimizer, workers, given.seconds)
            found.setdefault(optimizer, []).append(one)
            table.add_row(
                str(workers),
                f"{one['trials']:.0f}",
                f"{one['rate']:,.0f}",
                f"{one['ideal']:.3f}",
                f"{one['driver'] * 1e3:.0f}",
                f"{one['rows']:.0f}",
            )
        console.print(table)
        if given.json:
            given.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
