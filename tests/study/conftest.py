"""A PostgreSQL server for the tests of a session, where its programs are installed."""

import contextlib
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text

from tests.study.fake_study import fake_models, mapping, write_study

_NUMBERS = itertools.count()


def _program(name: str) -> str | None:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)


class Server:
    """A server on a socket of its own, that can be stopped and started."""

    def __init__(self, folder: Path, control: list[str], settings: str) -> None:
        self.url = f"postgresql://evomerge@/postgres?host={folder}"
        self._folder = folder
        self._control = [*control, "-D", str(folder / "data"), "-w"]
        self._settings = f"-F -k {folder} -c listen_addresses='' -c full_page_writes=off {settings}"

    def start(self) -> None:
        # Its output is kept off our pipes, which the server would hold open.
        run(
            self._folder, *self._control, "-l", f"{self._folder}/log", "-o", self._settings, "start"
        )

    def stop(self, mode: str) -> None:
        run(self._folder, *self._control, "-m", mode, "stop")

    def database(self) -> str:
        """Make an empty database; returns its URL."""
        engine = create_engine(make_url(self.url).set(drivername="postgresql+psycopg"))
        name = f"test_{next(_NUMBERS)}"
        with engine.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT")
            connection.execute(text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return self.url.replace("/postgres?", f"/{name}?")


def run(folder: Path, *words: str) -> None:
    subprocess.run(words, cwd=folder, check=True, capture_output=True, timeout=120)


@pytest.fixture
def server(postgresql: Server) -> str:
    """The URL of an empty database on the session's server."""
    return postgresql.database()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    """A server of which nothing survives the session."""
    with running_server("") as server:
        yield server


@contextlib.contextmanager
def running_server(settings: str) -> Iterator[Server]:
    """Make a server with settings of its own, and start it."""
    initdb, control = _program("initdb"), _program("pg_ctl")
    if initdb is None or control is None:
        reason = "the programs of PostgreSQL (initdb, pg_ctl) are not installed"
        if os.environ.get("EVOMERGE_REQUIRE_POSTGRESQL"):
            pytest.fail(reason)
        pytest.skip(reason)
    # A short path, since a socket's is bounded; not the tests' own, which others may not enter.
    folder = Path(tempfile.mkdtemp(prefix="evomerge-pg-", dir="/tmp"))
    user = []
    if os.geteuid() == 0:  # whom PostgreSQL refuses
        shutil.chown(folder, "nobody")
        user = ["setpriv", "--reuid=nobody", "--clear-groups"]
    data = folder / "data"
    server = Server(folder, [*user, control], settings)
    make = [initdb, "-D", str(data), "-U", "evomerge", "-A", "trust", "-E", "UTF8", "--no-sync"]
    try:
        run(folder, *user, *make)
        server.start()
        yield server
    finally:
        if (data / "postmaster.pid").exists():
            server.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The study file of a study without models, in the working directory."""
    monkeypatch.chdir(tmp_path)
    fake_models(monkeypatch)
    return write_study(tmp_path, mapping())
