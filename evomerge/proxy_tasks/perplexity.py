"""Perplexity: how probable the model finds texts.

The score of a text is the geometric mean of its tokens' probabilities, 1 / perplexity; correct is
the part of its tokens that greedy decoding would give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from evomerge.decoding import TokenSequence, teacher_force
from evomerge.errors import Place
from evomerge.language_model import LanguageModel
from evomerge.proxy_tasks import ItemScores, TaskSettings
from evomerge.proxy_tasks._data import Row, fill
from evomerge.proxy_tasks._tokens import encode_after
from evomerge.tokenizer_files import Tokenizer


class Settings(TaskSettings):
    """The settings of a perplexity task in a study file."""

    text: str = Field(description="template of the text whose tokens are scored")
    prompt: str = Field("", description="template of a context that is not scored")
    max_tokens: int = Field(
        1024, ge=1, le=10**6, description="tokens of a text beyond these are cut off"
    )


@dataclass(frozen=True)
class Example:
    """One rendered item."""

    prompt: str
    text: str


def render(row: Row, settings: Settings, place: Place) -> Example:
    """Fill the templates from a row; raises the place's error where a field is missing."""
    text = fill(settings.text, row, place / "text")
    if not text.strip():
        raise (place / "text").fail("a text that is not empty", text)
    return Example(fill(settings.prompt, row, place / "prompt"), text)


class Task:
    """Examples of a perplexity task as token ids.

    Raises DataError where `chat` finds no template.
    """

    def __init__(
        self, settings: Settings, examples: Sequence[Example], tokenizer: Tokenizer
    ) -> None:
        whole = encode_after(
            tokenizer,
            [example.prompt for example in examples],
            [example.text for example in examples],
            settings.chat,
        )
        cuts = [max(0, one.scored - settings.max_tokens) for one in whole]
        self._sequences = [
            TokenSequence(one.ids[: len(one.ids) - cut], one.scored - cut)
            for one, cut in zip(whole, cuts, strict=True)
        ]

    def scores(self, model: LanguageModel, items: Sequence[int], exact: bool) -> ItemScores:
        """Score items by the probability of their tokens; see proxy_tasks.Task."""
        forced = teacher_force(model, [self._sequences[item] for item in items])
        counts = np.diff(forced.starts)
        score = np.exp(forced.total(forced.log_probability) / counts)
        return ItemScores(score, forced.total(forced.margin > 0) / counts)
