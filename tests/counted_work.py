"""Counts the tensors that are read from files, and the sorts of their entries."""

from collections.abc import Callable
from typing import Any

import pytest
import safetensors
import torch

from evomerge import tensor_files
from evomerge.merger import order_statistics


class Counted:
    """The numbers of reads and sorts since the last question."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads = self.sorts = 0
        for place in (safetensors, tensor_files):
            monkeypatch.setattr(place, "safe_open", self.opening(safetensors.safe_open))
        for place, name in (
            *((torch, name) for name in ("argsort", "sort", "topk", "kthvalue")),
            (order_statistics, "by_sorting"),
            (order_statistics, "by_counting"),
        ):
            monkeypatch.setattr(place, name, self.sorting(getattr(place, name)))

    def opening(self, function: Callable[..., Any]) -> Callable[..., Any]:
        counted = self

        class Opened:
            def __init__(self, *arguments: Any, **options: Any) -> None:
                self.file = function(*arguments, **options)

            def __enter__(self) -> Any:
                return self.file.__enter__()

            def __exit__(self, *error: Any) -> Any:
                return self.file.__exit__(*error)

            def keys(self) -> Any:
                return self.file.keys()

            def get_tensor(self, name: str) -> Any:
                counted.reads += 1
                return self.file.get_tensor(name)

        return Opened

    def sorting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.sorts += 1
            return function(*arguments, **options)

        return call

    def since(self) -> tuple[int, int]:
        """Return the reads and sorts since the last call."""
        found = self.reads, self.sorts
        self.reads = self.sorts = 0
        return found
