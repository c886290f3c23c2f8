"""Studies from Python: what is created, run, called back and read."""

import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import evomerge
from evomerge import StopStudy, Study, TrialResult
from evomerge.errors import SpaceError, StudyError, StudyFileError
from evomerge.study import loop
from evomerge.study.export import exported
from evomerge.study.summary import stored_report
from tests.study.fake_study import TASKS, contents, fake_check, go_on, mapping, write_study

HOLES = ["one.weight", "density", "two.weight"]


def test_importing_imports_nothing_heavy() -> None:
    code = (
        "import sys, evomerge\n"
        "assert evomerge.__version__\n"
        "heavy = {'torch', 'optuna', 'numpy', 'pandas', 'sqlalchemy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "from evomerge import Study\n"
        "assert Study.__module__ == 'evomerge.study.api'\n"
        "assert 'pandas' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="has no attribute 'Stdy'"):
        _ = evomerge.Stdy


def test_a_run_is_what_the_command_line_runs(fake: Path, tmp_path: Path) -> None:
    go_on(fake, "whole")
    study = Study.create(fake, name="s")
    assert study.name == "s"
    with pytest.raises(StudyError, match="the study s has no report yet, 0 of its 14 trials"):
        _ = study.report
    assert len(study.trials) == 0
    report = study.run()
    expected = contents("whole")
    assert contents("s") == expected
    assert report == study.report == stored_report("whole", None)
    assert exported("s", None, None).endswith(study.best_recipe.to_yaml())
    assert study.best_recipe.to_mapping() == report["winner"]["recipe"]


def test_from_a_mapping(fake: Path) -> None:
    study = Study.create(mapping(), name="s")
    assert study.run() is not None
    go_on(fake, "t")
    mine, other = contents("s"), contents("t")
    for found in (mine, other):
        del found["attributes"]["evomerge:study"]["source"]
    assert mine == other


def test_the_folder_or_the_file_gives_the_name(fake: Path, tmp_path: Path) -> None:
    other = Path("tries.yaml")
    other.write_text(fake.read_text())
    assert Study.create(str(other)).name == "tries"
    assert Study.create(fake).name == tmp_path.name


def test_callbacks_see_every_trial_once(fake: Path) -> None:
    seen: list[TrialResult] = []
    study = Study.create(fake, name="s")
    study.run(trials=9, callbacks=[seen.append])
    assert seen == study.results()
    assert [one.number for one in seen] == list(range(9))
    assert {one.state for one in seen} == {"complete", "failed"}
    for one in seen:
        assert (one.fitness is None) == (one.state == "failed") == (not one.tasks)
        assert (one.error is None) == (one.state == "complete")
        assert set(one.values) == set(HOLES)
        assert one.seconds is not None
        if one.tasks:
            assert set(one.tasks) == set(TASKS)
    with pytest.raises(FrozenInstanceError):
        seen[0].fitness = 1.0  # type: ignore[misc]
    more: list[int] = []
    study.run(trials=12, callbacks=[lambda one: more.append(one.number)])
    assert more == [9, 10, 11]


def test_a_callback_may_end_the_run_after_its_trial(fake: Path) -> None:
    go_on(fake, "whole")

    def stop(one: TrialResult) -> None:
        if one.number == 4:
            raise StopStudy

    def fail(one: TrialResult) -> None:
        if one.number == 7:
            raise ZeroDivisionError

    study = Study.create(fake, name="s")
    assert study.run(callbacks=[stop]) is None
    assert len(study.trials) == 5
    assert study.trials.state.isin(["complete", "failed"]).all()
    best = study.trials.fitness.idxmax()
    assert exported("s", None, int(best)).endswith(study.best_recipe.to_yaml())
    with pytest.raises(ZeroDivisionError):
        study.run(callbacks=[fail])
    assert len(study.trials) == 8
    again = Study.open("s").run()
    assert again == stored_report("whole", None)
    assert contents("s") == contents("whole")


def test_trials_as_a_table(fake: Path) -> None:
    study = Study.create(fake, name="s")
    study.run()
    table = study.trials
    scores = [f"{task} {kind}" for task in TASKS for kind in ("score", "accuracy")]
    assert list(table.columns) == ["state", "fitness", "seconds", "answered", *scores, *HOLES]
    assert table.index.name == "number"
    assert list(table.index) == list(range(14))
    for one in study.results():
        row = table.loc[one.number]
        assert row["state"] == one.state
        assert pd.isna(row["fitness"]) if one.fitness is None else row["fitness"] == one.fitness
        assert dict(row[HOLES]) == dict(one.values)
        for task, found in one.tasks.items():
            assert row[f"{task} score"] == found["score"]
            assert row[f"{task} accuracy"] == found["accuracy"]
    assert table[["fitness", "seconds", *scores]].dtypes.eq("float64").all()
    assert table[scores].isna().all(axis=1).equals(table.state == "failed")


def test_a_hole_may_be_called_as_a_column(fake: Path, tmp_path: Path) -> None:
    data = mapping("random_search")
    data["space"] = {**data["space"], "holes": {"state": data["space"]["holes"]["density"]}}
    data["space"]["models"] = [
        {"each": "experts", "parameters": {"weight": {"range": [0, 1]}, "density": "state"}}
    ]
    study = Study.create(data, name="s")
    study.run(trials=3)
    assert set(study.trials["state"]) <= {"complete", "failed"}
    assert list(study.trials["hole state"]) == [one.values["state"] for one in study.results()]


@pytest.mark.parametrize("form", ["recipe", "mapping", "path", "text"])
def test_enqueuing(form: str, fake: Path) -> None:
    study = Study.create(fake, name="s")
    study.run(trials=6)
    recipe: Any = study.best_recipe
    Path("best.yaml").write_text(recipe.to_yaml())
    forms = {"mapping": recipe.to_mapping(), "path": Path("best.yaml"), "text": "best.yaml"}
    assert study.enqueue(forms.get(form, recipe)) == 0
    study.run(trials=7)
    last = study.results()[-1]
    assert last.queued == 0
    assert study.trials[HOLES].duplicated().any()
    wrong = recipe.to_mapping() | {"parameters": {"normalize": True}}
    with pytest.raises(SpaceError, match="got normalize 1, where the nearest of the space has 0"):
        study.enqueue(wrong)


def test_refusals(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StudyError, match="there is no study 's'"):
        Study.open("s")
    with pytest.raises(StudyError, match="expected a name for a study that is no file, got none"):
        Study.create(mapping())
    with pytest.raises(StudyFileError, match="unknown key 'serch' at the top of the study"):
        Study.create({**mapping(), "serch": {}}, name="s")
    assert loop.studies(None) == []
    Study.create(fake, name="s")
    with pytest.raises(StudyError, match="the study s exists; go on with"):
        Study.create(fake, name="s")
    trusted: list[bool] = []

    def check(file: Any, trust: bool) -> Any:
        trusted.append(trust)
        return fake_check(file)

    monkeypatch.setattr(loop, "check_study", check)
    Study.create(fake, name="t", trust=True)
    assert trusted == [True]


def test_any_database(fake: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/all.db"
    Study.create(write_study(tmp_path, mapping()), name="s", storage=url).run(trials=5)
    assert len(Study.open("s", storage=url).trials) == 5
    assert not (tmp_path / "runs/s/study.db").exists()
