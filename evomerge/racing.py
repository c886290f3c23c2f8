"""Early stopping of candidates: items in rungs, what the others would score being estimated.

A candidate is put a few items first, those that tell most of the mean, then twice as many, and so
on, in the manner of successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943). After each
rung its fitness on all items is estimated from candidates that have answered them all. It stops,
the estimate being its score, where that is below the best of those, and where it is exact beside
what the last candidates differ by: an optimizer that ranks them needs no more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from evomerge.estimates import Vector, informative
from evomerge.fitness import Fitness, TaskScores, mean_correct, mean_scores
from evomerge.proxy_tasks import ItemScores
from evomerge.rivals import Objectives, Rivals, flat

_GROWTH = 2  # from one rung to the next
_LAST_SHARE = 2  # the last rung before all items has at most one in so many of them
_EVERY = 20  # of so many slots, one has a candidate that answers all items
_RECENT = 28  # candidates whose spread tells how exact an estimate has to be
_ROWS = 60  # of the candidates that have answered all items, the best so many count, ...
_FEWEST = 8  # ... and with fewer, baselines among them, nobody stops
_CHOICE = 32  # slots after which the items are chosen again, lest a search learn them by heart

Places = Mapping[str, Sequence[int]]  # of items in their split, by task


class Racing(BaseModel):
    """How candidates are stopped early."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    first: int = Field(
        default=24, ge=2, description="items of each task that every candidate is put"
    )
    sigmas: float = Field(
        default=1.0,
        ge=0,
        description="standard errors by which an estimate may be below the best and still go on",
    )
    exact: float = Field(
        default=0.25,
        ge=0,
        description="share of the spread of the last candidates that is a small enough error",
    )


@dataclass(frozen=True)
class Raced:
    """What came of a candidate; of one that was stopped early, estimates.

    `scores` has not-a-numbers for the items that it was not put; `means` and `accuracies` are of
    all items, by task. `answered` is how many items it was put, none where its weights had been
    scored before.
    """

    scores: TaskScores
    means: Mapping[str, float]
    accuracies: Mapping[str, float]
    answered: int
    stopped: bool


@dataclass(frozen=True)
class _Row:
    """A candidate that has answered all items: its scores end to end, its objectives."""

    slot: int
    weights: str
    score: Vector
    correct: Vector
    objectives: tuple[float, ...]


