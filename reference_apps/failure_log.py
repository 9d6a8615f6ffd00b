"""The stacks of what fails again and again: one a second, and none once the log is as long as it may be.

    a batch failed ──▶ FailureLog: none this second? room in the log? ──▶ its stack ──▶ stderr
                                      │ no: counted, and told by the next that is written

A device that falls off its bus fails every batch, and then each of its items: with a stack each, hundreds of requests a
second write megabytes a second until the disk is full. Metrics count every failure. No twin: the simulator has no log.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Callable

from reference_apps.logs import fields
from stages.alerts import Logs

EVERY_S = 1.0


class FailureLog:
    """The failures of one thread. `stream` is the descriptor of the log, whose length counts where it is a file."""

    def __init__(
        self, logger: logging.Logger, wanted: Logs, clock: Callable[[], float] = time.monotonic, stream: int = 2
    ) -> None:
        self._logger, self._wanted, self._clock, self._stream = logger, wanted, clock, stream
        self._next_s = -1.0
        self._left_out = 0  # since one was written

    def note(self, event: str) -> None:
        """Called where an exception is handled: writes it with its stack, if there is room for that."""
        now_s = self._clock()
        if now_s < self._next_s or self._full():
            self._left_out += 1
            return
        self._next_s = now_s + EVERY_S
        self._logger.exception(event, extra=fields(left_out=self._left_out) if self._left_out else None)
        self._left_out = 0

    def _full(self) -> bool:
        try:
            log = os.fstat(self._stream)
        except OSError:  # a stream that is closed has no length
            return False
        return stat.S_ISREG(log.st_mode) and log.st_size >= self._wanted.requests_max_bytes
