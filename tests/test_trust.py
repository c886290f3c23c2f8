"""Code that comes with a checkpoint: it never runs unless somebody says so, and nobody is asked."""

import builtins
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from evomerge import cli
from evomerge.architectures import check_runnable
from evomerge.checkpoints import Checkpoint
from evomerge.errors import CheckpointError
from evomerge.models import LiveModel, load_tokenizer
from tests.architectures import save_random, tensors_of
from tests.conftest import copy_family

Command = Callable[..., tuple[int, str, str]]
IDS = torch.tensor([[5, 9, 2, 40]])
CPU = torch.device("cpu")
CONFIGURATION = """\
from transformers import LlamaConfig
with open({canary!r}, "a") as file:
    file.write("configuration ")
class OwnConfig(LlamaConfig):
    model_type = "own"
"""
MODELING = """\
from transformers import LlamaForCausalLM
from .configuration_own import OwnConfig
with open({canary!r}, "a") as file:
    file.write("modeling ")
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""
TOKENIZATION = """\
from transformers import PreTrainedTokenizerFast
with open({canary!r}, "a") as file:
    file.write("tokenization ")
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
REFUSED = (
    "expected {what} that transformers knows, got one with code of its own, none of which was run, "
    "in {file}; read that code and, if you trust it, add --trust-remote-code"
)


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_modules: None) -> Iterator[Path]:
    """A file that code of the checkpoints writes to; the terminal is never asked for leave."""
    asked: list[str] = []
    monkeypatch.setattr(builtins, "input", lambda prompt="": asked.append(prompt) or "y")
    yield tmp_path / "canary"
    assert asked == []


