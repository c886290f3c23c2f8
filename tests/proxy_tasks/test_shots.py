"""Few-shot examples and system prompts: what is drawn, how it reads, what it costs."""

import json
from pathlib import Path
from typing import Any

import pytest

from evomerge import proxy_tasks
from evomerge.errors import DataError, Place
from evomerge.evaluator import SPLITS, Split, TaskItems, draw_items
from evomerge.proxy_tasks import Shot, generation, multiple_choice, perplexity
from evomerge.study.file import check_study, load_study_file
from tests.architectures import byte_level_tokenizer

PLACE = Place("study.yaml", DataError, "tasks.sums")
ROWS = [{"q": f"{n} + 1 =", "a": f" {n + 1}", "o": [" 0", f" {n + 1}"]} for n in range(40)]
SIZES: dict[Split, int] = {"search": 5, "select": 6, "heldout": 7}
TEMPLATES: dict[str, dict[str, Any]] = {
    "generation": {"prompt": "{q}", "answer": "{a}"},
    "multiple_choice": {"prompt": "{q}", "options": "{o}", "answer": "1", "separator": ""},
    "perplexity": {"prompt": "{q}", "text": "{a}"},
}
TOKENIZER = byte_level_tokenizer("40 + 2 = 42\n\n1 + 1 = 2\n" * 9)


def drawn(
    shots: dict[str, Any] | None,
    kind: str = "generation",
    rows: Any = ROWS,
    shown: Any = None,
    **own: Any,
) -> TaskItems:
    module = proxy_tasks.get(kind, PLACE)
    settings = module.Settings(kind=kind, data="x", shots=shots, **TEMPLATES[kind], **own)
    return draw_items("sums", module, settings, rows, SIZES, 0, PLACE, shown)


@pytest.mark.parametrize("kind", TEMPLATES)
def test_the_same_examples_for_all_items_from_rows_in_no_split(kind: str) -> None:
    plain, task = drawn(None, kind), drawn({"count": 3}, kind)
    assert [one.prompt for one in task.examples] == [one.prompt for one in plain.examples]
    (shots,) = {one.shots for one in task.examples}
    assert len(set(shots)) == 3
    assert {shot.prompt for shot in shots}.isdisjoint(one.prompt for one in plain.examples)
    assert {(shot.prompt, shot.answer) for shot in shots} < {(row["q"], row["a"]) for row in ROWS}


def test_the_seed_draws_them() -> None:
    first = drawn({"count": 3}).examples[0].shots
    assert drawn({"count": 3}).examples[0].shots == first
    assert drawn({"count": 3, "seed": 1}).examples[0].shots != first


def test_examples_of_every_item_s_own() -> None:
    task = drawn({"count": 3, "per_item": True})
    assert len({one.shots for one in task.examples}) == len(task.examples)
    assert task == drawn({"count": 3, "per_item": True})
    every = [one for task in (task, drawn(None)) for one in task.examples]
    prompts = {one.prompt for one in every}
    assert all(shot.prompt not in prompts for one in task.examples for shot in one.shots)


def test_data_of_their_own() -> None:
    other = [{"q": f"{n} + 100 =", "a": f" {n + 100}"} for n in range(3)]
    items = [{"q": f" {one.prompt}\n", "a": "wrong"} for one in drawn(None).examples]
    task = drawn({"count": 3, "data": "y"}, shown=[*items, *other, *other])
    assert {shot.prompt for shot in task.examples[0].shots} == {row["q"] for row in other}
    with pytest.raises(DataError) as caught:
        drawn({"count": 4, "data": "y"}, shown=[*items, *other])
    assert str(caught.value) == (
        "expected at least 4 examples to show that are in no split, got 3 at tasks.sums.shots in "
        "study.yaml; show fewer, give them `data` of their own, or make the splits smaller"
    )


def test_too_few_rows_left() -> None:
    assert len(drawn({"count": 2}, rows=ROWS[:20]).examples[0].shots) == 2
    with pytest.raises(DataError, match=r"at least 3 examples to show .* got 2 at"):
        drawn({"count": 3}, rows=ROWS[:20])


def test_the_fingerprint_holds_them_but_not_where_they_lie() -> None:
    found = {
        drawn(None).fingerprint(),
        drawn({"count": 2}).fingerprint(),
        drawn({"count": 2, "seed": 1}).fingerprint(),
        drawn({"count": 2}, system="Be brief.").fingerprint(),
    }
    assert len(found) == 4
    here, there = ({"count": 2, "data": name} for name in ("here", "there"))
    assert drawn(here, shown=ROWS).fingerprint() == drawn(there, shown=ROWS).fingerprint()
    assert drawn(here, shown=ROWS[:30]).fingerprint() != drawn(here, shown=ROWS).fingerprint()


