"""The real batcher without threads and without wall time: a clock that goes on where a taker would wait.

    arrivals_s ─▶ put at their times ─▶ Batcher ─▶ take when the device is free ─▶ Replayed

Moments at which two things happen have the simulator's order: arrivals first, the device last.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf

from reference_apps.batcher import Batcher, Request
from stages.spec import Admission, Batching


@dataclass
class Replayed:
    """What became of the requests, who are called by their index in the arrivals."""

    batches: list[tuple[float, tuple[int, ...]]] = field(default_factory=list)  # (started_s, requests)
    finished_s: list[float] = field(default_factory=list)  # one a batch
    shed: list[int] = field(default_factory=list)
    expired: list[tuple[int, float]] = field(default_factory=list)  # (request, when it was told)


class FakeClock(threading.Condition):
    """A clock that also is what takers wait on: a wait lasts until a notification, its timeout or the last arrival."""

    def __init__(self, arrivals_s: Sequence[float], arrive: Callable[[int], None], over: Callable[[], None]) -> None:
        super().__init__()
        self.now_s = 0.0
        self._coming = deque(enumerate(arrivals_s))
        self._arrive = arrive
        self._over = over  # told when a taker waits for requests and none will come
        self._notified = False

    def time(self) -> float:
        return self.now_s

    def go_on(self, until_s: float) -> None:
        """The device is busy until then."""
        while self._coming and self._coming[0][1] <= until_s:
            self._next_arrivals()
        self.now_s = until_s

    def wait(self, timeout: float | None = None) -> bool:
        until_s = inf if timeout is None else self.now_s + timeout
        self._notified = False
        while not self._notified and self._coming and self._coming[0][1] <= until_s:
            self._next_arrivals()
        if not self._notified and until_s < inf:
            self.now_s = until_s
        elif not self._notified:
            self._over()
        return self._notified

    def notify(self, n: int = 1) -> None:
        self._notified = True

    def _next_arrivals(self) -> None:
        self.now_s = max(self.now_s, self._coming[0][1])
        while self._coming and self._coming[0][1] <= self.now_s:
            self._arrive(self._coming.popleft()[0])


def replay(
    batching: Batching, admission: Admission, arrivals_s: Sequence[float], service_time_s: Callable[[int], float]
) -> Replayed:
    """Those arrivals through the real batcher, in front of a device that does nothing but take its time."""
    found = Replayed()

    def refuse(request: Request) -> None:
        found.expired.append((request.reply, clock.now_s))

    def arrive(number: int) -> None:
        if not batcher.put(Request(None, clock.now_s, admission.deadline_s, refuse, number)):
            found.shed.append(number)

    clock = FakeClock(arrivals_s, arrive, over=lambda: batcher.close())
    batcher = Batcher(batching, admission, clock.time, clock)
    while batch := batcher.take():
        found.batches.append((clock.now_s, tuple(request.reply for request in batch)))
        clock.go_on(clock.now_s + service_time_s(len(batch)))
        found.finished_s.append(clock.now_s)
    return found
