"""Generation: the answer must be what greedy decoding gives.

Fitness is the teacher-forced smoothed margin; correctness is exact match of the decoded text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field, field_validator
from transformers import PreTrainedTokenizerBase

from evomerge.decoding import TokenSequence, greedy, teacher_force
from evomerge.errors import Place
from evomerge.models import LanguageModel
from evomerge.proxy_tasks import ItemScores, TaskSettings, sigmoid_of_margin
from evomerge.proxy_tasks._data import Row, encode_answer, encode_prompt, fill

_SPARE_TOKENS = 4  # beyond the longest target, for an answer that is spelt with more tokens


class Settings(TaskSettings):
    """The settings of a generation task in a study file."""

    prompt: str = Field(description="template of the prompt, with {field} of the data")
    answer: str = Field(description="template of the right answer")
    target: str | None = Field(
        None, description="template of the text that margins are taken on, such as a worked solution"
        " (default: the answer)",
    )  # fmt: skip
    stop: tuple[str, ...] = Field(
        (), strict=False, description="texts that end the answer, besides the end-of-text token"
    )
    extract: str | None = Field(
        None, description="regular expression whose last match in the generated text is compared "
        "(its first group, where it has one)",
    )  # fmt: skip
    max_new_tokens: int | None = Field(
        None, ge=1, description="most tokens to generate (default: a little over the longest target)"
    )
    temperature: float = Field(0.5, gt=0, strict=False, description="τ of sigmoid(margin/τ)")

    @field_validator("extract")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as problem:
                raise ValueError(f"a regular expression ({problem})") from None
        return value


@dataclass(frozen=True)
class Example:
    """One rendered item."""

    prompt: str
    answer: str
    target: str


def render(row: Row, settings: Settings, place: Place) -> Example:
    """Fill the templates from a row; raises the place's error where a field is missing."""
    answer = fill(settings.answer, row, place / "answer")
    if not answer.strip():
        raise (place / "answer").fail("an answer that is not empty", answer)
    target = answer if settings.target is None else fill(settings.target, row, place / "target")
    return Example(fill(settings.prompt, row, place / "prompt"), answer, target)


class Task:
    """Examples of a generation task as token ids."""

    def __init__(
        self, settings: Settings, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self._settings = settings
        self._tokenizer = tokenizer
        self._answers = [example.answer.strip() for example in examples]
        end = (
            encode_answer(tokenizer, settings.stop[0])
            if settings.stop
            else (tokenizer.eos_token_id,)
        )
        self._prompts = [encode_prompt(tokenizer, item.prompt, settings.chat) for item in examples]
        targets = [encode_answer(tokenizer, item.target) + end for item in examples]
        self._sequences = [
            TokenSequence(prompt + target, len(target))
            for prompt, target in zip(self._prompts, targets, strict=True)
        ]
        self._most = settings.max_new_tokens or max(map(len, targets), default=0) + _SPARE_TOKENS

    def scores(self, model: LanguageModel, items: Sequence[int], exact: bool) -> ItemScores:
        """Score items: the least margin over the target's positions; see proxy_tasks.Task."""
        margins = teacher_force(model, [self._sequences[item] for item in items]).least_margin()
        correct = self._generated(model, items) if exact else (margins > 0).astype(np.float64)
        return ItemScores(sigmoid_of_margin(margins, self._settings.temperature), correct)

    def _generated(self, model: LanguageModel, items: Sequence[int]) -> np.ndarray:
        def finished(index: int, tokens: list[int]) -> bool:
            text, ended = self._cut(tokens)
            return ended or not self._may_match(text, self._answers[items[index]])

        tokens = greedy(
            model, [self._prompts[item] for item in items], [self._most] * len(items), finished
        )
        return np.array(
            [
                float(self._extracted(self._cut(new)[0]) == self._answers[item])
                for item, new in zip(items, tokens, strict=True)
            ]
        )

    def _cut(self, tokens: list[int]) -> tuple[str, bool]:
        """Return the text before the end-of-text token or a stop text, and whether one came."""
        ended = tokens[-1] == self._tokenizer.eos_token_id
        text = self._tokenizer.decode(tokens[:-1] if ended else tokens)
        places = [found for found in map(text.find, self._settings.stop) if found >= 0]
        return (text[: min(places)], True) if places else (text, ended)

    def _may_match(self, text: str, answer: str) -> bool:
        """Return whether more tokens could still make the text the answer: if not, stop early."""
        if self._settings.extract:
            return True
        so_far = text.strip().rstrip("\ufffd")  # an unfinished character decodes to U+FFFD
        return answer.startswith(so_far)

    def _extracted(self, text: str) -> str | None:
        if not self._settings.extract:
            return text.strip()
        found = list(re.finditer(self._settings.extract, text))
        if not found:
            return None
        last = found[-1]
        return str(last[1] if last.re.groups else last[0]).strip()
