"""Trackers: every trial once, whatever happens between, and never at the study's cost."""

import importlib
import importlib.util
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from typer.testing import CliRunner

from evomerge import StopStudy, Study, TrialResult, cli, plugins, tracking
from evomerge.errors import InputError, StudyError
from evomerge.tracking import Tracker
from tests.study.fake_study import contents, go_on

KINDS = plugins.names(tracking)


def stop_at(number: int) -> Callable[[TrialResult], None]:
    def stop(trial: TrialResult) -> None:
        if trial.number == number:
            raise StopStudy

    return stop


def expected(study: Study) -> dict[int, dict[str, float | str]]:
    """What of each trial is to be logged, out of the study's own results."""
    found: dict[int, dict[str, float | str]] = {}
    best: list[float] = []
    for one in study.results():
        best += [] if one.fitness is None else [one.fitness]
        values: dict[str, float | str] = {} if one.fitness is None else {"fitness": one.fitness}
        values |= {"best": max(best)} if best else {}
        values |= {f"score/{task}": scores["score"] for task, scores in one.tasks.items()}
        values |= {f"accuracy/{task}": scores["accuracy"] for task, scores in one.tasks.items()}
        values |= {f"hole/{name}": value for name, value in one.values.items()}
        values |= {} if one.answered is None else {"answered": one.answered}
        assert one.seconds is not None
        found[one.number] = values | {"seconds": one.seconds}
    return found


def board() -> dict[int, dict[str, float | str]]:
    """What TensorBoard reads in the study's event files, every trial once."""
    (folder,) = Path("runs/s/tensorboard").iterdir()
    found: dict[int, dict[str, float | str]] = {}
    for path in sorted(folder.iterdir()):
        for event in EventFileLoader(str(path)).Load():
            if not event.HasField("summary"):
                continue
            assert event.step not in found, "a trial was logged twice"
            found[event.step] = {
                value.tag: value.tensor.string_val[0].decode()
                if value.tensor.string_val
                else value.tensor.float_val[0]
                for value in event.summary.value
            }
    return found


def same(
    found: dict[int, dict[str, float | str]], wanted: dict[int, dict[str, float | str]]
) -> None:
    assert list(found) == list(wanted)
    for number, values in wanted.items():
        texts = {name: value for name, value in values.items() if isinstance(value, str)}
        assert {name: found[number][name] for name in texts} == texts
        numbers = {name: value for name, value in values.items() if name not in texts}
        theirs = {name: value for name, value in found[number].items() if name not in texts}
        assert theirs == pytest.approx(numbers, rel=1e-6)


def test_tensorboard_has_every_trial_once_however_often_a_study_is_stopped(
    fake: Path,
) -> None:
    go_on(fake, "whole")
    study = Study.create(fake, name="s")
    for number in (3, 7):
        with Tracker("tensorboard", study) as tracker:
            study.run(callbacks=[tracker, stop_at(number)])
    same(board(), {number: one for number, one in expected(study).items() if number <= 7})
    study.run(callbacks=[stop_at(8)])  # without a tracker
    # A kill has cut the last record short.
    (folder,) = Path("runs/s/tensorboard").iterdir()
    last = max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    last.write_bytes(last.read_bytes()[:-5])
    assert 7 not in board()
    with Tracker("tensorboard", study) as tracker:
        study.run(callbacks=[tracker])
    assert len(list(folder.parent.iterdir())) == 1
    same(dict(sorted(board().items())), expected(study))
    with Tracker("tensorboard", study):  # nothing is left to be logged
        pass
    same(dict(sorted(board().items())), expected(study))
    assert contents("s") == contents("whole")


def test_what_a_study_has_left_is_logged_at_the_end(
    fake: Path,
) -> None:
    study = Study.create(fake, name="s")
    with Tracker("tensorboard", study):
        pass
    assert not Path("runs/s/tensorboard").exists()  # no trial yet
    study.run(trials=6)
    with Tracker("tensorboard", study):
        pass
    same(board(), expected(study))


