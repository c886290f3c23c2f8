"""The temperature of smoothed accuracies, from the experts' margins."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from evomerge.proxy_tasks import ItemScores

_LOGISTIC = math.pi / math.sqrt(3)  # standard deviation of the logistic distribution


def temperature(experts: Sequence[ItemScores]) -> float | None:
    """Return τ for the margins of n items, which the experts have answered; None without margins.

    Accuracy is one less the distribution function of the margins at 0, sigmoid(margin / τ) its
    kernel estimate. Of these the bandwidth (4 / n)^⅓ s is the rule for distributions that are near
    the normal one (Azzalini 1981, "A note on the estimation of a distribution function and
    quantiles by a kernel method"); s is the median size of the best expert's margins, and τ is the
    bandwidth over the standard deviation of the logistic distribution, π / √3.
    """
    best = max(experts, key=lambda one: float(one.correct.mean()))
    if best.margins is None:
        return None
    size = float(np.median(np.abs(best.margins)))
    found = (4 / len(best.margins)) ** (1 / 3) * size / _LOGISTIC
    return found if math.isfinite(found) and found > 0 else None
