"""The JSON schema of study files accepts and refuses what the reader does; lines for people."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from evomerge.errors import EvomergeError, Place, StudyFileError
from evomerge.proxy_tasks import Dataset, Shots
from evomerge.racing import Racing
from evomerge.study.file import FitnessSettings, Models, Splits, parse_study
from evomerge.study.reference import json_schema, kinds, lines, searchers
from evomerge.study.search_settings import Search
from evomerge.study.stages import Stage
from evomerge.zoo import FAMILY
from evomerge.zoo.build import _study
from tests.conftest import run_cli

Data = dict[str, Any]
Path_ = tuple[Any, ...]  # of a part in a study
VALIDATOR = jsonschema.Draft7Validator(json_schema())
PAGE = (Path(__file__).parents[2] / "docs/proxy-tasks.md").read_text()
TASKS: Data = {}
for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL):
    for task in yaml.safe_load(block).values():
        TASKS.setdefault(task["kind"], task)
STUDY: Data = {
    "models": {"base": "base", "experts": {"one": "one"}},
    "space": "ties",
    "tasks": TASKS,
    "splits": {"search": 8},
    "search": {"stages": [{"after": 5, "knots": 2}], "racing": {"first": 8}},
    "fitness": {"worst": 0.5},
}
STUDY["tasks"]["generation"] |= {
    "data": {"dataset": "org/set"}, "shots": {"count": 2, "data": {"dataset": "org/set"}},
}  # fmt: skip
PARTS: dict[Path_, Any] = {
    ("models",): Models,
    ("splits",): Splits,
    ("search",): Search,
    ("search", "stages", 0): Stage,
    ("search", "racing"): Racing,
    ("fitness",): FitnessSettings,
    ("tasks", "generation", "data"): Dataset,
    ("tasks", "generation", "shots"): Shots,
    **{("tasks", kind): settings for kind, settings in kinds().items()},
    **{("search", name): settings for name, settings in searchers().items()},
}


def accepted(data: Data) -> tuple[bool, bool]:
    """Whether the schema and the reader accept a study."""
    try:
        parse_study(copy.deepcopy(data), Path(), Place("test", StudyFileError))
    except EvomergeError:
        return VALIDATOR.is_valid(data), False
    return VALIDATOR.is_valid(data), True


def changed(where: Path_, change: Data) -> Data:
    """Return the study with some fields of a part changed."""
    data = copy.deepcopy(STUDY)
    if where[0] == "search" and where[-1] in searchers():
        data["search"]["optimizer"], where = where[-1], ("search",)
    part = data
    for key in where:
        part = part[key]
    part |= change
    return data


def wrong_values(field: Any) -> list[Any]:
    """Return values that no field has, and those just beyond its bounds."""
    found: list[Any] = [[[]], {"a": {"b": 1}}]
    for bound in field.metadata:
        found += [bound.ge - 1] if hasattr(bound, "ge") else []
        found += [bound.le + 1] if hasattr(bound, "le") else []
        found += [bound.gt] if hasattr(bound, "gt") else []
        found += [bound.lt] if hasattr(bound, "lt") else []
    return found


def test_it_is_a_schema_of_what_there_is() -> None:
    VALIDATOR.check_schema(VALIDATOR.schema)
    assert accepted(STUDY) == (True, True)
    assert set(TASKS) == set(kinds())
    zoo = yaml.safe_load(_study(FAMILY))
    assert accepted(zoo) == (True, True)


@pytest.mark.parametrize("where", PARTS, ids=lambda where: ".".join(map(str, where)))
def test_schema_and_reader_agree_on_every_field(where: Path_) -> None:
    assert accepted(changed(where, {})) == (True, True)
    assert accepted(changed(where, {"mispelt": 1})) == (False, False)
    for name, field in PARTS[where].model_fields.items():
        if not field.is_required() and name != "racing":
            value = field.get_default()
            assert accepted(changed(where, {name: value}))[0], (name, value)
        for value in wrong_values(field):
            assert accepted(changed(where, {name: value})) == (False, False), (name, value)


@pytest.mark.parametrize(
    ("change", "right"),
    [
        ({"search": {"racing": False}}, True),
        ({"search": {"start": ["best.yaml", {"merge_method": "linear"}]}}, None),
        ({"search": {"optimizer": "gp", "sigma": 0.1}}, False),
        ({"search": {"sigma": 0.1}}, False),
        ({"search": {"optimizer": "cma_es", "sigma": 0.1}}, True),
        ({"search": {"optimizer": "cmaes"}}, False),
        ({"space": "tise"}, False),
        ({"space": {"merge_method": "tise"}}, False),
        ({"space": {"merge_method": "ties", "base": "base"}}, False),
        ({"tasks": {}}, False),
        ({"tasks": {"one": {"kind": "perplexty"}}}, False),
        ({"tasks": {"one": {"data": "items.jsonl"}}}, False),
        ({"tasks": {"1": TASKS["perplexity"]}}, False),
        ({"taks": {}}, False),
    ],
)
def test_whole_parts(change: Data, right: bool | None) -> None:
    schema, reader = accepted(STUDY | change)
    if right is None:  # the reader opens the files
        assert schema
    elif isinstance(change.get("space"), dict):  # read when the models are known
        assert schema == right
    else:
        assert (schema, reader) == (right, right)


def test_lines_say_type_default_and_meaning() -> None:
    found = {line.name: line for line in lines(Splits)}
    assert (found["search"].kind, found["search"].default) == ("a whole number ≥ 1", "128")
    assert found["search"].meaning == "items that the optimizer sees"
    assert {line.default for line in lines(Models)} == {None}
    assert {line.name for line in lines(Search, ("trials",))} == set(Search.model_fields) - {
        "trials"
    }
    kind = {line.name: line.kind for line in lines(Search)}
    assert kind["start"] == "a list of texts or mappings"
    assert kind["patience"] == "a whole number ≥ 1"


def test_the_command_prints_it(tmp_path: Path) -> None:
    assert json.loads(run_cli("schema", cwd=tmp_path).stdout) == VALIDATOR.schema
