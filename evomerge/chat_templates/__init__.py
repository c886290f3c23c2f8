"""Chat templates that a recipe may name: each a Jinja file of this folder."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent
NAMES = tuple(sorted(file.stem for file in _FOLDER.glob("*.jinja")))


def load(name: str) -> str:
    """Return a template of this folder."""
    return (_FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
