"""Python: a function of your own scores the model on rows of data.

The function is called as `function(model, tokenizer, rows)`, where the model is that of
transformers, and returns one score from 0 to 1 for each row, or scores and correctness.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import importlib.util
import os
import random
import re
import reprlib
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import xxhash
from pydantic import Field, field_validator

from evomerge.errors import CandidateError, DataError, Place, first_line, nearest
from evomerge.files import beside
from evomerge.language_model import LanguageModel
from evomerge.proxy_tasks import ItemScores, TaskSettings, Vector
from evomerge.proxy_tasks._data import Row, Rows, read_rows, row_key
from evomerge.tokenizer_files import Tokenizer

_PREFIX = "evomerge_function_"  # of the names of files as modules
NEEDS_MODULE = True  # an ensemble, which is no model of transformers, cannot be scored
Scoring = Callable[[Any, Tokenizer, list[Row]], Any]


class Settings(TaskSettings):
    """The settings of a task in a study file that is scored by a function."""

    function: str = Field(
        description="file.py:name, relative to the study file, or module:name of an installed "
        "module"
    )

    @field_validator("function")
    @classmethod
    def _names_a_function(cls, value: str) -> str:
        source, _, name = value.rpartition(":")
        if not source or not name.isidentifier():
            raise ValueError("file.py:name or module:name")
        return value

    @field_validator("chat")
    @classmethod
    def _no_chat(cls, value: bool) -> bool:
        if value:
            raise ValueError("false or nothing: the function makes its prompts itself")
        return value


@dataclass(frozen=True)
class Example:
    """One row as the function gets it, with what tells it from others and says if it changed."""

    key: str  # the row as JSON
    source: str  # a hash of the function's file
    task: str  # the task's place in the study file, for errors
    row: Row = field(compare=False, repr=False)

    @property
    def prompt(self) -> str:
        """The row, as a report shows it."""
        return self.key


def absolute(settings: Settings, folder: Path) -> Settings:
    """Return the settings with the function's file as an absolute path."""
    source, _, name = settings.function.rpartition(":")
    if not source.endswith(".py"):
        return settings
    return settings.model_copy(update={"function": f"{(folder / source).resolve()}:{name}"})


def rows(settings: Settings, folder: Path, place: Place) -> Rows:
    """Read the rows, once the function is found; raises the place's error where it is not."""
    load(settings.function, place / "function")
    return read_rows(settings.data, folder, place / "data")


def render(row: Row, settings: Settings, place: Place) -> Example:
    """Return a row as an example; raises the place's error where the function's file is gone."""
    return Example(
        row_key(row), _digest(settings.function, place / "function"), place.path, dict(row)
    )


def load(function: str, place: Place) -> Scoring:
    """Import a function; raises the place's error where there is none or its file fails."""
    _digest_of.cache_clear()  # its files may have changed
    source, _, name = function.rpartition(":")
    try:
        with _as_program(function):
            module = _from_file(Path(source)) if source.endswith(".py") else _installed(source)
    except (Exception, SystemExit) as problem:  # the file raises whatever its author wrote
        hint = _reason(problem)
        if not source.endswith(".py"):
            hint += "; install it, or name a file as in file.py:name"
        elif not Path(source).exists():
            hint = f"there is no such file; {beside(Path(source))}"
        raise place.fail("a function that can be imported", function, hint) from None
    found = getattr(module, name, None)
    if not callable(found):
        known = [one for one, value in vars(module).items() if callable(value)]
        near = nearest(name, known)
        hint = f"did you mean {near!r}?" if near else f"there is no function {name} in {source}"
        raise place.fail("a function", function, hint)
    scoring: Scoring = found
    return scoring


def _installed(name: str) -> ModuleType:
    return importlib.import_module(name)


def _from_file(path: Path) -> ModuleType:
    """Run a file as a module of its own, anew each time: it may have changed."""
    name = f"{_PREFIX}{xxhash.xxh3_64_hexdigest(str(path).encode())}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where its data classes and pickles look for it
    spec.loader.exec_module(module)
    return module


def _digest(function: str, place: Place) -> str:
    """Return a hash of the file that a function is in, and of those beside it that it names.

    A change in them is a change of the study.
    """
    source = function.rpartition(":")[0]
    if not source.endswith(".py"):
        spec = importlib.util.find_spec(source)
        source = spec.origin if spec is not None and spec.origin is not None else source
    try:
        return _digest_of(Path(source))
    except OSError as problem:
        raise place.fail("a file", source, first_line(problem)) from None


