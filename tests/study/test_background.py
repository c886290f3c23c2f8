"""What a page tells beside the report, out of the database of a study; studies side by side."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from evomerge.cli import app
from evomerge.errors import StudyError
from evomerge.report.html import page
from evomerge.study.api import Study
from evomerge.study.background import background
from evomerge.study.comparison import compare
from evomerge.study.item_scores import unpack
from evomerge.study.store import Store
from evomerge.study.summary import stored_report
from tests.study import fake_study

GET = Store.get


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    fake_study.fake_models(monkeypatch)
    return fake_study.write_study(tmp_path, fake_study.mapping())


def test_the_background_of_a_study(study: Path) -> None:
    fake_study.go_on(study, "s")
    store = Store.open("s", None)
    found = background("s", None)
    assert [one["number"] for one in found["trials"]] == list(range(14))
    failed = [one for one in found["trials"] if one["state"] == "failed"]
    assert failed
    assert all(one["error"] == "this one cannot be scored" for one in failed)
    assert [one["fitness"] for one in found["trials"]] == [one.fitness for one in store.trials()]
    assert found["record"] == store.get("study")
    assert found["inputs"] == store.get("inputs")
    assert found["recipe"].startswith("# Study s: the winner")
    assert found["importance"] is None  # too few trials

    # By hand: 3/4 of the mean and 1/4 of the least of the scores over the better expert's.
    rows = [row["name"] for row in stored_report("s", None)["rows"][1:]]
    means = {
        name: {task: float(np.mean(one.score)) for task, one in items.items()}
        for name in rows
        for items in [unpack(store.get(f"row:{name}:search")["items"])]
    }
    assert list(found["baselines"]) == rows
    for name, fitness in found["baselines"].items():
        ratios = [
            means[name][task] / max(means["one"][task], means["two"][task])
            for task in fake_study.TASKS
        ]
        assert fitness == pytest.approx(0.75 * np.mean(ratios) + 0.25 * min(ratios), abs=1e-6)


@pytest.mark.parametrize("optimizer", ["nsga2", "cma_es"])
def test_a_page_of_a_study(study: Path, optimizer: str) -> None:
    data = fake_study.mapping("nsga2") if optimizer == "nsga2" else fake_study.staged()
    study.write_text(json.dumps(data))
    fake_study.go_on(study, "s")
    text = page("s", stored_report("s", None), background("s", None))
    assert ("Trade-offs" in text) == (optimizer == "nsga2")
    assert text.count('class="stage"') == (0 if optimizer == "nsga2" else 2 + 1)  # and the key
    assert "evomerge merge recipe.yaml" in text


def test_studies_on_the_same_items_are_comparable(study: Path) -> None:
    fake_study.go_on(study, "one")
    data = fake_study.mapping("random_search")
    study.write_text(json.dumps(data | {"search": {**data["search"], "seed": 9}}))
    fake_study.go_on(study, "other")
    found = compare(["one", "other", "one"], None)
    assert found["differences"] == []
    first, second = found["studies"]
    assert [first["optimizer"], second["optimizer"]] == ["cma_es", "random_search"]
    assert [first["seed"], second["seed"]] == [3, 9]
    held = stored_report("one", None)["rows"][0]["heldout"]
    assert first["heldout"] == {key: held[key] for key in ("normalized", "low", "high")}
    assert (first["trials"], first["total"], first["dimensions"]) == (14, 14, 3)
    assert first["tasks"] == ["sums", "words"]
    assert first["gain"] == stored_report("one", None)["gain"]["baseline"]


def test_a_study_that_has_not_run_is_compared_by_its_models_names(study: Path) -> None:
    fake_study.go_on(study, "one")
    data = fake_study.mapping()
    Study.create(study, name="later")
    study.write_text(json.dumps(data | {"models": {"base": "/m/base", "experts": {"one": "/m/x"}}}))
    Study.create(study, name="other")
    assert compare(["one", "later", "other"], None)["differences"] == [
        "other is not comparable with one: its experts, by which accuracy is normalized, are others"
    ]


def test_studies_on_other_items_are_said_to_be_so(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_study.go_on(study, "one")
    data = fake_study.mapping()
    study.write_text(json.dumps(data | {"splits": {**data["splits"], "search": 4}}))
    fake_study.go_on(study, "splits")
    monkeypatch.setattr(fake_study.FakeItems, "fingerprints", {"sums": "changed"})
    study.write_text(json.dumps(data))
    fake_study.go_on(study, "items")
    monkeypatch.setattr(fake_study.FakeItems, "fingerprints", {})
    monkeypatch.setattr(fake_study.FakeScorer, "weights", {"two": "changed"})
    fake_study.go_on(study, "experts")
    assert compare(["one", "splits", "items", "experts"], None)["differences"] == [
        f"splits is not comparable with one: splits.search is 4, not {data['splits']['search']}",
        "items is not comparable with one: the items of sums are others",
        "experts is not comparable with one: its experts, by which accuracy is normalized, "
        "are others",
    ]


def test_a_study_that_is_not_there(study: Path) -> None:
    with pytest.raises(StudyError, match="there is no study 'gone'"):
        compare(["gone"], None)


def test_trials_that_were_stopped_early_say_after_how_many_items(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_study.go_on(study, "s")
    metrics = {0: {"answered": 10}, 1: {"answered": 4, "items": {}}, 3: {"answered": 10}, 4: {}}
    monkeypatch.setattr("evomerge.study.background._metrics", lambda connection, study: metrics)
    found = background("s", None)["trials"]
    assert [one["seen"] for one in found[:5]] == [None, 4, None, None, None]


def said(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_the_commands(study: Path) -> None:
    fake_study.go_on(study, "one")
    fake_study.go_on(study, "two")
    found = json.loads(said("compare", "one", "two", "--json"))
    assert found == compare(["one", "two"], None)
    lines = said("compare", "one", "two").splitlines()
    own = found["studies"][0]["heldout"]
    figures = f"{own['normalized']:.3f} [{own['low']:.3f}, {own['high']:.3f}]"
    assert [figures in line for line in lines if "cma_es" in line] == [True, True]
    assert said("report", "one", "--html", "page.html") == "page.html\n"
    expected = page("one", stored_report("one", None), background("one", None))
    assert Path("page.html").read_text() == expected


def test_a_study_without_a_report_is_unfinished(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_study.go_on(study, "one")
    monkeypatch.setattr(Store, "get", lambda self, key: None if key == "report" else GET(self, key))
    (only,) = compare(["one"], None)["studies"]
    assert (only["heldout"], only["gain"]) == (None, None)
    assert "unfinished" in said("compare", "one")
    assert background("one", None)["baselines"] == {}
