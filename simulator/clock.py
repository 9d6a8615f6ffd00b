"""Events at exact moments of the virtual clock, and who goes first when two fall on the same one.

    NORMAL   requests arrive, answers go back        LATE   a device takes its next batch

So a device that becomes free at the very moment of an arrival finds that request in the queue. No twin: the
running stack has the wall clock, where two things never happen at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from simpy import Environment, Event
from simpy.events import NORMAL, EventPriority

LATE = EventPriority(NORMAL + 1)


class At(Event):
    """Fires when the clock of `env` shows exactly `time_s`. Raises ValueError for a time in the past.

    SimPy counts time in delays, and now + (time - now) can miss `time` by one unit in the last place; then two
    ways of computing the same schedule would differ.
    """

    def __init__(self, env: Environment, time_s: float, priority: EventPriority = NORMAL) -> None:
        now_s = env.now
        delay_s = time_s - now_s
        if delay_s < 0:
            raise ValueError(f"an event at {time_s} s cannot be scheduled at {now_s} s")
        # As in simpy.Timeout: the fields of an event that has its value, without a call for each.
        self.env = env
        self.callbacks = []
        self._value = None
        self._ok = True
        if now_s + delay_s == time_s:
            env.schedule(self, priority, delay_s)
        else:
            self._schedule_in_two_hops(time_s, priority)

    def add_callback(self, call: Callable[[Event], Any]) -> None:
        """Has `call` called when the event fires; it has not fired yet."""
        assert self.callbacks is not None
        self.callbacks.append(call)

    def _schedule_in_two_hops(self, time_s: float, priority: EventPriority) -> None:
        """First to a moment with no more digits than `time_s` has: from there the delay is exact."""
        digit_s = math.ulp(time_s)
        hop = At(self.env, math.ceil(self.env.now / digit_s) * digit_s)
        hop.add_callback(lambda _: self.env.schedule(self, priority, time_s - self.env.now))
