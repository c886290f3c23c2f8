"""Who may write a study: a lock beside an SQLite file or on a server, dropped with its process."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from sqlalchemy import Connection, text

from evomerge.errors import StudyError

_PATIENCE = 0.5  # seconds: somebody who only looks holds the lock for an instant


def key(name: str) -> int:
    """Return the number by which a server knows a study's lock."""
    digest = hashlib.sha256(f"evomerge {name}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def busy(name: str) -> StudyError:
    """Return the error of a study whose lock another process holds."""
    return StudyError(
        f"the study {name} is being run by another process; wait for it or stop it first"
    )


@contextlib.contextmanager
def file_lock(database: Path, name: str) -> Iterator[None]:
    """Hold the lock of a study in an SQLite file; StudyError where another process holds it."""
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        handle = _beside(database, name).open("a+")
    except OSError as problem:
        raise StudyError(f"cannot write to {database.parent}: {problem.strerror}") from None
    with handle:
        deadline = time.monotonic() + _PATIENCE
        while not _take(handle, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise busy(name)
            time.sleep(0.02)
        yield


def file_lock_is_held(database: Path, name: str) -> bool:
    """Return whether a process holds the lock of a study in an SQLite file; changes no file."""
    try:
        with _beside(database, name).open() as handle:
            return not _take(handle, fcntl.LOCK_SH)
    except OSError:  # there is no such file, so that nobody has ever held it
        return False


def server_lock_is_held(connection: Connection, name: str) -> bool:
    """Return whether a connection to a PostgreSQL server holds a study's lock."""
    query = text(
        "SELECT EXISTS (SELECT 1 FROM pg_locks JOIN pg_database d ON d.oid = database "
        "WHERE d.datname = current_database() AND locktype = 'advisory' AND granted "
        "AND classid::bigint = :high AND objid::bigint = :low AND objsubid = 1)"
    )
    halves = {"high": (key(name) >> 32) & 0xFFFFFFFF, "low": key(name) & 0xFFFFFFFF}
    return bool(connection.execute(query, halves).scalar_one())


def _beside(database: Path, name: str) -> Path:
    return database.with_name(f".{database.name}.{name}.lock")


def _take(handle: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
