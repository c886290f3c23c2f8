"""How well scores of few items rank the candidates of real studies, and what is said of it.

Two tiny families are trained, one whose experts forget the other tasks and one with 4 % replay,
whose merges are nearer to each other. Studies of each are run; then the baselines and a part of the
trials are scored on items that it has not seen. The first of them are drawn from, by the rest the
true ranking is known: by accuracy over the best expert's, mean of the tasks.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from scipy.stats import spearmanr

from evomerge.errors import Place, StudyFileError
from evomerge.estimates import Ridge, informative
from evomerge.fidelity import fidelity
from evomerge.merger import Merger
from evomerge.models import LiveModel
from evomerge.proxy_tasks import sigmoid_of_margin
from evomerge.recipe import Recipe, parse_recipe
from evomerge.rivals import Estimator
from evomerge.study.file import check_study, load_study_file
from evomerge.study.store import Store
from evomerge.zoo import FAMILY, build_zoo

FAMILIES = {"no replay": 0.0, "4 % replay": 0.04}
SIZES = (16, 25, 32, 50, 100, 128, 250)  # items per task
POOL = 512  # items that these are drawn from
DRAWS = 20
SEARCH = 256  # of the pool, what a study has from which racing chooses
CALIBRATORS = 10  # first of the trials, by which anchors and regression know trials
WIDE = 16.0  # a temperature at which no margin is lost to rounding
PLACE = Place("the benchmark", StudyFileError)


@dataclass(frozen=True)
class Measured:
    """Margins and probabilities of the right answer, [candidates, tasks, items]."""

    names: list[str]
    margin: np.ndarray
    gold: np.ndarray

    @property
    def trials(self) -> np.ndarray:
        """Which candidates are trials."""
        return np.array([name.startswith("trial ") for name in self.names])

    @property
    def experts(self) -> list[int]:
        """Which candidate is the expert of each task."""
        return [self.names.index(name) for name in FAMILY.tasks]

    def normalized(self, scores: np.ndarray, items: slice | np.ndarray) -> np.ndarray:
        """Mean over tasks of the trials' scores over the best expert's, on some items."""
        means = scores[:, :, items].mean(2)
        return (means[self.trials] / means[self.experts].max(0)).mean(1)

    @property
    def truth(self) -> np.ndarray:
        """The trials' normalized accuracies on the items that none is drawn from."""
        return self.normalized(self.margin > 0, slice(POOL, None))


