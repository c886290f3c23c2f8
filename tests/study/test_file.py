"""The study file as a whole: its parts, its models and data, damage, and back to plain data.

No mistake may cost the reading of a weight: that a tensor is read fails a test.
"""

import copy
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from evomerge import optimizers, plugins
from evomerge.errors import CheckpointError, EvomergeError, SpaceError, StudyFileError
from evomerge.study.file import check_study, load_study_file
from tests.architectures import save_random
from tests.mutation import mutated
from tests.study.small_study import (
    KINDS,
    SPACE,
    folder,
    no_weights,
    parse,
    put,
    refusal,
    study,
)

__all__ = ["folder", "no_weights"]  # fixtures
OPTIMIZERS = plugins.names(optimizers)


def test_the_study_itself_is_right(folder: Path) -> None:
    for name in ("auto", *OPTIMIZERS):
        checked = check_study(parse(study(name), folder))
        assert len(checked.space.holes) == 14
        assert [len(task.examples) for task in checked.tasks] == [12] * (len(KINDS) + 1)


@pytest.mark.parametrize("key", ["models", "space", "tasks"])
def test_what_a_study_must_have(key: str, folder: Path) -> None:
    data = study()
    del data[key]
    assert refusal(data, folder) == (
        f"expected the key {key}, got none at the top of study.yaml; docs/study-file.md says what "
        "a study needs"
    )


@pytest.mark.parametrize("data", [None, [], "text", 3, {}, {1: 2}, {"models": {}}])
def test_what_is_no_study(data: Any, folder: Path) -> None:
    assert " at the top of study.yaml" in refusal(data, folder)


def test_parts_that_may_be_left_out(folder: Path) -> None:
    data = study()
    for key in ("splits", "search", "fitness"):
        del data[key]
    found = parse(data, folder)
    assert found.splits.sizes == {"search": 128, "select": 256, "heldout": 512}
    assert (found.search.optimizer, found.search.trials, found.search.seed) == ("auto", 300, 0)
    assert (found.splits.seed, found.fitness.worst) == (0, 0.0)


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        (
            "cma_es",
            {"sigma": 1, "population": 6},
            {"sigma": 1.0, "population": 6, "diagonal": None},
        ),
        (
            "nsga2",
            {"population": 8, "objectives": "tasks"},
            {"population": 8, "crossover": 0.9, "mutation": None},
        ),
        ("tpe", {"startup_trials": 3}, {"startup_trials": 3, "multivariate": True, "lag": 1}),
        ("random_search", {}, {}),
    ],
)
def test_settings_of_an_optimizer(
    name: str, given: dict[str, Any], expected: dict[str, Any], folder: Path
) -> None:
    data = study(name)
    data["search"] |= given
    assert parse(data, folder).optimizer_settings.model_dump() == expected


def test_a_study_is_checked_against_its_models_and_data(folder: Path, tmp_path: Path) -> None:
    data = study()
    assert refusal(put(data, ("models", "experts"), "math", "code"), folder) == (
        f"expected each model once, got '{folder / 'code'}' at models.experts.code in study.yaml; "
        "take one of them out"
    )
    text = refusal(put(data, ("models",), "base", "bse"), folder)
    assert "at models.base in study.yaml" in text
    other = put(data, ("models",), "base", str(save_random(tmp_path / "other", "gpt2")))
    with pytest.raises(CheckpointError, match="expected the same tensors in every model, got "):
        check_study(parse(other, folder))
    text = refusal(put(data, ("tasks", "perplexity"), "data", "none.jsonl"), folder)
    assert text == (
        "expected a JSONL, JSON, CSV, TSV or Parquet file, got "
        f"{folder / 'none.jsonl'}, which is no file at tasks.perplexity.data in study.yaml; "
        "check the path"
    )
    text = refusal(put(data, ("splits",), "search", 7), folder)
    assert text.startswith("expected at least 16 different items (7 search + 4 select + 5 heldout)")
    text = refusal(put(data, ("tasks", "generation"), "answer", "{b}"), folder)
    assert "at tasks.generation.answer in study.yaml (line 1 of items.jsonl); its fields" in text


