"""Recipe to tables: what the kernels read, for each group of tensors that the same inputs have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from evomerge import merge_methods
from evomerge.checkpoints import ModelRef
from evomerge.errors import CandidateError, Place, RecipeError
from evomerge.merge_methods import COLUMNS, WHOLE, Array, MergeMethod, Settings
from evomerge.merger import random
from evomerge.merger.layout import Group, Layout
from evomerge.merger.materialize import Table, tabulate
from evomerge.merger.prepare import InputStatistics
from evomerge.merger.selected import Selected
from evomerge.recipe import Recipe, resolve

Ranks = tuple[int, int, int, int]  # of what: base, model, seed, position


@dataclass(frozen=True)
class GroupPlan:
    """How to merge the tensors of a group.

    A table, on each device that some of them lie on, serves all of them in one pass, but for those
    of `lines` {tensor: settings}, which are planned line by line, along columns or rows; there is
    none where they are all like that.
    """

    method: MergeMethod
    base: int | None
    models: tuple[int, ...]
    tables: Mapping[torch.device, Table]
    ranks: tuple[Ranks, ...] = ()
    lines: Mapping[int, Mapping[str, Array]] = field(default_factory=dict)
    by_column: frozenset[int] = frozenset()

    @property
    def inputs(self) -> tuple[int, ...]:
        """The inputs in the order in which the kernel takes them, the base first."""
        return (() if self.base is None else (self.base,)) + self.models


@dataclass(frozen=True)
class Planner:
    """Plans recipes for a layout."""

    layout: Layout
    numbers: Mapping[ModelRef, int]
    statistics: InputStatistics

    def number(self, ref: ModelRef) -> int:
        """Return the number of an input; raises RecipeError for one that is not loaded."""
        if ref not in self.numbers:
            known = ", ".join(str(one) for one in self.numbers)
            raise RecipeError(f"expected one of the loaded models ({known}), got {ref}")
        return self.numbers[ref]

    def plan(self, recipe: Recipe) -> list[GroupPlan]:
        """Return the plan of each group; raises RecipeError and CandidateError."""
        base = self.number(recipe.base) if recipe.base else None
        models = [self.number(entry.model) for entry in recipe.entries]
        values = resolve(recipe, self.layout.tensors)
        return [self._group(group, recipe, base, models, values) for group in self.layout.groups]

    def _group(
        self,
        group: Group,
        recipe: Recipe,
        base: int | None,
        models: Sequence[int],
        values: Mapping[str, Array],
    ) -> GroupPlan:
        method = recipe.method
        positions = [at for at, model in enumerate(models) if model in group.inputs]
        present = tuple(models[at] for at in positions)
        if base is not None and base not in group.inputs:
            raise self._lacking(group, recipe, f"the base model {recipe.base} lacks")
        if not present:
            return self._copy(group, 0 if base is None else base)
        if len(present) < method.minimum:
            raise self._lacking(group, recipe, f"only {len(present)} of the models have")
        own = list(group.tensors)
        chosen = {
            declared.name: values[declared.name][..., own]
            if declared.scope == "global"
            else values[declared.name][positions][:, own]
            for declared in method.parameters
        }
        seed = recipe.parameters.get("seed", 0) if method.stochastic else 0
        assert isinstance(seed, int)
        names = [self.layout.tensors[tensor] for tensor in own]
        statistics = Selected(self.statistics, base, present, tuple(positions), group.tensors)
        settings = Settings(chosen, statistics, names, seed)
        along = method.along(settings) if method.along else np.zeros(len(own))
        lines = {
            tensor: {name: one[..., index] for name, one in chosen.items()}
            for index, tensor in enumerate(own)
            if along[index] != WHOLE
        }
        by_column = frozenset(np.array(own)[along == COLUMNS].tolist())
        if len(lines) == len(own):
            return GroupPlan(method, base, present, {}, (), lines, by_column)
        keys = random.keys(seed, positions, names) if method.stochastic else None
        ranks: tuple[Ranks, ...] = ()
        if len(method.probabilities) > 1:
            assert base is not None
            ranks = tuple(
                (base, model, seed, at) for model, at in zip(present, positions, strict=True)
            )
        columns = checked(method, settings)
        table = tabulate(method.kernel, columns, method.probabilities, keys)
        return GroupPlan(method, base, present, self._placed(group, table), ranks, lines, by_column)

    def _placed(self, group: Group, table: Table) -> dict[torch.device, Table]:
        names = (self.layout.tensors[tensor] for tensor in group.tensors)
        return {place: table.to(place) for place in {self.layout.devices[name] for name in names}}

    def _copy(self, group: Group, source: int) -> GroupPlan:
        """Plan to take the tensors of a group as they are in one input."""
        method = merge_methods.get("passthrough", Place("", RecipeError))
        table = tabulate(method.kernel, {"scale": np.ones((1, len(group.tensors)))})
        return GroupPlan(method, None, (source,), self._placed(group, table))

    def _lacking(self, group: Group, recipe: Recipe, what: str) -> RecipeError:
        name = self.layout.tensors[group.tensors[0]]
        return RecipeError(
            f"{recipe.merge_method} cannot merge {name}, which {what}; models to merge must share "
            "one architecture"
        )


def checked(method: MergeMethod, settings: Settings) -> Mapping[str, Array]:
    """Return a method's columns; raises CandidateError where float32 cannot hold them."""
    with np.errstate(all="ignore"):  # what overflows is refused below
        columns = method.plan(settings)
        if not all(np.isfinite(np.float32(column)).all() for column in columns.values()):
            raise CandidateError("the recipe's numbers overflow float32")
    return columns
