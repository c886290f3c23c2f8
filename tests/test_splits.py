"""What asks the same, and splits that are filled whenever they can be."""

import itertools
from dataclasses import dataclass

import numpy as np

from evomerge.proxy_tasks._data import row_key
from evomerge.splits import assign, content, keys


@dataclass(frozen=True)
class Asked:
    prompt: str = ""
    options: tuple[str, ...] = ()
    text: str = ""


def test_content_is_told_apart_by_what_is_asked_not_by_case_or_spaces() -> None:
    assert content(Asked("What  IS\nit? ")) == content(Asked("what is it?"))
    assert content(Asked("a", ("x", "y"))) == content(Asked("a", ("y", "x")))
    different = [
        Asked("a"),
        Asked("a b"),
        Asked("a", ("x",)),
        Asked(text="a"),
        Asked("a", text="a"),
    ]
    assert len(set(map(content, different))) == 5


def test_a_prompt_alone_is_a_key_where_it_is_one_item_s() -> None:
    asked = {content(one): one for one in (Asked("a", ("x",)), Asked("b"), Asked("b", ("y",)))}
    found = keys(asked, [row_key({"n": number}) for number in range(3)])
    assert [len(one) for one in found] == [3, 2, 2]
    assert found[0][2] == "a"
    assert len({one[1] for one in found}) == 3


def test_a_row_is_a_key_in_whatever_words_it_is_asked() -> None:
    row = {"q": "What?", "a": [1, "x"]}
    ((_, first, _),) = keys({"one": Asked("Question: What?")}, [row_key(row)])
    ((_, again, _),) = keys({"two": Asked("What? Answer:")}, [row_key(dict(reversed(row.items())))])
    ((_, other, _),) = keys({"two": Asked("What? Answer:")}, [row_key(row | {"a": 2})])
    assert first == again != other


def possible(bound: list[set[str]], sizes: dict[str, int]) -> bool:
    """By trying every way to send items to splits or nowhere."""
    ways = [[*(here or sizes), ""] if len(here) < 2 else [""] for here in bound]
    return any(
        all(way.count(split) >= size for split, size in sizes.items())
        for way in itertools.product(*ways)
    )


def test_splits_are_filled_wherever_that_is_possible() -> None:
    draw = np.random.default_rng(0)
    full = 0
    for _ in range(300):
        sizes = {"a": int(draw.integers(1, 4)), "b": int(draw.integers(1, 4))}
        items = [(f"{item}", f"p{item}") for item in range(5)]
        taken = {
            key: str(draw.choice(["a", "b"])) for one in items for key in one if draw.random() < 0.4
        }
        bound = [{taken[key] for key in one if key in taken} for one in items]
        order = draw.permutation(5).tolist()
        after = dict(taken)
        found = assign(items, order, sizes, after)
        assert (found is not None) == possible(bound, sizes)
        if found is None:
            assert after == taken
            continue
        full += 1
        assert {split: len(chosen) for split, chosen in found.items()} == sizes
        assert len({item for chosen in found.values() for item in chosen}) == sum(sizes.values())
        for split, chosen in found.items():
            assert all(bound[item] <= {split} for item in chosen)
            assert all(after[key] == split for item in chosen for key in items[item])
    assert 100 < full < 250


def test_free_items_are_taken_in_their_order() -> None:
    items = [(f"{item}",) for item in range(6)]
    assert assign(items, [4, 2, 0, 5, 1, 3], {"a": 2, "b": 3}, {}) == {"a": [4, 2], "b": [0, 5, 1]}