def test_an_optimizer_that_cannot_search_the_space(folder: Path) -> None:
    data = study("cma_es")
    data["space"] = copy.deepcopy(SPACE)
    data["space"]["models"][0]["parameters"] = {"weight": "depth"}
    data["space"]["holes"]["depth"] = {"range": [0, 1]}
    with pytest.raises(
        SpaceError, match=r"for a space with one hole .* got 'cma_es' at search\.opt"
    ):
        check_study(parse(data, folder))
    data["search"]["optimizer"] = "auto"
    assert check_study(parse(data, folder)).optimizer != "cma_es"


def test_damage_of_every_sort_is_refused_in_one_sentence(folder: Path) -> None:
    whole = study("cma_es")
    whole["space"] = SPACE
    whole["search"] |= {"trials": 12, "seed": 3, "sigma": 0.2, "population": 8}
    whole["splits"]["seed"] = 1
    whole["fitness"]["worst"] = 0.25
    whole["tasks"]["generation"] |= {"stop": ["\n"], "extract": r"(\w+)", "temperature": 0.5}
    whole["tasks"]["multiple_choice"] |= {"options": ["{q}", "{a}"], "answer": "0"}
    check_study(parse(whole, folder))
    refused = [
        text
        for seed in range(1000)
        if (text := sentence_about(mutated(whole, random.Random(seed)), folder)) is not None
    ]
    assert 800 < len(refused) < 1000
    for text in refused:
        assert "\n" not in text
        assert len(text) < 600
        assert "study.yaml" in text


def sentence_about(data: object, folder: Path) -> str | None:
    try:
        check_study(parse(data, folder))
    except EvomergeError as problem:
        return str(problem)
    return None


def test_reading(folder: Path, tmp_path: Path) -> None:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study(), sort_keys=False))
    found = load_study_file(path)
    assert found.refs["base"].path == str(folder / "base")
    assert list(found.refs) == ["base", "math", "code"]
    for text, words in (
        (
            "models: {base: [}",
            r"expected YAML, got '}' in place of the node content at line 1, column 17 of ",
        ),
        ("space: ties\nspace: linear\n", r"expected YAML, got the key 'space' twice at line 2"),
        ("", "expected a mapping, got nothing at the top of "),
    ):
        path.write_text(text)
        with pytest.raises(StudyFileError, match=words):
            load_study_file(path)
    with pytest.raises(StudyFileError, match="there is no file"):
        load_study_file(folder / "none.yaml")
    with pytest.raises(StudyFileError, match="expected a file, got the folder"):
        load_study_file(tmp_path)


def test_a_study_as_plain_data_is_the_study(folder: Path, tmp_path: Path) -> None:
    data = study("tpe")
    data["search"]["startup_trials"] = 3
    first = check_study(parse(data, folder))
    plain = json.loads(json.dumps(first.file.to_mapping()))
    second = check_study(parse(plain, tmp_path))  # from any folder
    assert second.file.to_mapping() == plain
    assert plain["tasks"]["generation"]["data"] == str(folder / "items.jsonl")
    assert plain["tasks"]["table"]["data"] == {"dataset": str(folder / "table")}
    assert second.file.search == first.file.search
    assert second.file.optimizer_settings == first.file.optimizer_settings
    assert second.file.splits == first.file.splits
    assert [one.ref for one in second.checkpoints] == [one.ref for one in first.checkpoints]
    assert second.space.holes == first.space.holes
    for one, other in zip(first.tasks, second.tasks, strict=True):
        assert one.fingerprint() == other.fingerprint()
        assert np.array_equal(one.splits["search"], other.splits["search"])
