"""Staged searches, and searches that end early: what is tried, decoded, exported and reported."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from evomerge import optimizers
from evomerge.errors import CandidateError, EvomergeError, Place, RecipeError, StudyError
from evomerge.module_groups import Architecture
from evomerge.recipe import parse_recipe, resolve
from evomerge.study import loop
from evomerge.study.export import exported
from evomerge.study.file import load_study_file
from evomerge.study.finalists import best_trials
from evomerge.study.stages import Course
from evomerge.study.store import Store
from evomerge.study.summary import stored_report
from tests.study.fake_study import (
    TENSORS,
    FakeScorer,
    Silent,
    contents,
    fake_check,
    go_on,
    mapping,
    staged,
    write_study,
)

STAGED = ("cma_es", "cma_mixed", "tpe", "random_search", "nsga2", "gp")


def begin(folder: Path, data: dict[str, Any], name: str = "s", trials: int | None = None) -> Silent:
    watcher = Silent()
    study = write_study(folder, data)
    loop.search(study, name, trials=trials, seed=None, url=None, watcher=watcher)
    return watcher


def go_on_to(name: str, trials: int) -> Silent:
    watcher = Silent()
    loop.resume(name, trials=trials, url=None, watcher=watcher)
    return watcher


def tables(recipe: Any) -> dict[str, list[float]]:
    found = resolve(recipe, TENSORS)
    return {name: values.ravel().tolist() for name, values in found.items()}


@pytest.mark.parametrize("optimizer", STAGED)
def test_every_trial_lies_in_the_space_of_its_stage(optimizer: str, fake: Path) -> None:
    data = staged(optimizer)
    begin(fake.parent, data)
    checked = fake_check(load_study_file(fake))
    records = Store.open("s", None).trials()
    stages = checked.file.search.stages
    assert len(records) == data["search"]["trials"] > stages[1].after == 8
    course = Course(checked.space, stages, Architecture(TENSORS))
    spaces = [checked.space]
    for slot, record in enumerate(records):
        if course.begin(slot, records[:slot]):
            best = max(records[:slot], key=lambda one: (one.fitness or 0, -one.slot))
            old = tables(course.decode(best.values))
            new = tables(course.decode(course.space.initial))
            for name, values in new.items():
                assert values == pytest.approx(old[name], abs=1e-12)
            spaces.append(course.space)
        assert set(record.values) == {hole.name for hole in course.holes}
        for hole in course.holes:
            value = record.values[hole.name]
            assert value in hole.choices if hole.choices else hole.low <= value <= hole.high
    sizes = [len(space.holes) for space in spaces]
    # Two knots more in each of two groups; other is the mlp's alone, and a choice is fixed.
    assert sizes == ([9, 13, 13] if optimizer == "cma_es" else [10, 14, 13])
    assert {hole.name for hole in spaces[2].holes} >= {"depth.mlp.0.5", "depth.attention.2"}
    report = stored_report("s", None)
    assert report["search"]["trials"] == len(records)
    assert report["search"]["ended"] is None
    assert [one["first"] for one in report["search"]["stages"]] == [0, 5, 8]
    assert [one["dimensions"] for one in report["search"]["stages"]] == sizes


@pytest.mark.parametrize("optimizer", STAGED)
def test_extending_is_having_run_longer(optimizer: str, fake: Path) -> None:
    data = staged(optimizer)
    begin(fake.parent, data, "whole")
    total = data["search"]["trials"]
    expected = contents("whole")
    for last in (6, total - 1):
        name = f"until-{last}"
        begin(fake.parent, data, name, trials=last)
        go_on_to(name, total)
        found = contents(name)
        assert len(found["trials"]) == total
        for table in ("trials", "params", "values", "metrics"):
            assert found[table] == expected[table]
        report = "evomerge:report"
        assert found["attributes"][report] == expected["attributes"][report]


def test_a_trial_of_each_stage_is_exported_and_optuna_reads_them(fake: Path) -> None:
    begin(fake.parent, staged())
    records = Store.open("s", None).trials()
    course = Course(
        fake_check(load_study_file(fake)).space,
        load_study_file(fake).search.stages,
        Architecture(TENSORS),
    )
    course.follow(records)
    kinds = set()
    for record in records:
        text = exported("s", None, record.number)
        recipe = parse_recipe(yaml.safe_load(text), Place("exported", RecipeError))
        assert recipe.to_mapping() == course.decode(record.values).to_mapping()
        weight = recipe.models[0].parameters["weight"]
        kinds.add(len(weight[0].value))
    assert kinds == {3, 5}
    study = optuna.load_study(study_name="s", storage="sqlite:///runs/s/study.db")
    frame = study.trials_dataframe()
    assert len(frame) == len(records) == 14
    for record, trial in zip(records, study.trials, strict=True):
        assert trial.params == dict(record.values)
        narrow = trial.distributions["one.weight"]
        assert (narrow.high - narrow.low < 1) == (record.slot >= 5)
    winner = stored_report("s", None)["winner"]
    recipe = parse_recipe(winner["recipe"], Place("winner", RecipeError))
    assert recipe == course.decode(winner["values"])


def test_the_winner_may_be_of_the_last_stage(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smaller a recipe's first weight, the better; stages narrow around the best."""

    def scores(self: Any, what: Any, split: str) -> Any:
        text = json.dumps(what)
        found = original(self, text, split)
        worth = 0.5
        if isinstance(what, dict):
            knots = what["models"][0]["parameters"]["weight"]
            first = knots[0]["value"] if isinstance(knots, list) else knots
            worth = 1 / (1 + (first[0] if isinstance(first, list) else first))
        for one in found.values():
            one.score[:] = worth
            one.correct[:] = worth
        return found

    original = FakeScorer._scores
    monkeypatch.setattr(FakeScorer, "_scores", scores)
    begin(fake.parent, staged())
    report = stored_report("s", None)
    records = Store.open("s", None).trials()
    best = max(records, key=lambda one: (one.fitness or 0, -one.slot))
    assert best.slot >= 8
    assert report["winner"]["trial"] in (best.number, None)
    assert "depth.mlp.0.5" in report["winner"]["values"]


