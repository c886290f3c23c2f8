"""Studies side by side as a table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def print_comparison(found: Mapping[str, Any], console: Console | None = None) -> None:
    """Print one line for each study, and after them what cannot be compared.

    Without a console it goes to stdout, wide where that is no terminal.
    """
    studies = found["studies"]
    table = Table(
        title="winner on held-out items: normalized accuracy, and points above the best baseline",
        caption="intervals: 95 %, paired bootstrap over items",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("study", no_wrap=True)
    for title in ("tasks", "optimizer"):
        table.add_column(title)
    for title in ("dimensions", "trials", "held-out", "gain", "s/trial"):
        table.add_column(title, justify="right", no_wrap=True)
    best = max((_value(one) for one in studies), default=0.0)
    for one in studies:
        held, gain, seconds = one["heldout"], one["gain"], one["seconds_per_trial"]
        done, total = one["trials"], one["total"]
        table.add_row(
            one["name"],
            ", ".join(one["tasks"]),
            one["optimizer"],
            str(one["dimensions"]),
            str(done) if done == total else f"{done} of {total}",
            "unfinished" if held is None else _interval(held, "normalized", ".3f", 1),
            "" if gain is None else f"{_interval(gain, 'value', '.1f', 100)} {gain['name']}",
            "" if seconds is None else f"{seconds:.2f}",
            style="bold" if not found["differences"] and held and _value(one) == best else None,
        )
    if console is None:
        console = Console(highlight=False)
        console = console if console.is_terminal else Console(highlight=False, width=160)
    console.print(table)
    for sentence in found["differences"]:
        console.print(sentence)


def _value(one: Mapping[str, Any]) -> float:
    return float(one["heldout"]["normalized"]) if one["heldout"] else 0.0


def _interval(part: Mapping[str, float], key: str, form: str, factor: float) -> str:
    value, low, high = (factor * part[name] for name in (key, "low", "high"))
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"
