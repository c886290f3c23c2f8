"""Classification: a model with a classifier's head must give the right class of a text.

Fitness is the smoothed margin of the right class's logit; correctness is the class of the highest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, field_validator

from evomerge.architectures import is_classifier
from evomerge.checkpoints import Checkpoint
from evomerge.errors import DataError, Found, Place, nearest
from evomerge.language_model import LanguageModel
from evomerge.proxy_tasks import ItemScores, Probabilities, TaskSettings, sigmoid_of_margin
from evomerge.proxy_tasks._data import Label, Row, field, fill, only_field
from evomerge.tokenizer_files import Tokenizer

_CPU_TOKENS = 512  # tokens of a batch whose activations stay in a core's cache
_TOKENS = 16384  # tokens of a batch on other devices
_TEMPERATURE = 0.5  # until the experts' margins are known


class Settings(TaskSettings):
    """The settings of a classification task in a study file."""

    text: str = Field(description="template of the text, with {field} of the data")
    pair: str | None = Field(
        None, description="template of a second text, for models that are asked about two"
    )
    label: str = Field(
        description="template of the right class: its name in config.json, or its number from 0"
    )
    max_tokens: int | None = Field(
        None,
        ge=1,
        le=10**6,
        description="tokens of a text beyond these are cut off, those of the longer one of a pair "
        "(default: none, and a text longer than the models' context is an error)",
    )
    temperature: float | None = Field(
        None, gt=0, description="τ of sigmoid(margin/τ) (default: by the experts' margins)"
    )

    @field_validator("chat")
    @classmethod
    def _no_chat(cls, value: bool) -> bool:
        if value:
            raise ValueError("false or nothing: a classifier reads texts, not chats")
        return value


@dataclass(frozen=True)
class Example:
    """One rendered item; a number of `label` is that of a class."""

    text: str
    pair: str | None
    label: str | int

    @property
    def prompt(self) -> str:
        """What the model reads, as a report shows it."""
        return self.text if self.pair is None else f"{self.text}\n{self.pair}"

    @property
    def answer(self) -> str:
        """The right class, as a report shows it."""
        return str(self.label)

    def number(self, labels: Sequence[str]) -> int | None:
        """Return the number of the right class among those of these names, None where it is none.

        A text that is a name is that name, even where it looks like a number. Classes that a data
        set names are those of these names, case aside, unless it knows none of them.
        """
        if isinstance(self.label, Label):
            known = [one.casefold() for one in labels]
            if any(one.casefold() in known for one in self.label.names):
                name = (self.label.name or "").casefold()
                return known.index(name) if name in known else None
        if isinstance(self.label, str) and self.label in labels:
            return labels.index(self.label)
        text = str(self.label)
        if text.isascii() and text.isdecimal() and int(text) < len(labels):
            return int(text)
        return None


def render(row: Row, settings: Settings, place: Place) -> Example:
    """Fill the templates from a row; raises the place's error where a field is missing."""
    text = fill(settings.text, row, place / "text")
    if not text.strip():
        raise (place / "text").fail("a text that is not empty", text)
    pair = None if settings.pair is None else fill(settings.pair, row, place / "pair")
    name = only_field(settings.label)
    value: Any = field(name, row, place / "label") if name else None
    whole = isinstance(value, int) and not isinstance(value, bool)
    label = value if whole else fill(settings.label, row, place / "label").strip()
    return Example(text, pair, label)


def check(
    examples: Sequence[Example], models: Sequence[Checkpoint], where: Sequence[str], place: Place
) -> None:
    """Check that the models are classifiers with the same classes, which the examples' labels name.

    `where` says where each example comes from. Raises the place's error.
    """
    first = models[0]
    for model in models:
        if not is_classifier(model.folder):
            found = ", ".join(model.config.get("architectures") or ["none"])
            raise (place / "kind").fail(
                "models with a classifier's head (…ForSequenceClassification)",
                Found(f"{found} in {model.ref}"),
                "ask language models in tasks of another kind",
            )
    labels = _labels(first)
    for model in models[1:]:
        if _labels(model) != labels:
            raise (place / "kind").fail(
                f"the classes {', '.join(labels)} of {first.ref} in every model",
                Found(f"{', '.join(_labels(model))} in {model.ref}"),
                "models to merge must name their classes alike and in one order, as id2label of "
                "config.json does",
            )
    if len(labels) < 2:
        raise (place / "kind").fail("models of at least two classes", list(labels))
    for example, source in zip(examples, where, strict=True):
        if example.number(labels) is None:
            near = nearest(str(example.label), labels)
            hint = f"did you mean {near!r}?" if near else ""
            here = Place(f"{place.document} ({source})", DataError, place.path) / "label"
            known = f"one of the models' classes ({', '.join(labels)}) or its number"
            raise here.fail(known, getattr(example.label, "name", None) or example.label, hint)


