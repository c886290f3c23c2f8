"""The keys and values of a model's attention, to go on from: copied once, with room for more."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

# Attention that sees all before it, or a window of it; states of other kinds go on token by token.
_WHOLE, _WINDOW = "DynamicLayer", "DynamicSlidingWindowLayer"


def is_known(state: object) -> bool:
    """Return whether a state is a cache of the library at large, and not of one of its models.

    Those may hold what choosing rows forgets.
    """
    own: str = Cache.__module__
    return type(state).__module__ == own


def goes_on(state: Any) -> bool:
    """Return whether more than one token at once may follow a state, also after padding."""
    return type(state) is DynamicCache and _kinds(state) <= {_WHOLE}


def has_windows(state: Any) -> bool:
    """Return whether a state forgets what has left a window of attention, and nothing else.

    Masks hide that too, so that its model can be given an `empty` state, which keeps all.
    """
    return type(state) is DynamicCache and _WINDOW in _kinds(state) <= {_WHOLE, _WINDOW}


def _kinds(state: DynamicCache) -> set[str]:
    return {type(layer).__name__ for layer in state.layers}


def empty() -> DynamicCache:
    """Return a state that keeps the keys and values of all tokens, and has none yet."""
    return DynamicCache()


def followed(state: Any, rows: torch.Tensor) -> Any:
    """Return what follows rows int64 [B] of a state that stays as it is."""
    found = copy.copy(state)
    found.layers = [copy.copy(layer) for layer in state.layers]
    for layer in found.layers:  # adding to a layer makes new tensors
        if layer.keys is not None:
            layer.keys, layer.values = _chosen(layer.keys, rows), _chosen(layer.values, rows)
    return found


def _chosen(tensor: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    if len(tensor) == 1:
        return tensor.expand(len(rows), *tensor.shape[1:])
    return tensor.index_select(0, rows.to(tensor.device))


class _Roomy(DynamicLayer):  # type: ignore[misc]
    """Keys and values [B, heads, T, size] with room behind them: a new token moves none of them."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, seen: int) -> None:
        """Take keys and values of which all but the first `seen` places are room."""
        super().__init__()
        self.lazy_initialization(keys, values)
        self._rooms = (keys, values)
        self.keys, self.values = (room[:, :, :seen] for room in self._rooms)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add [B, heads, t, size] and return all."""
        begin = self.keys.shape[-2]
        end = begin + key_states.shape[-2]
        if end > self._rooms[0].shape[-2]:
            self._rooms = _more(self.keys, end), _more(self.values, end)
        for room, new in zip(self._rooms, (key_states, value_states), strict=True):
            room[:, :, begin:end] = new
        self.keys, self.values = (room[:, :, :end] for room in self._rooms)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keep these rows."""
        super().reorder_cache(beam_idx)
        self._rooms = self.keys, self.values


def _more(tensor: torch.Tensor, needed: int) -> torch.Tensor:
    room = tensor.new_empty(*tensor.shape[:2], _roomy(needed), tensor.shape[3])
    room[:, :, : tensor.shape[2]] = tensor
    return room


def _roomy(needed: int) -> int:
    return needed + max(64, needed // 4)


def with_room(cache: Any) -> Any:
    """Give a cache room for more where its layers see all, in place; other layers stay."""
    for place, layer in enumerate(getattr(cache, "layers", ())):
        if type(layer) is DynamicLayer and layer.get_seq_length():
            cache.layers[place] = _Roomy(layer.keys, layer.values, layer.keys.shape[2])
    return cache


class _Fixed(DynamicLayer):  # type: ignore[misc]
    """Keys and values [B, heads, R, size], all of them in use; a mask says which are there."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, place: torch.Tensor) -> None:
        """Take tensors to write into, and where, int64 [1]."""
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values, self._place = keys, values, place

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write [B, heads, 1, size] into its place and return all."""
        self.keys.index_copy_(2, self._place, key_states)
        self.values.index_copy_(2, self._place, value_states)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Return what is true of no step, since a number would not grow with them."""
        return 0


def tensors(cache: Any) -> list[torch.Tensor]:
    """Return keys and values, [B, heads, T, size] each in turn, of a cache with room, else none."""
    layers = cache.layers if type(cache) is DynamicCache else []
    if not all(type(layer) is _Roomy for layer in layers):
        return []
    return [one for layer in layers for one in (layer.keys, layer.values)]


def filled(cache: Any, tensors: Sequence[torch.Tensor]) -> Any:
    """Return a cache of the same kind of keys and values, [B, heads, T, size] each in turn."""
    found = copy.copy(cache)
    each = zip(tensors[::2], tensors[1::2], strict=True)
    found.layers = [_Roomy(keys, values, keys.shape[2]) for keys, values in each]
    return found


def fixed(cache: Any, rooms: Sequence[torch.Tensor], place: torch.Tensor) -> Any:
    """Return a cache that writes a token's keys and values into rooms, in turn, at a place."""
    found = copy.copy(cache)
    each = zip(rooms[::2], rooms[1::2], strict=True)
    found.layers = [_Fixed(keys, values, place) for keys, values in each]
    return found


def joined(parts: Sequence[tuple[Any, torch.Tensor]], lengths: Sequence[int]) -> Any:
    """Return chosen rows, int64 [n], of several states, all of whose layers see all, side by side.

    Of each row the first tokens count, as many as `lengths` says; zeros pad them on the left.
    """
    found = copy.copy(parts[0][0])
    places = [(state.layers, row) for state, rows in parts for row in rows.tolist()]
    each = list(zip(places, lengths, strict=True))
    found.layers = [
        _Roomy(
            _beside([layers[depth].keys[row, :, :length] for (layers, row), length in each]),
            _beside([layers[depth].values[row, :, :length] for (layers, row), length in each]),
            seen=max(lengths),
        )
        if layer.keys is not None  # of fewer layers than the configuration counts
        else copy.copy(layer)
        for depth, layer in enumerate(found.layers)
    ]
    return found


def _beside(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    heads, _, size = rows[0].shape
    width = max(row.shape[1] for row in rows)
    room = rows[0].new_zeros(len(rows), heads, _roomy(width), size)
    for place, row in zip(room, rows, strict=True):
        place[:, width - row.shape[1] : width] = row
    return room
