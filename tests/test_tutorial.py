"""The commands of docs/tutorial.md, one after the other, with nothing edited in between."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from evomerge import cli
from evomerge.merger.digests import tensor_digest, weights_digest

PAGE = (Path(__file__).parents[1] / "docs/tutorial.md").read_text()
BLOCKS = re.findall(r"^```\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]


def arguments(command: str) -> list[str]:
    """A command's words, with the files that a shell makes of a pattern."""
    found = []
    for word in shlex.split(command):
        files = sorted(map(str, Path().glob(word))) if "*" in word else []
        found += files or [word]
    return found


def test_from_folders_and_files_to_a_merged_model(
    trained_family: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = {}
    for command in COMMANDS:
        name = command.split()[1]
        if name == "zoo":  # which takes its time; this is a family that is made once a session
            shutil.copytree(trained_family, command.split()[2])
            Path(command.split()[2], "study.yaml").unlink()
            continue
        few = ["--trials", "8"] if name == "search" else []
        monkeypatch.setattr(sys, "argv", arguments(command) + few)
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code, command
        printed[name] = capsys.readouterr().out

    study = yaml.safe_load(Path("letters.yaml").read_text())
    assert set(study["models"]["experts"]) == {"sort", "reverse", "caesar"}
    assert study["splits"] == {"search": 100, "select": 100, "heldout": 200}
    assert "3 experts, 3 tasks with 1200 items, 15 dimensions and 150 trials" in printed["check"]
    assert "The experts' task vectors" in printed["inspect"]
    assert "caesar → reverse" in printed["inspect"]

    report = json.loads(Path("runs/letters/report.json").read_text())
    assert Path("runs/letters/report.html").stat().st_size > 1000
    weights = load_file("merged/model.safetensors")
    digest = weights_digest({name: tensor_digest(one) for name, one in weights.items()})
    assert digest == report["winner"]["weights"]
    assert digest in printed["merge"]
    for task, accuracy in report["rows"][0]["heldout"]["tasks"].items():
        assert f"{task}: accuracy {accuracy:.4f}" in printed["evaluate"]


def test_the_tutorial_has_the_commands_on_the_way() -> None:
    names = [command.split()[1] for command in COMMANDS]
    assert names == [
        "zoo", "init", "inspect", "check", "search", "status", "report", "merge", "evaluate",
    ]  # fmt: skip
