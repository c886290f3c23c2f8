"""The exception tree: everything that evomerge raises for its user's sake is an `EvomergeError`.

EvomergeError
├── InputError            a file, an option or a value is not what it must be
│   ├── RecipeError       in a merge recipe
│   ├── SpaceError        in a search space
│   ├── StudyFileError    in a study file
│   ├── DataError         in the items of a proxy task
│   └── CheckpointError   in a model's folder
├── StudyError            a study cannot be started, found, locked or resumed as asked
└── CandidateError        this one candidate cannot be merged or scored; its trial fails

The command line prints the message, which is one sentence, and exits with status 2.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass

# As PyTorch puts it, and calls its error.
_NO_ROOM = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "OutOfMemoryError",
    "ALLOC_FAILED",
)


class EvomergeError(Exception):
    """Base of all errors that a user can cause or must know of; its message is one line."""

    def __init__(self, message: str) -> None:
        # What it quotes may hold anything: line breaks, escapes of a terminal, half characters.
        shown = (one if one.isprintable() else ascii(one)[1:-1] for one in message)
        super().__init__("".join(shown))


class InputError(EvomergeError):
    """A file, an option or a value is not what it must be."""


class RecipeError(InputError):
    """A merge recipe is wrong."""


class SpaceError(InputError):
    """A search space is wrong."""


class StudyFileError(InputError):
    """A study file is wrong."""


class DataError(InputError):
    """The items of a proxy task are wrong."""


class CheckpointError(InputError):
    """A model's folder is missing, damaged or does not fit the others."""


class StudyError(EvomergeError):
    """A study cannot be started, found, locked or resumed as asked."""


class CandidateError(EvomergeError):
    """One candidate cannot be merged or scored; its trial fails with this reason."""


def out_of_memory(problem: BaseException) -> bool:
    """Return whether an error of Python or of PyTorch says that memory does not suffice."""
    text = f"{type(problem).__name__}: {problem}"
    return isinstance(problem, MemoryError) or (
        isinstance(problem, RuntimeError) and any(words in text for words in _NO_ROOM)
    )


def first_line(problem: BaseException) -> str:
    """Return the first line of a library's error, or its name where it says nothing."""
    return (str(problem).strip() or type(problem).__name__).splitlines()[0]


def nearest(word: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """Return the known name closest to `word`, or None where none is near: 1 is the same."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return found[0] if found else None


@dataclass(frozen=True)
class Place:
    """A position inside a document, to be named in errors: `models[1].weight in ties.yaml`.

    `error` is the exception class that `fail` and its kin raise.
    """

    document: str
    error: type[InputError]
    path: str = ""

    def __truediv__(self, key: str) -> Place:
        """Return the place of `key` inside this mapping."""
        return Place(self.document, self.error, f"{self.path}.{key}" if self.path else str(key))

    def __getitem__(self, index: int) -> Place:
        """Return the place of item `index` inside this list."""
        return Place(self.document, self.error, f"{self.path}[{index}]")

    def __str__(self) -> str:
        return f"{self.path} in {self.document}" if self.path else f"the top of {self.document}"

    def fail(self, expected: str, found: object, hint: str = "") -> InputError:
        """Return (to be raised) `expected …, got … at this place`, with what to do after it."""
        shown = found if isinstance(found, Found) else Found(_brief(found))
        ending = f"; {hint}" if hint else ""
        return self.error(f"expected {expected}, got {shown} at {self}{ending}")

    def unknown(self, word: object, what: str, known: Iterable[str]) -> InputError:
        """Return (to be raised) the error for a misspelt name, with the nearest right one."""
        names = sorted(known)
        near = nearest(str(word), names)
        hint = f"did you mean {near!r}?" if near else f"known: {', '.join(names) or 'none'}"
        return self.error(f"unknown {what} {_brief(word)} at {self}; {hint}")

    def mapping(self, value: object, allowed: Iterable[str] | None = None) -> dict[str, object]:
        """Return `value` checked to be a mapping with string keys, all of them among `allowed`."""
        if not isinstance(value, dict):
            raise self.fail("a mapping", value)
        names = None if allowed is None else list(allowed)
        for key in value:
            if not isinstance(key, str):
                raise self.fail("a text as the key", key)
            if names is not None and key not in names:
                raise self.unknown(key, "key", names)
        return value


class Found(str):
    """A description of what was found, printed as it is rather than quoted."""

    __slots__ = ()


_SHORT = reprlib.Repr()  # bounded in depth too: aliases of YAML can nest without end
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 70


def _brief(value: object) -> str:
    text = "nothing" if value is None else _SHORT.repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
