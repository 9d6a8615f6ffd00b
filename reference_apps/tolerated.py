"""Work that may fail, on a full disk for instance, and must not end what goes on around it.

with tolerated: write …     the first failure in a row is logged; `failing` until it has worked again
"""

from __future__ import annotations

import logging
from types import TracebackType


class Tolerated:
    """A context whose errors of one kind are logged, and never raised. `told` says what it means that one failed."""

    def __init__(self, told: str, log: logging.Logger, kind: type[Exception] = OSError) -> None:
        self.failing = False  # the last time
        self._told, self._log, self._kind = told, log, kind

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> bool:
        del kind, where
        if error is not None and not isinstance(error, self._kind):
            return False
        if error is not None and not self.failing:
            unforeseen = None if isinstance(error, OSError) else error
            self._log.error("%s: %s", self._told, error, exc_info=unforeseen)
        elif error is None and self.failing:
            self._log.info("over: %s", self._told)
        self.failing = error is not None
        return True
