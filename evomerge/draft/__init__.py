"""From the names of some models and files of items to a study file that can be searched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evomerge.architectures import is_classifier
from evomerge.checkpoints import FLOATING, Checkpoint, ModelRef, open_checkpoint
from evomerge.compatibility import check_alike, differences
from evomerge.draft.estimate import Estimate, estimate, parameters
from evomerge.draft.fit import check_mergeable, has_template, kind_of, vocabulary_notes
from evomerge.draft.lineage import Lineage, find_lineage
from evomerge.draft.tasks import DraftedTask, Splits, draft_tasks, splits_for
from evomerge.draft.text import Comments, as_text
from evomerge.errors import CheckpointError, InputError, Place, SpaceError, StudyFileError
from evomerge.files import load_yaml, unwritten
from evomerge.merger import Progress
from evomerge.space_reader import space_names
from evomerge.study.file import CheckedStudy, check_study, parse_study

_PLACE = Place("the command line", CheckpointError, "the models")
_PER_DIMENSION = 10  # trials
_FEWEST_TRIALS = 100
_MANY = 5  # experts, whose signs conflict so often that TIES is worth its densities


@dataclass(frozen=True)
class Draft:
    """A study file that has been written, what was found, a line each, and what to know of it."""

    path: Path
    found: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Parts:
    """All that a draft is made of; `study` is what its file says."""

    lineage: Lineage
    opened: tuple[Checkpoint, ...]
    tasks: dict[str, DraftedTask]
    splits: Splits
    study: dict[str, Any]


def draft(
    models: Sequence[str],
    tasks: Sequence[Path],
    path: Path,
    *,
    base: str | None = None,
    space: str | None = None,
    trials: int | None = None,
    trust: bool = False,
    progress: Progress = lambda text, done, total: None,
) -> Draft:
    """Write a study of some models and files of items to `path`, which must not exist.

    Reads configurations and headers only, no weights. Raises the error of whatever cannot be merged
    or read, or of what cannot be guessed, with what to do.
    """
    if path.exists():
        raise _taken(path)
    if not tasks:
        raise InputError("expected a file of items, got none; name one by --task FILE")
    progress("models", 0, 3)
    lineage = find_lineage(models, base, _PLACE)
    opened = [open_checkpoint(ref, _PLACE) for ref in (lineage.base, *lineage.experts.values())]
    check_mergeable(opened)
    progress("items", 1, 3)
    folder = path.resolve().parent
    chat = all(has_template(one.folder) for one in opened)
    drafted = draft_tasks(tasks, folder, chat, is_classifier(opened[0].folder))
    parts = _Parts(lineage, tuple(opened), drafted, splits_for(drafted), {})
    parts.study.update(_study(parts, folder, space))
    progress("checking", 2, 3)
    checked = check_study(parse_study(parts.study, folder, Place(str(path), StudyFileError)), trust)
    dimensions = len(checked.space.holes)
    enough = -(-dimensions * _PER_DIMENSION // 50) * 50
    parts.study["search"]["trials"] = trials or max(_FEWEST_TRIALS, enough)
    cost = estimate(checked, parts.study["search"]["trials"])
    _write(path, as_text(parts.study, _comments(parts, checked, cost, path)))
    assert load_yaml(path, InputError) == parts.study
    progress("checking", 3, 3)
    notes = [*lineage.notes, *differences(opened), *vocabulary_notes(opened, trust)]
    return Draft(path, _found(parts, checked, cost), (*notes, *parts.splits.notes))


def _taken(path: Path) -> InputError:
    return InputError(f"{path} exists already; choose another file with --output, or remove it")


def _write(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise _taken(path) from None
    except OSError as problem:
        raise InputError(unwritten(path, problem)) from None


def _study(parts: _Parts, folder: Path, space: str | None) -> dict[str, Any]:
    lineage = parts.lineage
    chosen = space or _space(lineage)
    if chosen not in space_names():
        if not Path(chosen).is_file():
            place = Place("the command line", SpaceError, "--space")
            raise place.unknown(chosen, "search space", space_names())
        chosen = _path(Path(chosen).resolve(), folder)
    experts = {name: _written(ref, folder) for name, ref in lineage.experts.items()}
    return {
        "models": {"base": _written(lineage.base, folder), "experts": experts},
        "space": chosen,
        "tasks": {name: one.settings for name, one in parts.tasks.items()},
        "splits": parts.splits.sizes,
        "search": {"optimizer": "auto", "trials": _FEWEST_TRIALS, "seed": 0},
    }


def _space(lineage: Lineage) -> str:
    if len(lineage.experts) == 1 and not lineage.known:
        return "slerp"
    return "ties" if len(lineage.experts) >= _MANY else "task_arithmetic"


def _written(ref: ModelRef, folder: Path) -> str:
    """Return a reference as the study file has it, local paths below the file relative to it."""
    own = str(replace(ref, adapter=None))
    if Path(ref.path).is_absolute():
        own = _path(Path(ref.path), folder)
    return f"{own}+{_written(ref.adapter, folder)}" if ref.adapter else own


def _path(path: Path, folder: Path) -> str:
    inside = path.is_relative_to(folder) and path != folder
    return path.relative_to(folder).as_posix() if inside else str(path)


def _comments(parts: _Parts, checked: CheckedStudy, cost: Estimate, path: Path) -> Comments:
    study, lineage = parts.study, parts.lineage
    return Comments(
        head=f"A study of {_counted(len(lineage.experts), 'expert')} and "
        f"{_counted(len(parts.tasks), 'task')}, drafted by `evomerge init`: change what you like; "
        f"`evomerge check {path.name}` finds mistakes. Paths are relative to this file.",
        models=f"The base is {lineage.why}. All are {_shape(parts)}.",
        space=_space_comment(study["space"], lineage) + "\n`evomerge list` has the others.",
        tasks={
            name: f"{one.items} different items; by their fields ({one.why}) taken for "
            f"{one.settings['kind'].replace('_', ' ')}."
            for name, one in parts.tasks.items()
        },
        splits=_splits_comment(parts.splits),
        search=f"The space has {len(checked.space.holes)} dimensions: {_PER_DIMENSION} trials for "
        f"each, and no fewer than {_FEWEST_TRIALS}. More can be added later: `evomerge resume "
        "NAME --trials`. The seed fixes all that is random.",
        cost=f"Memory: {cost.memory}.\nTime: {cost.time}, a rough guess.",
    )


def _space_comment(space: str, lineage: Lineage) -> str:
    known = {
        "task_arithmetic": "Task arithmetic, base + sum of weight * (expert - base): a scale for "
        "each expert times a curve over depth that they share. Few numbers, so the space to begin "
        "with.",
        "ties": "TIES: a scale and a density for each expert times a curve over depth that they "
        "share. It drops what is small and settles unlike signs, of which there are more the more "
        "experts there are (Yadav et al. 2023).",
        "slerp": "Spherical interpolation between the two models, over depth.",
    }
    text = known.get(space, "Which merges are searched.")
    if space == "slerp" and not lineage.known:
        text += " It treats both alike, since neither is known to be the other's base."
    return text


def _splits_comment(splits: Splits) -> str:
    return (
        f"Items of each task, drawn by a seed and never shared, of {splits.items} that there are: "
        "the search sees the first, the second pick the winner, the last are scored once, at the "
        "end. A quarter, a quarter and a half, with 128, 256 and 512 at most."
    )


def _found(parts: _Parts, checked: CheckedStudy, cost: Estimate) -> tuple[tuple[str, str], ...]:
    """Return what was found, as (what it is of, a sentence)."""
    study, lineage = parts.study, parts.lineage
    rows = [("base", f"{study['models']['base']}, {lineage.why}")]
    rows += [("expert", f"{name}: {one}") for name, one in study["models"]["experts"].items()]
    rows.append(("models", _shape(parts)))
    for name, one in parts.tasks.items():
        kind = one.settings["kind"].replace("_", " ")
        rows.append(("task", f"{name}: {one.items} items, {kind} by the fields {one.why}"))
    sizes = parts.splits.sizes
    rows.append(("splits", ", ".join(f"{size} {split}" for split, size in sizes.items())))
    count = len(checked.space.holes)
    trials = study["search"]["trials"]
    rows.append(("search", f"{study['space']}, {count} dimensions, {trials} trials"))
    rows.append(("memory", f"{cost.memory}: {cost.place}"))
    return (*rows, ("time", f"{cost.time}, a rough guess"))


def _shape(parts: _Parts) -> str:
    """Return what the models are in words."""
    base = parts.opened[0]
    names = check_alike(parts.opened)
    dtypes = dict.fromkeys(FLOATING.get(base.tensors[name].dtype, "integers") for name in names)
    count = parameters(base, names)
    size = f"{count / 1e9:.3g} billion" if count >= 1e9 else f"{count / 1e6:.3g} million"
    tied = ", tied embeddings" if base.config.get("tie_word_embeddings") else ""
    kinds = " and ".join(dtypes)
    return f"{kind_of(base)}: {size} parameters in {len(names)} tensors, {kinds}{tied}"


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' if number != 1 else ''}"