class Racer:
    """Races the candidates of a study, each against what the slots below its horizon have shown.

    `sizes` are the items of each task, `known` the scores of the baselines on all of them, each
    with a key of its weights: weights that are known are not scored again, and those that were
    stopped are put only the items that they have not answered. What a race does depends on these,
    the seed and the rows noted below its horizon alone.
    """

    def __init__(
        self,
        settings: Racing | None,
        sizes: Mapping[str, int],
        fitness: Fitness,
        known: Sequence[tuple[str, TaskScores]],
        several: bool = False,
        seed: int = 0,
    ) -> None:
        self._settings = settings
        self._sizes = sizes
        self._objectives = Objectives(fitness, several)
        self._seed = seed
        self._known = [self._row(-1, *one) for one in known]
        self._rows: list[_Row] = []
        self._found: list[tuple[int, tuple[float, ...]]] = []  # the objectives of all slots
        self._by_weights = {row.weights: row for row in self._known}
        self._stopped: dict[str, list[tuple[int, TaskScores]]] = {}
        self._race: tuple[int, Rivals | None] | None = None
        self._order: tuple[int, dict[str, list[int]]] | None = None

    def note(self, slot: int, weights: str, scores: TaskScores, means: Mapping[str, float]) -> None:
        """Remember a slot; the tasks' means of a candidate that was stopped are estimated."""
        self._found.append((slot, self._objectives(means)))
        if all(np.isfinite(items.score).all() for items in scores.values()):
            self._rows.append(self._row(slot, weights, scores))
            self._by_weights.setdefault(weights, self._rows[-1])
        else:
            self._stopped.setdefault(weights, []).append((slot, scores))

    def known(self, horizon: int, weights: str) -> Raced | None:
        """Return what weights score that a baseline or a slot below the horizon has scored."""
        same = self._by_weights.get(weights)
        if same is None or same.slot >= horizon:
            return None
        return _whole(self._scores(same), 0)

    def race(self, slot: int, horizon: int, weights: str) -> Race:
        """Return what the candidate of a slot runs; it can be sent to another process."""
        before = [scores for one, scores in self._stopped.get(weights, ()) if one < horizon]
        answered = before[-1] if before else None
        if slot % _EVERY == 0:
            return Race(self._sizes, None, answered)
        if self._race is None or self._race[0] != horizon:
            self._race = horizon, self._prepared(horizon)
        return Race(self._sizes, self._race[1], answered)

    def _row(self, slot: int, weights: str, scores: TaskScores) -> _Row:
        score, correct = flat(scores, self._sizes)
        return _Row(slot, weights, score, correct, self._objectives(mean_scores(scores)))

    def _scores(self, row: _Row) -> TaskScores:
        ends = np.cumsum(list(self._sizes.values()))[:-1]
        parts = zip(np.split(row.score, ends), np.split(row.correct, ends), strict=True)
        return {task: ItemScores(*part) for task, part in zip(self._sizes, parts, strict=True)}

    def _prepared(self, horizon: int) -> Rivals | None:
        """Return what candidates of a horizon run against; None where they answer all items."""
        size = min(self._sizes.values())
        if self._settings is None or len(set(self._sizes.values())) > 1:
            return None
        rungs = []
        rung = self._settings.first
        while rung * _LAST_SHARE <= size:
            rungs.append(rung)
            rung *= _GROWTH
        rivals = [row for row in self._rows if row.slot < horizon]
        if not rungs or not rivals or len(rivals) + len(self._known) < _FEWEST:
            return None
        rows = self._trained(rivals)
        return Rivals(
            (*rungs, size),
            self._chosen(horizon, size),
            np.array([row.score for row in rows]),
            np.array([row.correct for row in rows]),
            [row.objectives for row in rivals],
            self._objectives,
            self._settings.sigmas,
            self._settings.exact * self._spread(horizon),
        )

    def _spread(self, horizon: int) -> Vector:
        """Return the standard deviations of the objectives of the last candidates."""
        found = [one for slot, one in self._found if slot < horizon][-_RECENT:]
        spread: Vector = np.std(found, axis=0)
        return spread

    def _chosen(self, horizon: int, size: int) -> Mapping[str, list[int]]:
        """Return the order of each task's items, as it was chosen last."""
        at = max(horizon // _CHOICE * _CHOICE, min(horizon, _CHOICE))
        if self._order is None or self._order[0] != at:
            rows = self._trained([row for row in self._rows if row.slot < at])
            table = np.array([row.score for row in rows])
            starts = dict(zip(self._sizes, range(0, table.shape[1], size), strict=True))
            found = {
                task: informative(table[:, start : start + size], self._seed).tolist()
                for task, start in starts.items()
            }
            self._order = at, found
        return self._order[1]

    def _trained(self, rivals: Sequence[_Row]) -> list[_Row]:
        """Return the rows that estimates are made from: the baselines and the best rivals."""
        best = sorted(rivals, key=lambda row: (-sum(row.objectives), row.slot))[:_ROWS]
        return [*self._known, *best]


def _whole(scores: TaskScores, answered: int) -> Raced:
    return Raced(scores, mean_scores(scores), mean_correct(scores), answered, stopped=False)


class Race:
    """What a candidate runs: items of each task in rungs, until it is stopped.

    `answered` has its scores of the items that it need not be put again.
    """

    def __init__(
        self, sizes: Mapping[str, int], rivals: Rivals | None, answered: TaskScores | None
    ) -> None:
        self._sizes = sizes
        self._rivals = rivals
        self._answered = answered

    def run(self, score: Callable[[Places | None], TaskScores]) -> Raced:
        """Put items to a candidate until it is stopped or there are no more.

        `score` puts it the items at some places, or all of them (None); it may raise
        CandidateError.
        """
        rivals = self._rivals
        if rivals is None and self._answered is None:
            return _whole(score(None), sum(self._sizes.values()))
        found = self._begun()
        before = count = 0
        order = rivals.order if rivals else {task: range(n) for task, n in self._sizes.items()}
        for rung in rivals.rungs if rivals else [max(self._sizes.values())]:
            places = {task: _open(found[task], own[before:rung]) for task, own in order.items()}
            before = rung
            if any(places.values()):
                for task, items in score(places).items():
                    found[task].score[places[task]] = items.score
                    found[task].correct[places[task]] = items.correct
                    count += len(places[task])
            if rivals is None or rung == rivals.rungs[-1]:
                break
            estimate = rivals.estimate(rung, found)
            if rivals.settle(estimate):
                return Raced(found, estimate.means, estimate.accuracies, count, stopped=True)
        return _whole(found, count)

    def _begun(self) -> dict[str, ItemScores]:
        """Return what is known of each task's items, not-a-numbers where that is nothing."""
        if self._answered is not None:
            return {
                task: ItemScores(items.score.copy(), items.correct.copy())
                for task, items in self._answered.items()
            }
        return {
            task: ItemScores(np.full(size, np.nan), np.full(size, np.nan))
            for task, size in self._sizes.items()
        }


def _open(items: ItemScores, places: Sequence[int]) -> list[int]:
    """Return those of some places that have no score yet."""
    return [place for place in places if np.isnan(items.score[place])]
