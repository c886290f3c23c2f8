"""Compares searches at equal numbers of evaluations on the tiny family of real models.

    python benchmarks/search_family.py [--quick] [--seeds 5] [--zoo FOLDER] [--json FILE]

With --json, what the file has already is not measured again. benchmarks/README.md says how to read
the table.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from landscapes import LINE, Array, Problem
from rich.table import Table
from search import BUDGETS, CONSOLE, MERGEKIT, PLACE, SPACE, as_mergekit, interval, search

from evomerge.fitness import TaskScores, mean_correct, mean_scores, normalized_accuracy
from evomerge.genome import Genome
from evomerge.module_groups import Architecture
from evomerge.optimizers import choose
from evomerge.recipe import Recipe, parse_recipe
from evomerge.study.baselines import baselines, starting_points
from evomerge.study.file import check_study, parse_study
from evomerge.study.scorer import Scorer
from evomerge.zoo import build_zoo

QUICK = (30, 40)
SIZES = {"search": 64, "select": 128, "heldout": 1024}
LIMITS = {"gp": 300, "tpe": 300, "nsga2": 300, "cma_mixed": 300}  # evaluations, for time's sake
ACCURACY = f"{MERGEKIT}, accuracy"
SEARCHES = (  # those that auto stands for and is compared with first, so that they are done first
    "gp", "cma_es", ACCURACY, "random_search", MERGEKIT, "tpe", "nsga2", "cma_mixed",
)  # fmt: skip


class Merged:
    """A merge of the family: its fitness on the search items, and on the others when asked for."""

    def __init__(self, family: Family, recipe: Recipe, by_accuracy: bool = False) -> None:
        scores = family.scorer.recipe(recipe, "search", exact=False)
        accuracy = float(np.mean(list(mean_correct(scores).values())))
        self.measured = accuracy if by_accuracy else family.fitness.of(mean_scores(scores))
        self.tasks = family.fitness.normalized(mean_scores(scores))
        self._family, self._recipe = family, recipe

    @functools.cached_property
    def select(self) -> float:
        """The normalized accuracy on the select items; of equals the larger margin counts."""
        scores = self._family.scorer.recipe(self._recipe, "select", exact=True)
        margin = np.mean(list(mean_scores(scores).values()))
        return self._family.normalized(scores, "select") + 1e-6 * float(margin)

    @functools.cached_property
    def true(self) -> float:
        """The normalized accuracy on the held-out items."""
        scores = self._family.scorer.recipe(self._recipe, "heldout", exact=True)
        return self._family.normalized(scores, "heldout")


class Family:
    """The family as searches see it, with items that the seed draws."""

    def __init__(self, zoo: Path, seed: int) -> None:
        study = yaml.safe_load((zoo / "study.yaml").read_text())
        study |= {"space": SPACE, "splits": {**SIZES, "seed": seed}}
        checked = check_study(parse_study(study, zoo, PLACE))
        self.space, self._refs = checked.space, checked.refs
        self._tensors = checked.tensors
        dtype = checked.space.result_dtype
        self.scorer = Scorer(
            checked.checkpoints, checked.tasks, checked.tokenizer, result_dtype=dtype
        )
        experts = [name for name in checked.refs if name != "base"]
        self.scorer.fit_temperatures()
        self.shape = (len(experts), Architecture(checked.tensors).layers, 1)
        self._experts = {
            split: [self.scorer.model(checked.refs[name], split, exact=True) for name in experts]
            for split in SIZES
        }
        found = baselines(
            Memory(), self.scorer, checked.refs, dtype, seed, 0.0, lambda text, done, total: None
        )
        self.fitness, self._starts = found.fitness, found.starts
        line = next(row for row in found.rows if row.name == "task arithmetic")
        self.line = self.normalized(line.score(self.scorer, "heldout"), "heldout")
        self.ensemble = self.normalized(found.rows[-1].score(self.scorer, "heldout"), "heldout")

    def normalized(self, scores: TaskScores, split: str) -> float:
        """Return the normalized accuracy of scores on a split."""
        return normalized_accuracy(scores, self._experts[split]).value

    def problem(self) -> Problem:
        """Return the family as the default space presents it to a search."""
        starts = starting_points(self.space.weighted, self.space.initial, self._starts)

        def measure(values: Mapping[str, Any], draw: int) -> Merged:
            return Merged(self, self.space.decode(values))

        # The line, every expert, at most so many soups.
        spent = len(LINE) + 2 * len(self._refs) - 3
        return Problem(Genome(self.space.holes), measure, tuple(starts), spent)

    def layered(self, weights: Array, by_accuracy: bool) -> Merged:
        """Merge with a weight for each expert and layer, as mergekit-evolve's slices do.

        What comes before the layers has the weights of the first, what comes after them the last's.
        """
        names = [name for name in self._refs if name != "base"]
        after = [name for name in self._tensors if name in ("model.norm.weight", "lm_head.weight")]
        models = [
            {
                "model": str(self._refs[name]),
                "parameters": {
                    "weight": [
                        *({"filter": tensor, "value": float(own[-1])} for tensor in after),
                        {"value": own.tolist()},
                    ]
                },
            }
            for name, own in zip(names, weights[:, :, 0], strict=True)
        ]
        recipe = {
            "merge_method": "task_arithmetic",
            "base_model": str(self._refs["base"]),
            "models": models,
            "parameters": {"normalize": False},
            "dtype": "float32",
            "out_dtype": self.space.result_dtype,
        }
        return Merged(self, parse_recipe(recipe, PLACE), by_accuracy)


class Memory(dict[str, Any]):
    """What a study keeps in its database."""

    def set(self, key: str, value: Any) -> None:
        """Keep a value."""
        self[key] = value


class AsMergekit:
    """The family as mergekit-evolve sees it: by our fitness or by accuracy, as it has it."""

    def __init__(self, family: Family, by_accuracy: bool) -> None:
        self.shape = family.shape
        self._family, self._by_accuracy = family, by_accuracy

    def point(self, weights: Array, draw: int) -> Merged:
        """Merge with the weights."""
        return self._family.layered(weights, self._by_accuracy)


def searched(family: Family, name: str, seed: int, budgets: Sequence[int]) -> dict[str, Any]:
    """Run one search; returns the held-out score of what it returns, by budget, and its time."""
    budgets = [one for one in budgets if one <= LIMITS.get(name, one)]
    began = time.perf_counter()
    if name.startswith(MERGEKIT):
        trace = as_mergekit(AsMergekit(family, name == ACCURACY), seed, max(budgets))
    else:
        trace = search(family.problem(), name, seed, max(budgets))
    seconds = time.perf_counter() - began
    scores = {str(one): trace.winner(one).true for one in budgets}
    return {"search": name, "seed": seed, "seconds": seconds, "heldout": scores}


def measure(zoo: Path, seeds: int, budgets: Sequence[int], file: Path | None) -> dict[str, Any]:
    """Run every search with every seed; the file keeps what is done."""
    found: dict[str, Any] = {"families": [], "searches": []}
    if file is not None and file.exists():
        found = json.loads(file.read_text())
    done = {(one["search"], one["seed"]) for one in found["searches"]}
    family_of = functools.cache(lambda seed: Family(zoo, seed))
    for name in SEARCHES:
        for seed in range(seeds):
            if (name, seed) in done:
                continue
            family = family_of(seed)
            if seed == len(found["families"]):
                problem = family.problem()
                auto = {str(one): choose(problem.genome, one - problem.spent) for one in budgets}
                found["auto"] = auto
                found["families"].append({"line": family.line, "ensemble": family.ensemble})
            found["searches"].append(searched(family, name, seed, budgets))
            if file is not None:
                file.write_text(json.dumps(found, indent=1) + "\n")
    return found


def by_search(found: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Return the held-out scores by search and budget, in the order of the seeds; auto first."""
    scores: dict[str, dict[str, list[float]]] = {"auto": {}}
    for one in sorted(found["searches"], key=lambda one: one["seed"]):
        for budget, value in one["heldout"].items():
            scores.setdefault(one["search"], {}).setdefault(budget, []).append(value)
    for budget, name in found["auto"].items():
        if budget in scores.get(name, {}):
            scores["auto"][budget] = scores[name][budget]
    return scores


