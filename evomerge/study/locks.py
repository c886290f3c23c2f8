"""Who may write a study: a lock beside an SQLite file or on a server, dropped with its process.

On a server the last write to a study also leaves a mark, which says whose it was.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from sqlalchemy import Connection, func, select, text

from evomerge.errors import StudyError
from evomerge.files import unwritten

_PATIENCE = 0.5  # seconds: who only looks holds the lock for an instant, who has ended a bit longer
# A server notices within a minute that a writer's machine is gone, and never drops an idle one.
_ALIVE = {
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    "idle_session_timeout": "0",
}
_MARK = "evomerge:writer"  # a system attribute of a study


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
        raise StudyError(unwritten(database, problem)) from None
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


def take_server_lock(connection: Connection, name: str, owner: str) -> bool:
    """Take the lock of a study on a server, for as long as the connection lives; False if held.

    A session that the same owner has lost may live on there and hold it, so it is ended first.
    """
    settings = _ALIVE | {"application_name": f"evomerge {owner}"}
    setting = text("SELECT set_config(name, :value, false) FROM pg_settings WHERE name = :name")
    connection.execute(setting, [{"name": key, "value": settings[key]} for key in settings])
    former = text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = :me AND pid <> pg_backend_pid()"
    )
    connection.execute(former, {"me": settings["application_name"]})
    deadline = time.monotonic() + _PATIENCE
    while not connection.execute(select(func.pg_try_advisory_lock(key(name)))).scalar_one():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def mark(connection: Connection, name: str) -> str | None:
    """Return the mark of the last write to a study on a server; None where there is none."""
    table = text("SELECT to_regclass('study_system_attributes')")
    if connection.execute(table).scalar_one() is None:
        return None
    query = text(
        "SELECT value_json FROM study_system_attributes JOIN studies USING (study_id) "
        "WHERE study_name = :name AND key = :key"
    )
    return connection.execute(query, {"name": name, "key": _MARK}).scalar_one_or_none()


def put_mark(connection: Connection, name: str, value: str) -> None:
    """Write the mark, which is JSON, of a write to a study on a server, in its transaction."""
    change = text(
        "INSERT INTO study_system_attributes (study_id, key, value_json) "
        "SELECT study_id, :key, :value FROM studies WHERE study_name = :name "
        "ON CONFLICT (study_id, key) DO UPDATE SET value_json = EXCLUDED.value_json"
    )
    connection.execute(change, {"name": name, "key": _MARK, "value": value})


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
