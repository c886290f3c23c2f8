"""One process's work on a study: ask, decode, merge, score, record, tell; resume as replay."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from evomerge.errors import CandidateError, InputError, Place, RecipeError
from evomerge.expressions import Values
from evomerge.fitness import Fitness
from evomerge.optimizers import Evaluated
from evomerge.racing import Racer
from evomerge.recipe import Recipe, parse_recipe, weights_key
from evomerge.study.baselines import Baselines, baselines, carried_over, starting_points
from evomerge.study.evidence import expectations
from evomerge.study.file import CheckedStudy
from evomerge.study.finals import finish_study
from evomerge.study.interrupts import Interrupts
from evomerge.study.item_scores import pack, unpack
from evomerge.study.queue import Proposal, Queue
from evomerge.study.replay import Search
from evomerge.study.rows import TrialRecord
from evomerge.study.scorer import Scorer
from evomerge.study.store import Store

_PLACE = Place("a baseline", RecipeError)


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


@dataclass(frozen=True)
class _Candidate:
    """What is to be evaluated: a trial, and how many slots may be looked at for it."""

    slot: int
    number: int
    values: Values
    horizon: int


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
        self._set_temperatures()
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
        for note in expectations(prior):
            self.watcher.note(note)
        search = self.trials(prior)
        outcome = search.report(self.total)
        if outcome["ended"] is not None:
            self.watcher.note(f"{outcome['ended']} --trials does not extend it.")
        return finish_study(
            self.store,
            self.scorer,
            search.course,
            prior,
            search.recommended(),
            [slot for slot in range(self.total) if search.starting(slot)],
            self._several,
            outcome,
            self.watcher.stage,
        )

    def _set_temperatures(self) -> None:
        """Fit the temperatures that the study leaves to the experts, once."""
        found = self.store.get("temperatures")
        if found is None:
            self.store.set("temperatures", self.scorer.fit_temperatures())
        else:
            self.scorer.set_temperatures(found)

    @property
    def _several(self) -> bool:
        """Whether every task's score is an objective of its own."""
        return self.checked.file.search.objectives == "tasks"

    def trials(self, prior: Baselines) -> Search:
        """Run what is missing of the trials; returns the search at its end."""
        space = self.checked.space
        points = starting_points(space.weighted, space.initial, prior.starts)
        origin = self.record.get("origin")
        points += [dict(one) for one in self.checked.starts if one not in points]
        points += carried_over(origin["points"], space.holes, points) if origin else []
        stages = self.checked.file.search.stages
        search = Search(self.checked, points[: min([self.total, *(one.after for one in stages)])])
        recorded = {record.slot: record for record in self.store.trials()}
        queue = Queue(self.store, (record.queued for record in recorded.values()))
        racer = self._racer(prior)
        metrics = self.store.metrics()
        best = _best(recorded.values())
        finished = sum(record.state != "running" for record in recorded.values())
        self.watcher.trial(finished, self.total, best, None)
        for slot in range(self.total):
            if search.begin(slot):
                self.store.bind(search.space.holes)
            record = recorded.get(slot)
            if record is not None and record.state != "running":
                objectives: tuple[float, ...] = ()
                if record.fitness is not None:
                    known = metrics.pop(record.number)
                    racer.note(slot, known["weights"], unpack(known["items"]))
                    if self._several:
                        means = {task: one["score"] for task, one in known["tasks"].items()}
                        objectives = prior.fitness.normalized(means)
                evaluated = Evaluated(record.values, record.fitness, objectives)
                search.note(evaluated, record.queued is not None)
                continue
            horizon = search.horizon()
            with self.interrupts.put_off():
                if record is None:
                    queued = self._queued(queue, slot, search)
                    if queued is None and search.over():
                        break
                    proposal = queued or Proposal(search.values(slot))
                    number = self.store.propose(slot, proposal.values, proposal.queued)
                else:
                    proposal = Proposal(record.values, record.queued)
                    number = record.number
                values = proposal.values
                started = time.perf_counter()
                candidate = _Candidate(slot, number, values, horizon)
                evaluated = self._evaluate(candidate, search.decode, prior.fitness, racer)
                fitness = evaluated.fitness
                finished += 1
                best = max((one for one in (best, fitness) if one is not None), default=None)
                self.watcher.trial(finished, self.total, best, time.perf_counter() - started)
                search.note(evaluated, proposal.queued is not None)
        return search

    def _queued(self, queue: Queue, slot: int, search: Search) -> Proposal | None:
        """Return what is first in the queue; the starting points go before it."""
        if search.starting(slot):
            return None
        found, notes = queue.next(search.space, self.checked.tensors)
        for note in notes:
            self.watcher.note(note)
        return found

    def _racer(self, prior: Baselines) -> Racer:
        """Return what decides how many items each candidate answers."""
        tensors, file = self.checked.tensors, self.checked.file
        keys = {
            row.name: weights_key(parse_recipe(row.what["recipe"], _PLACE), tensors)
            for row in prior.rows
            if "recipe" in row.what
        }
        return Racer(
            file.search.racing,
            {task: len(items.score) for task, items in prior.scores["base"].items()},
            prior.fitness,
            [(keys.get(name, name), scores) for name, scores in prior.scores.items()],
            self._several,
            file.search.seed,
        )

    def _evaluate(
        self,
        candidate: _Candidate,
        decode: Callable[[Values], Recipe],
        fitness: Fitness,
        racer: Racer,
    ) -> Evaluated:
        values, number = candidate.values, candidate.number
        try:
            recipe = decode(values)
            weights = weights_key(recipe, self.checked.tensors)
            raced = racer.known(candidate.horizon, weights)
            if raced is None:
                raced = racer.race(candidate.horizon).run(self.scorer.candidate(recipe, "search"))
            value = fitness.of(raced.means)
        except (CandidateError, InputError) as problem:
            self.store.finish(number, None, {"error": str(problem)})
            return Evaluated(values, None)
        tasks = {
            name: {"score": raced.means[name], "accuracy": raced.accuracies[name]}
            for name in raced.scores
        }
        found = {"tasks": tasks, "items": pack(raced.scores), "weights": weights}
        self.store.finish(number, value, found | {"answered": raced.answered})
        racer.note(candidate.slot, weights, raced.scores)
        return Evaluated(values, value, fitness.normalized(raced.means) if self._several else ())


def _best(records: Iterable[TrialRecord]) -> float | None:
    return max((one.fitness for one in records if one.fitness is not None), default=None)
