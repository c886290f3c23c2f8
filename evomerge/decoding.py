"""What proxy tasks ask of a language model: teacher-forced scores and greedy continuations.

Batches depend on the items alone, so the same weights get the same numbers each time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from evomerge.models import LanguageModel

_BATCH_TOKENS = 8192
_BATCH_LOGITS = 1 << 26  # elements of a batch's log-probabilities: 256 MiB in float32

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TokenSequence:
    """Token ids of which the last `scored` are to be predicted from what precedes them."""

    ids: tuple[int, ...]
    scored: int


@dataclass(frozen=True)
class Forced:
    """Teacher-forced numbers of one sequence, each float32 [scored].

    `log_probability` is that of the gold token; `margin` its logit less the best other token's, so
    positive where greedy decoding gives the gold token.
    """

    log_probability: Vector
    margin: Vector


def teacher_force(model: LanguageModel, sequences: Sequence[TokenSequence]) -> list[Forced]:
    """Score sequences, in their order; each needs at least one token before the scored ones."""
    found: dict[int, Forced] = {}
    order = sorted(range(len(sequences)), key=lambda index: (len(sequences[index].ids), index))
    for batch in _batches(order, sequences, model.vocabulary):
        members = [sequences[index] for index in batch]
        keep = max(member.scored for member in members)
        ids, mask = _left_padded([member.ids[:-1] for member in members], model.device)
        log_probabilities, _ = model.log_probabilities(ids, mask, keep)
        gold = torch.zeros((len(batch), keep), dtype=torch.int64)
        for row, member in enumerate(members):
            gold[row, keep - member.scored :] = torch.tensor(member.ids[-member.scored :])
        gold = gold.to(model.device).unsqueeze(-1)
        chosen = log_probabilities.gather(-1, gold)
        others = log_probabilities.scatter(-1, gold, float("-inf")).amax(dim=-1, keepdim=True)
        both = torch.cat([chosen, chosen - others], dim=-1).cpu().numpy()
        for row, (index, member) in enumerate(zip(batch, members, strict=True)):
            tail = both[row, keep - member.scored :]
            found[index] = Forced(tail[:, 0].copy(), tail[:, 1].copy())
    return [found[index] for index in range(len(sequences))]


def greedy(
    model: LanguageModel,
    prompts: Sequence[tuple[int, ...]],
    longest: Sequence[int],
    finished: Callable[[int, list[int]], bool],
) -> list[list[int]]:
    """Continue prompts greedily with a KV cache; returns the new tokens of each, in order.

    Prompt i stops after `longest[i]` tokens or as soon as `finished(i, tokens)` says so; a batch
    stops with its last prompt.
    """
    found: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), index))
    sequences = [
        TokenSequence(prompt + (0,) * most, 1)
        for prompt, most in zip(prompts, longest, strict=True)
    ]
    for batch in _batches(order, sequences, model.vocabulary):
        ids, mask = _left_padded([prompts[index] for index in batch], model.device)
        cache: object = None
        running = set(range(len(batch)))
        while running:
            log_probabilities, cache = model.log_probabilities(ids, mask, 1, cache)
            best = log_probabilities[:, -1].argmax(dim=-1)
            for row, token in enumerate(best.tolist()):
                if row not in running:
                    continue
                index = batch[row]
                found[index].append(token)
                if len(found[index]) >= longest[index] or finished(index, found[index]):
                    running.discard(row)
            ids = best.unsqueeze(1)
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
    return found


def _batches(
    order: Sequence[int], sequences: Sequence[TokenSequence], vocabulary: int
) -> list[list[int]]:
    batches: list[list[int]] = []
    longest = scored = 0
    for index in order:
        longest = max(longest, len(sequences[index].ids))
        scored = max(scored, sequences[index].scored)
        size = len(batches[-1]) + 1 if batches else 0
        if (
            not batches
            or size * longest > _BATCH_TOKENS
            or size * scored * vocabulary > _BATCH_LOGITS
        ):
            batches.append([])
            longest, scored = len(sequences[index].ids), sequences[index].scored
        batches[-1].append(index)
    return batches


def _left_padded(
    prompts: Sequence[tuple[int, ...]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(prompt) for prompt in prompts)
    ids = torch.zeros((len(prompts), width), dtype=torch.int64)
    mask = torch.zeros((len(prompts), width), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)
