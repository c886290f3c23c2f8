"""What was measured of a study's models, as tables in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

_OF_DISTANCES = (
    "‖expert − base‖ / ‖base‖: light fine-tunes are a few hundredths from their base, unrelated "
    "models about 1.4."
)
_OF_PAIRS = (
    "Cosine 0: nothing in common (Ilharco et al. 2023). Unlike signs: of the entries that both "
    "experts change; large: of those among the largest fifth of both (Yadav et al. 2023). 50 % is "
    "chance."
)
_OF_LINES = (
    "Fitness: the score over the best expert's, mean of the tasks. Barrier: how far it falls below "
    "the straight line between its ends (Frankle et al. 2020, Neyshabur et al. 2020)."
)


def print_mergeability(found: Mapping[str, Any], console: Console | None = None) -> None:
    """Print what `evomerge inspect --json` gives: distances, pairs, lines, what to expect."""
    console = console or _stdout()
    names = list(found["overall"]["experts"])
    said = [_distances(found, names), _OF_DISTANCES, *_changes(found, names), ""]
    if found["overall"]["pairs"]:
        said += [_pairs(found), _OF_PAIRS, ""]
    if found["lines"] is not None:
        said += [_lines(found["lines"]), _OF_LINES, ""]
    for one in [*said, *found["expect"]]:
        console.print(one, soft_wrap=isinstance(one, str), markup=False)


def _table(title: str, first: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first, no_wrap=True)
    return table


def _distances(found: Mapping[str, Any], names: Sequence[str]) -> Table:
    """Return a table of ‖expert − base‖ / ‖base‖, by module group and by layer."""
    table = _table(
        "distance from the base",
        "tensors",
    )
    for name in names:
        table.add_column(name, justify="right")
    rows = [("all", found["overall"]), *found["groups"].items()]
    for stack, layers in found["layers"].items():
        rows += [(f"{stack}.{number}", one) for number, one in enumerate(layers)]
    ends = {0, len(found["groups"])}
    for number, (label, one) in enumerate(rows):
        figures = [_figure(one["experts"][name]["relative_norm"], ".4f") for name in names]
        table.add_row(label, *figures, end_section=number in ends)
    return table


def _changes(found: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Return a sentence for each expert: which tensors differ from the base's at all."""
    total = found["overall"]["tensors"]
    lines = []
    for name in names:
        own = {group: one["experts"][name] for group, one in found["groups"].items()}
        still = [group for group, one in own.items() if not one["changed_tensors"]]
        changed = found["overall"]["experts"][name]
        share = changed["changed_entries"] / max(1, found["overall"]["entries"])
        text = f"{name} changes {changed['changed_tensors']} of {total} tensors, "
        text += f"{share:.0%} of the entries".replace("%", " %")
        lines.append(text + (f"; equal to the base: {', '.join(still)}" if still else ""))
    return lines


def _pairs(found: Mapping[str, Any]) -> Table:
    """Return a table of cosines and sign conflicts between experts, overall and by group."""
    table = _table(
        "between task vectors",
        "experts",
    )
    for title in ("cosine", "unlike signs", "… large"):
        table.add_column(title, justify="right")
    groups = list(found["groups"])
    for group in groups:
        table.add_column(f"cosine, {group}", justify="right")
    for number, pair in enumerate(found["overall"]["pairs"]):
        table.add_row(
            " · ".join(pair["experts"]),
            _figure(pair["cosine"], ".3f"),
            _figure(pair["opposite_signs"], ".1%"),
            _figure(pair["opposite_signs_large"], ".1%"),
            *(_figure(found["groups"][one]["pairs"][number]["cosine"], ".3f") for one in groups),
        )
    return table


def _lines(lines: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table of the fitness along each line."""
    table = _table(
        "fitness on the way from one model to another, on the search items",
        "from → to",
    )
    steps = list(dict.fromkeys(step for line in lines for step in line["steps"]))
    for step in sorted(steps):
        table.add_column(f"{step:.0%}".replace("%", " %"), justify="right")
    table.add_column("barrier", justify="right")
    for line in lines:
        known = dict(zip(line["steps"], line["fitness"], strict=True))
        table.add_row(
            " → ".join(line["ends"]),
            *(_figure(known.get(step), ".3f") for step in sorted(steps)),
            _figure(line["barrier"], ".3f"),
        )
    return table


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form).replace("%", " %")


def _stdout() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)
