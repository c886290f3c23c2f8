"""Recipes that a study begins with: read, and known by the study's own names of its models."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evomerge.checkpoints import ModelRef
from evomerge.encoding import encode
from evomerge.errors import Found, Place, RecipeError, SpaceError
from evomerge.files import beside, exists, load_yaml
from evomerge.recipe import Recipe, parse_recipe
from evomerge.search_space import SearchSpace


@dataclass(frozen=True)
class Start:
    """A recipe to begin with, and where the study file names it."""

    recipe: Recipe
    place: Place

    def values(self, space: SearchSpace, tensors: Sequence[str]) -> dict[str, Any]:
        """Return its point of a space; raises SpaceError where there is none."""
        place = Place(self.place.document, SpaceError, self.place.path)
        return encode(space, self.recipe, tensors, place)


def read_starts(
    sources: Sequence[str | Mapping[str, Any]],
    refs: Collection[ModelRef],
    folder: Path,
    place: Place,
) -> tuple[Start, ...]:
    """Read recipes, given by path or as themselves; raises RecipeError for one that is wrong.

    Paths are relative to `folder`.
    """
    found = []
    for index, source in enumerate(sources):
        here = place[index]
        folders = [Path.cwd(), folder]
        if isinstance(source, str):
            path = folder / Path(source).expanduser()
            if not exists(path):
                lost = Place(here.document, RecipeError, here.path)
                raise lost.fail("a recipe", Found(f"{path}, which does not exist"), beside(path))
            data: object = load_yaml(path, RecipeError)
            folders.insert(0, path.parent)
            recipe = parse_recipe(data, Place(str(path), RecipeError))
        else:
            recipe = parse_recipe(source, Place(here.document, RecipeError, here.path))
        found.append(Start(own_recipe(recipe, refs, folders), here))
    return tuple(found)


def own_recipe(recipe: Recipe, refs: Collection[ModelRef], folders: Sequence[Path]) -> Recipe:
    """Return a recipe in which the models of a study are called as the study calls them.

    Its local paths are tried in each of the folders; other models stay as they are.
    """

    def named(ref: ModelRef) -> ModelRef:
        options = [ref, *(ref.resolved(folder) for folder in folders)]
        return next((one for one in options if one in refs), ref)

    models = tuple(replace(entry, model=named(entry.model)) for entry in recipe.models)
    base = None if recipe.base_model is None else named(recipe.base_model)
    return replace(recipe, base_model=base, models=models)
