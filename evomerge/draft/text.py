"""A drafted study as commented YAML."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.files import dump_yaml

_WIDTH = 100


@dataclass(frozen=True)
class Comments:
    """What the file says of its choices; `tasks` by their names."""

    head: str
    models: str
    space: str
    tasks: Mapping[str, str]
    splits: str
    search: str
    cost: str


def as_text(study: Mapping[str, Any], comments: Comments) -> str:
    """Return a study as YAML in which every choice has its reason above it."""
    tasks = [
        _comment(comments.tasks[name], 2) + f"  {name}:\n" + "".join(map(_line, one.items()))
        for name, one in study["tasks"].items()
    ]
    parts = [
        _comment(comments.head),
        _comment(comments.models) + dump_yaml({"models": study["models"]}),
        _comment(comments.space) + dump_yaml({"space": study["space"]}),
        _comment(
            "What the merged model should be good at. Each row of a data file is an item; {name} "
            "in a template is a field of it."
        )
        + "tasks:\n"
        + "".join(tasks),
        _comment(comments.splits) + _inline("splits", study["splits"]),
        _comment(comments.search) + _inline("search", study["search"]),
        _comment(comments.cost),
    ]
    return "\n".join(parts)


def _comment(text: str, indent: int = 0) -> str:
    start = " " * indent + "# "
    lines = [
        textwrap.fill(one, _WIDTH, initial_indent=start, subsequent_indent=start,
                      break_long_words=False, break_on_hyphens=False)
        for one in text.splitlines()
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _line(item: tuple[str, Any]) -> str:
    """Return a setting of a task as YAML; line breaks in texts are escaped."""
    key, value = item
    text = json.dumps(value, ensure_ascii=False)
    line = f"{key}: {text}\n" if "\\n" in text else dump_yaml({key: value})
    return textwrap.indent(line, "    ")


def _inline(key: str, values: Mapping[str, Any]) -> str:
    return f"{key}: {{{', '.join(f'{name}: {value}' for name, value in values.items())}}}\n"