def test_a_choice_is_a_text(fake: Path) -> None:
    values = {"fitness": 0.5, "hole/merge_method": "ties", "hole/normalize": True}
    module = importlib.import_module("evomerge.tracking.tensorboard")
    log = module.start("s", "1", Path("runs/s"), {})
    log.write(4, values)
    log.close()
    assert board() == {4: {**values, "hole/normalize": 1.0}}


def test_another_study_of_the_name_has_a_run_of_its_own(fake: Path) -> None:
    for _ in range(2):
        study = Study.create(fake, name="s")
        with Tracker("tensorboard", study) as tracker:
            study.run(trials=2, callbacks=[tracker])
        Path("runs/s/study.db").unlink()
    assert len(list(Path("runs/s/tensorboard").iterdir())) == 2


@pytest.mark.parametrize("failing", ["start", "logged", "write", "close"])
def test_a_tracker_that_fails_is_one_note_and_the_study_goes_on(
    failing: str,
    fake: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []

    def method(name: str, result: Any = None) -> Callable[..., Any]:
        def called(*arguments: Any) -> Any:
            calls.append(name)
            if name == failing:
                raise OSError("the disk is full\nat the worst time")
            return result

        return called

    log = SimpleNamespace(
        logged=method("logged", set()), write=method("write"), close=method("close")
    )
    module = importlib.import_module("evomerge.tracking.tensorboard")
    monkeypatch.setattr(module, "start", method("start", log))
    go_on(fake, "whole")
    study, notes = Study.create(fake, name="s"), []
    with Tracker("tensorboard", study, notes.append) as tracker:
        study.run(callbacks=[tracker])
    assert notes == ["tensorboard is told no more trials, the study goes on: the disk is full"]
    assert calls.count(failing) == 1
    assert contents("s") == contents("whole")


class Run:
    """A stand-in for wandb's run on a server, or without one."""

    def __init__(self, offline: bool) -> None:
        self.offline = offline
        self.rows: dict[int, dict[str, Any]] = {}
        self.given: list[dict[str, Any]] = []
        self.finished = 0

    @property
    def step(self) -> int:
        return max(self.rows, default=-1) + 1

    def log(self, values: dict[str, Any], step: int) -> None:
        assert step not in self.rows
        self.rows[step] = values

    def finish(self) -> None:
        self.finished += 1

    def init(self, **given: Any) -> "Run":
        self.given.append(given)
        return self


def installed(monkeypatch: pytest.MonkeyPatch, name: str, module: Any) -> None:
    monkeypatch.setitem(sys.modules, name, module)
    module.__spec__ = importlib.util.spec_from_loader(name, None)


@pytest.mark.parametrize("offline", [False, True])
def test_wandb(offline: bool, fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(offline)
    wandb = SimpleNamespace(init=run.init, Settings=lambda **given: given)
    installed(monkeypatch, "wandb", wandb)
    study = Study.create(fake, name="s")
    for stop in ([stop_at(3)], [stop_at(5)], []):
        if len(run.given) == 2:
            study.run(callbacks=[stop_at(6)])  # without a tracker
        with Tracker("wandb", study) as tracker:
            study.run(callbacks=[tracker, *stop])
    first, *others = run.given
    assert (first["name"], first["resume"], first["project"]) == ("s", "allow", "evomerge")
    assert first["config"]["search"]["optimizer"] == "cma_es"
    assert [one["id"] for one in others] == [first["id"]] * 2
    assert run.finished == 3
    wanted = expected(study)
    if offline:  # where it cannot be known whether trial 6 is there
        del wanted[6]
    assert run.rows == wanted


class Client:
    """A stand-in for MLflow's client, which keeps what it is told as its server does."""

    experiments: ClassVar[dict[str, str]] = {}
    runs: ClassVar[dict[str, dict[str, Any]]] = {}
    metrics: ClassVar[list[tuple[str, str, float, int]]] = []

    def get_experiment_by_name(self, name: str) -> Any:
        found = self.experiments.get(name)
        return found and SimpleNamespace(experiment_id=found)

    def create_experiment(self, name: str) -> str:
        self.experiments[name] = "7"
        return "7"

    def search_runs(self, experiments: list[str], filter_string: str) -> list[Any]:
        assert experiments == ["7"]
        return [
            SimpleNamespace(info=SimpleNamespace(run_id=run))
            for run, about in self.runs.items()
            if filter_string == f"tags.evomerge = '{about['tags']['evomerge']}'"
        ]

    def create_run(self, experiment: str, tags: dict[str, str], run_name: str) -> Any:
        run = f"run {len(self.runs)}"
        self.runs[run] = {"tags": tags, "name": run_name, "status": "RUNNING"}
        return SimpleNamespace(info=SimpleNamespace(run_id=run))

    def update_run(self, run: str, status: str) -> None:
        self.runs[run]["status"] = status

    def log_dict(self, run: str, data: dict[str, Any], file: str) -> None:
        self.runs[run][file] = data

    def get_metric_history(self, run: str, key: str) -> list[Any]:
        return [SimpleNamespace(step=one[3]) for one in self.metrics if one[:2] == (run, key)]

    def log_batch(self, run: str, metrics: list[Any]) -> None:
        assert len(metrics) <= 1000
        self.metrics.extend((run, *one) for one in metrics)

    def set_terminated(self, run: str) -> None:
        self.runs[run]["status"] = "FINISHED"


def test_mlflow(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, empty in {"experiments": {}, "runs": {}, "metrics": []}.items():
        monkeypatch.setattr(Client, name, empty)
    installed(monkeypatch, "mlflow", SimpleNamespace(MlflowClient=Client))
    entities = SimpleNamespace(Metric=lambda key, value, time, step: (key, value, step))
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    study = Study.create(fake, name="s")
    for stop in ([stop_at(3)], []):
        with Tracker("mlflow", study) as tracker:
            study.run(callbacks=[tracker, *stop])
        study.run(callbacks=[stop_at(4)])  # without a tracker
    assert set(Client.experiments) == {"evomerge"}
    (about,) = Client.runs.values()
    assert (about["name"], about["status"]) == ("s", "FINISHED")
    assert about["study.json"]["splits"]["search"] == 20
    found: dict[int, dict[str, float]] = {}
    for _, key, value, step in Client.metrics:
        assert key not in found.setdefault(step, {}), "a value was logged twice"
        found[step][key] = value
    assert found == expected(study)


@pytest.mark.parametrize("kind", KINDS)
def test_every_tracker_has_an_extra_of_its_name_and_says_how_to_install_it(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tomllib.loads(Path(__file__).parents[2].joinpath("pyproject.toml").read_text())
    (needed,) = project["project"]["optional-dependencies"][kind]
    assert needed.startswith(f"{kind}>=")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    sentence = rf"{kind} is not installed; pip install 'evomerge\[{kind}\]'"
    with pytest.raises(StudyError, match=sentence):
        Tracker(kind, Study("s", None))


def test_the_option(fake: Path) -> None:
    arguments = ["search", str(fake), "--name", "s", "--quiet", "--track"]
    found = CliRunner().invoke(cli.app, [*arguments, "tensorbord"])
    assert isinstance(found.exception, InputError)
    assert str(found.exception) == (
        "unknown tracker 'tensorbord' at --track in the command line; did you mean 'tensorboard'?"
    )
    assert not Path("runs").exists()
    found = CliRunner().invoke(cli.app, ["search", "none.yaml", "--track", "tensorboard"])
    assert "none.yaml" in str(found.exception)
    assert found.stderr == ""  # nothing of the tracker's
    found = CliRunner().invoke(cli.app, [*arguments, "tensorboard", "--track", "tensorboard"])
    assert found.exit_code == 0
    same(board(), expected(Study.open("s")))
    found = CliRunner().invoke(cli.app, ["resume", "s", "--trials", "16", "--track", "tensorboard"])
    assert found.exit_code == 0
    same(board(), expected(Study.open("s")))
