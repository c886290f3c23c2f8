"""What proxy tasks ask of a language model: teacher-forced scores and greedy continuations.

Batches depend on the items, the kind of device and its memory alone, so the same weights get the
same bits each time. Among other items, in other batches, the numbers are the same within rounding:
1e-5 in float32, in bfloat16 what its eight bits of a logit leave.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from evomerge import batches
from evomerge.batches import Batch, Integers, Node, TokenSequence
from evomerge.budgets import Budget, within_memory
from evomerge.errors import DataError
from evomerge.language_model import LanguageModel, Past

__all__ = ["Forced", "Integers", "TokenSequence", "greedy", "teacher_force"]

_CHUNK = 1 << 24  # elements of logits in float32 at a time: 64 MiB
_KEPT = 1 << 21  # tokens of a plan that is kept

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Forced:
    """Teacher-forced numbers of the scored tokens of n sequences, laid end to end.

    Those of sequence i stand at `starts[i] : starts[i + 1]`; `starts` is int64 [n + 1].
    `log_probability` (float32) is that of the gold token, `target` (int64), `margin` (float32) its
    logit less the best other token's, `choice` (int64) the token that greedy decoding gives in its
    place.
    """

    starts: Integers
    target: Integers
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

    def agreed(self) -> Integers:
        """Return how many tokens each sequence has before the first that is not greedy's own."""
        differ = np.append(np.flatnonzero(self.choice != self.target), len(self.target))
        first = differ[np.searchsorted(differ, self.starts[:-1])]
        found: Integers = np.minimum(first, self.starts[1:]) - self.starts[:-1]
        return found

    def parts(self, counts: Sequence[int]) -> list[Forced]:
        """Return the numbers of the first `counts[0]` sequences, and so on."""
        found = []
        for begin, end in itertools.pairwise(itertools.accumulate(counts, initial=0)):
            starts = self.starts[begin : end + 1]
            at = slice(starts[0], starts[-1])
            numbers = self.log_probability[at], self.margin[at]
            found.append(Forced(starts - starts[0], self.target[at], *numbers, self.choice[at]))
        return found


@torch.inference_mode()
def teacher_force(model: LanguageModel, sequences: Sequence[TokenSequence]) -> Forced:
    """Score sequences, each with a scored token and a token before it.

    What sequences begin with in common is run once. Raises DataError for a sequence longer than the
    model's context, for a token that is none of its vocabulary, and for one that finds no memory.
    """
    if not sequences:
        none, nothing = np.empty(0, np.int64), np.empty(0, np.float32)
        return Forced(np.zeros(1, np.int64), none, nothing, nothing, none)
    return within_memory(model.device, lambda budget: _forced(model, sequences, budget))


def _forced(model: LanguageModel, sequences: Sequence[TokenSequence], budget: Budget) -> Forced:
    def run(share: bool) -> Forced:
        few = sum(len(one.ids) for one in sequences) <= _KEPT
        make = batches.kept_plan if few else batches.plan
        plan = make(tuple(sequences), model.device, model.vocabulary, budget, share)
        _check_context(model, plan.longest)
        _check_tokens(model, plan.largest)
        first, second, third = (part[plan.order] for part in _run(model, plan.root))
        return Forced(plan.starts, plan.targets, first, second, third)

    try:
        return run(share=True)
    except _NoStateError:
        return run(share=False)


def _run(model: LanguageModel, root: Node) -> list[npt.NDArray[Any]]:
    """Return what the plan's batches give, end to end."""
    found: list[tuple[torch.Tensor, ...]] = []
    waiting: list[tuple[torch.Tensor, torch.Tensor]] = []  # few of each: one step for them all
    most = max(1, _CHUNK // model.vocabulary)
    for batch, past in _in_turn(model, root):
        logits = model.logits(batch.ids, batch.keep, past)
        for row, column, gold in torch.split(batch.picked, most, dim=1):
            if sum(len(tokens) for _, tokens in waiting) + len(gold) > most:
                found.append(_beside_rivals(waiting))
                waiting = []
            waiting.append((logits[row, column].float(), gold))
    found.append(_beside_rivals(waiting))
    return [torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True)]


class _NoStateError(Exception):
    """The model cannot go on from a state, so nothing is to be shared."""


def _in_turn(model: LanguageModel, root: Node) -> Iterator[tuple[Batch, Past | None]]:
    """Yield the batches of a plan, each with what it follows; raises _NoStateError."""

    def state(ids: torch.Tensor, before: object) -> object:
        found = model.remember(ids, _after(before, ids))
        if found is None:
            raise _NoStateError
        return found

    todo: list[tuple[Node, object]] = [(root, None)]
    while todo:
        node, before = todo.pop()
        if node.tokens is not None:
            before = state(node.tokens, before)
        for batch in node.batches:
            past = _after(before, batch.ids)
            if batch.beginnings is not None:
                past = Past(state(batch.beginnings, before), batch.rows)
            yield batch, past
        todo.extend((one, before) for one in reversed(node.nodes))


def _after(state: object, ids: torch.Tensor) -> Past | None:
    """Return the past of sequences that all follow the one sequence of a state."""
    return None if state is None else Past(state, ids.new_zeros(len(ids)))


