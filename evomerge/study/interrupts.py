"""Ctrl-C and SIGTERM: a running trial is finished first, a second signal ends it at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Turns both signals into KeyboardInterrupt, put off to the end of a piece of work."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._working = False
        self._asked = False

    @property
    def asked(self) -> bool:
        """Whether a signal waits for the end of a piece of work."""
        return self._asked

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Catch the signals in the block; nothing is done outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {one: signal.signal(one, self._handle) for one in _SIGNALS}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._working or self._asked:
            raise KeyboardInterrupt
        self._asked = True
        self._note("stopping after this trial; once more stops at once")

    @contextlib.contextmanager
    def put_off(self) -> Iterator[None]:
        """Finish the block before a signal that comes in it ends the process."""
        self._working = True
        try:
            yield
        finally:
            self._working = False
        if self._asked:
            raise KeyboardInterrupt
