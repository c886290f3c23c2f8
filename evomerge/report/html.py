"""The report as one self-contained page: intervals drawn to scale, search history, tasks."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.files import write_text

_SPLITS = {"search": "Search", "select": "Select", "heldout": "Held-out"}
_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5c6878; --line: #d9dee6; --page: #fff;
  --winner: #0a7d55; --baseline: #6b7a90; --reference: #b3661a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #9aa6b6; --line: #38414e;
  --page: #161b22; --winner: #3fc596; --baseline: #93a1b5; --reference: #e2a05c; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 62rem; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .5rem; }
p { color: var(--soft); max-width: 46rem; margin: .25rem 0 .75rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th, td { text-align: right; padding: .32rem .6rem; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { color: var(--soft); font-weight: 600; }
tr.winner td { font-weight: 700; color: var(--winner); }
tr.reference td { color: var(--reference); } small { color: var(--soft); font-weight: 400; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--ink); font-size: 12px; }
svg .soft { fill: var(--soft); } svg .grid { stroke: var(--line); }
svg .winner { stroke: var(--winner); fill: var(--winner); }
svg .baseline { stroke: var(--baseline); fill: var(--baseline); }
svg .reference { stroke: var(--reference); fill: var(--reference); }
"""


def write_html(
    path: Path,
    name: str,
    report: Mapping[str, Any],
    history: Sequence[tuple[int, float | None]],
) -> None:
    """Write the page, whole or not at all; it loads nothing from elsewhere."""
    rows = report["rows"]
    title = html.escape(f"evomerge study {name}")
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>",
        f"<p>The winner is {html.escape(report['winner']['name'])}. Normalized accuracy is that of "
        "the merged model over that of the best expert, averaged over the tasks.</p>",
        "<h2>Held-out items</h2><p>Items that neither the search nor the choice of the winner has "
        "seen, with 95 % intervals (paired bootstrap over items).</p>",
        _intervals(rows),
        "<h2>All splits</h2>",
        _splits_table(rows),
        "<h2>Held-out accuracy of each task</h2>",
        _tasks_table(rows),
        *_front(report),
        "<h2>The search</h2><p>Fitness of every trial on the search items, and the best so far. "
        "The best of many noisy scores is too good; the held-out column is not. "
        f"{html.escape(report['search']['ended'] or '')}</p>",
        _history(history),
        "</body></html>\n",
    ]
    write_text(path, "\n".join(parts))


def _label(row: Mapping[str, Any]) -> str:
    detail = f" <small>{html.escape(row['detail'])}</small>" if row["detail"] else ""
    return html.escape(row["name"]) + detail


def _intervals(rows: Sequence[Mapping[str, Any]]) -> str:
    low = min(float(row["heldout"]["low"]) for row in rows)
    high = max(float(row["heldout"]["high"]) for row in rows)
    left, right, step = 190, 840, 26
    spread = (high - low) or 1.0

    def x(value: float) -> float:
        return left + (value - low) / spread * (right - left)

    height = step * len(rows) + 30
    parts = [f'<svg viewBox="0 0 920 {height}" role="img" aria-label="held-out intervals">']
    for tick in range(5):
        value = low + spread * tick / 4
        at = f"{x(value):.1f}"
        parts.append(
            f'<line class="grid" x1="{at}" x2="{at}" y1="0" y2="{height - 24}"/>'
            f'<text class="soft" x="{at}" y="{height - 8}" text-anchor="middle">'
            f"{value:.2f}</text>"
        )
    for index, row in enumerate(rows):
        held, y = row["heldout"], step * index + 14
        parts.append(
            f'<text x="0" y="{y + 4}">{html.escape(row["name"])}</text>'
            f'<line class="{row["kind"]}" stroke-width="3" x1="{x(held["low"]):.1f}" '
            f'x2="{x(held["high"]):.1f}" y1="{y}" y2="{y}"/>'
            f'<circle class="{row["kind"]}" r="5" cx="{x(held["normalized"]):.1f}" cy="{y}"/>'
            f'<text x="{right + 16}" y="{y + 4}">{held["normalized"]:.3f}</text>'
        )
    return "\n".join([*parts, "</svg>"])


