"""A study's recipe out of its database alone, as YAML that merges; nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evomerge.errors import Place, SpaceError, StudyError, StudyFileError
from evomerge.module_groups import Architecture
from evomerge.recipe import Recipe, parse_recipe
from evomerge.search_space import Inputs
from evomerge.space_reader import parse_space
from evomerge.study.markdown import report_lines
from evomerge.study.stages import Course, read_stages
from evomerge.study.store import Store


def exported(name: str, url: str | None, trial: int | None) -> str:
    """Return the YAML text of a study's recipe: of a trial, the winner, or the best so far.

    Needs the database alone. Raises StudyError where there is no such trial or none has succeeded.
    """
    store = Store.open(name, url)
    report = store.get("report") if trial is None else None
    recipe, what = chosen_recipe(store, name, trial, report)
    lines = [f"Study {name}: {what}.", "Merge with: evomerge merge THIS_FILE OUT_DIR"]
    own = [
        one.name for one in recipe.method.parameters if one.own and one.name in recipe.parameters
    ]
    if own:
        lines.append(f"mergekit ignores {', '.join(own)} and gives another model.")
    lines += report_lines(report) if report is not None else []
    return recipe.to_yaml("\n".join(lines))


def chosen_recipe(
    store: Store, name: str, trial: int | None, report: Mapping[str, Any] | None
) -> tuple[Recipe, str]:
    """Return the recipe of a trial, or the winner's of a report, or the best so far; and which."""
    document = f"the recorded study {name}"
    if report is not None:
        winner = report["winner"]
        place = Place(document, StudyFileError)
        return parse_recipe(winner["recipe"], place), f"the winner, {winner['name']}"
    found = store.summary()
    if trial is None and found.best is None:
        raise StudyError(
            f"no trial has finished yet, so there is nothing to export; let {name} run first"
        )
    number = found.best[0] if trial is None and found.best else trial
    records = store.trials(number)
    if not records:
        raise StudyError(f"expected a trial from 0 to {sum(found.count.values()) - 1}, got {trial}")
    recipe = recorded_course(store, document).decode(records[0].values)
    return recipe, f"the best so far, trial {number}" if trial is None else f"trial {trial}"


def recorded_course(store: Store, document: str) -> Course:
    """Return all the spaces that the recorded trials are of."""
    record = store.get("study")
    study = record["study"]
    place = Place(document, SpaceError, "space")
    inputs = Inputs(study["models"]["base"], study["models"]["experts"])
    architecture = Architecture(tuple(record["tensors"]))
    seed = study["search"]["seed"]
    space = parse_space(study["space"], inputs, architecture, record["dtype"], seed, place)
    stages = read_stages(study["search"].get("stages", []), place)
    course = Course(space, stages, architecture)
    if stages:
        course.follow(store.trials())
    return course