def with_code(folder: Path, canary: Path) -> Path:
    """Make a Llama one of a type that transformers does not know, with the code for it."""
    own = {"configuration": CONFIGURATION, "modeling": MODELING, "tokenization": TOKENIZATION}
    for name, source in own.items():
        (folder / f"{name}_own.py").write_text(source.format(canary=str(canary)))
    classes = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
    }
    config = {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": classes}
    change(folder / "config.json", config)
    if (folder / "tokenizer_config.json").exists():
        auto_map = {"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]}
        change(folder / "tokenizer_config.json", {"tokenizer_class": "Own", "auto_map": auto_map})
    return folder


def change(file: Path, keys: dict[str, Any]) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Command:
    """The command line in this process: arguments → exit status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["evomerge", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), *capsys.readouterr()

    return run


@pytest.fixture
def coded(family: Path, canary: Path) -> Path:
    """The family, each model of it with code of its own."""
    for folder in (family / "base", *(family / "experts").iterdir()):
        with_code(folder, canary)
    return family


def test_a_study_of_models_with_code(
    coded: Path,
    trained_family: Path,
    command: Command,
    canary: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read(*_: Any) -> Any:
        raise AssertionError("weights were read")

    study, trust = coded / "study.yaml", "--trust-remote-code"
    score = ["evaluate", coded / "experts/sort", study, "--json"]
    said = REFUSED.format(what="a model", file=coded / "base/config.json")
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "read", read)
        patch.setattr(Checkpoint, "map", read)
        for arguments in (score, ["search", study], ["check", study]):
            assert command(*arguments) == (2, "", f"evomerge: {said}\n")
    assert not canary.exists()
    assert not (tmp_path / "runs").exists()

    status, printed, _ = command(*score, trust)
    assert status == 0
    assert set(canary.read_text().split()) == {"configuration", "modeling", "tokenization"}
    plain = tmp_path / "plain"
    copy_family(trained_family, plain)
    same = command("evaluate", plain / "experts/sort", plain / "study.yaml", "--json")
    assert json.loads(printed) == json.loads(same[1])


def test_trust_is_of_one_command_alone(coded: Path, command: Command, tmp_path: Path) -> None:
    arguments = ["--trials", "2", "--name", "s"]
    status, _, said = command("search", coded / "study.yaml", *arguments, "--trust-remote-code")
    assert status == 0, said
    database = (tmp_path / "runs/s/study.db").read_bytes()
    assert b"generation" in database
    assert b'"trust' not in database
    refused = REFUSED.format(what="a model", file=coded / "base/config.json")
    more = ["resume", "s", "--trials", "3"]
    assert command(*more) == (2, "", f"evomerge: {refused}\n")
    assert command(*more, "--trust-remote-code")[0] == 0
    assert json.loads(command("status", "s", "--json")[1])["trials"]["complete"] == 3


def test_a_model_with_code_on_a_study_without(
    family: Path, command: Command, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused before the weights of the study's own models are read."""
    model = family / "experts/sort"
    shutil.copytree(model, family / "own")
    with_code(family / "own", canary)
    monkeypatch.setattr(Checkpoint, "read", None)
    monkeypatch.setattr(Checkpoint, "map", None)
    refused = REFUSED.format(what="a model", file=family / "own/config.json")
    found = command("evaluate", family / "own", family / "study.yaml")
    assert found == (2, "", f"evomerge: {refused}\n")
    assert not canary.exists()


def test_merging_and_checking_run_no_code(coded: Path, command: Command, canary: Path) -> None:
    models = [coded / "experts/sort", coded / "experts/caesar"]
    data = {
        "merge_method": "linear",
        "models": [{"model": str(one), "parameters": {"weight": 1}} for one in models],
    }
    (coded / "r.yaml").write_text(yaml.safe_dump(data))
    assert command("check", coded / "r.yaml")[0] == 0
    assert command("check", coded / "r.yaml", "--explain")[0] == 0
    status, _, said = command("merge", coded / "r.yaml", coded / "out")
    assert status == 0, said
    assert json.loads((coded / "out/config.json").read_text())["model_type"] == "own"
    assert not canary.exists()


def test_a_tokenizer_with_code(trained_family: Path, tmp_path: Path, canary: Path) -> None:
    for file in (trained_family / "base").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = (tmp_path / "config.json").read_bytes()
    with_code(tmp_path, canary)
    (tmp_path / "config.json").write_bytes(config)
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    assert str(caught.value) == REFUSED.format(what="a tokenizer", file=file)
    assert not canary.exists()
    assert type(load_tokenizer(tmp_path, trust=True)).__name__ == "OwnTokenizer"
    assert canary.read_text() == "tokenization "


def test_a_known_configuration_with_a_model_of_its_own(tmp_path: Path, canary: Path) -> None:
    tensors = tensors_of(save_random(tmp_path, "llama"))
    expected = LiveModel(tmp_path, tensors, CPU).logits(IDS, 3)
    with_code(tmp_path, canary)
    auto_map = {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    change(tmp_path / "config.json", {"model_type": "llama", "auto_map": auto_map})
    with pytest.raises(CheckpointError) as caught:
        LiveModel(tmp_path, tensors, CPU)
    assert str(caught.value) == REFUSED.format(what="a model", file=tmp_path / "config.json")
    assert not canary.exists()
    assert torch.equal(LiveModel(tmp_path, tensors, CPU, trust=True).logits(IDS, 3), expected)
    assert canary.read_text() == "configuration modeling "


def test_code_that_transformers_does_not_need_is_left_alone(tmp_path: Path, canary: Path) -> None:
    tensors = tensors_of(save_random(tmp_path, "llama"))
    expected = LiveModel(tmp_path, tensors, CPU).logits(IDS, 3)
    with_code(tmp_path, canary)
    known = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    change(tmp_path / "config.json", known)
    assert torch.equal(LiveModel(tmp_path, tensors, CPU).logits(IDS, 3), expected)
    assert not canary.exists()


def test_code_that_cannot_be_imported(tmp_path: Path, canary: Path) -> None:
    tensors = tensors_of(save_random(tmp_path, "llama"))
    with_code(tmp_path, canary)
    change(tmp_path / "config.json", {"model_type": "llama"})
    for source in ("import no_such_package", "1 / 0", "class Other: pass"):
        (tmp_path / "modeling_own.py").write_text(f"{source}\n")
        with pytest.raises(CheckpointError, match=r"the code of modeling_own") as caught:
            LiveModel(tmp_path, tensors, CPU, trust=True)
        assert "\n" not in str(caught.value)


def test_nobody_is_asked_for_a_part_of_a_model(tmp_path: Path, canary: Path) -> None:
    """transformers would ask on the terminal where a known model has a part of unknown code."""
    part = {"model_type": "emu3_text_model", "auto_map": {"AutoModel": "org/x--modeling.Evil"}}
    config = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"],
              "text_config": part}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="requires you to execute custom code") as caught:
        check_runnable(tmp_path, {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["pipeline", "AutoModelForCausalLM", "logging", 3, {}])
def test_only_a_model_is_a_model(name: object, tmp_path: Path) -> None:
    (save_random(tmp_path, "llama") / "config.json").write_text(
        json.dumps({"model_type": "llama", "architectures": [name]})
    )
    with pytest.raises(CheckpointError) as caught:
        check_runnable(tmp_path, {})
    assert "\n" not in str(caught.value)