def measure(folder: Path, replay: float, seed: int, candidates: int, items: int) -> Measured:
    """Train a family, unless it is there, run a study of it and score candidates on other items."""
    folder.mkdir(exist_ok=True)
    zoo = folder / "zoo"
    if not zoo.exists():
        build_zoo(zoo, family=replace(FAMILY, replay=replay, items=items + 1024))
    study = yaml.safe_load((zoo / "study.yaml").read_text())
    name = f"s{seed}"
    study["splits"] = {"search": 128, "select": 64, "heldout": 64}
    study["search"] |= {"trials": max(30, 2 * candidates), "seed": seed}
    (zoo / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    command = [sys.executable, "-m", "evomerge", "search", "zoo/study.yaml", "--name", name]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    os.chdir(folder)
    checked, store = check_study(load_study_file(zoo / "study.yaml")), Store.open(name, None)
    kinds = []
    for task in checked.tasks:
        wide = task.settings.model_copy(update={"temperature": WIDE})
        lines = (zoo / "tasks" / f"{task.name}.jsonl").read_text().splitlines()
        rows = [task.kind.render(json.loads(line), wide, PLACE) for line in lines]
        seen = {example.prompt for example in task.examples}
        fresh = [example for example in rows if example.prompt not in seen][:items]
        kinds.append(task.kind.Task(wide, fresh, checked.tokenizer))
    device = torch.device("cpu")
    merger = Merger(checked.checkpoints, result_dtype=checked.space.result_dtype, device=device)
    model = LiveModel(checked.checkpoints[0].folder, merger.output, device)
    margins, golds = [], []
    recipes = dict(recipes_of(store, checked, candidates))
    for number, (name, recipe) in enumerate(recipes.items()):
        print(f"{number} of {len(recipes)}: {name}", file=sys.stderr)
        merger.materialize(recipe)
        found = [kind.scores(model, range(items), True) for kind in kinds]
        scores = np.array([one.score for one in found])
        margins.append(WIDE * np.log(scores / (1 - scores)))
        golds.append([one.probabilities.gold for one in found])
    return Measured(list(recipes), np.array(margins), np.array(golds))


def recipes_of(store: Store, checked: Any, candidates: int) -> list[tuple[str, Recipe]]:
    """Return the baselines that the study has scored, and trials from its first to its last."""
    found = []
    names = ["base", *FAMILY.tasks, "uniform soup", "greedy soup", "TIES", "DARE-TIES"]
    names += [f"task arithmetic {step / 10}" for step in range(1, 16)]
    for name in names:
        row = store.get(f"row:{name}:search")
        if row is not None:
            what = row["what"]
            alone = {"merge_method": "passthrough", "models": [{"model": what.get("model")}]}
            found.append((name, parse_recipe(what.get("recipe", alone), PLACE)))
    done = [one for one in store.trials() if one.fitness is not None]
    chosen = np.unique(np.linspace(0, len(done) - 1, candidates).astype(int))
    trials = [done[index] for index in chosen]
    return found + [(f"trial {one.number}", checked.space.decode(one.values)) for one in trials]


def scores_of(measured: Measured) -> dict[str, Callable[[int], np.ndarray]]:
    """Return the scores that are compared, each a function of the number of items per task."""
    pool = measured.margin[:, :, :POOL]

    def margin(temperature: Any) -> np.ndarray:
        return sigmoid_of_margin(measured.margin / np.reshape(temperature, (1, -1, 1)), 1.0)

    fixed = {f"margin, τ {one}": (lambda n, one=one: margin(one)) for one in (0.25, 0.5, 1, 2)}
    return {
        "accuracy": lambda n: (measured.margin > 0).astype(float),
        **fixed,
        "margin, τ by the rule": lambda n: margin(rule(measured, pool, n)),
        "probability of the answer": lambda n: measured.gold,
    }


def rule(measured: Measured, margins: np.ndarray, items: int) -> np.ndarray:
    """Return the τ of each task for so many items, by its expert's margins on some."""
    sizes = [np.median(np.abs(margins[one, task])) for task, one in enumerate(measured.experts)]
    return (4 / items) ** (1 / 3) * np.array(sizes) / 1.814


def table_of(measured: Measured) -> dict[str, list[float]]:
    """Spearman correlations with the truth by score, for every size; mean of the draws."""
    stream = np.random.default_rng(0)
    draws = {n: [stream.permutation(POOL)[:n] for _ in range(DRAWS)] for n in SIZES}
    scores = scores_of(measured)
    found: dict[str, list[float]] = {}

    def note(name: str, estimate: Callable[[np.ndarray, np.ndarray, int], np.ndarray]) -> None:
        found[name] = [
            float(
                np.mean(
                    [
                        rank(measured, estimate(scores[name.partition("; ")[0]](n), items, draw))
                        for draw, items in enumerate(draws[n])
                    ]
                )
            )
            for n in SIZES
        ]

    for name in scores:
        note(name, lambda table, items, draw: measured.normalized(table, items))
    ways = {"ridge": by_ridge, "anchors": by_anchors, "ridge on anchors": by_both}
    for name in ("margin, τ 0.5", "margin, τ by the rule"):
        for label, way in ways.items():
            note(f"{name}; {label}", partial(way, measured))
    found["as racing asks"] = [
        float(np.mean([rank(measured, by_racing(measured, n, draw)) for draw in range(DRAWS)]))
        for n in SIZES
    ]
    return found


def rank(measured: Measured, estimate: np.ndarray) -> float:
    """Spearman with the truth, of the trials that no estimate was trained on."""
    return float(spearmanr(estimate[CALIBRATORS:], measured.truth[CALIBRATORS:])[0])


Way = Callable[[np.ndarray, np.ndarray], np.ndarray]  # a task's known rows and those to estimate


def by_tasks(measured: Measured, scores: np.ndarray, way: Way) -> np.ndarray:
    """Estimate each task's scores from rows that are known in full: baselines, first trials."""
    trials = np.flatnonzero(measured.trials)
    known = np.r_[np.flatnonzero(~measured.trials), trials[:CALIBRATORS]]
    pool = scores[:, :, :POOL]
    best = pool[measured.experts].mean(2).max(0)
    tasks = range(pool.shape[1])
    parts = [way(pool[known, task], pool[trials, task]) / best[task] for task in tasks]
    return np.mean(parts, axis=0)


def by_ridge(measured: Measured, scores: np.ndarray, items: np.ndarray, draw: int) -> np.ndarray:
    """Estimate by regression from the seen items."""
    return by_tasks(measured, scores, lambda known, new: regressed(known, items, new))


def by_anchors(measured: Measured, scores: np.ndarray, items: np.ndarray, draw: int) -> np.ndarray:
    """Estimate by anchors, each with the share of its cluster (arXiv:2309.08638)."""

    def estimated(known: np.ndarray, new: np.ndarray) -> np.ndarray:
        chosen = anchors(known, len(items), draw)
        nearest = distances(known)[chosen].argmin(0)
        nearest[chosen] = np.arange(len(chosen))  # of items that answer alike, each is its own
        return new[:, chosen] @ np.bincount(nearest, minlength=len(chosen)) / known.shape[1]

    return by_tasks(measured, scores, estimated)


def by_both(measured: Measured, scores: np.ndarray, items: np.ndarray, draw: int) -> np.ndarray:
    """Estimate by regression from the anchors."""

    def estimated(known: np.ndarray, new: np.ndarray) -> np.ndarray:
        return regressed(known, anchors(known, len(items), draw), new)

    return by_tasks(measured, scores, estimated)


def by_racing(measured: Measured, count: int, draw: int) -> np.ndarray:
    """Estimate the trials' scores on a search split from the items that racing puts first."""
    items = np.random.default_rng(draw).permutation(POOL)[:SEARCH]
    margins = measured.margin[:, :, items]
    tasks = range(margins.shape[1])
    score = sigmoid_of_margin(margins / rule(measured, margins, SEARCH)[:, None], 1.0)
    trials = np.flatnonzero(measured.trials)
    known = np.r_[np.flatnonzero(~measured.trials), trials[:CALIBRATORS]]
    seen = np.array([informative(score[known, task], draw)[:count] for task in tasks])
    rows, right = (one.reshape(len(margins), -1) for one in (score, (margins > 0).astype(float)))
    estimator = Estimator(rows[known], right[known], seen, SEARCH)
    means = np.array([estimator.estimate(rows[one], right[one])[0] for one in trials])
    return (means / score[measured.experts].mean(2).max(0)).mean(1)


def regressed(known: np.ndarray, seen: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Estimate the means of new rows over all items from those seen, by rows that are known."""
    unseen = np.setdiff1d(np.arange(known.shape[1]), seen)
    if not len(unseen):
        return new.mean(1)
    targets = known[:, unseen].mean(1) - known[:, seen].mean(1)
    others = (
        new[:, seen].mean(1) + Ridge(known[:, seen], targets[:, None]).predict(new[:, seen])[:, 0]
    )
    return (new[:, seen].sum(1) + len(unseen) * others) / known.shape[1]


def anchors(table: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return items that stand for all of a table [rows, items].

    Each is the one that most lessens the sum of the squared distances to the nearest: k-means whose
    centres are items, by the greedy rule (Nemhauser, Wolsey and Fisher 1978).
    """
    order = np.random.default_rng(seed).permutation(table.shape[1])
    apart = distances(table[:, order])
    nearest = np.full(len(order), np.inf)
    chosen: list[int] = []
    for _ in range(count):
        potential = np.minimum(apart, nearest[:, None]).sum(0)
        potential[chosen] = np.inf
        chosen.append(int(potential.argmin()))
        nearest = np.minimum(nearest, apart[:, chosen[-1]])
    return order[chosen]


def distances(table: np.ndarray) -> np.ndarray:
    """Return the squared distances between the items of a table [rows, items]."""
    squares = np.einsum("ij,ij->j", table, table)
    return np.maximum(squares[:, None] + squares - 2 * table.T @ table, 0.0)


def said_of(measured: Measured) -> dict[str, list[tuple[float, float]]]:
    """Return what a study would print as expected, and the correlation measured, for each size.

    A rank correlation ρ of normal numbers is 6/π · asin(ρ/2) for Spearman's; and no ranking
    correlates with a truth of so many items better than that one does with the truth of all.
    """
    stream = np.random.default_rng(1)
    scores = scores_of(measured)
    ones = dict.fromkeys(FAMILY.tasks, 1.0)
    right = (measured.margin > 0).astype(float)[:, :, POOL:]
    best = right[measured.experts].mean(2).max(0)
    limit: Any = fidelity(tables(right[measured.trials] / best[:, None]), ones)
    found: dict[str, list[tuple[float, float]]] = {}
    for name in ("accuracy", "margin, τ 0.5"):
        found[name] = []
        for n in SIZES:
            table = scores[name](n)
            pairs = []
            for _ in range(DRAWS):
                items = stream.permutation(POOL)[:n]
                drawn = table[:, :, items]
                best = drawn[measured.experts].mean(2).max(0)
                said: Any = fidelity(tables(drawn[measured.trials] / best[:, None]), ones)
                expected = 6 / np.pi * np.arcsin(said.correlation * limit.correlation / 2)
                estimate = measured.normalized(table, items)
                pairs.append((expected, spearmanr(estimate, measured.truth)[0]))
            expected, seen = np.mean(pairs, axis=0)
            found[name].append((float(expected), float(seen)))
    return found


def tables(scores: np.ndarray) -> dict[str, np.ndarray]:
    return {task: scores[:, index] for index, task in enumerate(FAMILY.tasks)}


def mean_of(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the mean over studies of what each key has."""
    return {key: np.mean([one[key] for one in each], axis=0).tolist() for key in each[0]}


def show(found: Mapping[str, Mapping[str, Any]], text: Callable[[Any], str]) -> None:
    print("| |" + "".join(f" {n} |" for n in SIZES))
    print("|---|" + "---|" * len(SIZES))
    for name in next(iter(found.values())):
        columns = zip(*(family[name] for family in found.values()), strict=True)
        print(f"| {name} |" + "".join(f" {' / '.join(map(text, one))} |" for one in columns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the tables to this file too")
    parser.add_argument("--measured", type=Path, help="folder where measurements are kept")
    parser.add_argument("--studies", type=int, default=3, help="of each family")
    parser.add_argument("--candidates", type=int, default=64, help="trials of each study")
    parser.add_argument("--items", type=int, default=2560, help="items a task, 512 of them drawn")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ranks, said = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        kept = (options.measured or Path(folder)).resolve()
        kept.mkdir(parents=True, exist_ok=True)
        for index, (name, replay) in enumerate(FAMILIES.items()):
            tables, sayings = [], []
            for seed in range(options.studies):
                file = kept / f"{index}-{seed}.npz"
                if not file.exists():
                    work = Path(folder) / str(index)
                    one = measure(work, replay, seed, options.candidates, options.items)
                    np.savez(file, names=one.names, margin=one.margin, gold=one.gold)
                data = np.load(file)
                one = Measured(data["names"].tolist(), data["margin"], data["gold"])
                spread = 100 * float(one.truth.std(ddof=1))
                print(f"{name}: {one.trials.sum()} trials, standard deviation {spread:.1f} points")
                tables.append(table_of(one))
                sayings.append(said_of(one))
            ranks[name], said[name] = mean_of(tables), mean_of(sayings)
    print(f"\nSpearman correlation with held-out accuracy by items per task, {' / '.join(ranks)}\n")
    show(ranks, lambda value: f".{round(1000 * value):03d}")
    print("\nexpected correlation, as a study prints it (in Spearman's terms), then the measured\n")
    show(said, lambda pair: f".{round(100 * pair[0]):02d} (.{round(100 * pair[1]):02d})")
    if options.json:
        options.json.write_text(json.dumps({"ranks": ranks, "said": said}, indent=2) + "\n")


if __name__ == "__main__":
    main()
