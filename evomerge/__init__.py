"""Evolutionary search for the best recipe to merge fine-tuned language models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evomerge.study.api import StopStudy, Study, TrialResult

__all__ = ["StopStudy", "Study", "TrialResult", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # What is heavy is imported when it is asked for.
    if name in __all__:
        from evomerge.study import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
