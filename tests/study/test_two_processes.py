"""A second process on a study: another writer is refused, readers disturb nothing."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest

from evomerge.errors import StudyError
from evomerge.study import loop
from tests.study.fake_study import Silent, contents, faked, go_on


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/studies.db"
    found: str = request.getfixturevalue("server")
    return found


@pytest.fixture(scope="module")
def processes() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.study.fake_study", "optuna", "cma"])
    return context


def hold(folder: str, study: Path, url: str, talk: Any) -> None:
    """Run a study that waits in its fourth trial, in a process of its own."""

    class Waiting(Silent):
        def trial(self, done: int, total: int, best: float | None, seconds: float | None) -> None:
            if done == 3:
                talk.send("here")
                talk.recv()

    os.chdir(folder)
    with faked():
        loop.search(study, "held", trials=None, seed=None, url=url, watcher=Waiting())


def test_a_second_writer_is_refused_until_the_first_is_gone(
    fake: Path, tmp_path: Path, url: str, processes: Any
) -> None:
    go_on(fake, "alone", url)
    here, there = processes.Pipe()
    process = processes.Process(target=hold, args=(tmp_path, fake, url, there))
    process.start()
    there.close()  # so that its death is seen
    assert here.recv() == "here"
    refused = r"the study held is being run by another process; wait for it or stop it first"
    with pytest.raises(StudyError, match=refused):
        go_on(fake, "held", url)
    words = [sys.executable, "-m", "evomerge", "resume", "held", "--storage", url]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "another process" in done.stderr
    process.kill()
    process.join()
    assert len(contents("held", url)["trials"]) == 3
    go_on(fake, "held", url)
    assert contents("held", url) == contents("alone", url)


def watch(url: str, talk: Any) -> None:
    """Read a study again and again, as a dashboard does, until told to stop."""
    driver = url.replace("postgresql:", "postgresql+psycopg:")
    talk.send("here")
    most = 0
    while not talk.poll():
        if "held" in optuna.get_all_study_names(driver):
            study = optuna.load_study(study_name="held", storage=driver)
            most = max(most, len(study.trials))
    talk.send(most)


def test_a_dashboard_disturbs_nothing(fake: Path, url: str, processes: Any) -> None:
    go_on(fake, "alone", url)
    here, there = processes.Pipe()
    process = processes.Process(target=watch, args=(url, there))
    process.start()
    there.close()  # so that its death is seen
    assert here.recv() == "here"
    for number in range(3):
        loop.search(fake, f"held{number or ''}", trials=None, seed=None, url=url, watcher=Silent())
    here.send("stop")
    assert here.recv() > 0
    process.join()
    for number in range(3):
        assert contents(f"held{number or ''}", url) == contents("alone", url)


def test_looking_writes_nothing(fake: Path, tmp_path: Path) -> None:
    from evomerge.study import summary
    from evomerge.study.background import background
    from evomerge.study.export import exported

    go_on(fake, "s")
    file = Path("runs/s/study.db")
    before = file.read_bytes()
    for action in (
        lambda: summary.status("s", None),
        lambda: summary.stored_report("s", None),
        lambda: exported("s", None, 3),
        lambda: background("s", None),
    ):
        action()
    assert file.read_bytes() == before
    names = [".study.db.lock", ".study.db.s.lock", "study.db"]
    assert sorted(one.name for one in file.parent.iterdir()) == names


def begin(folder: str, study: Path, name: str, url: str, talk: Any) -> None:
    """Start a study, in a process of its own, when told to."""
    os.chdir(folder)
    with faked():
        talk.send("here")
        talk.recv()
        go_on(study, name, url)


def test_studies_that_begin_at_once_share_a_new_database(
    fake: Path, tmp_path: Path, url: str, processes: Any
) -> None:
    started = []
    for number in range(3):
        here, there = processes.Pipe()
        process = processes.Process(target=begin, args=(tmp_path, fake, f"s{number}", url, there))
        process.start()
        there.close()  # so that its death is seen
        started.append((process, here))
    for _, here in started:
        assert here.recv() == "here"
    for _, here in started:
        here.send("go")
    for process, _ in started:
        process.join()
        assert process.exitcode == 0
    for number in range(3):
        assert contents(f"s{number}", url) == contents("s0", url)
