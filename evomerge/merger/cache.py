"""Statistics of models on disk, by content: arrays in safetensors files, whole and checked.

The folder is `$EVOMERGE_CACHE`, or `evomerge` in `$XDG_CACHE_HOME` (`~/.cache`). It can be removed
at any time. Two processes that compute the same write the same file, each whole.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from safetensors import SafetensorError
from safetensors.numpy import load, save

from evomerge.files import write_bytes

Arrays = Mapping[str, npt.NDArray[Any]]
_VERSION = 1  # of what the arrays mean


def default_folder() -> Path:
    """Return where statistics are kept unless a caller says otherwise."""
    own = os.environ.get("EVOMERGE_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "evomerge"


class Cache:
    """Arrays by kind and content in a folder; with None for a folder, nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def path(self, kind: str, content: str) -> Path | None:
        """Return the file that holds, or would hold, the arrays of a kind for some content."""
        key = xxhash.xxh3_128_hexdigest(f"{_VERSION}\n{kind}\n{content}".encode())
        name = kind.split(" ", 1)[0]
        return None if self._folder is None else self._folder / f"{name}-{key}.safetensors"

    def load(self, kind: str, content: str) -> Arrays | None:
        """Return the arrays; None where there are none, or the file is damaged."""
        path = self.path(kind, content)
        try:
            data = b"" if path is None else path.read_bytes()
        except OSError:
            return None
        stored, digest = data[:-16], data[-16:]
        if not stored or xxhash.xxh3_128_digest(stored) != digest:
            return None
        try:
            found: Arrays = load(stored)
        except SafetensorError:
            return None
        return found

    def save(self, kind: str, content: str, arrays: Arrays) -> None:
        """Keep arrays; a folder that cannot be written to is left alone."""
        path = self.path(kind, content)
        if path is None:
            return
        data = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, data + xxhash.xxh3_128_digest(data))
        except OSError:
            return
