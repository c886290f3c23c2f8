"""Compares searches at equal numbers of evaluations on synthetic fitness landscapes of merges.

    python benchmarks/search.py [--quick] [--seeds 5] [--landscape NAME …] [--json FILE]

benchmarks/README.md says how to read the tables.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one process per core is faster than more threads

import numpy as np
from landscapes import Layered, Mixed, Point, Problem, Weights, space_problem
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from scipy import stats

from evomerge import optimizers, plugins
from evomerge.errors import InputError, Place, StudyError
from evomerge.optimizers import Evaluated, OptimizerSettings, choose
from evomerge.study.finalists import candidates
from evomerge.study.rows import TrialRecord

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import cma

CONSOLE = Console(width=100)
PLACE = Place("the benchmark", InputError)
BUDGETS = (100, 300, 1000)
QUICK = (40, 80)
SPACE = "task_arithmetic"
MERGEKIT = "mergekit-evolve"
LIMITS = {"gp": 300, "tpe": 300}  # evaluations; models of many trials take minutes

LANDSCAPES: dict[str, Callable[[int], Weights | Mixed]] = {
    "smooth d=8": partial(Weights, experts=2, layers=4),
    "smooth d=32": partial(Weights, experts=2, layers=16),
    "smooth d=96": partial(Weights, experts=3, layers=32),
    "noisy d=32": partial(Weights, experts=2, layers=16, noise=0.5),
    "three tasks d=24": partial(Weights, experts=3, layers=8, tasks=3, items=100),
    "no pattern d=32": partial(Weights, experts=2, layers=16, shared=False),
    "mixed": Mixed,
}


@dataclass
class Trace:
    """All evaluations of one search, in order, and what its optimizer recommends after each."""

    problem: Problem | None = None  # None where nothing is scored again in the end
    values: list[dict[str, Any]] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    recommended: list[int | None] = field(default_factory=list)

    def winner(self, budget: int) -> Point:
        """Return what the search would return after so many evaluations."""
        if self.problem is None:
            return max(self.points[:budget], key=lambda one: one.measured)
        trials = [
            TrialRecord(slot, slot, slot, "complete", values, point.measured)
            for slot, (values, point) in enumerate(zip(self.values, self.points, strict=True))
        ][: max(1, budget - self.problem.spent)]
        holes, starting = self.problem.genome.holes, range(len(self.problem.starts))
        found = candidates(trials, holes, self.recommended[len(trials) - 1], (), starting)
        finalists = [
            self.problem.measure(one.values, 10**7) if one.trial is None else self.points[one.trial]
            for one in found
        ]
        return max(finalists, key=lambda one: one.select)


def search(
    problem: Problem, name: str, seed: int, budget: int, settings: OptimizerSettings | None = None
) -> Trace:
    """Run an optimizer as a study does, each horizon told as late as it allows."""
    trace = Trace(problem)

    def evaluate(values: dict[str, Any]) -> float:
        trace.values.append(values)
        trace.points.append(problem.measure(values, len(trace.points)))
        return trace.points[-1].measured

    start = [Evaluated(values, evaluate(values)) for values in problem.starts]
    trace.recommended += [None] * len(start)
    chosen = settings or OptimizerSettings()
    optimizer = optimizers.create(name, chosen, problem.genome, seed, start, PLACE)
    for slot in range(budget - problem.spent - len(start)):
        values = optimizer.ask(slot)
        optimizer.tell(slot, values, evaluate(values))
        found = optimizer.recommend()
        trace.recommended.append(None if found is None else len(start) + found)
    return trace


def as_mergekit(landscape: Layered, seed: int, budget: int) -> Trace:
    """Search as mergekit-evolve does: one weight per layer and expert, their absolute values."""
    experts, layers, groups = landscape.shape
    trace = Trace()
    options = {"seed": seed + 1, "verbose": -9, "signals_filename": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the spelling of its own defaults
        strategy = cma.CMAEvolutionStrategy([1 / experts] * (experts * layers), 1 / 6, options)
    while len(trace.points) < budget:
        population = strategy.ask()
        losses = []
        for genotype in population:
            weights = np.abs(genotype).reshape(experts, layers, 1).repeat(groups, axis=2)
            trace.points.append(landscape.point(weights, len(trace.points)))
            losses.append(-trace.points[-1].measured)
        strategy.tell(population, losses)
    return trace


def names_for(title: str) -> list[str]:
    """Return the searches that a landscape is given: all optimizers that can search its space."""
    landscape = LANDSCAPES[title](0)
    problem = problem_of(landscape)
    start = [Evaluated(values, 0.0) for values in problem.starts]
    found = [] if isinstance(landscape, Mixed) else [MERGEKIT]
    for name in plugins.names(optimizers):
        if isinstance(landscape, Mixed) and name == "gp":
            continue  # it tries every combination of choices: a minute for each trial
        with contextlib.suppress(StudyError):
            optimizers.create(name, OptimizerSettings(), problem.genome, 0, start, PLACE)
            found.append(name)
    return found


def problem_of(landscape: Weights | Mixed) -> Problem:
    """Return a landscape as the default space, or as its own holes, present it to a search."""
    return landscape.problem() if isinstance(landscape, Mixed) else space_problem(landscape, SPACE)


Job = tuple[str, str, int, tuple[int, ...]]  # landscape, search, seed, budgets
Regrets = dict[int, float]  # by budget


def regrets(job: Job) -> Regrets:
    """Return what one search reaches on one landscape with each budget."""
    title, name, seed, budgets = job
    landscape = LANDSCAPES[title](seed)
    budgets = tuple(one for one in budgets if one <= LIMITS.get(name, one))
    if name == MERGEKIT and isinstance(landscape, Weights):
        trace = as_mergekit(landscape, seed, max(budgets))
    else:
        trace = search(problem_of(landscape), name, seed, max(budgets))
    return {one: landscape.regret(trace.winner(one).true) for one in budgets}


def measure(titles: Sequence[str], seeds: int, budgets: tuple[int, ...]) -> dict[str, Any]:
    """Run everything; returns regrets by landscape, search and budget, one for each seed."""
    jobs = [
        (title, name, seed, budgets)
        for title in titles
        for name in names_for(title)
        for seed in range(seeds)
    ]
    jobs.sort(key=lambda job: job[1] not in LIMITS)  # the slow ones first
    found: dict[str, Any] = {title: {} for title in titles}
    context = multiprocessing.get_context("spawn")
    with context.Pool() as pool, Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("searching", total=len(jobs))
        for (title, name, _, _), result in zip(jobs, pool.imap(regrets, jobs), strict=True):
            progress.advance(task)
            for budget, regret in result.items():
                found[title].setdefault(name, {}).setdefault(budget, []).append(regret)
    for title in titles:
        problem = problem_of(LANDSCAPES[title](0))
        found[title]["auto"] = {
            budget: found[title][chosen][budget]
            for budget in budgets
            if budget in found[title][chosen := choose(problem.genome, budget - problem.spent)]
        }
    return found


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half the width of its 95 % interval over seeds."""
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values)), float(half)


