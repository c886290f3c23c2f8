"""What a page tells of a study beside its report: every trial, what mattered, how to repeat it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, select

from evomerge.fitness import Fitness, best_of, mean_scores
from evomerge.study import rows
from evomerge.study.export import exported, recorded_course
from evomerge.study.importance import importance
from evomerge.study.item_scores import unpack
from evomerge.study.store import Store
from evomerge.study.tables import TRIAL_ATTRIBUTES, TRIALS


def background(name: str, url: str | None) -> dict[str, Any]:
    """Return a study's trials, its baselines' fitness, what mattered and its record, as data.

    `seen` is how many items a trial has answered that was stopped early, None for the others, those
    whose weights had been scored before among them.
    """
    store = Store.open(name, url)
    record, report = store.get("study"), store.get("report")
    records = store.trials()
    known = store.look(_metrics)
    answered = {number: metrics.get("answered") for number, metrics in known.items()}
    most = max((one for one in answered.values() if one is not None), default=None)
    trials = []
    for one in records:
        seen = answered.get(one.number)
        trials.append(
            {
                "number": one.number,
                "state": one.state,
                "fitness": one.fitness,
                "error": known.get(one.number, {}).get("error"),
                "seen": seen if seen and seen != most else None,
            }
        )
    named = [row["name"] for row in report["rows"] if row["kind"] != "winner"] if report else []
    course = recorded_course(store, f"the recorded study {name}")
    return {
        "record": record,
        "inputs": store.get("inputs") or {},
        "trials": trials,
        "baselines": _baselines(store, record["study"], named),
        "importance": importance(course.holes, records),
        "seconds": store.summary().seconds,
        "recipe": exported(name, url, None),
    }


def _metrics(connection: Connection, study: int) -> dict[int, dict[str, Any]]:
    """Return the metrics of every trial by its number, the scores of single items left out."""
    query = (
        select(TRIALS.c.number, TRIAL_ATTRIBUTES.c.value_json)
        .join(TRIAL_ATTRIBUTES, TRIAL_ATTRIBUTES.c.trial_id == TRIALS.c.trial_id)
        .where(TRIALS.c.study_id == study, TRIAL_ATTRIBUTES.c.key == rows.METRICS)
    )
    found = {}
    for number, text in connection.execute(query):
        metrics = json.loads(text)
        metrics.pop("items", None)
        found[number] = metrics
    return found


def _baselines(store: Store, study: Mapping[str, Any], names: list[str]) -> dict[str, float]:
    """Return the fitness of baselines on the search items, as far as the database has them."""
    stored = {name: store.get(f"row:{name}:search") for name in names}
    means = {name: mean_scores(unpack(found["items"])) for name, found in stored.items() if found}
    experts = [means[name] for name in study["models"]["experts"] if name in means]
    if len(experts) < len(study["models"]["experts"]):
        return {}
    fitness = Fitness(best_of(experts), study["fitness"]["worst"])
    return {name: fitness.of(one) for name, one in means.items()}
