"""What a merge leaves that is killed, stopped or runs out of disk, and how one goes on from it."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from evomerge.errors import CheckpointError
from evomerge.merger import write as writing
from evomerge.merger.shards import write_shard
from evomerge.merger.write import write_model
from tests.conftest import run_cli
from tests.tiny_models import parsed, recipe_of, write_checkpoint, write_family

CPU = torch.device("cpu")
TIES = {"weight": [0.2, 0.9], "density": 0.3}


@pytest.fixture
def family(tmp_path: Path) -> Path:
    folder = write_family(tmp_path / "family", torch.bfloat16)
    (folder / "base" / "tokenizer.json").write_text("{}")
    return folder


def ties(folder: Path, **fields: Any) -> dict[str, Any]:
    return recipe_of(folder, "ties", base_model="base", models=dict.fromkeys("abc", TIES), **fields)


def write(data: dict[str, Any], out: Path, **options: Any) -> str:
    options.setdefault("shard_bytes", 8000)
    return write_model(parsed(data), out, "test.yaml", device=CPU, **options)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"family"}


def stop_at(monkeypatch: pytest.MonkeyPatch, number: int, problem: BaseException) -> list[str]:
    """Let the writing of the n-th shard fail; returns the names of those begun."""
    begun: list[str] = []

    def stopped(file: Path, *arguments: Any) -> None:
        begun.append(file.name)
        if len(begun) == number:
            file.write_text("half")
            raise problem
        write_shard(file, *arguments)

    monkeypatch.setattr(writing, "write_shard", stopped)
    return begun


def stopped_merge(data: dict[str, Any], out: Path, number: int = 3) -> Path:
    """A merge that was stopped after some shards; returns the folder that it leaves."""
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, number, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt, match="the same command with --resume goes on"):
            write(data, out)
    return out.with_name(f".{out.name}.partial")


@pytest.mark.parametrize("way", ["operations", "moments"])
def test_killed_anywhere_it_ends_in_the_same_bytes(family: Path, tmp_path: Path, way: str) -> None:
    """At every single operation on files, and at random moments; killed again as it goes on."""
    few = {name: {"weight": 1} for name in "ab"}
    for name in "ab":
        tensors = {f"model.layers.{n}.x": torch.full((3, 2), float(n)) for n in range(2)}
        write_checkpoint(tmp_path / "small" / name, tensors)
        (tmp_path / "small" / name / "tokenizer.json").write_text("{}")
    data = recipe_of(tmp_path / "small", "linear", models=few)
    if way == "moments":
        data = ties(family)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(data))
    command = [sys.executable, "-m", "tests.merger.killed", str(tmp_path), way]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["killed"] >= (60 if way == "operations" else 24)


def test_a_real_process_is_killed_and_gone_on_from(family: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(ties(family)))
    options = ("--shard-size", "100", "--device", "cpu")
    whole = run_cli("merge", "recipe.yaml", "whole", *options, cwd=tmp_path)
    command = [sys.executable, "-m", "evomerge", "merge", "recipe.yaml", "out", *options]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    model = tmp_path / ".out.partial" / "model"
    while len(list(model.glob("model-*"))) < 3:
        assert process.poll() is None
    process.kill()
    process.wait()
    assert names(tmp_path) == {"recipe.yaml", "whole", ".out.partial"}
    refused = run_cli("merge", "recipe.yaml", "out", *options, cwd=tmp_path, check=False)
    assert refused.returncode == 2
    assert "add --resume to go on from them, or remove .out.partial to begin anew" in refused.stderr
    done = run_cli("merge", "recipe.yaml", "out", "--resume", *options, cwd=tmp_path)
    assert done.stdout.split()[-1] == whole.stdout.split()[-1]
    ours, theirs = content(tmp_path / "out"), content(tmp_path / "whole")
    for files, name in ((ours, "out"), (theirs, "whole")):
        assert f"# {name}\n".encode() in files.pop("README.md")
    assert ours == theirs
    assert names(tmp_path) == {"recipe.yaml", "whole", "out"}


def test_finished_shards_are_not_merged_again(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write(ties(family), tmp_path / "whole")
    left = stopped_merge(ties(family), tmp_path / "out")
    assert {path.name for path in (left / "model").iterdir()} == {
        "model-00001-of-00007.safetensors", "model-00002-of-00007.safetensors",
    }  # fmt: skip
    begun = stop_at(monkeypatch, 0, AssertionError())
    steps: list[tuple[int, int]] = []
    digest = write(ties(family), tmp_path / "out", resume=True,
                   progress=lambda text, done, total: steps.append((done, total))
                   if text == "merging" else None)  # fmt: skip
    assert begun == [f".model-{number:05d}-of-00007.safetensors" for number in range(3, 8)]
    assert digest == whole
    first, total = steps[0]
    assert 0 < first < total
    assert steps == [(done, total) for done in range(first, total + 1)]
    assert names(tmp_path) == {"whole", "out"}


@pytest.mark.parametrize("harm", ["bit", "header", "short", "gone", "more"])
def test_a_damaged_shard_is_merged_again(family: Path, tmp_path: Path, harm: str) -> None:
    write(ties(family), tmp_path / "whole")
    left = stopped_merge(ties(family), tmp_path / "out")
    file = left / "model" / "model-00002-of-00007.safetensors"
    data = bytearray(file.read_bytes())
    data[{"bit": -9, "header": 30}.get(harm, 0)] ^= 4 if harm in ("bit", "header") else 0
    file.write_bytes({"short": data[:-1], "more": data + b"\0"}.get(harm, data))
    if harm == "gone":
        file.unlink()
    notes: list[str] = []
    write(ties(family), tmp_path / "out", resume=True, note=notes.append)
    assert notes == [f"{file.name} is not what was written; it is merged again"]
    ours, theirs = content(tmp_path / "out"), content(tmp_path / "whole")
    assert {name: one for name, one in ours.items() if name != "README.md"} == {
        name: one for name, one in theirs.items() if name != "README.md"
    }


def test_what_is_gone_on_from_must_be_the_same_merge(family: Path, tmp_path: Path) -> None:
    left = stopped_merge(ties(family), tmp_path / "out")
    before = content(left / "model")

    def refused(message: str, data: dict[str, Any], **options: Any) -> None:
        with pytest.raises(CheckpointError, match=message):
            write(data, tmp_path / "out", **options)
        assert content(left / "model") == before

    refused(r"got 2 of its shards in .*/\.out\.partial; add --resume to go on", ties(family))
    refused("partial: the recipe is another; merge what it was begun with, or remove",
            ties(family, parameters={"lambda": 0.5}), resume=True)  # fmt: skip
    refused("the shard size was 8000 and is 9000", ties(family), resume=True, shard_bytes=9000)
    file = family / "b" / "model.safetensors"
    moment = file.stat().st_mtime_ns
    os.utime(file, ns=(moment, moment + 1))
    refused("family/b/model.safetensors is not what it was", ties(family), resume=True)
    os.utime(file, ns=(moment, moment))
    (left / "manifest.json").write_text("{")
    refused("expected JSON", ties(family), resume=True)
    (left / "manifest.json").write_text("{}")
    refused("got something else in .*manifest.json; remove", ties(family), resume=True)


def test_with_no_shard_finished_a_merge_begins_anew(family: Path, tmp_path: Path) -> None:
    """Whatever the recipe was: nothing is lost."""
    left = tmp_path / ".out.partial"
    (left / "model").mkdir(parents=True)
    (left / "model" / ".model-00001-of-00007.safetensors").write_text("half")
    (left / "manifest.json").write_text('{"origin": {}, "finished": {}}')
    write(ties(family), tmp_path / "out")
    assert names(tmp_path) == {"out"}
    assert "model-00001-of-00007.safetensors" in content(tmp_path / "out")
    assert not any(name.startswith(".") for name in content(tmp_path / "out"))


def test_files_of_others_are_left_alone(family: Path, tmp_path: Path) -> None:
    left = tmp_path / ".out.partial"
    left.mkdir()
    (left / "thesis.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"got thesis.txt; move it away"):
        write(ties(family), tmp_path / "out", resume=True)
    assert (left / "thesis.txt").read_text() == "mine"
    shutil.rmtree(left)
    (tmp_path / "elsewhere").mkdir()
    for make in (lambda: left.symlink_to(tmp_path / "elsewhere"), lambda: left.write_text("x")):
        make()
        with pytest.raises(CheckpointError, match="remove it first"):
            write(ties(family), tmp_path / "out")
        left.unlink()
    assert names(tmp_path / "elsewhere") == set()


def test_a_second_process_is_refused(family: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(ties(family)))
    command = [sys.executable, "-m", "evomerge", "merge", "recipe.yaml", "out"]
    process = subprocess.Popen([*command, "--shard-size", "8kB"], cwd=tmp_path,
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)  # fmt: skip
    while not (tmp_path / ".out.partial" / "manifest.json").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGSTOP)
    for resume in (False, True):
        with pytest.raises(CheckpointError, match="out is being written by another process"):
            write(ties(family), tmp_path / "out", resume=resume)
    process.send_signal(signal.SIGCONT)
    assert process.communicate()[0].decode().startswith("out holds the merged model")
    digest = write(ties(family), tmp_path / "again")
    assert content(tmp_path / "again").keys() == content(tmp_path / "out").keys()
    left = next((tmp_path / "out").glob("*00003-of-*"))
    assert left.read_bytes() == (tmp_path / "again" / left.name).read_bytes()
    assert len(digest) == 32


@pytest.mark.parametrize("problem", [OSError(28, "No space left on device"), CheckpointError("x")])
def test_an_error_leaves_nothing_but_what_was_gone_on_from(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 3, problem)
        with pytest.raises(CheckpointError):
            write(ties(family), tmp_path / "new" / "deep" / "out")
    assert names(tmp_path) == set()
    left = stopped_merge(ties(family), tmp_path / "out")
    with monkeypatch.context() as patch:
        stop_at(patch, 2, problem)
        with pytest.raises(CheckpointError):
            write(ties(family), tmp_path / "out", resume=True)
    assert {name[:11] for name in content(left / "model")} == {f"model-0000{n}" for n in (1, 2, 3)}
    write(ties(family), tmp_path / "out", resume=True)
    assert names(tmp_path) == {"out"}


def test_a_file_that_cannot_grow(family: Path, tmp_path: Path) -> None:
    """In a real process: one sentence that names the folder asked for, and nothing on the disk."""
    models = {name: {"weight": 1} for name in "ab"}
    (tmp_path / "recipe.yaml").write_text(
        yaml.safe_dump(recipe_of(family, "linear", models=models))
    )
    done = subprocess.run(
        [sys.executable, "-m", "evomerge", "merge", "recipe.yaml", "out"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)),
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "evomerge: cannot write out: File too large; free some space, or write to another disk"
    )
    assert names(tmp_path) == {"recipe.yaml"}


DISK = 'mount -t tmpfs -o size="$1" none disk && shift && "$@"; code=$?; ls -A disk; exit $code'


@pytest.mark.parametrize(
    ("size", "message"),
    [("16k", "expected 27.7 kB free for disk/out, got 12.3 kB; free some"),
     ("128k", "evomerge: cannot write disk/out: No space left on device")],
)  # fmt: skip
def test_a_full_disk(family: Path, tmp_path: Path, size: str, message: str) -> None:
    """A real one, too small for the weights, or for what comes after them."""
    (tmp_path / "disk").mkdir()
    own = ["unshare", "--mount", "--map-root-user", "sh", "-c", DISK, "sh"]
    if subprocess.run([*own, size, "true"], cwd=tmp_path, check=False).returncode:
        pytest.skip("no small disk can be mounted here")
    (family / "a" / "tokenizer.json").write_text("x" * 200_000)
    models = {name: {"weight": 1} for name in "ab"}
    data = recipe_of(family, "linear", models=models, out_dtype="bfloat16")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(data))
    command = [sys.executable, "-m", "evomerge", "merge", "recipe.yaml", "disk/out"]
    done = subprocess.run([*own, size, *command], cwd=tmp_path, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "partial" not in done.stderr
    assert done.stdout == ""


def test_a_model_that_has_its_name_already(family: Path, tmp_path: Path) -> None:
    """A kill after the last step leaves the bookkeeping: going on clears it and says the digest."""
    first = write(ties(family), tmp_path / "out")
    with pytest.raises(CheckpointError, match="out exists already"):
        write(ties(family), tmp_path / "out", resume=True)

    def killed(folder: Path) -> None:
        raise SystemExit

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evomerge.merger.unfinished._remove", killed)
        with pytest.raises(SystemExit):
            write(ties(family), tmp_path / "third")
    assert names(tmp_path) == {"out", "third", ".third.partial"}
    with pytest.raises(CheckpointError, match="third exists already"):
        write(ties(family), tmp_path / "third")
    assert write(ties(family), tmp_path / "third", resume=True) == first
    assert names(tmp_path) == {"out", "third"}
