"""Tasks that teacher forcing scores: what all of a study's ask is run together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from evomerge.decoding import Forced, TokenSequence, teacher_force
from evomerge.language_model import LanguageModel
from evomerge.proxy_tasks import ItemScores


class ForcedTask(ABC):
    """A Task whose scores are made of the numbers of token sequences."""

    @abstractmethod
    def sequences(self, items: Sequence[int], context: int | None) -> list[TokenSequence]:
        """Return what is to be run of some examples, by a model of this context."""

    @abstractmethod
    def judged(
        self, model: LanguageModel, items: Sequence[int], exact: bool, forced: Forced
    ) -> ItemScores:
        """Return the scores of some examples by the numbers of their sequences."""

    def scores(self, model: LanguageModel, items: Sequence[int], exact: bool) -> ItemScores:
        """Score some examples alone; see proxy_tasks.Task."""
        forced = teacher_force(model, self.sequences(items, model.context))
        return self.judged(model, items, exact, forced)
