"""TensorBoard: event files in the study's folder, shown by `tensorboard --logdir runs`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.tracking import Values


def start(name: str, identity: str, folder: Path, config: Mapping[str, Any]) -> _Log:
    """Return the log of a study in `tensorboard/IDENTITY` of its folder."""
    return _Log(folder / "tensorboard" / identity)


class _Log:
    def __init__(self, folder: Path) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._numbers = _numbers(folder)
        self._writer = EventFileWriter(str(folder))

    def logged(self) -> set[int]:
        return self._numbers

    def write(self, number: int, values: Values) -> None:
        """Write a trial as one record: a file that a kill has cut short has it whole or not."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        parts = [_part(name, value) for name, value in values.items()]
        event = Event(wall_time=time.time(), step=number, summary=Summary(value=parts))
        self._writer.add_event(event)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _part(name: str, value: float | str) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.plugins.text.metadata import create_summary_metadata

    if not isinstance(value, str):
        return Summary.Value(tag=name, simple_value=value)
    one = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    text = TensorProto(dtype="DT_STRING", string_val=[value.encode()], tensor_shape=one)
    about = create_summary_metadata(name, "")
    return Summary.Value(tag=name, metadata=about, tensor=text)


def _numbers(folder: Path) -> set[int]:
    """Return the numbers of the trials in the event files of a folder."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return {
        event.step
        for path in folder.glob("events.out.tfevents.*")
        for event in EventFileLoader(str(path)).Load()
        if event.HasField("summary")
    }
