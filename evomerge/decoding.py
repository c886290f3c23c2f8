"""What proxy tasks ask of a language model: teacher-forced scores and greedy continuations.

Batches depend on the items and the kind of device alone, so the same weights get the same numbers
each time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from evomerge.errors import DataError
from evomerge.language_model import LanguageModel, Past

_CPU_TOKENS = 512  # tokens of a batch whose activations stay in a core's cache
_TOKENS = 16384  # tokens of a batch on other devices
_SHARED = 16  # tokens that are worth running apart from what follows them
_LOGITS = 1 << 26  # elements of a batch's logits
_CHUNK = 1 << 24  # of those, elements in float32 at a time: 64 MiB

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TokenSequence:
    """Token ids of which the last `scored` are to be predicted from what precedes them."""

    ids: tuple[int, ...]
    scored: int

    @property
    def target(self) -> tuple[int, ...]:
        """The scored tokens."""
        return self.ids[len(self.ids) - self.scored :]


@dataclass(frozen=True)
class Forced:
    """Teacher-forced numbers of the scored tokens of n sequences, laid end to end.

    Those of sequence i stand at `starts[i] : starts[i + 1]`; `starts` is int64 [n + 1].
    `log_probability` (float32) is that of the gold token, `margin` (float32) its logit less the
    best other token's, `choice` (int64) the token that greedy decoding gives in its place.
    """

    starts: Integers
    log_probability: Floats
    margin: Floats
    choice: Integers

    def least_margin(self) -> Floats:
        """Return the smallest margin of each sequence, float32 [n]."""
        found: Floats = np.minimum.reduceat(self.margin, self.starts[:-1])
        return found

    def total(self, values: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
        """Return, for numbers of the scored tokens, their sum over each sequence, float64 [n]."""
        found: npt.NDArray[np.float64]
        found = np.add.reduceat(values.astype(np.float64), self.starts[:-1])
        return found


@torch.inference_mode()
def teacher_force(model: LanguageModel, sequences: Sequence[TokenSequence]) -> Forced:
    """Score sequences, one at least, each with a scored token and a token before it.

    What sequences begin with in common is run once. Raises DataError for a sequence longer than the
    model's context, and for a token that is none of its vocabulary.
    """
    scored = np.array([one.scored for one in sequences])
    lengths = np.array([len(one.ids) for one in sequences])
    _check_context(model, int(lengths.max()))
    starts = np.concatenate([[0], scored.cumsum()])
    log_probability = np.empty(starts[-1], dtype=np.float32)
    margin, choice = np.empty_like(log_probability), np.empty(starts[-1], dtype=np.int64)
    header, state = _header(model, sequences)
    for batch in _batches(sequences, model, header):
        ids = np.zeros((len(batch), lengths[batch].max()), dtype=np.int64)
        for row, index in enumerate(batch):
            ids[row, : lengths[index]] = sequences[index].ids
        _check_tokens(model, int(ids.max()))
        unscored = (lengths - scored)[batch]
        past = None if state is None else Past(state, _on(model, np.zeros(len(batch), np.int64)))
        begin, past = _prefixes(model, ids, header, unscored.min() - 1, past)
        keep = int(ids.shape[1] - unscored.min())
        logits = model.logits(_on(model, ids[:, begin:-1]), keep, past)
        rows = np.repeat(np.arange(len(batch)), scored[batch])
        inside = np.concatenate([np.arange(count) for count in scored[batch]])
        columns = unscored[rows] + inside  # of the scored tokens
        found = _beside_rivals(logits, rows, columns - unscored.min(), ids[rows, columns])
        here = starts[batch][rows] + inside
        log_probability[here], margin[here], choice[here] = found
    return Forced(starts, log_probability, margin, choice)


def _header(model: LanguageModel, sequences: Sequence[TokenSequence]) -> tuple[int, object]:
    """Return the length and the state of what all sequences begin with, as few-shot prompts do."""
    # The first and the last of them in order differ wherever any two do.
    pairs = zip(min(one.ids for one in sequences), max(one.ids for one in sequences), strict=False)
    common = [one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)]
    size = min(len(common), *(len(one.ids) - one.scored - 1 for one in sequences))
    if size < _SHARED or len(sequences) == 1:
        return 0, None
    state = model.remember(_on(model, np.array([common[:size]])))
    return (0 if state is None else size), state


def _prefixes(
    model: LanguageModel, ids: Integers, begin: int, end: int, past: Past | None
) -> tuple[int, Past | None]:
    """Run what rows of a batch share, of their tokens from `begin` to `end`, once for them all.

    Returns where the rest of them begins, and what it follows.
    """
    if end - begin < _SHARED:
        return begin, past
    different, rows = np.unique(ids[:, begin:end], axis=0, return_inverse=True)
    if not _repeat(len(different), len(ids)):
        return begin, past
    before = None if past is None else Past(past.state, past.rows[: len(different)])
    state = model.remember(_on(model, different), before)
    return (begin, past) if state is None else (end, Past(state, _on(model, rows.reshape(-1))))


def _repeat(different: int, count: int) -> bool:
    """Return whether so few are different that running each once is worth its overhead."""
    return different * 4 <= count * 3


def _beside_rivals(
    logits: torch.Tensor, rows: Integers, columns: Integers, gold: Integers
) -> tuple[Floats, Floats, Integers]:
    """Return log-probability, margin and choice at n positions of [B, keep, V]; indices [n]."""
    size = max(1, _CHUNK // logits.shape[-1])
    indices = torch.from_numpy(np.stack([rows, columns, gold])).to(logits.device)
    found: list[list[torch.Tensor]] = []
    for row, column, token in zip(*(one.split(size) for one in indices), strict=True):
        picked = logits[row, column].float()
        chosen = picked.gather(1, token.unsqueeze(1))[:, 0]
        log_probability = chosen - picked.logsumexp(dim=-1)
        rival, other = picked.scatter_(1, token.unsqueeze(1), float("-inf")).max(dim=-1)
        wins = (chosen > rival) | ((chosen == rival) & (token < other))  # as argmax has it
        found.append([log_probability, chosen - rival, torch.where(wins, token, other)])
    first, second, third = (torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True))
    return first, second, third


@torch.inference_mode()
def greedy(
    model: LanguageModel,
    prompts: Sequence[tuple[int, ...]],
    longest: Sequence[int],
    finished: Callable[[int, list[int]], bool],
) -> list[list[int]]:
    """Continue prompts greedily with a cache; returns the new tokens of each, in order.

    Prompt i stops after `longest[i]` tokens, at the end of the model's context, or as soon as
    `finished(i, tokens)` says so; a batch stops with its last prompt. Raises DataError for a prompt
    that fills the context.
    """
    found: list[list[int]] = [[] for _ in prompts]
    if not prompts:
        return found
    lengths = np.array([len(prompt) for prompt in prompts])
    _check_context(model, int(lengths.max()) + 1)
    most = np.array(longest)
    if model.context is not None:
        most = np.minimum(most, model.context - lengths)
    for batch in _batches([TokenSequence(prompt, 1) for prompt in prompts], model, room=most):
        width = lengths[batch].max()
        padded = np.zeros((2, len(batch), width), dtype=np.int64)
        for row, index in enumerate(batch):
            padded[0, row, width - lengths[index] :] = prompts[index]
            padded[1, row, width - lengths[index] :] = 1
        ids, mask = _on(model, padded)
        cache: object = None
        running = list(range(len(batch)))
        while running:
            logits, cache = model.step(ids, mask, cache)
            best = logits.argmax(dim=-1)
            tokens = best.tolist()
            for row in running:
                found[batch[row]].append(tokens[row])
            running = [
                row
                for row, index in enumerate(batch)
                if row in running
                and len(found[index]) < most[index]
                and not finished(int(index), found[index])
            ]
            ids = best.unsqueeze(1)
            goes_on = np.isin(np.arange(len(batch)), running)[:, None]  # others count no further
            mask = torch.cat([mask, _on(model, goes_on.astype(np.int64))], dim=1)
    return found


def _on(model: LanguageModel, array: Integers) -> torch.Tensor:
    return torch.from_numpy(array).to(model.device)


def _check_context(model: LanguageModel, longest: int) -> None:
    if model.context is not None and longest > model.context:
        raise DataError(
            f"expected items of at most {model.context} tokens, the context of the models, got one "
            f"of {longest}; leave out the long ones"
        )


def _check_tokens(model: LanguageModel, largest: int) -> None:
    if largest >= model.vocabulary:
        raise DataError(
            f"expected tokens among the {model.vocabulary} of the model, got token {largest}; "
            "the base model's tokenizer has more tokens than its embedding"
        )


def _batches(
    sequences: Sequence[TokenSequence],
    model: LanguageModel,
    header: int = 0,
    room: Integers | None = None,
) -> list[Integers]:
    """Return batches of like lengths, as arrays of indices, within the bounds on their size.

    Sequences that share what precedes their scored tokens stand together, where many do. Of tokens,
    those after the header count, what neighbours share once, and `room` for more of each.
    """
    most = _CPU_TOKENS if model.device.type == "cpu" else _TOKENS
    lengths = [len(one.ids) for one in sequences]
    prompts = [one.ids[: -one.scored] for one in sequences]
    together = _repeat(len(set(prompts)), len(prompts))

    def place(index: int) -> tuple[int, tuple[int, ...], int]:
        length, prompt = lengths[index], prompts[index]
        return (len(prompt), prompt, length) if together else (length, (len(prompt),), 0)

    batches: list[list[int]] = []
    tokens = longest = first = 0
    for index in sorted(range(len(sequences)), key=place):
        length, prompt = lengths[index], prompts[index]
        own = length - header + (0 if room is None else int(room[index]))
        known = together and bool(batches) and prompt == prompts[batches[-1][-1]]
        tokens += own - (len(prompt) - header if known else 0)
        longest, first = max(longest, length), min(first, len(prompt))
        size = len(batches[-1]) + 1 if batches else 0
        logits = size * (longest - first) * model.vocabulary
        if not batches or tokens > most or logits > _LOGITS:
            batches.append([])
            tokens, longest, first = own, length, len(prompt)
        batches[-1].append(index)
    return [np.array(batch) for batch in batches]
