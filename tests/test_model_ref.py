"""References to models: what a text means, and that it is written back the same."""

from pathlib import Path

import pytest

from evomerge.checkpoints import ModelRef
from evomerge.errors import InputError, Place

PLACE = Place("study.yaml", InputError, "models.base")


@pytest.fixture
def family(tmp_path: Path) -> Path:
    for name in "ab":
        (tmp_path / name).mkdir()
    return tmp_path


def test_forms(family: Path) -> None:
    assert ModelRef.parse(" org/name ", PLACE) == ModelRef("org/name")
    assert ModelRef.parse("org/name@v1", PLACE) == ModelRef("org/name", "v1")
    assert str(ModelRef("org/name", "v1")) == "org/name@v1"
    odd = family / "b@2+c"
    odd.mkdir()
    assert ModelRef.parse(str(odd), PLACE) == ModelRef(str(odd))


@pytest.mark.parametrize("bad", ["", "  ", "@v1", "org/name@", None, 3, ["a"], {"a": 1}, True])
def test_refused(bad: object) -> None:
    with pytest.raises(InputError, match=r"at models.base in study.yaml"):
        ModelRef.parse(bad, PLACE)


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("org/base+org/lora", ModelRef("org/base", None, ModelRef("org/lora"))),
        ("org/base@v1 + org/lora", ModelRef("org/base", "v1", ModelRef("org/lora"))),
        ("base+org/lora@v2", ModelRef("base", None, ModelRef("org/lora", "v2"))),
        ("b@1+./l@2", ModelRef("b", "1", ModelRef("./l", "2"))),
    ],
)
def test_adapters(text: str, ref: ModelRef) -> None:
    assert ModelRef.parse(text, PLACE) == ref
    assert str(ref) == text.replace(" ", "")
    assert ModelRef.parse(str(ref), PLACE) == ref


@pytest.mark.parametrize("bad", ["a+", "+a", "+", "a+b+c", "a+b@", "a+@v", "a++b"])
def test_adapters_refused(bad: str) -> None:
    with pytest.raises(InputError, match=r"expected model.* at models.base in study.yaml"):
        ModelRef.parse(bad, PLACE)


def test_folders_with_a_plus_in_their_name(family: Path) -> None:
    for name in ("x+y", "l@1", "l+m"):
        (family / name).mkdir()
    model, adapters = str(family / "x+y"), [str(family / "l@1"), str(family / "l+m")]
    for adapter in adapters:
        ref = ModelRef(model, None, ModelRef(adapter))
        assert ModelRef.parse(str(ref), PLACE) == ref


def test_both_parts_are_resolved(family: Path) -> None:
    ref = ModelRef.parse("a+b", PLACE).resolved(family)
    a, b = (str((family / name).resolve()) for name in "ab")
    assert ref == ModelRef(a, None, ModelRef(b))
    assert ModelRef.parse(str(ref), PLACE) == ref
    mixed = ModelRef.parse("a@v+b", PLACE).resolved(family)
    assert mixed == ModelRef("a", "v", ModelRef(b))


def test_resolved_against_a_folder(family: Path) -> None:
    assert ModelRef("a").resolved(family) == ModelRef(str((family / "a").resolve()))
    assert ModelRef("nothing").resolved(family) == ModelRef("nothing")
    assert ModelRef("a", "v1").resolved(family) == ModelRef("a", "v1")
    loop = family / "loop"
    loop.symlink_to(loop)
    assert ModelRef("loop").resolved(family) == ModelRef("loop")
