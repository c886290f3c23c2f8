"""What a report says of its own figures: fidelity, calibration, gains over baselines, optimism."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, select

from evomerge.calibration import calibration
from evomerge.evaluator import Split
from evomerge.fidelity import Fidelity, after, before, better_half, fidelity, stacked, warning
from evomerge.fitness import TaskScores, gain, normalized_accuracy, optimism
from evomerge.study import rows
from evomerge.study.baselines import Baselines, Row
from evomerge.study.item_scores import unpack
from evomerge.study.store import Store
from evomerge.study.tables import TRIAL_ATTRIBUTES, TRIALS

Table = Mapping[str, Mapping[Split, TaskScores]]  # of rows by name
Matrix = npt.NDArray[np.float64]

_MOST = 500  # trials, the last ones, whose items are compared
LINE = "task arithmetic"


def expectations(prior: Baselines) -> Iterator[str]:
    """Say what the search items can tell, as far as the baselines' scores on them show it."""
    found = fidelity_before(prior)
    if found is not None:
        yield before(found)
        problem = warning(found)
        if problem is not None:
            yield problem


def fidelity_before(prior: Baselines) -> Fidelity | None:
    """Estimate the fidelity of the search items from the better half of the baselines."""
    # Some are the same merge, such as the best of a line and that of its scale.
    distinct = {
        json.dumps(prior.scored[name].what): _smooth(one)
        for name, one in prior.scores.items()
        if name != "ensemble"
    }
    tables = stacked([*distinct.values()])
    if not tables:
        return None
    reference = prior.fitness.reference
    return fidelity(better_half(tables, reference), reference, prior.fitness.worst)


def fidelity_report(store: Store, prior: Baselines) -> dict[str, Any]:
    """Return what the search items can tell, as a report has it.

    By the baselines, `before` the search, and by its trials `after` it; None where either has too
    few rows. `sentences` says it in words.
    """
    first = fidelity_before(prior)
    tables = stacked(store.look(_item_scores))
    fitness = prior.fitness
    last = fidelity(tables, fitness.reference, fitness.worst) if tables else None
    sentences = [] if last is None else [after(last), warning(last)]
    return {
        "before": None if first is None else first.to_mapping(),
        "after": None if last is None else last.to_mapping(),
        "sentences": [one for one in sentences if one is not None],
    }


def _smooth(scores: TaskScores) -> dict[str, Matrix]:
    return {task: items.score for task, items in scores.items()}


def _item_scores(connection: Connection, study: int) -> list[dict[str, Matrix]]:
    """Return the smooth item scores of those last trials that answered all, each weights' once."""
    query = (
        select(TRIAL_ATTRIBUTES.c.value_json)
        .join(TRIALS, TRIALS.c.trial_id == TRIAL_ATTRIBUTES.c.trial_id)
        .where(TRIALS.c.study_id == study, TRIALS.c.state == "COMPLETE")
        .where(TRIAL_ATTRIBUTES.c.key == rows.METRICS)
        .order_by(TRIALS.c.number.desc())
        .limit(_MOST)
    )
    found: dict[str, dict[str, Matrix]] = {}
    for (text,) in connection.execute(query):
        metrics = json.loads(text)
        if metrics.get("items"):
            scores = _smooth(unpack(metrics["items"]))
            if all(np.isfinite(one).all() for one in scores.values()):
                found.setdefault(metrics["weights"], scores)
    return [*found.values()]


def calibration_report(
    table: Table, named: Sequence[Row]
) -> dict[str, dict[str, dict[str, float]]]:
    """Return the calibration of rows on held-out items, by row and task, where it is known."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in named:
        for task, items in table[row.name]["heldout"].items():
            known = items.probabilities
            if known is not None:
                figures = calibration(known.gold, known.confidence, items.correct)
                found.setdefault(row.name, {})[task] = figures.to_mapping()
    return found


def gain_report(table: Table, prior: Baselines, experts: Sequence[str]) -> dict[str, Any]:
    """Return how far the winner is above the best baseline and above the line, on held-out items.

    The best baseline is the best on these very items, which favours it: the winner has been chosen
    by others.
    """
    held = {name: splits["heldout"] for name, splits in table.items()}
    references = [held[name] for name in experts]
    names = [row.name for row in prior.rows if row.kind == "baseline"]
    best = max(names, key=lambda name: normalized_accuracy(held[name], references).value)
    found: dict[str, Any] = {
        key: {"name": name, **gain(held["winner"], held[name], references).to_mapping()}
        for key, name in (("baseline", best), ("line", LINE))
    }
    found["sentence"] = gain_sentence(found["baseline"])
    return found


def gain_sentence(found: Mapping[str, Any]) -> str:
    """Say whether the winner is above the best baseline."""
    points, low, high = (100 * found[key] for key in ("value", "low", "high"))
    figures = f"{points:+.1f} points [{low:.1f}, {high:.1f}] on held-out items"
    name = f"the best baseline ({found['name']})"
    if low > 0:
        return f"the winner beats {name} by {figures}"
    if high < 0:
        return f"the winner is worse than {name}: {figures}"
    return f"the winner is not distinguishable from {name}: {figures}"


def optimism_of(table: Table, name: str, experts: Sequence[str]) -> dict[str, float]:
    """Return how much higher a row's normalized accuracy is on search than on held-out items."""
    search, held = (
        [table[one][split] for one in (name, *experts)] for split in ("search", "heldout")
    )
    return optimism(search[0], search[1:], held[0], held[1:]).to_mapping()
