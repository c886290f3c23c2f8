"""Items and splits: disjoint, reproducible, and the scores of a split."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.errors import DataError, Place
from evomerge.evaluator import SPLITS, Evaluator, Split, TaskItems, draw_items
from evomerge.models import load_tokenizer
from evomerge.proxy_tasks import generation
from evomerge.study.file import check_study, load_study_file
from tests.architectures import live

PLACE = Place("study.yaml", DataError, "tasks.sums")
SETTINGS = generation.Settings(kind="generation", data="x", prompt="{q}", answer="{a}")
SIZES: dict[Split, int] = {"search": 20, "select": 30, "heldout": 40}
ROWS = [{"q": f"{number} + 1 =", "a": number + 1} for number in range(120)]


def drawn(
    rows: list[dict[str, Any]] = ROWS,
    sizes: Mapping[Split, int] = SIZES,
    seed: int = 0,
    name: str = "sums",
) -> TaskItems:
    return draw_items(name, generation, SETTINGS, rows, sizes, seed, PLACE)


def of(task: TaskItems, split: Split) -> list[str]:
    return [task.examples[item].prompt for item in task.splits[split]]


def test_splits_are_disjoint_and_of_the_sizes_asked_for() -> None:
    task = drawn()
    found = [of(task, split) for split in SPLITS]
    assert list(map(len, found)) == [20, 30, 40]
    assert len({prompt for prompts in found for prompt in prompts}) == 90
    assert len(task.examples) == 90


def test_the_seed_and_the_task_s_name_alone_draw_them() -> None:
    assert drawn().examples == drawn().examples
    assert drawn().fingerprint() == drawn().fingerprint()
    np.random.seed(7)  # others' stream
    assert drawn().examples == drawn().examples
    others = [drawn(seed=1), drawn(name="other")]
    for other in others:
        assert set(of(other, "search")) != set(of(drawn(), "search"))
        assert other.fingerprint() != drawn().fingerprint()


def test_the_draw_is_uniform() -> None:
    counts = dict.fromkeys([row["q"] for row in ROWS], 0)
    for seed in range(300):
        for prompt in of(drawn(seed=seed), "search"):
            counts[prompt] += 1
    # 300 draws of 20 of 120: binomial(300, 1/6), sd 6.5
    assert min(counts.values()) > 50 - 5 * 6.5
    assert max(counts.values()) < 50 + 5 * 6.5


def test_rows_that_render_alike_count_once() -> None:
    rows = [{**row, "note": copy} for row in ROWS[:90] for copy in range(3)]
    task = drawn(rows)
    assert len(set(task.examples)) == 90
    assert task.examples == drawn(ROWS[:90]).examples
    with pytest.raises(DataError, match="at least 90 different items"):
        drawn([{**row, "note": copy} for row in ROWS[:89] for copy in range(3)])


def test_too_few_items() -> None:
    with pytest.raises(DataError) as caught:
        drawn(ROWS[:89])
    assert str(caught.value) == (
        "expected at least 90 different items (20 search + 30 select + 40 heldout), got 89 at "
        "tasks.sums.data in study.yaml; give more data or ask for smaller splits"
    )


def test_a_row_that_does_not_fit_is_named() -> None:
    rows = [*ROWS[:5], {"q": "6 + 1 =", "answer": 7}]
    with pytest.raises(DataError) as caught:
        drawn(rows)
    assert str(caught.value) == (
        "expected a field of the data in {a}, got a row without it at "
        "tasks.sums.answer in study.yaml (row 6 of the data); its fields: q, answer"
    )


def test_the_fingerprint_holds_items_and_settings_but_not_where_they_lie() -> None:
    task = drawn()
    elsewhere = SETTINGS.model_copy(update={"data": "other.jsonl"})
    softer = SETTINGS.model_copy(update={"temperature": 0.7})

    def fingerprint(settings: generation.Settings, rows: list[dict[str, Any]] = ROWS) -> str:
        return draw_items("sums", generation, settings, rows, SIZES, 0, PLACE).fingerprint()

    assert fingerprint(elsewhere) == task.fingerprint()
    assert fingerprint(softer) != task.fingerprint()
    changed = [{**row, "a": row["a"] + 1} for row in ROWS]
    assert fingerprint(SETTINGS, changed) != task.fingerprint()


def test_the_search_s_seed_does_not_move_the_items(family: Path) -> None:
    study = family / "study.yaml"
    before = check_study(load_study_file(study)).tasks
    study.write_text(study.read_text().replace("seed: 0", "seed: 5"))
    after = check_study(load_study_file(study))
    assert after.file.search.seed == 5
    assert [task.examples for task in after.tasks] == [task.examples for task in before]


def test_scores_of_the_splits(family: Path) -> None:
    checked = check_study(load_study_file(family / "study.yaml"))
    evaluator = Evaluator(checked.tasks, load_tokenizer(family / "base"))
    model = live(family / "experts" / "sort")
    for split in SPLITS:
        found = evaluator.scores(model, split, exact=False)
        assert list(found) == ["sort", "reverse", "caesar"]
        for task in checked.tasks:
            alone = task.kind.Task(task.settings, task.examples, load_tokenizer(family / "base"))
            expected = alone.scores(model, task.splits[split], exact=False)
            assert found[task.name].score.shape == (16,)
            assert found[task.name].score.dtype == np.float64
            assert np.array_equal(found[task.name].score, expected.score.astype(np.float32))
            assert np.array_equal(found[task.name].correct, expected.correct)
    first = evaluator.scores(model, "search", exact=False)
    again = evaluator.scores(model, "search", exact=False)
    for name, scores in first.items():
        assert scores.score.tobytes() == again[name].score.tobytes()
    others = evaluator.scores(live(family / "experts" / "caesar"), "search", exact=False)
    assert not np.array_equal(others["sort"].score, first["sort"].score)
