"""Studies on a server: every command, the lock, and errors that keep the password."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from evomerge import cli
from evomerge.errors import StudyError
from evomerge.study import loop, summary
from evomerge.study.database import command, shown
from evomerge.study.store import Store, only_writer
from tests.study.fake_study import Silent, contents, go_on


def with_password(url: str) -> str:
    return url.replace("evomerge@", "evomerge:s3cret@")


def called(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["evomerge", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code


def test_every_command_on_a_server(
    fake: Path, server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    go_on(fake, "commands")  # the same study on SQLite
    url = with_password(server)

    def run(*words: str) -> str:
        called(monkeypatch, *words, "--storage", url)
        found = capsys.readouterr()
        assert "s3cret" not in found.out + found.err
        return found.out

    assert "begin one with" in run("status")
    assert shown(url) in run("search", str(fake), "--name", "commands")
    assert contents("commands", server) == contents("commands")
    state = json.loads(run("status", "commands", "--json"))
    assert (state["total"], sum(state["trials"].values())) == (14, 14)
    assert state | {"seconds_per_trial": 0} == summary.status("commands", None) | {
        "seconds_per_trial": 0
    }
    assert "commands: 14 of 14 trials" in run("status")
    report = json.loads(run("report", "commands", "--json"))
    assert report == summary.stored_report("commands", None)
    exported = run("export", "commands")
    assert exported == Path("runs/commands/recipe.yaml").read_text()
    assert run("export", "commands", "--trial", "3") != exported
    run("resume", "commands", "--trials", "16")
    loop.resume("commands", trials=16, url=None, watcher=Silent())
    assert contents("commands", server) == contents("commands")


def test_optuna_reads_what_is_written(fake: Path, server: str) -> None:
    import optuna

    go_on(fake, "by-optuna", server)
    storage = optuna.storages.RDBStorage(server.replace("postgresql:", "postgresql+psycopg:"))
    study = optuna.load_study(study_name="by-optuna", storage=storage)
    expected = contents("by-optuna", server)
    assert [(one.number, one.state.name) for one in study.trials] == [
        (number, state) for number, _, state in expected["trials"]
    ]
    assert study.best_value == max(value for _, _, value in expected["values"])
    assert all(one.datetime_start and one.datetime_complete for one in study.trials)
    assert [one.user_attrs["slot"] for one in study.trials] == list(range(14))
    storage.remove_session()
    storage.engine.dispose()


def test_locks_are_by_study(fake: Path, server: str) -> None:
    go_on(fake, "one", server)
    with only_writer("one", server):
        go_on(fake, "two", server)
        with pytest.raises(StudyError, match="the study one is being run by another process"):
            go_on(fake, "one", server)
    go_on(fake, "one", server)


def test_no_server_is_one_sentence(tmp_path: Path) -> None:
    url = f"postgresql://me:s3cret@/db?host={tmp_path}"
    for action in (
        lambda: summary.status("s", url),
        lambda: summary.studies(url),
        lambda: Store.open("s", url),
        lambda: only_writer("s", url).__enter__(),
    ):
        with pytest.raises(StudyError) as caught:
            action()
        message = str(caught.value)
        assert message.startswith("cannot open the database postgresql://me:***@/db?host=")
        assert "connection" in message
        assert "s3cret" not in message
        assert "\n" not in message


def test_no_driver_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StudyError, match=r"pip install 'evomerge\[postgresql\]'"):
        summary.status("s", "postgresql://me@nowhere/db")


@pytest.mark.parametrize(
    "url", ["postgres", "mysql://me:pw@host/db", "sqlite://", "sqlite:///:memory:"]
)
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(StudyError) as caught:
        summary.status("s", url)
    message = str(caught.value)
    assert message.startswith("cannot open the database ")
    assert message.endswith("expected sqlite:///FILE or postgresql://USER@HOST/DATABASE")
    assert ":pw@" not in message


def test_another_s_study_is_not_taken(fake: Path, server: str) -> None:
    import optuna

    storage = optuna.storages.RDBStorage(server.replace("postgresql:", "postgresql+psycopg:"))
    optuna.create_study(study_name="theirs", storage=storage)
    with pytest.raises(StudyError, match="holds a study theirs that is not evomerge's"):
        loop.search(fake, "theirs", trials=None, seed=None, url=server, watcher=Silent())
    assert "theirs" not in summary.studies(server)
    storage.remove_session()
    storage.engine.dispose()


def test_passwords_are_never_shown() -> None:
    url = "postgresql://me:p%40ss@host:5433/db?password=other&sslmode=require"
    assert shown("sqlite:///runs/a b.db") == "sqlite:///runs/a b.db"
    for written in (shown(url), command("resume", "s", url), shown("postgresql://me:p@ss@:x:y/z")):
        assert "p%40ss" not in written
        assert "p@ss" not in written
        assert "other" not in written
    assert command("resume", "s", url) == (
        "`PGPASSWORD=… evomerge resume s --storage 'postgresql://me@host:5433/db?sslmode=require'`"
    )
    assert command("resume", "s", "sqlite:///a b.db") == (
        "`evomerge resume s --storage 'sqlite:///a b.db'`"
    )
    assert command("resume", "s", None) == "`evomerge resume s`"
    written: Any = command("resume", "s", "nonsense")
    assert written == "`evomerge resume s --storage …`"
