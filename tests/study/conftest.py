"""A PostgreSQL server for the tests of a session, where its programs are installed."""

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


@pytest.fixture
def server(postgresql: str) -> str:
    """The URL of an empty database on the session's server."""
    engine = create_engine(make_url(postgresql).set(drivername="postgresql+psycopg"))
    name = f"test_{next(_NUMBERS)}"
    with engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return postgresql.replace("/postgres?", f"/{name}?")


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a server on a socket of its own, of which nothing survives the session."""
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
    settings = f"-F -k {folder} -c listen_addresses='' -c full_page_writes=off"

    def run(*words: str) -> None:
        subprocess.run([*user, *words], cwd=folder, check=True, capture_output=True, timeout=120)

    try:
        run(initdb, "-D", str(data), "-U", "evomerge", "-A", "trust", "-E", "UTF8", "--no-sync")
        # Its output is kept off our pipes, which the server would hold open.
        run(control, "-D", str(data), "-w", "-l", str(folder / "log"), "-o", settings, "start")
        yield f"postgresql://evomerge@/postgres?host={folder}"
    finally:
        if (data / "postmaster.pid").exists():
            run(control, "-D", str(data), "-w", "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The study file of a study without models, in the working directory."""
    monkeypatch.chdir(tmp_path)
    fake_models(monkeypatch)
    return write_study(tmp_path, mapping())
