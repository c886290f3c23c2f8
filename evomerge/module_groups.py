"""Which tensors are attention, mlp, norms, embeddings or head, and how a recipe filters them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from evomerge.errors import Place

GROUPS = ("attention", "mlp", "norms", "embeddings", "head")
OTHER = "other"  # every tensor whose group is not named
_PATTERNS = {
    "norms": re.compile(r"norm|(^|[._])ln(_|[._]|$|\d)", re.IGNORECASE),
    "attention": re.compile(r"attn|attention", re.IGNORECASE),
    "mlp": re.compile(r"mlp|ffn|feed_?forward|expert|moe|fc\d|dense|intermediate", re.IGNORECASE),
}
_EMBEDDING = re.compile(r"embed|wte|wpe", re.IGNORECASE)
_HEAD = re.compile(r"lm_head|(^|\.)head|embed_out|score|classifier", re.IGNORECASE)


@dataclass(frozen=True)
class Architecture:
    """The tensors to merge, with layers and groups read from their names alone."""

    tensors: tuple[str, ...]

    @property
    def layers(self) -> int:
        """Number of layers of the longest stack; 1 where there are none."""
        return max(stacks(self.tensors).values(), default=1)

    def groups(self, over: Sequence[str], place: Place) -> dict[str, list[str]]:
        """Return the tensors of each named group, groups without tensors left out.

        Raises the place's error for an unknown group, or where `over` leaves tensors out.
        """
        found: dict[str, list[str]] = {}
        for index, group in enumerate(over):
            if group not in (*GROUPS, OTHER):
                raise place[index].unknown(group, "module group", (*GROUPS, OTHER))
            if group in over[:index]:
                raise place[index].fail("each module group once", group)
        for name in self.tensors:
            group = group_of(name)
            if group not in over:
                group = OTHER
            if group not in over:
                missing = group_of(name)
                raise place.fail(
                    "groups that cover every tensor",
                    list(over),
                    f"{name} belongs to {missing}: add it, or 'other'",
                )
            found.setdefault(group, []).append(name)
        return {group: found[group] for group in over if group in found}


def tensor_names_by_layer(names: Iterable[str]) -> dict[str, tuple[str, int] | None]:
    """Map each tensor's name to (stack, layer index), or None outside the layers.

    A stack is what precedes the first whole-number component of a name: `model.layers` for
    `model.layers.3.mlp.up_proj.weight`.
    """
    found: dict[str, tuple[str, int] | None] = {}
    for name in names:
        match = re.match(r"(.*?)\.(\d+)\.", name)
        found[name] = (match[1], int(match[2])) if match else None
    return found


def stacks(names: Iterable[str]) -> dict[str, int]:
    """Return the number of layers of each stack."""
    found: dict[str, int] = {}
    for where in tensor_names_by_layer(names).values():
        if where:
            found[where[0]] = max(found.get(where[0], 0), where[1] + 1)
    return found


def group_of(name: str) -> str:
    """Return the module group of a tensor by its name, `other` where none fits."""
    in_layer = tensor_names_by_layer([name])[name] is not None
    if not in_layer:
        if _HEAD.search(name):
            return "head"
        if _EMBEDDING.search(name):
            return "embeddings"
    tail = re.sub(r"^.*?\.\d+\.", "", name) if in_layer else name
    for component in reversed(tail.split(".")):
        if _PATTERNS["norms"].search(component):
            return "norms"
    for group in ("attention", "mlp"):
        if _PATTERNS[group].search(tail):
            return group
    return OTHER


@dataclass(frozen=True)
class Filter:
    """One entry of a filter list: `text` (None: all that is left) selects tensors of `group`.

    `end` says which end of the group's curve a tensor outside the layers takes; None for tensors in
    layers, which follow the whole curve.
    """

    text: str | None
    group: str
    end: int | None = None


def filters(groups: Mapping[str, Sequence[str]]) -> list[Filter]:
    """Return filters, to be tried in order, that give every tensor its group.

    They are substrings of names, as short as whole components allow; where that is enough, one
    group takes what the others leave. Embeddings outside the layers take the start of a curve, all
    else its end.
    """
    group_by_name = {name: group for group, names in groups.items() for name in names}
    if len(groups) == 1 and not _outside(group_by_name):
        return [Filter(None, next(iter(groups)))]
    wanted = _wanted(group_by_name)
    heads = _heads(group_by_name)
    rest = max(heads.values(), key=list(heads.values()).count, default=None)
    for named in (
        {text: group for text, group in heads.items() if group != rest},
        heads,  # post_attention_layernorm needs a filter, where attention is one
    ):
        found = _sorted(
            [Filter(name, *want) for name, want in wanted.items() if want[1] is not None]
            + [Filter(text, group) for text, group in named.items()]
        ) + ([] if rest is None else [Filter(None, rest)])
        if all(_chosen(found, name) == want for name, want in wanted.items()):
            return found
    return _sorted([Filter(name, *want) for name, want in wanted.items()])


def _sorted(found: Sequence[Filter]) -> list[Filter]:
    """Put long filters first, of which shorter ones may be part."""
    return sorted(found, key=lambda item: (-len(item.text or ""), item.text or ""))


def _outside(group_by_name: Mapping[str, str]) -> list[str]:
    layers = tensor_names_by_layer(group_by_name)
    return [name for name, where in layers.items() if where is None]


def _wanted(group_by_name: Mapping[str, str]) -> dict[str, tuple[str, int | None]]:
    outside = set(_outside(group_by_name))
    return {
        name: (group, _end(name) if name in outside else None)
        for name, group in group_by_name.items()
    }


def _end(name: str) -> int:
    return 0 if group_of(name) == "embeddings" else -1


def _chosen(found: Sequence[Filter], name: str) -> tuple[str, int | None] | None:
    for item in found:
        if item.text is None or item.text in name:
            return item.group, item.end
    return None


def _heads(group_by_name: Mapping[str, str]) -> dict[str, str]:
    """Return the shortest beginnings of names, after the layer's number, that tell groups apart."""
    outside = set(_outside(group_by_name))
    tails = {
        re.sub(r"^.*?\.\d+\.", "", name): group
        for name, group in group_by_name.items()
        if name not in outside
    }
    heads: dict[str, str] = {}
    for tail, group in tails.items():
        parts = tail.split(".")
        for length in range(1, len(parts) + 1):
            head = ".".join(parts[:length])
            if head in heads:
                break
            if len({g for t, g in tails.items() if f"{t}.".startswith(f"{head}.")}) == 1:
                heads[head] = group
                break
    return heads
