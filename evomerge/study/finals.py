"""The end of a study: finalists on the select split, the winner on held-out items, the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.errors import CandidateError, StudyError
from evomerge.evaluator import SPLITS
from evomerge.fitness import TaskScores, mean_correct, mean_scores, normalized_accuracy
from evomerge.merger import Progress
from evomerge.search_space import SearchSpace
from evomerge.study.baselines import Baselines, Row, row_scores
from evomerge.study.rows import TrialRecord
from evomerge.study.scorer import Scorer
from evomerge.study.store import Store

TOP = 5  # best trials on the search split that are scored again


def finish_study(
    store: Store,
    scorer: Scorer,
    space: SearchSpace,
    prior: Baselines,
    recommended: int | None,
    progress: Progress,
) -> dict[str, Any]:
    """Pick the winner and score it and the baselines on all splits; returns the report as data.

    Everything scored is in the database, so what a killed process had done is not done again.
    """
    experts = [row for row in prior.rows if "model" in row.what][1:]
    chosen, finalists = _pick(store, scorer, space, recommended, experts, progress)
    recipe = space.decode(chosen["values"])
    winner = Row("winner", "winner", {"recipe": recipe.to_mapping()}, chosen["name"])
    rows = [winner, *prior.rows]
    table: dict[str, dict[str, TaskScores]] = {row.name: {} for row in rows}
    for index, row in enumerate(rows):
        progress(f"final scores: {row.name}", index, len(rows))
        for split in SPLITS:
            table[row.name][split] = row_scores(store, scorer, row, split)
    progress("final scores", len(rows), len(rows))
    scorer.merger.materialize(recipe)
    report = {
        "rows": [_report_row(row, table, [one.name for one in experts]) for row in rows],
        "winner": {**chosen, "weights": scorer.merger.digest(), "recipe": recipe.to_mapping()},
        "finalists": finalists,
    }
    store.set("report", report)
    return report


def _pick(
    store: Store,
    scorer: Scorer,
    space: SearchSpace,
    recommended: int | None,
    experts: Sequence[Row],
    progress: Progress,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Score the finalists on the select split; the best normalized accuracy wins.

    Finalists are the best trials on the search split and the trial that the optimizer recommends,
    which noise misleads less than the best of many noisy ones.
    """
    trials = store.trials()
    candidates: list[dict[str, Any]] = [
        {"name": f"trial {one.number}", "trial": one.number, "values": dict(one.values)}
        for one in _finalists(trials, recommended)
    ]
    if not candidates:
        raise StudyError("no trial of the study succeeded, so there is no winner")
    references = [row_scores(store, scorer, row, "select") for row in experts]
    scored: list[dict[str, Any]] = []
    for index, candidate in enumerate(candidates):
        progress(f"finalists: {candidate['name']}", index, len(candidates))
        recipe = space.decode(candidate["values"])
        row = Row(candidate["name"], "winner", {"recipe": recipe.to_mapping()})
        try:
            scores = row_scores(store, scorer, row, "select")
        except CandidateError:
            continue
        interval = normalized_accuracy(scores, references)
        scored.append({**candidate, "select": interval.value, "margin": _mean(scores)})
    if not scored:
        raise StudyError("no finalist of the study could be scored, so there is no winner")
    progress("finalists", len(candidates), len(candidates))
    best = max(scored, key=lambda one: (one["select"], one["margin"]))
    return best, scored


def _mean(scores: TaskScores) -> float:
    means = mean_scores(scores)
    return sum(means.values()) / len(means)


def _finalists(trials: Sequence[TrialRecord], recommended: int | None) -> list[TrialRecord]:
    best = best_trials(trials)
    others = [one for one in trials if one.slot == recommended and one not in best]
    return best + others


def best_trials(trials: Sequence[TrialRecord], count: int = TOP) -> list[TrialRecord]:
    """Return the best different trials on the search split, best first."""
    done = [one for one in trials if one.fitness is not None]
    order = sorted(done, key=lambda one: (-(one.fitness or 0.0), one.slot))
    found: list[TrialRecord] = []
    for one in order:
        if len(found) == count:
            break
        if all(one.values != other.values for other in found):
            found.append(one)
    return found


def _report_row(
    row: Row, table: Mapping[str, Mapping[str, TaskScores]], experts: Sequence[str]
) -> dict[str, Any]:
    data: dict[str, Any] = {"name": row.name, "kind": row.kind, "detail": row.detail}
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