def _beside_rivals(parts: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, ...]:
    """Return log-probability, margin and choice, [n] each, of logits [n, V] and gold tokens [n].

    They come in parts. Of tokens with the same logit the lowest is chosen.
    """
    logits, gold = (
        torch.cat(each) if len(each) > 1 else each[0] for each in zip(*parts, strict=True)
    )
    column, choice = gold.unsqueeze(1), logits.max(dim=-1).indices
    chosen = logits.gather(1, column)[:, 0]
    log_probability = logits.log_softmax(dim=-1).gather(1, column)[:, 0]
    rival = logits.scatter_(1, column, float("-inf")).amax(dim=-1)
    return log_probability, chosen - rival, choice


@torch.inference_mode()
def greedy(
    model: LanguageModel,
    prompts: Sequence[tuple[int, ...]],
    longest: Sequence[int],
    finished: Callable[[int, list[int]], bool],
) -> list[list[int]]:
    """Continue prompts greedily with a cache; returns the new tokens of each, in order.

    Prompt i stops after `longest[i]` tokens, at the end of the model's context, or as soon as
    `finished(i, tokens)` says so, which should depend on these alone. What prompts begin with in
    common is run once, and a batch goes on without the prompts that have stopped. Raises DataError
    for a prompt that fills the context, for a token that is none of the vocabulary, and for a
    prompt that finds no memory.
    """
    if not prompts:
        return []
    lengths = np.array([len(prompt) for prompt in prompts])
    _check_context(model, int(lengths.max()) + 1)
    _check_tokens(model, max(map(max, prompts)))
    most = np.array(longest)
    if model.context is not None:
        most = np.minimum(most, model.context - lengths)
    sizes = np.unique(lengths)
    if len(sizes) == 1 or model.pads():
        groups = [np.arange(len(prompts))]
    else:
        groups = [np.flatnonzero(lengths == size) for size in sizes]

    def run(budget: Budget) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in prompts]
        rows = budget.logits // model.vocabulary  # a step has a row of logits for each
        for batch in _alike(groups, lengths + most, budget.held, rows):

            def ended(row: int, new: list[int], batch: list[int] = batch) -> bool:
                return len(new) >= most[batch[row]] or finished(batch[row], new)

            read = _read(model, [prompts[index] for index in batch], budget)
            for index, new in zip(batch, _continued(model, read, ended), strict=True):
                found[index] = new
        return found

    return within_memory(model.device, run)


def _alike(
    groups: Sequence[Integers], lengths: Integers, most: int, rows: int
) -> Iterator[list[int]]:
    """Yield batches of like lengths, see batches.py, within groups of numbers."""
    for group in groups:
        for batch in batches.alike(lengths[group].tolist(), most, rows):
            yield group[batch].tolist()


@dataclass(frozen=True)
class _Read:
    """Prompts side by side: `tokens` are to be run next, after `cache`, with `mask` over both.

    Row i is of the prompt `rows[i]`.
    """

    rows: list[int]
    tokens: torch.Tensor
    mask: torch.Tensor
    cache: object


def _read(model: LanguageModel, prompts: Sequence[tuple[int, ...]], budget: Budget) -> _Read:
    """Read prompts up to their last token, or nothing of them where that does not go."""
    lengths = np.array([len(prompt) for prompt in prompts])
    laid = np.zeros((2, len(prompts), lengths.max()), dtype=np.int64)  # ids, mask
    for row, prompt in enumerate(prompts):
        laid[0, row, -len(prompt) :] = prompt
        laid[1, row, -len(prompt) :] = 1
    ids, mask = _on(model, laid)
    if lengths.min() > 1:
        whole = [TokenSequence(prompt, 1) for prompt in prompts]
        plan = batches.plan(whole, model.device, model.vocabulary, budget, share=True)
        with contextlib.suppress(_NoStateError):
            parts = []
            for batch, past in _in_turn(model, plan.root):
                state = model.remember(batch.ids, past)
                if state is None:
                    raise _NoStateError
                parts.append(Past(state, batch.picked[0]))
            rows = plan.order.argsort()
            cache = model.join(parts, (lengths[rows] - 1).tolist())
            return _Read(rows.tolist(), ids[rows, -1:], mask[rows], cache)
    return _Read(list(range(len(prompts))), ids, mask, None)


def _continued(
    model: LanguageModel, read: _Read, ended: Callable[[int, list[int]], bool]
) -> list[list[int]]:
    """Continue prompts side by side; returns the new tokens of each, in the prompts' order.

    Rows that have ended are left out as soon as that makes the batch smaller by a quarter.
    """
    tokens, mask, cache = read.tokens, read.mask, read.cache
    found: list[list[int]] = [[] for _ in read.rows]
    rows, going = read.rows, np.ones(len(read.rows), dtype=bool)
    while True:
        logits, cache = model.step(tokens, mask, cache)
        best = logits.argmax(dim=-1)
        for place, new in enumerate(best.tolist()):
            if going[place]:
                found[rows[place]].append(new)
                going[place] = not ended(rows[place], found[rows[place]])
        if not going.any():
            return found
        if going.sum() * 4 <= len(going) * 3:
            left = np.flatnonzero(going)
            kept = _on(model, left)
            cache, best, mask = model.keep(cache, kept), best[kept], mask[kept]
            rows, going = [rows[place] for place in left], np.ones(len(left), dtype=bool)
        tokens = best.unsqueeze(1)
        # A row that has ended counts no further: its context may be full.
        mask = torch.cat([mask, _on(model, going.astype(np.int64)[:, None])], dim=1)


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
