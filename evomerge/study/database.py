"""Where studies live: SQLite files and PostgreSQL servers, transactions, errors."""

from __future__ import annotations

import contextlib
import fcntl
import re
import shlex
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    create_engine,
    event,
    func,
    inspect,
    make_url,
    select,
)
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from evomerge.errors import StudyError, first_line
from evomerge.study import locks, rows, tables
from evomerge.study.failures import DatabaseAwayError, passes

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

BUSY_SECONDS = 60  # a reader of an SQLite file may keep the writer waiting this long
_KINDS = "sqlite:///FILE or postgresql://USER@HOST/DATABASE"
_SECRETS = ("password", "sslpassword")
# We notice within a minute that a server's machine is gone.
_ALIVE = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,  # milliseconds
}

T = TypeVar("T")


def shown(url: str) -> str:
    """Return a database's URL without any password, to be named in messages."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return re.sub(r"//([^/@]*):[^/]*@", r"//\1:***@", url)
    if parsed.get_backend_name() == "sqlite":
        return url
    hidden = {key: "***" for key in _SECRETS if key in parsed.query}
    return parsed.update_query_dict(hidden).render_as_string(hide_password=True)


def command(verb: str, name: str | None, url: str | None, options: str = "") -> str:
    """Return a command that does something with a study, to be named in messages.

    It can be run as it stands; a password, which is never shown, goes into PGPASSWORD.
    """
    words = ["evomerge", verb, *([name] if name else []), *([options] if options else [])]
    if url is None:
        return f"`{' '.join(words)}`"
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return f"`{' '.join(words)} --storage …`"
    if parsed.get_backend_name() != "sqlite":
        secret = parsed.password is not None or "password" in parsed.query
        words = (["PGPASSWORD=…"] if secret else []) + words
        parsed = parsed.difference_update_query(_SECRETS)
        without = URL.create(parsed.drivername, parsed.username, None, *parsed[3:])
        url = without.render_as_string(hide_password=False)
    return f"`{' '.join(words)} --storage {shlex.quote(url)}`"


class Database:
    """A database by its URL.

    A connection is made for each transaction, or with `keep` once for all until `close`.
    """

    def __init__(self, url: str, *, keep: bool = False) -> None:
        self.url = url
        self._pool = None if keep else NullPool
        self.name = shown(url)
        try:
            parsed = make_url(url)
            kind = parsed.get_backend_name()
        except (ArgumentError, ValueError):
            raise self._unopened(f"expected {_KINDS}") from None
        if kind not in ("sqlite", "postgresql") or (kind == "sqlite" and not _is_file(parsed)):
            raise self._unopened(f"expected {_KINDS}")
        if parsed.drivername == "postgresql":  # SQLAlchemy's own choice is psycopg2
            parsed = parsed.set(drivername="postgresql+psycopg")
        self._parsed = parsed

    @property
    def file(self) -> Path | None:
        """The file of an SQLite database, None for a server."""
        return Path(str(self._parsed.database)) if self._sqlite else None

    @property
    def _sqlite(self) -> bool:
        return self._parsed.get_backend_name() == "sqlite"

    def _unopened(self, reason: str, hint: str = "") -> StudyError:
        return StudyError(f"cannot open the database {self.name}: {reason}{hint and f'; {hint}'}")

    @property
    def _remedy(self) -> str:
        if self._sqlite:
            return "put a copy of it in its place, or move it away and search again"
        return "check the URL, and that the server runs and lets you in"

    @cached_property
    def _engine(self) -> Engine:
        arguments: dict[str, Any] = {"timeout": BUSY_SECONDS}
        if not self._sqlite:
            given = self._parsed.query
            arguments = {key: value for key, value in _ALIVE.items() if key not in given}
        try:
            engine = create_engine(self._parsed, connect_args=arguments, poolclass=self._pool)
        except ImportError:
            raise self._unopened(
                "the driver of PostgreSQL is not installed; pip install 'evomerge[postgresql]'"
            ) from None
        except SQLAlchemyError as problem:
            raise self._unopened(self._reason(problem)) from None
        if self._sqlite:
            event.listen(engine, "connect", _leave_transactions_to_us)
            event.listen(engine, "begin", _begin)
        return engine

    def _reason(self, problem: BaseException) -> str:
        reason = first_line(getattr(problem, "orig", None) or problem)
        for secret in (self._parsed.password, *map(self._parsed.query.get, _SECRETS)):
            if isinstance(secret, str) and secret:
                reason = reason.replace(secret, "***")
        return reason

    def read(self, action: Callable[[Connection], T]) -> T:
        """Read in one transaction that sees one state of the database."""
        options = {} if self._sqlite else {"isolation_level": "REPEATABLE READ"}
        return self._try(action, options, self._failed)  # closing ends the transaction

    def write(self, action: Callable[[Connection], T]) -> T:
        """Write in one transaction, again while somebody else keeps the database locked."""

        def committed(connection: Connection) -> T:
            with connection.begin():
                return action(connection)

        return self._try(committed, {"evomerge_begin": "BEGIN IMMEDIATE"}, self._failed)

    def _failed(self, reason: str) -> StudyError:
        return StudyError(
            f"the database {self.name} failed: {reason}; "
            "see to it, then go on: what is recorded stays"
        )

    def _try(
        self,
        action: Callable[[Connection], T],
        options: dict[str, Any],
        failed: Callable[[str], StudyError],
    ) -> T:
        """Do something on a connection; DatabaseAwayError where it can be tried again."""
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                with self._connected() as connection:
                    return action(connection.execution_options(**options))
            except IntegrityError:
                raise
            except SQLAlchemyError as problem:
                reason = self._reason(problem)
                if self._passes(problem):
                    raise DatabaseAwayError(str(failed(reason)), reason) from None
                if not (self._sqlite and "locked" in reason) or time.monotonic() > deadline:
                    raise failed(reason) from None
                time.sleep(0.05)

    def _passes(self, problem: SQLAlchemyError) -> bool:
        return not self._sqlite and passes(problem, self._engine)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Connection]:
        with self._engine.connect() as connection:
            yield connection

    def has_tables(self) -> bool:
        """Whether Optuna's tables are there; StudyError where they are of another version."""

        def found(connection: Connection) -> str | None:
            there = inspect(connection).has_table("alembic_version")
            return rows.schema(connection) if there else None

        version = self._try(found, {}, lambda reason: self._unopened(reason, self._remedy))
        if version not in (None, tables.SCHEMA):
            raise self._unopened(
                f"expected tables {tables.SCHEMA} of Optuna, got {version}; "
                "install the Optuna that this version of evomerge asks for"
            )
        return version is not None

    def make_tables(self) -> None:
        """Make Optuna's tables where they are missing."""
        from optuna.storages import RDBStorage

        def make(connection: Connection) -> None:
            if not self._sqlite:  # two processes may meet here
                connection.execute(select(func.pg_advisory_xact_lock(locks.key("the tables"))))
            storage = RDBStorage(self._for_optuna)
            storage.remove_session()
            storage.engine.dispose()

        if self.has_tables():
            return
        try:
            self._try(make, {}, self._unopened)
        except RuntimeError as problem:
            raise self._unopened(self._reason(problem)) from None

    def reading_storage(self) -> RDBStorage:
        """Return Optuna's storage of a database that has its tables; it cannot write there."""
        from optuna.storages import RDBStorage

        if not self.has_tables():
            raise self._unopened("there are no studies in it")
        forbid = (
            "PRAGMA query_only = ON" if self._sqlite else "SET default_transaction_read_only = on"
        )

        def connected(connection: Any, record: object) -> None:
            connection.cursor().execute(forbid)
            connection.commit()  # a server would forget it with the transaction

        storage = RDBStorage(self._for_optuna, skip_table_creation=True)
        storage.remove_session()
        storage.engine.dispose()
        event.listen(storage.engine, "connect", connected)
        return storage

    @property
    def _for_optuna(self) -> str:
        whole = self._parsed.render_as_string(hide_password=False)
        return whole.replace("{", "{{").replace("}", "}}")  # Optuna fills in such a template

    def make_faster(self) -> None:
        """Let an SQLite file be written without waiting for readers or, at each commit, the disk.

        What a power cut can undo is whole transactions, the last ones, which a resume does again.
        A file system that cannot do it is as slow as before.
        """
        if self._sqlite:
            with contextlib.suppress(SQLAlchemyError), self._engine.connect() as connection:
                connection.execution_options(evomerge_begin="SELECT 1")  # not in a transaction
                connection.exec_driver_sql("PRAGMA journal_mode = WAL")

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def has_writer(self, name: str) -> bool:
        """Return whether some process holds a study's lock."""
        if self.file is not None:
            return locks.file_lock_is_held(self.file, name)
        return self.read(lambda connection: locks.server_lock_is_held(connection, name))


def _is_file(parsed: URL) -> bool:
    return bool(parsed.database) and parsed.database != ":memory:" and "uri" not in parsed.query


def _leave_transactions_to_us(connection: Any, record: object) -> None:
    connection.isolation_level = None
    connection.execute("PRAGMA synchronous = NORMAL")


def _begin(connection: Connection) -> None:
    begin = connection.get_execution_options().get("evomerge_begin", "BEGIN")
    connection.exec_driver_sql(begin)


@contextlib.contextmanager
def making(path: Path | None) -> Iterator[None]:
    """Wait until no other process makes this SQLite file; a server sees to it itself."""
    if path is None:
        yield
        return
    with path.with_name(f".{path.name}.lock").open("a+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
