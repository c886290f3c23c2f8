"""Few-shot examples: drawn by a seed among examples that are in no split."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import xxhash

from evomerge.errors import Found, Place
from evomerge.proxy_tasks import Prompted, PromptedSettings, Shot, TaskSettings


def with_shots(
    kind: ModuleType,
    settings: TaskSettings,
    items: Sequence[Any],
    pool: Sequence[Any],
    place: Place,
) -> list[Any]:
    """Return the items, each after the few-shot examples that its task's settings ask for.

    Examples are drawn from the pool; those that ask what an item asks are left out, so no item of
    any split is shown with its answer. Raises the place's error where too few are left.
    """
    if not isinstance(settings, PromptedSettings) or settings.shots is None:
        return list(items)
    asked = settings.shots
    taken = {_question(kind.shown(item, settings)) for item in items}
    shown = [kind.shown(one, settings) for one in pool]
    left = [shot for shot in dict.fromkeys(shown) if _question(shot) not in taken]
    if len(left) < asked.count:
        raise (place / "shots").fail(
            f"at least {asked.count} examples to show that are in no split",
            Found(str(len(left))),
            "show fewer, give them `data` of their own, or make the splits smaller",
        )
    found = []
    for item in items:
        assert isinstance(item, Prompted)
        own = xxhash.xxh3_64_intdigest(repr(item).encode()) if asked.per_item else 0
        stream = np.random.default_rng([asked.seed, own])
        drawn = stream.choice(len(left), size=asked.count, replace=False)
        found.append(dataclasses.replace(item, shots=tuple(left[index] for index in drawn)))
    return found


def _question(shot: Shot) -> str:
    """Return what tells one item from another: what it asks or, where that is empty, its text.

    Spaces and case do not count.
    """
    return " ".join((shot.prompt.strip() or shot.answer).split()).casefold()
