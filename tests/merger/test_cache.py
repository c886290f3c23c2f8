"""Statistics on disk: computed once, by content, whole or computed again."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load

from evomerge.merger import Merger, masks, measures
from evomerge.merger.cache import default_folder
from tests.tiny_models import (
    merged,
    opened,
    recipe_of,
    weights,
    write_checkpoint,
    write_family,
)

OWN = {"weight": 0.7, "density": 0.31}
THREE: dict[str, Any] = {"models": dict.fromkeys("abc", OWN)}
RECIPES: dict[str, dict[str, Any]] = {
    "ties": THREE | {"parameters": {"rescale": True}},
    "ties of the model": THREE | {"parameters": {"trim_whole_model": True}},
    "breadcrumbs": THREE,
    "dare_ties": THREE,
    "della": THREE,
    "sce": {"models": {"a": {}, "b": {}, "c": {}}, "parameters": {"select_topk": 0.31}},
    "slerp": {"models": {"a": {}}, "parameters": {"t": 0.3}},
    "model_stock": {"models": {"a": {}, "b": {}}},
}
MEASURES = [
    (measures, "inner"), (measures, "by_magnitude"), (measures, "by_band"),
    (measures, "by_variance"), (masks, "rescale"), (masks, "rank_bits"),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the cache, new for each test."""
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("family"), torch.bfloat16)


