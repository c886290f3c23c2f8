"""A study is an Optuna study: its tables are what Optuna's own tools ask for."""

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from evomerge import Study
from tests.study.fake_study import go_on, mapping, write_study

STORAGE = "sqlite:///runs/s/study.db"
HOLES = {"one.weight", "two.weight", "density"}


@pytest.fixture(params=["cma_es", "cma_mixed"])
def loaded(request: pytest.FixtureRequest, fake: Path, tmp_path: Path) -> optuna.Study:
    """A finished study, one of them with a choice, as Optuna reads it."""
    data: dict[str, Any] = mapping(request.param)
    if request.param == "cma_mixed":
        holes = {"density": {"choice": [0.2, 0.5, 1.0]}}
        data["space"] = {**data["space"], "holes": holes}
    go_on(write_study(tmp_path, data), "s")
    return optuna.load_study(study_name="s", storage=STORAGE)


def test_the_table_of_trials(loaded: optuna.Study) -> None:
    table = loaded.trials_dataframe()
    own = Study.open("s").trials
    assert list(table.number) == list(own.index)
    assert list(table.state.str.lower()) == [one[:8] for one in own.state.replace("failed", "fail")]
    np.testing.assert_array_equal(table.value, own.fitness)
    for hole in HOLES:
        assert list(table[f"params_{hole}"]) == list(own[hole])
    assert list(table.user_attrs_slot) == list(own.index)
    assert table.duration.notna().all()


def test_the_best_trial_and_its_distributions(loaded: optuna.Study) -> None:
    own = Study.open("s").trials
    assert loaded.direction.name == "MAXIMIZE"
    assert loaded.best_trial.number == own.fitness.idxmax()
    assert loaded.best_value == own.fitness.max()
    assert set(loaded.best_trial.distributions) == HOLES
    assert {one.state for one in loaded.trials} == {TrialState.COMPLETE, TrialState.FAIL}


def test_optuna_can_go_on_with_a_copy(loaded: optuna.Study) -> None:
    """Its samplers learn from the trials, as of any other study's."""
    copy = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=1)
    )
    copy.add_trials(loaded.trials)
    trial = copy.ask(loaded.best_trial.distributions)
    assert set(trial.params) == HOLES