SHOTS = (Shot("1 + 1 =", " 2"), Shot("2 + 2 =", " 4"))


def texts(task: Any) -> list[str]:
    return [TOKENIZER.decode(one.ids) for one in task._sequences]


def test_how_they_read_without_a_chat() -> None:
    given: dict[str, Any] = {"data": "x", "shots": {"count": 2}, "system": "Add."}
    asked = generation.Settings(kind="generation", **TEMPLATES["generation"], **given)
    example = generation.Example("40 + 2 =", (" 42",), " 42", shots=SHOTS)
    head = "Add.\n\n1 + 1 = 2\n\n2 + 2 = 4\n\n40 + 2 ="
    found = generation.Task(asked, [example], TOKENIZER)
    assert texts(found) == [head + " 42\n\n"]  # what ends an example ends the answer
    assert TOKENIZER.decode(found._sequences[0].target) == " 42\n\n"

    asked = asked.model_copy(update={"delimiter": "\n", "stop": ["."]})
    assert texts(generation.Task(asked, [example], TOKENIZER)) == [
        head.replace("\n\n", "\n") + " 42."
    ]

    choice = multiple_choice.Settings(
        kind="multiple_choice", prompt="{q}", options="{o}", answer="{a}", **given
    )
    item = multiple_choice.Example("40 + 2 =", ("42", "43"), 0)
    assert multiple_choice.shown(item, choice) == Shot("40 + 2 =", " 42")
    item = multiple_choice.Example("40 + 2 =", ("42", "43"), 0, shots=SHOTS)
    assert texts(multiple_choice.Task(choice, [item], TOKENIZER)) == [head + " 42", head + " 43"]

    prose = perplexity.Settings(kind="perplexity", text="{t}", **given)
    text = perplexity.Example("40 + 2 =", " 42", shots=SHOTS)
    assert texts(perplexity.Task(prose, [text], TOKENIZER)) == [head + " 42"]


def test_how_they_read_in_a_chat() -> None:
    tokenizer = byte_level_tokenizer("40 + 2 = 42\n")
    tokenizer.chat_template = (
        "{% for one in messages %}[{{ one.role }}]{{ one.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    asked = multiple_choice.Settings(
        kind="multiple_choice", data="x", prompt="{q}", options="{o}", answer="{a}", chat=True,
        system="Add.", shots={"count": 2},
    )  # fmt: skip
    item = multiple_choice.Example("40 + 2 =", ("42", "43"), 0)
    assert multiple_choice.shown(item, asked) == Shot("40 + 2 =", "42")
    shots = (Shot("1 + 1 =", "2"), Shot("2 + 2 =", "4"))
    item = multiple_choice.Example("40 + 2 =", ("42", "43"), 0, shots=shots)
    found = multiple_choice.Task(asked, [item], tokenizer)
    assert [tokenizer.decode(one.ids) for one in found._sequences] == [
        "[system]Add.[user]1 + 1 =[assistant]2[user]2 + 2 =[assistant]4"
        f"[user]40 + 2 =[assistant]{option}"
        for option in (42, 43)
    ]
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(DataError) as caught:
        multiple_choice.Task(asked, [item], tokenizer)
    assert str(caught.value) == (
        "expected a chat template for messages of system and user and assistant, got "
        "TemplateError: no system role; leave `system` out"
    )


def test_in_a_study(family: Path) -> None:
    rows = [json.loads(line) for line in (family / "tasks/sort.jsonl").read_text().splitlines()]
    (family / "shown.csv").write_text(
        "question,answer\n" + "".join(f"{row['question']},{row['answer']}\n" for row in rows[:60])
    )
    study = family / "study.yaml"
    text = study.read_text()
    more = 'answer: "{answer}", shots: {count: 2, data: shown.csv, per_item: true}}'
    study.write_text(text.replace('answer: "{answer}"}', more, 1))
    checked = check_study(load_study_file(study))
    (task,) = [task for task in checked.tasks if task.examples[0].shots]
    assert {len(one.shots) for one in task.examples} == {2}
    assert len(set(task.where)) == sum(len(task.splits[split]) for split in SPLITS)
    recorded = checked.file.to_mapping()["tasks"]["sort"]["shots"]
    assert recorded == {"count": 2, "data": str(family / "shown.csv"), "per_item": True}
