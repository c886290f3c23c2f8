"""A study's report as a table in Markdown, which an exported recipe carries as a comment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SPLITS = ("search", "select", "heldout")
CAPTION = (
    "Accuracy over the best expert's, mean of the tasks, with the 95 % interval on held-out items; "
    "accuracy of each task on held-out items."
)


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """Return a caption and the lines of a table: the winner beside its baselines."""
    rows = report["rows"]
    tasks = list(rows[0]["heldout"]["tasks"])
    splits = ["held-out" if split == "heldout" else split for split in SPLITS]
    head = ["model", *splits, "95 %", *tasks]
    found = [_line(head), _line(["---"] + ["---:"] * (len(head) - 1))]
    for row in rows:
        held = row["heldout"]
        name = row["name"] + (f" ({row['detail']})" if row["detail"] else "")
        cells = [
            f"**{name}**" if row["kind"] == "winner" else name,
            *(f"{row[split]['normalized']:.3f}" for split in SPLITS),
            f"{held['low']:.3f} – {held['high']:.3f}",
            *(f"{held['tasks'][task]:.3f}" for task in tasks),
        ]
        found.append(_line(cells))
    gain = report.get("gain")
    sentence = f"{gain['sentence'][:1].upper()}{gain['sentence'][1:]}. " if gain else ""
    return [sentence + CAPTION, *found]


def _line(cells: Sequence[str]) -> str:
    clean = (" ".join(cell.split()).replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(clean)} |"
