"""Generation: the answer must be what greedy decoding gives.

Fitness is the teacher-forced smoothed margin; correctness is a match of the decoded text, exact
unless the task says how to compare.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field, field_validator

from evomerge.decoding import Forced, TokenSequence, greedy
from evomerge.errors import DataError, Place
from evomerge.language_model import LanguageModel
from evomerge.proxy_tasks import (
    ItemScores,
    Probabilities,
    Prompted,
    PromptedSettings,
    Shot,
    Vector,
    sigmoid_of_margin,
)
from evomerge.proxy_tasks._answers import Normalizer, Value, extracted, normalized, words
from evomerge.proxy_tasks._data import Row, field, fill, only_field, text_of
from evomerge.proxy_tasks._forced import ForcedTask
from evomerge.proxy_tasks._tokens import Stops, Turn, encode_after, prompt_of, turn_of
from evomerge.tokenizer_files import Tokenizer

_TEMPERATURE = 0.5  # until the experts' margins are known
_SPARE_TOKENS = (
    4  # beyond the longest target or answer, for an answer that is spelt with more tokens
)
_READ = 1 << 14  # texts that are kept


class Settings(PromptedSettings):
    """The settings of a generation task in a study file."""

    prompt: str = Field(description="template of the prompt, with {field} of the data")
    answer: str = Field(
        description="template of the right answer, or {field} of a field that holds a list of "
        "right ones"
    )
    target: str | None = Field(
        None,
        description="template of the text that margins are taken on, such as a worked solution "
        "(default: the answer, of several the first)",
    )
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        [],
        description="texts that end the answer, besides the end-of-text token; the first ends "
        "targets (default: in a chat what ends a turn, else with few-shot examples the delimiter)",
    )
    extract: str | None = Field(
        None,
        description="regular expression whose last match in the generated text is compared, "
        "or, where it has groups, its first group; an answer that it matches is cut alike",
    )
    normalize: Normalizer = Field(
        "none",
        description="what is compared: none, the text as it is; text, its words without case, "
        "punctuation and white space; number, its last number",
    )
    max_new_tokens: int | None = Field(
        None,
        ge=1,
        le=10**6,
        description="most tokens to generate (default: those of the longest target or answer and a "
        "few)",
    )
    temperature: float | None = Field(
        None, gt=0, description="τ of sigmoid(margin/τ) (default: by the experts' margins)"
    )

    @field_validator("extract")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except (re.error, OverflowError, RecursionError) as problem:
                raise ValueError(f"a regular expression ({problem})") from None
        return value

    @property
    def stops(self) -> list[str]:
        """The texts that end an answer."""
        ends_shots = self.shots is not None and not self.chat and self.delimiter
        return self.stop or ([self.delimiter] if ends_shots else [])


@dataclass(frozen=True)
class Example(Prompted):
    """One rendered item; the first of `answers` is what the target says."""

    answers: tuple[str, ...]
    target: str
    where: Place = dataclasses.field(
        default=Place("the data", DataError), compare=False, repr=False, kw_only=True
    )


def render(row: Row, settings: Settings, place: Place) -> Example:
    """Fill the templates from a row.

    Raises the place's error where a field is missing, and where no generated text could be right.
    """
    here = place / "answer"
    answers = _answers(row, settings, here)
    for answer in answers:
        if not answer.strip():
            raise here.fail("an answer that is not empty", answer)
        if _value(answer, settings) in (None, ""):
            raise here.fail(f"an answer with a {settings.normalize} to compare", answer)
    target = answers[0]
    if settings.target is not None:
        target = fill(settings.target, row, place / "target")
    prompt = fill(settings.prompt, row, place / "prompt")
    example = Example(prompt, answers, target, where=place)
    _check_stops(example, settings, settings.stops)
    if settings.target is not None and not _right(example, settings):
        wanted = "a target that counts as right when it is generated"
        hint = "put the answer into it where `extract` and `normalize` find it"
        raise (place / "target").fail(wanted, target, hint)
    return example


def notes(examples: Sequence[Example], settings: Settings, name: str) -> tuple[str, ...]:
    """Say where answers, being the targets, are not what `extract` finds in texts."""
    wrong = [repr(one.target) for one in examples if not _right(one, settings)]
    text = f"of {len(wrong)} items of {name} the answer alone would not count as right, such as "
    return tuple(f"{text}{one}; set `target` to what to generate" for one in wrong[:1])


def _answers(row: Row, settings: Settings, place: Place) -> tuple[str, ...]:
    name = only_field(settings.answer)
    if name is None:
        return (fill(settings.answer, row, place),)
    found = field(name, row, place)
    if isinstance(found, dict) and isinstance(found.get("text"), list):  # SQuAD and its kin
        found = found["text"]
    if not isinstance(found, list):
        return (text_of(found, name, place),)
    if not found or None in found:
        raise place.fail(f"a list of at least one answer in the field {name}", found)
    return tuple(dict.fromkeys(text_of(one, name, place) for one in found))


def _check_stops(example: Example, settings: Settings, stops: Iterable[str]) -> None:
    """Raise DataError where a text that ends answers stands in the target or in an answer."""
    answers = [extracted(one, settings.extract) or one.strip() for one in example.answers]
    texts = [*(("answer", one) for one in answers), ("target", example.target.rstrip())]
    for (key, text), stop in itertools.product(texts, stops):
        if stop in text:
            hint = "it would be cut there; take it out, or `stop` at what comes after answers alone"
            raise (example.where / key).fail(f"no {stop!r} in it, which ends answers", text, hint)


def _value(text: str, settings: Settings) -> Value | None:
    """Return what a right answer is compared as; one that `extract` does not match is whole."""
    return normalized(extracted(text, settings.extract) or text.strip(), settings.normalize)


def _values(example: Example, settings: Settings) -> set[Value | None]:
    return {_value(answer, settings) for answer in example.answers}


def _right(example: Example, settings: Settings) -> bool:
    """Return whether a target counts as right when it is generated."""
    return _said(example.target, settings) in _values(example, settings)


def _said(text: str, settings: Settings) -> Value | None:
    """Return what a generated text is compared as, None where it says nothing."""
    found = extracted(text, settings.extract)
    return None if found is None else normalized(found, settings.normalize)


def shown(example: Example, settings: Settings) -> Shot:
    """Return the example with its target, as the model is shown it."""
    return Shot(example.prompt, example.target)


class Task(ForcedTask):
    """Examples of a generation task as token ids.

    Raises DataError where an answer holds what ends texts or is longer than `max_new_tokens`, and
    where `chat` finds no template.
    """

    def __init__(
        self, settings: Settings, examples: Sequence[Example], tokenizer: Tokenizer
    ) -> None:
        self._settings = settings
        # What precedes the answer may be anything.
        self._comes_late = bool(settings.extract) or settings.normalize == "number"
        self._end = tokenizer.eos_token_id
        self._read = functools.lru_cache(_READ)(self._cut)  # models often say the same
        turn = turn_of(tokenizer) if settings.chat else Turn()
        turn_ends = [turn.ending.strip()] if turn.ending else []
        for example in examples:
            _check_stops(example, settings, [*turn_ends, tokenizer.eos_token])
        self._stops = Stops(
            (*settings.stops, *turn_ends),
            functools.partial(tokenizer.decode, clean_up_tokenization_spaces=False),
        )
        self.temperature = settings.temperature or _TEMPERATURE
        self._answers = [_values(example, settings) for example in examples]
        ending = settings.stops[0] if settings.stops else turn.ending
        end = () if ending else (self._end,)
        self._sequences = [
            TokenSequence(one.ids + end, one.scored + len(end))
            for one in encode_after(
                tokenizer,
                [prompt_of(settings, example) for example in examples],
                [example.target for example in examples],
                settings.chat,
                ending,
            )
        ]
        self.lengths = [len(one.ids) for one in self._sequences]
        others = [answer + ending for example in examples for answer in example.answers[1:]]
        spelt = tokenizer(others)["input_ids"] if others else []
        longest = max([*(one.scored for one in self._sequences), *map(len, spelt)], default=0)
        self._most = settings.max_new_tokens or longest + _SPARE_TOKENS
        self._check_room(settings, examples)

    def _check_room(self, settings: Settings, examples: Sequence[Example]) -> None:
        """Raise DataError where `max_new_tokens` cuts off what makes the targets right, of all."""
        if examples and all(
            one.scored > self._most
            and _said(self._cut(one.target[: self._most])[0], settings) not in right
            for one, right in zip(self._sequences, self._answers, strict=True)
        ):
            wanted = f"at least {self._sequences[0].scored} new tokens, which the target has"
            here = examples[0].where / "max_new_tokens"
            raise here.fail(wanted, self._most, "raise it, or leave it out")

    def sequences(self, items: Sequence[int], context: int | None) -> list[TokenSequence]:
        """See ForcedTask."""
        return [self._sequences[item] for item in items]

    def judged(
        self, model: LanguageModel, items: Sequence[int], exact: bool, forced: Forced
    ) -> ItemScores:
        """Score items by the least margin over the target's positions."""
        margins = forced.least_margin().astype(np.float64)
        score = sigmoid_of_margin(margins, self.temperature)
        if not exact:
            return ItemScores(score, (margins > 0).astype(np.float64), None, margins)
        return ItemScores(
            score, self._matches(model, items, forced), _probabilities(forced), margins
        )

    def _matches(self, model: LanguageModel, items: Sequence[int], forced: Forced) -> Vector:
        """Return 1 where greedy decoding gives the answer, else 0.

        Its first tokens are known: up to the first that is not the target's, they are those of the
        teacher-forced pass. Only where they leave the answer open is anything generated.
        """
        answers = [self._answers[item] for item in items]
        known = np.minimum(forced.agreed() + 1, np.diff(forced.starts)).clip(max=self._most)
        said: list[Value | None] = []
        still = []
        for row, (start, size) in enumerate(zip(forced.starts, known, strict=False)):
            text, ended = self._read(tuple(forced.choice[start : start + size].tolist()))
            said.append(_said(text, self._settings))
            if not ended and size < self._most and self._may_match(text, answers[row]):
                still.append(row)
        continued = greedy(
            model,
            [one.ids[: -one.scored] for one in (self._sequences[items[row]] for row in still)],
            [self._most] * len(still),
            lambda index, new: self._settled(new, answers[still[index]]),
        )
        for row, new in zip(still, continued, strict=True):
            said[row] = _said(self._cut(new)[0], self._settings)
        return np.array([float(one in right) for one, right in zip(said, answers, strict=True)])

    def _settled(self, tokens: list[int], answers: set[Value | None]) -> bool:
        """Return whether more tokens change nothing: an end came, or the answer no longer can."""
        if self._comes_late:
            return tokens[-1] == self._end or self._stops.came(tokens)
        text, ended = self._cut(tokens)
        return ended or not self._may_match(text, answers)

    def _cut(self, tokens: Sequence[int]) -> tuple[str, bool]:
        """Return the text before the end-of-text token or a stop text, and whether one came."""
        ended = tokens[-1] == self._end
        text, stopped = self._stops.cut(tokens[:-1] if ended else tokens)
        return text, ended or stopped

    def _may_match(self, text: str, answers: set[Value | None]) -> bool:
        """Return whether more tokens could still make the text one of the answers."""
        if self._comes_late:
            return True
        so_far = text.rstrip("\ufffd")  # an unfinished character decodes to U+FFFD
        so_far = words(so_far) if self._settings.normalize == "text" else so_far.strip()
        return any(str(answer).startswith(so_far) for answer in answers)


def _probabilities(forced: Forced) -> Probabilities:
    """Return the probabilities of the target, and of greedy decoding until it leaves that."""
    agreed, sizes = forced.agreed(), np.diff(forced.starts)
    gold = forced.total(forced.log_probability)
    until = np.arange(len(forced.target)) - np.repeat(forced.starts[:-1] + agreed, sizes) <= 0
    confidence = forced.total(np.where(until, forced.log_probability, 0))
    left = agreed < sizes
    confidence[left] -= forced.margin[(forced.starts[:-1] + agreed)[left]]
    return Probabilities(np.exp(gold), np.exp(np.minimum(confidence, 0)))