def show(found: Mapping[str, Any]) -> None:
    """Print the scores, then auto less what it is compared with, seed by seed."""
    scores = by_search(found)
    budgets = list(found["auto"])
    lines = [one["line"] for one in found["families"]]
    table = Table(title="Normalized held-out accuracy, the tiny family")
    for column in ("search", *(f"{budget} evaluations" for budget in budgets)):
        table.add_column(column)
    for name, by_budget in scores.items():
        cells = [_shown(by_budget[one]) if one in by_budget else "–" for one in budgets]
        table.add_row(name, *cells)
    CONSOLE.print(table)
    ensembles = [one["ensemble"] for one in found["families"]]
    CONSOLE.print(f"best scale of task arithmetic {_shown(lines)}, ensemble {_shown(ensembles)}")
    CONSOLE.print("Mean over seeds and its 95 % interval (Student's t over the seeds).")
    for early in scores["auto"]:
        auto = scores["auto"][early]
        gains = [a - b for a, b in zip(auto, lines, strict=False)]
        below = f"{sum(one < 0 for one in gains)} of {len(gains)} below, least {min(gains):+.3f}"
        CONSOLE.print(f"auto at {early} less the line: {_shown(gains, '+.3f')}; {below}")
        for name in (ACCURACY, MERGEKIT, "random_search"):
            for late, values in scores.get(name, {}).items():
                if int(late) >= int(early):
                    gaps = [a - b for a, b in zip(auto, values, strict=False)]
                    CONSOLE.print(f"auto at {early} less {name} at {late}: {_shown(gaps, '+.3f')}")


def _shown(values: Sequence[float], form: str = ".3f") -> str:
    if len(values) < 2:
        return format(values[0], form)
    mean, half = interval(values)
    return f"{mean:{form}} ± {half:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny budgets, one seed; a minute")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--zoo", type=Path, help="a family that is built already")
    parser.add_argument("--json", type=Path, help="keep the scores in this file")
    options = parser.parse_args()
    seeds, budgets = (1, QUICK) if options.quick else (options.seeds, BUDGETS)
    with tempfile.TemporaryDirectory() as folder:
        zoo = options.zoo or Path(folder) / "zoo"
        if options.zoo is None:
            build_zoo(zoo)
        show(measure(zoo, seeds, budgets, options.json))


if __name__ == "__main__":
    main()
