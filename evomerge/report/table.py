"""The report as a table: the winner beside its baselines on the three splits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

_SPLITS = {"search": "search", "select": "select", "heldout": "held-out"}


def print_report(report: Mapping[str, Any], console: Console | None = None) -> None:
    """Print normalized accuracies with 95 % intervals, and the tasks' held-out accuracies.

    Without a console it goes to stdout, wide where that is no terminal.
    """
    rows = report["rows"]
    tasks = list(rows[0]["heldout"]["tasks"])
    table = Table(
        title="normalized accuracy: merged over best expert, mean of the tasks",
        caption="intervals: 95 %, paired bootstrap over items · "
        "held-out items are scored once, at the end",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("model", no_wrap=True)
    for title in _SPLITS.values():
        table.add_column(title, justify="right")
    table.add_column("held-out 95 %", justify="right", no_wrap=True)
    for task in tasks:
        table.add_column(task, justify="right")
    previous = rows[0]["kind"]
    for row in rows:
        if row["kind"] != previous:
            table.add_section()
            previous = row["kind"]
        held = row["heldout"]
        name = row["name"] + (f" ({row['detail']})" if row["detail"] else "")
        table.add_row(
            name,
            *(f"{row[split]['normalized']:.3f}" for split in _SPLITS),
            f"{held['low']:.3f} – {held['high']:.3f}",
            *(f"{held['tasks'][task]:.3f}" for task in tasks),
            style="bold" if row["kind"] == "winner" else None,
        )
    (console or _stdout()).print(table)


def _stdout() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)
