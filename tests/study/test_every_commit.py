"""Dying before or after any commit leaves a database whose study goes on exactly."""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine.default import DefaultDialect

from tests.study.fake_study import NAMES, contents, go_on, mapping, staged, write_study

STAGED = ("cma_es", "cma_mixed", "tpe", "random_search")


class Death(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[str], None]], None]]:
    """Sets what happens right before and right after every commit of any database."""
    commit = DefaultDialect.do_commit
    actions: list[Callable[[str], None]] = []

    def do_commit(dialect: Any, connection: Any) -> None:
        for action in actions:
            action("before")
        commit(dialect, connection)
        for action in actions:
            action("after")

    monkeypatch.setattr(DefaultDialect, "do_commit", do_commit)

    def set_action(action: Callable[[str], None]) -> None:
        actions[:] = [action]

    yield set_action
    actions.clear()


def test_the_study_is_worth_the_trouble(fake: Path) -> None:
    go_on(fake, "s")
    states = [state for *_, state in contents("s")["trials"]]
    assert len(states) == 14
    assert 2 <= states.count("FAIL") <= 8
    assert states.count("COMPLETE") == 14 - states.count("FAIL")
    slots = [value for _, key, value in contents("s")["metrics"] if key == "slot"]
    assert sorted(map(int, slots)) == list(range(14))
    report = contents("s")["attributes"]["evomerge:report"]
    assert len(report["finalists"]) > 2


@pytest.mark.parametrize(
    ("optimizer", "make"),
    [(name, mapping) for name in NAMES] + [(name, staged) for name in STAGED],
)
def test_death_at_every_single_commit(
    optimizer: str, make: Any, fake: Path, tmp_path: Path, commits: Any
) -> None:
    write_study(tmp_path, make(optimizer))
    images = tmp_path / "images"
    seen: dict[bytes, str] = {}  # different images, by what they hold

    def keep(moment: str) -> None:
        """Keep what a process that ends here leaves on the disk."""
        count = len(list(images.iterdir())) if images.exists() else 0
        image = images / f"{count:04d}-{moment}"
        shutil.copytree("runs", image)
        digest = hashlib.sha256()
        for file in sorted(image.rglob("*")):
            if file.is_file() and not file.name.endswith("-shm"):
                digest.update(str(file.relative_to(image)).encode() + file.read_bytes())
        seen.setdefault(digest.digest(), image.name)

    commits(keep)
    go_on(fake, "s")
    commits(lambda moment: None)
    expected = contents("s")
    trials = len(expected["trials"])
    assert len(seen) >= 2 * trials + 10
    for name in seen.values():
        shutil.rmtree("runs")
        shutil.copytree(images / name, "runs")
        go_on(fake, "s")
        assert contents("s") == expected, name


@pytest.mark.parametrize(
    ("optimizer", "step"), [(name, 3 if name == "cma_es" else 23) for name in NAMES]
)
def test_death_at_commits_to_a_server(
    optimizer: str, step: int, fake: Path, tmp_path: Path, server: str, commits: Any
) -> None:
    """A sample: before or after every third commit for CMA-ES, every twenty-third for others."""
    write_study(tmp_path, mapping(optimizer))
    moments = 0
    death: int | None = None

    def die(moment: str) -> None:
        nonlocal moments
        moments += 1
        if moments == death:
            raise Death

    go_on(fake, f"{optimizer}-first", server)  # which may make the tables, in commits of their own
    commits(die)
    go_on(fake, f"{optimizer}-whole", server)
    expected, last = contents(f"{optimizer}-whole", server), moments
    assert last >= 2 * (len(expected["trials"]) * 2 + 10)
    for at in range(1, last + 1, step):
        moments, death = 0, at
        name = f"{optimizer}-{at}"
        with pytest.raises(Death):
            go_on(fake, name, server)
        death = None
        go_on(fake, name, server)
        assert contents(name, server) == expected, at
