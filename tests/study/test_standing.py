"""How far a study is, from its database alone, and whether anybody runs it."""

import fcntl
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from evomerge import StopStudy, Study, cli
from evomerge.errors import StudyError
from evomerge.proxy_tasks import ItemScores
from evomerge.study.background import background
from evomerge.study.item_scores import pack
from evomerge.study.standing import Reader, Scored, Standing
from evomerge.study.store import Store, database, only_writer
from tests.study.fake_study import TASKS, contents, go_on

ITEMS = 20 * len(TASKS)


def independent(study: Study, best_baseline: Scored | None) -> dict[str, Any]:
    """What a standing must say, from the trials as the Python API has them."""
    ended = [one for one in study.results() if one.state != "running"]
    complete = [one for one in ended if one.fitness is not None]
    best = max(complete, key=lambda one: (one.fitness, -one.number))
    assert best.fitness is not None
    seconds = [one.seconds for one in ended if one.seconds is not None][-20:]
    tasks = {task: scores["score"] for task, scores in best.tasks.items()}
    return {
        "done": len(ended),
        "failed": len(ended) - len(complete),
        "best": Scored(f"trial {best.number}", best.fitness, tasks),
        "baseline": best_baseline,
        "seconds": pytest.approx(sum(seconds) / len(seconds)),
        "answered": pytest.approx(
            sum(one.answered or 0 for one in complete) / (ITEMS * len(complete))
        ),
    }


def test_a_standing_is_that_of_the_trials(fake: Path) -> None:
    study = Study.create(fake, name="s")
    reader = Reader("s", None)
    assert reader.read() == Standing(0, 14, phase="baselines")

    def stop(trial: Any) -> None:
        if trial.number == 8:
            raise StopStudy

    study.run(callbacks=[stop])
    found = reader.read()
    assert (found.done, found.phase, found.total) == (9, "trials", 14)
    baseline = found.baseline
    known = independent(study, baseline)
    assert {name: getattr(found, name) for name in known} == known
    study.run()
    before = contents("s")
    for one in (reader, Reader("s", None)):  # what was read before and what was not are one
        found = one.read()
        known = independent(study, baseline)
        assert {name: getattr(found, name) for name in known} == known
        assert (found.phase, found.total) == ("finished", 14)
    assert contents("s") == before
    fitness = background("s", None)["baselines"]
    del fitness["ensemble"]
    assert baseline is not None
    assert baseline.fitness == max(fitness.values())
    assert baseline.name in fitness
    assert set(baseline.tasks) == set(TASKS)
    assert found.answered is not None
    assert found.answered < 1  # some were stopped early


def test_a_study_that_is_extended_is_not_finished(fake: Path) -> None:
    go_on(fake, "s")
    study = Study.open("s")

    def stop(trial: Any) -> None:
        raise StopStudy

    study.run(trials=20, callbacks=[stop])
    found = Reader("s", None).read()
    assert (found.done, found.total, found.phase) == (15, 20, "trials")


@pytest.mark.parametrize("name", ["winner", "ensemble"])
def test_what_is_no_baseline_is_not_the_best_of_them(name: str, fake: Path) -> None:
    go_on(fake, "s")
    before = Reader("s", None).read().baseline
    store = Store.open("s", None, database("s", None, keep=True))
    whole = ItemScores(np.ones(20), np.ones(20))
    items = pack(dict.fromkeys(TASKS, whole))
    row = store.get(f"row:{name}:search")
    store.set(f"row:{name}:search", {**row, "items": items})
    assert Reader("s", None).read().baseline == before
    store.set("row:TIES:search", {**store.get("row:TIES:search"), "items": items})
    store.close()
    after = Reader("s", None).read().baseline
    assert after is not None
    assert (after.name, dict(after.tasks)) == ("TIES", dict.fromkeys(TASKS, 1.0))


def test_whether_somebody_runs_it(fake: Path) -> None:
    Study.create(fake, name="s")
    reader = Reader("s", None)
    files = sorted(Path("runs/s").iterdir())
    told = "nobody is running it; go on with `evomerge resume s`"
    assert reader.unattended() == told
    with only_writer("s", None):
        assert reader.unattended() is None
    assert reader.unattended() == told
    assert sorted(Path("runs/s").iterdir()) == files
    Path("runs/s/.study.db.s.lock").unlink()
    assert reader.unattended() == told


def test_who_only_looks_keeps_no_study_from_being_run(
    fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Study.create(fake, name="s")
    with Path("runs/s/.study.db.s.lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        monkeypatch.setattr("time.sleep", lambda seconds: fcntl.flock(looking, fcntl.LOCK_UN))
        with only_writer("s", None):
            assert database("s", None).has_writer("s")


def test_whether_somebody_runs_it_on_a_server(fake: Path, server: str) -> None:
    Study.create(fake, name="s", storage=server)
    Study.create(fake, name="t", storage=server)
    reader = Reader("s", server)
    assert reader.read().phase == "baselines"
    told = reader.unattended()
    assert told is not None
    assert "evomerge resume s --storage" in told
    with only_writer("t", server):
        assert reader.unattended() == told
    with only_writer("s", server):
        assert reader.unattended() is None
    assert reader.unattended() == told
    Study.open("s", storage=server).run(trials=9)
    assert reader.read().done == 9
    assert reader.read().phase == "finished"


def test_no_such_study(fake: Path) -> None:
    with pytest.raises(StudyError, match="there is no study 's'"):
        Reader("s", None).read()


def test_watching_once(fake: Path) -> None:
    study = Study.create(fake, name="s")
    found = CliRunner().invoke(cli.app, ["watch", "s", "--once"])
    assert found.exit_code == 0
    assert [line.rstrip() for line in found.stdout.splitlines()] == [
        "trials                   0/14",  # a bar that is empty
        "now       scoring the baselines, 0 so far",
        "note      nobody is running it; go on with `evomerge resume s`",
    ]
    study.run()
    whole = CliRunner().invoke(cli.app, ["watch", "s"])  # of one that is finished it is the end
    assert whole.exit_code == 0
    assert "trials 14/14" in whole.stdout
    assert whole.stdout.count("\n") == 1
    lines = CliRunner().invoke(cli.app, ["watch", "s", "--once"]).stdout.splitlines()
    assert lines[-1].split() == ["now", "finished"]


def test_quiet_searching(fake: Path) -> None:
    found = CliRunner().invoke(cli.app, ["search", str(fake), "--name", "s", "--quiet"])
    assert (found.exit_code, found.stderr) == (0, "")
    assert "winner    trial" in found.stdout
    found = CliRunner().invoke(cli.app, ["resume", "s", "--trials", "16"])
    assert "trials 16/16" in found.stderr
    assert "\x1b" not in found.stderr
