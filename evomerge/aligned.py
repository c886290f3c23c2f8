"""Checkpoints seen under another vocabulary, as the merge of models of several needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from evomerge.checkpoints import FLOATING, Checkpoint, ModelRef, TensorInfo
from evomerge.compatibility import tied_copies
from evomerge.errors import CheckpointError
from evomerge.placement import place_tensors
from evomerge.recipe import Recipe
from evomerge.slices import SlicedRecipe
from evomerge.tensor_files import TensorsByName
from evomerge.vocabulary import Alignment, RowPlan, vocabulary_tensors

if TYPE_CHECKING:
    import torch


# The models that each vocabulary tensor is merged from, and the base there.
Holders = Mapping[str, tuple[tuple[ModelRef, ...], ModelRef | None]]


def align(
    opened: Sequence[Checkpoint], alignment: Alignment, holders: Holders, exact: bool
) -> list[Checkpoint]:
    """Return a recipe's checkpoints, the donor first, with the vocabulary of the result.

    With `exact`, a tensor whose rows are computed from several becomes float32. Raises
    CheckpointError where a token's source lacks a tensor that needs it.
    """
    rows_of = cache(alignment.rows_of)  # embeddings and head mostly have the same
    by_ref = {checkpoint.ref: checkpoint for checkpoint in opened}
    plans: dict[ModelRef, dict[str, RowPlan]] = {ref: {} for ref in by_ref}
    donor = opened[0]
    for name, (models, base) in holders.items():
        for token, rule in alignment.rules.tokens.items():
            if rule.source and rule.source.model and rule.source.model not in models:
                raise CheckpointError(
                    f"expected {name} in {rule.source.model}, which the recipe names as the source "
                    f"of the token {token!r}, got none among those merged there"
                )
        for model, plan in zip(models, rows_of(models, base), strict=True):
            plans[model][name] = plan
        if donor.ref not in models and name in donor.tensors:  # not merged, yet the pattern
            plans[donor.ref][name] = rows_of((donor.ref, *models), base)[0]
    return [
        Aligned(
            one.ref,
            one.folder,
            _resized(one, plans, by_ref, exact),
            one.adapter,
            original=one,
            plans=plans[one.ref],
            others=by_ref,
        )
        for one in opened
    ]


def zero_rows(holders: Holders, alignment: Alignment) -> list[str]:
    """Return a sentence for each tensor with tokens that none of its models has."""
    found = []
    for name, (models, _) in holders.items():
        tokens = alignment.without_source(models)
        if tokens:
            shown = repr(tokens[0]) + (f" and {len(tokens) - 1} more tokens" if tokens[1:] else "")
            found.append(f"none of the models merged into {name} has {shown}: its row is zeros")
    return found


def holders_of(recipe: Recipe | SlicedRecipe, opened: Sequence[Checkpoint]) -> Holders:
    """Return the models that each vocabulary tensor is merged from, and the base there."""
    known = {one.ref: vocabulary_tensors(one)[1] for one in opened}
    names = sorted(set().union(*known.values()) - tied_copies(opened))
    if isinstance(recipe, SlicedRecipe):
        placed = place_tensors(recipe, opened)
        return {
            name: (
                tuple(ref for ref in placed[name].sources if name in known[ref]),
                placed[name].slice.base_model,
            )
            for name in names
            if name in placed
        }
    models = [ref for ref in known if ref in recipe.inputs]
    return {
        name: (tuple(ref for ref in models if name in known[ref]), recipe.base_model)
        for name in names
    }


def _resized(
    one: Checkpoint,
    plans: Mapping[ModelRef, Mapping[str, RowPlan]],
    by_ref: Mapping[ModelRef, Checkpoint],
    exact: bool,
) -> dict[str, TensorInfo]:
    """Return the tensors of a checkpoint as they are after the alignment."""
    tensors = dict(one.tensors)
    for name, plan in plans[one.ref].items():
        info = tensors[name]
        mixed = any(by_ref[ref].tensors[name].dtype != info.dtype for ref in plan.sources)
        dtype = "F32" if exact and (plan.computed or mixed) else info.dtype
        tensors[name] = replace(info, shape=(len(plan.own), *info.shape[1:]), dtype=dtype)
    return tensors


@dataclass(frozen=True, kw_only=True)
class Aligned(Checkpoint):
    """A checkpoint whose vocabulary tensors have other rows: `plans` by the tensor's name."""

    original: Checkpoint
    plans: Mapping[str, RowPlan]
    others: Mapping[ModelRef, Checkpoint]

    @cached_property
    def config(self) -> dict[str, Any]:
        """The original's configuration."""
        return self.original.config

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield tensors one by one, as `Checkpoint.read`."""
        names = list(names)
        yield from self.original.read([name for name in names if name not in self.plans])
        for name in names:
            if name in self.plans:
                yield name, self._rows(name)

    def map(self, names: Iterable[str]) -> Mapping[str, torch.Tensor]:
        """Return tensors as `Checkpoint.map`; a vocabulary tensor is put together each time."""
        stored = self.original.map(names)
        return TensorsByName(
            stored, lambda name: self._rows(name) if name in self.plans else stored[name]
        )

    def _rows(self, name: str) -> torch.Tensor:
        import torch

        plan = self.plans[name]
        others = {ref: self.others[ref].map([name])[name] for ref in plan.sources}
        dtype: torch.dtype = getattr(torch, FLOATING[self.tensors[name].dtype])
        return plan.apply(self.original.map([name])[name], others, dtype)
