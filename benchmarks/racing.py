"""Measures what stopping candidates early saves: items put to models for the same held-out score.

    python benchmarks/racing.py [--seeds 0 1 2 3 4] [--items 256] [--zoo DIR] [--json FILE]

benchmarks/README.md says how to read the table.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import yaml

from evomerge.fitness import TaskScores, mean_scores, normalized_accuracy
from evomerge.recipe import Recipe
from evomerge.study import loop
from evomerge.study.file import CheckedStudy, check_study, load_study_file
from evomerge.study.finalists import candidates
from evomerge.study.scorer import Scorer
from evomerge.study.store import Store
from evomerge.zoo import build_zoo

CHECKPOINTS = (10, 20, 30, 40, 60, 80, 100, 130, 160, 200, 250, 300)
HELDOUT = 896


class Silent:
    """A watcher of nothing."""

    def stage(self, text: str, done: int, total: int) -> None:
        """See Watcher."""

    def trial(self, done: int, total: int, best: float | None, seconds: float | None) -> None:
        """See Watcher."""

    def note(self, text: str) -> None:
        """See Watcher."""


class Judge:
    """What a study would return after so many trials: a finalist, picked on the select items."""

    def __init__(self, checked: CheckedStudy) -> None:
        self.checked = checked
        self.scorer = Scorer(checked.checkpoints, checked.tasks, checked.tokenizer)
        self._known: dict[tuple[str, str], TaskScores] = {}
        refs = [ref for name, ref in checked.refs.items() if name != "base"]
        self.scorer.fit_temperatures()
        self.experts = {
            split: [self.scorer.model(ref, split, exact=True) for ref in refs]
            for split in ("select", "heldout")
        }

    def scores(self, recipe: Recipe, split: str) -> TaskScores:
        """Return a recipe's scores on a split, scored once."""
        key = (recipe.to_yaml(), split)
        if key not in self._known:
            self._known[key] = self.scorer.recipe(recipe, split, exact=True)
        return self._known[key]

    def heldout(self, trials: list[Any]) -> float:
        """Return the held-out score of what a study of these trials returns."""

        def select(recipe: Recipe) -> tuple[float, float]:
            scores = self.scores(recipe, "select")
            value = normalized_accuracy(scores, self.experts["select"]).value
            return value, sum(mean_scores(scores).values())

        space = self.checked.space
        recipes = [space.decode(one.values) for one in candidates(trials, space.holes, None, [])]
        winner = max(recipes, key=select)
        return normalized_accuracy(self.scores(winner, "heldout"), self.experts["heldout"]).value


def study(zoo: Path, seed: int, racing: Any, items: int, trials: int) -> Path:
    data = yaml.safe_load((zoo / "study.yaml").read_text())
    data["splits"] = {"search": items, "select": 256, "heldout": HELDOUT, "seed": seed}
    data["search"] = {"optimizer": "cma_es", "trials": trials, "seed": seed, "racing": racing}
    path = zoo / f"racing-{seed}-{bool(racing)}.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return path


def one(path: Path, judge: Judge | None) -> tuple[dict[str, Any], Judge]:
    """Run a study; returns its course, as items put to candidates and held-out score."""
    name = path.stem
    report = loop.search(path, name, trials=None, seed=None, url=None, watcher=Silent())
    judge = judge or Judge(check_study(load_study_file(path)))
    store = Store.open(name, None)
    trials, metrics = store.trials(), store.metrics()
    spent = np.cumsum([metrics.get(one.number, {}).get("answered", 0) for one in trials])
    course = [
        (int(spent[count - 1]), judge.heldout(trials[:count]), count)
        for count in CHECKPOINTS
        if count <= len(trials)
    ]
    rows = {row["name"]: row["heldout"] for row in report["rows"]}
    found = {
        "course": course,
        "items": int(spent[-1]),
        "winner": rows["winner"]["normalized"],
        "interval": [rows["winner"]["low"], rows["winner"]["high"]],
        "line": rows["task arithmetic"]["normalized"],
    }
    return found, judge


def mean_course(rows: Sequence[Mapping[str, Any]], which: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean held-out score of some studies by items, in steps of one full trial."""
    step = rows[0]["off"]["items"] // rows[0]["off"]["course"][-1][2]
    last = min(row[which]["course"][-1][0] for row in rows)
    items = np.arange(step, last + 1, step)
    scores = [
        np.interp(items, *np.array([one[:2] for one in row[which]["course"]]).T) for row in rows
    ]
    return items, np.mean(scores, axis=0)


def needed(rows: Sequence[Mapping[str, Any]], which: str, score: float) -> float:
    """Return after how many items the mean of the studies is at a score for good, or infinity."""
    items, scores = mean_course(rows, which)
    below = np.flatnonzero(scores < score)
    after = below[-1] + 1 if len(below) else 0
    return float(items[after]) if after < len(items) else float("inf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--items", type=int, default=256, help="search items of a task")
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--racing", type=json.loads, default=True, help="settings, as JSON")
    parser.add_argument("--zoo", type=Path, help="a family that is built already")
    parser.add_argument("--off", type=Path, help="a --json of before, whose studies without count")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        zoo = Path(folder) / "zoo"
        if options.zoo:
            zoo.mkdir()
            for part in options.zoo.resolve().iterdir():
                (zoo / part.name).symlink_to(part)
        else:
            build_zoo(zoo, seed=0, progress=Silent().stage)
        known = {}
        if options.off:
            known = {row["seed"]: row["off"] for row in json.loads(options.off.read_text())}
        rows = []
        print("seed   items off    items on  share   held-out off         held-out on")
        for seed in options.seeds:
            judge, off = None, known.get(seed)
            if off is None:
                off, judge = one(study(zoo, seed, False, options.items, options.trials), None)
            on, _ = one(study(zoo, seed, options.racing, options.items, options.trials), judge)
            row = {"seed": seed, "off": off, "on": on, "share": on["items"] / off["items"]}
            rows.append(row)
            print(
                f"{seed:>4}  {off['items']:>10,}  {on['items']:>10,}   {row['share']:.2f}   "
                f"{off['winner']:.3f} ({off['interval'][0]:.3f}-{off['interval'][1]:.3f})  "
                f"{on['winner']:.3f} ({on['interval'][0]:.3f}-{on['interval'][1]:.3f})",
                flush=True,
            )
            if options.json:
                options.json.write_text(json.dumps(rows, indent=2) + "\n")
    share = statistics.median(row["share"] for row in rows)
    gain = [row["on"]["winner"] - row["off"]["winner"] for row in rows]
    print(f"median: {share:.2f} of the items, held-out {statistics.median(gain):+.3f}")
    line = statistics.mean(row["off"]["line"] for row in rows)
    end = mean_course(rows, "off")[1][-1]
    for part in (0.5, 0.7, 0.8, 0.9, 0.95, 1.0):
        score = line + part * (end - line)
        off, on = (needed(rows, which, score) for which in ("off", "on"))
        print(f"mean held-out {score:.3f} ({part:.0%} of the gain): {off:,.0f} -> {on:,.0f} items")


if __name__ == "__main__":
    main()
