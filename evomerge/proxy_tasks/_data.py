"""Rows of data, which know where they came from, and templates filled from them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from evomerge.errors import Found, InputError, Place, first_line, nearest
from evomerge.files import beside
from evomerge.proxy_tasks import Dataset, _files
from evomerge.proxy_tasks._benchmarks import refuse_benchmark

Row = _files.Row
_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
_CONFIGS = re.compile(r"available configs: \[(.*)\]")
_SAVED = ("dataset_dict.json", "state.json")  # of a folder that `save_to_disk` has written
_PLAIN = (int, float, Decimal, date, time, timedelta)  # bool and datetime are of these


class Label(int):
    """A class of a data set by its number, with the names of all classes."""

    names: tuple[str, ...]

    def __new__(cls, number: int, names: tuple[str, ...] = ()) -> Label:
        """Return the class of a number."""
        found = super().__new__(cls, number)
        found.names = names
        return found

    @property
    def name(self) -> str | None:
        """The name of the class, None where the number (-1, mostly) stands for none."""
        return self.names[self] if 0 <= self < len(self.names) else None


class Rows(list[Row]):
    """Rows; `where(number)`, from 1 on, says in words where a row came from.

    `notes` are what is worth knowing of them all.
    """

    def __init__(
        self, rows: list[Row], where: Callable[[int], str], notes: tuple[str, ...] = ()
    ) -> None:
        super().__init__(rows)
        self.where = where
        self.notes = notes


def read_rows(data: str | Dataset, folder: Path, place: Place) -> Rows:
    """Read all rows of a file or of a data set; paths are relative to `folder`.

    Raises the place's error where there is no such data or where it is empty, DataError with file
    and line where it is bad.
    """
    if isinstance(data, Dataset):
        rows, notes = _from_datasets(data, folder, place)
        source = f"the split {data.split} of {data.dataset}"
        whole = Rows(rows, lambda number: f"row {number} of {source}", notes)
        return _not_empty(whole, source, place)
    path = folder / data
    if not path.is_file():
        expected = "a JSONL, JSON, CSV, TSV or Parquet file"
        raise place.fail(expected, Found(f"{path}, which is no file"), beside(path))
    found, lines = _files.read_file(path)
    if lines is None:
        where = Rows(found, lambda number: f"row {number} of {data}")
    else:
        where = Rows(found, lambda number: f"line {lines[number - 1]} of {data}")
    return _not_empty(where, str(path), place)


def _not_empty(rows: Rows, source: str, place: Place) -> Rows:
    if not rows:
        hint = "give items, such as one JSON object in each line"
        raise place.fail("at least one row of data", Found(f"none in {source}"), hint)
    return rows


def _from_datasets(data: Dataset, folder: Path, place: Place) -> tuple[list[Row], tuple[str, ...]]:
    import datasets

    datasets.disable_progress_bars()  # stderr is for what evomerge says
    datasets.utils.logging.set_verbosity_error()
    path = folder / data.dataset
    local = path.exists()
    if not local:
        refuse_benchmark(data.dataset, data.split, data.contaminates, place)
    source = str(path) if local else data.dataset
    try:
        if any((path / name).is_file() for name in _SAVED):
            found = _saved(path, data.split)
        else:
            found = datasets.load_dataset(
                source, data.name, split=data.split, revision=data.revision
            )
    except Exception as problem:  # the library raises whatever its readers raise
        missing = isinstance(problem, OSError) or "find cache" in str(problem)
        offline = missing and not local and _offline()
        raise _unread(data, problem, offline, place) from None
    # The cache names a folder by the commit.
    commits = {Path(file["filename"]).parent.name for file in found.cache_files}
    notes: tuple[str, ...] = ()
    if not local and data.revision:
        _check_revision(commits, data, place)
    elif not local and commits and all(map(_COMMIT.match, commits)):
        pin = " and ".join(sorted(commits))
        notes = (f"{data.dataset} is read as of today; `revision: {pin}` at {place} pins it",)
    return _named(found.to_list(), found.features), notes


def _saved(path: Path, split: str) -> Any:
    """Return a split of what `save_to_disk` has written; a data set alone is `train` by default."""
    import datasets

    found = datasets.load_from_disk(str(path))
    splits = found if isinstance(found, dict) else {str(found.split or "train"): found}
    sizes = {name: len(rows) for name, rows in splits.items()}
    parts = datasets.ReadInstruction.from_spec(split).to_absolute(sizes)
    return datasets.concatenate_datasets(
        [splits[part.splitname].select(range(part.from_, part.to)) for part in parts]
    )


def _named(rows: list[Row], features: Any) -> list[Row]:
    """Return rows with a Label for each number of a class whose name is known."""
    import datasets

    inner = {name: getattr(feature, "feature", feature) for name, feature in features.items()}
    names = {
        name: tuple(one.names)
        for name, one in inner.items()
        if isinstance(one, datasets.ClassLabel)
    }
    if not names:
        return rows
    return [
        {**row, **{name: _labels(row[name], known) for name, known in names.items()}}
        for row in rows
    ]


def _labels(value: Any, names: tuple[str, ...]) -> Any:
    if isinstance(value, list):
        return [_labels(one, names) for one in value]
    return None if value is None else Label(value, names)


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _unread(data: Dataset, problem: Exception, offline: bool, place: Place) -> InputError:
    hint = f"{type(problem).__name__}: {first_line(problem)}"
    configurations = _CONFIGS.search(str(problem))
    if configurations:
        hint = f"set `name` to one of {configurations[1]}"
    elif offline:
        hint = (
            "HF_HUB_OFFLINE=1 forbids downloading it; run `evomerge check` on the study once where "
            f"there is a network, or name a folder that holds it ({hint})"
        )
    return place.fail("a data set that `datasets` reads", data.dataset, hint)


def _check_revision(commits: set[str], data: Dataset, place: Place) -> None:
    """Refuse another revision than the one asked for.

    Where the Hub cannot be reached, `datasets` takes what its cache got last, of any revision.
    """
    assert data.revision is not None
    if (_COMMIT.match(data.revision) or _offline()) and commits - {data.revision}:
        held = ", ".join(sorted(commits))
        raise (place / "revision").fail(
            f"the revision {data.revision} of {data.dataset}",
            Found(f"{held} from the cache"),
            "without a network a revision must be the commit that the cache holds",
        )


def fill(template: str, row: Row, place: Place) -> str:
    """Fill `{field}` from a row; `{{` and `}}` stand for braces.

    Raises the place's error, with the nearest field, where the row lacks one, and for a value that
    is no text, see `text_of`.
    """

    def replace(match: re.Match[str]) -> str:
        text, name = match[0], match[1]
        if text in ("{{", "}}"):
            return text[0]
        if name is None:
            raise place.fail("{field}, with {{ and }} for braces of the text", template)
        return text_of(field(name, row, place), name, place)

    return _FIELD.sub(replace, template)


def text_of(value: object, name: str, place: Place) -> str:
    """Return a value of the field `name` as text: a text, UTF-8 bytes, a number, a class or a date.

    Raises the place's error for all others and for null.
    """
    if isinstance(value, Label):
        value = value.name
    if value is None:
        raise place.fail(f"a value in the field {name}", Found("null"))
    try:
        text = value.decode() if isinstance(value, bytes) else str(value)
        text.encode()
    except (UnicodeDecodeError, UnicodeEncodeError) as problem:  # half an emoji is none
        found = f"{problem.object[problem.start : problem.end]!r} in place {problem.start + 1}"
        hint = "correct that row, or take it out"
        raise place.fail(f"UTF-8 text in the field {name}", Found(found), hint) from None
    finite = not isinstance(value, float) or math.isfinite(value)
    if not isinstance(value, (str, bytes, *_PLAIN)) or not finite:
        hint = (
            "put its text into a field of its own; only `answer` of generation and `options` take "
            "a list, as a field alone"
        )
        raise place.fail(f"a text or a number in the field {name}", value, hint)
    return text


def field(name: str, row: Row, place: Place) -> Any:
    """Return one field of a row, None for NaN; raises the place's error where there is none."""
    if name not in row:
        near = nearest(name, [str(key) for key in row])
        known = ", ".join(str(key) for key in row)
        hint = f"did you mean {{{near}}}?" if near else f"its fields: {known or 'none'}"
        raise place.fail(f"a field of the data in {{{name}}}", Found("a row without it"), hint)
    value = row[name]
    return None if isinstance(value, float) and math.isnan(value) else value


def row_key(row: Row) -> str:
    """Return what tells a row from others."""
    return json.dumps(row, sort_keys=True, default=repr)


def only_field(template: str) -> str | None:
    """Return the field's name where a template is one field and nothing else."""
    match = re.fullmatch(r"\{([^{}]+)\}", template)
    return match[1] if match else None
