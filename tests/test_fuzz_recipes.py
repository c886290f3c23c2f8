"""Damaged recipes, merged: what is written is what a second reader expects, or nothing is."""

import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from evomerge import cli
from evomerge.merger.write import write_model
from evomerge.slices import load_any_recipe
from tests.mergekit_oracle import MOST_ULPS, steps, ulps_of
from tests.mutation import damaged_text, mutated, refusal, varied
from tests.recipe_world import Files, World, files_of, read, recipes
from tests.second_resolver import donor_of, names_of, result_dtype, second_merge, text_of
from tests.test_fuzz_checkpoints import flip, rename, splice, swap, truncate
from tests.tiny_models import Tensors

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def nothing_else_changes(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """The models and the current folder are as they were."""
    monkeypatch.chdir(tmp_path)
    before = files_of(world.models)
    yield
    assert files_of(world.models) == before
    assert list(tmp_path.iterdir()) == []


Merge = Callable[[Path, Path], str | None]  # recipe, folder → the refusal


def in_process(recipe: Path, out: Path) -> str | None:
    """Merge as `evomerge merge` does."""
    return refusal(lambda: write_model(load_any_recipe(recipe), out, str(recipe), device=CPU))


def outcome(world: World, content: bytes, merge: Merge = in_process) -> tuple[str, Files]:
    """Merge a recipe's text; return the refusal, or nothing and the files that were written."""
    shutil.rmtree(world.case, ignore_errors=True)
    world.case.mkdir()
    recipe = world.case / "r.yaml"
    recipe.write_bytes(content)
    said = merge(recipe, world.case / "out")
    assert recipe.read_bytes() == content
    if said is None:
        assert sorted(os.listdir(world.case)) == ["out", "r.yaml"]
        return "", files_of(world.case / "out")
    assert os.listdir(world.case) == ["r.yaml"]
    assert said.isprintable()
    assert 0 < len(said) < 1000
    return said, {}


def check(world: World, data: Any, inputs: Mapping[str, Tensors]) -> None:
    """Compare what was written with the second reader's merge of plain data."""
    out = world.case / "out"
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
    }
    dtype = result_dtype(data)
    layers = {name.split(".")[2] for name in names_of(data, inputs) if ".layers." in name}
    config = json.loads((Path(donor_of(data).split("+")[0]) / "config.json").read_bytes())
    config |= {"num_hidden_layers": len(layers)} | ({"dtype": dtype} if dtype else {})
    assert json.loads((out / "config.json").read_text()) == config
    written = load_file(out / "model.safetensors")
    expected = second_merge(data, inputs)
    assert set(written) == set(expected)
    for name, tensor in written.items():
        assert tensor.dtype == getattr(torch, dtype or "float32")
        assert torch.isfinite(tensor).all()
        exact, mine = expected[name], tensor.reshape(-1)
        off = ulps_of(mine.double() - torch.from_numpy(exact.value), torch.from_numpy(exact.scale))
        right = (off <= MOST_ULPS) | torch.from_numpy(exact.open)
        if dtype in ("bfloat16", "float16"):
            right |= steps(mine, torch.from_numpy(exact.value).to(mine.dtype)) <= 1
        assert right.all(), (name, off.max())


def same_data(one: Any, other: Any) -> bool:
    """Return whether YAML says the same, 1 being neither 1.0 nor true."""
    return one == other and repr(one) == repr(other)


def run(world: World, case: str, content: bytes, whole: Any, merge: Merge = in_process) -> str:
    """Merge a damaged recipe and judge it; `whole` is the recipe that was damaged."""
    try:
        said, files = outcome(world, content, merge)
        if not said:
            data = yaml.safe_load(content.decode("utf-8-sig"))
            check(world, data, world.inputs)
            if same_data(data, whole):
                intact = outcome(world, yaml.safe_dump(whole, sort_keys=False).encode(), merge)
                assert files == intact[1]
                said = "the same"
    except BaseException as problem:
        problem.add_note(f"case {case} in {world.case}")
        raise
    return said


@pytest.mark.parametrize("name", ["linear", "ties", "dare", "slices", "stack", "modules"])
def test_right_recipes(world: World, name: str) -> None:
    data = recipes(world)[name]
    assert run(world, name, yaml.safe_dump(data, sort_keys=False).encode(), data) == "the same"


