"""Generation: margins by hand, exact match as a user would measure it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from evomerge.errors import DataError, EvomergeError, Place
from evomerge.evaluator import Split, draw_items
from evomerge.models import load_tokenizer
from evomerge.proxy_tasks import generation
from evomerge.proxy_tasks._data import read_rows
from evomerge.proxy_tasks.generation import Example, Settings, Task, render
from tests.architectures import byte_level_tokenizer, live, reference
from tests.proxy_tasks.scripted import Scripted, saying

PLACE = Place("study.yaml", DataError, "tasks.sums")
TOKENIZER = byte_level_tokenizer("the sum of 40 and 2 is 42.\nso it is 42, the answer is 42.\n" * 9)
EVERY = len(TOKENIZER)


def settings(**given: Any) -> Settings:
    return Settings(kind="generation", data="x", prompt="{q}", answer="{a}", **given)


def task(asked: Settings, *examples: Example) -> Task:
    return Task(asked, examples, TOKENIZER)


def ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER(text)["input_ids"])


def model_saying(prompt: str, text: str) -> Scripted:
    """A model that continues the prompt with the text and then ends; 0 is the end's number."""
    assert TOKENIZER.eos_token_id == 0
    return Scripted(saying(ids(prompt), ids(text)), EVERY)


def correct(asked: Settings, example: Example, said: str) -> float:
    model = model_saying(example.prompt, said)
    (found,) = task(asked, example).scores(model, [0], exact=True).correct
    return float(found)


def test_the_score_is_the_least_margin_s_sigmoid() -> None:
    example = Example("40 and 2 is", (" 42.",), " 42.")
    (sequence,) = task(settings(), example)._sequences
    assert sequence.ids == (*ids("40 and 2 is 42."), 0)
    leads = [2.0, -0.5, 1.25, 4.0][: sequence.scored]
    assert len(leads) == sequence.scored >= 2
    first = len(sequence.ids) - sequence.scored

    def rule(tokens: tuple[int, ...]) -> dict[int, float]:
        place = len(tokens) - first
        gold = sequence.ids[len(tokens)] if 0 <= place < len(leads) else 0
        return {gold: 1.0 + leads[place], EVERY - 1: 1.0} if gold != 0 or place >= 0 else {}

    for temperature in (0.5, 2.0):
        asked = settings(temperature=temperature)
        found = task(asked, example).scores(Scripted(rule, EVERY), [0], exact=False)
        assert found.score == pytest.approx([1 / (1 + np.exp(0.5 / temperature))], rel=1e-6)
        assert found.correct.tolist() == [0.0]


def test_items_are_scored_in_the_order_asked_for() -> None:
    examples = [Example("it is", (f" {n}",), f" {n}") for n in (40, 2, 42)]
    found = task(settings(), *examples).scores(
        model_saying("it is", " 2"), [2, 1, 0, 1], exact=True
    )
    assert found.correct.tolist() == [0, 1, 0, 1]
    assert (found.score > 0.5).tolist() == [False, True, False, True]


@pytest.mark.parametrize(
    ("said", "right"),
    [
        (" 42", 1), ("42", 1), ("  42 ", 1), (" 42\n", 1), (" 4 2", 0), (" 420", 0), (" 4", 0),
        ("", 0), (" 42.", 0), (" so it is 42", 0),
    ],
)  # fmt: skip
def test_exact_match_but_for_white_space(said: str, right: int) -> None:
    assert correct(settings(), Example("40 and 2 is", (" 42",), " 42"), said) == right


def test_another_spelling_of_the_answer_is_right() -> None:
    """The same text in other tokens than the target's: wrong by its margins, right to a user."""
    prompt, answer = "40 and 2 is", " the answer"
    letters = sum((ids(letter) for letter in answer), ())
    assert TOKENIZER.decode(letters) == answer
    assert len(letters) > len(ids(answer)) + 1
    example = Example(prompt, (answer,), answer)
    for most, right in ((len(letters) + 1, 1.0), (len(letters) - 1, 0.0)):
        model = Scripted(saying(ids(prompt), letters), EVERY)
        asked = task(settings(max_new_tokens=most), example)
        assert asked.scores(model, [0], exact=False).correct.tolist() == [0.0]
        assert asked.scores(model, [0], exact=True).correct.tolist() == [right]


