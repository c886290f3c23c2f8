"""Whether a model's confidence in its answers is the share of them that are right."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]

_BINS = 15
_LEAST = 1e-12  # probability, of which a logarithm is taken


@dataclass(frozen=True)
class Calibration:
    """Three figures of a model's probabilities on some items, each 0 at best.

    Brier score and likelihood are what ensembles, whose probabilities are the mean of their
    members', are compared by (Lakshminarayanan et al. 2017, arXiv:1612.01474).
    """

    error: float  # expected calibration error
    brier: float
    likelihood: float  # mean negative log-likelihood of the right answer, nats

    def to_mapping(self) -> dict[str, float]:
        """Return it as a report has it."""
        return asdict(self)


def calibration(gold: Vector, confidence: Vector, correct: Vector) -> Calibration:
    """Measure calibration on n items, each vector float64 [n].

    `gold` is the probability of the right answer, `confidence` that of the answer given, `correct`
    whether that one is right. The Brier score is that of the answer given, mean of
    (confidence − correct)² (Brier 1950); the likelihood −mean log gold.
    """
    return Calibration(
        expected_error(confidence, correct),
        float(np.mean((confidence - correct) ** 2)),
        float(-np.mean(np.log(np.maximum(gold, _LEAST)))),
    )


def expected_error(confidence: Vector, correct: Vector) -> float:
    """Return the expected calibration error, Σ_b n_b/n · |accuracy_b − confidence_b|.

    Guo et al. 2017 (arXiv:1706.04599), equation 3, with 15 bins of as many items each, in the order
    of their confidence, so that none is empty. Items of the same confidence may lie on both sides
    of a border: each then counts with the mean correctness of all that are alike.
    """
    levels, alike = np.unique(confidence, return_inverse=True)
    counts = np.bincount(alike, minlength=len(levels))
    mean = np.bincount(alike, weights=correct, minlength=len(levels)) / counts
    order = np.argsort(confidence, kind="stable")
    gaps = (mean[alike] - confidence)[order]
    parts = np.array_split(gaps, min(_BINS, len(gaps)))
    return float(sum(abs(part.sum()) for part in parts) / len(gaps))
