"""What proxy tasks ask of a language model: teacher-forced scores and greedy continuations.

Batches depend on the items, the kind of device and its memory alone, so the same weights get the
same bits each time. Among other items, in other batches, the numbers are the same within rounding:
1e-5 in float32, in bfloat16 what its eight bits of a logit leave.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from evomerge import batches
from evomerge.batches import Integers, Node, TokenSequence
from evomerge.budgets import Budget, within_memory
from evomerge.errors import DataError
from evomerge.language_model import LanguageModel, Past

__all__ = ["Forced", "Integers", "TokenSequence", "greedy", "teacher_force"]

_CHUNK = 1 << 24  # elements of logits in float32 at a time: 64 MiB

Floats = npt.NDArray[np.float32]


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
    model's context, for a token that is none of its vocabulary, and for one that finds no memory.
    """
    return within_memory(model.device, lambda budget: _forced(model, sequences, budget))


def _forced(model: LanguageModel, sequences: Sequence[TokenSequence], budget: Budget) -> Forced:
    for share in (True, False):
        plan = batches.plan(sequences, model.device, model.vocabulary, budget, share)
        _check_context(model, plan.longest)
        _check_tokens(model, plan.largest)
        found = _run(model, plan.root)
        if found is not None:
            break
    first, second, third = (part[plan.order] for part in found or ())
    return Forced(plan.starts, first, second, third)


def _run(model: LanguageModel, root: Node) -> list[npt.NDArray[Any]] | None:
    """Return what the plan's batches give, end to end, or None for a model without states."""
    found: list[tuple[torch.Tensor, ...]] = []
    waiting: list[tuple[torch.Tensor, torch.Tensor]] = []  # few of each: one step for them all
    most = max(1, _CHUNK // model.vocabulary)
    todo: list[tuple[Node, object]] = [(root, None)]
    while todo:
        node, before = todo.pop()
        state = before
        if node.tokens is not None:
            state = model.remember(node.tokens, _after(before, node.tokens))
            if state is None:
                return None
        for batch in node.batches:
            past = _after(state, batch.ids)
            if batch.beginnings is not None:
                beginnings = model.remember(batch.beginnings, _after(state, batch.beginnings))
                if beginnings is None:
                    return None
                past = Past(beginnings, batch.rows)
            logits = model.logits(batch.ids, batch.keep, past)
            for row, column, gold in torch.split(batch.picked, most, dim=1):
                if sum(len(tokens) for _, tokens in waiting) + len(gold) > most:
                    found.append(_beside_rivals(waiting))
                    waiting = []
                waiting.append((logits[row, column].float(), gold))
        todo.extend((one, state) for one in reversed(node.nodes))
    found.append(_beside_rivals(waiting))
    return [torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True)]


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
    column, choice = gold.unsqueeze(1), logits.argmax(dim=-1)
    chosen = logits.gather(1, column)[:, 0]
    log_probability = chosen - logits.logsumexp(dim=-1)
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
    `finished(i, tokens)` says so, which should depend on these alone. What all prompts begin with
    is run once, and a batch goes on without the prompts that have stopped. Raises DataError for a
    prompt that fills the context, for a token that is none of the vocabulary, and for a prompt that
    finds no memory.
    """
    if not prompts:
        return []
    lengths = np.array([len(prompt) for prompt in prompts])
    _check_context(model, int(lengths.max()) + 1)
    _check_tokens(model, max(map(max, prompts)))
    most = np.array(longest)
    if model.context is not None:
        most = np.minimum(most, model.context - lengths)

    def run(budget: Budget) -> list[list[int]]:
        header, state = _header(model, prompts, budget)
        found: list[list[int]] = [[] for _ in prompts]
        for batch in batches.alike((lengths + most).tolist(), budget.held):

            def ended(row: int, new: list[int], batch: list[int] = batch) -> bool:
                return len(new) >= most[batch[row]] or finished(batch[row], new)

            tails = [prompts[index][header:] for index in batch]
            for index, new in zip(
                batch, _continued(model, header, state, tails, ended), strict=True
            ):
                found[index] = new
        return found

    return within_memory(model.device, run)


def _header(
    model: LanguageModel, prompts: Sequence[tuple[int, ...]], budget: Budget
) -> tuple[int, object]:
    """Return the length and the state of what all prompts begin with, if that is worth a run."""
    # The first and the last of them in order differ wherever any two do.
    ids = batches.shared_by_all(min(prompts), max(prompts), min(map(len, prompts)) - 1)
    if len(ids) * (len(prompts) - 1) < budget.worth:
        return 0, None
    state = model.remember(_on(model, np.array([ids])), gaps=True)
    return (0 if state is None else len(ids)), state


def _continued(
    model: LanguageModel,
    header: int,
    state: object,
    tails: Sequence[tuple[int, ...]],
    ended: Callable[[int, list[int]], bool],
) -> list[list[int]]:
    """Continue prompts side by side, of which `state` has seen the first `header` tokens.

    Rows that have ended are left out as soon as that makes the batch smaller by a quarter.
    """
    width = max(map(len, tails))
    ids = np.zeros((len(tails), width), dtype=np.int64)
    seen = np.ones((len(tails), header + width), dtype=np.int64)
    for row, tail in enumerate(tails):
        ids[row, width - len(tail) :] = tail
        seen[row, header : header + width - len(tail)] = 0
    tokens, mask = _on(model, ids), _on(model, seen)
    cache: object = _after(state, tokens)
    found: list[list[int]] = [[] for _ in tails]
    rows, going = list(range(len(tails))), np.ones(len(tails), dtype=bool)
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
