"""Nothing is lost: a study that is killed and resumed is the study that was never interrupted.

Here with real models; tests/study/test_every_commit.py and test_kills.py die more often, without.
"""

import json
import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest

from evomerge.study import loop
from tests.conftest import run_cli
from tests.study.fake_study import Silent

KILLS = 10
TRIALS = 30


def recorded(folder: Path, name: str) -> list[tuple[Any, ...]]:
    """All trials of a study as plain data: numbers, states, parameters, values, item scores."""
    database = f"sqlite:///{folder / 'runs' / name / 'study.db'}"
    study = optuna.load_study(study_name=name, storage=database)
    return [(t.number, t.state.name, t.params, t.values, t.user_attrs) for t in study.trials]


def rows_in(database: Path) -> int:
    if not database.exists():
        return 0
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        try:
            tables = ("trials", "study_user_attributes")
            counts = [connection.execute(f"select count(*) from {table}") for table in tables]  # noqa: S608
            return sum(int(count.fetchone()[0]) for count in counts)
        except sqlite3.OperationalError:
            return 0


def test_ten_kills_change_nothing(family: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    arguments = ["search", family / "study.yaml", "--name", "s", "--trials", TRIALS]
    run_cli(*arguments, cwd=whole)

    chance = random.Random(0)
    database = cut / "runs" / "s" / "study.db"
    kills = 0
    while kills < KILLS:
        begun = rows_in(database)
        command = ["resume", "s"] if database.exists() else arguments
        process = subprocess.Popen(
            [sys.executable, "-m", "evomerge", *map(str, command)],
            cwd=cut,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        # Die some random moment after the process has written something of its own.
        while process.poll() is None and rows_in(database) <= begun:
            time.sleep(0.01)
        time.sleep(chance.uniform(0.0, 0.4))
        assert process.poll() is None, "the study ended before it was killed ten times"
        process.kill()
        process.wait()
        kills += 1
    run_cli("resume", "s", cwd=cut)

    one, other = recorded(whole, "s"), recorded(cut, "s")
    assert len(one) == TRIALS
    assert [row[1] for row in one] == ["COMPLETE"] * TRIALS
    assert one == other
    for name in ("report.json", "recipe.yaml"):
        assert (whole / "runs/s" / name).read_text() == (cut / "runs/s" / name).read_text()


def test_a_failing_candidate_is_a_failed_trial_and_replays(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evomerge.errors import CandidateError
    from evomerge.study.scorer import Scorer

    candidate = Scorer.candidate
    calls = 0

    def sometimes(scorer: Scorer, recipe: Any, split: Any) -> Any:
        nonlocal calls
        calls += 1
        found = candidate(scorer, recipe, split)
        if found(None)["sort"].score.sum() * 1e4 % 1 < 0.3:
            raise CandidateError("this one cannot be scored")
        return found

    monkeypatch.setattr(Scorer, "candidate", sometimes)
    monkeypatch.chdir(tmp_path)
    options: dict[str, Any] = {"url": None, "device": "cpu", "watcher": Silent()}
    loop.search(family / "study.yaml", "s", trials=45, seed=0, **options)
    states = [row[1] for row in recorded(tmp_path, "s")]
    assert 3 <= states.count("FAIL") <= 30
    assert states.count("FAIL") + states.count("COMPLETE") == 45
    failed = next(row for row in recorded(tmp_path, "s") if row[1] == "FAIL")
    assert failed[4]["metrics"] == {"error": "this one cannot be scored"}
    before = calls
    loop.resume("s", trials=None, **options)
    assert calls == before  # nothing is scored twice, failed trials neither


@pytest.mark.parametrize("optimizer", ["cma_es", "tpe"])
def test_extending_equals_having_run_longer(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    study = family / "study.yaml"
    study.write_text(study.read_text().replace("cma_es", optimizer))
    options: dict[str, Any] = {"url": None, "device": "cpu", "watcher": Silent()}
    for name in ("long", "short"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "long")
    long = loop.search(study, "s", trials=24, seed=1, **options)
    monkeypatch.chdir(tmp_path / "short")
    loop.search(study, "s", trials=13, seed=1, **options)
    assert len(recorded(tmp_path / "short", "s")) == 13
    extended = loop.resume("s", trials=24, **options)
    assert recorded(tmp_path / "short", "s") == recorded(tmp_path / "long", "s")
    assert extended == long
    assert json.loads(json.dumps(extended)) == extended
