"""The models of a recipe, opened: all of one vocabulary where the recipe says of which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.aligned import align, holders_of, zero_rows
from evomerge.checkpoints import Checkpoint, open_checkpoint
from evomerge.errors import CheckpointError, Place
from evomerge.recipe import Recipe
from evomerge.slices import SlicedRecipe

if TYPE_CHECKING:
    from evomerge.tokenizer_files import NewTokenizer


@dataclass(frozen=True)
class RecipeInputs:
    """The checkpoints of a recipe, the donor of its configuration first.

    `tokenizer` is that of the result where the recipe asks for one, `template` its chat template.
    """

    checkpoints: tuple[Checkpoint, ...]
    tokenizer: NewTokenizer | None = None
    template: str | None = None
    notes: tuple[str, ...] = ()  # what the user should know, a sentence each

    @property
    def donor(self) -> Checkpoint:
        """The model whose configuration and other files the result has."""
        return self.checkpoints[0]

    def in_vocabulary(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return a configuration of the donor's for the vocabulary of the result."""
        return self.tokenizer.config(self.donor, config) if self.tokenizer else dict(config)

    @property
    def described(self) -> list[str]:
        """A sentence on the vocabulary, where the recipe asks for one."""
        if self.tokenizer is None:
            return []
        alignment = self.tokenizer.alignment
        return [
            f"its tokenizer has {len(alignment.ids)} tokens, its embeddings {alignment.size} rows"
        ]

    def write_template(self, folder: Path) -> None:
        """Give the tokenizer in a folder the recipe's chat template, where it asks for one."""
        if self.template is not None:
            from evomerge.tokenizer_files import write_template

            write_template(self.template, folder)


def open_inputs(recipe: Recipe | SlicedRecipe, source: str, *, trust: bool = False) -> RecipeInputs:
    """Open all models of a recipe; a tokenizer's own code may run where `trust` is set.

    Raises CheckpointError where a model or tokenizer cannot be read, and RecipeError where the
    recipe asks for a vocabulary or template that there is not.
    """
    place = Place(source, CheckpointError)
    refs = dict.fromkeys([recipe.donor, *recipe.inputs])
    form = recipe.form if isinstance(recipe, SlicedRecipe) else "models"
    opened = [
        open_checkpoint(ref, place / ("base_model" if ref == recipe.base_model else form))
        for ref in refs
    ]
    rules = recipe.text
    if rules.tokenizer is None and rules.chat_template is None:
        return RecipeInputs(tuple(opened))
    from evomerge.tokenizer_files import chosen_template, make_tokenizer

    template = chosen_template(rules, [one.folder for one in opened], source)
    if rules.tokenizer is None:
        return RecipeInputs(tuple(opened), template=template)
    tokenizer = make_tokenizer(rules.tokenizer, opened, trust)
    holders = holders_of(recipe, opened)
    aligned = align(opened, tokenizer.alignment, holders, recipe.result_dtype is not None)
    notes = [*tokenizer.notes, *zero_rows(holders, tokenizer.alignment)]
    return RecipeInputs(tuple(aligned), tokenizer, template, tuple(notes))
