"""Reading YAML safely and writing files whole or not at all."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import tempfile
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml

from evomerge.errors import InputError, first_line, nearest

_MERGE = "tag:yaml.org,2002:merge"
_MOST_MERGED = 10_000  # keys; merges of merges could ask for any number
_UNLIKE = re.compile(r"expected (.+?),? but (?:found|got) (.+)")  # as the YAML reader puts it
_TOKENS = {  # names of the reader's own
    "'<document start>'": "the end of the document",
    "<block end>": "the indentation of the lines above",
    "'<block mapping start>'": "other indentation",
    "'<stream end>'": "the end of the file",
}
_MOST_BESIDE = 1000  # files of a folder whose names are compared with a misspelt one
_ALIKE = 0.7  # of two names with one ending
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, which YAML readers let the last one win.

    Merge keys (`<<: *defaults`) are read as ever: what is given beside them wins.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._flat: set[int] = set()  # mappings whose merges have been put in

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        if id(node) in self._flat:
            return
        self._flat.add(id(node))
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(
                    None, None, "a list or mapping as a key", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} twice", key_node.start_mark
                )
            seen.add(key)
        super().flatten_mapping(node)
        if len(node.value) > _MOST_MERGED:
            what = f"more than {_MOST_MERGED} keys"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark)


def exists(path: Path) -> bool:
    """Return whether there is a file or folder at `path`; False also where no path can be so."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def read_text(path: Path, error: type[InputError]) -> str:
    """Return the UTF-8 text of `path`; every way in which that can fail is raised as `error`."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise error(f"there is no file {path}; {beside(path)}") from None
    except IsADirectoryError:
        raise error(f"expected a file, got the folder {path}; name the file in it") from None
    except UnicodeDecodeError:
        raise error(
            f"expected a UTF-8 text file, got other bytes in {path}; save it as UTF-8"
        ) from None
    except OSError as problem:
        raise error(f"cannot read {path}: {problem.strerror}; check that you may") from None
    except ValueError as problem:
        raise error(f"cannot read {str(path)!r}: {problem}") from None


def beside(path: Path) -> str:
    """Return what to do about a path at which there is nothing: the nearest name beside it."""
    try:
        with os.scandir(path.parent) as entries:
            names = sorted(
                entry.name
                for entry in itertools.islice(entries, _MOST_BESIDE)
                if entry.name != path.name
            )
    except (OSError, ValueError):
        return "check the path"
    found = nearest(path.name, names, _ALIKE)
    return f"did you mean {path.with_name(found)}?" if found else "check the path"


def load_yaml(path: Path, error: type[InputError]) -> object:
    """Read one YAML document, plain data only; raise `error`, with the line, where it is broken."""
    text = read_text(path, error)
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (it is a safe loader)
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark or problem.context_mark
        line = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise error(f"{_unlike(problem)}{line} of {path}{_advice(problem)}") from None
    except Exception as problem:  # a tag such as !!bool on another text fails in ways of its own
        raise error(f"expected YAML, got {first_line(problem)} in {path}") from None


def _unlike(problem: yaml.MarkedYAMLError) -> str:
    text = (problem.problem or "an error").removeprefix("but ").removeprefix("found ")
    for name, words in _TOKENS.items():
        text = text.replace(name, words)
    found = _UNLIKE.fullmatch(text)
    return f"expected YAML, got {f'{found[2]} in place of {found[1]}' if found else text}"


def _advice(problem: yaml.MarkedYAMLError) -> str:
    if isinstance(problem, yaml.constructor.ConstructorError):
        return "; give each key once, and plain values"
    if isinstance(problem, yaml.composer.ComposerError):
        return "; keep one document, and put a text that begins with * or & into quotes"
    return "; check brackets, quotes and indentation (spaces, no tabs) there and above"


def dump_yaml(data: object) -> str:
    """Return `data` as YAML: keys in the given order, floats exact, short lists on one line."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


def _sequence(dumper: yaml.SafeDumper, data: Sequence[object]) -> yaml.Node:
    flow = all(isinstance(item, (int, float, str)) for item in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flow)


_Dumper.add_representer(list, _sequence)
_Dumper.add_representer(tuple, _sequence)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees the old file or the new one, never a part.

    Raises InputError where the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, text.encode())
    except OSError as problem:
        raise InputError(unwritten(path, problem)) from None


def unwritten(path: Path, problem: OSError) -> str:
    """Return why something could not be written at `path`, and what to do."""
    hint = "free some space, or write to another disk" if problem.errno in _FULL else ""
    reason = problem.strerror or str(problem)
    way = next((one for one in (path, *path.parents) if exists(one) and not one.is_dir()), None)
    if way is not None and isinstance(problem, FileExistsError | NotADirectoryError):
        reason, hint = f"{way} is a file, not a folder", "choose another place"
    return f"cannot write {path}: {reason}; {hint or 'choose a place where you may write'}"


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all; raises OSError.

    What is no file, such as /dev/stdout, is written to and stays what it is.
    """
    if exists(path) and not path.is_file():
        path.write_bytes(data)
        return
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, data: object) -> None:
    """Write `data` as indented JSON, whole or not at all; raises InputError as `write_text`."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, have reached the disk; raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as problem:
        if problem.errno != errno.EINVAL:  # of a file system that does not sync folders
            raise
    finally:
        os.close(handle)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