def test_patience_ends_a_search_after_whole_generations(fake: Path) -> None:
    data = mapping("cma_es")
    data["search"] |= {"trials": 60, "patience": 9, "population": 6}
    notes = begin(fake.parent, data).notes
    records = Store.open("s", None).trials()
    worth = [one.fitness if one.fitness is not None else -1.0 for one in records]
    best = worth.index(max(worth))
    done = len(records)
    assert done < 60
    assert done - best - 1 >= 9
    starts = len(fake_starts())
    assert (done - starts + 1) % 7 == 0  # whole generations of 6 and the center
    assert done - best - 1 < 9 + 7
    ended = f"The search ended after {done} of 60 trials: 9 in a row brought no new best."
    assert stored_report("s", None)["search"]["ended"] == ended
    assert any(note.startswith(ended) for note in notes)
    expected = contents("s")
    go_on(fake, "s")
    assert contents("s") == expected
    go_on_to("s", 80)
    assert len(Store.open("s", None).trials()) == done


def fake_starts() -> list[Any]:
    """The first trials of the fake study, which no optimizer proposes."""
    store = Store.open("s", None)
    space = fake_check(load_study_file(Path("study.yaml"))).space
    trials = store.trials()
    return [one for one in trials[:4] if one.values["density"] == space.initial["density"]]


def test_patience_counts_gains_and_waits_for_the_last_stage(fake: Path) -> None:
    data = staged("random_search")
    data["search"] |= {"trials": 60, "patience": 3, "min_gain": 10.0}
    begin(fake.parent, data)
    # Nothing gains ten. Where results do not matter to what is proposed, blocks of 16 are begun.
    assert len(Store.open("s", None).trials()) == 16
    data["search"]["min_gain"] = 0.0
    begin(fake.parent, data, "other")
    records = Store.open("other", None).trials()
    ends = []
    for end in range(16, len(records) + 1, 16):
        best = max(records[:end], key=lambda one: (one.fitness or 0, -one.slot))
        ends += [end] if end - max(best.slot, 7) - 1 >= 3 else []
    assert ends == [len(records)]


