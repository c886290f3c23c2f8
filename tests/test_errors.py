"""Errors name the place, what was expected and found, and the nearest right name."""

from collections.abc import Callable

import pytest
import torch

from evomerge import merge_methods, plugins
from evomerge.errors import (
    EvomergeError,
    Found,
    InputError,
    Place,
    SpaceError,
    first_line,
    nearest,
    out_of_memory,
)

TOP = Place("ties.yaml", SpaceError)
DEEP = (TOP / "models")[1] / "weight"


def test_places() -> None:
    assert str(TOP) == "the top of ties.yaml"
    assert str(DEEP) == "models[1].weight in ties.yaml"


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: DEEP.fail("a number", "x", "write one"),
            "expected a number, got 'x' at models[1].weight in ties.yaml; write one",
        ),
        (lambda: TOP.fail("models", None), "expected models, got nothing at the top of ties.yaml"),
        (lambda: DEEP.fail("one", Found("none")), "expected one, got none at models[1].weight in"),
        (lambda: DEEP.unknown("densty", "key", ["density", "weight"]), "did you mean 'density'?"),
        (lambda: DEEP.unknown("zzz", "key", ["b", "a"]), "unknown key 'zzz' at"),
        (lambda: DEEP.unknown("zzz", "key", ["b", "a"]), "; known: a, b"),
        (lambda: DEEP.unknown("zzz", "key", []), "; known: none"),
    ],
)
def test_messages(make: Callable[[], InputError], text: str) -> None:
    error = make()
    assert isinstance(error, SpaceError)
    assert text in str(error)


def test_whatever_was_found_is_shown_in_short() -> None:
    deep: list[object] = []
    deep.append(deep)
    wide: object = "x"
    for _ in range(30):  # 2^30 entries, were they written out
        wide = [wide, wide]
    for found in (deep, wide, "x" * 10**6, {"k" * 500: 1}, 10**400, "a\nb", "\ud800", b"\xff"):
        text = str(DEEP.fail("a number", found))
        assert len(text) < 160
        assert "\n" not in text
        text.encode()


def test_mappings_are_checked() -> None:
    assert TOP.mapping({"a": 1}, ["a", "b"]) == {"a": 1}
    for bad, words in (([], "a mapping"), ({1: 2}, "a text as the key"), ({"aa": 1}, "did you")):
        with pytest.raises(SpaceError, match=words):
            TOP.mapping(bad, ["aaa", "b"])


def test_helpers() -> None:
    assert nearest("paramters", ["parameters", "models"]) == "parameters"
    assert nearest("q", ["parameters"]) is None
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(KeyError()) == "KeyError"


def test_memory_that_does_not_suffice() -> None:
    for problem in (
        MemoryError(),
        torch.OutOfMemoryError("no words"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
    ):
        assert out_of_memory(problem)
    for other in (RuntimeError("sizes do not match"), ValueError("out of memory"), KeyError()):
        assert not out_of_memory(other)


def test_plugins_are_found_by_name() -> None:
    package = merge_methods.__name__
    assert plugins.load(package, "ties", "merge method", TOP).METHOD.base == "required"
    for name, words in (
        ("tise", "unknown merge method 'tise' at .*did you mean 'ties'"),
        ("_task_vectors", "unknown merge method"),
        ("../evil", "unknown merge method"),
        (None, "expected the name of a merge method, got nothing"),
        (["ties"], "expected the name of a merge method"),
    ):
        with pytest.raises(EvomergeError, match=words):
            plugins.load(package, name, "merge method", TOP)


def test_a_message_is_one_line_whatever_it_quotes() -> None:
    problem = EvomergeError("a\nb\x1b[31mc\0d\ud800e é 漢 '\\'")
    assert str(problem) == "a\\nb\\x1b[31mc\\x00d\\ud800e é 漢 '\\'"