def test_texts_that_stop() -> None:
    example = Example("40 and 2 is", (" 42",), " 42")
    asked = settings(stop=["\n", "."])
    assert correct(asked, example, " 42\nand more of it") == 1
    assert correct(asked, example, " 42. the sum") == 1
    assert correct(asked, example, " 42") == 1
    assert correct(asked, example, "\n 42") == 0
    assert correct(asked, example, " 42 the\n") == 0
    (sequence,) = task(asked, example)._sequences
    assert sequence.ids == ids("40 and 2 is 42\n")  # the first stop is the target's end


def test_extraction_from_a_worked_answer() -> None:
    worked = Example("q", ("4 and 2 make 6 #### 6",), "4 and 2 make 6 #### 6")
    asked = settings(extract=r"#### (\d+)")
    assert correct(asked, worked, " other words #### 6") == 1
    assert correct(asked, worked, " 4 and 2 make 6 #### 7") == 0


def test_extraction() -> None:
    example = Example("40 and 2 is", ("42",), " so it is 42, the answer is 42.")
    asked = settings(extract=r"answer is (\d+)")
    assert correct(asked, example, " so it is 42, the answer is 42.") == 1
    assert correct(asked, example, " the answer is 42") == 1
    assert correct(asked, example, " the answer is 2, the answer is 42") == 1  # the last counts
    assert correct(asked, example, " the answer is 42, the answer is 2") == 0
    assert correct(asked, example, " 42") == 0
    assert correct(settings(extract=r"\d+"), example, " so it is 4, 42.") == 1
    assert correct(settings(extract=r"4(\d)?"), example, " 4") == 0  # a group that took no part


@pytest.mark.parametrize(
    ("answer", "said", "right"),
    [
        ("1,234.0", " 1234", 1),
        ("1234", " it is $1,234.", 1),
        ("1234", " 1,234 or 5", 0),
        ("0.5", " 1/2", 1),
        ("-3", " 3", 0),
        ("3", " none", 0),
    ],
)
def test_numbers_are_compared_as_numbers(answer: str, said: str, right: int) -> None:
    example = Example("40 and 2 is", (answer,), answer)
    assert correct(settings(normalize="number", max_new_tokens=40), example, said) == right


@pytest.mark.parametrize(
    ("said", "right"),
    [
        (" the  SUM, of 40.\n", 1), ("The sum of 40", 1), ("the sum of", 0), ("the sum of 400", 0),
        ("thesum of 40", 0), ("so the sum of 40", 0), ("", 0),
    ],
)  # fmt: skip
def test_words_are_compared_without_case_and_punctuation(said: str, right: int) -> None:
    example = Example("40 and 2 is", ("the sum of 40!",), "the sum of 40!")
    assert correct(settings(normalize="text"), example, said) == right


def test_extraction_comes_before_what_is_compared() -> None:
    asked = settings(extract=r"answer is ([^.]+)\.", normalize="number")
    example = Example("40 and 2 is", ("42.0",), "42")
    assert correct(asked, example, " the answer is 42. It is not 2.") == 1
    assert correct(asked, example, " the answer is so. 42.") == 0


def test_any_of_several_answers_is_right() -> None:
    example = Example("40 and 2 is", (" 42", " the sum", "so"), " 42")
    for said, right in ((" 42", 1), (" the sum", 1), ("so", 1), (" the", 0), (" 42 so", 0)):
        assert correct(settings(), example, said) == right
    (sequence,) = task(settings(), example)._sequences
    assert sequence.ids == (*ids("40 and 2 is 42"), 0)  # margins are on the first
    long = " so it is 42, the answer is 42" * 2
    assert correct(settings(), Example("40 and 2 is", (" 42", long), " 42"), long) == 1