def _labels(model: Checkpoint) -> tuple[str, ...]:
    """Return the names of a checkpoint's classes in order; the library's own where it has none."""
    given = model.config.get("id2label")
    if not isinstance(given, dict):
        count = model.config.get("num_labels", 2)
        return tuple(f"LABEL_{number}" for number in range(count))
    return tuple(str(given[key]) for key in sorted(given, key=int))


@dataclass(frozen=True)
class _Encoded:
    """The tokens of an item, and which of two texts each is of, where the tokenizer says so."""

    ids: tuple[int, ...]
    types: tuple[int, ...] | None


class Task:
    """Examples of a classification task as token ids.

    Raises DataError for a text without tokens.
    """

    def __init__(
        self, settings: Settings, examples: Sequence[Example], tokenizer: Tokenizer
    ) -> None:
        self.temperature = settings.temperature or _TEMPERATURE
        self._examples = list(examples)
        self._encoded = [_encode(example, settings, tokenizer) for example in examples]
        self.lengths = [len(one.ids) for one in self._encoded]

    def scores(self, model: LanguageModel, items: Sequence[int], exact: bool) -> ItemScores:
        """Score items by the right class's lead over the best other; see proxy_tasks.Task.

        Raises DataError for a model that does not know the classes.
        """
        gold = np.array([self._gold(item, model.labels) for item in items])
        logits = classify(model, [self._encoded[item] for item in items]).astype(np.float64)
        rows = np.arange(len(items))
        others = logits.copy()
        others[rows, gold] = -np.inf
        margins = logits[rows, gold] - others.max(axis=1)
        correct = (logits.argmax(axis=1) == gold).astype(np.float64)
        likely = np.exp(logits - logits.max(axis=1, keepdims=True))
        likely /= likely.sum(axis=1, keepdims=True)
        known = Probabilities(likely[rows, gold], likely.max(axis=1))
        score = sigmoid_of_margin(margins, self.temperature)
        return ItemScores(score, correct, known, margins)

    def _gold(self, item: int, labels: tuple[str, ...]) -> int:
        number = self._examples[item].number(labels)
        if number is None:
            known = ", ".join(labels) or "none: it is no classifier"
            raise DataError(
                f"expected the class {self._examples[item].label!r} among those of the model, got "
                f"{known}; score a classifier of the task's classes"
            )
        return number


def _encode(example: Example, settings: Settings, tokenizer: Tokenizer) -> _Encoded:
    texts = (example.text,) if example.pair is None else (example.text, example.pair)
    cut: dict[str, Any] = {}
    if settings.max_tokens is not None:
        cut = {"truncation": True, "max_length": settings.max_tokens}
    encoded = tokenizer(*texts, **cut)
    ids = tuple(encoded["input_ids"])
    if not ids:
        raise DataError(f"expected a text of at least one token, got {example.text!r}")
    types = encoded.get("token_type_ids")
    return _Encoded(ids, None if types is None else tuple(types))


@torch.inference_mode()
def classify(model: LanguageModel, sequences: Sequence[_Encoded]) -> npt.NDArray[np.float32]:
    """Return the classes' logits of sequences, float32 [n, C], in batches of like lengths.

    Raises DataError for a token that is none of the model's vocabulary.
    """
    order = sorted(range(len(sequences)), key=lambda index: len(sequences[index].ids))
    most = _CPU_TOKENS if model.device.type == "cpu" else _TOKENS
    found: list[npt.NDArray[np.float32]] = [np.empty(0, np.float32)] * len(sequences)
    while order:
        lengths = [len(sequences[index].ids) for index in order]
        fits = [length * (row + 1) <= most for row, length in enumerate(lengths)]
        size = max(1, fits.index(False) if False in fits else len(fits))
        batch, order = order[:size], order[size:]
        parts = np.zeros((3, size, lengths[size - 1]), dtype=np.int64)
        for row, index in enumerate(batch):
            one = sequences[index]
            parts[0, row, : len(one.ids)] = one.ids
            parts[1, row, : len(one.ids)] = 1
            parts[2, row, : len(one.ids)] = one.types or 0
        if parts[0].max() >= model.vocabulary:
            raise DataError(
                f"expected tokens among the {model.vocabulary} of the model, got token "
                f"{parts[0].max()}; the base model's tokenizer has more tokens than its embedding"
            )
        ids, mask, types = torch.from_numpy(parts).to(model.device)
        told = sequences[batch[0]].types is not None
        logits = model.classes(ids, mask, types if told else None).float().cpu().numpy()
        for row, index in enumerate(batch):
            found[index] = logits[row]
    return np.stack(found)
