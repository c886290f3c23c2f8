"""Rows of data, and templates filled from them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.errors import DataError, Found, Place, nearest
from evomerge.files import read_text
from evomerge.proxy_tasks import Dataset

Row = Mapping[str, Any]
_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def read_rows(data: str | Dataset, folder: Path, place: Place) -> list[Row]:
    """Read all rows of a JSONL file (relative to `folder`) or of a data set.

    Raises the place's error where there is no such data, DataError with the line where it is bad.
    """
    if isinstance(data, Dataset):
        return _from_datasets(data, folder, place)
    path = folder / data
    if not path.is_file():
        raise place.fail("a JSONL file", data, f"there is no file {str(path)!r}")
    rows: list[Row] = []
    text = read_text(path, DataError).removeprefix("\ufeff")
    for number, line in enumerate(text.split("\n"), start=1):  # other breaks may stand in a string
        if line.strip():
            rows.append(_json_object(line, f"line {number} of {path}"))
    return rows


def _json_object(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as problem:
        found = f"{problem.msg.lower()} at column {problem.colno}"
        raise DataError(f"expected a JSON object, got {found} of {where}") from None
    except (ValueError, RecursionError) as problem:  # beyond Python's limits
        raise DataError(f"expected a JSON object, got {problem} at {where}") from None
    if not isinstance(row, dict):
        found = "a list" if isinstance(row, list) else line.strip()[:60]
        raise DataError(f"expected a JSON object, got {found} at {where}")
    return row


def _from_datasets(data: Dataset, folder: Path, place: Place) -> list[Row]:
    import datasets

    datasets.disable_progress_bars()  # stderr is for what evomerge says
    datasets.utils.logging.set_verbosity_error()
    local = folder / data.dataset
    source = str(local) if local.exists() else data.dataset
    try:
        found = datasets.load_dataset(source, data.name, split=data.split, revision=data.revision)
    except Exception as problem:  # the library raises whatever its readers raise
        lines = str(problem).strip().splitlines()
        reason = f"{type(problem).__name__}: {lines[0] if lines else 'no reason given'}"
        raise place.fail("a data set that `datasets` reads", data.dataset, reason) from None
    rows: list[Row] = found.to_list()
    return rows


def fill(template: str, row: Row, place: Place) -> str:
    """Fill `{field}` from a row; `{{` and `}}` stand for braces.

    Raises the place's error, with the nearest field, where the row lacks one or holds null in it.
    """

    def replace(match: re.Match[str]) -> str:
        text, name = match[0], match[1]
        if text in ("{{", "}}"):
            return text[0]
        if name is None:
            raise place.fail("{field}, with {{ and }} for braces of the text", template)
        value = field(name, row, place)
        if value is None:
            raise place.fail(f"a value in the field {name}", Found("null"))
        return str(value)

    return _FIELD.sub(replace, template)


def field(name: str, row: Row, place: Place) -> Any:
    """Return one field of a row; raises the place's error, with the nearest name, where absent."""
    if name not in row:
        near = nearest(name, [str(key) for key in row])
        known = ", ".join(str(key) for key in row)
        hint = f"did you mean {{{near}}}?" if near else f"its fields: {known or 'none'}"
        raise place.fail(f"a field of the data in {{{name}}}", Found("a row without it"), hint)
    return row[name]


def only_field(template: str) -> str | None:
    """Return the field's name where a template is one field and nothing else."""
    match = re.fullmatch(r"\{([^{}]+)\}", template)
    return match[1] if match else None
