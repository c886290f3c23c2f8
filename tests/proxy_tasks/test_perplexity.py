"""Perplexity by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.errors import DataError, Place
from evomerge.models import load_tokenizer
from evomerge.proxy_tasks.perplexity import Example, Settings, Task, render
from tests.architectures import byte_level_tokenizer, live, reference
from tests.proxy_tasks.scripted import Scripted

PLACE = Place("study.yaml", DataError, "tasks.prose")


def settings(**given: Any) -> Settings:
    return Settings(kind="perplexity", data="x", text="{t}", **given)


def test_scores_by_hand(trained_family: Path) -> None:
    folder = trained_family / "base"
    tokenizer, plain = load_tokenizer(folder), reference(folder)
    examples = [
        Example("", "[sort]gnlozw=glnowz"),
        Example("[sort]gnlozw=", "glnowz"),
        Example("", "a"),
        Example("[reverse]", "abcdef=fedcba"),
    ]
    found = Task(settings(), examples, tokenizer).scores(live(folder), [3, 1, 0, 2], exact=True)
    for row, item in enumerate((3, 1, 0, 2)):
        example = examples[item]
        head = tokenizer(example.prompt)["input_ids"] or [tokenizer.eos_token_id]
        ids = [*head, *tokenizer(example.text)["input_ids"]]
        with torch.inference_mode():
            logits = plain(torch.tensor([ids])).logits[0]
        probability = torch.softmax(logits.double(), -1)
        scored = range(len(head), len(ids))
        each = [float(probability[place - 1, ids[place]]) for place in scored]
        size = len(example.text)  # every character is a byte
        assert found.score[row] == pytest.approx(np.prod(each) ** (1 / size), rel=1e-5)
        right = [int(logits[place - 1].argmax()) == ids[place] for place in scored]
        assert found.correct[row] == pytest.approx(np.mean(right))
    assert 0 < found.correct[1] < 1


def test_long_texts_are_cut(trained_family: Path) -> None:
    tokenizer, model = load_tokenizer(trained_family / "base"), live(trained_family / "base")
    text = "[sort]gnlozw=glnowz"
    whole = Task(settings(max_tokens=14), [Example("", text)], tokenizer)
    cut = Task(settings(max_tokens=5), [Example("", text)], tokenizer)
    short = Task(settings(), [Example("", "[sort]gnlo")], tokenizer)
    one, two, three = (item.scores(model, [0], exact=False) for item in (whole, cut, short))
    assert two.score == pytest.approx(three.score, rel=1e-5)
    assert one.score != pytest.approx(two.score, rel=1e-2)


def test_the_score_does_not_depend_on_how_a_text_is_cut() -> None:
    """Every byte has the probability 1/2, in tokens of one byte or of several."""
    tokenizer = byte_level_tokenizer("so it is, so it is.\n" * 9)
    text = "so it is, \N{LATIN SMALL LETTER E WITH ACUTE}"
    size = {token: len(tokenizer.decode([token]).encode()) for token in range(len(tokenizer))}
    found = Task(settings(), [Example("so", text)], tokenizer)
    (sequence,) = found._sequences
    lengths = [size[token] for token in sequence.target[:-2]] + [1, 1]  # é is two
    assert sum(lengths) == len(text.encode())
    assert max(lengths) > 1
    first = len(sequence.ids) - sequence.scored

    def rule(tokens: tuple[int, ...]) -> dict[int, float]:
        gold = 0.5 ** lengths[len(tokens) - first]
        rest = np.log((1 - gold) / (len(tokenizer) - 1))
        logits = dict.fromkeys(range(len(tokenizer)), float(rest))
        return logits | {sequence.ids[len(tokens)]: float(np.log(gold))}

    scores = found.scores(Scripted(rule, len(tokenizer)), [0], exact=False)
    assert scores.score == pytest.approx([0.5], rel=1e-5)
    assert -np.log2(scores.score) == pytest.approx([1.0], rel=1e-5)  # bits per byte


def test_too_long_for_the_model(trained_family: Path) -> None:
    tokenizer, model = load_tokenizer(trained_family / "base"), live(trained_family / "base")
    long = Task(settings(), [Example("", "a" * 64)], tokenizer)
    with pytest.raises(
        DataError, match="at most 64 tokens, the context of the models, got one of 65"
    ):
        long.scores(model, [0], exact=False)


def test_render() -> None:
    assert render({"t": "once"}, settings(), PLACE) == Example("", "once")
    assert render({"t": "once", "p": 1}, settings(prompt="{p}:"), PLACE) == Example("1:", "once")
    with pytest.raises(
        DataError, match=r"a text that is not empty, got ' ' at tasks\.prose\.text in"
    ):
        render({"t": " "}, settings(), PLACE)
    with pytest.raises(DataError, match=r"got a row without it at tasks\.prose\.prompt in study"):
        render({"t": "once"}, settings(prompt="{p}:"), PLACE)