@functools.lru_cache(maxsize=8)
def _digest_of(path: Path) -> str:
    """Return the digest of a file, known from one row to the next until a function is loaded."""
    text = path.read_bytes()
    words = {one.decode() for one in re.findall(rb"\w+", text)}
    beside = [one for one in sorted(path.parent.glob("*.py")) if one.stem in words]
    parts = [text, *(one.read_bytes() for one in beside if one != path)]
    return xxhash.xxh3_128_hexdigest(b"".join(parts))


class Task:
    """Rows that a function scores; raises DataError where it cannot be imported."""

    def __init__(
        self, settings: Settings, examples: Sequence[Example], tokenizer: Tokenizer
    ) -> None:
        self._function = settings.function
        self._scoring = load(settings.function, Place("the study", DataError, "function"))
        self._examples = list(examples)
        self._tokenizer = tokenizer

    def scores(self, model: LanguageModel, items: Sequence[int], exact: bool) -> ItemScores:
        """Score items by the function, which is given their rows; see proxy_tasks.Task.

        The function draws from random streams of its own, which begin alike each time. Raises
        CandidateError, with the task, where the function fails or gives no score for some row, and
        for a model that is none of transformers.
        """
        task = self._examples[items[0]].task if len(items) else ""
        module = getattr(model, "module", None)
        if module is None:
            raise CandidateError(
                f"expected a model of transformers for {task}, which {self._function} scores, got "
                f"{type(model).__name__}"
            )
        rows = [copy.deepcopy(self._examples[item].row) for item in items]
        try:
            with _as_program(self._function), _own_streams(), torch.inference_mode():
                found = self._scoring(module, self._tokenizer, rows)
        except (Exception, SystemExit) as problem:  # the function raises whatever its author wrote
            raise CandidateError(
                f"expected scores for {task} from {self._function}, got {_reason(problem)}; "
                "correct it there"
            ) from None
        finally:
            module.eval()
        pair = isinstance(found, tuple) and len(found) == 2 and all(map(_is_list, found))
        score, correct = found if pair else (found, found)
        return ItemScores(
            self._checked(score, items, "score"), self._checked(correct, items, "correctness")
        )

    def _checked(self, given: Any, items: Sequence[int], what: str) -> Vector:
        """Return what the function gave as float64 [n] in [0, 1]."""
        task = self._examples[items[0]].task if len(items) else ""
        expected = f"expected a {what} from 0 to 1 for each row of {task} from {self._function}"
        try:
            plain = (
                given.detach().float().cpu().numpy() if isinstance(given, torch.Tensor) else given
            )
            found = np.asarray(plain, dtype=np.float64)
        except (TypeError, ValueError) as problem:
            raise CandidateError(f"{expected}, got {first_line(problem)}") from None
        if found.shape != (len(items),):
            shape = list(found.shape)
            raise CandidateError(f"{expected}, {len(items)} numbers, got the shape {shape}")
        bad = np.flatnonzero(~((found >= 0) & (found <= 1)))
        if len(bad):
            row = reprlib.repr(self._examples[items[bad[0]]].row)
            raise CandidateError(f"{expected}, got {found[bad[0]]} for item {bad[0]}, {row}")
        return found


def _is_list(value: Any) -> bool:
    return hasattr(value, "__len__") and getattr(value, "ndim", 1) > 0


def _reason(problem: BaseException) -> str:
    """Return what went wrong and, in a file of the user's, where."""
    said = f"{type(problem).__name__}: {first_line(problem)}"
    frames = traceback.extract_tb(problem.__traceback__)
    own = [one for one in frames if one.filename != __file__]
    library = ("site-packages", sysconfig.get_path("stdlib"), "<")
    inner = [one for one in own if not any(part in one.filename for part in library)]
    return f"{said} at line {inner[-1].lineno} of {inner[-1].filename}" if inner else said


@contextlib.contextmanager
def _as_program(function: str) -> Iterator[None]:
    """Let a file import those beside it, as a program may; what it prints goes to stderr.

    The command's own stdout may be read by a program.
    """
    source = function.rpartition(":")[0]
    own = [str(Path(source).parent)] if source.endswith(".py") else []
    sys.path[:0] = own
    before = set(sys.modules)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        for folder in own:
            with contextlib.suppress(ValueError):  # the file has removed it
                sys.path.remove(folder)
            for name in set(sys.modules) - before:  # another file may mean others by these names
                file = str(getattr(sys.modules[name], "__file__", ""))
                if file.startswith(f"{folder}{os.sep}") and not name.startswith(_PREFIX):
                    del sys.modules[name]


@contextlib.contextmanager
def _own_streams() -> Iterator[None]:
    """Begin the global random streams alike, and afterwards set them back to where they were."""
    plain, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            random.setstate(plain)
            np.random.set_state(numbers)
