"""The hidden folder beside OUT_DIR in which a model is written, and what a kill leaves of it.

.NAME.partial/
├── lock            held by the process that writes here; the kernel lets go of it when that ends
├── manifest.json   what is merged, and the shards that are finished, with their digests
└── model/          becomes NAME in one step
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.errors import CheckpointError, InputError
from evomerge.files import exists, sync, unwritten, write_bytes
from evomerge.headers import read_json
from evomerge.merger.shards import Entry, is_intact

_LOCK, _MANIFEST, _MODEL = "lock", "manifest.json", "model"
_TEMPORARY = f".{_MANIFEST}."
Digests = dict[str, str]  # of tensors, by name


@dataclass
class Unfinished:
    """A model that is being written: `target` is where it will be, `origin` all that it is of.

    `finished` are the digests of the tensors of each shard that is whole; `done` says that the
    model has been given its name; `resumed` that there was something to go on from.
    """

    target: Path
    folder: Path
    origin: Mapping[str, Any]
    finished: dict[str, Digests]
    resumed: bool = False
    done: bool = False

    @property
    def model(self) -> Path:
        """The folder for the model's files."""
        return self.folder / _MODEL

    def check(self, shards: Mapping[str, Sequence[Entry]], note: Callable[[str], None]) -> None:
        """Keep the finished shards that are what they were, and no other file."""
        for name, digests in list(self.finished.items()):
            if not is_intact(self.model / name, shards.get(name, []), digests):
                note(f"{name} is not what was written; it is merged again")
                del self.finished[name]
        self._keep_finished()
        self._record()

    def begin(self) -> None:
        """Leave a manifest, then make the folder for the model's files."""
        self._record()
        self.model.mkdir(exist_ok=True)

    def finish(self, shard: str, digests: Digests) -> None:
        """Note that a shard is whole, under its name."""
        sync(self.model)
        self.finished[shard] = digests
        self._record()

    def commit(self) -> None:
        """Give the model its name, in one step after all its files have reached the disk."""
        for path in sorted(self.model.rglob("*")):
            sync(path)
        sync(self.model)
        if _there(self.target):
            raise _taken(self.target)
        os.rename(self.model, self.target)
        self.done = True
        sync(self.target.parent)

    def stop(self, keep: bool) -> None:
        """Remove what is of no use: everything, or all but finished shards."""
        if keep and self.finished and not self.done:
            self._keep_finished()
        else:
            _remove(self.folder)

    def _keep_finished(self) -> None:
        for path in self.model.iterdir():
            if path.name not in self.finished:
                _delete(path)

    def _record(self) -> None:
        content = {"origin": self.origin, "finished": self.finished}
        write_bytes(self.folder / _MANIFEST, json.dumps(content, indent=1).encode())


@contextlib.contextmanager
def unfinished(target: Path, origin: Mapping[str, Any], resume: bool) -> Iterator[Unfinished]:
    """Yield the hidden folder whose model becomes `target` when the block ends well.

    `origin` is plain data: all that the model depends on. What a kill leaves is gone on from where
    `resume` is set and the origin is the same. What an error leaves is removed, except for shards
    that were there to go on from; what Ctrl-C leaves is kept like what a kill leaves. Raises
    CheckpointError where `target` exists, before and after the block, since nothing that exists is
    overwritten; where finished shards lie there and are not to be gone on from; where another
    process writes there; and where the block meets a full disk or the like.
    """
    folder = target.with_name(f".{target.name}.partial") if target.name else target
    if _there(target) and not (resume and exists(folder)):
        raise _taken(target)
    parents = _missing(target.parent)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder, target):
            work = _opened(folder, target, json.loads(json.dumps(origin)), resume)
            yield from _used(work)
    except OSError as problem:
        raise CheckpointError(unwritten(target, problem)) from None
    finally:
        for path in parents:
            with contextlib.suppress(OSError):  # it is not empty: there is a model in it
                path.rmdir()


def _used(work: Unfinished) -> Iterator[Unfinished]:
    try:
        if not work.done:
            work.begin()
        yield work
        if not work.done:
            work.commit()
    except KeyboardInterrupt:
        work.stop(keep=True)
        if exists(work.folder):
            raise KeyboardInterrupt("stopped; the same command with --resume goes on") from None
        raise
    except InputError as problem:
        work.stop(keep=work.resumed)
        text = str(problem).replace(str(work.model), str(work.target))  # as the user knows it
        raise type(problem)(text) from None
    except BaseException:
        work.stop(keep=work.resumed)
        raise
    work.stop(keep=False)