def _table(head: Sequence[str], body: Sequence[tuple[str, Sequence[str]]]) -> str:
    cells = "".join(f"<th>{html.escape(title)}</th>" for title in head)
    lines = [f'<div class="scroll"><table><tr>{cells}</tr>']
    for kind, values in body:
        lines.append(
            f'<tr class="{kind}">' + "".join(f"<td>{one}</td>" for one in values) + "</tr>"
        )
    return "\n".join([*lines, "</table></div>"])


def _splits_table(rows: Sequence[Mapping[str, Any]]) -> str:
    body = []
    for row in rows:
        values = [
            f"{row[split]['normalized']:.3f} <small>{row[split]['low']:.3f} – "
            f"{row[split]['high']:.3f}</small>"
            for split in _SPLITS
        ]
        body.append((row["kind"], [_label(row), *values]))
    return _table(["Model", *_SPLITS.values()], body)


def _tasks_table(rows: Sequence[Mapping[str, Any]]) -> str:
    tasks = list(rows[0]["heldout"]["tasks"])
    body = [
        (row["kind"], [_label(row), *(f"{row['heldout']['tasks'][task]:.3f}" for task in tasks)])
        for row in rows
    ]
    return _table(["Model", *tasks], body)


def _front(report: Mapping[str, Any]) -> list[str]:
    front = report.get("front") or []
    if not front:
        return []
    tasks = list(front[0]["select"])
    body = []
    for one in sorted(front, key=lambda one: -one["normalized"]):
        cells = [f"{one['search'][task]:.3f} <small>{one['select'][task]:.3f}</small>"
                 for task in tasks]  # fmt: skip
        mark = " *" if one["holds"] else ""
        kind = "winner" if one["trial"] == report["winner"]["trial"] else "baseline"
        body.append((kind, [f"trial {one['trial']}{mark}", *cells, f"{one['normalized']:.3f}"]))
    return [
        "<h2>Trade-offs</h2><p>Trials that no other dominates on the search items: the score of "
        "each task over the best expert's, in small type on the select items; * where none "
        "dominates them there either.</p>",
        _table(["Trial", *tasks, "Normalized accuracy, select"], body),
    ]


def _history(history: Sequence[tuple[int, float | None]]) -> str:
    done = [(number, value) for number, value in history if value is not None]
    if not done:
        return "<p>No trial succeeded.</p>"
    low, high = min(value for _, value in done), max(value for _, value in done)
    last = max(1, *(number for number, _ in history))
    spread = (high - low) or 1.0

    def point(number: int, value: float) -> tuple[float, float]:
        return 50 + number / last * 850, 230 - (value - low) / spread * 215

    parts = ['<svg viewBox="0 0 920 265" role="img" aria-label="fitness by trial">']
    for tick in range(4):
        value = low + spread * tick / 3
        y = point(0, value)[1]
        parts.append(
            f'<line class="grid" x1="50" x2="900" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="soft" x="42" y="{y + 4:.1f}" text-anchor="end">{value:.2f}</text>'
        )
    best, path = low, []
    for number, value in done:
        best = max(best, value)
        x, y = point(number, value)
        path.append("{:.1f},{:.1f}".format(*point(number, best)))
        parts.append(f'<circle class="baseline" r="2" cx="{x:.1f}" cy="{y:.1f}"/>')
    parts.append(
        f'<polyline class="winner" style="fill:none" stroke-width="2" points="{" ".join(path)}"/>'
        f'<text class="soft" x="50" y="256">trial 0</text>'
        f'<text class="soft" x="900" y="256" text-anchor="end">trial {last}</text></svg>'
    )
    return "\n".join(parts)
