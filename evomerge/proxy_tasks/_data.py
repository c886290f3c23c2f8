"""Rows of data, templates filled from them, and prompts as token ids."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

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
        raise place.fail("a JSONL file", Found(f"{data!r}, and there is no file {path}"))
    rows: list[Row] = []
    for number, line in enumerate(read_text(path, DataError).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as problem:
            raise DataError(f"expected JSON, got {problem} at line {number} of {path}") from None
        if not isinstance(row, dict):
            raise DataError(
                f"expected a JSON object, got a {type(row).__name__} at line {number} of {path}"
            )
        rows.append(row)
    return rows


def _from_datasets(data: Dataset, folder: Path, place: Place) -> list[Row]:
    import datasets

    local = folder / data.dataset
    source = str(local) if local.exists() else data.dataset
    try:
        found = datasets.load_dataset(
            source, data.name, split=data.split, revision=data.revision
        )
    except Exception as problem:  # the library raises whatever its readers raise
        reason = str(problem).strip().splitlines()[0] if str(problem).strip() else ""
        raise place.fail(
            "a data set that `datasets` can load",
            data.dataset,
            f"{type(problem).__name__}: {reason}",
        ) from None
    return [dict(row) for row in found]


def fill(template: str, row: Row, place: Place) -> str:
    """Fill `{field}` from a row; `{{` and `}}` stand for braces.

    Raises the place's error, with the nearest field, where the row lacks one.
    """

    def replace(match: re.Match[str]) -> str:
        text, name = match[0], match[1]
        if text in ("{{", "}}"):
            return text[0]
        if name is None:
            raise place.fail("{field}, with {{ and }} for braces of the text", template)
        return str(field(name, row, place))

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


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str, chat: bool) -> tuple[int, ...]:
    """Return the token ids of a prompt, with the special tokens that the model expects before it.

    Raises DataError where a prompt has no tokens or a chat template is asked for and missing.
    """
    if chat:
        if not tokenizer.chat_template:
            raise DataError(
                "expected a chat template in the base model's tokenizer, which `chat: true` "
                "needs, got none; use a tokenizer with one or leave `chat` out"
            )
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        ids = tokenizer(prompt)["input_ids"]
    if ids and ids[-1] == tokenizer.eos_token_id and not chat:
        ids = ids[:-1]  # some tokenizers close every text
    if not ids:
        if tokenizer.bos_token_id is None:
            raise DataError(f"expected a prompt of at least one token, got {prompt!r}")
        ids = [tokenizer.bos_token_id]
    return tuple(ids)


def encode_answer(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Return the token ids of what follows a prompt, without special tokens; DataError if empty."""
    ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    if not ids:
        raise DataError(f"expected an answer of at least one token, got {text!r}")
    return ids
