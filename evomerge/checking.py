"""Checks of study files and recipes against the real checkpoints, without loading weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from evomerge.assembly import assemble
from evomerge.compatibility import check_alike, differences
from evomerge.errors import Found, InputError, Place, nearest
from evomerge.explain import as_data, as_lines, explain
from evomerge.files import load_yaml
from evomerge.layer_config import assembled_config
from evomerge.recipe import Recipe, resolve
from evomerge.recipe_inputs import open_inputs
from evomerge.settings import Conditional
from evomerge.slices import SlicedRecipe, load_any_recipe

_HINT = "docs/study-file.md and docs/recipes.md say what they have"


def check(file: Path) -> str:
    """Check a study file or a recipe; returns a sentence of what was found."""
    data = load_yaml(file, InputError)
    if not isinstance(data, dict):
        raise Place(str(file), InputError).fail("a study or a recipe", Found("neither"), _HINT)
    if "merge_method" in data:
        return _check_recipe(load_any_recipe(file), str(file))
    from evomerge.architectures import learned_context
    from evomerge.evaluator import Evaluator
    from evomerge.study.file import check_study, load_study_file

    checked = check_study(load_study_file(file))
    evaluator = Evaluator(checked.tasks, checked.tokenizer)
    first = checked.checkpoints[0]
    for context in (first.context, learned_context(first.folder)):
        evaluator.check_lengths(context)
    items = sum(len(task.examples) for task in checked.tasks)
    found = (
        f"{file} is a study of {len(checked.refs) - 1} experts, {len(checked.tasks)} tasks with "
        f"{items} items, {len(checked.space.holes)} dimensions and "
        f"{checked.file.search.trials} trials of {checked.optimizer}"
    )
    told = [*(note for task in checked.tasks for note in task.notes),
            *differences(checked.checkpoints)]  # fmt: skip
    return "\n".join([found, *(f"note: {one}" for one in told)])


def _check_recipe(recipe: Recipe | SlicedRecipe, file: str) -> str:
    inputs = open_inputs(recipe, file)
    opened = inputs.checkpoints
    kind = f"{file} is a {recipe.merge_method} recipe of {len(recipe.inputs)} models"
    if isinstance(recipe, SlicedRecipe):
        parts = assemble(recipe, opened)
        assembled_config(recipe, opened)
        alike = list(dict.fromkeys(one for part in parts for one in differences(part.checkpoints)))
        made = [name for part in parts for name in part.names]
        names = [*made, *(name for checkpoint in opened for name in checkpoint.tensors)]
        first = f"{kind} in {recipe.form} that makes {len(made)} tensors"
    else:
        names = list(check_alike(opened))
        resolve(recipe, names)
        alike = differences(opened)
        first = f"{kind} with {len(names)} tensors each"
    notes = [f"note: {one}" for one in (*inputs.notes, *alike)]
    return "\n".join([first, *inputs.described, *notes, *_unmatched(recipe, names)])


def explained(file: Path, as_json: bool) -> str:
    """Say of every tensor that a recipe writes how it is made, and which lines say so."""
    data = load_yaml(file, InputError)
    if not isinstance(data, dict) or "merge_method" not in data:
        raise Place(str(file), InputError).fail(
            "a recipe to explain", Found("none"), "name a recipe's file"
        )
    recipe = load_any_recipe(file)
    found = explain(recipe, open_inputs(recipe, str(file)).checkpoints)
    return json.dumps(as_data(found), indent=2) if as_json else "\n".join(as_lines(found))


def _unmatched(recipe: Recipe | SlicedRecipe, names: Sequence[str]) -> list[str]:
    """Return a note for every filter that selects no tensor, which is legal but seldom meant."""
    settings = [one for given in recipe.settings for one in given.values()]
    texts = {
        one.filter
        for setting in settings
        if isinstance(setting, tuple)
        for one in setting
        if isinstance(one, Conditional) and one.filter not in (None, "*")
    }
    parts = {part for name in names for part in name.split(".") if not part.isdigit()}
    notes = []
    for text in sorted(text for text in texts if text is not None):
        if not any(text in name for name in names):
            near = nearest(text, parts)
            hint = f"; did you mean {near!r}?" if near else ""
            notes.append(f"note: the filter {text!r} matches no tensor{hint}")
    return notes
