"""Perplexity: how probable the model finds texts.

The score of a text is 2 to the power of −(bits per byte), the geometric mean of its bytes'
probabilities, which does not depend on how the tokenizer cuts it; correct is the part of its tokens
that greedy decoding would give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from evomerge.decoding import Forced, TokenSequence
from evomerge.errors import Place
from evomerge.language_model import LanguageModel
from evomerge.proxy_tasks import ItemScores, Prompted, PromptedSettings, Shot
from evomerge.proxy_tasks._data import Row, fill
from evomerge.proxy_tasks._forced import ForcedTask
from evomerge.proxy_tasks._tokens import encode_after, prompt_of
from evomerge.tokenizer_files import Tokenizer


class Settings(PromptedSettings):
    """The settings of a perplexity task in a study file."""

    text: str = Field(description="template of the text whose tokens are scored")
    prompt: str = Field("", description="template of a context that is not scored")
    max_tokens: int = Field(
        1024, ge=1, le=10**6, description="tokens of a text beyond these are cut off"
    )


@dataclass(frozen=True)
class Example(Prompted):
    """One rendered item."""

    text: str


def render(row: Row, settings: Settings, place: Place) -> Example:
    """Fill the templates from a row; raises the place's error where a field is missing."""
    text = fill(settings.text, row, place / "text")
    if not text.strip():
        raise (place / "text").fail("a text that is not empty", text)
    return Example(fill(settings.prompt, row, place / "prompt"), text)


def shown(example: Example, settings: Settings) -> Shot:
    """Return the example with its text, as the model is shown it."""
    return Shot(example.prompt, example.text)


class Task(ForcedTask):
    """Examples of a perplexity task as token ids.

    Raises DataError where `chat` finds no template.
    """

    def __init__(
        self, settings: Settings, examples: Sequence[Example], tokenizer: Tokenizer
    ) -> None:
        texts = [example.text for example in examples]
        prompts = [prompt_of(settings, example) for example in examples]
        most = settings.max_tokens
        self._sequences, sizes = [], []
        for text, one in zip(
            texts, encode_after(tokenizer, prompts, texts, settings.chat), strict=True
        ):
            cut = max(0, one.scored - most)
            kept = TokenSequence(one.ids[: len(one.ids) - cut], one.scored - cut)
            read = tokenizer.decode(kept.target, clean_up_tokenization_spaces=False)
            self._sequences.append(kept)
            sizes.append(max(1, len((read if cut else text).encode())))
        self._sizes = np.array(sizes, dtype=np.float64)  # bytes
        self.lengths = [len(one.ids) for one in self._sequences]

    def sequences(self, items: Sequence[int], context: int | None) -> list[TokenSequence]:
        """See ForcedTask."""
        return [self._sequences[item] for item in items]

    def judged(
        self, model: LanguageModel, items: Sequence[int], exact: bool, forced: Forced
    ) -> ItemScores:
        """Score items by the probability of their bytes."""
        score = np.exp(forced.total(forced.log_probability) / self._sizes[list(items)])
        return ItemScores(score, forced.total(forced.margin > 0) / np.diff(forced.starts))
