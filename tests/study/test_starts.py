"""Recipes that a study begins with: among its first trials, and part of what is recorded."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge.errors import EvomergeError, StudyError
from evomerge.study import loop
from evomerge.study.export import exported
from evomerge.study.file import check_study, load_study_file
from evomerge.study.store import Store
from tests.study.fake_study import Silent, contents, go_on, mapping, write_study
from tests.study.small_study import folder, no_weights, parse, refusal, study

__all__ = ["folder", "no_weights"]  # fixtures

BY_HAND = """
merge_method: ties
base_model: /m/base
models:
  - {model: /m/one, parameters: {weight: 0.9}}
  - {model: /m/two, parameters: {weight: 0.2}}
parameters: {density: 0.25}
"""


def begun(tmp_path: Path, **search: Any) -> Path:
    data = mapping()
    data["search"] |= search
    return write_study(tmp_path, data)


def first_values(name: str, count: int) -> list[dict[str, Any]]:
    return [dict(one.values) for one in Store.open(name, None).trials()[:count]]


def test_recipes_are_among_the_first_trials(fake: Path, tmp_path: Path) -> None:
    go_on(fake, "old")
    Path("best.yaml").write_text(exported("old", None, 9))
    Path("hand.yaml").write_text(BY_HAND.replace("0.25", "0.25, normalize: false"))
    path = begun(tmp_path, start=["best.yaml", "hand.yaml", "best.yaml"])
    go_on(path, "s")
    first = first_values("s", 14)
    before = first_values("old", 14)
    starts = first.index(before[9])
    assert first[:starts] == before[:starts]  # the init and the baselines
    assert 1 <= starts <= 4
    assert first[starts + 1] == {"one.weight": 0.9, "two.weight": 0.2, "density": 0.25}
    assert first[starts + 2] != before[9]  # which is there once


def test_a_resume_needs_no_file(fake: Path, tmp_path: Path) -> None:
    Path("hand.yaml").write_text(BY_HAND.replace("0.25", "0.25, normalize: false"))
    path = begun(tmp_path, start=["hand.yaml"])
    go_on(path, "whole")

    class Killed(Silent):
        def trial(self, done: int, total: int, best: float | None, seconds: float | None) -> None:
            if done == 2:
                raise MemoryError

    with pytest.raises(MemoryError):
        loop.search(path, "s", trials=None, seed=None, url=None, watcher=Killed())
    Path("hand.yaml").unlink()
    watcher = Silent()
    loop.resume("s", trials=None, url=None, watcher=watcher)
    assert contents("s") == contents("whole")
    assert any("hand.yaml" in note and note.endswith("as it began") for note in watcher.notes)
    (recipe,) = Store.open("s", None).get("study")["study"]["search"]["start"]
    assert recipe["models"][0] == {"model": "/m/one", "parameters": {"weight": 0.9}}


def test_another_recipe_is_another_study(fake: Path, tmp_path: Path) -> None:
    Path("hand.yaml").write_text(BY_HAND.replace("0.25", "0.25, normalize: false"))
    path = begun(tmp_path, start=["hand.yaml"])
    go_on(path, "s")
    Path("hand.yaml").write_text(BY_HAND.replace("0.25", "0.26, normalize: false"))
    with pytest.raises(StudyError, match=r"is not what s began with: search\.start was"):
        loop.resume("s", trials=None, url=None, watcher=Silent())


def test_a_study_without_starts_records_none(fake: Path) -> None:
    go_on(fake, "s")
    assert "start" not in Store.open("s", None).get("study")["study"]["search"]


def test_forks_begin_with_them_too(fake: Path, tmp_path: Path) -> None:
    Path("hand.yaml").write_text(BY_HAND.replace("0.25", "0.25, normalize: false"))
    go_on(begun(tmp_path, start=["hand.yaml"]), "s")
    Path("hand.yaml").unlink()
    loop.resume("s", fork="t", trials=None, url=None, watcher=Silent())
    assert {"one.weight": 0.9, "two.weight": 0.2, "density": 0.25} in first_values("t", 5)


RECIPE: dict[str, Any] = {
    "merge_method": "task_arithmetic",
    "base_model": "base",
    "models": [{"model": "math", "parameters": {"weight": 0.5}},
               {"model": "code", "parameters": {"weight": 0.75}}],
    "parameters": {"normalize": False},
}  # fmt: skip


def test_real_models_are_known_by_their_folders(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths of a recipe are relative to the working directory, its own folder or the study's."""
    (folder / "sub").mkdir()
    (folder / "sub/recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    up = RECIPE | {"base_model": "../base", "models": [
        {**one, "model": f"../{one['model']}"} for one in RECIPE["models"]]}  # fmt: skip
    (folder / "sub/up.yaml").write_text(yaml.safe_dump(up))
    monkeypatch.chdir(tmp_path)
    data = study()
    data["search"]["start"] = ["sub/recipe.yaml", str(folder / "sub/up.yaml"), RECIPE]
    (folder / "study.yaml").write_text(yaml.safe_dump(data))
    file = load_study_file(folder / "study.yaml")
    checked = check_study(file)
    (first,) = checked.starts  # one point, three times
    weights = {name: value for name, value in first.items() if "weight" in name}
    assert weights["code.weight"] / weights["math.weight"] == pytest.approx(1.5)
    assert parse(file.to_mapping(), tmp_path).to_mapping() == file.to_mapping()


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (["none.yaml"], "none.yaml"),
        ([RECIPE | {"models": [{"model": "math"}]}],
         "expected weight, which task_arithmetic needs of every model, got nothing at "
         "search.start[0].models[0].parameters in study.yaml"),
        ([RECIPE | {"merge_method": "linear"}],
         "a recipe of the search space's task_arithmetic, got linear at search.start[0] in"),
        ([RECIPE | {"parameters": {"normalize": True}}],
         "got normalize 1, where the nearest of the space has 0 at "
         "search.start[0] in study.yaml"),
        ([RECIPE, RECIPE | {"models": [{"model": "math", "parameters": {"weight": 1}}]}],
         "expected the models"),
        ("best.yaml", "expected a list of paths of recipes or recipes (recipes among the first"),
    ],
)  # fmt: skip
def test_what_is_refused_before_anything_is_loaded(start: Any, words: str, folder: Path) -> None:
    data = study()
    data["search"]["start"] = start
    if start == ["none.yaml"]:
        with pytest.raises(EvomergeError, match=r"none\.yaml"):
            parse(data, folder)
        return
    assert words in refusal(data, folder)
