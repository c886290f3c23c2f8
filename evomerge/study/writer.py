"""The only writer of a study on a server, which may be away for a while.

Its one connection holds the study's lock, so what it commits nobody else was there to write. Every
transaction leaves a mark of its own. When a connection has been lost, the mark on the server says
whether the last commit took place, and whether anybody else has written since.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from evomerge.errors import StudyError
from evomerge.study import locks
from evomerge.study.database import Database, command
from evomerge.study.failures import DatabaseAwayError
from evomerge.study.interrupts import Interrupts

AWAY_SECONDS = 600  # that a server is waited for
_PAUSES = (0.1, 5.0)  # between two tries: the second one and, doubled each time, the longest

T = TypeVar("T")


class Writer(Database):
    """The database of a study as its only writer has it: waits for the server while it is away.

    `note` is told when it begins to wait and when that is over.
    """

    def __init__(self, url: str, study: str, note: Callable[[str], None]) -> None:
        super().__init__(url)
        self._study = study
        self._note = note
        self._resume = command("resume", study, url)
        self._token = secrets.token_hex(8)
        self._connection: Connection | None = None
        self._taken = False  # ever
        self._number = 0  # of the last write
        self._mark: str | None = None  # of the last write to the study, as far as we know
        self._next: str | None = None  # of the one that is under way

    def take(self) -> None:
        """Take the study's lock; StudyError where another process holds it."""
        try:
            self._connect()
        except SQLAlchemyError as problem:
            raise self._unopened(self._reason(problem), self._remedy) from None

    def write(self, action: Callable[[Connection], T]) -> T:
        """Write in one transaction, exactly once however often the connection is lost.

        Raises StudyError, and nothing is written, where another process has gone on with the study.
        """
        self._number += 1
        self._next = json.dumps(f"{self._token} {self._number}")
        found: list[T] = []

        def marked(connection: Connection) -> T:
            if self._mark != self._next:  # else it was committed just before the connection broke
                with connection.begin():
                    found.append(action(connection))
                    locks.put_mark(connection, self._study, str(self._next))
                self._mark = self._next
            return found[-1]

        return self._try(marked, {}, self._failed)

    def close(self) -> None:
        """Close the connection, and so drop the lock."""
        self._disconnect()
        super().close()

    def _try(
        self,
        action: Callable[[Connection], T],
        options: dict[str, Any],
        failed: Callable[[str], StudyError],
    ) -> T:
        began, pause, (second, longest) = time.monotonic(), 0.0, _PAUSES
        told = False
        while True:
            try:
                found = super()._try(action, options, failed)
            except DatabaseAwayError as away:
                if time.monotonic() - began > AWAY_SECONDS:
                    raise StudyError(
                        f"the database {self.name} has been away for {AWAY_SECONDS // 60} minutes: "
                        f"{away.reason}; go on with {self._resume} when it is back"
                    ) from None
                with self._stoppable():
                    if pause and not told:  # a connection that is lost and made again is no news
                        told = True
                        self._note(
                            f"the database {self.name} is away ({away.reason}); waiting for it, "
                            f"up to {AWAY_SECONDS // 60} minutes"
                        )
                    time.sleep(pause)
                pause = min(2 * pause, longest) or second
            else:
                if told:
                    self._note(f"the database {self.name} is back")
                return found

    def _passes(self, problem: SQLAlchemyError) -> bool:
        with self._stoppable():  # since a server that is not reached may take long to say so
            return super()._passes(problem)

    @contextlib.contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Let a signal end the block at once, also where it is put off otherwise."""
        try:
            with Interrupts(self._note).caught():
                yield
        except KeyboardInterrupt:
            if self._mark is None:  # there may be no study yet
                raise
            raise KeyboardInterrupt(f"stopped; go on with {self._resume}") from None

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Connection]:
        if self._connection is None:
            with self._stoppable():
                self._connect()
        assert self._connection is not None
        self._connection.execution_options(isolation_level="READ COMMITTED")
        try:
            yield self._connection
            self._connection.rollback()  # which ends a transaction that has read
        except BaseException:
            self._disconnect()
            raise

    def _connect(self) -> None:
        """Connect, take the lock, and see that nobody else has written while we had it not."""
        connection = self._engine.connect()
        try:
            connection.execution_options(isolation_level="AUTOCOMMIT")
            if not locks.take_server_lock(connection, self._study, self._token):
                raise self._overtaken("runs") if self._taken else locks.busy(self._study)
            mark = locks.mark(connection, self._study)
            if self._taken and mark not in (self._mark, self._next):
                raise self._overtaken("has run")
            connection.rollback()
        except BaseException:
            _drop(connection)
            raise
        self._mark, self._taken, self._connection = mark, True, connection

    def _overtaken(self, runs: str) -> StudyError:
        return StudyError(
            f"another process {runs} the study {self._study}, to whose database {self.name} the "
            f"connection was lost; this one has stopped, go on with {self._resume}"
        )

    def _disconnect(self) -> None:
        if self._connection is not None:
            _drop(self._connection)
            self._connection = None


def _drop(connection: Connection) -> None:
    connection.invalidate()  # asking nothing of a server that may not answer
    connection.close()
