"""The report as tables: the winner beside its baselines on the three splits, the trade-offs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

_SPLITS = {"search": "search", "select": "select", "heldout": "held-out"}


def print_report(report: Mapping[str, Any], console: Console | None = None) -> None:
    """Print normalized accuracies with 95 % intervals, and the tasks' held-out accuracies.

    Above them stands what they come to, below them how far they can be trusted. Without a console
    it goes to stdout, wide where that is no terminal.
    """
    console = console or _stdout()
    for sentence in headlines(report):
        console.print(sentence, markup=False)
    console.print(_splits(report["rows"]))
    console.print(_tasks(report["rows"]))
    for sentence in report.get("fidelity", {}).get("sentences", ()):
        console.print(sentence, markup=False)
    if report["search"]["ended"] is not None:
        console.print(report["search"]["ended"])
    if report.get("front"):
        console.print(_front(report))
    if report.get("calibration"):
        console.print(_calibration(report["calibration"]))


def _splits(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the rows' normalized accuracies on the three splits."""
    table = Table(
        title="normalized accuracy: merged over best expert, mean of the tasks",
        caption="intervals: 95 %, paired bootstrap over items · "
        "held-out items are scored once, at the end",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("model", overflow="fold")
    for title in _SPLITS.values():
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("held-out 95 %", justify="right", no_wrap=True)
    for row in _sections(table, rows):
        held = row["heldout"]
        table.add_row(
            _name(row),
            *(f"{row[split]['normalized']:.3f}" for split in _SPLITS),
            f"{held['low']:.3f} – {held['high']:.3f}",
            style=_style(row),
        )
    return table


def _tasks(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the rows' held-out accuracies by task."""
    table = Table(title="held-out accuracy by task", title_justify="left")
    table.add_column("model", overflow="fold")
    for task in rows[0]["heldout"]["tasks"]:
        table.add_column(task, justify="right", overflow="fold")
    for row in _sections(table, rows):
        figures = (f"{one:.3f}" for one in row["heldout"]["tasks"].values())
        table.add_row(_name(row), *figures, style=_style(row))
    return table


def _sections(table: Table, rows: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Go through rows, a line drawn before each other kind."""
    previous = rows[0]["kind"]
    for row in rows:
        if row["kind"] != previous:
            table.add_section()
            previous = row["kind"]
        yield row


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['name']} ({row['detail']})" if row["detail"] else str(row["name"])


def _style(row: Mapping[str, Any]) -> str | None:
    return "bold" if row["kind"] == "winner" else None


def headlines(report: Mapping[str, Any]) -> list[str]:
    """Return what the report comes to: the winner's gain, and how far its search figure flatters.

    Studies of earlier versions have neither.
    """
    if "gain" not in report:
        return []
    gain, line = report["gain"], report["gain"]["line"]
    found = [gain["sentence"]]
    if gain["baseline"]["name"] != line["name"]:
        found.append(f"above the best task-arithmetic scale by {_points(line)}")
    flattered = _points(report["rows"][0]["optimism"])
    found.append(f"the winner's figure on search items less that on held-out: {flattered}")
    return found


def _points(found: Mapping[str, float]) -> str:
    value, low, high = (100 * found[key] for key in ("value", "low", "high"))
    return f"{value:+.1f} points [{low:.1f}, {high:.1f}]"


def _calibration(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    """Return calibration error, Brier score and negative log-likelihood by model and task."""
    tasks = list(dict.fromkeys(task for figures in found.values() for task in figures))
    table = Table(
        title="calibration on held-out items: error · Brier score · negative log-likelihood",
        caption="0 is best · error: confidence less accuracy, in 15 bins of as many items",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("model", no_wrap=True)
    for task in tasks:
        table.add_column(task, justify="right", no_wrap=True)
    for name, figures in found.items():
        cells = [
            " ".join(f"{figures[task][key]:.3f}" for key in ("error", "brier", "likelihood"))
            if task in figures
            else "–"
            for task in tasks
        ]
        table.add_row(name, *cells)
    return table


def _front(report: Mapping[str, Any]) -> Table:
    """Return the trade-offs between the tasks, best by normalized accuracy first."""
    tasks = list(report["front"][0]["select"])
    table = Table(
        title="trade-offs: score of each task over the best expert's, on search and select items",
        caption="* no other finalist is better in one task and no worse in the others on select "
        "items · a trial's recipe: evomerge export NAME --trial K",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("trial", no_wrap=True)
    for task in tasks:
        table.add_column(task, justify="right", no_wrap=True)
    table.add_column("normalized accuracy, select", justify="right")
    for one in sorted(report["front"], key=lambda one: -one["normalized"]):
        table.add_row(
            f"{one['trial']}{' *' if one['holds'] else ''}",
            *(f"{one['search'][task]:.3f} {one['select'][task]:.3f}" for task in tasks),
            f"{one['normalized']:.3f}",
            style="bold" if one["trial"] == report["winner"]["trial"] else None,
        )
    return table


def _stdout() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)
