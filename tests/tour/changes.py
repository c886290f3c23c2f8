"""What is wrong in the folder, or with the machine, when a mistake is made."""

import contextlib
import errno
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.merger import inputs
from evomerge.study.store import only_writer
from tests.tour.world import Change, run

OWN_TASK = '  own: {kind: python, data: sums.jsonl, function: "own.py:score"}\nsplits:'
SPACE = (
    "{merge_method: ties, base_model: base, models: "
    "[{each: experts, parameters: {weight: %s, density: 0.5}}]}"
)


def edit(file: str, before: str, after: str, told: str | None = None) -> Change:
    """Put one text in the place of another."""

    def make(folder: Path) -> None:
        text = (folder / file).read_text()
        assert before in text, before
        (folder / file).write_text(text.replace(before, after, 1))

    told = (
        told
        if told is not None
        else f"`{file}` says `{after.strip()}` where `{before.strip()}` should be."
    )
    return Change(told, make)


def cards(base: str) -> Change:
    """Let the cards of both experts name their base."""

    def make(folder: Path) -> None:
        for name in ("maths", "code"):
            (folder / name / "README.md").write_text(f"---\nbase_model: {base}\n---\n")

    return Change(f"The cards of both experts say `base_model: {base}`.", make)


def study(before: str, after: str, told: str | None = None) -> Change:
    return edit("study.yaml", before, after, told)


def recipe(before: str, after: str, told: str | None = None) -> Change:
    return edit("recipe.yaml", before, after, told)


def item(before: str, after: str, told: str | None = None) -> Change:
    """Change the third item."""
    return edit("sums.jsonl", before, after, told)


def space(weight: str) -> Change:
    return study(
        "space: task_arithmetic", f"space: {SPACE % weight}", f"The space has `weight: {weight}`."
    )


def task(text: str) -> Change:
    """Add a task."""
    return study("splits:", f"  more: {text}\nsplits:", f"There is a second task, `{text}`.")


def own(body: str, told: str, before: str = "") -> tuple[Change, Change]:
    """Add a task that a function scores."""
    source = f"{before}def score(model, tokenizer, rows):\n    {body}\n"
    return Change("", study("splits:", OWN_TASK).make), put("own.py", source, told)


def put(file: str, content: str | bytes, told: str) -> Change:
    """Write a file."""
    data = content.encode() if isinstance(content, str) else content
    return Change(told, lambda folder: (folder / file).write_bytes(data))


def gone(*files: str) -> Change:
    names = " and ".join(f"`{file}`" for file in files)
    are = "are" if len(files) > 1 else "is"
    return Change(
        f"{names} {are} missing.", lambda folder: [(folder / one).unlink() for one in files]
    )


def tensors(told: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    """Change the weights of an expert."""

    def make(folder: Path) -> None:
        file = folder / "maths/model.safetensors"
        found = load_file(file)
        change(found)
        save_file(found, file, metadata={"format": "pt"})

    return Change(told, make)


def config(told: str, **keys: Any) -> Change:
    """Change the configuration of the base."""

    def make(folder: Path) -> None:
        file = folder / "base/config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | keys))

    return Change(told, make)


class Code:
    """What a pickled file can do to those who load it."""

    def __reduce__(self) -> Any:
        return os.system, ("touch was_run",)


def pickled(folder: Path) -> None:
    (folder / "maths/model.safetensors").unlink()
    torch.save({"model.norm.weight": Code()}, folder / "maths/pytorch_model.bin")


def cut_off(folder: Path) -> None:
    file = folder / "maths/model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


def half_a_model(folder: Path) -> None:
    (folder / "maths/model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / "maths/model.safetensors.index.json").write_text(json.dumps(index))


def merged(folder: Path) -> None:
    with contextlib.chdir(folder):
        assert run("evomerge merge recipe.yaml out")[1] == 0


def a_file_in_the_way(folder: Path) -> None:
    shutil.rmtree(folder / "runs")
    (folder / "runs").write_text("")


def lacks(package: str) -> Callable[[ExitStack], object]:
    return lambda stack: _patch(stack).setitem(sys.modules, package, None)


def busy(stack: ExitStack) -> None:
    stack.enter_context(only_writer("tuesday", None))


def small_disk(stack: ExitStack) -> None:
    usage = shutil.disk_usage("/")
    _patch(stack).setattr(shutil, "disk_usage", lambda path: usage._replace(free=9000))


def full_disk(stack: ExitStack) -> None:
    def fsync(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    _patch(stack).setattr(os, "fsync", fsync)


def small_memory(stack: ExitStack) -> None:
    def allocate(*given: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 14.96 GiB.")

    patch = _patch(stack)
    patch.setattr(inputs, "allocate", allocate)
    patch.setattr(torch.cuda, "device_count", lambda: 2)


def port_8080(stack: ExitStack) -> None:
    server = stack.enter_context(socket.socket())
    with contextlib.suppress(OSError):  # somebody else has it, which is as good
        server.bind(("127.0.0.1", 8080))
        server.listen()


def _patch(stack: ExitStack) -> pytest.MonkeyPatch:
    return stack.enter_context(pytest.MonkeyPatch.context())