@pytest.mark.parametrize("normalize", ["none", "text", "number"])
def test_giving_up_early_changes_no_answer(normalize: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against generating every answer in full, for texts that begin like an answer, or do not."""
    example = Example("it is", ("the answer is 42", "42, 2"), "the answer is 42")
    said = [
        "the answer is 42", "The Answer, is: 42!", "the answer is 420", "the answers", "42, 2",
        "42. 2", "42", "2", " the\n answer is 42 ", "\xe9t\xe9 42", "", ".",
    ]  # fmt: skip
    asked = settings(normalize=normalize, max_new_tokens=40)
    early = [correct(asked, example, text) for text in said]
    monkeypatch.setattr(generation.Task, "_may_match", lambda self, text, answers: True)
    assert [correct(asked, example, text) for text in said] == early
    assert 0 < sum(early) < len(said)


def test_probabilities_by_hand() -> None:
    """Of the target; and of the tokens that greedy decoding gives until it leaves the target."""
    right, wrong = ids(" 42.")[0], ids(" the")[0]
    example = Example("40 and 2 is", (" 42.",), " 42.")
    (sequence,) = task(settings(), example)._sequences
    first = len(sequence.ids) - sequence.scored

    def rule(tokens: tuple[int, ...]) -> dict[int, float]:
        if len(tokens) == first + 1:  # after a right token the wrong one leads
            return {sequence.ids[first + 1]: 1.0, wrong: 2.0}
        return {sequence.ids[len(tokens)]: 3.0} if first <= len(tokens) < len(sequence.ids) else {}

    each = np.full((sequence.scored, EVERY), 0.0)
    for place in range(sequence.scored):
        for token, logit in rule(sequence.ids[: first + place]).items():
            each[place, token] = logit
    each = np.exp(each) / np.exp(each).sum(axis=1, keepdims=True)
    gold = np.prod([each[place, token] for place, token in enumerate(sequence.target)])
    asked = task(settings(), example)
    found = asked.scores(Scripted(rule, EVERY), [0], exact=True).probabilities
    assert found is not None
    assert found.gold == pytest.approx([gold], rel=1e-5)
    assert found.confidence == pytest.approx([each[0, right] * each[1, wrong]], rel=1e-5)
    sure = asked.scores(model_saying("40 and 2 is", " 42."), [0], exact=True).probabilities
    assert sure is not None
    assert sure.confidence == pytest.approx(sure.gold)
    assert asked.scores(Scripted(rule, EVERY), [0], exact=False).probabilities is None


def test_the_target_is_what_margins_are_taken_on() -> None:
    worked = " so it is 42, the answer is 42."
    example = Example("40 and 2 is", ("42",), worked)
    asked = task(settings(extract=r"answer is (\d+)", target="{w}"), example)
    assert asked._sequences[0].ids == (*ids("40 and 2 is" + worked), 0)
    found = asked.scores(model_saying("40 and 2 is", worked), [0], exact=True)
    assert found.correct.tolist() == [1.0]
    assert found.score == pytest.approx([1 / (1 + np.exp(-3.0 / 0.5))])
    short = asked.scores(model_saying("40 and 2 is", " the answer is 42."), [0], exact=True)
    assert short.correct.tolist() == [1.0]
    assert short.score[0] < 0.01


def test_what_the_forced_pass_settles_is_not_generated() -> None:
    examples = [Example("it is", (f" {n}",), f" {n}") for n in (40, 2, 42)]
    model = model_saying("it is", " 2")
    assert task(settings(), *examples).scores(model, [0, 1, 2], exact=True).correct.sum() == 1
    assert model.steps == 0
    open_ended = task(settings(extract=r"\d+"), *examples)
    assert open_ended.scores(model, [0, 1, 2], exact=True).correct.sum() == 1
    assert model.steps > 0


@pytest.mark.parametrize("name", ["sort", "reverse", "base"])
def test_stopping_early_changes_nothing(
    name: str, trained_family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real models: early stopping and the forced pass against generating every answer in full."""
    folder = trained_family / "base" if name == "base" else trained_family / "experts" / name
    tokenizer, plain = load_tokenizer(folder), reference(folder)
    rows = read_rows("tasks/sort.jsonl", trained_family, PLACE)[:200]
    asked = Settings(kind="generation", data="x", prompt="{question}", answer="{answer}")
    examples = [render(row, asked, PLACE) for row in rows]
    items = Task(asked, examples, tokenizer)
    found = items.scores(live(folder), range(200), exact=True)
    with torch.inference_mode():
        prompts = torch.tensor([tokenizer(one.prompt)["input_ids"] for one in examples])
        whole = plain.generate(
            prompts, attention_mask=torch.ones_like(prompts), do_sample=False, max_new_tokens=11
        )
    texts = tokenizer.batch_decode(whole[:, prompts.shape[1] :])
    said = [text.split("<eos>")[0].strip() for text in texts]
    expected = [float(text == one.answers[0]) for text, one in zip(said, examples, strict=True)]
    assert found.correct.tolist() == expected
    assert 0 < sum(expected) < 200 or name == "reverse"
    monkeypatch.setattr(generation.Task, "_may_match", lambda self, text, answer: True)
    full = items.scores(live(folder), range(200), exact=True)
    assert full.correct.tolist() == expected
    assert full.score.tobytes() == found.score.tobytes()


def test_chat_templates_wrap_the_prompt_alone() -> None:
    tokenizer = byte_level_tokenizer("the sum of 40 and 2 is 42.\n" * 9)
    tokenizer.chat_template = (
        "<{{ messages[0].content }}>{% if add_generation_prompt %}:{% endif %}"
    )
    found = Task(settings(chat=True), [Example("40 and 2", ("42",), "42")], tokenizer)
    head, tail = tokenizer("<40 and 2>:")["input_ids"], tokenizer("42")["input_ids"]
    assert list(found._sequences[0].ids) == [*head, *tail, 0]
    with pytest.raises(DataError, match="expected a chat template"):
        task(settings(chat=True), Example("40 and 2", ("42",), "42"))


def test_a_chat_s_own_end_of_a_turn() -> None:
    tokenizer = byte_level_tokenizer("the sum of 40 and 2 is 42.\n" * 9)
    tokenizer.chat_template = "[{{ messages[0].content }}]"
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    turn = tokenizer.convert_tokens_to_ids("<turn>")
    asked = settings(chat=True, stop=["<turn>"])
    found = Task(asked, [Example("40 and 2", ("42",), "42")], tokenizer)
    (sequence,) = found._sequences
    assert sequence.target[-1] == turn
    prompt = tuple(tokenizer("[40 and 2]")["input_ids"])
    model = Scripted(saying(prompt, (*tokenizer("42")["input_ids"], turn)), len(tokenizer))
    assert found.scores(model, [0], exact=True).correct.tolist() == [1.0]


def chatting() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose chat template ends turns with a token of its own."""
    found = byte_level_tokenizer("the sum of 40 and 2 is 42.\n" * 9)
    found.chat_template = (
        "{% for one in messages %}{{ one.role }}:{{ one.content }}<turn>\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    found.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    return found


@pytest.mark.parametrize("stop", [[], ["."]])
def test_a_turn_of_the_template_ends_the_answer(stop: list[str]) -> None:
    tokenizer = chatting()
    example = Example("40 and 2", ("42",), "42")
    found = Task(settings(chat=True, stop=stop), [example], tokenizer)
    prompt = tuple(tokenizer("user:40 and 2<turn>\nassistant:")["input_ids"])
    answer, turn = tuple(tokenizer("42")["input_ids"]), tokenizer("<turn>")["input_ids"][0]
    end = tokenizer(".")["input_ids"] if stop else [turn]
    assert found._sequences[0].ids == (*prompt, *answer, *end)
    for said, right in (((turn, *answer), 0), ((*answer, turn, *answer), 1), ((*answer, 0), 1)):
        model = Scripted(saying(prompt, said), len(tokenizer))
        assert found.scores(model, [0], exact=True).correct.tolist() == [right]


def test_an_answer_that_holds_the_end_of_a_text_or_turn() -> None:
    asked, place = settings(), Place("study.yaml (line 3 of d.jsonl)", DataError, "tasks.sums")
    example = render({"q": "40 and 2 is", "a": "4<end>2"}, asked, place)
    with pytest.raises(DataError, match=r"no '<end>' in it, .*'4<end>2' at .*answer in .*\(line 3"):
        task(asked, example)
    with pytest.raises(DataError, match="no '<turn>' in it"):
        Task(settings(chat=True), [Example("40 and 2", ("42",), "42<turn>.")], chatting())


def test_a_target_that_max_new_tokens_cuts_off() -> None:
    place = Place("study.yaml (line 3 of d.jsonl)", DataError, "tasks.sums")
    long, short = (
        render({"q": "it is", "a": answer}, settings(), place) for answer in ("the sum of 40", "42")
    )
    needed = len(ids("the sum of 40"))
    task(settings(max_new_tokens=needed), long, short)  # the end may be cut off
    words = rf"at least {needed + 1} new tokens.*got {needed - 1} at .*max_new_tokens .*\(line 3"
    with pytest.raises(DataError, match=words):
        task(settings(max_new_tokens=needed - 1), long, long)
    task(settings(max_new_tokens=needed - 1), short, long)  # one that can be right


@pytest.mark.parametrize(
    ("asked", "target"),
    [
        ({"extract": "#### (.*)"}, "42"),
        ({"extract": r"#### (\d+)"}, "2 and #### 4"),
        ({"normalize": "number"}, "42 is 40 and 2"),
        ({}, "so 42"),
    ],
)
def test_a_target_that_would_be_wrong(asked: dict[str, Any], target: str) -> None:
    row = {"q": "40 and 2 is", "a": "42", "t": target}
    with pytest.raises(DataError, match=r"counts as right .* at tasks\.sums\.target in"):
        render(row, settings(target="{t}", **asked), PLACE)


def test_answers_that_alone_would_be_wrong_are_noted() -> None:
    asked = settings(extract="#### (.*)")
    rows = [{"q": f"{number} and 2 is", "a": answer}
            for number, answer in enumerate(("42", "so #### 3", "4"))]  # fmt: skip
    sizes: dict[Split, int] = {"search": 1, "select": 1, "heldout": 1}
    (note,) = draw_items("sums", generation, asked, rows, sizes, 0, PLACE).notes
    assert note.startswith("of 2 items of sums the answer alone would not count as right, such as ")
    assert draw_items("sums", generation, settings(), rows, sizes, 0, PLACE).notes == ()


def test_several_answers_in_the_data() -> None:
    two = Example("1+1=", ("2", "two"), "2")
    assert render({"q": "1+1=", "a": ["2", "two", "2"]}, settings(), PLACE) == two
    squad = {"text": ["2", "two"], "answer_start": [0, 3]}
    assert render({"q": "1+1=", "a": squad}, settings(), PLACE) == two
    assert render({"q": "1+1=", "a": [2]}, settings(), PLACE) == Example("1+1=", ("2",), "2")


@pytest.mark.parametrize(
    ("asked", "answer", "words"),
    [
        ({"normalize": "number"}, "two", "an answer with a number to compare, got 'two' at .*answ"),
        (
            {"normalize": "text"},
            "?!",
            "an answer with a text to compare, got '\\?!' at tasks.sums.a",
        ),
        ({"stop": ["."]}, "4.5", r"no '\.' in it, which ends answers, got '4.5' at .*answer in st"),
        ({"stop": ["."], "target": "a. {a}"}, "4", r"no '\.' in it, .* got 'a. 4' at .*target in"),
        ({"shots": {"count": 1}}, "4\n\n5", r"no '\\n\\n' in it, which ends answers, got '4\\n"),
    ],
)
def test_answers_that_nothing_generated_could_be(
    asked: dict[str, Any], answer: str, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        render({"q": "1+1=", "a": answer}, settings(**asked), PLACE)


def test_answers_that_can_be_generated() -> None:
    assert render({"q": "", "a": "0"}, settings(normalize="number"), PLACE).answers == ("0",)
    assert render({"q": "", "a": "4.\n"}, settings(stop=["\n"]), PLACE).target == "4.\n"
    asked = settings(stop=["\n"], extract=r"#### (\d+)", target="#### 4")
    assert render({"q": "", "a": "2 + 2\n#### 4"}, asked, PLACE).target == "#### 4"


def test_render() -> None:
    asked = settings(target="so {a}", extract=r"\d+")
    assert render({"q": "1+1=", "a": 2}, asked, PLACE) == Example("1+1=", ("2",), "so 2")
    assert render({"q": "1+1=", "a": 2}, settings(), PLACE) == Example("1+1=", ("2",), "2")
    for row, words in (
        ({"q": "1+1="}, "at tasks.sums.answer in study.yaml"),
        ({"a": "2"}, "at tasks.sums.prompt in study.yaml"),
        ({"q": "1+1=", "a": " "}, "an answer that is not empty, got ' ' at tasks.sums.answer"),
        ({"q": "1+1=", "a": []}, r"a list of at least one answer in the field a, got \[\] at"),
        ({"q": "1+1=", "a": ["2", None]}, "a list of at least one answer in the field a, got"),
        ({"q": "1+1=", "a": ["2", ""]}, "an answer that is not empty, got '' at"),
        ({"q": "1+1=", "a": ["2", {"n": 2}]}, r"in the field a, got \{'n': 2\} at .*answer"),
        ({"q": "1+1=", "a": ["2", ["3"]]}, r"in the field a, got \['3'\] at tasks.sums.answer"),
        ({"q": "1+1=", "a": [2.5, float("nan")]}, "in the field a, got nan at tasks.sums.answer"),
        ({"q": "1+1=", "a": {"n": 2}}, r"in the field a, got \{'n': 2\} at tasks.sums.answer"),
        ({"q": "1+1=", "a": None}, "a value in the field a, got null at tasks.sums.answer"),
    ):
        with pytest.raises(EvomergeError, match=words):
            render(row, settings(), PLACE)
