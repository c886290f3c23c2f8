"""Optuna's dashboard and figures show a study, straight from its database."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
import optuna_dashboard
import pytest
from optuna.importance import PedAnovaImportanceEvaluator

from evomerge import Study
from tests.study.fake_study import contents, go_on

STORAGE = "sqlite:///runs/s/study.db"
HOLES = {"one.weight", "two.weight", "density"}

Get = Callable[[str], bytes]


@pytest.fixture
def get(fake: Path) -> Iterator[Get]:
    """Asks the dashboard, in this process, for a page about a finished study."""
    go_on(fake, "s")
    before = contents("s")
    storage = optuna.storages.RDBStorage(STORAGE)
    app = optuna_dashboard.wsgi(storage)

    def get(path: str) -> bytes:
        environ: dict[str, Any] = {"PATH_INFO": path}
        setup_testing_defaults(environ)
        statuses: list[str] = []

        def start_response(status: str, headers: Any, failure: Any = None) -> Any:
            statuses.append(status)

        found = app(environ, start_response)
        body = b"".join(found)
        getattr(found, "close", lambda: None)()  # of a page that is a file
        assert statuses == ["200 OK"], (path, body)
        return body

    yield get
    storage.remove_session()
    storage.engine.dispose()
    assert contents("s") == before


def test_the_dashboard_shows_the_study(get: Get) -> None:
    assert b"<html" in get("/dashboard").lower()
    (listed,) = json.loads(get("/api/studies"))["study_summaries"]
    assert (listed["study_name"], listed["directions"]) == ("s", ["maximize"])
    found = json.loads(get(f"/api/studies/{listed['study_id']}"))
    own = Study.open("s").trials
    assert found["name"] == "s"
    assert {one["name"] for one in found["union_search_space"]} == HOLES
    assert [one["number"] for one in found["best_trials"]] == [own.fitness.idxmax()]
    assert [one["number"] for one in found["trials"]] == list(own.index)
    for one, (_, row) in zip(found["trials"], own.iterrows(), strict=True):
        assert one["state"].lower() == {"failed": "fail"}.get(row.state, row.state)
        assert one.get("values") == (None if row.state == "failed" else [row.fitness])
        shown = {hole["name"]: hole["param_internal_value"] for hole in one["params"]}
        assert shown == {hole: row[hole] for hole in HOLES}


def test_the_dashboard_draws_figures_and_importances(get: Get) -> None:
    (listed,) = json.loads(get("/api/studies"))["study_summaries"]
    for name in ("slice", "contour", "parallel_coordinate", "rank", "edf", "timeline"):
        figure = json.loads(get(f"/api/studies/{listed['study_id']}/plot/{name}"))
        assert figure["data"], name
    (found,) = json.loads(get(f"/api/studies/{listed['study_id']}/param_importances"))[
        "param_importances"
    ]
    assert {one["name"] for one in found} == HOLES


def test_figures(fake: Path) -> None:
    go_on(fake, "s")
    loaded = optuna.load_study(study_name="s", storage=STORAGE)
    own = Study.open("s").trials.fitness.dropna()
    history = optuna.visualization.plot_optimization_history(loaded)
    assert list(history.data[0].y) == list(own)
    evaluator = PedAnovaImportanceEvaluator()
    (bars,) = optuna.visualization.plot_param_importances(loaded, evaluator=evaluator).data
    assert set(bars.y) == HOLES