def show(found: dict[str, Any], budgets: tuple[int, ...]) -> None:
    """Print one table for each landscape, then what was claimed and where it does not hold."""
    for title, searches in found.items():
        table = Table(title=f"Regret, {title}")
        for column in ("search", *(f"{budget} evaluations" for budget in budgets)):
            table.add_column(column)
        for name in ["auto", *(one for one in searches if one != "auto")]:
            cells = []
            for budget in budgets:
                values = searches[name].get(budget)
                cells.append("–" if values is None else "{:.2f} ± {:.2f}".format(*interval(values)))
            table.add_row(name, *cells)
        CONSOLE.print(table)
    CONSOLE.print("Mean over seeds and its 95 % interval. 1 is the best scale of task arithmetic,")
    CONSOLE.print("0 the best point of all weights; smaller is better. auto is the optimizer that")
    CONSOLE.print("a study of so many trials gets; its row repeats that optimizer's.")
    for title, searches in found.items():
        for line in verdicts(searches, budgets):
            CONSOLE.print(f"{title}: {line}")


def verdicts(searches: dict[str, Any], budgets: tuple[int, ...]) -> list[str]:
    """Return what the tables say of auto, by the mean over seeds."""
    auto, lines = searches["auto"], []
    for name in (MERGEKIT, "random_search"):
        if name not in searches or budgets[0] not in auto:
            continue
        early = float(np.mean(auto[budgets[0]]))
        later = [b for b in budgets if b in searches[name]]
        passed = [budget for budget in later if float(np.mean(searches[name][budget])) <= early]
        lines.append(
            f"auto at {budgets[0]} is reached by {name} "
            + (f"at {passed[0]}" if passed else f"not within {later[-1]}")
        )
    below = {b: [one for one in values if one > 1 + 1e-9] for b, values in auto.items()}
    counts = [
        f"{len(found)} of {len(auto[b])} at {b} (regret up to {max(found, default=1):.2f})"
        for b, found in below.items()
    ]
    return [*lines, f"searches of auto that end below the line: {', '.join(counts)}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two landscapes and seeds; seconds")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--landscape", nargs="+", choices=LANDSCAPES, default=list(LANDSCAPES))
    parser.add_argument("--json", type=Path, help="write the regrets to this file too")
    options = parser.parse_args()
    titles, seeds, budgets = options.landscape, options.seeds, BUDGETS
    if options.quick:
        titles, seeds, budgets = ["smooth d=8", "mixed"], 2, QUICK
    began = time.perf_counter()
    found = measure(titles, seeds, budgets)
    show(found, budgets)
    CONSOLE.print(f"{time.perf_counter() - began:.0f} s")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
