"""Random damage to plain data, for tests that nothing a user writes ends in a traceback."""

import copy
import datetime
import random
from collections.abc import Callable, Mapping
from typing import Any

from evomerge.errors import EvomergeError

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**40, 10**400, -0.0, 0.5, 1e308, -1e308, 5e-324,
    float("nan"), float("inf"), "", " ", "0.5", "1e-5", "*", "ties", "linear", "a\0b", "x" * 3000,
    "~nobody", "org/model@", "+", "@", "\ud800", [], {}, [[]], [None], [0, 1], [0.5, 0.1, 0.9],
    [True, False], ["0.5"], {"value": 0.5}, [{"value": 0.5}], {"filter": None, "value": 1},
    [{"filter": "mlp", "value": [0, 1]}, {"value": 0.5}], {1: 2}, {None: None},
    {"range": [0, 1]}, {"range": [1, 0]}, {"range": [0, float("inf")]}, {"range": [0, 10**400]},
    {"range": [-1e308, 1e308]}, {"range": [0, 1], "step": 1e-300}, {"range": "01"},
    {"range": [1, 2], "log": True}, {"range": [0, 1], "log": 1}, {"range": [0, 1], "init": "x"},
    {"curve": 4}, {"curve": 10**9, "range": [0, 1]}, {"curve": "layers", "range": [0, 1]},
    {"curve": 2, "over": ["attention", "other"], "range": [0, 1]}, {"curve": True, "over": 3},
    {"choice": [1, 2]}, {"choice": [True, False]}, {"choice": [[], {}]}, {"choice": [1, True]},
    {"product": [1, 2]}, {"product": ["depth", {"range": [0, 1]}]}, {"product": [[1], [2]]},
    {"product": [{"product": [1, 2]}, 3]}, "depth", "own", "inputs[0]", "inputs[-99999999]",
    datetime.date(2024, 1, 2), b"bytes", (1, 2), {1, 2}, frozenset(),
)  # fmt: skip


def refusal(action: Callable[[], object]) -> str | None:
    """Do something; return what it says to the user if it refuses."""
    try:
        action()
    except EvomergeError as problem:
        return str(problem)
    return None


def mutated(data: Mapping[str, Any], draw: random.Random) -> Any:
    """Return a copy with one to three places replaced, removed, doubled, renamed or nested."""
    found: Any = copy.deepcopy(dict(data))
    containers = _containers(found)  # before any damage, which may make them contain themselves
    for _ in range(draw.randint(1, 3)):
        _damage(draw.choice(containers), draw)
    return found if draw.random() > 0.02 else copy.deepcopy(draw.choice(ODD))


def _containers(data: Any) -> list[Any]:
    if isinstance(data, dict):
        return [data] + [one for value in data.values() for one in _containers(value)]
    if isinstance(data, list):
        return [data] + [one for value in data for one in _containers(value)]
    return []


def _damage(container: Any, draw: random.Random) -> None:
    keys = list(container) if isinstance(container, dict) else list(range(len(container)))
    odd = copy.deepcopy(draw.choice(ODD))
    if not keys:
        if isinstance(container, dict):
            container["key"] = odd
        else:
            container.append(odd)
        return
    key = draw.choice(keys)
    action = draw.choice(["replace", "replace", "replace", "remove", "rename", "nest", "itself"])
    if action == "replace":
        container[key] = odd
    elif action == "remove":
        del container[key]
    elif action == "nest":
        container[key] = draw.choice([[container[key]], {"value": container[key]}])
    elif action == "itself":
        container[key] = draw.choice([container, [container], {"product": [container, 1]}])
    elif isinstance(container, dict):
        other = draw.choice([f"{key}s", str(key)[1:], "model", 7, None, ("a",)])
        container[other] = container.pop(key)
    else:
        container.append(container[key])
