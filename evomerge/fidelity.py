"""How well the items at hand rank candidates: the noise of their differences beside their spread.

All candidates answer the same items, so how hard an item is cancels out of their differences. What
is left is the interaction of candidates and items in an analysis of variance of the table of
scores, one row for each candidate (generalizability theory: Cronbach et al. 1972; Brennan 2001).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]

WARN_BELOW = 0.7  # expected rank correlation
GOOD = 0.9
_FEWEST = 3  # rows that a variance is estimated from
_ROUNDING = 1e-24  # of a variance that is none
_CONFIDENCE = 1.96  # of a normal distribution's middle 95 %


@dataclass(frozen=True)
class Fidelity:
    """What a table of item scores says of the ranking that its means give.

    Everything is in units of fitness: means over tasks of normalized scores.
    """

    items: int  # per task; where tasks have unlike numbers of them, the fewest
    rows: int
    noise: float  # σₑ, standard error of a candidate's fitness, beside others on the same items
    spread: float  # σ_c, standard deviation of the candidates' true fitness, 0 where none is seen

    @property
    def resolved(self) -> float:
        """The least difference of two candidates that is not noise: 1.96 · √2 · σₑ (95 %)."""
        return _CONFIDENCE * math.sqrt(2) * self.noise

    @property
    def correlation(self) -> float:
        """The expected correlation of measured and true fitness: √(σ_c² / (σ_c² + σₑ²)).

        0 where all rows are alike.
        """
        total = self.spread**2 + self.noise**2
        return self.spread / math.sqrt(total) if total else 0.0

    @property
    def needed(self) -> int | None:
        """The items per task for a correlation of 0.9; None where no spread is seen.

        σₑ² falls as 1/n, so n' = n · (σₑ² / σ_c²) · 0.9² / (1 − 0.9²).
        """
        if not self.spread:
            return None
        return math.ceil(self.items * (self.noise / self.spread) ** 2 * GOOD**2 / (1 - GOOD**2))

    def to_mapping(self) -> dict[str, Any]:
        """Return it as a report has it."""
        more = {name: getattr(self, name) for name in ("resolved", "correlation", "needed")}
        return asdict(self) | more


def fidelity(
    tables: Mapping[str, Matrix], reference: Mapping[str, float], worst: float = 0.0
) -> Fidelity | None:
    """Estimate the fidelity of the ranking of r candidates by their scores.

    `tables` has, for each task, their item scores, float64 [r, n]; scores are divided by the task's
    `reference`, as in fitness. Rows that lack an item in any task, NaN, are left out; None where
    fewer than three are whole or a task has a single item. With sₜ² the interaction's mean square
    over r rows and nₜ items, Σ (xᵢⱼ − xᵢ· − x·ⱼ + x··)² / ((r − 1)(nₜ − 1)),

        σₑ² = Σₜ sₜ² / nₜ / T²,    σ_c² = variance of the rows' means − σₑ², at least 0.

    For right and wrong answers, 2 sₜ² is the mean over pairs of candidates of
    p₁₀ + p₀₁ − (p₁₀ − p₀₁)², as in McNemar's test. Where `worst` of the fitness is on each row's
    least task, 1 / T is, in the row's part of sₜ², how much of its fitness is on task t.
    """
    whole = np.all([np.isfinite(table).all(1) for table in tables.values()], axis=0)
    scores = [table[whole] / reference[task] for task, table in tables.items()]
    rows, items = int(whole.sum()), min(table.shape[1] for table in scores)
    if rows < _FEWEST or items < 2:
        return None
    means = np.stack([table.mean(1) for table in scores])
    least = np.arange(len(means))[:, None] == means.argmin(0)
    shares = (1 - worst) / len(means) + worst * least
    noise = 0.0
    for table, share in zip(scores, shares, strict=True):
        rest = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
        freedom = (rows - 1) * (table.shape[1] - 1)
        noise += float(share**2 @ (rest**2).sum(1)) / freedom / table.shape[1]
    spread = float((shares * means).sum(0).var(ddof=1)) - noise
    noise, spread = (one if one > _ROUNDING else 0.0 for one in (noise, spread))
    return Fidelity(items, rows, math.sqrt(noise), math.sqrt(spread))


def better_half(tables: Mapping[str, Matrix], reference: Mapping[str, float]) -> dict[str, Matrix]:
    """Return the rows whose mean normalized score is at least the median's.

    What a search compares lies near the best of its baselines, not near the worst.
    """
    means = np.mean([table.mean(1) / reference[task] for task, table in tables.items()], axis=0)
    kept = means >= np.median(means)
    return {task: table[kept] for task, table in tables.items()}


def before(found: Fidelity) -> str:
    """Say what differences the search items can tell, before the search."""
    if not found.noise:
        return f"all baselines answer {_items(found.items)} a task alike: nothing is known of noise"
    finer = 4 * found.items
    return (
        f"with {_items(found.items)} a task, differences of fitness under "
        f"{_points(found.resolved)} are noise; {finer} would resolve {100 * found.resolved / 2:.1f}"
    )


def after(found: Fidelity) -> str:
    """Say how well the search items have ranked the trials."""
    if not found.noise and not found.spread:
        return f"the {found.rows} trials that answered all search items answered them alike"
    return (
        f"search items rank the {found.rows} trials that answered them all with an expected "
        f"correlation of {found.correlation:.2f}: "
        f"they differ by {_points(found.spread)} (standard deviation), "
        f"{_items(found.items)} a task measure each to {100 * found.noise:.1f}"
    )


def warning(found: Fidelity) -> str | None:
    """Say what would help where the items cannot rank what is compared; None where they can."""
    if found.correlation >= WARN_BELOW:
        return None
    if found.needed is None:
        help_ = f"give more search items: no difference is seen with {found.items} a task"
    else:
        help_ = f"about {found.needed} search items a task would rank them with {GOOD}"
    return f"the search items cannot rank these candidates ({found.correlation:.2f}); {help_}"


def stacked(rows: Sequence[Mapping[str, Matrix]]) -> dict[str, Matrix]:
    """Return tables of rows that are given one by one, as vectors [n] by task."""
    return {task: np.stack([row[task] for row in rows]) for task in rows[0]} if rows else {}


def _items(count: int) -> str:
    return f"{count} item{'s' if count != 1 else ''}"


def _points(value: float) -> str:
    return f"{100 * value:.1f} points"
