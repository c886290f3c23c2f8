"""A server that is stopped or lost during a study: nothing is lost, nothing is counted twice."""

import contextlib
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import create_engine, make_url
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.exc import OperationalError
from typer.testing import CliRunner

from evomerge import cli, progress
from evomerge.errors import StudyError
from evomerge.study import failures, loop, writer
from evomerge.study.api import Study
from evomerge.study.database import command
from evomerge.study.failures import DatabaseAwayError
from evomerge.study.standing import Reader
from evomerge.study.store import only_writer
from evomerge.study.writer import Writer
from tests.study.conftest import Server, running_server
from tests.study.fake_study import (
    FakeScorer,
    Silent,
    contents,
    fake_models,
    faked,
    go_on,
    mapping,
    write_study,
)
from tests.study.test_kills import processes  # noqa: F401

psycopg = pytest.importorskip("psycopg")
MODES = ("immediate", "fast")
MOMENTS = ("before statement", "after statement", "before commit", "after commit")


@pytest.fixture(scope="module")
def own() -> Iterator[Server]:
    with running_server("-c max_connections=16") as server:
        yield server


@pytest.fixture
def url(own: Server) -> str:
    return own.database()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("studies")


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> dict[str, Any]:
    """What a database holds of a study that nothing has happened to."""
    study = write_study(folder, mapping())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fake_models(patch)
        go_on(study, "whole")
        return contents("whole")


