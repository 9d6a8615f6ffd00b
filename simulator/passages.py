"""Requests on their way through a simulated gateway, and the end of their patience.

    Passage: read, looked up, sent, arrived, back, replied ──▶ log_of ──▶ GatewayLog
    Waits: (due, passage) in a heap, one alarm for all ──▶ give_up(passage)

No twin of the same name: reference_apps/passage.py has the running gateway's requests. Not modelled: bodies that come
late.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf, nan

import numpy as np
from simpy import Environment

from simulator.clock import At
from simulator.outcomes import GatewayLog


@dataclass(slots=True, eq=False)
class Passage:
    """One request on its way through. Times in seconds, NaN for what has not come."""

    request: int
    key: int | str
    leaves_s: float
    in_s: float = nan
    sent_s: float = nan  # of the last try, as are the two below
    arrived_s: float = nan
    replica: int = -1
    tried: tuple[int, ...] = ()
    out_s: float = nan
    replied_s: float = inf
    reason: str = "unfinished"
    over: bool = False
    cache: str = ""  # what a look into the cache gave, of stages.outcomes.CACHE
    user: str = ""  # who sent it
    arm: str = ""  # the version that it is for, of stages.outcomes.ARMS


def log_of(passages: Sequence[Passage]) -> GatewayLog:
    """What became of the requests so far."""
    return GatewayLog(
        in_s=np.array([p.in_s for p in passages], dtype=np.float64),
        arrived_s=np.array([p.arrived_s for p in passages], dtype=np.float64),
        out_s=np.array([p.out_s for p in passages], dtype=np.float64),
        replied_s=np.array([p.replied_s for p in passages], dtype=np.float64),
        reasons=[p.reason for p in passages],
        replicas=np.array([p.replica for p in passages], dtype=np.int64),
        tries=np.array([len(p.tried) for p in passages], dtype=np.int64),
        caches=[p.cache for p in passages],
        arms=[p.arm for p in passages],
    )


class Waits:
    """How long requests are waited for; `give_up` is told of each that is not over when its time is."""

    def __init__(self, env: Environment, give_up: Callable[[Passage], None]) -> None:
        self._env, self._give_up = env, give_up
        self._due: list[tuple[float, int, Passage]] = []  # a heap of (when the wait is over, request, its passage)
        self._alarm_s = inf  # when the first of them is looked at

    def add(self, due_s: float, passage: Passage) -> None:
        """Ends the wait for an answer at `due_s`. Once for each request."""
        heappush(self._due, (due_s, passage.request, passage))
        self._set_alarm()

    def _set_alarm(self) -> None:
        if self._due and self._due[0][0] < self._alarm_s:
            self._alarm_s = self._due[0][0]
            At(self._env, self._alarm_s).add_callback(lambda _: self._ring())

    def _ring(self) -> None:
        """Ends the waits that are over by now; those that have their answer are passed over."""
        now_s = self._env.now
        if now_s != self._alarm_s:
            return
        self._alarm_s = inf
        while self._due:
            due_s, _, passage = self._due[0]
            if not passage.over and due_s > now_s:
                break
            heappop(self._due)
            if not passage.over:
                self._give_up(passage)
        self._set_alarm()
