"""Which token sequences are run together, and what they begin with in common, planned once."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from evomerge.budgets import Budget

_SHARED = 16  # tokens that are worth running apart from what follows them

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
class Batch:
    """Sequences that are run together, without what their node has run before.

    `ids` int64 [B, T], padded on the right, lack the last token of the longest. Of what follows
    their last `keep` tokens, `picked` int64 [3, n] are rows, columns and the tokens to score.
    Where `beginnings` int64 [D, P] is not None, row i of `ids` follows `beginnings[rows[i]]`.
    """

    ids: torch.Tensor
    keep: int
    picked: torch.Tensor
    beginnings: torch.Tensor | None
    rows: torch.Tensor


@dataclass
class Node:
    """What several batches follow: tokens int64 [1, T] from place `begin` to `end`, run once."""

    begin: int
    end: int
    tokens: torch.Tensor | None = None  # of the root, which is before all tokens, none
    members: list[int] = field(default_factory=list)  # sequences that follow it directly
    batches: list[Batch] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """How sequences are scored: depth first from the root, batches before nodes.

    Sequence i has the scored tokens `targets[starts[i] : starts[i + 1]]`, int64; scored token t is
    number `order[t]`, int64, of those that the run gives.
    """

    root: Node
    starts: Integers
    targets: Integers
    order: Integers
    longest: int
    largest: int


def plan(
    sequences: Sequence[TokenSequence],
    device: torch.device,
    vocabulary: int,
    budget: Budget,
    share: bool,
) -> Plan:
    """Return the plan of sequences; common beginnings are run once where `share` is set.

    It depends on its arguments alone.
    """
    starts = np.concatenate([[0], np.cumsum([one.scored for one in sequences])])
    # Sequences that differ in their last token alone, as options of one token do, are one input.
    alike: dict[tuple[int, ...], list[int]] = {}
    for index, one in enumerate(sequences):
        alike.setdefault(one.ids[:-1], []).append(index)
    askers = list(alike.values())
    inputs = [
        TokenSequence(sequences[each[0]].ids, max(sequences[index].scored for index in each))
        for each in askers
    ]
    root = tree(inputs, budget.worth) if share else Node(0, 0, members=[*range(len(inputs))])
    places: list[Integers] = []
    todo = [root]
    while todo:
        node = todo.pop()
        for batch in _batches(inputs, node, vocabulary, budget, share):
            each = [[sequences[index] for index in askers[row]] for row in batch]
            node.batches.append(_batch([inputs[row] for row in batch], each, node, device, share))
            order = [index for row in batch for index in askers[row]]
            places.extend(np.arange(starts[index], starts[index + 1]) for index in order)
        for below in node.nodes:
            below.tokens = None if below.tokens is None else below.tokens.to(device)
        todo.extend(reversed(node.nodes))
    longest = max(len(one.ids) for one in sequences)
    largest = max(max(one.ids) for one in sequences)
    targets = np.concatenate([one.target for one in sequences])
    return Plan(root, starts, targets, np.concatenate(places).argsort(), longest, largest)


# A study puts the same items to one model after another.
kept_plan = functools.lru_cache(maxsize=8)(plan)


def tree(sequences: Sequence[TokenSequence], worth: int) -> Node:
    """Return what sequences begin with in common, without batches: a node for each beginning.

    A node saves at least `worth` tokens, each but one of its members has them once less. No node
    reaches the token before the first scored one, so that every member has a token of its own.
    """
    order = sorted(range(len(sequences)), key=lambda index: sequences[index].ids)
    arrays = [np.array(sequences[index].ids) for index in order]
    own = np.array(
        [max(0, len(sequences[index].ids) - sequences[index].scored - 1) for index in order]
    )
    common = np.array([0, *itertools.starmap(_common, itertools.pairwise(arrays))])
    common[1:] = np.minimum(common[1:], np.minimum(own[1:], own[:-1]))
    root = Node(0, 0)
    todo = [(0, len(order), root)]
    while todo:
        begin, end, node = todo.pop()
        inner = common[begin + 1 : end]
        # Of what the members share with a neighbour, this is the most that nodes can save.
        if (inner - node.end).sum() < worth:
            node.members += order[begin:end]
            continue
        shared, count = int(inner.min()), end - begin
        if shared - node.end >= _SHARED and (count - 1) * (shared - node.end) >= worth:
            tokens = torch.from_numpy(arrays[begin][None, node.end : shared].astype(np.int64))
            node.nodes.append(Node(node.end, shared, tokens))
            node = node.nodes[-1]
        cuts = [begin, *(np.flatnonzero(inner == shared) + begin + 1).tolist(), end]
        todo.extend((*pair, node) for pair in reversed([*itertools.pairwise(cuts)]))
    return root


def _common(first: Integers, second: Integers) -> int:
    """Return how many elements two arrays begin with in common."""
    size = min(len(first), len(second))
    differ = np.flatnonzero(first[:size] != second[:size])
    return int(differ[0]) if len(differ) else size


def _batches(
    sequences: Sequence[TokenSequence], node: Node, vocabulary: int, budget: Budget, share: bool
) -> list[list[int]]:
    """Return batches of like lengths of a node's members, within the budget.

    Sequences that share what precedes their scored tokens stand together, where many do. Of tokens,
    those after the node's count, with padding, or else what neighbours share once.
    """
    prompts = {index: sequences[index].ids[: -sequences[index].scored] for index in node.members}
    together = share and _repeat(len(set(prompts.values())), len(prompts))

    def place(index: int) -> tuple[int, tuple[int, ...], int]:
        length, prompt = len(sequences[index].ids), prompts[index]
        return (len(prompt), prompt, length) if together else (length, (len(prompt),), 0)

    batches: list[list[int]] = []
    tokens = longest = first = 0
    for index in sorted(node.members, key=place):
        length, prompt = len(sequences[index].ids), prompts[index]
        own = length - node.end
        known = together and bool(batches) and prompt == prompts[batches[-1][-1]]
        longest, first = max(longest, length), min(first, len(prompt))
        size = len(batches[-1]) + 1 if batches else 0
        tokens += length - len(prompt) if known else own
        padded = tokens if together else size * (longest - node.end)
        logits = size * (longest - first) * vocabulary
        if not batches or padded > budget.tokens or logits > budget.logits:
            batches.append([])
            tokens, longest, first = own, length, len(prompt)
        batches[-1].append(index)
    return batches


def _batch(
    inputs: Sequence[TokenSequence],
    askers: Sequence[Sequence[TokenSequence]],
    node: Node,
    device: torch.device,
    share: bool,
) -> Batch:
    """Lay a node's inputs side by side, and what is asked of each one after another."""
    lengths = np.array([len(one.ids) for one in inputs])
    unscored = lengths - np.array([one.scored for one in inputs])
    ids = np.zeros((len(inputs), lengths.max()), dtype=np.int64)
    for row, one in enumerate(inputs):
        ids[row, : lengths[row] - 1] = one.ids[:-1]
    asked = [(row, one) for row, each in enumerate(askers) for one in each]
    rows = np.repeat([row for row, _ in asked], [one.scored for _, one in asked])
    columns = np.concatenate([np.arange(-one.scored, 0) for _, one in asked]) + lengths[rows]
    tokens = np.concatenate([one.target for _, one in asked])
    picked = np.stack([rows, columns - unscored.min(), tokens])
    end, which, first = node.end, np.zeros(len(ids), np.int64), None
    if share:
        end, which, first = _repeated(ids, node.end, int(unscored.min()) - 1)
    beginnings = None if first is None else ids[first, node.end : end]
    return Batch(
        _on(device, ids[:, end:-1]),
        int(ids.shape[1] - unscored.min()),
        _on(device, picked),
        None if beginnings is None else _on(device, beginnings),
        _on(device, which),
    )


