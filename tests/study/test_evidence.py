"""What a report says of its own figures, from the scores that the database holds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import create_engine, text

from evomerge.calibration import calibration
from evomerge.fitness import TaskScores
from evomerge.proxy_tasks import ItemScores, Probabilities
from evomerge.study import loop
from evomerge.study.baselines import Baselines, Row
from evomerge.study.evidence import _item_scores, expectations, gain_sentence
from evomerge.study.item_scores import unpack
from evomerge.study.store import Store
from evomerge.study.summary import stored_report
from tests.study.fake_study import TASKS, FakeScorer, Silent, contents, mapping

EXPERTS = ("one", "two")
ITEMS = mapping()["splits"]["search"]


@pytest.fixture
def watched(fake: Path) -> Silent:
    """Has watched a study `s` of 14 trials, 3 of which or so have failed."""
    watcher = Silent()
    loop.search(fake, "s", trials=None, seed=None, url=None, watcher=watcher)
    return watcher


def scores(row: str, split: str) -> TaskScores:
    return unpack(Store.open("s", None).get(f"row:{row}:{split}")["items"])


def normalized(row: str, split: str) -> float:
    mine, experts = scores(row, split), [scores(one, split) for one in EXPERTS]
    return float(
        np.mean(
            [
                mine[task].correct.sum() / max(one[task].correct.sum() for one in experts)
                for task in TASKS
            ]
        )
    )


def test_gains_are_differences_of_held_out_figures(watched: Silent) -> None:
    report = stored_report("s", None)
    rows = {row["name"]: row for row in report["rows"]}
    held = {name: normalized(name, "heldout") for name in rows}
    baselines = [row["name"] for row in report["rows"] if row["kind"] == "baseline"]
    best = max(baselines, key=lambda name: held[name])
    for key, name in (("baseline", best), ("line", "task arithmetic")):
        found = report["gain"][key]
        assert found["name"] == name
        assert found["value"] == pytest.approx(held["winner"] - held[name])
        assert found["low"] <= found["value"] <= found["high"]
    assert report["gain"]["sentence"] == gain_sentence(report["gain"]["baseline"])
    for name, row in rows.items():
        difference = normalized(name, "search") - held[name]
        assert row["optimism"]["value"] == pytest.approx(difference)
        assert row["optimism"]["low"] < difference < row["optimism"]["high"]


def test_fidelity_after_is_of_the_trials_in_the_database(watched: Silent) -> None:
    report = stored_report("s", None)["fidelity"]["after"]
    reference = {
        task: max(float(scores(one, "search")[task].score.mean()) for one in EXPERTS)
        for task in TASKS
    }
    metrics = [json.loads(text) for _, key, text in contents("s")["metrics"] if key == "metrics"]
    assert all("weights" in one for one in metrics if "items" in one)
    found = [unpack(one["items"]) for one in metrics if "items" in one]
    rows = np.array([[one[task].score / reference[task] for task in TASKS] for one in found])
    rows = rows[np.isfinite(rows).all((1, 2))]  # some have been stopped early
    assert report["rows"] == len(rows) > 5
    means, worst = rows.mean(2), mapping()["fitness"]["worst"]
    noise = 0.0
    for row, mean in zip(rows - rows.mean(0), means, strict=True):  # beside the items' own means
        share = np.full(len(TASKS), (1 - worst) / len(TASKS))
        share[mean.argmin()] += worst
        noise += share**2 @ row.var(1, ddof=1) / ITEMS / (len(rows) - 1)
    values = (1 - worst) * means.mean(1) + worst * means.min(1)
    spread = max(0, values.var(ddof=1) - noise)
    assert report["noise"] == pytest.approx(np.sqrt(noise))
    assert report["spread"] == pytest.approx(np.sqrt(spread))
    assert report["items"] == ITEMS


def test_the_same_weights_count_once(watched: Silent) -> None:
    store = Store.open("s", None)
    before = len(store.look(_item_scores))
    engine = create_engine("sqlite:///runs/s/study.db")
    with engine.begin() as connection:
        given = connection.execute(
            text("SELECT trial_user_attribute_id, value_json FROM trial_user_attributes "
                 "WHERE key = 'metrics'")
        ).all()  # fmt: skip
        whole = [(number, json.loads(one)) for number, one in given if "items" in one]
        whole = [
            (number, one) for number, one in whole
            if all(np.isfinite(part.score).all() for part in unpack(one["items"]).values())
        ]  # fmt: skip
        assert len(whole) == before
        for number, one in whole[:3]:
            connection.execute(
                text("UPDATE trial_user_attributes SET value_json = :value "
                     "WHERE trial_user_attribute_id = :number"),
                {"value": json.dumps(one | {"weights": "same"}), "number": number},
            )  # fmt: skip
    assert len(Store.open("s", None).look(_item_scores)) == before - 2


def test_what_the_items_can_tell_is_said_before_the_search(watched: Silent) -> None:
    before = stored_report("s", None)["fidelity"]["before"]
    assert before["rows"] == 4  # the better half of eight, since two of ten are others again
    (note,) = [one for one in watched.notes if one.startswith(f"with {ITEMS} items a task")]
    assert f"under {100 * before['resolved']:.1f} points are noise; {4 * ITEMS} would" in note


def test_a_search_whose_items_cannot_rank_its_baselines_is_warned() -> None:
    draw = np.random.default_rng(0)
    rows: dict[str, TaskScores] = {
        f"row {row}": {"a": ItemScores(draw.random(20), np.ones(20))} for row in range(12)
    }
    rows["ensemble"] = {"a": ItemScores(np.ones(20), np.ones(20))}  # no candidate
    fitness: Any = type("Fake", (), {"reference": {"a": 1.0}, "worst": 0.0})
    made = {name: Row(name, "baseline", {"recipe": name}) for name in rows}
    notes = list(expectations(Baselines((), fitness, (), (), rows, made)))
    assert len(notes) == 2
    assert notes[1].startswith("the search items cannot rank these candidates (0.")
    assert list(expectations(Baselines((), fitness, (), (), {}, {}))) == []


def test_sentences_of_gains() -> None:
    found = {"name": "TIES", "value": 0.041, "low": 0.012, "high": 0.07}
    assert gain_sentence(found) == (
        "the winner beats the best baseline (TIES) by +4.1 points [1.2, 7.0] on held-out items"
    )
    assert gain_sentence({**found, "low": -0.01}) == (
        "the winner is not distinguishable from the best baseline (TIES): "
        "+4.1 points [-1.0, 7.0] on held-out items"
    )
    assert gain_sentence({**found, "value": -0.03, "low": -0.05, "high": -0.01}) == (
        "the winner is worse than the best baseline (TIES): "
        "-3.0 points [-5.0, -1.0] on held-out items"
    )
    assert gain_sentence({**found, "value": 0.0, "low": 0.0, "high": 0.0}).startswith(
        "the winner is not distinguishable"
    )


def test_calibration_is_of_winner_experts_and_ensemble_where_it_is_known(
    fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = FakeScorer._scores

    def with_probabilities(self: FakeScorer, what: object, split: str) -> dict[str, ItemScores]:
        found = plain(self, what, split)
        sums = found["sums"]
        known = Probabilities(sums.score, (1 + sums.score) / 2)
        return found | {"sums": ItemScores(sums.score, sums.correct, known)}

    monkeypatch.setattr(FakeScorer, "_scores", with_probabilities)
    loop.search(fake, "s", trials=None, seed=None, url=None, watcher=Silent())
    found = stored_report("s", None)["calibration"]
    assert list(found) == ["winner", *EXPERTS, "ensemble"]
    for name, tasks in found.items():
        held = scores(name, "heldout")["sums"]
        assert held.probabilities is not None
        gold, confidence = held.probabilities.gold, held.probabilities.confidence
        expected = calibration(gold, confidence, held.correct).to_mapping()
        assert tasks == {"sums": pytest.approx(expected, rel=1e-6)}  # the database has float32


def test_a_study_that_knows_no_probabilities_has_no_calibration(watched: Silent) -> None:
    assert stored_report("s", None)["calibration"] == {}
