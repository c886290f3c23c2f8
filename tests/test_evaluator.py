"""Items and splits: disjoint, reproducible, and the scores of a split."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.errors import DataError, Place
from evomerge.evaluator import SPLITS, Evaluator, Split, TaskItems, draw_items
from evomerge.language_model import Past
from evomerge.models import load_tokenizer
from evomerge.proxy_tasks import generation, multiple_choice, perplexity
from evomerge.study.file import check_study, load_study_file
from tests.architectures import live
from tests.test_decoding import Spy

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


def test_rows_that_ask_the_same_are_one_item_and_noted() -> None:
    """In other letters or spaces, or with another answer, they must not stand in two splits."""
    again = [{"q": f"  {number} +  1 =", "a": 0} for number in range(30)]
    task = drawn([*ROWS[:90], *again])
    assert task.examples == drawn(ROWS[:90]).examples
    assert task.notes == (
        "30 rows of sums ask what another asks, with another answer or spelt otherwise "
        "(row 91 of the data as row 1 of the data); of each question the first row counts",
    )
    assert drawn(ROWS[:90]).notes == ()


def test_no_task_asks_what_another_has_in_another_split() -> None:
    taken: dict[str, Split] = {}
    found = [
        draw_items(name, generation, SETTINGS, rows, SIZES, 0, PLACE, None, taken)
        for name, rows in (("sums", ROWS[:100]), ("more", ROWS[20:]), ("all", ROWS))
    ]
    where: dict[str, set[Split]] = {}
    for task in found:
        assert [len(task.splits[split]) for split in SPLITS] == [20, 30, 40]
        assert len(set(task.examples)) == 90
        for split in SPLITS:
            for prompt in of(task, split):
                where.setdefault(prompt, set()).add(split)
    assert {len(splits) for splits in where.values()} == {1}
    assert set(of(found[1], "search")) != set(of(found[0], "search"))
    assert found[0].examples == drawn(ROWS[:100]).examples  # the first task has the choice


def test_the_same_question_is_known_with_options_and_without() -> None:
    rows = [{**row, "o": ["yes", "no"], "right": 0} for row in ROWS[:90]]
    settings = multiple_choice.Settings(
        kind="multiple_choice", data="x", prompt="{q}", options="{o}", answer="{right}"
    )
    taken: dict[str, Split] = {}
    first = draw_items("sums", generation, SETTINGS, rows, SIZES, 0, PLACE, None, taken)
    second = draw_items("choice", multiple_choice, settings, rows, SIZES, 0, PLACE, None, taken)
    for split in SPLITS:
        assert set(of(first, split)) == set(of(second, split))


def test_the_same_row_in_other_words_stands_in_the_same_split() -> None:
    """By its row, whatever kinds of task ask for it and with what templates."""
    again = SETTINGS.model_copy(update={"prompt": "Question: {q}\nAnswer: "})
    text = perplexity.Settings(kind="perplexity", data="x", text="{q} is {a}.")
    settings = [("sums", generation, SETTINGS), ("again", generation, again),
                ("texts", perplexity, text)]  # fmt: skip
    taken: dict[str, Split] = {}
    drawn = [
        draw_items(name, kind, one, ROWS[:120], SIZES, 0, PLACE, None, taken)
        for name, kind, one in settings
    ]
    splits: dict[str, set[Split]] = {}
    for task in drawn:
        for split in SPLITS:
            for item in task.splits[split]:
                splits.setdefault(task.where[item], set()).add(split)
    assert {len(one) for one in splits.values()} == {1}


def test_a_question_that_all_items_ask_is_told_from_others_by_its_options() -> None:
    rows = [{"q": "Which is true?", "o": [f"{one}", "no"], "a": 0} for one in range(90)]
    settings = multiple_choice.Settings(
        kind="multiple_choice", data="x", prompt="{q}", options="{o}", answer="{a}"
    )
    task = draw_items("choice", multiple_choice, settings, rows, SIZES, 0, PLACE)
    assert len({example.options for example in task.examples}) == 90


def test_too_few_items_beside_another_task_s() -> None:
    taken: dict[str, Split] = {}
    draw_items("sums", generation, SETTINGS, ROWS[:90], SIZES, 0, PLACE, None, taken)
    sizes: dict[Split, int] = {"search": 40, "select": 30, "heldout": 20}
    with pytest.raises(DataError) as caught:
        draw_items("more", generation, SETTINGS, ROWS[:90], sizes, 0, PLACE, None, taken)
    assert str(caught.value) == (
        "expected at least 90 different items (40 search + 30 select + 20 heldout), got 90, too "
        "many of which another task asks in another split at tasks.sums.data in study.yaml; give "
        "more data or ask for smaller splits"
    )


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
            assert found[task.name].score == pytest.approx(expected.score, abs=1e-5)
            assert np.array_equal(found[task.name].correct, expected.correct)
    first = evaluator.scores(model, "search", exact=False)
    again = evaluator.scores(model, "search", exact=False)
    for name, scores in first.items():
        assert scores.score.tobytes() == again[name].score.tobytes()
    others = evaluator.scores(live(family / "experts" / "caesar"), "search", exact=False)
    assert not np.array_equal(others["sort"].score, first["sort"].score)


def test_what_all_tasks_ask_is_run_together(family: Path) -> None:
    checked = check_study(load_study_file(family / "study.yaml"))
    evaluator = Evaluator(checked.tasks, load_tokenizer(family / "base"))
    model = Spy(live(family / "experts" / "sort"))
    rows: list[int] = []
    logits = model.logits

    def counted(ids: torch.Tensor, keep: int, past: Past | None = None) -> torch.Tensor:
        rows.append(len(ids))
        return logits(ids, keep, past)

    model.logits = counted  # type: ignore[method-assign]
    only = {"sort": [3, 1], "reverse": [], "caesar": [0, 5, 2]}
    few = evaluator.scores(model, "search", exact=False, only=only)
    assert rows == [5]
    whole = evaluator.scores(model, "search", exact=False)
    assert len(rows) < 1 + 3
    assert few.keys() == {"sort", "caesar"}
    for name, places in ((name, only[name]) for name in few):
        assert few[name].score == pytest.approx(whole[name].score[places], abs=1e-5)
        assert few[name].correct.tolist() == whole[name].correct[places].tolist()