def structure(world: World, data: Any, draw: random.Random) -> bytes:
    """Values of other types, keys removed, doubled, renamed, nested, or containing themselves."""
    text = yaml.dump(mutated(data, draw), sort_keys=False, allow_unicode=draw.random() < 0.5)
    return text.encode(errors="surrogatepass")


def values(world: World, data: Any, draw: random.Random) -> bytes:
    """Other numbers, models, methods, dtypes and filters, most of them legal."""
    return yaml.safe_dump(varied(data, draw, world.others()), sort_keys=False).encode()


def text(world: World, data: Any, draw: random.Random) -> bytes:
    """Accidents of the file itself."""
    if draw.random() < 0.3:
        data = varied(data, draw, world.others())
    flow = draw.choice([None, None, True])
    return damaged_text(yaml.safe_dump(data, sort_keys=False, default_flow_style=flow), draw)


Damage = Callable[[World, Any, random.Random], bytes]
BATCHES = [(structure, 5), (values, 5), (text, 8)]


@pytest.mark.parametrize(
    ("damage", "batch"), [(damage, batch) for damage, count in BATCHES for batch in range(count)]
)
def test_damaged_recipes(world: World, damage: Damage, batch: int) -> None:
    known = recipes(world)
    found = []
    for number in range(120):
        case = f"{damage.__name__} {batch} {number}"
        draw = random.Random(case)
        whole = known[draw.choice(sorted(known))]
        found.append(run(world, case, damage(world, whole, draw), whole))
    merged = sum(said in ("", "the same") for said in found)
    assert {structure: 3, values: 30, text: 10}[damage] <= merged < 115


def test_damaged_recipes_of_damaged_models(world: World, tmp_path: Path) -> None:
    whole, found = files_of(world.models), []
    place = world.case.parent / "damaged"
    for number in range(240):
        draw = random.Random(f"models {number}")
        name, data = draw.choice(sorted(recipes(world).items()))
        files = dict(whole)
        for _ in range(draw.choice([1, 2])):
            draw.choice([truncate, flip, flip, flip, splice, rename, swap])(files, draw)
        content = yaml.safe_dump(data, sort_keys=False).encode()
        if draw.random() < 0.3:
            content = values(world, data, draw)
        content = content.replace(bytes(world.models), bytes(place))
        shutil.rmtree(place, ignore_errors=True)
        for path, stored in files.items():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_bytes(stored)
        try:
            said, _ = outcome(world, content)
            if not said:
                damaged = yaml.safe_load(content)
                check(world, damaged, {ref: read(ref) for ref in refs_of(damaged)})
        except BaseException as problem:
            problem.add_note(f"models {number}, {name}: {place}, {world.case}")
            raise
        found.append(said)
    assert 40 < found.count("") < 200


def refs_of(data: Any) -> set[str]:
    """Return the models that plain data of a recipe names, by their text."""
    if isinstance(data, list):
        return set().union(*map(refs_of, data))
    if not isinstance(data, dict):
        return set()
    named = {text_of(data[key]) for key in ("base_model", "model") if data.get(key) is not None}
    return named.union(*map(refs_of, data.values()))


def test_the_command(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same by the command line: exit status 2 and the sentence, or 0 and the weights' hash."""

    def merge(recipe: Path, out: Path) -> str | None:
        monkeypatch.setattr(sys, "argv", ["evomerge", "merge", str(recipe), str(out)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        if end.value.code == 2:
            assert printed.out == ""
            *_, last = printed.err.splitlines()
            assert last.startswith("evomerge: ")
            return last.removeprefix("evomerge: ")
        assert not end.value.code
        assert printed.out.startswith(f"{out} holds the merged model, weights ")
        return None

    known, found = recipes(world), []
    for number in range(90):
        draw = random.Random(f"command {number}")
        whole = known[draw.choice(sorted(known))]
        damage = draw.choice([structure, values, values, text])
        found.append(run(world, f"{number}", damage(world, whole, draw), whole, merge))
    assert 15 < sum(said in ("", "the same") for said in found) < 75


def test_other_files_as_recipes(world: World, tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("others")
    (place / "loop").symlink_to(place / "loop")
    (place / "empty").touch()
    others = [*world.models.rglob("*"), place, place / "loop", place / "empty", place / "none",
              place / ("x" * 300), place / "a\0b", Path("/dev/null")]  # fmt: skip
    for path in others:
        said = in_process(path, place / "out")
        assert said is not None, path
        assert said.isprintable()
    assert sorted(one.name for one in place.iterdir()) == ["empty", "loop"]
