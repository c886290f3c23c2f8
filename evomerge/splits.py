"""Items into disjoint splits: what asks the same stands in one of them alone, whatever the task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any, TypeVar

S = TypeVar("S")


def content(example: Any) -> str:
    """Return what a rendered example asks, spaces and case aside, and without its answer.

    That is its prompt, its options in any order, its text or texts, or its row's `key`.
    """
    parts = [getattr(example, name, None) or "" for name in ("prompt", "text", "pair", "key")]
    return _normal([*parts, *sorted(getattr(example, "options", ()))])


def _normal(parts: Iterable[str]) -> str:
    return "\n".join(" ".join(part.split()).casefold() for part in parts)


def keys(examples: Mapping[str, Any], rows: Sequence[str]) -> list[tuple[str, ...]]:
    """Return what tells that another task's item asks the same as each of these, by content.

    It is the content, the key of the row that it was made from and, where no other item of the task
    has it too, the prompt alone: so the same question is known whether it comes with options or
    without or in other words around it, and "Which is true?" is none.
    """
    prompts = [_normal([getattr(example, "prompt", "")]) for example in examples.values()]
    count = Counter(prompts)
    whole = [_normal(["", "", "", row]) for row in rows]
    return [
        (one, row, prompt) if prompt and count[prompt] == 1 else (one, row)
        for one, row, prompt in zip(examples, whole, prompts, strict=True)
    ]


def assign(
    keys: Sequence[tuple[str, ...]],
    order: Sequence[int],
    sizes: Mapping[S, int],
    taken: MutableMapping[str, S],
) -> dict[S, list[int]] | None:
    """Fill splits with items, in the given order as far as may be; None where too few fit.

    An item one of whose keys is `taken` may go to that split alone, one whose keys are of several
    to none. No split takes free items that a later one needs. What is drawn is added to `taken`.
    """
    bound = [{taken[key] for key in keys[item] if key in taken} for item in order]
    may = {split: [here == {split} for here in bound].count(True) for split in sizes}
    needs = {split: max(0, size - may[split]) for split, size in sizes.items()}  # free items
    spare = bound.count(set()) - sum(needs.values())
    if spare < 0:
        return None
    found: dict[S, list[int]] = {}
    used: set[int] = set()
    for split, size in sizes.items():
        chosen: list[int] = []
        spare += needs[split]  # this split's own
        for item, here in zip(order, bound, strict=True):
            if len(chosen) == size:
                break
            if item in used or (here != {split} and (here or not spare)):
                continue
            chosen.append(item)
            spare -= not here
        used.update(chosen)
        found[split] = chosen
    for split, chosen in found.items():
        taken.update({key: split for item in chosen for key in keys[item]})
    return found
