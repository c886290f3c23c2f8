"""Steps of generation in fixed shapes, which a GPU records once as CUDA graphs and replays."""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from evomerge import key_values
from evomerge.budgets import free, holders, within_memory
from evomerge.errors import out_of_memory

_FRAMES = 32  # that are kept
_PLACES = 64  # of a frame at least
# Of the logits' spread, how much the rounding of sound steps may differ by.
_ROUNDING = {torch.float64: 3e-4, torch.float32: 3e-4, torch.float16: 0.015, torch.bfloat16: 0.03}

Step = Callable[[torch.Tensor, torch.Tensor, Any], tuple[torch.Tensor, Any]]


def suits(module: torch.nn.Module) -> bool:
    """Return whether a model lies on one CUDA device and is the library's own.

    Other code may keep tensors of its own, which a recording would read when they are gone.
    """
    devices = {one.device for one in module.parameters()}
    own = type(module).__module__.startswith("transformers.")
    return own and len(devices) == 1 and next(iter(devices)).type == "cuda"


class Recorder:
    """Records what functions launch on a CUDA device.

    Its recordings share memory: one is replayed at a time, and what it leaves there is not read.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._side: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, run: Callable[[], object]) -> Callable[[], object]:
        """Return what does again, on the same tensors, what a function does; it is run too."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device):
            self._side.wait_stream(torch.cuda.current_stream())
            try:
                with torch.cuda.stream(self._side):  # left even where the recording fails
                    with _no_waiting():
                        run()  # first, since libraries set themselves up
                    with torch.cuda.graph(
                        graph, self._pool, self._side, capture_error_mode="thread_local"
                    ):  # of this thread, which others need not wait for
                        run()
            finally:  # before what it writes into is given to others
                torch.cuda.current_stream().wait_stream(self._side)
        return graph.replay


@contextlib.contextmanager
def _no_waiting() -> Iterator[None]:
    """Let it be an error to wait for the device: in a recording it would be a worse one."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch calls this a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@dataclass(eq=False)
class _Memory:
    """What the frames of a model share: its user's keys and values, of so many tokens; logits."""

    tokens: int
    rooms: list[torch.Tensor]
    logits: torch.Tensor  # [most rows, V]
    record: Callable[[Callable[[], object]], Callable[[], object]]
    user: Callable[[], object] = lambda: None


