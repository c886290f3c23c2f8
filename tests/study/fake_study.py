"""Studies without models: real files, spaces, optimizers and databases, scores out of a hash.

A score is a function of the recipe and the split alone, so a study takes a fraction of a second.
"""

# ruff: noqa: S608
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sqlalchemy import create_engine, make_url, text

from evomerge import optimizers, plugins
from evomerge.errors import CandidateError
from evomerge.proxy_tasks import ItemScores
from evomerge.study import baselines, loop
from evomerge.study.file import CheckedStudy, StudyFile, bind_space, start_points

NAMES = plugins.names(optimizers)
TRIALS = {"gp": 9, "tpe": 12}  # those that take long get on with fewer
TASKS = ("sums", "words")
TENSORS = tuple(
    f"model.layers.{layer}.{part}.weight"
    for layer in range(48)
    for part in ("self_attn.q_proj", "mlp.up_proj")
)
SPACE = {
    "merge_method": "ties",
    "base_model": "base",
    "models": [
        {
            "each": "experts",
            "parameters": {"weight": {"range": [0, 1.5], "init": 0.4}, "density": "density"},
        }
    ],
    "parameters": {"normalize": False, "lambda": 1},
    "holes": {"density": {"range": [0.1, 1], "step": 0.01, "init": 0.3}},
}


class Silent:
    """A watcher that keeps nothing but the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def stage(self, text: str, done: int, total: int) -> None: ...

    def trial(self, done: int, total: int, best: float | None, seconds: float | None) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)


def curve(knots: int) -> dict[str, Any]:
    """A space of task arithmetic whose weights follow a curve over depth for each of two kinds."""
    weight = {"product": [{"range": [0, 1.5], "init": 0.4}, "depth"]}
    depth = {"curve": knots, "over": ["attention", "mlp"], "range": [0.3, 2], "init": 1}
    return {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [{"each": "experts", "parameters": {"weight": weight}}],
        "parameters": {"normalize": False, "lambda": 1},
        "holes": {"depth": depth},
    }


def mapping(optimizer: str = "cma_es") -> dict[str, Any]:
    """A study file as data."""
    own: dict[str, Any] = {"startup_trials": 4} if optimizer in ("gp", "tpe") else {}
    if optimizer == "nsga2":
        own = {"population": 4, "objectives": "tasks"}
    return {
        "models": {"base": "/m/base", "experts": {"one": "/m/one", "two": "/m/two"}},
        "space": SPACE,
        "tasks": {
            name: {"kind": "perplexity", "data": "none.jsonl", "text": "{q}"} for name in TASKS
        },
        "splits": {"search": 20, "select": 6, "heldout": 7},
        "search": {
            "optimizer": optimizer,
            "trials": TRIALS.get(optimizer, 14),
            "racing": {"first": 5},
            "seed": 3,
            **own,
        },
        "fitness": {"worst": 0.25},
    }


def staged(optimizer: str = "cma_es") -> dict[str, Any]:
    """A study whose space becomes finer and narrower twice, as data."""
    data = mapping(optimizer)
    curve = {"curve": 3, "over": ["attention", "other"], "range": [0.3, 2], "init": 1}
    weight = {"product": [{"range": [0, 1.5], "init": 0.4}, "depth"]}
    parameters = {"weight": weight, "density": "density"}
    data["space"] = {
        **SPACE,
        "models": [{"each": "experts", "parameters": parameters}],
        "parameters": {"normalize": {"choice": [True, False]}},
        "holes": {**SPACE["holes"], "depth": curve},
    }
    if optimizer in ("cma_es",):
        data["space"]["parameters"] = {"normalize": False}
        data["search"]["population"] = 4
    second = {} if optimizer == "cma_es" else {"choices": "fix"}
    data["search"]["stages"] = [
        {"after": 5, "knots": 2, "narrow": 0.5},
        {"after": 8, "groups": "split", **second},
    ]
    return data


def write_study(folder: Path, data: Mapping[str, Any]) -> Path:
    path = folder / "study.yaml"
    path.write_text(json.dumps(data))
    return path


class FakeItems:
    """Items of a task whose fingerprint is what a test says."""

    fingerprints: Mapping[str, str] = {}
    notes = ()

    def __init__(self, name: str) -> None:
        self.name = name

    def fingerprint(self) -> str:
        return self.fingerprints.get(self.name, "as ever")


def fake_check(file: StudyFile, trust: bool = False) -> CheckedStudy:
    """Stand for check_study: everything of the file is real, models and items are not."""
    space = bind_space(file, TENSORS, "float32")
    tasks: Any = tuple(FakeItems(name) for name in TASKS)
    tokenizer: Any = None
    base: Any = SimpleNamespace(folder=Path(str(file.refs["base"])))
    return CheckedStudy(
        file, file.refs, (base,), space, TENSORS, tasks, tokenizer, file.search.optimizer,
        start_points(file, space, TENSORS),
    )  # fmt: skip


class FakeScorer:
    """Scores by a hash; every fourth candidate of a search cannot be scored."""

    side_by_side = True
    tasks = ()
    device = "cpu"
    weights: Mapping[str, str] = {}  # fingerprints of models that are not as ever

    def __init__(self, checked: CheckedStudy) -> None:
        self._checked = checked

    @property
    def fingerprints(self) -> dict[str, str]:
        refs = self._checked.refs
        return {str(ref): self.weights.get(name, "as ever") for name, ref in refs.items()}

    def fit_temperatures(self) -> dict[str, float]:
        return {"sums": 0.25}

    def set_temperatures(self, found: Any) -> None:
        assert found == {"sums": 0.25}

    def digest(self, recipe: Any) -> str:
        return hashlib.sha256(json.dumps(recipe.to_mapping()).encode()).hexdigest()

    def ahead(self, calls: Any) -> None: ...

    def recipe(self, recipe: Any, split: str, exact: bool) -> dict[str, ItemScores]:
        return self._scores(recipe.to_mapping(), split)

    def candidate(self, recipe: Any, split: str) -> Any:
        scores = self._scores(recipe.to_mapping(), split)
        if scores["sums"].score[0] < 0.25:
            raise CandidateError("this one cannot be scored")

        def at(places: Any) -> dict[str, ItemScores]:
            return {
                task: ItemScores(*(one[places[task] if places else ...] for one in columns))
                for task, columns in (
                    (task, (one.score, one.correct)) for task, one in scores.items()
                )
            }

        return at

    def model(self, ref: Any, split: str, exact: bool) -> dict[str, ItemScores]:
        return self._scores(str(ref), split)

    def ensemble(self, refs: Any, split: str, exact: bool) -> dict[str, ItemScores]:
        return self._scores([str(ref) for ref in refs], split)

    def _scores(self, what: object, split: str) -> dict[str, ItemScores]:
        digest = hashlib.sha256(json.dumps([what, split]).encode()).digest()
        generator = np.random.default_rng(list(digest))
        size = {"search": 20, "select": 6, "heldout": 7}[split]
        found = {}
        for task in TASKS:
            score = generator.random(size).astype(np.float32).astype(np.float64)
            found[task] = ItemScores(score, (score > 0.4).astype(np.float64))
        return found


def fake_models(patch: pytest.MonkeyPatch) -> None:
    """Let the loop run studies without models, with fewer baselines than real ones have."""
    patch.setattr(loop, "check_study", fake_check)
    patch.setattr(loop, "_scorer", lambda checked, watcher, machine: FakeScorer(checked))
    patch.setattr(baselines, "LINE", (0.3, 0.6))


@contextmanager
def faked() -> Iterator[pytest.MonkeyPatch]:
    """Do so for a while, in a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        fake_models(patch)
        yield patch


