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
    StudyError,
    StudyFileError,
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
from evomerge.recipe import Recipe, load_recipe, parse_recipe, resolve
from evomerge.settings import Conditional
from evomerge.slices import SlicedRecipe, load_any_recipe
from evomerge.study.file import (
    CheckedStudy,
    bind_space,
    check_study,
    load_study_file,
    parse_study,
)
from evomerge.study.finals import best_trials
from evomerge.study.scorer import Scorer
from evomerge.study.store import Store, command, studies

__all__ = [
    "check",
    "evaluate",
    "explained",
    "exported",
    "status",
    "status_line",
    "stored_report",
    "studies",
]


def status(name: str, url: str | None) -> dict[str, Any]:
    """Return a study's state as data."""
    store = Store.open(name, url)
    record = store.get("study")
    trials = store.trials()
    count = {
        state: sum(one.state == state for one in trials)
        for state in ("complete", "failed", "running")
    }
    done = [one for one in trials if one.fitness is not None]
    best = max(done, key=lambda one: one.fitness or 0.0, default=None)
    seconds = [
        (one.finished - one.started).total_seconds()
        for one in trials
        if one.started and one.finished
    ]
    recent = sorted(seconds[-20:])
    return {
        "name": name,
        "total": record["trials"],
        "trials": count,
        "best": None if best is None else {"trial": best.number, "fitness": best.fitness},
        "seconds_per_trial": recent[len(recent) // 2] if recent else None,
        "optimizer": record["optimizer"],
        "finished": store.get("report") is not None,
    }


def status_line(status: dict[str, Any]) -> str:
    """Return a study's state in one line."""
    count = status["trials"]
    done = count["complete"] + count["failed"]
    parts = [f"{status['name']}: {done} of {status['total']} trials"]
    parts += [f"{count[state]} {state}" for state in ("failed", "running") if count[state]]
    if status["best"]:
        parts.append(f"best {status['best']['fitness']:.4f} (trial {status['best']['trial']})")
    if status["seconds_per_trial"] is not None:
        parts.append(f"{status['seconds_per_trial']:.2f} s/trial")
    parts += [status["optimizer"], "finished" if status["finished"] else "unfinished"]
    return ", ".join(parts)


def exported(name: str, url: str | None, trial: int | None) -> str:
    """Return the YAML text of a study's recipe: of a trial, the winner, or the best so far.

    Needs the database alone. Raises StudyError where there is no such trial or none has succeeded.
    """
    store = Store.open(name, url)
    recipe, what = _chosen_recipe(store, name, trial)
    lines = [f"Study {name}: {what}.", "Merge with: evomerge merge THIS_FILE OUT_DIR"]
    own = [
        one.name for one in recipe.method.parameters if one.own and one.name in recipe.parameters
    ]
    if own:
        lines.append(f"mergekit ignores {', '.join(own)} and gives another model.")
    return recipe.to_yaml("\n".join(lines))


def _chosen_recipe(store: Store, name: str, trial: int | None) -> tuple[Recipe, str]:
    place = Place(f"the recorded study {name}", StudyFileError)
    report = store.get("report")
    if trial is None and report is not None:
        winner = report["winner"]
        return parse_recipe(winner["recipe"], place), f"the winner, {winner['name']}"
    record = store.get("study")
    file = parse_study(record["study"], Path.cwd(), place)
    space = bind_space(file, record["tensors"], record["dtype"])
    records = store.trials()
    if trial is not None:
        for one in records:
            if one.number == trial:
                return space.decode(one.values), f"trial {trial}"
        raise StudyError(f"expected a trial from 0 to {len(records) - 1}, got {trial}")
    best = best_trials(records)
    if not best:
        raise StudyError("no trial has finished yet, so there is nothing to export")
    return space.decode(best[0].values), f"the best so far, trial {best[0].number}"


def stored_report(name: str, url: str | None) -> dict[str, Any]:
    """Return a finished study's report; raises StudyError where it has none yet."""
    store = Store.open(name, url)
    found = store.get("report")
    if found is None:
        done = sum(one.state != "running" for one in store.trials())
        total = store.get("study")["trials"]
        raise StudyError(
            f"the study {name} has no report yet, {done} of its {total} trials are done; "
            f"go on with {command('resume', name, url)}"
        )
    report: dict[str, Any] = found
    return report


def trial_history(name: str, url: str | None) -> list[tuple[int, float | None]]:
    """Return (number, fitness) of all trials."""
    return [(one.number, one.fitness) for one in Store.open(name, url).trials()]


def evaluate(
    what: str,
    study: Path,
    split: str,
    device: str | None,
    memory: Memory,
    progress: Progress,
) -> dict[str, Any]:
    """Score a model's folder, a Hub id or a recipe file on a study's tasks."""
    if split not in SPLITS:
        raise InputError(f"expected a split among {', '.join(SPLITS)}, got {split!r}")
    checked = check_study(load_study_file(study))
    subject = _open_subject(what)
    chosen: Split = split
    experts = _expert_scores(checked, chosen, device, memory, progress)
    scorer = Scorer(
        subject.checkpoints,
        checked.tasks,
        checked.tokenizer,
        result_dtype=subject.recipe.result_dtype if subject.recipe else None,
        device=device,
        memory=memory,
        progress=progress,
    )
    scores = (
        scorer.recipe(subject.recipe, chosen, exact=True)
        if subject.recipe
        else scorer.model(subject.checkpoints[0].ref, chosen, exact=True)
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
        return _Subject(recipe, tuple(open_inputs(recipe, what)))
    place = Place("the command line", CheckpointError, "MODEL_OR_RECIPE")
    return _Subject(None, (open_checkpoint(ModelRef.parse(what, place), place),))


def _expert_scores(
    checked: CheckedStudy,
    split: Split,
    device: str | None,
    memory: Memory,
    progress: Progress,
) -> list[TaskScores]:
    scorer = Scorer(
        checked.checkpoints,
        checked.tasks,
        checked.tokenizer,
        device=device,
        memory=memory,
        progress=progress,
    )
    refs = [ref for name, ref in checked.refs.items() if name != "base"]
    return [scorer.model(ref, split, exact=True) for ref in refs]


def open_inputs(recipe: Recipe | SlicedRecipe, source: str) -> list[Checkpoint]:
    """Open all models of a recipe, its donor of configuration first."""
    place = Place(source, CheckpointError)
    refs = list(dict.fromkeys([recipe.donor, *recipe.inputs]))
    return [open_checkpoint(ref, place) for ref in refs]


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
    opened = open_inputs(recipe, file)
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
    return "\n".join([first, *(f"note: {one}" for one in alike), *_unmatched(recipe, names)])


def explained(file: Path, as_json: bool) -> str:
    """Say of every tensor that a recipe writes how it is made, and which lines say so."""
    data = load_yaml(file, InputError)
    if not isinstance(data, dict) or "merge_method" not in data:
        raise Place(str(file), InputError).fail("a recipe to explain", Found("none"))
    recipe = load_any_recipe(file)
    found = explain(recipe, open_inputs(recipe, str(file)))
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
