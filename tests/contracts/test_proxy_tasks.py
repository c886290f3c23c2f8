"""Contracts of every kind of proxy task in the folder."""

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evomerge import plugins, proxy_tasks
from evomerge.errors import DataError, InputError, Place
from evomerge.models import LiveModel, load_tokenizer
from evomerge.proxy_tasks import ItemScores, Task, TaskSettings
from evomerge.proxy_tasks._data import Row, read_rows
from evomerge.tokenizer_files import Tokenizer
from tests.architectures import live

PLACE = Place("study.yaml", DataError, "tasks.one")
KINDS = plugins.names(proxy_tasks)
SETTINGS: dict[str, dict[str, Any]] = {  # of each kind, how it asks the zoo's questions
    "generation": {"prompt": "{question}", "answer": "{answer}"},
    "multiple_choice": {
        "prompt": "{question}",
        "options": ["{wrong}", "{answer}"],
        "answer": "1",
        "separator": "",
        "temperature": 2.0,
    },
    "perplexity": {"prompt": "{question}", "text": "{answer}"},
}
# Those that ask other models or other rows; tests/proxy_tasks/ has a file for each.
OTHERS = {"classification", "lm_eval", "python"}
Asked = tuple[Any, TaskSettings, list[Row]]


@pytest.fixture(params=[kind for kind in KINDS if kind not in OTHERS])
def asked(request: pytest.FixtureRequest, trained_family: Path) -> Asked:
    """A kind, its settings and 60 rows that suit them."""
    kind: str = request.param
    module = proxy_tasks.get(kind, PLACE)
    rows = read_rows("tasks/sort.jsonl", trained_family, PLACE)[:60]
    for row in rows:
        *first, last = row["answer"]
        row["wrong"] = "".join([last, *first]) if {last} != {*first} else "ab"
    return module, module.Settings(kind=kind, data="x.jsonl", **SETTINGS[kind]), rows


@pytest.fixture
def tokenizer(trained_family: Path) -> Tokenizer:
    return load_tokenizer(trained_family / "base")


@pytest.fixture
def model(trained_family: Path) -> LiveModel:
    return live(trained_family / "experts" / "sort")


def ready(asked: Asked, tokenizer: Tokenizer) -> Task:
    module, settings, rows = asked
    task: Task = module.Task(
        settings, [module.render(row, settings, PLACE) for row in rows], tokenizer
    )
    return task


def close(first: ItemScores, second: ItemScores) -> None:
    assert first.score == pytest.approx(second.score, abs=1e-5)
    assert first.correct == pytest.approx(second.correct)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_file_holds(kind: str) -> None:
    module = proxy_tasks.get(kind, PLACE)
    assert plugins.summary(module).endswith(".")
    assert issubclass(module.Settings, TaskSettings)
    assert module.Settings.__doc__
    assert module.Task.__doc__
    assert module.render.__doc__
    for name, field in module.Settings.model_fields.items():
        assert field.description, f"{name} has no description"
        assert not field.description.endswith("."), name


@pytest.mark.parametrize("kind", [None, 3, "generations", "_data", "", "a.b"])
def test_what_is_no_kind(kind: object) -> None:
    with pytest.raises(InputError, match=r"at tasks\.one in study\.yaml"):
        proxy_tasks.get(kind, PLACE)


def test_settings_are_strict_and_frozen(asked: Asked) -> None:
    _, settings, _ = asked
    given = settings.model_dump()
    assert type(settings).model_validate(given) == settings
    for damage in ({"zebra": 1}, {"chat": "yes"}, {"data": 3}):
        with pytest.raises(ValueError, match="validation error"):
            type(settings).model_validate(given | damage)
    with pytest.raises(ValueError, match="frozen"):
        settings.chat = True


def test_rendering_is_pure(asked: Asked) -> None:
    module, settings, rows = asked
    before = copy.deepcopy(rows)
    first = [module.render(row, settings, PLACE) for row in rows]
    assert rows == before
    assert [module.render(row, settings, PLACE) for row in rows] == first
    assert len(set(first)) == 60  # examples can be compared and hashed


def test_a_row_that_does_not_fit_is_refused_with_its_place(asked: Asked) -> None:
    module, settings, rows = asked
    for field in ("question", "answer"):
        row = {name: value for name, value in rows[0].items() if name != field}
        with pytest.raises(DataError, match=r"at tasks\.one\.\w+(\[\d\])? in study\.yaml"):
            module.render(row, settings, PLACE)


def test_scores_are_numbers_from_0_to_1(
    asked: Asked, tokenizer: Tokenizer, model: LiveModel
) -> None:
    task = ready(asked, tokenizer)
    for items in (range(60), [7], [3, 3, 59]):
        for exact in (False, True):
            found = task.scores(model, items, exact)
            for vector in (found.score, found.correct):
                assert vector.shape == (len(items),)
                assert vector.dtype == np.float64
                assert ((vector >= 0) & (vector <= 1)).all()
    assert np.ptp(task.scores(model, range(60), False).score) > 0.05


def test_exactness_does_not_change_the_score(
    asked: Asked, tokenizer: Tokenizer, model: LiveModel
) -> None:
    task = ready(asked, tokenizer)
    fast, exact = task.scores(model, range(60), False), task.scores(model, range(60), True)
    assert fast.score.tobytes() == exact.score.tobytes()
    assert fast.correct == pytest.approx(exact.correct)  # on these items both ways agree


def test_the_same_weights_get_the_same_bits(
    asked: Asked, tokenizer: Tokenizer, model: LiveModel, trained_family: Path
) -> None:
    first = ready(asked, tokenizer).scores(model, range(60), True)
    torch.manual_seed(5)
    random.seed(5)
    others = ready(asked, load_tokenizer(trained_family / "base"))
    second = others.scores(live(trained_family / "experts" / "sort"), range(60), True)
    assert first.score.tobytes() == second.score.tobytes()
    assert first.correct.tobytes() == second.correct.tobytes()


def test_neither_order_nor_company_of_items_matters(
    asked: Asked, tokenizer: Tokenizer, model: LiveModel
) -> None:
    task = ready(asked, tokenizer)
    whole = task.scores(model, range(60), True)
    order = np.random.default_rng(0).permutation(60)
    for items in (order, order[:17], [41]):
        close(
            task.scores(model, list(items), True),
            ItemScores(whole.score[items], whole.correct[items]),
        )


def test_scoring_changes_neither_the_model_nor_the_random_streams(
    asked: Asked, tokenizer: Tokenizer, model: LiveModel
) -> None:
    weights = [one.clone() for one in model._model.state_dict().values()]
    streams = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    ready(asked, tokenizer).scores(model, range(60), True)
    assert torch.equal(torch.get_rng_state(), streams[0])
    assert np.array_equal(np.random.get_state()[1], streams[1])
    assert random.getstate() == streams[2]
    after = model._model.state_dict().values()
    assert all(torch.equal(one, other) for one, other in zip(weights, after, strict=True))


def test_a_model_that_learnt_the_task_scores_higher(
    asked: Asked, tokenizer: Tokenizer, model: LiveModel, trained_family: Path
) -> None:
    task = ready(asked, tokenizer)
    other = live(trained_family / "experts" / "caesar")
    mine, its = (task.scores(one, range(60), True).score.mean() for one in (model, other))
    assert mine > its