def go_on(study: Path, name: str, url: str | None = None) -> None:
    """Start a study, or resume it where its database has it."""
    options: dict[str, Any] = {"url": url, "watcher": Silent()}
    if name in loop.studies(url):
        loop.resume(name, trials=None, **options)
    else:
        loop.search(study, name, trials=None, seed=None, **options)


def go_on_in(folder: str, study: Path, name: str, url: str | None, begun: Any) -> None:
    """Do so in a process of its own, which says when it begins."""
    os.chdir(folder)
    with faked():
        begun.send(None)
        go_on(study, name, url)


def contents(name: str, url: str | None = None) -> dict[str, Any]:
    """Everything that a database holds of a study, its times and Optuna's identities aside."""
    parsed = make_url(url or f"sqlite:///runs/{name}/study.db")
    if parsed.get_backend_name() == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    engine = create_engine(parsed)
    mine = " where study_id = (select study_id from studies where study_name = :name)"
    trials = f" where trial_id in (select trial_id from trials{mine})"
    queries = {
        "attributes": "select key, value_json from study_user_attributes" + mine,
        "trials": "select trial_id, number, cast(state as varchar(9)) from trials" + mine,
        "params": "select trial_id, param_name, param_value, distribution_json from trial_params"
        + trials,
        "values": "select trial_id, objective, value from trial_values" + trials,
        "metrics": "select trial_id, key, value_json from trial_user_attributes" + trials,
    }
    with engine.connect() as connection:
        rows = {
            table: [tuple(row) for row in connection.execute(text(query), {"name": name})]
            for table, query in queries.items()
        }
    engine.dispose()
    numbers = {identity: number for identity, number, _ in rows["trials"]}
    assert len(set(numbers.values())) == len(numbers), "two trials have one number"
    found: dict[str, Any] = {
        table: sorted((numbers[first], *rest) for first, *rest in rows[table])
        for table in ("trials", "params", "values", "metrics")
    }
    attributes = dict(rows["attributes"])
    assert len(attributes) == len(rows["attributes"])
    found["attributes"] = {key: json.loads(value) for key, value in attributes.items()}
    return found
