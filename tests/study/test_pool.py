"""The workers of a study, without Ray: what becomes of those that are lost, hang or differ."""

import contextlib
import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from evomerge import cli
from evomerge.errors import EvomergeError, StudyError
from evomerge.study import loop, pool
from evomerge.study.crew import Crew
from evomerge.study.pool import LostError, Pool
from evomerge.study.resident import Reply, Resident, Study
from evomerge.study.sight import Sight, workers_now
from evomerge.study.standing import Reader
from evomerge.study.store import Store
from evomerge.study.workers import Elsewhere
from tests.study.fake_study import NAMES, FakeScorer, Silent, contents, go_on, write_study
from tests.study.ray_study import open_fake
from tests.study.test_workers import lagging


class Process:
    """A worker that lives in this process."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.resident = Resident()
        self.stopped = False


class Processes:
    """A fleet of those: any that was asked may answer next, some are lost instead."""

    def __init__(self, room: int = 3, losses: int = 0, seed: int = 0) -> None:
        self.chance = random.Random(seed)
        self.places, self.losses = room, losses
        self.started: list[Process] = []
        self.answers: dict[int, tuple[Process, Any]] = {}
        self.hanging: set[int] = set()  # workers that never answer
        self.asked: list[str] = []

    def room(self) -> int:
        return self.places

    def start(self) -> Process:
        self.started.append(Process(len(self.started)))
        return self.started[-1]

    def stop(self, worker: Process) -> None:
        worker.stopped = True

    def call(self, worker: Process, method: str, *arguments: Any) -> int:
        assert not worker.stopped
        self.asked.append(method)
        key = len(self.asked)
        self.answers[key] = worker, lambda: getattr(worker.resident, method)(*arguments)
        return key

    def wait(self, calls: Sequence[int], seconds: float) -> list[int]:
        able = [one for one in calls if self.answers[one][0].number not in self.hanging]
        return self.chance.sample(able, self.chance.randint(1, len(able))) if able else []

    def reply(self, call: int) -> Reply:
        worker, answer = self.answers.pop(call)
        if self.losses and worker.number > 0 and self.chance.random() < 0.3:
            self.losses -= 1
            worker.stopped = True
            raise LostError("the process ended")
        found: Reply = answer()
        return found


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Starts or goes on with a study by a fleet of workers; returns what it has told."""

    def run(study: Path, name: str, fleet: Processes, **elsewhere: Any) -> Silent:
        @contextlib.contextmanager
        def staff(
            name: str, url: Any, checked: Any, record: Any, watcher: Any, machine: Any
        ) -> Iterator[Any]:
            one = Study(name, url, record, "cpu", "auto", trust=False)
            workers = Pool(fleet, open_fake, one, Elsewhere(**elsewhere), Sight(name), watcher)
            try:
                crew = Crew(workers, ())
                yield loop._Staff(crew, crew)
            finally:
                workers.close()

        with monkeypatch.context() as patch:
            patch.setattr(loop, "_staff", staff)
            watcher = Silent()
            options: dict[str, Any] = {"url": None, "watcher": watcher, "trials": None}
            if name in loop.studies(None):
                loop.resume(name, **options)
            else:
                loop.search(study, name, seed=None, **options)
        assert all(one.stopped for one in fleet.started)
        return watcher

    return run


@pytest.mark.parametrize("optimizer", NAMES)
def test_lost_workers_change_nothing(optimizer: str, fake: Path, tmp_path: Path, run: Any) -> None:
    write_study(tmp_path, lagging(optimizer))
    go_on(fake, "alone")
    fleet = Processes(room=3, losses=4)
    notes = run(fake, "s", fleet).notes
    assert contents("s") == contents("alone")
    assert fleet.losses == 0
    assert len(fleet.started) == 3 + 4
    lost = [note for note in notes if "was lost (the process ended); another does" in note]
    assert 1 <= len(lost) <= 4