def _repeated(ids: Integers, begin: int, most: int) -> tuple[int, Integers, Integers | None]:
    """Find up to which column, `most` at the most, rows of [B, T] are to be run once per kind.

    Returns that column, the kind of each row, int64 [B], and a row of each kind, or None where
    there is nothing to gain.
    """
    if most - begin < _SHARED:
        return begin, np.zeros(len(ids), np.int64), None
    order = np.array(sorted(range(len(ids)), key=lambda row: ids[row, begin:most].tolist()))
    differ = ids[order[1:], begin:most] != ids[order[:-1], begin:most]
    common = np.where(differ.any(axis=1), differ.argmax(axis=1) + begin, most)
    ends = np.unique(common)
    kinds = 1 + (common < ends[:, None]).sum(axis=1)
    best = int(((len(ids) - kinds) * (ends - begin)).argmax()) if len(ends) else 0
    if not len(ends) or ends[best] - begin < _SHARED or not _repeat(int(kinds[best]), len(ids)):
        return begin, np.zeros(len(ids), np.int64), None
    new = np.concatenate([[True], common < ends[best]])
    which = np.empty(len(ids), np.int64)
    which[order] = new.cumsum() - 1
    return int(ends[best]), which, order[new]


def _repeat(different: int, count: int) -> bool:
    """Return whether so few are different that running each once is worth its overhead."""
    return different * 4 <= count * 3


def alike(lengths: Sequence[int], most: int, rows: int) -> Iterable[list[int]]:
    """Yield batches of at most `rows` numbers, the largest of each as often being at most `most`.

    What is counted is the space of a batch that is padded to its largest.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if batch and (lengths[batch[0]] * (len(batch) + 1) > most or len(batch) >= rows):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _on(device: torch.device, array: Integers) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