def recipe(family: Path, name: str, **shared: Any) -> dict[str, Any]:
    data = recipe_of(family, name.partition(" ")[0], base_model="base", **RECIPES[name])
    data["parameters"] = data.get("parameters", {}) | shared
    return data


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the measures, as they are taken from now on."""
    taken: list[str] = []
    for module, name in MEASURES:
        inner = getattr(module, name)

        def noting(*given: Any, inner: Callable[..., Any] = inner, name: str = name) -> Any:
            taken.append(name)
            return inner(*given)

        monkeypatch.setattr(module, name, noting)
    return taken


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", RECIPES)
def test_a_second_merger_measures_nothing(
    folder: Path, family: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = counted(monkeypatch)
    first = merged(recipe(family, name))
    assert taken
    kept = files(folder)
    taken.clear()
    for memory in ("device", "disk"):
        second = merged(recipe(family, name), memory=memory)
        assert not taken
        assert all(torch.equal(first[tensor], second[tensor]) for tensor in first)
    assert files(folder) == kept
    merged(recipe(family, name), keep=False)
    assert taken


def test_a_recipe_asks_for_what_it_needs_alone(
    folder: Path, family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = counted(monkeypatch)
    Merger(opened(family, "base", "a", "b", "c"))
    for method in ("linear", "task_arithmetic", "passthrough"):
        models = {"a": {} if method == "passthrough" else {"weight": 0.5}}
        base = {"base_model": "base"} if method == "task_arithmetic" else {}
        merged(recipe_of(family, method, models=models, **base))
    merged(recipe(family, "dare_ties", rescale=False))
    assert not taken
    assert not folder.exists()
    merged(recipe(family, "della", rescale=False))
    assert set(taken) == {"rank_bits"}


def test_nothing_is_kept_unless_asked(folder: Path, family: Path) -> None:
    merged(recipe(family, "ties"), keep=False)
    assert not folder.exists()


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path))
    assert default_folder() == tmp_path
    monkeypatch.delenv("EVOMERGE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_folder() == tmp_path / "xdg" / "evomerge"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "evomerge"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def flip_the_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 255
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def a_few_bytes(path: Path) -> None:
    path.write_bytes(b"abc")


def a_folder(path: Path) -> None:
    path.unlink()
    (path / "inside").mkdir(parents=True)


DAMAGES = [cut, flip, flip_the_header, empty, a_few_bytes, a_folder]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["ties", "della"])
def test_what_is_damaged_is_measured_again(
    folder: Path, family: Path, name: str, damage: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    first = merged(recipe(family, name))
    kept = files(folder)
    for path in list(folder.iterdir()):
        damage(path)
    taken = counted(monkeypatch)
    second = merged(recipe(family, name))
    assert taken
    assert all(torch.equal(first[tensor], second[tensor]) for tensor in first)
    if damage is not a_folder:
        assert files(folder) == kept


@pytest.mark.parametrize("what", ["file", "folder under a file", "read-only"])
def test_a_folder_that_cannot_be_written_is_done_without(
    tmp_path: Path, family: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "place"
    if what == "read-only":
        place.mkdir(mode=0o500)
        monkeypatch.setattr("evomerge.merger.cache.write_bytes", refuse)  # also for root
    else:
        place.write_text("")
    monkeypatch.setenv("EVOMERGE_CACHE", str(place / "x" if "under" in what else place))
    found = merged(recipe(family, "ties"))
    wanted = merged(recipe(family, "ties"), keep=False)
    assert all(torch.equal(found[tensor], wanted[tensor]) for tensor in found)


def refuse(path: Path, data: bytes) -> None:
    raise PermissionError(13, "Permission denied")


def test_other_content_is_kept_elsewhere(folder: Path, family: Path, tmp_path: Path) -> None:
    merged(recipe(family, "ties"))
    first = files(folder)
    for name in ("base", "a", "b", "c"):
        changed = weights(family, name)
        if name == "a":
            changed["lm_head.weight"][0, 0] += 1
        write_checkpoint(tmp_path / name, changed)
    found = merged(recipe(tmp_path, "ties"))
    assert len(files(folder)) == len(first) + 1  # those of a, not of b and c
    assert first.items() <= files(folder).items()
    wanted = merged(recipe(tmp_path, "ties"), keep=False)
    assert all(torch.equal(found[tensor], wanted[tensor]) for tensor in found)


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("breadcrumbs", {"gamma": 0.1}, {"gamma": 0.2}),
        ("dare_ties", {"seed": 1}, {"seed": 2}),
        ("della", {"seed": 1}, {"seed": 2}),
        ("della", {"epsilon": 0.1}, {"epsilon": 0.2}),
    ],
)
def test_settings_that_matter_are_part_of_the_key(
    folder: Path, family: Path, name: str, one: dict[str, Any], other: dict[str, Any]
) -> None:
    merged(recipe(family, name, **one))
    first = files(folder)
    found = merged(recipe(family, name, **other))
    assert len(files(folder)) > len(first)
    wanted = merged(recipe(family, name, **other), keep=False)
    assert all(torch.equal(found[tensor], wanted[tensor]) for tensor in found)


def test_tensors_that_not_all_models_have_do_not_confuse_it(folder: Path, tmp_path: Path) -> None:
    """What is kept of some tensors is the same, whatever other tensors a model has beside them."""
    generator = torch.Generator().manual_seed(0)
    small = {
        "m": torch.randn(70, generator=generator),
        "n": torch.randn(5, 40, generator=generator),
    }
    more = small | {"a": torch.randn(30, generator=generator), "z": torch.ones(3)}
    write_checkpoint(tmp_path / "small", small)
    write_checkpoint(tmp_path / "more", more)
    moved = {name: one + torch.randn(one.shape, generator=generator) for name, one in small.items()}
    write_checkpoint(tmp_path / "x", moved)
    for method in ("ties", "della", "breadcrumbs", "dare_ties"):
        found = [
            merged(
                recipe_of(tmp_path, method, base_model=base, models={"x": OWN},
                          parameters={"rescale": True})
            )
            for base in ("small", "more", "small")
        ]  # fmt: skip
        for one in found:
            assert all(torch.equal(one[name], found[0][name]) for name in small)


SCRIPT = """
import sys
from pathlib import Path
from tests.merger.test_cache import recipe
from tests.tiny_models import merged
print(len(merged(recipe(Path(sys.argv[1]), sys.argv[2]))))
"""


def test_processes_that_prepare_at_once(folder: Path, family: Path) -> None:
    started = [
        subprocess.Popen([sys.executable, "-c", SCRIPT, str(family), "della"], text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]  # fmt: skip
    for process in started:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert int(out) > 10
    kept = files(folder)
    assert not [name for name in kept if name.startswith(".")]
    for data in kept.values():
        assert load(data[:-16])
    merged(recipe(family, "della"))
    assert files(folder) == kept
