"""The end of a study: finalists on the select split, the winner on held-out items, the report."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evomerge import pareto
from evomerge.errors import CandidateError, InputError, StudyError
from evomerge.evaluator import SPLITS, Split
from evomerge.fitness import (
    Fitness,
    TaskScores,
    best_of,
    mean_correct,
    mean_scores,
    normalized_accuracy,
)
from evomerge.merger import Progress
from evomerge.search_space import SearchSpace
from evomerge.study.baselines import Baselines, Row, ahead, row_scores
from evomerge.study.evidence import (
    calibration_report,
    fidelity_report,
    gain_report,
    optimism_of,
)
from evomerge.study.examples import examples
from evomerge.study.finalists import (
    Candidate,
    Objectives,
    candidates,
    front_trials,
    recorded_objectives,
)
from evomerge.study.scorer import Scoring
from evomerge.study.stages import Course
from evomerge.study.store import Store


def finish_study(
    store: Store,
    scorer: Scoring,
    space: SearchSpace | Course,
    prior: Baselines,
    recommended: int | None,
    starting: Collection[int],
    several: bool,
    search: Mapping[str, Any],
    progress: Progress,
) -> dict[str, Any]:
    """Pick the winner and score it and the baselines on all splits; returns the report as data.

    `recommended` and `starting` are slots: what the optimizer recommends, and the first ones. Of
    `several` objectives the report has the front too. Everything scored is in the database, so what
    a killed process had done is not done again.
    """
    experts = [row for row in prior.rows if "model" in row.what][1:]
    trials = store.trials()
    objectives = recorded_objectives(store, prior.fitness) if several else {}
    front = front_trials(trials, objectives)
    found = candidates(trials, space.holes, recommended, front, starting)
    finalists = _score(store, scorer, space, found, experts, prior.fitness.worst, progress)
    chosen = max(finalists, key=lambda one: (one.select, one.margin)).to_mapping()
    recipe = space.decode(chosen["values"])
    winner = Row("winner", "winner", {"recipe": recipe.to_mapping()}, chosen["name"])
    rows = [winner, *prior.rows]
    table: dict[str, dict[Split, TaskScores]] = {row.name: {} for row in rows}
    ahead(store, scorer, rows, SPLITS)
    for index, row in enumerate(rows):
        progress(f"final scores: {row.name}", index, len(rows))
        for split in SPLITS:
            table[row.name][split] = row_scores(store, scorer, row, split)
    progress("final scores", len(rows), len(rows))
    names = [one.name for one in experts]
    shown = [winner, *experts, *(row for row in prior.rows if row.kind == "reference")]
    report = {
        "rows": [_report_row(row, table, names) for row in rows],
        "winner": {**chosen, "weights": scorer.digest(recipe), "recipe": recipe.to_mapping()},
        "finalists": [one.to_mapping() for one in finalists],
        "search": dict(search),
        "gain": gain_report(table, prior, names),
        "fidelity": fidelity_report(store, prior),
        "calibration": calibration_report(table, shown),
    }
    heldout = {one.name: table[one.name]["heldout"] for one in experts}
    report["examples"] = examples(scorer.tasks, "heldout", table["winner"]["heldout"], heldout)
    if several:
        members = {one.number for one in front}
        report["front"] = _front(finalists, members, objectives, prior.fitness)
    store.set("report", report)
    return report


@dataclass(frozen=True)
class _Finalist:
    """A candidate with its scores on the select split."""

    candidate: Candidate
    select: float  # fitness of its accuracies, by which the winner is picked
    normalized: float  # their mean
    margin: float  # mean smooth score, for ties
    objectives: tuple[float, ...]

    def to_mapping(self) -> dict[str, Any]:
        """Return the finalist as a report has it."""
        one = self.candidate
        return {
            "name": one.name,
            "trial": one.trial,
            "values": dict(one.values),
            "select": self.select,
            "margin": self.margin,
        }


def _score(
    store: Store,
    scorer: Scoring,
    space: SearchSpace | Course,
    found: Sequence[Candidate],
    experts: Sequence[Row],
    worst: float,
    progress: Progress,
) -> list[_Finalist]:
    """Score candidates on the select split, those left out that cannot be."""
    if not found:
        raise StudyError("no trial of the study succeeded, so there is no winner")
    pairs: list[tuple[Row, Candidate]] = []
    for candidate in found:
        try:
            recipe = space.decode(candidate.values)
        except (CandidateError, InputError):
            continue
        row = Row(candidate.name, "winner", {"recipe": recipe.to_mapping()})
        pairs.append((row, candidate))
    ahead(store, scorer, [*experts, *(row for row, _ in pairs)], ["select"])
    references = [row_scores(store, scorer, row, "select") for row in experts]
    fitness = Fitness(best_of([mean_scores(one) for one in references]))
    accuracy = Fitness(best_of([mean_correct(one) for one in references]), worst)
    scored: list[_Finalist] = []
    for index, (row, candidate) in enumerate(pairs):
        progress(f"finalists: {candidate.name}", index, len(found))
        try:
            scores = row_scores(store, scorer, row, "select")
        except (CandidateError, InputError):
            continue
        right, means = mean_correct(scores), mean_scores(scores)
        normalized = float(np.mean(accuracy.normalized(right)))
        margin = sum(means.values()) / len(means)
        own = accuracy.of(right), normalized, margin, fitness.normalized(means)
        scored.append(_Finalist(candidate, *own))
    if not scored:
        raise StudyError("no finalist of the study could be scored, so there is no winner")
    progress("finalists", len(found), len(found))
    return scored


def _front(
    finalists: Sequence[_Finalist],
    members: set[int],
    objectives: Objectives,
    fitness: Fitness,
) -> list[dict[str, Any]]:
    """Return the front as a report has it: its trials' objectives on both splits.

    `holds` says whether no other finalist dominates the trial on the select split either.
    """
    best = pareto.front(pareto.as_points([one.objectives for one in finalists]))
    tasks = list(fitness.reference)
    return [
        {
            "trial": one.candidate.trial,
            "search": dict(zip(tasks, objectives[one.candidate.trial], strict=True)),
            "select": dict(zip(tasks, one.objectives, strict=True)),
            "normalized": one.normalized,
            "holds": index in best,
        }
        for index, one in enumerate(finalists)
        if one.candidate.trial in members and one.candidate.trial is not None
    ]


def _report_row(
    row: Row, table: Mapping[str, Mapping[Split, TaskScores]], experts: Sequence[str]
) -> dict[str, Any]:
    data: dict[str, Any] = {"name": row.name, "kind": row.kind, "detail": row.detail}
    data["optimism"] = optimism_of(table, row.name, experts)
    for split in SPLITS:
        scores = table[row.name][split]
        interval = normalized_accuracy(scores, [table[name][split] for name in experts])
        data[split] = {
            "normalized": interval.value,
            "low": interval.low,
            "high": interval.high,
            "tasks": mean_correct(scores),
        }
    return data
