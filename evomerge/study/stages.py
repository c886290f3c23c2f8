"""The stages of a search: each refines the space around the best that those before have found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from evomerge.errors import Place, SpaceError
from evomerge.expressions import Hole, Values
from evomerge.module_groups import Architecture
from evomerge.recipe import Recipe
from evomerge.refinement import Refinement, refine
from evomerge.search_space import EITHER, SearchSpace
from evomerge.study.schema import read_settings


class Stage(BaseModel):
    """A stage after the first: when it begins, and what it changes in the space."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    after: int = Field(ge=1, description="trials of the stages before it")
    knots: int | None = Field(
        None, ge=2, le=100, description="parts that each interval of a curve, or block, falls into"
    )
    narrow: float | None = Field(
        None, gt=0, lt=1, description="width of the new ranges, in old ones"
    )
    groups: Literal["split"] | None = Field(
        None, description="split: what `other` lumps together gets curves of its own"
    )
    choices: Literal["fix"] | None = Field(None, description="fix: no choice is searched any more")

    @property
    def refinement(self) -> Refinement:
        """What it changes."""
        return Refinement(
            self.knots or 1, self.narrow or 1.0, self.groups is not None, self.choices is not None
        )


def read_stages(data: object, place: Place) -> list[Stage]:
    """Check plain data to be the stages of a search; raises the place's error."""
    if not isinstance(data, list):
        what = "a list of stages (refinements of the space, and when they begin)"
        raise place.fail(what, data)
    found: list[Stage] = []
    for index, item in enumerate(data):
        here = place[index]
        stage = read_settings(Stage, item, here)
        if stage.refinement == Refinement():
            raise here.fail("a stage with knots, narrow, groups or choices", item)
        if found and stage.after <= found[-1].after:
            what = f"more than the {found[-1].after} trials before the last stage"
            raise (here / "after").fail(what, stage.after)
        found.append(stage)
    return found


def check_stages(
    space: SearchSpace, stages: Sequence[Stage], architecture: Architecture, place: Place
) -> None:
    """Raise SpaceError where a stage could not change what it is to change.

    That does not depend on the results, but for the branch in which they lie.
    """
    place = Place(place.document, SpaceError, place.path)
    for branch in space.branches:
        refined, values = space, space.initial
        values |= {EITHER: branch.name} if branch.name else {}
        for index, stage in enumerate(stages):
            refined = refine(refined, values, stage.refinement, architecture, place[index])
            values = refined.initial


class Result(Protocol):
    """What came of a slot; `fitness` None where it failed."""

    @property
    def values(self) -> Values:
        """What was tried."""
        ...

    @property
    def fitness(self) -> float | None:
        """What it was worth."""
        ...


@dataclass(frozen=True)
class Incumbent:
    """The best of all slots so far, in the space that is searched now."""

    values: Values
    fitness: float | None
    slot: int | None  # None where all have failed


class Course:
    """The spaces that a search comes to: a function of the results of its slots alone."""

    def __init__(
        self, space: SearchSpace, stages: Sequence[Stage], architecture: Architecture
    ) -> None:
        self.space = space
        self.number = 0  # of the stage
        self.first = 0  # its first slot
        self.start = Incumbent(space.initial, None, None)
        self._stages = stages
        self._architecture = architecture
        # Stages that make recipes of values in different ways have holes of different names.
        self._spaces = {frozenset(space.initial): space}

    @property
    def last(self) -> bool:
        """Whether no other stage follows."""
        return self.number == len(self._stages)

    @property
    def holes(self) -> tuple[Hole, ...]:
        """The holes of the space that is searched now."""
        return self.space.holes

    def decode(self, values: Values) -> Recipe:
        """Return the recipe of a trial of any stage so far."""
        return self._spaces[frozenset(values)].decode(values)

    def begins(self, slot: int) -> bool:
        """Return whether the next stage begins with a slot."""
        return not self.last and self._stages[self.number].after == slot

    def begin(self, slot: int, results: Sequence[Result]) -> bool:
        """Go on to the stage that begins with a slot, if one does; `results` are all before it."""
        if not self.begins(slot):
            return False
        best = self.best(results)
        change = self._stages[self.number].refinement
        self.space = refine(self.space, best.values, change, self._architecture, self.space.place)
        self._spaces[frozenset(self.space.initial)] = self.space
        self.number, self.first = self.number + 1, slot
        self.start = Incumbent(self.space.initial, best.fitness, best.slot)
        return True

    def follow(self, results: Sequence[Result]) -> None:
        """Go as far as the results of all slots lead."""
        while not self.last and self._stages[self.number].after < len(results):
            after = self._stages[self.number].after
            self.begin(after, results[:after])

    def best(self, results: Sequence[Result]) -> Incumbent:
        """Return the best so far, of equals the first, in the space that is searched now."""
        best = self.start
        for slot, one in enumerate(results[self.first :], self.first):
            if one.fitness is not None and (best.fitness is None or one.fitness > best.fitness):
                best = Incumbent(one.values, one.fitness, slot)
        return best
