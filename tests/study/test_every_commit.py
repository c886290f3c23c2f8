"""Dying before or after any commit leaves a database whose study goes on exactly."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine.default import DefaultDialect

from evomerge.study import loop
from evomerge.study.export import exported
from evomerge.study.queue import enqueue_file
from evomerge.study.store import Store, studies
from tests.study.fake_study import NAMES, Silent, contents, go_on, mapping, staged, write_study

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
    answered = [
        json.loads(value)["answered"]
        for _, key, value in contents("s")["metrics"]
        if key.endswith("metrics") and "error" not in value
    ]
    assert {10, 40} <= set(answered) <= {0, 10, 40}  # some were stopped after five of each task
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


class Enqueuing(Silent):
    """Puts the best recipe so far into the study's own queue after the ninth trial."""

    def __init__(self, name: str, url: str) -> None:
        super().__init__()
        self.name, self.url = name, url

    def trial(self, done: int, total: int, best: float | None, seconds: float | None) -> None:
        if done >= 9 and Store.open(self.name, self.url).get("queue:0") is None:
            path = Path("queued.yaml")
            path.write_text(exported(self.name, self.url, None))
            enqueue_file(self.name, self.url, path)


def go_on_enqueuing(study: Path, name: str, url: str) -> None:
    """Start or resume a study, into whose last stage a recipe of the queue comes."""
    options: dict[str, Any] = {"url": url, "watcher": Enqueuing(name, url), "trials": None}
    if name in studies(url):
        loop.resume(name, **options)
    else:
        loop.search(study, name, seed=None, **options)
    (taken,) = [one.slot for one in Store.open(name, url).trials() if one.queued is not None]
    assert taken == 9  # the last stage begins with the eighth


@pytest.mark.parametrize(
    ("optimizer", "make", "go", "step"),
    [
        *((name, mapping, go_on, 3 if name == "cma_es" else 23) for name in NAMES),
        *((name, staged, go_on, 47) for name in STAGED),
        ("cma_es", staged, go_on_enqueuing, 47),
    ],
)
def test_death_at_commits_to_a_server(
    optimizer: str,
    make: Callable[[str], dict[str, Any]],
    go: Callable[[Path, str, str], None],
    step: int,
    fake: Path,
    tmp_path: Path,
    server: str,
    commits: Any,
) -> None:
    """A sample: before or after every third commit for CMA-ES, every twenty-third for others.

    With EVOMERGE_EVERY_COMMIT=1 it is before and after every one, which takes half an hour.
    """
    write_study(tmp_path, make(optimizer))
    step = int(os.environ.get("EVOMERGE_EVERY_COMMIT", step))
    moments = 0
    death: int | None = None

    def die(moment: str) -> None:
        nonlocal moments
        moments += 1
        if moments == death:
            raise Death

    go(fake, "first", server)  # which may make the tables, in commits of their own
    commits(die)
    go(fake, "whole", server)
    expected, last = contents("whole", server), moments
    assert last >= 2 * (len(expected["trials"]) * 2 + 10)
    for at in range(1, last + 1, step):
        moments, death = 0, at
        name = f"died-{at}"
        with pytest.raises(Death):
            go(fake, name, server)
        death = None
        go(fake, name, server)
        assert contents(name, server) == expected, at
