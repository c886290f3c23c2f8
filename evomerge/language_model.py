"""What scoring asks of a language model, and the ensemble of several."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True)
class Past:
    """What precedes sequences: row i follows row `rows[i]` (int64 [B]) of a remembered state."""

    state: object
    rows: torch.Tensor


class LanguageModel(Protocol):
    """What scoring asks of a model: logits, each position's up to a constant of its own.

    A model with `labels` classifies texts, and has `classes` in the place of all else.
    """

    device: torch.device
    vocabulary: int  # number of token ids, V
    context: int | None  # most tokens of a sequence, where the model has a limit
    labels: tuple[str, ...]  # names of the C classes

    def logits(self, ids: torch.Tensor, keep: int, past: Past | None = None) -> torch.Tensor:
        """Run sequences, int64 [B, T], padded on the right with any token, each after its past.

        Returns floating [B, keep, V], what follows each of the last `keep` positions. A causal
        model never sees the padding from the positions before it, so none is masked.
        """
        ...

    def remember(self, ids: torch.Tensor, past: Past | None = None) -> object:
        """Run sequences, int64 [B, T], and return the state for pasts of others.

        None where the model cannot go on from a state with more than one token. There may be
        padding on the right for `join`, which leaves it out.
        """
        ...

    def join(self, parts: Sequence[Past], lengths: Sequence[int]) -> object:
        """Return the first cache of steps: the rows of all parts, whose states may be padded.

        Of row i the first `lengths[i]` tokens count, and are padded on the left.
        """
        ...

    def step(
        self, ids: torch.Tensor, mask: torch.Tensor, cache: object
    ) -> tuple[torch.Tensor, object]:
        """Run int64 [B, T], padded on the left, after what `cache` has seen (None: nothing).

        `mask` int64 [B, past + T] is 0 on padding. Returns floating [B, V], what follows the last
        position, and the cache for the next step; a cache is used once.
        """
        ...

    def keep(self, cache: object, rows: torch.Tensor) -> object:
        """Return the cache of a step for the rows int64 [n] alone, which go on."""
        ...

    def pads(self) -> bool:
        """Return whether padding on the left of steps changes nothing, as where positions are told.

        Where it does, as where they are counted with it, only equal lengths go side by side.
        """
        ...

    def classes(
        self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Classify sequences, int64 [B, T], padded on the right where `mask` int64 [B, T] is 0.

        `types` int64 [B, T] says which of two texts a token is of, where the tokenizer does.
        Returns the classes' logits, floating [B, C].
        """
        ...


class Ensemble:
    """The probability ensemble: the mean of the members' probabilities of tokens or classes.

    Deep ensembles (Lakshminarayanan et al. 2017, arXiv:1612.01474, section 2.4), token by token.
    Its logits are log-probabilities, float32.
    """

    def __init__(self, members: Sequence[LanguageModel]) -> None:
        self._members = list(members)
        self.device = members[0].device
        self.vocabulary = members[0].vocabulary
        self.context = members[0].context
        self.labels = members[0].labels

    @torch.inference_mode()
    def logits(self, ids: torch.Tensor, keep: int, past: Past | None = None) -> torch.Tensor:
        """See LanguageModel."""
        each = zip(self._members, self._pasts(past), strict=True)
        return _log_mean((one.logits(ids, keep, its) for one, its in each), len(self._members))

    def remember(self, ids: torch.Tensor, past: Past | None = None) -> object:
        """See LanguageModel; the state is the list of the members' states."""
        each = zip(self._members, self._pasts(past), strict=True)
        states = [one.remember(ids, its) for one, its in each]
        return None if any(state is None for state in states) else states

    def _pasts(self, past: Past | None) -> list[Past | None]:
        states = past.state if past is not None and isinstance(past.state, list) else []
        return [Past(one, past.rows) for one in states] if past else [None] * len(self._members)

    def join(self, parts: Sequence[Past], lengths: Sequence[int]) -> object:
        """See LanguageModel; the cache is the list of the members' caches."""
        each = zip(*map(self._pasts, parts), strict=True)
        return [one.join(its, lengths) for one, its in zip(self._members, each, strict=True)]

    @torch.inference_mode()
    def step(
        self, ids: torch.Tensor, mask: torch.Tensor, cache: object
    ) -> tuple[torch.Tensor, object]:
        """See LanguageModel."""
        caches = cache if isinstance(cache, list) else [None] * len(self._members)
        found = [
            member.step(ids, mask, past) for member, past in zip(self._members, caches, strict=True)
        ]
        return _log_mean((logits for logits, _ in found), len(found)), [past for _, past in found]

    def keep(self, cache: object, rows: torch.Tensor) -> object:
        """See LanguageModel."""
        caches = cache if isinstance(cache, list) else []
        return [member.keep(one, rows) for member, one in zip(self._members, caches, strict=True)]

    def pads(self) -> bool:
        """See LanguageModel."""
        return all(member.pads() for member in self._members)

    @torch.inference_mode()
    def classes(
        self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See LanguageModel."""
        each = (one.classes(ids, mask, types) for one in self._members)
        return _log_mean(each, len(self._members))


def _log_mean(members: Iterable[torch.Tensor], count: int) -> torch.Tensor:
    """Return the logarithm of the mean of softmax(logits), float32, over members of [..., V]."""
    each = (torch.log_softmax(logits.float(), dim=-1) for logits in members)
    return functools.reduce(torch.logaddexp, each) - math.log(count)
