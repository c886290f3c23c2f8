"""The `search` part of a study file: the optimizer and its settings, the budget, the stages."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from evomerge import optimizers, plugins
from evomerge.errors import Found, Place
from evomerge.optimizers import OptimizerSettings
from evomerge.racing import Racing
from evomerge.study.schema import read_settings
from evomerge.study.stages import Stage, read_stages

_START = "recipes among the first trials"


class Search(BaseModel):
    """The optimizer, its budget and its seed; further keys are the optimizer's own settings."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False)

    optimizer: str = Field("auto", description="name of an optimizer, or auto")
    trials: int = Field(300, ge=1, le=10**6, description="candidates to evaluate in all")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="seed of the search and of random masks")
    objectives: Literal["fitness", "tasks"] = Field(
        "fitness", description="the one fitness, or every task's score for itself"
    )
    stages: list[Stage] = Field([], description="refinements of the space, and when they begin")
    patience: int | None = Field(
        None, ge=1, description="trials in a row without a new best that end the search"
    )
    min_gain: float = Field(0.0, ge=0, description="what a new best gains at least")
    racing: Racing | None = Field(
        Racing(), description="candidates are stopped early, or, with false, answer every item"
    )
    give_up: int = Field(25, ge=1, description="failed trials at the beginning that end the search")
    start: list[str | dict[str, Any]] = Field([], description=_START)

    @field_validator("racing", mode="before", json_schema_input_type=Racing | bool | None)
    @classmethod
    def _raced(cls, value: object) -> object:
        return {True: Racing(), False: None}.get(value, value) if isinstance(value, bool) else value

    @field_validator("start", mode="before")
    @classmethod
    def _recipes(cls, value: object) -> object:
        if not isinstance(value, list) or not all(isinstance(one, str | dict) for one in value):
            raise ValueError(f"a list of paths of recipes or recipes ({_START})")
        return value


def read_search(data: object, place: Place) -> Search:
    """Check plain data to be the search of a study; raises the place's error."""
    fields = dict(place.mapping(data))
    if "stages" in fields:
        fields["stages"] = read_stages(fields["stages"], place / "stages")
    return read_settings(Search, fields, place)


def own_settings(search: Search, place: Place) -> OptimizerSettings:
    """Return the settings of the optimizer from the keys that are not the search's own."""
    extra = dict(search.model_extra or {})
    settings: type[OptimizerSettings] = OptimizerSettings
    if search.optimizer != optimizers.AUTO:
        settings = optimizers.get(search.optimizer, place / "optimizer").Settings
    for key in extra:
        if key not in settings.model_fields:
            owners = [
                name
                for name in plugins.names(optimizers)
                if key in optimizers.get(name, place).Settings.model_fields
            ]
            if owners:
                what = f"a setting of the optimizer {search.optimizer}"
                found = Found(f"{key}, which is one of {' and '.join(owners)}")
                raise place.fail(what, found, "take it out, or choose its optimizer")
            raise place.unknown(key, "key", [*Search.model_fields, *settings.model_fields])
    return read_settings(settings, extra, place)
