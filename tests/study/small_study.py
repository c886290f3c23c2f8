"""A study that is right, in a folder with tiny models and data, for tests of what is wrong."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from evomerge.checkpoints import Checkpoint
from evomerge.errors import EvomergeError, Place, StudyFileError
from evomerge.study.file import StudyFile, check_study, parse_study
from evomerge.zoo.tokenizer import build_tokenizer
from tests.architectures import save_random

REQUIRED = {  # of each kind of task that suits these models and rows, the fields that must be given
    "generation": {"prompt": "{q}", "answer": "{a}"},
    "multiple_choice": {"prompt": "{q}", "options": "{o}", "answer": "{a}"},
    "perplexity": {"text": "{q}"},
}
KINDS = sorted(REQUIRED)


def study(optimizer: str = "auto") -> dict[str, Any]:
    """A study that is right, with a task of every kind."""
    return {
        "models": {"base": "base", "experts": {"math": "math", "code": "code"}},
        "space": "task_arithmetic",
        "tasks": {
            **{kind: {"kind": kind, "data": "items.jsonl", **REQUIRED[kind]} for kind in KINDS},
            "table": {"kind": "perplexity", "data": {"dataset": "table"}, "text": "{q}"},
        },
        "splits": {"search": 3, "select": 4, "heldout": 5},
        "search": {"optimizer": optimizer},
        "fitness": {},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models and the data of the study."""
    found = tmp_path_factory.mktemp("study")
    for seed, name in enumerate(("base", "math", "code")):
        save_random(found / name, "llama", seed)
    build_tokenizer().save_pretrained(found / "base")
    rows = [{"q": f"{n} + 1 =", "a": "b", "o": [f"{n}", f"{n + 1}"]} for n in range(15)]
    text = "\n".join(map(json.dumps, rows))
    (found / "items.jsonl").write_text(text)
    (found / "table").mkdir()
    (found / "table" / "data.jsonl").write_text(text)
    return found


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a tensor is read."""

    def read(self: Checkpoint, names: Any) -> Any:
        raise AssertionError(f"weights of {self.ref} were read")

    monkeypatch.setattr(Checkpoint, "read", read)


def parse(data: object, folder: Path) -> StudyFile:
    return parse_study(data, folder, Place("study.yaml", StudyFileError))


def refusal(data: object, folder: Path) -> str:
    """Return the one sentence with which a study is refused."""
    with pytest.raises(EvomergeError) as caught:
        check_study(parse(data, folder))
    text = str(caught.value)
    assert "\n" not in text
    assert "study.yaml" in text
    return text


def put(data: dict[str, Any], path: tuple[str, ...], name: str, value: Any) -> dict[str, Any]:
    found = copy.deepcopy(data)
    inner = found
    for part in path:
        inner = inner[part]
    inner[name] = value
    return found


SPACE: dict[str, Any] = {
    "merge_method": "ties",
    "base_model": "base",
    "models": [
        {
            "each": "experts",
            "parameters": {
                "weight": {"product": [{"range": [0, 2], "init": 0.5}, "depth"]},
                "density": {"range": [0.05, 1], "step": 0.01, "init": 0.3},
            },
        }
    ],
    "parameters": {"normalize": False, "lambda": 1},
    "holes": {"depth": {"curve": 4, "over": ["attention", "mlp", "other"], "range": [0.3, 2]}},
}
