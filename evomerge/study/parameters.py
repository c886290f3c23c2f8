"""A trial's values as the parameters that Optuna's dashboards know."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from optuna.distributions import distribution_to_json

from evomerge.expressions import Hole, Values
from evomerge.optimizers._optuna import distribution
from evomerge.study.rows import Parameter


def describe(holes: Sequence[Hole]) -> Callable[[Values], list[Parameter]]:
    """Return what turns values of these holes into parameters, in the order of the holes."""
    kinds = [(hole.name, distribution(hole)) for hole in holes]
    written = [(name, kind, distribution_to_json(kind)) for name, kind in kinds]

    def parameters(values: Values) -> list[Parameter]:
        return [
            Parameter(name, kind.to_internal_repr(values[name]), text)
            for name, kind, text in written
        ]

    return parameters
