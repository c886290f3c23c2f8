"""Finished studies side by side, by their databases alone, and whether they can be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.study.store import Store


def compare(names: Sequence[str], url: str | None) -> dict[str, Any]:
    """Return what each study set out with and came to; StudyError where there is none of a name.

    Held-out figures are None of a study without a report. `differences` says in words what keeps
    studies from being compared by them: tasks, items or splits that are unlike the first one's.
    """
    names = list(dict.fromkeys(names))
    stores = [Store.open(name, url) for name in names]
    records = [store.get("study") for store in stores]
    return {
        "studies": [
            _one(name, store, record)
            for name, store, record in zip(names, stores, records, strict=True)
        ],
        "differences": _differences(names, records, [_experts(one) for one in stores]),
    }


def _one(name: str, store: Store, record: Mapping[str, Any]) -> dict[str, Any]:
    found, report = store.summary(), store.get("report")
    winner = report["rows"][0]["heldout"] if report else None
    held = None if winner is None else {key: winner[key] for key in ("normalized", "low", "high")}
    gain = (report or {}).get("gain") or {}
    return {
        "name": name,
        "tasks": list(record["items"]),
        "optimizer": record["optimizer"],
        "dimensions": len(record["holes"]),
        "trials": found.count["complete"] + found.count["failed"],
        "total": record["trials"],
        "seed": record["study"]["search"]["seed"],
        "heldout": held,
        "gain": gain.get("baseline"),
        "gain_over_line": gain.get("line"),
        "seconds_per_trial": found.seconds,
    }


def _experts(store: Store) -> dict[str, str | None]:
    """Return the weights of a study's experts, by which accuracy is normalized.

    They are not known of a study that has not loaded them yet.
    """
    known = store.get("inputs") or {}
    return {
        ref: known.get(ref) for ref in store.get("study")["study"]["models"]["experts"].values()
    }


def _same(ours: Mapping[str, str | None], theirs: Mapping[str, str | None]) -> bool:
    if None in (*ours.values(), *theirs.values()):
        return ours.keys() == theirs.keys()
    return set(ours.values()) == set(theirs.values())


def _differences(
    names: Sequence[str],
    records: Sequence[Mapping[str, Any]],
    experts: Sequence[Mapping[str, str | None]],
) -> list[str]:
    """Return a sentence for each study whose held-out figures are of something else."""
    found = []
    for name, record, own in zip(names[1:], records[1:], experts[1:], strict=True):
        unlike = _unlike(records[0], record)
        if not _same(own, experts[0]):
            unlike.append("its experts, by which accuracy is normalized, are others")
        if unlike:
            found.append(f"{name} is not comparable with {names[0]}: {', '.join(unlike)}")
    return found


def _unlike(first: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return in words what two studies' held-out figures do not share."""
    if first["items"].keys() != other["items"].keys():
        return [f"its tasks are {', '.join(other['items'])}, not {', '.join(first['items'])}"]
    found = []
    splits = [record["study"]["splits"] for record in (first, other)]
    for key in dict.fromkeys([*splits[0], *splits[1]]):
        ours, theirs = splits[0].get(key), splits[1].get(key)
        if ours != theirs:
            found.append(f"splits.{key} is {theirs}, not {ours}")
    # A fingerprint covers the draw, so other splits always have other ones.
    changed = [task for task, digest in first["items"].items() if other["items"][task] != digest]
    if changed and not found:
        found.append(f"the items of {', '.join(changed)} are others")
    return found