class _Frame:
    """A step of fixed shapes: B rows, and R places for keys and values.

    Rows and places that are not needed are padding; such rows see the first place.
    """

    def __init__(
        self, size: tuple[int, int], memory: _Memory, cache: Any, run: Callable[..., torch.Tensor]
    ) -> None:
        """Record `run`, which returns the logits [B, V] of its inputs, for caches like this one."""
        (rows, places), self.size, self.memory = size, size, memory
        self._rooms = [
            room[: rows * places * one.shape[1] * one.shape[3]].view(
                rows, one.shape[1], places, one.shape[3]
            )
            for room, one in zip(memory.rooms, key_values.tensors(cache), strict=True)
        ]
        self._logits = memory.logits[:rows]
        self._ids = torch.zeros((rows, 1), dtype=torch.int64, device=memory.logits.device)
        self._positions, self._place = self._ids.clone(), self._ids[0].clone()
        self._mask = self._rooms[0].new_empty(rows, 1, 1, places)
        self.dtype = self._mask.dtype
        self._least = torch.finfo(self.dtype).min
        self._clear()
        given = {
            "input_ids": self._ids,
            "attention_mask": self._mask,
            "position_ids": self._positions,
            "past_key_values": key_values.fixed(cache, self._rooms, self._place),
        }
        # The place is the first, where no step will be: what a recording freezes will be found.
        self._replay = memory.record(lambda: self._logits.copy_(run(**given)))

    def _clear(self) -> None:
        for tensor in (*self._rooms, self._positions):  # a masked NaN would still spread
            tensor.zero_()
        self._mask.fill_(self._least)
        self._mask[..., 0] = 0

    def load(self, cache: Any, seen: int) -> Held:
        """Take the first tokens of a cache, which may have more, and stays."""
        self._clear()
        for room, tensor in zip(self._rooms, key_values.tensors(cache), strict=True):
            room[: len(tensor), :, :seen] = tensor[:, :, :seen]
        held = Held(self, key_values.filled(cache, []), seen)
        self.memory.user = weakref.ref(held)
        return held

    def step(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return logits [n, V] after tokens int64 [n, 1]; `mask` is LanguageModel's."""
        rows, width = mask.shape
        self._ids[:rows] = ids
        self._positions[:rows] = (mask.sum(dim=1, keepdim=True) - 1).clamp(min=0)
        hidden = self._mask.new_zeros(mask.shape).masked_fill_(mask == 0, self._least)
        self._mask[:rows, 0, 0, :width] = hidden
        self._place.fill_(width - 1)
        return self._run(rows)

    def _run(self, rows: int) -> torch.Tensor:
        self._replay()
        return self._logits[:rows].clone()

    def turned(self, rows: int) -> torch.Tensor:
        """Do a step again with its places in reverse, which is the same to sound attention."""
        self._turn()
        found = self._run(rows)
        self._turn()
        return found

    def _turn(self) -> None:
        for tensor, axis in (*((room, 2) for room in self._rooms), (self._mask, 3)):
            tensor.copy_(tensor.flip(axis))
        self._place.copy_(self._mask.shape[3] - 1 - self._place)

    def rooms(self, rows: torch.Tensor, seen: int) -> list[torch.Tensor]:
        """Return keys and values of rows int64 [n], [n, heads, seen, size] each in turn."""
        return [room[:, :, :seen].index_select(0, rows) for room in self._rooms]


@dataclass(eq=False)
class Held:
    """A cache whose keys and values lie in a frame."""

    frame: _Frame
    like: Any  # the ordinary cache, empty
    seen: int

    def step(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the logits of the next step."""
        self.seen = mask.shape[1]
        return self.frame.step(ids, mask)

    def leave(self, rows: torch.Tensor) -> Any:
        """Return an ordinary cache of rows int64 [n], in the place of this one."""
        found = key_values.filled(self.like, self.frame.rooms(rows, self.seen))
        self.frame.memory.user = lambda: None
        del self.frame
        return found


class Graphs:
    """The frames of a model: few sizes serve all batches, of all that its parameters become.

    A new frame is checked against the ordinary step. Where that differs, or recording fails, the
    model is never run in frames again, and neither after three times without memory for one.
    """

    def __init__(self, module: torch.nn.Module, device: torch.device, **given: Any) -> None:
        """Take a model and what its steps are given beside tokens, mask, positions and cache."""
        self._module, self._device, self._given = module, device, given
        self._frames: dict[tuple[int, int], _Frame] = {}
        self._memory: _Memory | None = None
        self._chances = 3  # to find no memory
        self._addresses: list[int] = []
        holders.add(self)

    def step(
        self, ids: torch.Tensor, mask: torch.Tensor, cache: Any, plain: Step
    ) -> tuple[torch.Tensor, Any]:
        """See LanguageModel; `plain` is the ordinary step."""
        rows, width = mask.shape
        size = _rounded(rows), max(_PLACES, _rounded(width + 1))  # never up to the last place
        if isinstance(cache, Held):
            if ids.shape[1] == 1 and cache.frame.size == size:
                return cache.step(ids, mask), cache
            cache = cache.leave(torch.arange(rows, device=ids.device))
        if ids.shape[1] > 1 or not key_values.tensors(cache) or not self._free(size):
            return plain(ids, mask, cache)
        if size not in self._frames:
            return self._first(size, ids, mask, *plain(ids, mask, cache))
        self._frames[size] = self._frames.pop(size)  # the last used is the last
        return self.step(ids, mask, self._frames[size].load(cache, width - 1), plain)

    def _free(self, size: tuple[int, int]) -> bool:
        """Return whether a batch may begin in a frame; forgets all where parameters were moved."""
        busy = self._memory is not None and self._memory.user() is not None
        if not self._chances or busy or size[0] * size[1] > self._most():
            return False
        tensors = (*self._module.parameters(), *self._module.buffers())
        addresses = [one.data_ptr() for one in tensors]
        if addresses != self._addresses:
            self.forget()
            self._addresses = addresses
        return True

    def _first(
        self,
        size: tuple[int, int],
        ids: torch.Tensor,
        mask: torch.Tensor,
        expected: torch.Tensor,
        cache: Any,
    ) -> tuple[torch.Tensor, Any]:
        """Make a frame and do in it again what the ordinary step did."""
        if not expected.isfinite().all():  # of a candidate without sense; it proves nothing
            return expected, cache
        try:
            frame = self._frame(size, expected, cache)
            held = frame.load(cache, mask.shape[1] - 1)
            found = held.step(ids, mask)
            each = (found, frame.turned(len(ids)))
            sound = all(same_logits(one, expected, frame.dtype) for one in each)
        except Exception as problem:  # the library, its models and CUDA raise what they raise
            lacking = _lacks_memory(problem)
            self._chances = self._chances - 1 if lacking else 0
            free(self._device)  # what other models keep, too
            return expected, cache
        if not sound:
            self._chances = 0
            self.forget()
            return expected, cache
        self._frames[size] = frame
        if len(self._frames) > _FRAMES:
            del self._frames[next(iter(self._frames))]
        return found, held

    def _frame(self, size: tuple[int, int], logits: torch.Tensor, cache: Any) -> _Frame:
        (rows, places), memory = size, self._memory
        tokens = rows * places
        if memory is None or tokens > memory.tokens or rows > len(memory.logits):
            if memory is not None:
                tokens, rows = max(tokens, memory.tokens), max(rows, len(memory.logits))
            memory = None
            self.forget()  # what was recorded writes where it did
            self._memory = memory = _Memory(
                tokens,
                [
                    one.new_empty(tokens * one.shape[1] * one.shape[3])
                    for one in key_values.tensors(cache)
                ],
                logits.new_empty(rows, logits.shape[1]),
                Recorder(self._device),
            )
        return _Frame(size, memory, cache, self._logits)

    def _logits(self, **inputs: Any) -> torch.Tensor:
        found: torch.Tensor = self._module(**inputs, **self._given, use_cache=True).logits
        return found[:, -1]

    def _most(self) -> int:
        """Return how many tokens frames may hold: those of generation, rounded up."""
        return within_memory(self._device, lambda budget: 2 * budget.held)

    def forget(self) -> None:
        """Leave all memory, but that of a batch at work."""
        self._frames.clear()
        self._memory = None


def _rounded(number: int) -> int:
    """Return the least of 1, 2, 3, 4, 6, 8, 12, … that is no less: few sizes, little waste."""
    power: int = 1 << (number - 1).bit_length()
    return power * 3 // 4 if 4 * number <= 3 * power and power > 2 else power


def same_logits(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    """Return whether logits [B, V] differ by no more than rounding in `dtype` may make them."""
    expected = expected.float()
    spread = expected.amax(dim=1, keepdim=True) - expected.amin(dim=1, keepdim=True)
    return bool(((found - expected).abs() <= spread * _ROUNDING.get(dtype, 0.0)).all())


def _lacks_memory(problem: BaseException | None) -> bool:
    """Return whether memory did not suffice, be it for what the end of a recording then raised."""
    while problem is not None and not out_of_memory(problem):
        problem = problem.__context__
    return problem is not None