def _missing(folder: Path) -> list[Path]:
    """Return the folders that must be made for `folder` to be there, the innermost first."""
    return [path for path in (folder, *folder.parents) if not exists(path)]


@contextlib.contextmanager
def _locked(folder: Path, target: Path) -> Iterator[None]:
    """Make the folder and hold its lock; CheckpointError where another process holds it."""
    while True:
        try:
            folder.mkdir()
        except FileExistsError:
            if folder.is_symlink() or not folder.is_dir():
                raise CheckpointError(
                    f"expected no file {folder}, which is for the unfinished model; remove it first"
                ) from None
        try:
            handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:
            continue  # the process that wrote here has ended and removed the folder just now
        except OSError:
            with contextlib.suppress(OSError):
                folder.rmdir()
            raise
        try:
            _flock(handle, target)
            if _is_file(handle, folder / _LOCK):
                yield
                return
        finally:
            os.close(handle)


def _flock(handle: int, target: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CheckpointError(
            f"{target} is being written by another process; wait for it or stop it first"
        ) from None
    except OSError:
        return  # a file system without locks


def _is_file(handle: int, path: Path) -> bool:
    """Return whether an open file is still the one at `path`: its folder may have been removed."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _opened(folder: Path, target: Path, origin: Mapping[str, Any], resume: bool) -> Unfinished:
    """Return the model to write or to go on with; the folder is locked."""
    found = _manifest(folder)
    if found is None:
        strange = [path for path in folder.iterdir() if not _is_ours(path)]
        if strange:
            raise CheckpointError(
                f"expected nothing of others in {folder}, which is for the unfinished model, got "
                f"{strange[0].name}; move it away first"
            )
    before, finished = found or ({}, {})
    done = _there(target)
    if done and not (resume and before == origin and not exists(folder / _MODEL)):
        if found is None:
            _remove(folder)
        raise _taken(target)
    if finished and not done and not resume:
        raise CheckpointError(
            f"expected no unfinished {target}, got {len(finished)} of its shards in {folder}; add "
            f"--resume to go on from them, or remove {folder} to begin anew"
        )
    if finished and before != origin:
        raise CheckpointError(
            f"cannot go on with {folder}: {_changed(before, origin)}; merge what it was begun "
            f"with, or remove {folder} to begin anew"
        )
    return Unfinished(target, folder, origin, finished, bool(finished), done)


def _is_ours(path: Path) -> bool:
    return path.name == _LOCK or path.name.startswith(_TEMPORARY)


def _manifest(folder: Path) -> tuple[dict[str, Any], dict[str, Digests]] | None:
    """Return the origin and the finished shards of what lies in a folder, if anything does."""
    if not exists(folder / _MANIFEST):
        return None
    content = read_json(folder / _MANIFEST)
    origin, finished = content.get("origin"), content.get("finished")
    if not isinstance(origin, dict) or not isinstance(finished, dict):
        raise CheckpointError(
            f"expected what evomerge merge has written, got something else in {folder}/{_MANIFEST};"
            f" remove {folder} to begin anew"
        )
    return origin, finished


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return in words the first thing that is not what it was."""
    key = next(one for one in [*now, *before] if before.get(one) != now.get(one))
    old, new = before.get(key), now.get(key)
    if isinstance(old, dict) and isinstance(new, dict):
        name = next(one for one in [*new, *old] if old.get(one) != new.get(one))
        return f"{name} is not what it was"
    if "\n" in f"{old}{new}":
        return f"the {key} is another"
    return f"the {key} was {old} and is {new}"


def _there(target: Path) -> bool:
    return exists(target) or target.is_symlink()


def _taken(target: Path) -> CheckpointError:
    return CheckpointError(f"{target} exists already; choose another name or remove it first")


def _remove(folder: Path) -> None:
    """Remove the hidden folder: the manifest after what it is about, and then the lock.

    A process that comes in between finds what a kill leaves, or makes a lock of its own.
    """
    _delete(folder / _MODEL)
    for path in folder.glob(f"{_TEMPORARY}*"):
        _delete(path)
    for name in (_MANIFEST, _LOCK):
        _delete(folder / name)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
