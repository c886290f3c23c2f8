"""Where the marks of a page's charts stand: percentages of the chart's width and height."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_STEPS = (1, 2, 2.5, 5, 10)
_GAP = 7.0  # percent of the height between two labels at the side


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where, in percent, and what it says."""

    at: float
    label: str


@dataclass(frozen=True)
class Axis:
    """A linear scale from `low` to `high`, with round ticks."""

    low: float
    high: float
    ticks: tuple[Tick, ...]

    def at(self, value: float) -> float:
        """Return where a value stands, in percent; one beyond the ends stands at the end."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(max(share, 0.0), 1.0), 2)


def axis(values: Sequence[float], most: int = 5) -> Axis:
    """Return a scale that holds all values, with some room around them and at most `most` ticks."""
    low, high = min(values), max(values)
    room = 0.04 * (high - low) or 0.05 * (abs(high) or 1.0)
    low, high = low - room, high + room
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(one * power for one in _STEPS if one * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = next(n for n in range(17) if round(step, n) == step or n == 16)
    bare = Axis(low, high, ())
    marks = [number * step for number in range(first, last + 1)]
    return Axis(low, high, tuple(Tick(bare.at(one), f"{one:.{digits}f}") for one in marks))


def intervals(rows: Sequence[Mapping[str, Any]], split: str = "heldout") -> dict[str, Any]:
    """Return the rows' intervals on a split to scale; 1, the best experts, is on it."""
    parts = [row[split] for row in rows]
    scale = axis([1.0, *(part[key] for part in parts for key in ("low", "high", "normalized"))])
    marks = []
    for row, part in zip(rows, parts, strict=True):
        low, high = scale.at(part["low"]), scale.at(part["high"])
        own = {"low": low, "width": round(high - low, 2), "at": scale.at(part["normalized"])}
        marks.append({"row": row, "part": part, **own})
    return {"axis": scale, "marks": marks, "one": scale.at(1.0)}


def course(
    trials: Sequence[Mapping[str, Any]],
    baselines: Mapping[str, float],
    stages: Sequence[Mapping[str, Any]],
) -> dict[str, Any] | None:
    """Return every trial's fitness, the best so far, baselines and stages; None without success.

    The scale leaves out the worst of the trials, which stand at its lower edge, so that the others
    can be told apart.
    """
    done = [one for one in trials if one["fitness"] is not None]
    if not done:
        return None
    whole = [one for one in done if one["seen"] is None] or done
    values = np.array([one["fitness"] for one in whole])
    top = max(float(values.max()), *baselines.values()) if baselines else float(values.max())
    tenth = float(np.quantile(values, 0.1))
    floor = max(float(values.min()), tenth - 0.5 * (top - tenth))
    scale = axis([floor, top])
    last: int = max(1, *(one["number"] for one in trials))

    def x(number: int) -> float:
        return round(100.0 * number / last, 2)

    points, failed, steps = [], [], []
    best: float | None = None
    since = 0.0
    for one in trials:
        value, at = one["fitness"], x(one["number"])
        if value is None:
            if one["state"] == "failed":
                failed.append({"x": at, "trial": one})
            continue
        place = 100 - scale.at(value)
        points.append({"x": at, "y": place, "trial": one, "below": value < scale.low})
        if one["seen"] is None and (best is None or value > best):
            if best is not None:
                steps.append({"from": since, "to": at, "y": 100 - scale.at(best), "up": place})
            best, since = value, at
    if best is not None:
        height = 100 - scale.at(best)
        steps.append({"from": since, "to": 100.0, "y": height, "up": height})
    shown = {name: value for name, value in baselines.items() if value >= scale.low}
    return {
        "axis": scale,
        "last": last,
        "points": points,
        "failed": failed,
        "steps": steps,
        "baselines": _labelled(shown, scale),
        "stages": [{"x": x(one["first"]), "number": n + 1} for n, one in enumerate(stages) if n],
    }


def _labelled(values: Mapping[str, float], scale: Axis) -> list[dict[str, Any]]:
    """Return lines at some values, best first; those that have room beside them get a label."""
    taken: list[float] = []
    found = []
    for name, value in sorted(values.items(), key=lambda one: -one[1]):
        at = round(100 - scale.at(value), 2)
        free = all(abs(at - other) >= _GAP for other in taken)
        taken += [at] if free else []
        found.append({"name": name, "value": value, "y": at, "label": free})
    return found


def plane(front: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> dict[str, Any]:
    """Return the front of two objectives as points: on the search items, and on the select ones."""
    splits = ("search", "select")
    x, y = (axis([one[split][task] for one in front for split in splits]) for task in tasks)
    points = [
        {
            "one": one,
            **{split: (x.at(one[split][tasks[0]]), 100 - y.at(one[split][tasks[1]]))
               for split in splits},
        }
        for one in front
    ]  # fmt: skip
    return {"x": x, "y": y, "points": points}


def parallel(front: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> dict[str, Any]:
    """Return the front of several objectives as lines across one upright scale for each."""
    scale = axis([one["select"][task] for one in front for task in tasks])
    across = [round(100 * (index + 0.5) / len(tasks), 2) for index in range(len(tasks))]
    lines = [
        {"one": one, "at": [(x, 100 - scale.at(one["select"][task]))
                            for x, task in zip(across, tasks, strict=True)]}
        for one in front
    ]  # fmt: skip
    return {"axis": scale, "tasks": list(zip(across, tasks, strict=True)), "lines": lines}


def bars(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return, task by task, the held-out accuracy of the winner and of what it is measured by.

    That is the input that is best in the task, the baseline that is best over all, and the base.
    """
    winner = rows[0]
    others = [row for row in rows if row["kind"] == "baseline"]
    found = []
    for task in winner["heldout"]["tasks"]:
        chosen = {winner["name"]: (winner, "")}
        if others:
            best = max(others, key=lambda row: row["heldout"]["normalized"])
            first = max(others, key=lambda row: row["heldout"]["tasks"][task])
            chosen |= {first["name"]: (first, "best in the task"), best["name"]: (best, "")}
            chosen.setdefault(others[0]["name"], (others[0], ""))
            if first is best:
                chosen[best["name"]] = (best, "best in the task")
        marks = [
            {"row": row, "note": note, "value": row["heldout"]["tasks"][task]}
            for row, note in chosen.values()
        ]
        found.append({"task": task, "marks": marks})
    return found
