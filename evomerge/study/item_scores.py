"""Item scores as text for the database, and back."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

from evomerge.fitness import TaskScores
from evomerge.proxy_tasks import ItemScores


def pack(scores: TaskScores) -> dict[str, dict[str, str]]:
    """Return item scores as text, float32 in base64, for the item-by-trial table."""
    return {
        task: {"score": _encode(items.score), "correct": _encode(items.correct)}
        for task, items in scores.items()
    }


def unpack(packed: Mapping[str, Mapping[str, str]]) -> dict[str, ItemScores]:
    """Undo `pack`."""
    return {
        task: ItemScores(_decode(columns["score"]), _decode(columns["correct"]))
        for task, columns in packed.items()
    }


def _encode(vector: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")


def _decode(text: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float64)
