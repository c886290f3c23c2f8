"""A study from its baselines to its report: decode, merge, score, record, trial by trial."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.errors import Place, RecipeError
from evomerge.racing import Racer
from evomerge.recipe import parse_recipe, weights_key
from evomerge.study.baselines import Baselines, baselines, carried_over, starting_points
from evomerge.study.evidence import expectations
from evomerge.study.file import CheckedStudy
from evomerge.study.finals import finish_study
from evomerge.study.interrupts import Interrupts
from evomerge.study.replay import Search
from evomerge.study.scorer import Scoring
from evomerge.study.store import Store
from evomerge.study.trials import Trials, Watcher
from evomerge.study.workers import Workers

__all__ = ["Run", "Watcher"]

_PLACE = Place("a baseline", RecipeError)


@dataclass
class Run:
    """The work on a study of the one process that writes it."""

    store: Store
    checked: CheckedStudy
    record: Mapping[str, Any]
    scorer: Scoring
    workers: Workers
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
        Trials(
            self.store,
            self.checked,
            self.total,
            self.workers,
            self.interrupts,
            self.watcher,
            prior.fitness,
            self._racer(prior),
            search,
        ).run()
        return search

    def _racer(self, prior: Baselines) -> Racer:
        """Return what decides how many items each candidate answers."""
        tensors, file = self.checked.tensors, self.checked.file
        keys = {
            name: weights_key(parse_recipe(row.what["recipe"], _PLACE), tensors)
            for name, row in prior.scored.items()
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
