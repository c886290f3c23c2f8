"""The trials of a study do not depend on how many workers there are, nor on who finishes first."""

import os
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from evomerge import StopStudy, Study
from evomerge.errors import CandidateError, StudyError
from evomerge.study import loop
from evomerge.study.results import TrialResult
from evomerge.study.scorer import Scorer
from evomerge.study.standing import Reader
from evomerge.study.workers import Done, Job, evaluate
from evomerge.tracking import Tracker
from tests.study.fake_study import (
    NAMES,
    FakeScorer,
    Silent,
    contents,
    go_on,
    mapping,
    staged,
    write_study,
)
from tests.study.test_every_commit import STAGED, commits
from tests.study.test_queue import go_on_enqueuing, images_of_commits, queued
from tests.study.test_tracking import board, expected, same

__all__ = ["commits"]  # a fixture


class Shuffled:
    """Several workers, of whom any may be the next to finish."""

    most = 0  # that ever worked at once

    def __init__(self, scorer: Scorer, size: int, chance: random.Random) -> None:
        self._scorer, self.size, self._chance = scorer, size, chance
        self._jobs: list[Job] = []

    @property
    def free(self) -> bool:
        return len(self._jobs) < self.size

    def submit(self, job: Job) -> None:
        assert self.free
        self._jobs.append(job)
        Shuffled.most = max(Shuffled.most, len(self._jobs))

    def wait(self) -> list[Done]:
        self._chance.shuffle(self._jobs)
        count = self._chance.randint(1, len(self._jobs))
        return [evaluate(self._scorer, self._jobs.pop()) for _ in range(count)]


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Says how many workers the next studies have, and in what order they finish."""

    def use(size: int, seed: int = 0) -> None:
        chance = random.Random(seed)
        Shuffled.most = 0
        monkeypatch.setattr(loop, "OneWorker", lambda scorer: Shuffled(scorer, size, chance))

    return use


def lagging(optimizer: str) -> dict[str, Any]:
    """A study whose optimizer lets several trials be under way."""
    data = mapping(optimizer)
    data["search"] |= {"lag": 3} if optimizer in ("gp", "tpe") else {}
    return data


def patient(optimizer: str) -> dict[str, Any]:
    """A study that ends when it gains nothing, long before its last trial."""
    data = lagging(optimizer)
    data["search"] |= {"trials": 60, "patience": 3, "min_gain": 10.0}
    return data


@pytest.mark.parametrize(
    ("optimizer", "make"),
    [
        *((name, lagging) for name in NAMES),
        *((name, staged) for name in STAGED),
        *((name, patient) for name in ("cma_es", "tpe", "random_search")),
    ],
)
def test_any_number_of_workers_makes_the_same_trials(
    optimizer: str, make: Any, fake: Path, tmp_path: Path, workers: Any
) -> None:
    write_study(tmp_path, make(optimizer))
    go_on(fake, "alone")
    expected = contents("alone")
    for size in (2, 4):
        workers(size)
        go_on(fake, f"by-{size}")
        assert contents(f"by-{size}") == expected
        assert Shuffled.most == size


@pytest.mark.parametrize("optimizer", ["cma_es", "tpe", "nsga2"])
def test_what_the_queue_has_brought_is_learnt_at_the_same_slots(
    optimizer: str, fake: Path, tmp_path: Path, commits: Any, workers: Any
) -> None:
    """A study goes on with several workers after one has taken all that was in the queue."""
    write_study(tmp_path, lagging(optimizer))
    kept = images_of_commits(fake, tmp_path / "images", commits, range(9, 1000))
    expected = contents("s")
    assert queued("s") == {5: 0, 6: 1, 8: 2}
    for number, image in enumerate(kept[:4]):
        shutil.rmtree("runs")
        shutil.copytree(image, "runs")
        workers(4, seed=number)
        go_on_enqueuing(fake, "s")
        assert contents("s") == expected


@pytest.mark.parametrize(
    ("optimizer", "make", "step"),
    [("cma_es", lagging, 2), ("tpe", lagging, 5), ("cma_es", staged, 4)],
)
def test_death_at_every_single_commit(
    optimizer: str, make: Any, step: int, fake: Path, tmp_path: Path, commits: Any, workers: Any
) -> None:
    write_study(tmp_path, make(optimizer))
    go_on(fake, "s")
    expected = contents("s")
    shutil.rmtree("runs")
    images = tmp_path / "images"

    def keep(moment: str) -> None:
        if moment == "after":
            count = len(list(images.iterdir())) if images.exists() else 0
            shutil.copytree("runs", images / f"{count:04d}")

    workers(4, seed=1)
    commits(keep)
    go_on(fake, "s")
    commits(lambda moment: None)
    assert contents("s") == expected
    kept = sorted(images.iterdir())
    assert len(kept) >= 2 * len(expected["trials"]) + 10
    several = 0
    for number, image in enumerate(kept[::step]):
        shutil.rmtree("runs")
        shutil.copytree(image, "runs")
        begun = Path("runs/s/study.db").exists()
        states = [state for *_, state in contents("s")["trials"]] if begun else []
        several += states.count("RUNNING") > 1
        workers(number % 4 + 1, seed=number)
        go_on(fake, "s")
        assert contents("s") == expected, image.name
    assert several > len(expected["trials"]) / 2 / step


@pytest.mark.parametrize("size", [1, 4])
def test_callbacks_hear_of_every_trial_once_in_order(fake: Path, workers: Any, size: int) -> None:
    heard: list[TrialResult] = []

    def hear(trial: TrialResult) -> None:
        heard.append(trial)
        if len(heard) in (3, 9):
            raise StopStudy

    study = Study.create(fake, name="s")
    workers(size)
    for _ in range(3):
        study.run(callbacks=[hear])
    numbers = [one.number for one in heard]
    results = study.results()
    assert heard == [results[number] for number in numbers]
    assert numbers == sorted(set(numbers))
    assert len(results) == 14
    assert size > 1 or numbers == list(range(14))  # others had ended when a callback stopped it


def test_how_far_it_is_counts_every_trial_once_whoever_finishes_first(
    fake: Path, workers: Any
) -> None:
    reader, seen = Reader("s", None), []

    class Looking(Silent):
        def trial(self, done: int, total: int, best: float | None, seconds: float | None) -> None:
            seen.append((done, reader.read()))

    workers(4)
    loop.search(fake, "s", trials=None, seed=None, url=None, watcher=Looking())
    assert all(standing.done >= done for done, standing in seen)
    assert any(standing.done > done for done, standing in seen)
    last, fresh = reader.read(), Reader("s", None).read()
    assert last.done == fresh.done == 14
    assert (
        last.failed == fresh.failed == sum(state == "FAIL" for *_, state in contents("s")["trials"])
    )
    assert last.best is not None
    assert fresh.best is not None
    assert last.best.fitness == fresh.best.fitness
    assert last.answered == fresh.answered


def test_a_signal_lets_all_that_is_under_way_end(fake: Path, workers: Any) -> None:
    go_on(fake, "alone")

    class Interrupting(Silent):
        def trial(self, done: int, total: int, best: float | None, seconds: float | None) -> None:
            if done == 5 and seconds is not None:
                os.kill(os.getpid(), signal.SIGTERM)

    workers(4)
    with pytest.raises(KeyboardInterrupt, match="stopped; go on with"):
        loop.search(fake, "s", trials=None, seed=None, url=None, watcher=Interrupting())
    states = [state for *_, state in contents("s")["trials"]]
    assert 5 <= len(states) < 14
    assert "RUNNING" not in states
    go_on(fake, "s")
    assert contents("s") == contents("alone")


def test_a_hopeless_search_ends_alike(
    fake: Path, tmp_path: Path, workers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is begun beyond the trials that all must fail, however many workers are free."""

    def fail(self: Any, recipe: Any, split: str) -> Any:
        raise CandidateError("this one cannot be scored")

    monkeypatch.setattr(FakeScorer, "candidate", fail)
    data = mapping("random_search")
    data["search"] |= {"trials": 60, "give_up": 7}
    write_study(tmp_path, data)
    workers(4)
    for _ in range(2):
        with pytest.raises(StudyError, match="the first 7 trials all failed"):
            go_on(fake, "s")
        assert [state for *_, state in contents("s")["trials"]] == ["FAIL"] * 7


def test_what_workers_are_idle_for_is_said_once(fake: Path, tmp_path: Path, workers: Any) -> None:
    write_study(tmp_path, mapping("gp"))
    workers(4)
    watcher = Silent()
    loop.search(fake, "s", trials=None, seed=None, url=None, watcher=watcher)
    (note,) = [one for one in watcher.notes if "begins" in one]
    assert note.startswith("gp begins one trial at a time, so that 4 workers are busy 25% of it")


def test_trackers_hear_of_every_trial_once_in_order(fake: Path, workers: Any) -> None:
    """Stopped twice, when others had ended trials that no callback was called with."""
    study = Study.create(fake, name="s")
    heard: list[TrialResult] = []

    def stop(trial: TrialResult) -> None:
        heard.append(trial)
        if len(heard) in (3, 7):
            raise StopStudy

    workers(4)
    for _ in range(3):
        with Tracker("tensorboard", study, print) as tracker:
            study.run(callbacks=[tracker, stop])
    same(board(), expected(study))
