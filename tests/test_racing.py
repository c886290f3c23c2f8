"""Racing: which items a candidate is put, when it is stopped, what it is then said to score."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from evomerge.errors import Place, RecipeError
from evomerge.estimates import Ridge, informative
from evomerge.fitness import Fitness, mean_scores
from evomerge.proxy_tasks import ItemScores
from evomerge.racing import Raced, Racer, Racing
from evomerge.recipe import parse_recipe, weights_key

SIZE = 64
RACING = Racing.model_validate({"first": 8, "sigmas": 0.0, "exact": 0.0})


def scores_of(*rows: Sequence[float]) -> dict[str, ItemScores]:
    """Scores of tasks a, b … from a row of each."""
    arrays = (np.asarray(row, dtype=np.float64) for row in rows)
    return {
        name: ItemScores(row, (row > 0.5).astype(np.float64))
        for name, row in zip("abc", arrays, strict=False)
    }


def family(count: int, tasks: int = 1, seed: int = 0) -> list[dict[str, ItemScores]]:
    """Candidates of one ability each, every item of a difficulty of its own."""
    draw = np.random.default_rng(seed)
    ability, difficulty = draw.normal(0, 1, (count, tasks, 1)), draw.normal(0, 1, (tasks, SIZE))
    noise = draw.normal(0, 0.2, (count, tasks, SIZE))
    return [scores_of(*rows) for rows in 1 / (1 + np.exp(difficulty - ability + noise))]


class Model:
    """A candidate that notes which items it is put."""

    def __init__(self, scores: dict[str, ItemScores]) -> None:
        self.scores = scores
        self.put: list[Any] = []
        self.merged = 0

    def merge(self) -> Callable[[Any], dict[str, ItemScores]]:
        """Stand for Scorer.candidate."""
        self.merged += 1
        return self.score

    def score(self, places: Any) -> dict[str, ItemScores]:
        """Answer the items at some places, or all."""
        self.put.append(places)
        if places is None:
            return self.scores
        return {
            task: ItemScores(one.score[list(places[task])], one.correct[list(places[task])])
            for task, one in self.scores.items()
        }


def racer(
    known: Sequence[dict[str, ItemScores]],
    rivals: Sequence[dict[str, ItemScores]],
    settings: Racing | None = RACING,
    **options: Any,
) -> Racer:
    tasks = list(known[0])
    fitness = Fitness(dict.fromkeys(tasks, 1.0))
    named = [(f"baseline {number}", one) for number, one in enumerate(known)]
    made = Racer(settings, dict.fromkeys(tasks, SIZE), fitness, named, **options)
    for slot, one in enumerate(rivals):
        made.note(slot, f"rival {slot}", one, mean_scores(one))
    return made


def shifted(scores: dict[str, ItemScores], by: float) -> dict[str, ItemScores]:
    return scores_of(*(np.clip(one.score + by, 0, 1) for one in scores.values()))


def best(rows: Sequence[dict[str, ItemScores]]) -> dict[str, ItemScores]:
    return max(rows, key=lambda row: sum(one.score.mean() for one in row.values()))


def run(made: Racer, model: Model, horizon: int = 99, weights: str = "new") -> Raced:
    return made.known(horizon, weights) or made.race(1, horizon, weights).run(model.merge())


def test_the_best_so_far_answers_every_item_once() -> None:
    rows = family(24, tasks=2)
    model = Model(shifted(best(rows), 0.05))
    raced = run(racer(rows[:12], rows[12:]), model)
    assert [len(places["a"]) for places in model.put] == [8, 8, 16, 32]
    for task in "ab":
        assert sorted(place for places in model.put for place in places[task]) == list(range(SIZE))
        assert raced.scores[task].score.tolist() == model.scores[task].score.tolist()
        assert raced.means[task] == model.scores[task].score.mean()
        assert raced.accuracies[task] == model.scores[task].correct.mean()
    assert (raced.answered, raced.stopped) == (2 * SIZE, False)


def test_a_poor_one_stops_after_the_items_that_tell_most() -> None:
    rows = family(24)
    model = Model(shifted(best(rows), -0.3))
    raced = run(racer(rows[:12], rows[12:]), model)
    table = np.array([row["a"].score for row in rows])
    order = informative(table, 0)
    assert [places["a"] for places in model.put] == [order[:8].tolist()]
    assert (raced.answered, raced.stopped) == (8, True)
    seen = raced.scores["a"].score
    assert np.isfinite(seen).sum() == 8
    assert seen[order[:8]].tolist() == model.scores["a"].score[order[:8]].tolist()


def test_of_one_that_is_stopped_the_estimate_is_that_of_ridge_regression() -> None:
    rows = family(24)
    model = Model(shifted(best(rows), -0.3))
    raced = run(racer(rows[:12], rows[12:]), model)
    table = np.array([row["a"].score for row in rows])
    seen = informative(table, 0)[:8]
    unseen, new = np.setdiff1d(np.arange(SIZE), seen), model.scores["a"].score[seen]
    known = Ridge(table[:, seen], (table[:, unseen].mean(1) - table[:, seen].mean(1))[:, None])
    others = new.mean() + known.predict(new[None]).item()
    expected = (8 * new.mean() + 56 * others) / SIZE
    assert raced.means["a"] == pytest.approx(expected, abs=1e-12)
    assert abs(raced.means["a"] - model.scores["a"].score.mean()) < 0.05
    assert abs(raced.accuracies["a"] - model.scores["a"].correct.mean()) < 0.15


def test_estimates_are_better_than_means_of_what_was_seen() -> None:
    rows = family(80, tasks=3, seed=1)
    made = racer(rows[:20], rows[20:40])
    off, plain = [], []
    for row in rows[40:]:
        raced = run(made, Model(row))
        for task, one in row.items():
            if raced.stopped:
                off.append(raced.means[task] - one.score.mean())
                seen = np.isfinite(raced.scores[task].score)
                plain.append(one.score[seen].mean() - one.score.mean())
    assert len(off) > 60
    assert np.mean(np.square(off)) < 0.4 * np.mean(np.square(plain))


def test_an_estimate_that_is_exact_beside_the_spread_is_enough() -> None:
    rows = family(24)
    settings = Racing.model_validate({"first": 8, "sigmas": 9.0, "exact": 0.25})
    differing = racer(rows[:12], rows[12:], settings)
    model = Model(shifted(best(rows), 0.05))
    raced = run(differing, model)
    assert (raced.answered, raced.stopped) == (8, True)
    alike = racer(rows[:12], rows[12:], settings)
    for slot in range(30, 60):  # the last candidates hardly differ
        alike.note(slot, f"late {slot}", raced.scores, {"a": 0.5 + 1e-4 * slot})
    assert not run(alike, Model(shifted(best(rows), 0.05))).stopped


def test_now_and_then_a_candidate_answers_every_item() -> None:
    rows = family(24)
    made = racer(rows[:12], rows[12:])
    poor = shifted(best(rows), -0.3)
    stopped = [made.race(slot, 99, "new").run(Model(poor).merge()).stopped for slot in range(100)]
    assert stopped == [slot % 20 != 0 for slot in range(100)]


def test_what_lies_beyond_the_horizon_changes_nothing() -> None:
    rows = family(40, seed=2)
    few, many = racer(rows[:10], rows[10:20]), racer(rows[:10], rows[10:40])
    for row in family(5, seed=3):
        first, second = Model(row), Model(row)
        assert run(few, first, 10).means == run(many, second, 10).means
        assert first.put == second.put
    known = Model(rows[30])
    assert run(many, known, 10, "rival 20").answered > 0
    assert known.merged == 1


def test_weights_that_are_known_are_not_scored_again() -> None:
    rows = family(20)
    made = racer(rows[:10], rows[10:])
    for weights, row in (("baseline 3", rows[3]), ("rival 5", rows[15])):
        model = Model(row)
        raced = run(made, model, weights=weights)
        assert model.merged == 0
        assert (raced.answered, raced.stopped) == (0, False)
        assert raced.scores["a"].score.tolist() == row["a"].score.tolist()
        assert raced.scores["a"].correct.tolist() == row["a"].correct.tolist()


def test_what_was_stopped_is_no_rival_and_trains_nothing() -> None:
    rows = family(24)
    made = racer(rows[:12], rows[12:])
    stopped = run(made, Model(shifted(best(rows), -0.3)))
    before = run(made, Model(shifted(best(rows), -0.2)), 98)
    made.note(50, "stopped", stopped.scores, stopped.means)
    after = Model(shifted(best(rows), -0.2))
    assert run(made, after, 97).means == before.means


def test_weights_that_were_stopped_are_put_what_they_have_not_answered() -> None:
    rows = family(24)
    made, model = racer(rows[:12], rows[12:]), Model(shifted(best(rows), -0.3))
    stopped = run(made, model, 98)
    answered = np.flatnonzero(np.isfinite(stopped.scores["a"].score)).tolist()
    assert (stopped.stopped, stopped.answered, len(answered)) == (True, 8, 8)
    made.note(50, "stopped", stopped.scores, stopped.means)
    again = Model(model.scores)
    same = run(made, again, 98, "stopped")
    assert (same.answered, same.stopped, again.put) == (0, True, [])
    assert same.means == stopped.means
    unseen = Model(model.scores)
    assert run(made, unseen, 50, "stopped").answered == 8  # slot 50 is not below the horizon
    whole = made.race(20, 98, "stopped").run(Model(model.scores).merge())
    assert whole.scores["a"].score.tolist() == model.scores["a"].score.tolist()
    assert whole.answered == SIZE - 8
    exact = racer(rows[:12], rows[12:], RACING.model_copy(update={"exact": 0.0, "sigmas": 1e9}))
    exact.note(50, "stopped", stopped.scores, stopped.means)
    goes_on = Model(model.scores)
    raced = run(exact, goes_on, 98, "stopped")
    put = [place for places in goes_on.put for place in places["a"]]
    assert sorted(put + answered) == list(range(SIZE))
    assert (raced.answered, raced.stopped) == (SIZE - 8, False)
    assert np.isnan(stopped.scores["a"].score).sum() == SIZE - 8  # what is noted stays as it was


def test_with_several_objectives_only_the_dominated_are_stopped() -> None:
    rows = family(24, tasks=2)
    top = best(rows)
    made = racer(rows[:12], [*rows[12:], top], several=True)
    poor, good = top["a"].score - 0.3, np.clip(top["b"].score + 0.2, 0, 1)
    assert not run(made, Model(scores_of(np.clip(poor, 0, 1), good))).stopped
    assert run(made, Model(shifted(top, -0.3))).stopped
    one = racer(rows[:12], [*rows[12:], top])
    assert run(one, Model(scores_of(np.clip(poor, 0, 1), good))).stopped


@pytest.mark.parametrize(
    ("known", "rivals", "settings"),
    [
        (12, 12, None),  # by choice
        (12, 0, RACING),  # nothing to be held against
        (2, 3, RACING),  # too few to estimate from
        (12, 12, Racing.model_validate({"first": 33})),  # more than half
    ],
)
def test_everything_is_answered_where_nothing_could_be_told(
    known: int, rivals: int, settings: Racing | None
) -> None:
    rows = family(known + rivals)
    model = Model(shifted(best(rows), -0.3))
    raced = run(racer(rows[:known], rows[known:], settings), model)
    assert model.put == [None]
    assert (raced.answered, raced.stopped) == (SIZE, False)


def test_items_are_chosen_again_every_32_slots() -> None:
    rows = family(150, seed=4)
    made = racer(rows[:10], rows[10:])
    put = []
    for horizon in (10, 33, 63, 64, 95, 96):
        model = Model(shifted(best(rows), -0.4))
        run(made, model, horizon)
        put.append(model.put[0]["a"])
    assert put[1] == put[2]
    assert put[3] == put[4]
    assert put[0] != put[1] != put[3] != put[5]


def test_the_key_of_weights_knows_what_a_recipe_comes_to() -> None:
    tensors = tuple(f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(3))

    def key(method: str, weight: Any, **parameters: Any) -> str:
        data = {
            "merge_method": method,
            "base_model": "base",
            "models": [{"model": "one", "parameters": {"weight": weight, "density": 0.5}}],
            "parameters": parameters,
            "dtype": "float32",
        }
        return weights_key(parse_recipe(data, Place("a recipe", RecipeError)), tensors)

    gradient = [0.2, 0.4, 0.6]
    by_filter = [{"filter": f"layers.{layer}.", "value": gradient[layer]} for layer in range(3)]
    assert key("ties", gradient) == key("ties", by_filter)
    assert key("ties", gradient) != key("ties", [0.2, 0.4, 0.60000001])
    assert key("ties", gradient) != key("dare_ties", gradient)
    assert key("dare_ties", 0.5, seed=1) != key("dare_ties", 0.5, seed=2)
