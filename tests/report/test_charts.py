"""Scales, and the course of a search on one."""

from typing import Any

import pytest

from evomerge.report.charts import axis, bars, course
from tests.report.pages import full


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0.0, 1.0], ["0.00", "0.25", "0.50", "0.75", "1.00"]),
        ([0.703, 0.735], ["0.705", "0.710", "0.715", "0.720", "0.725", "0.730", "0.735"]),
        ([-3, 40], ["0", "10", "20", "30", "40"]),
        ([2.0, 2.0], ["1.90", "1.95", "2.00", "2.05", "2.10"]),
        ([0.0], ["-0.04", "-0.02", "0.00", "0.02", "0.04"]),
    ],
)
def test_ticks_are_round_and_where_they_say(values: list[float], labels: list[str]) -> None:
    scale = axis(values, most=7 if len(labels) == 7 else 5)
    assert [tick.label for tick in scale.ticks] == labels
    for tick in scale.ticks:
        assert tick.at == pytest.approx(scale.at(float(tick.label)), abs=0.01)
    assert all(0 < scale.at(value) < 100 for value in values)
    assert scale.at(min(values) - 9e9) == 0.0
    assert scale.at(max(values) + 9e9) == 100.0


def trial(number: int, fitness: float | None, **more: Any) -> dict[str, Any]:
    state = "failed" if fitness is None else "complete"
    return {"number": number, "state": state, "fitness": fitness, "seen": None, **more}


def test_the_best_so_far_is_of_whole_trials() -> None:
    trials = [trial(0, 0.5), trial(1, 0.9, seen=3), trial(2, None), trial(3, 0.6), trial(4, 0.55)]
    found = course(trials, {"soup": 0.52}, [])
    assert found is not None
    at = [(one["from"], one["to"], round(100 - one["y"], 2)) for one in found["steps"]]
    scale = found["axis"]
    assert at == [(0.0, 75.0, scale.at(0.5)), (75.0, 100.0, scale.at(0.6))]
    assert [one["x"] for one in found["failed"]] == [50.0]
    assert found["baselines"][0]["y"] == pytest.approx(100 - scale.at(0.52))


def test_labels_do_not_run_into_each_other() -> None:
    found = course([trial(0, 0.0), trial(1, 1.0)], {"a": 0.5, "b": 0.51, "c": 0.8}, [])
    assert found is not None
    assert [(one["name"], one["label"]) for one in found["baselines"]] == [
        ("c", True), ("b", True), ("a", False),
    ]  # fmt: skip


def test_a_course_without_success_is_none() -> None:
    assert course([trial(0, None)], {}, []) is None
    assert course([], {}, []) is None


def test_bars_set_the_winner_beside_what_is_best() -> None:
    report, _ = full(("a", "b"))
    report["rows"][2]["heldout"] = {**report["rows"][2]["heldout"], "tasks": {"a": 0.99, "b": 0.1}}
    first, second = bars(report["rows"])
    assert [one["row"]["name"] for one in first["marks"]] == [
        "winner", "math", "task arithmetic", "base",
    ]  # fmt: skip
    assert [one["value"] for one in first["marks"]] == [0.81, 0.99, 0.7, 0.4]
    assert [(one["row"]["name"], one["note"]) for one in second["marks"]] == [
        ("winner", ""), ("task arithmetic", "best in the task"), ("base", ""),
    ]  # fmt: skip
