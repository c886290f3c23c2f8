"""Generation: the answer must be what greedy decoding gives.

Fitness is the teacher-forced smoothed margin; correctness is exact match of the decoded text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field, field_validator

from evomerge.decoding import Forced, Integers, TokenSequence, greedy, teacher_force
from evomerge.errors import Place
from evomerge.language_model import LanguageModel
from evomerge.proxy_tasks import ItemScores, TaskSettings, Vector, sigmoid_of_margin
from evomerge.proxy_tasks._data import Row, fill
from evomerge.proxy_tasks._tokens import encode_after
from evomerge.tokenizer_files import Tokenizer

_SPARE_TOKENS = 4  # beyond the longest target, for an answer that is spelt with more tokens


class Settings(TaskSettings):
    """The settings of a generation task in a study file."""

    prompt: str = Field(description="template of the prompt, with {field} of the data")
    answer: str = Field(description="template of the right answer")
    target: str | None = Field(
        None,
        description="template of the text that margins are taken on, such as a worked solution "
        "(default: the answer)",
    )
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        [],
        description="texts that end the answer, besides the end-of-text token; "
        "the first ends targets",
    )
    extract: str | None = Field(
        None,
        description="regular expression whose last match in the generated text is compared, "
        "or, where it has groups, its first group; an answer that it matches is cut alike",
    )
    max_new_tokens: int | None = Field(
        None,
        ge=1,
        le=10**6,
        description="most tokens to generate (default: the longest target's and a few)",
    )
    temperature: float = Field(0.5, gt=0, description="τ of sigmoid(margin/τ)")

    @field_validator("extract")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except (re.error, OverflowError, RecursionError) as problem:
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
    """Examples of a generation task as token ids.

    Raises DataError for a prompt without tokens, and where `chat` finds no template.
    """

    def __init__(
        self, settings: Settings, examples: Sequence[Example], tokenizer: Tokenizer
    ) -> None:
        self._settings = settings
        self._tokenizer = tokenizer
        self._answers = [
            self._extracted(example.answer) or example.answer.strip() for example in examples
        ]
        stop = settings.stop[0] if settings.stop else ""
        end = () if stop else (tokenizer.eos_token_id,)
        self._sequences = [
            TokenSequence(one.ids + end, one.scored + len(end))
            for one in encode_after(
                tokenizer,
                [example.prompt for example in examples],
                [example.target + stop for example in examples],
                settings.chat,
            )
        ]
        longest = max((one.scored for one in self._sequences), default=0)
        self._most = settings.max_new_tokens or longest + _SPARE_TOKENS

    def scores(self, model: LanguageModel, items: Sequence[int], exact: bool) -> ItemScores:
        """Score items: the least margin over the target's positions; see proxy_tasks.Task."""
        forced = teacher_force(model, [self._sequences[item] for item in items])
        margins = forced.least_margin()
        score = sigmoid_of_margin(margins, self._settings.temperature)
        if not exact:
            return ItemScores(score, (margins > 0).astype(np.float64))
        return ItemScores(score, self._matches(model, items, forced))

    def _matches(self, model: LanguageModel, items: Sequence[int], forced: Forced) -> Vector:
        """Return 1 where greedy decoding gives the answer, else 0.

        Its first tokens are known: up to the first that is not the target's, they are those of the
        teacher-forced pass. Only where they leave the answer open is anything generated.
        """
        answers = [self._answers[item] for item in items]
        sequences = [self._sequences[item] for item in items]
        tokens = [
            self._known(one, forced.choice[start : start + one.scored])
            for one, start in zip(sequences, forced.starts[:-1], strict=True)
        ]
        still = [row for row, new in enumerate(tokens) if not self._settled(new, answers[row])]
        continued = greedy(
            model,
            [sequences[row].ids[: -sequences[row].scored] for row in still],
            [self._most] * len(still),
            lambda index, new: self._settled(new, answers[still[index]]),
        )
        for row, new in zip(still, continued, strict=True):
            tokens[row] = new
        found = [self._extracted(self._cut(new)[0]) for new in tokens]
        return np.array([float(one == answer) for one, answer in zip(found, answers, strict=True)])

    def _known(self, sequence: TokenSequence, choice: Integers) -> list[int]:
        """Return the first tokens of greedy decoding, as far as the teacher-forced ones show."""
        differs = np.flatnonzero(choice != np.array(sequence.target))
        known: list[int] = choice[: differs[0] + 1 if len(differs) else None].tolist()
        return known[: self._most]

    def _settled(self, tokens: list[int], answer: str) -> bool:
        """Return whether more tokens change nothing: an end came, or the answer no longer can."""
        text, ended = self._cut(tokens)
        return ended or len(tokens) == self._most or not self._may_match(text, answer)

    def _cut(self, tokens: list[int]) -> tuple[str, bool]:
        """Return the text before the end-of-text token or a stop text, and whether one came."""
        ended = tokens[-1] == self._tokenizer.eos_token_id
        text = self._tokenizer.decode(
            tokens[:-1] if ended else tokens, clean_up_tokenization_spaces=False
        )
        places = [found for found in map(text.find, self._settings.stop) if found >= 0]
        return (text[: min(places)], True) if places else (text, ended)

    def _may_match(self, text: str, answer: str) -> bool:
        """Return whether more tokens could still make the text the answer."""
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
        return str(last[1] or "" if last.re.groups else last[0]).strip()
