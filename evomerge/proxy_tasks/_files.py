"""Rows of JSONL, JSON, CSV, TSV and Parquet files, with the line of each."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from evomerge.errors import DataError, first_line
from evomerge.files import read_text

Row = Mapping[str, Any]
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_CORRECT = "correct that line, or take it out"
_SPACE = " \t\r\n"  # what JSON takes for space
_LONGEST = 2**31 - 1  # characters of a field of CSV or TSV, the most on every system


def read_file(path: Path) -> tuple[list[Row], list[int] | None]:
    """Return the rows of a file and the line that each begins at, None where it has no lines.

    The suffix says what it is: .csv, .tsv, .parquet, .json (a list of objects); all others hold an
    object on every line, as does a .json file that is no list. Values of CSV and TSV are texts.
    Raises DataError with the line where the file is bad.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet(path), None
    text = read_text(path, DataError).removeprefix("\ufeff")
    if suffix in _SEPARATORS:
        found = list(_separated(text, _SEPARATORS[suffix], path))
    elif suffix == ".json" and text.lstrip(_SPACE).startswith("["):
        found = list(_json_list(text, path))
    else:
        lines = enumerate(text.split("\n"), start=1)  # other breaks may stand in a string
        found = [
            (_json_object(line, f"line {number} of {path}"), number)
            for number, line in lines
            if line.strip()
        ]
    return [row for row, _ in found], [line for _, line in found]


def _json_object(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as problem:
        found = f"a text that is none ({problem.msg.lower()}) at column {problem.colno}"
        raise DataError(f"expected a JSON object, got {found} of {where}; {_CORRECT}") from None
    except (ValueError, RecursionError) as problem:  # beyond Python's limits
        raise DataError(f"expected a JSON object, got {problem} at {where}; {_CORRECT}") from None
    return _checked(row, line, where)


def _checked(row: object, text: str, where: str) -> Row:
    if not isinstance(row, dict):
        found = "a list" if isinstance(row, list) else text.strip()[:60]
        hint = "write each item as {field: value, …}"
        raise DataError(f"expected a JSON object, got {found} at {where}; {hint}")
    return row


def _json_list(text: str, path: Path) -> Iterator[tuple[Row, int]]:
    """Yield the objects of a list one by one, since the reader does not say where each began."""
    decoder = json.JSONDecoder()
    place, line, counted = _next(text, text.index("[") + 1), 1, 0
    while text[place : place + 1] != "]":
        line += text.count("\n", counted, place)
        counted, where = place, f"line {line} of {path}"
        try:
            row, end = decoder.raw_decode(text, place)
        except json.JSONDecodeError as problem:
            found = (
                f"a text that is none ({problem.msg.lower()}) at column {problem.colno} of line "
                f"{problem.lineno}"
            )
            raise DataError(f"expected a JSON object, got {found} of {path}; {_CORRECT}") from None
        except (ValueError, RecursionError) as problem:  # beyond Python's limits
            found = f"{problem} at {where}"
            raise DataError(f"expected a JSON object, got {found}; {_CORRECT}") from None
        yield _checked(row, text[place:end], where), line
        place = _next(text, end)
        if text[place : place + 1] == ",":
            place = _next(text, place + 1)
        elif text[place : place + 1] != "]":
            found = text[place : place + 1] or "the end of the file"
            raise DataError(f"expected , or ] after the JSON object, got {found} at {where}")
    if _next(text, place + 1) < len(text):
        raise DataError(f"expected one JSON list, got more after it in {path}")


def _next(text: str, place: int) -> int:
    while text[place : place + 1] and text[place] in _SPACE:
        place += 1
    return place


def _separated(text: str, separator: str, path: Path) -> Iterator[tuple[Row, int]]:
    """Yield the rows of CSV (RFC 4180) or TSV; their first line names the fields."""
    csv.field_size_limit(_LONGEST)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    names: list[str] | None = None
    line = 1
    try:
        for values in reader:
            where = f"line {line} of {path}"
            if names is None:
                names = values
                if len(set(names)) < len(names):
                    raise DataError(f"expected each field once, got {', '.join(names)} at {where}")
            elif values and len(values) != len(names):
                raise DataError(
                    f"expected {len(names)} fields as the first line has, got {len(values)} at "
                    f"{where}; a field that holds {separator!r} or a line break needs quotes"
                )
            elif values:
                yield dict(zip(names, values, strict=True)), line
            line = reader.line_num + 1  # a field in quotes may take several
    except csv.Error as problem:
        raise DataError(
            f"expected rows of fields, got {problem} at line {line} of {path}"
        ) from None


def _parquet(path: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[Row] = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as problem:
        raise DataError(f"expected a Parquet file, got {first_line(problem)} in {path}") from None
    return rows
