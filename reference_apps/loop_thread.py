"""A thread that works for an event loop: begun on it, ended from it, and telling its futures what became of them.

    event loop ── under `_changed`: more to do ──▶ thread, in `_run`, until `_closing`
         ▲                                              │
         └── result or exception of each future ── `_tell`

For what blocks, a disk or a database, on behalf of requests that wait for it: put_line.py, result_watch.py and
feedback_line.py. What there is to do, and how much of it may wait, each of them says itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


class LoopThread(ABC):
    """One thread for one event loop. `open` it on the loop; nothing is done before."""

    def __init__(self, name: str) -> None:
        self._changed = threading.Condition()
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def open(self) -> None:
        """Begins; called on the event loop that it works for."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Has the thread come to its end, and waits for that; at most so long."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    @abstractmethod
    def _run(self) -> None:
        """What the thread does, until it finds `_closing`."""

    def _tell(self, futures: Sequence[asyncio.Future[T]], told: Sequence[T | Exception]) -> None:
        """Has each future of the loop end with its result, or with its exception."""
        if futures:
            self._on_loop(_settle, futures, told)

    def _on_loop(self, what: Callable[..., None], *arguments: object) -> None:
        """Has the loop call this soon."""
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # it is closed: nobody is there to be told
            self._loop.call_soon_threadsafe(what, *arguments)


def _settle(futures: Sequence[asyncio.Future[T]], told: Sequence[T | Exception]) -> None:
    for future, what in zip(futures, told, strict=True):
        if future.done():  # its client may have gone
            continue
        if isinstance(what, Exception):
            future.set_exception(what)
        else:
            future.set_result(what)
