"""A folder with models, items and studies in which mistakes are made, and how one is made there."""

import contextlib
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge import Study, cli
from evomerge.zoo.tokenizer import build_tokenizer
from tests.architectures import save_random
from tests.tiny_adapters import factors, write_adapter

STUDY = """\
models:
  base: base
  experts: {maths: maths, code: code}
space: task_arithmetic
tasks:
  sums:
    kind: multiple_choice
    data: sums.jsonl
    prompt: "{question}"
    options: "{options}"
    answer: "{answer}"
splits: {search: 8, select: 8, heldout: 8}
search: {optimizer: random_search, trials: 4}
fitness: {worst: 0}
"""
RECIPE = """\
merge_method: ties
base_model: base
models:
  - {model: maths, parameters: {weight: 0.5, density: 0.5}}
  - {model: code, parameters: {weight: 0.5, density: 0.5}}
"""
ITEMS = [{"question": f"{n} + 1 =", "options": [n, n + 1], "answer": 1} for n in range(30)]
_PROGRESS = re.compile(r"^\d\d:\d\d:\d\d .*\n", re.MULTILINE)


@dataclass(frozen=True)
class Change:
    """Something that is wrong in the folder: what the page says of it, and what makes it so."""

    told: str
    make: Callable[[Path], object] = lambda folder: None


@dataclass(frozen=True)
class Mistake:
    """A command that goes wrong; `machine` makes the machine one that lacks something."""

    title: str
    command: str
    changes: tuple[Change, ...] = ()
    machine: Callable[[ExitStack], object] = lambda stack: None
    status: int = 2  # with which the command ends
    real: bool = False  # in a process of its own


@dataclass(frozen=True)
class Answer:
    """What a mistake is answered with, and the files that it has left."""

    output: str
    status: int
    left: frozenset[str]


def build(folder: Path) -> None:
    """Write models, items, a study file and a recipe; a study that is done, one to be run."""
    save_random(folder / "base", "llama")
    build_tokenizer().save_pretrained(folder / "base")
    for seed, name in enumerate(("maths", "code")):
        shutil.copytree(folder / "base", folder / name)
        _tune(folder / name / "model.safetensors", seed)
    save_random(folder / "gpt", "gpt2")
    save_random(folder / "wide", "llama", vocabulary=64)
    module = "model.layers.0.self_attn.q_proj"
    write_adapter(folder / "lora", factors({module: (32, 32)}))
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ITEMS))
    (folder / "study.yaml").write_text(STUDY)
    (folder / "recipe.yaml").write_text(RECIPE)
    with contextlib.chdir(folder):
        output, status = run("evomerge search study.yaml --name monday --quiet")
        assert status == 0, output
        Study.create("study.yaml", name="tuesday")


def _tune(file: Path, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(file)
    for tensor in tensors.values():
        tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.01)
    save_file(tensors, file, metadata={"format": "pt"})


def answer(mistake: Mistake, whole: Path, folder: Path) -> Answer:
    """Make a mistake in a copy of the whole folder, at the path where that was built."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    for change in mistake.changes:
        change.make(folder)
    before = _files(folder)
    with ExitStack() as stack:
        stack.enter_context(contextlib.chdir(folder))
        mistake.machine(stack)
        output, status = run(mistake.command, mistake.real)
    output = _PROGRESS.sub("", output).replace(str(folder), "FOLDER")
    return Answer(output, status, _files(folder) - before)


def _files(folder: Path) -> frozenset[str]:
    return frozenset(str(one.relative_to(folder)) for one in folder.rglob("*"))


def run(command: str, real: bool = False) -> tuple[str, int]:
    """Run a command line, in this process or one of its own; `| grep WORD` may stand behind it."""
    command, _, word = command.partition(" | grep ")
    words = shlex.split(command.removesuffix(" 2>&1"))
    assert words[0] == "evomerge"
    output, status = (_outside if real else _inside)(words)
    lines = [line for line in output.splitlines(keepends=True) if word in line]
    return "".join(lines), status


def _outside(words: list[str]) -> tuple[str, int]:
    done = subprocess.run(
        [sys.executable, "-m", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.stdout, done.returncode


def _inside(words: list[str]) -> tuple[str, int]:
    printed = io.StringIO()
    status = 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        patch.setattr(sys, "argv", words)
        patch.setattr(sys.modules["__main__"], "__package__", None)  # or it is `python -m …`
        try:
            cli.main()
        except SystemExit as end:
            status = int(end.code or 0)
    return printed.getvalue(), status
