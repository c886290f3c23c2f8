"""Scores any model or recipe on the tasks of a study."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.architectures import check_runnable
from evomerge.checkpoints import Checkpoint, ModelRef, open_checkpoint
from evomerge.errors import (
    CheckpointError,
    Found,
    InputError,
    Place,
    RecipeError,
)
from evomerge.evaluator import SPLITS, Split
from evomerge.fitness import (
    Fitness,
    TaskScores,
    best_of,
    mean_correct,
    mean_scores,
    normalized_accuracy,
)
from evomerge.merger import Progress
from evomerge.merger.inputs import Memory
from evomerge.recipe import Recipe, load_recipe
from evomerge.recipe_inputs import open_inputs
from evomerge.study.file import (
    CheckedStudy,
    check_study,
    load_study_file,
)
from evomerge.study.scorer import Scorer


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
    temperatures, experts = _of_experts(checked, chosen, device, memory, trust, progress)
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
    scorer.set_temperatures(temperatures)
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


def _of_experts(
    checked: CheckedStudy,
    split: Split,
    device: str | None,
    memory: Memory,
    trust: bool,
    progress: Progress,
) -> tuple[dict[str, float], list[TaskScores]]:
    """Return the temperatures that the experts' margins give, and their scores."""
    scorer = Scorer(
        checked.checkpoints,
        checked.tasks,
        checked.tokenizer,
        device=device,
        memory=memory,
        trust=trust,
        progress=progress,
    )
    temperatures = scorer.fit_temperatures()
    refs = [ref for name, ref in checked.refs.items() if name != "base"]
    return temperatures, [scorer.model(ref, split, exact=True) for ref in refs]
