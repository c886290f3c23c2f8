"""The tables of an Optuna database, as far as a study of evomerge reads and writes them.

Optuna's own storage makes them.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, DateTime, Enum, Float, Integer, MetaData, String, Table, Text

SCHEMA = "v3.2.0.a"  # Optuna's name for these tables
_STATES = ("RUNNING", "COMPLETE", "PRUNED", "FAIL", "WAITING")

_metadata = MetaData()


def _table(name: str, *columns: Column[Any]) -> Table:
    return Table(name, _metadata, *columns)


STUDIES = _table(
    "studies", Column("study_id", Integer, primary_key=True), Column("study_name", String)
)
DIRECTIONS = _table(
    "study_directions",
    Column("study_direction_id", Integer, primary_key=True),
    Column("direction", Enum("NOT_SET", "MINIMIZE", "MAXIMIZE", name="studydirection")),
    Column("study_id", Integer),
    Column("objective", Integer),
)
ATTRIBUTES = _table(
    "study_user_attributes",
    Column("study_user_attribute_id", Integer, primary_key=True),
    Column("study_id", Integer),
    Column("key", String),
    Column("value_json", Text),
)
TRIALS = _table(
    "trials",
    Column("trial_id", Integer, primary_key=True),
    Column("number", Integer),
    Column("study_id", Integer),
    Column("state", Enum(*_STATES, name="trialstate")),
    Column("datetime_start", DateTime),
    Column("datetime_complete", DateTime),
)
TRIAL_ATTRIBUTES = _table(
    "trial_user_attributes",
    Column("trial_user_attribute_id", Integer, primary_key=True),
    Column("trial_id", Integer),
    Column("key", String),
    Column("value_json", Text),
)
PARAMS = _table(
    "trial_params",
    Column("param_id", Integer, primary_key=True),
    Column("trial_id", Integer),
    Column("param_name", String),
    Column("param_value", Float(precision=53)),
    Column("distribution_json", Text),
)
VALUES = _table(
    "trial_values",
    Column("trial_value_id", Integer, primary_key=True),
    Column("trial_id", Integer),
    Column("objective", Integer),
    Column("value", Float(precision=53)),
    Column("value_type", Enum("FINITE", "INF_POS", "INF_NEG", name="trialvaluetype")),
)
VERSION = _table("alembic_version", Column("version_num", String))