@pytest.fixture
def study(folder: Path, undisturbed: object, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of that study, in the working directory."""
    monkeypatch.chdir(folder)
    fake_models(monkeypatch)
    return folder / "study.yaml"


class Line:
    """The connection of a writer to its server, and what is done to it at chosen moments."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.connection: Any = None
        self.action: Callable[[str], None] = lambda moment: None

    def cut(self) -> None:
        """End the writer's session, as an administrator does."""
        with psycopg.connect(self.url, autocommit=True) as other:
            end = "select pg_terminate_backend(%s, 5000)"
            assert other.execute(end, [self.connection.info.backend_pid]).fetchone() == (True,)


@pytest.fixture
def line(url: str, monkeypatch: pytest.MonkeyPatch) -> Line:
    found = Line(url)
    connect, execute, commit = Writer._connect, DefaultDialect.do_execute, DefaultDialect.do_commit

    def connected(self: Any) -> None:
        connect(self)
        found.connection = self._connection.connection.dbapi_connection

    def executed(self: Any, cursor: Any, *rest: Any, **options: Any) -> None:
        mine = cursor.connection is found.connection
        if mine:
            found.action("before statement")
        execute(self, cursor, *rest, **options)
        if mine:
            found.action("after statement")

    def committed(self: Any, connection: Any) -> None:
        mine = connection.dbapi_connection is found.connection
        if mine:
            found.action("before commit")
        commit(self, connection)
        if mine:
            found.action("after commit")

    monkeypatch.setattr(Writer, "_connect", connected)
    monkeypatch.setattr(DefaultDialect, "do_execute", executed)
    monkeypatch.setattr(DefaultDialect, "do_commit", committed)
    return found


class Watching(Silent):
    """A watcher that does something when the fifth trial has ended, and when it has to wait."""

    def __init__(
        self, fifth: Callable[[], None] = lambda: None, away: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__()
        self.fifth, self.away = fifth, away

    def trial(self, done: int, total: int, best: float | None, seconds: float | None) -> None:
        if done == 5:
            self.fifth()

    def note(self, text: str) -> None:
        super().note(text)
        if "is away" in text:
            self.away()


def begin(study: Path, url: str, watcher: Any) -> None:
    loop.search(study, "s", trials=None, seed=None, url=url, watcher=watcher)


def test_stops_at_random_moments(
    study: Path, undisturbed: Any, own: Server, url: str, line: Line
) -> None:
    chance = random.Random(1)
    stops: list[str] = []
    safe = 0

    def stop(moment: str) -> None:
        nonlocal safe
        safe -= 1
        if safe < 0 and moment == MOMENTS[len(stops) % len(MOMENTS)]:
            # So that one transaction is not stopped twice, which is told once.
            safe = chance.randrange(40, 120)
            stops.append(moment)
            own.stop(chance.choice(MODES))
            if moment == "after commit":  # its answer gets lost
                line.connection.execute("select 1")

    line.action = stop
    watcher = Watching(away=own.start)
    begin(study, url, watcher)
    assert contents("s", url) == undisturbed
    assert len(stops) >= 5
    name = make_url(url).render_as_string()
    away = [note for note in watcher.notes if note.startswith(f"the database {name} is away (")]
    assert all(one.endswith("); waiting for it, up to 10 minutes") for one in away)
    assert [note for note in watcher.notes if "database" in note] == [
        one for note in away for one in (note, f"the database {name} is back")
    ]
    assert len(away) == len(stops)


def test_lost_connections_around_commits(
    study: Path, undisturbed: Any, url: str, line: Line
) -> None:
    """Before the commit is sent, and when it has taken place and its answer gets lost."""
    chance = random.Random(2)
    lost = {"before commit": 0, "after commit": 0}

    def lose(moment: str) -> None:
        if moment in lost and chance.random() < 0.2:
            lost[moment] += 1
            line.cut()
            if moment == "after commit":
                line.connection.execute("select 1")

    line.action = lose
    go_on(study, "s", url)
    assert min(lost.values()) > 5
    assert contents("s", url) == undisturbed


def test_a_crash_of_the_server(study: Path, undisturbed: Any, url: str, line: Line) -> None:
    """It ends all sessions and recovers by itself."""
    begin(study, url, Watching(lambda: os.kill(line.connection.info.backend_pid, signal.SIGKILL)))
    assert contents("s", url) == undisturbed


def run(folder: str, study: Path, name: str, url: str, pipes: Any) -> None:
    """Run a study in a process of its own, which begins when told and repeats what it is told."""

    class Telling(Silent):
        def stage(self, text: str, done: int, total: int) -> None:
            if not talk.closed:
                talk.send("here")
                assert talk.recv() == "go"
                talk.close()

        def note(self, text: str) -> None:
            told.send(text)

    told, talk = pipes
    os.chdir(folder)
    with faked():
        loop.search(study, name, trials=None, seed=None, url=url, watcher=Telling())


def test_studies_side_by_side(
    study: Path,
    undisturbed: Any,
    folder: Path,
    own: Server,
    url: str,
    processes: Any,  # noqa: F811
) -> None:
    """Each in a process of its own, on one server that is stopped and started at any moment."""
    running = []
    for number in range(3):
        (notes, told), (talk, there) = processes.Pipe(duplex=False), processes.Pipe()
        arguments = (folder, study, f"s{number}", url, (told, there))
        process = processes.Process(target=run, args=arguments)
        process.start()
        told.close()
        there.close()  # so that its death is seen
        running.append((process, notes, talk))
    for *_, talk in running:
        assert talk.recv() == "here"
    chance = random.Random(0)
    own.stop("fast")
    for *_, talk in running:
        talk.send("go")
    for _, notes, _ in running:  # all of them meet this one, however quick they are
        while "is away" not in notes.recv():
            pass
    own.start()
    stops = 1
    while any(process.is_alive() for process, *_ in running):
        stops += 1
        for process, *_ in running:  # longer, so that it ends on any machine
            process.join(chance.uniform(0, 0.1 * stops))
        own.stop(chance.choice(MODES))
        own.start()
    assert stops >= 2
    for number, (process, notes, _) in enumerate(running):
        assert process.exitcode == 0
        assert contents(f"s{number}", url) == undisturbed
        assert "is back" in notes.recv()


def test_a_stop_before_there_is_a_study(
    study: Path, undisturbed: Any, own: Server, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loading(checked: Any, watcher: Any, machine: Any) -> FakeScorer:
        own.stop("fast")
        return FakeScorer(checked)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_scorer", loading)
        begin(study, url, Watching(away=own.start))
    assert contents("s", url) == undisturbed


def test_another_process_has_the_lock_meanwhile(
    study: Path, undisturbed: Any, url: str, line: Line
) -> None:
    with contextlib.ExitStack() as other:

        def overtake() -> None:
            line.cut()
            other.enter_context(only_writer("s", url))

        with pytest.raises(StudyError) as caught:
            begin(study, url, Watching(overtake))
        message = str(caught.value)
        assert message.startswith("another process runs the study s, to whose database ")
        assert message.endswith(f"this one has stopped, go on with {command('resume', 's', url)}")
        assert len(contents("s", url)["trials"]) == 5
    go_on(study, "s", url)
    assert contents("s", url) == undisturbed


def test_another_process_has_gone_on_meanwhile(
    study: Path, undisturbed: Any, url: str, line: Line
) -> None:

    def overtake() -> None:
        line.cut()
        go_on(study, "s", url)

    with pytest.raises(StudyError, match="another process has run the study s, to whose database"):
        begin(study, url, Watching(overtake))
    assert contents("s", url) == undisturbed


def test_another_process_that_wrote_nothing_does_not_matter(
    study: Path, undisturbed: Any, url: str, line: Line
) -> None:

    def look_in() -> None:
        line.cut()
        with only_writer("s", url):
            pass

    watcher = Watching(look_in)
    begin(study, url, watcher)
    assert contents("s", url) == undisturbed
    assert not any("database" in note for note in watcher.notes)


def test_a_session_that_lives_on_at_the_server_is_ended(
    study: Path, undisturbed: Any, url: str, line: Line
) -> None:
    """As after an interruption of the network, which the server has not seen."""
    kept = []

    def cut_off() -> None:
        kept.append(os.dup(line.connection.fileno()))
        near, far = socket.socketpair()
        far.close()
        os.dup2(near.fileno(), line.connection.fileno())
        near.close()

    begin(study, url, Watching(cut_off))
    os.close(kept[0])
    assert contents("s", url) == undisturbed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_waiting_at_once(
    number: signal.Signals, study: Path, undisturbed: Any, own: Server, url: str
) -> None:
    watcher = Watching(lambda: own.stop("fast"), lambda: signal.raise_signal(number))
    with pytest.raises(KeyboardInterrupt) as caught:
        begin(study, url, watcher)
    own.start()
    assert str(caught.value) == f"stopped; go on with {command('resume', 's', url)}"
    assert "is away" in watcher.notes[-1]
    go_on(study, "s", url)
    assert contents("s", url) == undisturbed


def test_waiting_ends(study: Path, own: Server, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "AWAY_SECONDS", 0)
    with pytest.raises(StudyError) as caught:
        begin(study, url, Watching(lambda: own.stop("fast")))
    own.start()
    message = str(caught.value)
    assert " has been away for 0 minutes: " in message
    assert message.endswith(f"; go on with {command('resume', 's', url)} when it is back")


def test_a_server_without_connections_left_is_waited_for(
    study: Path, undisturbed: Any, own: Server, url: str, line: Line
) -> None:
    taken = contextlib.ExitStack()

    def fill() -> None:
        line.cut()
        with contextlib.suppress(psycopg.OperationalError):
            for _ in range(100):
                taken.enter_context(psycopg.connect(own.url))

    watcher = Watching(fill, taken.close)
    begin(study, url, watcher)
    assert contents("s", url) == undisturbed
    away, back = (note for note in watcher.notes if "database" in note)
    assert "too many" in away
    assert back.endswith(" is back")


def test_what_is_so_for_good_is_not_waited_for(study: Path, own: Server, url: str) -> None:
    def drop() -> None:
        with psycopg.connect(own.url, autocommit=True) as other:
            other.execute(f"DROP DATABASE {make_url(url).database} WITH (FORCE)")

    watcher = Watching(drop)
    with pytest.raises(StudyError, match=r'^the database .* failed: .*"test_\d+" does not exist'):
        begin(study, url, watcher)
    assert not any("database" in note for note in watcher.notes)


@pytest.mark.parametrize(
    ("code", "waits"),
    [
        ("57P01", True),  # admin shutdown
        ("57P02", True),  # crash shutdown
        ("57P03", True),  # cannot connect now
        ("08006", True),  # connection failure
        ("53300", True),  # too many connections
        ("53100", False),  # disk full
        ("28P01", False),  # invalid password
        ("42501", False),  # insufficient privilege
        ("25006", False),  # read-only transaction
    ],
)
def test_what_passes(code: str, waits: bool) -> None:
    engine = create_engine("postgresql+psycopg://me@nowhere/db")
    problem = OperationalError("COMMIT", None, psycopg.errors.lookup(code)("why"))
    assert failures.passes(problem, engine) == waits


def test_watching_goes_on(
    study: Path, own: Server, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Study.create(study, name="s", storage=url)
    steps = [lambda: own.stop("fast"), own.start, lambda: go_on(study, "s", url)]
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0)
    waiting = SimpleNamespace(
        sleep=lambda seconds: steps.pop(0)(), monotonic=time.monotonic, strftime=time.strftime
    )
    monkeypatch.setattr(progress, "time", waiting)
    found = CliRunner().invoke(cli.app, ["watch", "s", "--storage", url])
    assert found.exit_code == 0, found.output
    first, second, third, last = found.stdout.splitlines()
    assert "nobody is running it" in first
    assert "the database is away (" in second
    assert "nobody is running it" in third
    assert "trials 14/14" in last
    own.stop("fast")
    again = CliRunner().invoke(cli.app, ["watch", "s", "--storage", url])
    own.start()
    assert isinstance(again.exception, DatabaseAwayError)


def test_readers_do_not_wait_but_can_go_on(study: Path, own: Server, url: str) -> None:
    go_on(study, "s", url)
    reader = Reader("s", url)
    before = reader.read()
    own.stop("fast")
    for action in (reader.read, reader.unattended):
        with pytest.raises(DatabaseAwayError, match=r"^the database postgresql://.* failed: "):
            action()
    own.start()
    assert reader.read() == before
    assert reader.unattended() is not None
