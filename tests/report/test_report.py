"""The report as a table and as a page: the numbers stand there, names cannot break it."""

import io
import xml.dom.minidom
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from evomerge.report.html import write_html
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
    winner = next(line for line in text.splitlines() if "winner (trial 7)" in line)
    assert winner.count("0.812") == 3
    assert "0.762 – 0.863" in winner
    assert "0.250" in winner
    assert "<script>alert(1)</script>" in text


def test_what_ended_a_search_early_is_said(tmp_path: Path, report: dict[str, Any]) -> None:
    report["search"]["ended"] = "The search ended after 9 < 60 trials."
    stream = io.StringIO()
    print_report(report, Console(file=stream, width=140))
    assert "The search ended after 9 < 60 trials." in stream.getvalue()
    write_html(tmp_path / "report.html", "s", report, [(0, 0.5)])
    assert "The search ended after 9 &lt; 60 trials." in (tmp_path / "report.html").read_text()


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


def test_a_report_of_one_objective_has_no_trade_offs(
    tmp_path: Path, report: dict[str, Any]
) -> None:
    stream = io.StringIO()
    print_report(report, Console(file=stream, width=140))
    write_html(tmp_path / "report.html", "s", report, [(0, 0.5)])
    assert "trade-offs" not in stream.getvalue()
    assert "Trade-offs" not in (tmp_path / "report.html").read_text()


def test_the_front_on_the_page(tmp_path: Path, front: dict[str, Any]) -> None:
    write_html(tmp_path / "report.html", "s", front, [(0, 0.5)])
    text = (tmp_path / "report.html").read_text().split("<h2>Trade-offs</h2>")[1]
    rows = text.split("</table>")[0].split("<tr")[1:]
    assert "<th>a&amp;b</th><th>c</th>" in rows[0]
    assert rows[1].startswith(' class="winner"><td>trial 7 *</td>')
    assert "<td>1.250 <small>1.000</small></td><td>0.750 <small>0.500</small></td>" in rows[1]
    assert rows[2].startswith(' class="baseline"><td>trial 3</td>')
    assert len(rows) == 3


def test_page_is_well_formed_and_self_contained(tmp_path: Path, report: dict[str, Any]) -> None:
    page = tmp_path / "report.html"
    history = [(0, 0.5), (1, None), (2, 0.75)]
    write_html(page, "s<1>", report, history)
    text = page.read_text()
    assert "<script" not in text
    assert "http" not in text
    assert "s&lt;1&gt;" in text
    assert "0.812" in text
    for start in text.split("<svg")[1:]:
        drawing = xml.dom.minidom.parseString("<svg" + start.split("</svg>")[0] + "</svg>")
        circles = drawing.getElementsByTagName("circle")
        assert len(circles) in (3, 2)  # one per row; one per trial that succeeded


def test_intervals_are_drawn_to_scale(tmp_path: Path, report: dict[str, Any]) -> None:
    page = tmp_path / "report.html"
    write_html(page, "s", report, [(0, 0.5)])
    drawing = page.read_text().split("<svg")[1].split("</svg>")[0]
    circles = xml.dom.minidom.parseString(f"<svg{drawing}</svg>").getElementsByTagName("circle")
    x = [float(circle.getAttribute("cx")) for circle in circles]
    assert (x[0] - x[1]) / (x[2] - x[1]) == pytest.approx((0.8125 - 0.5) / (0.875 - 0.5), abs=1e-3)


def test_a_study_without_success_still_has_a_page(tmp_path: Path, report: dict[str, Any]) -> None:
    write_html(tmp_path / "report.html", "s", report, [(0, None)])
    assert "No trial succeeded." in (tmp_path / "report.html").read_text()
