"""What the commands that only read ask of studies, recipes and models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.assembly import assemble
from evomerge.checkpoints import Checkpoint, ModelRef, open_checkpoint
from evomerge.compatibility import check_alike, differences
from evomerge.errors import (
    CheckpointError,
    Found,
    InputError,
    Place,
    RecipeError,
    nearest,
)
from evomerge.evaluator import SPLITS, Split
from evomerge.explain import as_data, as_lines, explain
from evomerge.files import load_yaml
from evomerge.fitness import (
    Fitness,
    TaskScores,
    best_of,
    mean_correct,
    mean_scores,
    normalized_accuracy,
)
from evomerge.layer_config import assembled_config
from evomerge.merger import Progress
from evomerge.merger.inputs import Memory
from evomerge.models import check_runnable
from evomerge.recipe import Recipe, load_recipe, resolve
from evomerge.recipe_inputs import open_inputs
from evomerge.settings import Conditional
from evomerge.slices import SlicedRecipe, load_any_recipe
from evomerge.study.export import exported
from evomerge.study.file import (
    CheckedStudy,
    check_study,
    load_study_file,
)
from evomerge.study.scorer import Scorer
from evomerge.study.store import studies
from evomerge.study.summary import status, status_line, stored_report, trial_history

__all__ = [
    "check",
    "evaluate",
    "explained",
    "exported",
    "status",
    "status_line",
    "stored_report",
    "studies",
    "trial_history",
]


def evaluate(
    what: str,
    study: Path,
    split: str,
    device: str | None,
    memory: Memory,
    trust: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Score a model's folder, a Hub id or a recipe file on a study's tasks.

    The models' own code runs only where `trust` is set.
    """
    if split not in SPLITS:
        raise InputError(f"expected a split among {', '.join(SPLITS)}, got {split!r}")
    checked = check_study(load_study_file(study), trust)
    subject = _open_subject(what)
    first = subject.checkpoints[0]
    check_runnable(first.folder, {name: one.shape for name, one in first.tensors.items()}, trust)
    chosen: Split = split
    experts = _expert_scores(checked, chosen, device, memory, trust, progress)
    scorer = Scorer(
        subject.checkpoints,
        checked.tasks,
        checked.tokenizer,
        result_dtype=subject.recipe.result_dtype if subject.recipe else None,
        device=device,
        memory=memory,
        trust=trust,
        progress=progress,
    )
    scores = (
        scorer.recipe(subject.recipe, chosen, exact=True)
        if subject.recipe
        else scorer.model(first.ref, chosen, exact=True)
    )
    reference = best_of([mean_scores(one) for one in experts])
    fitness = Fitness(reference, checked.file.fitness.worst)
    means, correct = mean_scores(scores), mean_correct(scores)
    return {
        "fitness": fitness.of(means),
        "normalized": normalized_accuracy(scores, experts).value,
        "tasks": {name: {"accuracy": correct[name], "score": means[name]} for name in means},
    }


@dataclass(frozen=True)
class _Subject:
    """What is to be evaluated: a recipe with its inputs, or one model."""

    recipe: Recipe | None
    checkpoints: tuple[Checkpoint, ...]


def _open_subject(what: str) -> _Subject:
    if what.endswith((".yaml", ".yml")) or Path(what).is_file():
        recipe = load_recipe(Path(what))
        if recipe.text.tokenizer:
            hint = "merge it, and evaluate the folder that it makes"
            raise Place(what, RecipeError).fail("no tokenizer", Found("one"), hint)
        return _Subject(recipe, open_inputs(recipe, what).checkpoints)
    place = Place("the command line", CheckpointError, "MODEL_OR_RECIPE")
    return _Subject(None, (open_checkpoint(ModelRef.parse(what, place), place),))


def _expert_scores(
    checked: CheckedStudy,
    split: Split,
    device: str | None,
    memory: Memory,
    trust: bool,
    progress: Progress,
) -> list[TaskScores]:
    scorer = Scorer(
        checked.checkpoints,
        checked.tasks,
        checked.tokenizer,
        device=device,
        memory=memory,
        trust=trust,
        progress=progress,
    )
    refs = [ref for name, ref in checked.refs.items() if name != "base"]
    return [scorer.model(ref, split, exact=True) for ref in refs]


def check(file: Path) -> str:
    """Check a study file or a recipe; returns a sentence of what was found."""
    data = load_yaml(file, InputError)
    if not isinstance(data, dict):
        raise Place(str(file), InputError).fail("a study or a recipe", Found("neither"))
    if "merge_method" in data:
        return _check_recipe(load_any_recipe(file), str(file))
    checked = check_study(load_study_file(file))
    items = sum(len(task.examples) for task in checked.tasks)
    return (
        f"{file} is a study of {len(checked.refs) - 1} experts, {len(checked.tasks)} tasks with "
        f"{items} items, {len(checked.space.holes)} dimensions and "
        f"{checked.file.search.trials} trials of {checked.optimizer}"
    )


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
        raise Place(str(file), InputError).fail("a recipe to explain", Found("none"))
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
