"""Studies of several objectives: what the optimizer is told, the front, what stays as it was."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge import optimizers
from evomerge.genome import Genome
from evomerge.optimizers import nsga2
from evomerge.study import finals, loop
from evomerge.study.export import exported
from evomerge.study.finalists import candidates, front_trials
from evomerge.study.item_scores import unpack
from evomerge.study.store import Store
from evomerge.study.summary import stored_report
from tests.study.fake_study import (
    TASKS,
    Silent,
    contents,
    fake_check,
    go_on,
    mapping,
    write_study,
)


def several(optimizer: str = "nsga2", **own: Any) -> dict[str, Any]:
    data = mapping(optimizer)
    data["search"] |= {"objectives": "tasks", **own}
    return data


def metrics(name: str) -> dict[int, dict[str, Any]]:
    return {
        number: json.loads(text)["tasks"]
        for number, key, text in contents(name)["metrics"]
        if key == "metrics" and "tasks" in json.loads(text)
    }


def best_experts(name: str, split: str) -> dict[str, float]:
    """The best expert's mean score of each task, from the rows of the experts."""
    store = Store.open(name, None)
    rows = [unpack(store.get(f"row:{expert}:{split}")["items"]) for expert in ("one", "two")]
    return {task: max(float(row[task].score.mean()) for row in rows) for task in TASKS}


def goals(name: str) -> dict[int, tuple[float, ...]]:
    best = best_experts(name, "search")
    return {
        number: tuple(tasks[task]["score"] / best[task] for task in TASKS)
        for number, tasks in metrics(name).items()
    }


Told = list[tuple[int, tuple[float, ...]]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """What NSGA-II is told after its starting points: slots and objectives."""
    found: Told = []
    tell = nsga2.Nsga2.tell

    def noted(self: Any, slot: int, values: Any, fitness: Any, objectives: Any = ()) -> None:
        found.append((slot, objectives))
        tell(self, slot, values, fitness, objectives)

    monkeypatch.setattr(nsga2.Nsga2, "tell", noted)
    return found


def test_the_optimizer_is_told_what_is_recorded_also_after_a_resume(fake: Path, told: Told) -> None:
    write_study(fake.parent, several(trials=19))
    go_on(fake, "s")
    expected = goals("s")
    first = 19 - len(told)
    assert 0 < first < 6
    assert [slot for slot, _ in told] == list(range(19 - first))
    assert [one for _, one in told] == [expected.get(slot + first, ()) for slot, _ in told]
    assert () in dict(told).values()  # failed trials
    before = told.copy()
    told.clear()
    go_on(fake, "s")
    assert told == before


def test_one_fitness_is_told_without_objectives(fake: Path, told: Told) -> None:
    data = mapping("nsga2")
    data["search"]["objectives"] = "fitness"
    write_study(fake.parent, data)
    go_on(fake, "s")
    assert {objectives for _, objectives in told} == {()}
    assert "front" not in stored_report("s", None)


def test_the_front_of_the_report(fake: Path) -> None:
    write_study(fake.parent, several())
    go_on(fake, "s")
    recorded = goals("s")
    report = stored_report("s", None)
    front = {one["trial"]: one for one in report["front"]}
    undominated = {
        number
        for number, mine in recorded.items()
        if not any(
            other != mine and all(b >= a for a, b in zip(mine, other, strict=True))
            for other in recorded.values()
        )
    }
    assert set(front) == undominated
    assert len(front) > 1
    store, best = Store.open("s", None), best_experts("s", "select")
    selected = {}
    for one in report["finalists"]:
        scores = unpack(store.get(f"row:{one['name']}:select")["items"])
        selected[one["name"]] = [float(scores[task].score.mean()) / best[task] for task in TASKS]
    for number, one in front.items():
        mine = selected[f"trial {number}"]
        assert one["search"] == dict(zip(TASKS, recorded[number], strict=True))
        assert one["select"] == dict(zip(TASKS, mine, strict=True))
        assert one["holds"] == (
            not any(
                other != mine and all(b >= a for a, b in zip(mine, other, strict=True))
                for other in selected.values()
            )
        )
        right, *experts = (
            {task: items.correct.mean() for task, items in unpack(store.get(key)["items"]).items()}
            for key in (f"row:trial {number}:select", "row:one:select", "row:two:select")
        )
        ratios = [right[task] / max(expert[task] for expert in experts) for task in TASKS]
        assert one["normalized"] == pytest.approx(np.mean(ratios))
        finalist = next(done for done in report["finalists"] if done["trial"] == number)
        assert finalist["select"] == pytest.approx(0.75 * np.mean(ratios) + 0.25 * min(ratios))
        assert exported("s", None, number).startswith(f"# Study s: trial {number}.")
    assert len({one["holds"] for one in front.values()}) == 2
    assert report["winner"]["select"] == max(one["select"] for one in report["finalists"])


def test_a_front_that_is_longer_is_cut(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finals, "front_trials", partial(front_trials, most=1))
    write_study(fake.parent, several())
    go_on(fake, "s")
    assert len(stored_report("s", None)["front"]) == 1


@pytest.mark.parametrize("optimizer", ["nsga2", "tpe"])
def test_more_trials_are_as_if_there_had_been_as_many_from_the_start(
    optimizer: str, fake: Path
) -> None:
    write_study(fake.parent, several(optimizer, trials=22))
    go_on(fake, "whole")
    expected = contents("whole")
    write_study(fake.parent, several(optimizer, trials=13))
    go_on(fake, "s")
    loop.resume("s", trials=22, url=None, watcher=Silent())
    found = contents("s")
    for table in ("trials", "params", "values", "metrics"):
        assert found[table] == expected[table]
    reports = [one["attributes"]["evomerge:report"] for one in (found, expected)]
    assert reports[0] == reports[1]


def test_any_optimizer_leaves_a_front(fake: Path) -> None:
    write_study(fake.parent, several("random_search"))
    go_on(fake, "s")
    plain = mapping("random_search")
    write_study(fake.parent, plain)
    go_on(fake, "plain")
    assert contents("s")["params"] == contents("plain")["params"]
    assert stored_report("s", None)["front"]


def test_the_average_of_the_best_can_win(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        finals,
        "candidates",
        lambda *given: [one for one in candidates(*given) if one.trial is None],
    )
    go_on(fake, "s")
    winner = stored_report("s", None)["winner"]
    assert winner["name"] == "average of the best 5"
    assert winner["trial"] is None
    assert exported("s", None, None).startswith("# Study s: the winner, average of the best 5.")


def test_auto_for_several(fake: Path) -> None:
    genome = Genome(fake_check(loop.load_study_file(fake)).space.holes)
    assert optimizers.choose(genome, 300, several=True) == "tpe"
    assert optimizers.choose(genome, 301, several=True) == "nsga2"
    assert optimizers.choose(genome, 100) == "gp"