def test_a_hopeless_search_ends_in_a_sentence(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, recipe: Any, split: str) -> Any:
        raise CandidateError("this one cannot be scored")

    monkeypatch.setattr(FakeScorer, "candidate", fail)
    data = mapping("cma_es")
    data["search"] |= {"trials": 60, "give_up": 7}
    text = "the first 7 trials all failed, so the search ends; correct the study"
    with pytest.raises(StudyError, match=text):
        begin(fake.parent, data)
    records = Store.open("s", None).trials()
    assert [one.state for one in records] == ["failed"] * 7
    with pytest.raises(StudyError, match=text):
        go_on(fake, "s")
    assert len(Store.open("s", None).trials()) == 7


HERE = "search.stages[0]"


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        (3, "expected a list of stages (refinements of the space, and when they begin), got 3 at "
            "search.stages"),
        ([{"knots": 2}],
         f"expected the key after (trials of the stages before it), got none at {HERE} in study"),
        ([{"after": 0, "knots": 2}],
         "expected a whole number ≥ 1 (trials of the stages before it), got 0"),
        ([{"after": 5}], "expected a stage with knots, narrow, groups or choices, got"),
        ([{"after": 5, "knot": 2}],
         f"unknown key 'knot' at {HERE} in study.yaml; did you mean 'knots'?"),
        ([{"after": 5, "knots": 1}], "expected a whole number from 2 to 100 (parts that each"),
        ([{"after": 5, "narrow": 1}], "expected a number > 0 and < 1"),
        ([{"after": 5, "groups": "splt"}], "expected one of split"),
        ([{"after": 5, "choices": "fix"}], f"expected a choice to fix, got none at {HERE}.choices"),
        ([{"after": 5, "narrow": 0.5}, {"after": 5, "narrow": 0.5}],
         "expected more than the 5 trials before the last stage, got 5 at search.stages[1].after"),
        ([{"after": 5, "groups": "split"}, {"after": 6, "groups": "split"}],
         "expected a curve over other that can be split, got none at search.stages[1].groups"),
    ],
)  # fmt: skip
def test_mistakes_in_stages(stages: Any, words: str, fake: Path) -> None:
    data = staged("cma_es")
    data["search"]["stages"] = stages
    with pytest.raises(EvomergeError) as caught:
        begin(fake.parent, data)
    assert words in str(caught.value).replace(str(fake), "study.yaml")
    assert not Path("runs").exists()


def test_curves_must_be_there_to_be_refined(fake: Path) -> None:
    data = mapping()
    data["search"]["stages"] = [{"after": 5, "knots": 2}]
    with pytest.raises(EvomergeError, match="a curve or blocks, fewer than layers"):
        begin(fake.parent, data)


def test_auto_chooses_again_for_every_stage(fake: Path) -> None:
    made: list[str] = []
    create = optimizers.create

    def noted(name: str, *rest: Any) -> Any:
        made.append(name)
        return create(name, *rest)

    data = staged("cma_mixed")
    data["search"] = {key: data["search"][key] for key in ("trials", "seed", "stages")}
    # Undone before the fixture undoes its own.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizers, "create", noted)
        patch.setattr(
            loop,
            "check_study",
            lambda file, trust: replace(fake_check(file), optimizer="cma_mixed"),
        )
        begin(fake.parent, data)
    assert made == ["cma_mixed", "cma_mixed", "gp"]  # the last has no choices


def test_a_fork_takes_the_best_trials_to_the_first_stage(fake: Path) -> None:
    begin(fake.parent, staged())
    loop.resume("s", fork="new", trials=None, url=None, watcher=Silent())
    best = best_trials(Store.open("s", None).trials())
    assert any(one.slot >= 5 for one in best)
    space = fake_check(load_study_file(fake)).space
    tried = [dict(one.values) for one in Store.open("new", None).trials()[:5]]
    for one in best[:1]:  # later ones may begin after the stage does
        carried = {hole.name: one.values.get(hole.name, hole.init) for hole in space.holes}
        assert carried in tried
    assert len(Store.open("new", None).trials()) == 14
