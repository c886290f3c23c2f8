"""What a database says of its studies at once: no model, no data and no trial is read."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from evomerge.errors import StudyError
from evomerge.study.database import command, shown
from evomerge.study.sight import workers_now
from evomerge.study.store import Store, studies

__all__ = ["none_yet", "status", "status_line", "stored_report", "studies"]


def status(name: str, url: str | None) -> dict[str, Any]:
    """Return a study's state as data."""
    store = Store.open(name, url)
    record = store.get("study")
    found = store.summary()
    best = None if found.best is None else {"trial": found.best[0], "fitness": found.best[1]}
    origin = record.get("origin")
    return {
        "name": name,
        "total": record["trials"],
        "trials": dict(found.count),
        "best": best,
        "seconds_per_trial": found.seconds,
        "optimizer": record["optimizer"],
        "finished": store.get("report") is not None,
        "forked_from": None if origin is None else origin["study"],
        "workers": [asdict(one) for one in workers_now(name)],
    }


def status_line(status: dict[str, Any]) -> str:
    """Return a study's state in one line."""
    count = status["trials"]
    done = count["complete"] + count["failed"]
    parts = [f"{status['name']}: {done} of {status['total']} trials"]
    parts += [f"{count[state]} {state}" for state in ("failed", "running") if count[state]]
    if status["best"]:
        parts.append(f"best {status['best']['fitness']:.4f} (trial {status['best']['trial']})")
    if status["seconds_per_trial"] is not None:
        parts.append(f"{status['seconds_per_trial']:.2f} s/trial")
    parts += [status["optimizer"], "finished" if status["finished"] else "unfinished"]
    parts += [f"forked from {status['forked_from']}"] if status["forked_from"] else []
    return ", ".join(parts)


def none_yet(url: str | None) -> str:
    """Say that there are no studies, and how to begin one."""
    where = shown(url) if url else "runs/"
    return f"no studies in {where}; begin one with: evomerge search STUDY.yaml"


def stored_report(name: str, url: str | None) -> dict[str, Any]:
    """Return a finished study's report; raises StudyError where it has none yet."""
    store = Store.open(name, url)
    found = store.get("report")
    if found is None:
        count = store.summary().count
        done = count["complete"] + count["failed"]
        total = store.get("study")["trials"]
        raise StudyError(
            f"the study {name} has no report yet, {done} of its {total} trials are done; "
            f"go on with {command('resume', name, url)}"
        )
    report: dict[str, Any] = found
    return report
