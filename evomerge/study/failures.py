"""What an error of a PostgreSQL server means: whether it passes by itself."""

from __future__ import annotations

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from evomerge.errors import StudyError

# https://www.postgresql.org/docs/current/errcodes-appendix.html: shut down or starting up, a
# session that was idle for too long, no connection left; class 08 is that of broken connections.
_PASSING = ("57P01", "57P02", "57P03", "57P05", "25P03", "53300")
_FULL = ("too many", "connection slots", "no more connections")  # of servers and of poolers


class DatabaseAwayError(StudyError):
    """A server cannot be reached for now, and nothing says that it is so for good."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def passes(problem: Exception, engine: Engine) -> bool:
    """Return whether what a server was asked may succeed when it is asked again, on `engine`."""
    if not isinstance(problem, OperationalError):
        return False
    code: str | None = getattr(problem.orig, "sqlstate", None)
    if code is not None:
        return code in _PASSING or code.startswith("08")
    return not _refuses(engine)


def _refuses(engine: Engine) -> bool:
    """Return whether a server that broke or denied a connection means it.

    Why it did so is nowhere but in a text, in the server's language, so it is asked: one that takes
    connections, and still denies us ours, means it.
    """
    from psycopg.conninfo import make_conninfo
    from psycopg.pq import Conninfo, PGconn, Ping

    _, given = engine.dialect.create_connect_args(engine.url)
    options = {one.keyword.decode() for one in Conninfo.get_defaults()}
    known = {"connect_timeout": 10} | {key: given[key] for key in given if key in options}
    for _ in range(2):  # it may go or come back right between the question and the attempt
        state = PGconn.ping(make_conninfo(**known).encode())
        if state != Ping.OK:
            return state == Ping.NO_ATTEMPT  # the URL makes no sense
        try:
            engine.connect().close()
        except OperationalError as problem:
            if any(words in str(problem) for words in _FULL):
                return False
        else:
            return False
    return True
