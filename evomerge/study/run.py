"""One process's work on a study: ask, decode, merge, score, record, tell; resume as replay."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from evomerge import optimizers
from evomerge.errors import CandidateError, InputError
from evomerge.fitness import Fitness, mean_correct, mean_scores
from evomerge.genome import Genome
from evomerge.optimizers import Evaluated, Optimizer
from evomerge.study.baselines import Baselines, baselines, carried_over, starting_points
from evomerge.study.file import CheckedStudy
from evomerge.study.finals import finish_study
from evomerge.study.interrupts import Interrupts
from evomerge.study.item_scores import pack
from evomerge.study.rows import TrialRecord
from evomerge.study.scorer import Scorer
from evomerge.study.store import Store


class Watcher(Protocol):
    """What a study tells of its progress."""

    def stage(self, text: str, done: int, total: int) -> None:
        """Report a step of loading, of the baselines or of the final scores."""
        ...

    def trial(self, done: int, total: int, best: float | None, seconds: float | None) -> None:
        """Report the trials done in all, the best fitness and the seconds of the last one."""
        ...

    def note(self, text: str) -> None:
        """Say something once."""
        ...


@dataclass
class Run:
    """One process's work on a study."""

    store: Store
    checked: CheckedStudy
    record: Mapping[str, Any]
    scorer: Scorer
    interrupts: Interrupts
    watcher: Watcher

    @property
    def total(self) -> int:
        """How many trials the study has in the end."""
        total: int = self.record["trials"]
        return total

    def all(self) -> dict[str, Any]:
        """Score the baselines, run all trials, then the finalists; returns the report."""
        prior = baselines(
            self.store,
            self.scorer,
            self.checked.refs,
            self.checked.space.result_dtype,
            self.checked.file.search.seed,
            self.checked.file.fitness.worst,
            self.watcher.stage,
        )
        for task in prior.unsolved:
            self.watcher.note(
                f"no input model answers one search item of {task} right; "
                "check its prompt and answer"
            )
        recommended = self.trials(prior)
        return finish_study(
            self.store,
            self.scorer,
            self.checked.space,
            prior,
            recommended,
            self.watcher.stage,
        )

    def trials(self, prior: Baselines) -> int | None:
        """Run what is missing of the trials; returns the slot that the optimizer recommends."""
        space = self.checked.space
        points = starting_points(space.weighted, space.initial, prior.starts)
        origin = self.record.get("origin")
        points += carried_over(origin["points"], space.holes, points) if origin else []
        search = _Replay(self, points[: self.total])
        recorded = {record.slot: record for record in self.store.trials()}
        best = _best(recorded.values())
        finished = sum(record.state != "running" for record in recorded.values())
        self.watcher.trial(finished, self.total, best, None)
        for slot in range(self.total):
            record = recorded.get(slot)
            if record is not None and record.state != "running":
                search.results.append(Evaluated(record.values, record.fitness))
                continue
            with self.interrupts.put_off():
                values = search.values(slot) if record is None else record.values
                number = self.store.propose(slot, values) if record is None else record.number
                started = time.perf_counter()
                fitness = self._evaluate(number, values, prior.fitness)
                finished += 1
                best = max((one for one in (best, fitness) if one is not None), default=None)
                self.watcher.trial(finished, self.total, best, time.perf_counter() - started)
                search.results.append(Evaluated(values, fitness))
        return search.recommended()

    def _evaluate(self, number: int, values: Mapping[str, Any], fitness: Fitness) -> float | None:
        try:
            recipe = self.checked.space.decode(values)
            scores = self.scorer.recipe(recipe, "search", exact=False)
            value = fitness.of(mean_scores(scores))
        except (CandidateError, InputError) as problem:
            self.store.finish(number, None, {"error": str(problem)})
            return None
        means, correct = mean_scores(scores), mean_correct(scores)
        tasks = {name: {"score": means[name], "accuracy": correct[name]} for name in scores}
        self.store.finish(number, value, {"tasks": tasks, "items": pack(scores)})
        return value


class _Replay:
    """Proposes points, telling the optimizer exactly what its horizon allows."""

    def __init__(self, run: Run, points: list[dict[str, Any]]) -> None:
        self.results: list[Evaluated] = []  # of all slots, in order
        self._run = run
        self._points = points
        self._optimizer: Optimizer | None = None
        self._told = 0

    def values(self, slot: int) -> dict[str, Any]:
        """Return what to try in a slot, all slots before it being known."""
        first = len(self._points)
        if slot < first:
            return self._points[slot]
        optimizer = self._ready()
        self._tell(optimizer.horizon(slot - first))
        return optimizer.ask(slot - first)

    def recommended(self) -> int | None:
        """Return the slot that the optimizer, told every result, recommends, if any."""
        first = len(self._points)
        if len(self.results) <= first:
            return None
        optimizer = self._ready()
        self._tell(len(self.results) - first)
        found = optimizer.recommend()
        return None if found is None else first + found

    def _ready(self) -> Optimizer:
        if self._optimizer is None:
            checked = self._run.checked
            self._optimizer = optimizers.create(
                checked.optimizer,
                checked.file.optimizer_settings,
                Genome(checked.space.holes),
                checked.file.search.seed,
                self.results[: len(self._points)],
                checked.file.place / "search" / "optimizer",
            )
        return self._optimizer

    def _tell(self, horizon: int) -> None:
        assert self._optimizer is not None
        while self._told < horizon:
            point = self.results[len(self._points) + self._told]
            self._optimizer.tell(self._told, point.values, point.fitness)
            self._told += 1


def _best(records: Iterable[TrialRecord]) -> float | None:
    return max((one.fitness for one in records if one.fitness is not None), default=None)
