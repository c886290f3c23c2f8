"""Item scores as text for the database, and back."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

from evomerge.fitness import TaskScores
from evomerge.proxy_tasks import ItemScores, Probabilities


def pack(scores: TaskScores) -> dict[str, dict[str, str]]:
    """Return item scores as text, float32 in base64, for the item-by-trial table."""
    packed = {}
    for task, items in scores.items():
        packed[task] = {"score": _encode(items.score), "correct": _encode(items.correct)}
        if items.probabilities is not None:
            packed[task]["gold"] = _encode(items.probabilities.gold)
            packed[task]["confidence"] = _encode(items.probabilities.confidence)
    return packed


def unpack(packed: Mapping[str, Mapping[str, str]]) -> dict[str, ItemScores]:
    """Undo `pack`."""
    return {task: _unpacked(columns) for task, columns in packed.items()}


def _unpacked(columns: Mapping[str, str]) -> ItemScores:
    decoded = {name: _decode(text) for name, text in columns.items()}
    known = "gold" in decoded
    probabilities = Probabilities(decoded["gold"], decoded["confidence"]) if known else None
    return ItemScores(decoded["score"], decoded["correct"], probabilities)


def _encode(vector: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")


def _decode(text: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float64)
