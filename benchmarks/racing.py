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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import yaml

from evomerge.fitness import TaskScores, mean_scores, normalized_accuracy
from evomerge.recipe import Recipe
from evomerge.study import loop
from evomerge.study.file import CheckedStudy, check_study, load_study_file
from evomerge.study.finalists import best_trials
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
    """What a study would return after so many trials: the best five, picked on the select items."""

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

        recipes = [self.checked.space.decode(one.values) for one in best_trials(trials)]
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
        (int(spent[count - 1]), judge.heldout(trials[:count]))
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


def needed(course: list[tuple[int, float]], score: float) -> float:
    """Return after how many items a search is at a score for good, or at its end for infinity."""
    below = [index for index, (_, value) in enumerate(course) if value < score]
    after = below[-1] + 1 if below else 0
    return float(course[after][0]) if after < len(course) else float("inf")


def ratio(on: Mapping[str, Any], off: Mapping[str, Any], share: float) -> float:
    """Return the items that racing needs over those without, for a share of the gain without."""
    score = off["line"] + share * (off["course"][-1][1] - off["line"])
    return needed(on["course"], score) / needed(off["course"], score)


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
        print("seed   items off    items on  share   held-out off     held-out on     of the gain:")
        print(
            "                                                                     90 %  95 %  98 %"
        )
        for seed in options.seeds:
            judge, off = None, known.get(seed)
            if off is None:
                off, judge = one(study(zoo, seed, False, options.items, options.trials), None)
            on, _ = one(study(zoo, seed, options.racing, options.items, options.trials), judge)
            row = {"seed": seed, "off": off, "on": on, "share": on["items"] / off["items"]}
            row["ratios"] = {share: ratio(on, off, share) for share in (0.9, 0.95, 0.98)}
            rows.append(row)
            ratios = "  ".join(f"{one:.2f}" for one in row["ratios"].values())
            print(
                f"{seed:>4}  {off['items']:>10,}  {on['items']:>10,}   {row['share']:.2f}   "
                f"{off['winner']:.3f} ({off['interval'][0]:.3f}-{off['interval'][1]:.3f})  "
                f"{on['winner']:.3f} ({on['interval'][0]:.3f}-{on['interval'][1]:.3f})  {ratios}",
                flush=True,
            )
            if options.json:
                options.json.write_text(json.dumps(rows, indent=2) + "\n")
    share = statistics.median(row["share"] for row in rows)
    gain = [row["on"]["winner"] - row["off"]["winner"] for row in rows]
    print(f"median: {share:.2f} of the items, held-out {statistics.median(gain):+.3f}")
    for at in (0.9, 0.95, 0.98):
        found = statistics.median(row["ratios"][at] for row in rows)
        print(f"median for {at:.0%} of the gain over the line: {found:.2f} of the items")


if __name__ == "__main__":
    main()
