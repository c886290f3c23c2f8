"""Perplexity: how probable the model finds texts.

The score of a text is the geometric mean of its tokens' probabilities, 1 / perplexity; correct is the
part of its tokens that greedy decoding would give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field
from transformers import PreTrainedTokenizerBase

from evomerge.decoding import TokenSequence, teacher_force
from evomerge.errors import Place
from evomerge.models import LanguageModel
from evomerge.proxy_tasks import ItemScores, TaskSettings
from evomerge.proxy_tasks._data import Row, encode_answer, encode_prompt, fill


class Settings(TaskSettings):
    """The settings of a perplexity task in a study file."""

    text: str = Field(description="template of the text whose tokens are scored")
    prompt: str = Field("", description="template of a context that is not scored")
    max_tokens: int = Field(1024, ge=2, description="tokens of a text beyond these are cut off")


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
    """Examples of a perplexity task as token ids."""

    def __init__(
        self, settings: Settings, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self._sequences: list[TokenSequence] = []
        for example in examples:
            scored = encode_answer(tokenizer, example.text)[: settings.max_tokens]
            if example.prompt or tokenizer.bos_token_id is not None:
                context = encode_prompt(tokenizer, example.prompt, settings.chat)
            else:
                context, scored = scored[:1], scored[1:] or (tokenizer.eos_token_id,)
            self._sequences.append(TokenSequence(context + scored, len(scored)))

    def scores(self, model: LanguageModel, items: Sequence[int], exact: bool) -> ItemScores:
        """Score items by the probability of their tokens; see proxy_tasks.Task."""
        forced = teacher_force(model, [self._sequences[item] for item in items])
        counts = np.diff(forced.starts)
        score = np.exp(forced.total(forced.log_probability) / counts)
        return ItemScores(score, forced.total(forced.margin > 0) / counts)