def test_what_has_been_scored_is_not_scored_again(fake: Path, run: Any) -> None:
    run(fake, "s", Processes())
    fleet = Processes()
    run(fake, "s", fleet)
    assert [one for one in fleet.asked if one != "load"] == ["call"]  # the winner's digest


def test_a_trial_that_loses_every_worker_ends_the_study_and_a_resume_goes_on(
    fake: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on(fake, "alone")
    fleet = Processes(room=2)
    reply = Processes.reply

    def lose(self: Processes, call: int) -> Reply:
        worker, _ = self.answers[call]
        answer = reply(self, call)
        if getattr(answer.result, "slot", None) == 7:
            worker.stopped = True
            raise LostError("killed for its memory")
        return answer

    monkeypatch.setattr(Processes, "reply", lose)
    words = "the trial of slot 7 has lost 4 workers, the last one: killed for its memory; once"
    with pytest.raises(StudyError, match=words):
        run(fake, "s", fleet)
    monkeypatch.setattr(Processes, "reply", reply)
    run(fake, "s", Processes())
    assert contents("s") == contents("alone")


def test_workers_that_are_lost_while_they_load_end_the_study(
    fake: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(self: Processes, call: int) -> Reply:
        raise LostError("killed for its memory")

    monkeypatch.setattr(Processes, "reply", lose)
    words = "4 workers in a row were lost while they loaded the models; the last one: killed"
    with pytest.raises(StudyError, match=words):
        run(fake, "s", Processes())


class Machines(Processes):
    """Twelve workers, the first eight on a machine that can go."""

    def __init__(self, gone: bool = False) -> None:
        super().__init__(room=12)
        self.gone = gone

    def reply(self, call: int) -> Reply:
        if self.gone and self.answers[call][0].number < 8:
            raise LostError("the machine has gone")
        return super().reply(call)


def staffed(fleet: Machines, name: str, watcher: Silent) -> Pool:
    study = Study(name, None, {}, "cpu", "auto", trust=False)
    scorer: Any = SimpleNamespace(device="cpu", side_by_side=True, fingerprints={}, digest=str)
    return Pool(fleet, lambda study: scorer, study, Elsewhere(workers=12), Sight(name), watcher)


def test_a_machine_that_goes_while_its_workers_are_idle_costs_a_trial_one_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fleet, told = Machines(), Silent()
    workers = staffed(fleet, "s", told)
    workers.first()
    while not all(one.loaded for one in workers._workers):
        workers.turn()
    fleet.gone = True
    workers.submit(5, "the trial of slot 5", "digest", (5,))
    while 5 not in workers.done:
        workers.turn()
    assert [one for one in told.notes if "was lost" in one] == [
        next(one for one in told.notes if "another does the trial of slot 5 again" in one)
    ]


def test_workers_that_are_lost_while_others_load_are_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert staffed(Machines(gone=True), "s", Silent()).first().process > 0


def test_a_worker_that_hangs_is_given_up(
    fake: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on(fake, "alone")
    fleet = Processes(room=2)
    clock = iter(range(10**6))
    monkeypatch.setattr(pool.time, "monotonic", lambda: float(next(clock)))
    call = Processes.call

    def hang(self: Processes, worker: Process, method: str, *arguments: Any) -> int:
        if method == "call" and len(self.asked) == 40:
            self.hanging.add(worker.number)
        return call(self, worker, method, *arguments)

    monkeypatch.setattr(Processes, "call", hang)
    notes = run(fake, "s", fleet, deadline=200.0).notes
    assert any("was lost (no answer for 200 s); another does" in note for note in notes)
    assert contents("s") == contents("alone")


def test_a_machine_with_other_weights_is_refused(
    fake: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def others(self: FakeScorer) -> dict[str, str]:
        counts.append(0)
        return {str(ref): f"as ever {len(counts) > 1}" for ref in self._checked.refs.values()}

    counts: list[int] = []
    monkeypatch.setattr(FakeScorer, "fingerprints", property(others))
    words = "the weights of /m/base on .* are not those that the other workers have"
    with pytest.raises(StudyError, match=words):
        run(fake, "s", Processes())


def test_workers_come_and_go_with_the_room_there_is(fake: Path, run: Any) -> None:
    go_on(fake, "alone")
    fleet = Processes(room=1)
    notes, joined = [], []

    def room() -> int:
        notes.append(len(fleet.asked))
        return 1 if len(fleet.asked) < 30 else 4

    fleet.room = room  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "_LOOK", 0.0)
        run(fake, "s", fleet)
    joined = [one.number for one in fleet.started]
    assert joined == [0, 1, 2, 3]
    assert contents("s") == contents("alone")


def test_what_is_seen_of_workers(fake: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    note = Store.finish

    def look(self: Store, *arguments: Any) -> None:
        note(self, *arguments)
        seen.append((workers_now("s"), Reader("s", None).read().workers))

    monkeypatch.setattr(Store, "finish", look)
    monkeypatch.setattr("evomerge.study.sight._SECONDS", 0.0)
    run(fake, "s", Processes(room=2), workers=2)
    states, standing = seen[-1]
    assert states == standing
    assert [one.number for one in states] == [0, 1]
    assert {one.device for one in states} == {"cpu"}
    assert all(one.done > 5 and 0 <= one.idle <= 1 for one in states)
    assert workers_now("s") == ()  # the study is over
    logs = sorted(Path("runs/s/workers").iterdir())
    assert [one.name for one in logs] == ["worker-0.log", "worker-1.log"]
    text = logs[0].read_text() + logs[1].read_text()
    for slot in range(14):
        assert f"the trial of slot {slot}, " in text


def test_status_shows_workers(fake: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    finish = Store.finish

    def look(self: Store, *arguments: Any) -> None:
        finish(self, *arguments)
        seen.append(CliRunner().invoke(cli.app, ["status", "s", "--json"]).stdout)

    monkeypatch.setattr(Store, "finish", look)
    monkeypatch.setattr("evomerge.study.sight._SECONDS", 0.0)
    run(fake, "s", Processes(room=2), workers=2)
    found = json.loads(seen[-1])["workers"]
    assert [one["number"] for one in found] == [0, 1]
    assert set(found[0]) == {"number", "state", "node", "device", "done", "seconds", "idle"}


def test_unlike_devices_are_worth_a_note(
    fake: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = iter(["NVIDIA H200", "NVIDIA A100", "NVIDIA L4"])
    monkeypatch.setattr(FakeScorer, "device", property(lambda self: next(devices)))
    notes = run(fake, "s", Processes()).notes
    (note,) = [note for note in notes if "differ in their last digits" in note]
    assert note.startswith("some workers are NVIDIA H200, others NVIDIA ")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--deadline", "5"], "expected --workers or --ray with --deadline, got neither"),
        (["--gpus-per-worker", "0.5"], "expected --workers or --ray with --gpus-per-worker, got"),
        (["--workers", "2", "--gpus-per-worker", "1.5"], "at most 1, or 2, 3 …, got 1.5"),
        (["--workers", "2", "--gpus-per-worker", "0"], "more than 0 and at most 1, or 2, 3"),
        (["--workers", "2", "--deadline", "0"], "expected --deadline of more than 0 seconds"),
        (["--workers", "2"], "--workers and --ray need Ray; pip install 'evomerge[ray]'"),
    ],
)
def test_options_that_are_wrong(
    words: list[str], sentence: str, fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_tell", lambda checked, watcher: None)
    monkeypatch.delitem(sys.modules, "evomerge.study.ray_workers", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    found = CliRunner().invoke(cli.app, ["search", str(fake), "--name", "s", *words])
    assert isinstance(found.exception, EvomergeError)
    assert sentence in str(found.exception)
    assert not Path("runs/s/study.db").exists()


def test_more_workers_than_there_is_room_for_are_worth_a_note(fake: Path, run: Any) -> None:
    notes = run(fake, "s", Processes(room=2), workers=3).notes
    assert "there is room for 2 of 3 workers, others wait" in notes
