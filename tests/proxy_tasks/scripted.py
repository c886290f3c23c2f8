"""A language model whose next-token logits are a function of the tokens so far."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from evomerge.language_model import Past

CPU = torch.device("cpu")
Rule = Callable[[tuple[int, ...]], dict[int, float]]


@dataclass
class Scripted:
    """`rule` maps the tokens so far to the logits that are not 0."""

    rule: Rule
    vocabulary: int
    context: int | None = None
    device: torch.device = CPU
    steps: int = 0  # of greedy decoding

    def _after(self, tokens: list[int]) -> torch.Tensor:
        found = torch.zeros(self.vocabulary)
        for token, logit in self.rule(tuple(tokens)).items():
            found[token] = logit
        return found

    def logits(self, ids: torch.Tensor, keep: int, past: Past | None = None) -> torch.Tensor:
        whole = _after_past(ids, past)
        width = whole.shape[1]
        rows = [
            torch.stack([self._after(row[: end + 1]) for end in range(width - keep, width)])
            for row in whole.tolist()
        ]
        return torch.stack(rows)

    def remember(self, ids: torch.Tensor, past: Past | None = None) -> object:
        return _after_past(ids, past)

    def join(self, parts: Sequence[Past], lengths: Sequence[int]) -> object:
        each = [row for one in parts for row in one.state[one.rows]]
        pairs = zip(each, lengths, strict=True)
        return torch.stack([pad(row[:size], (max(lengths) - size, 0)) for row, size in pairs])

    def step(
        self, ids: torch.Tensor, mask: torch.Tensor, cache: object
    ) -> tuple[torch.Tensor, object]:
        self.steps += 1
        seen = torch.cat([cache, ids], dim=1) if isinstance(cache, torch.Tensor) else ids
        rows = [
            [token for token, real in zip(*row, strict=True) if real]
            for row in zip(seen.tolist(), mask.tolist(), strict=True)
        ]
        return torch.stack([self._after(row) for row in rows]), seen

    def keep(self, cache: torch.Tensor, rows: torch.Tensor) -> object:
        return cache[rows]

    def pads(self) -> bool:
        return True


def _after_past(ids: torch.Tensor, past: Past | None) -> torch.Tensor:
    if past is None:
        return ids
    assert isinstance(past.state, torch.Tensor)
    return torch.cat([past.state[past.rows], ids], dim=1)


def saying(prompt: tuple[int, ...], text: tuple[int, ...], sure: float = 3.0) -> Rule:
    """Return the rule of a model that continues a prompt with a text, then with token 0."""

    def rule(tokens: tuple[int, ...]) -> dict[int, float]:
        whole = prompt + text
        if tokens != whole[: len(tokens)] or len(tokens) < len(prompt):
            return {0: sure}
        return {whole[len(tokens)] if len(tokens) < len(whole) else 0: sure}

    return rule
