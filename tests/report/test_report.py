"""The report as a table: the numbers stand there, names cannot break it."""

import io
from typing import Any

import pytest
from rich.console import Console

from evomerge.report.table import print_report


def row(name: str, kind: str, value: float, detail: str = "") -> dict[str, Any]:
    part = {"normalized": value, "low": value - 0.05, "high": value + 0.05, "tasks": {"a&b": 0.25}}
    return {"name": name, "kind": kind, "detail": detail} | dict.fromkeys(
        ("search", "select", "heldout"), part
    )


@pytest.fixture
def report() -> dict[str, Any]:
    return {
        "rows": [
            row("winner", "winner", 0.8125, "trial 7"),
            row("<script>alert(1)</script>", "baseline", 0.5),
            row("ensemble", "reference", 0.875),
        ],
        "winner": {"name": "trial 7"},
        "search": {"ended": None},
    }


def test_table_has_the_numbers(report: dict[str, Any]) -> None:
    stream = io.StringIO()
    print_report(report, Console(file=stream, width=140))
    text = stream.getvalue()
    winner, tasks = (line for line in text.splitlines() if "winner (trial 7)" in line)
    assert winner.count("0.812") == 3
    assert "0.762 – 0.863" in winner
    assert "0.250" in tasks
    assert "<script>alert(1)</script>" in text


def told(report: dict[str, Any]) -> str:
    stream = io.StringIO()
    print_report(report, Console(file=stream, width=140))
    return stream.getvalue()


def test_what_it_comes_to_stands_above_the_table(report: dict[str, Any]) -> None:
    line = {"name": "task arithmetic", "value": 0.05, "low": 0.031, "high": 0.0725}
    best = {"name": "TIES", "value": 0.04, "low": -0.01, "high": 0.06}
    report["gain"] = {"baseline": best, "line": line, "sentence": "The winner [1] beats it."}
    report["rows"][0]["optimism"] = {"value": -0.01, "low": -0.02, "high": 0.005}
    assert told(report).splitlines()[:3] == [
        "The winner [1] beats it.",
        "above the best task-arithmetic scale by +5.0 points [3.1, 7.2]",
        "the winner's figure on search items less that on held-out: -1.0 points [-2.0, 0.5]",
    ]
    report["gain"]["baseline"] = line
    assert "scale by" not in told(report)


def test_fidelity_and_calibration_stand_below_the_table(report: dict[str, Any]) -> None:
    report["fidelity"] = {"sentences": ["the items rank them", "but not well"]}
    figures = {"error": 0.1, "brier": 0.25, "likelihood": 1.5}
    report["calibration"] = {"winner": {"a": figures}, "ensemble": {"a": figures, "b": figures}}
    lines = told(report).splitlines()
    assert lines.index("but not well") == lines.index("the items rank them") + 1
    table = [line.strip("│ ").split("│") for line in lines if ".100 0" in line]
    assert [[one.strip() for one in row] for row in table] == [
        ["winner", "0.100 0.250 1.500", "–"],
        ["ensemble", "0.100 0.250 1.500", "0.100 0.250 1.500"],
    ]


def test_what_ended_a_search_early_is_said(report: dict[str, Any]) -> None:
    report["search"]["ended"] = "The search ended after 9 < 60 trials."
    stream = io.StringIO()
    print_report(report, Console(file=stream, width=140))
    assert "The search ended after 9 < 60 trials." in stream.getvalue()


def member(trial: int, first: float, second: float, holds: bool) -> dict[str, Any]:
    return {
        "trial": trial,
        "search": {"a&b": first, "c": second},
        "select": {"a&b": first - 0.25, "c": second - 0.25},
        "normalized": first,
        "holds": holds,
    }


@pytest.fixture
def front(report: dict[str, Any]) -> dict[str, Any]:
    """A report of two objectives."""
    report["winner"]["trial"] = 7
    return report | {"front": [member(3, 0.5, 1.5, False), member(7, 1.25, 0.75, True)]}


def test_the_front_is_a_table_best_first(front: dict[str, Any]) -> None:
    stream = io.StringIO()
    print_report(front, Console(file=stream, width=140))
    lines = stream.getvalue().split("trade-offs")[1].splitlines()
    cells = [line.strip("│ ").split("│") for line in lines if "│" in line]
    assert [[one.strip() for one in row] for row in cells] == [
        ["7 *", "1.250 1.000", "0.750 0.500", "1.250"],
        ["3", "0.500 0.250", "1.500 1.250", "0.500"],
    ]
    assert "a&b" in stream.getvalue()


def test_a_report_of_one_objective_has_no_trade_offs(report: dict[str, Any]) -> None:
    stream = io.StringIO()
    print_report(report, Console(file=stream, width=140))
    assert "trade-offs" not in stream.getvalue()
