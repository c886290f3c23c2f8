"""Scores recipes and models of a study: merger, live models and evaluator in one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch

from evomerge.architectures import end_to_end
from evomerge.checkpoints import Checkpoint, ModelRef
from evomerge.devices import best_devices
from evomerge.errors import CandidateError, Place, RecipeError
from evomerge.evaluator import Evaluator, Split, TaskItems
from evomerge.fitness import TaskScores
from evomerge.language_model import Ensemble
from evomerge.merger import Merger, Progress
from evomerge.merger.inputs import Memory
from evomerge.models import LiveModel
from evomerge.recipe import Recipe, parse_recipe
from evomerge.temperature import temperature
from evomerge.threads import use_threads
from evomerge.tokenizer_files import Tokenizer

Call = tuple[str, tuple[Any, ...]]  # a method that scores, and its arguments


class Scoring(Protocol):
    """What scores the rows of a report: a `Scorer`, here or elsewhere."""

    tasks: tuple[TaskItems, ...]
    side_by_side: bool

    @property
    def fingerprints(self) -> dict[str, str]:
        """See `Scorer`, as for all of these."""
        ...

    def fit_temperatures(self) -> dict[str, float]:
        """Fit the temperatures that the study leaves open, and use them."""
        ...

    def set_temperatures(self, found: Mapping[str, float]) -> None:
        """Use temperatures that have been fitted."""
        ...

    def recipe(self, recipe: Recipe, split: Split, exact: bool) -> TaskScores:
        """Merge a recipe and score it."""
        ...

    def model(self, ref: ModelRef, split: Split, exact: bool) -> TaskScores:
        """Score one of the inputs."""
        ...

    def ensemble(self, refs: Sequence[ModelRef], split: Split, exact: bool) -> TaskScores:
        """Score an ensemble of inputs."""
        ...

    def digest(self, recipe: Recipe) -> str:
        """Merge a recipe; returns what tells its weights from others."""
        ...

    def ahead(self, calls: Iterable[Call]) -> None:
        """Know what scores will be asked for next."""
        ...


class Scorer:
    """The input models in memory, the one live candidate, and the tasks to score it on.

    The configuration of `checkpoints[0]`, the base, serves every candidate. Raises CheckpointError
    where the models cannot be merged in memory or scored. `trust` lets their own code run.
    """

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        tasks: Sequence[TaskItems],
        tokenizer: Tokenizer,
        *,
        result_dtype: str | None = None,
        device: str | None = None,
        memory: Memory = "auto",
        trust: bool = False,
        progress: Progress = lambda text, done, total: None,
    ) -> None:
        first = checkpoints[0]
        use_threads(sum(torch.Size(info.shape).numel() for info in first.tensors.values()))
        self.tasks = tuple(tasks)
        self._checkpoints = list(checkpoints)
        self._evaluator = Evaluator(tasks, tokenizer)
        self._evaluator.check_lengths(first.context)
        self._devices = best_devices(device)
        self._trust = trust
        shapes = {name: info.shape for name, info in first.tensors.items()}
        runs = end_to_end(first.folder, shapes, trust)
        self.merger = Merger(
            checkpoints,
            result_dtype=result_dtype,
            device=self._devices,
            memory=memory,
            runs=runs,
            progress=progress,
        )
        # Inputs that are streamed to a GPU can be run one at a time only, as candidates, and so can
        # those on disk whose experts do not lie there as a model has them.
        near = self._devices[0].type == "cpu" and not (runs and self.merger.memory == "disk")
        self._resident = near or self.merger.memory == "device"
        alone = any(getattr(task.kind, "NEEDS_MODULE", False) for task in tasks)
        self.side_by_side = self._resident and not alone  # whether an ensemble can be scored

    @property
    def fingerprints(self) -> dict[str, str]:
        """What tells the weights of the inputs from others, by reference."""
        return {str(ref): digest for ref, digest in self.merger.fingerprints.items()}

    @property
    def device(self) -> str:
        """Where candidates are merged and run: cpu, or the name of a GPU, or of several."""
        names = [
            torch.cuda.get_device_name(one) if one.type == "cuda" else str(one)
            for one in self._devices
        ]
        return " + ".join(names)

    @cached_property
    def _candidate(self) -> LiveModel:
        folder = self._checkpoints[0].folder
        found = LiveModel(folder, self.merger.output, self._devices[0], self._trust)
        if self._resident:  # the base says the same in every process
            found.pads_by = self._base_pads
        return found

    def _base_pads(self) -> bool:
        return self._inputs[self._checkpoints[0].ref].pads()

    @cached_property
    def _inputs(self) -> dict[ModelRef, LiveModel]:
        return {
            checkpoint.ref: LiveModel(
                checkpoint.folder, self.merger.input(checkpoint.ref), self._devices[0], self._trust
            )
            for checkpoint in self._checkpoints
        }

    def fit_temperatures(self) -> dict[str, float]:
        """Return the temperature of each task that the study gives none, by its search items.

        The experts, all checkpoints but the first, answer them. It is used from now on. Raises
        CandidateError where an expert cannot be scored.
        """
        names = self._evaluator.open_temperatures
        experts = self._checkpoints[1:] if names else []
        scores = [self.model(one.ref, "search", exact=False) for one in experts]
        found = {name: temperature([one[name] for one in scores]) for name in names}
        known = {name: value for name, value in found.items() if value is not None}
        self._evaluator.set_temperatures(known)
        return known

    def set_temperatures(self, found: Mapping[str, float]) -> None:
        """Use temperatures that have been fitted."""
        self._evaluator.set_temperatures(found)

    def candidate(
        self, recipe: Recipe, split: Split
    ) -> Callable[[Mapping[str, Sequence[int]] | None], TaskScores]:
        """Merge a recipe, to be scored on items of a split by their places, or on all of them.

        Both raise CandidateError where it is impossible.
        """
        self.merger.materialize(recipe)
        return lambda only: _finite(self._evaluator.scores(self._candidate, split, False, only))

    def recipe(self, recipe: Recipe, split: Split, exact: bool) -> TaskScores:
        """Merge a recipe and score it; raises CandidateError where either is impossible."""
        self.merger.materialize(recipe)
        return _finite(self._evaluator.scores(self._candidate, split, exact))

    def digest(self, recipe: Recipe) -> str:
        """Merge a recipe; returns what tells its weights from others."""
        self.merger.materialize(recipe)
        return self.merger.digest()

    def ahead(self, calls: Iterable[Call]) -> None:
        """Know what scores will be asked for next: nothing, with one model at a time."""

    def model(self, ref: ModelRef, split: Split, exact: bool) -> TaskScores:
        """Score one of the inputs as it is."""
        if not self._resident:
            data = {"merge_method": "passthrough", "models": [{"model": str(ref)}]}
            return self.recipe(parse_recipe(data, Place("an input", RecipeError)), split, exact)
        return _finite(self._evaluator.scores(self._inputs[ref], split, exact))

    def ensemble(self, refs: Sequence[ModelRef], split: Split, exact: bool) -> TaskScores:
        """Score the probability ensemble of some inputs, which must be `side_by_side`."""
        members = [self._inputs[ref] for ref in refs]
        return _finite(self._evaluator.scores(Ensemble(members), split, exact))


def _finite(scores: TaskScores) -> TaskScores:
    for task, items in scores.items():
        if not (np.isfinite(items.score).all() and np.isfinite(items.correct).all()):
            raise CandidateError(f"the model gives scores on {task} that are not finite numbers")
    return scores
