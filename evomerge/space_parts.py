"""Walks through the settings of search spaces, and puts others in their place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from evomerge.expressions import (
    Constant,
    Curve,
    Expression,
    Factor,
    Filtered,
    OpenGradient,
    OpenSetting,
    Product,
    Reference,
    Share,
    names_in,
)
from evomerge.search_space import Branch


def expressions(branches: Iterable[Branch]) -> Iterator[Expression]:
    """Yield the expressions of all settings."""
    for branch in branches:
        for settings in (branch.parameters, *(model.parameters for model in branch.models)):
            for setting in settings.values():
                cases = setting.cases if isinstance(setting, Filtered) else ((None, setting),)
                for _, one in cases:
                    yield from one.anchors if isinstance(one, OpenGradient) else (one,)


def factors(expression: Expression) -> tuple[Factor, ...]:
    """Return the factors of a product; of all else, itself."""
    return expression.factors if isinstance(expression, Product) else (expression,)


def pools(branches: Iterable[Branch]) -> list[list[Reference | Curve]]:
    """Return the members of each sum that is shared, also those of other branches."""
    found = {
        id(part.members): part.members
        for expression in expressions(branches)
        for part in factors(expression)
        if isinstance(part, Share)
    }
    return list(found.values())


def key_of(curve: Curve) -> str:
    """Return what tells a curve from all others: the name of its first hole."""
    return names_in(curve)[0]


class Replacement:
    """Puts other curves, by the key of the old one, and constants, by a hole, into branches."""

    def __init__(self, curves: Mapping[str, Curve], constants: Mapping[str, Constant]) -> None:
        self._curves = curves
        self._constants = constants
        self._members: dict[int, list[Reference | Curve]] = {}

    def branch(self, branch: Branch) -> Branch:
        """Return a branch with what is new in place of the old."""
        models = tuple(
            replace(model, parameters=self._settings(model.parameters)) for model in branch.models
        )
        return replace(branch, models=models, parameters=self._settings(branch.parameters))

    def _settings(self, settings: Mapping[str, OpenSetting]) -> dict[str, OpenSetting]:
        return {name: self._setting(one) for name, one in settings.items()}

    def _setting(self, setting: OpenSetting) -> OpenSetting:
        if isinstance(setting, Filtered):
            return Filtered(tuple((text, self._value(one)) for text, one in setting.cases))
        return self._value(setting)

    def _value(self, value: Expression | OpenGradient) -> Expression | OpenGradient:
        if isinstance(value, OpenGradient):
            return OpenGradient(tuple(self._expression(one) for one in value.anchors))
        return self._expression(value)

    def _expression(self, expression: Expression) -> Expression:
        if isinstance(expression, Product):
            return Product(tuple(self._factor(one) for one in expression.factors))
        factor: Factor = self._factor(expression)
        return factor

    def _factor(self, factor: Any) -> Any:
        if isinstance(factor, Reference):
            return self._constants.get(factor.name, factor)
        if isinstance(factor, Curve):
            return self._curves.get(key_of(factor), factor)
        if isinstance(factor, Share):
            key = id(factor.members)
            if key not in self._members:
                self._members[key] = [self._factor(one) for one in factor.members]
            return Share(self._factor(factor.own), self._members[key])
        return factor
