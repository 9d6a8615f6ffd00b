"""Replicas on their way into a fleet: each has its device, and joins when its cold start is over.

    start ──▶ starting … cold_start_s … ──▶ join(number, device, started_s)
                 └── cancel ──▶ a life that never served

Shared by the fleets that an autoscaler moves: that of a gateway (autoscaler.py) and the workers of a queue (queued.py).
No twin: a running launcher starts processes. Not modelled: cold starts that differ from one another, or fail.
"""

from __future__ import annotations

from collections.abc import Callable

from simpy import Environment

from simulator.clock import At
from simulator.device import Device
from simulator.outcomes import Life


class ColdStarts:
    """Those that were started and have not served yet, numbered from `first` on, each with a device of its own.

    `join(number, device, started_s)` has one serve; once `over` says that the traffic is over, nobody joins any more.
    """

    def __init__(
        self,
        env: Environment,
        open_device: Callable[[int], Device],
        join: Callable[[int, Device, float], object],
        first: int,
        over: Callable[[], bool],
    ) -> None:
        self._env, self._open_device, self._join, self._over = env, open_device, join, over
        self._next = first
        self._starting: dict[int, tuple[float, Device]] = {}  # number → (started_s, device)
        self._cancelled: list[Life] = []

    def numbers(self) -> list[int]:
        """Those in their cold start."""
        return list(self._starting)

    def start(self, cold_start_s: float) -> None:
        """One more, which joins in `cold_start_s` seconds."""
        number, now_s = self._next, self._env.now
        self._next += 1
        self._starting[number] = now_s, self._open_device(number)
        At(self._env, now_s + cold_start_s).add_callback(lambda _: self._is_over(number))

    def cancel(self, number: int) -> bool:
        """Stops one in its cold start; False, and nothing is done, for one that is in none."""
        if number not in self._starting:
            return False
        started_s, device = self._starting.pop(number)
        self._cancelled.append(Life.that_never_served(number, device.label, started_s, self._env.now))
        return True

    def never_served(self) -> list[Life]:
        """Those that were stopped in their cold start, and those that are in it still."""
        starting = [
            Life.that_never_served(number, device.label, started_s, None)
            for number, (started_s, device) in self._starting.items()
        ]
        return [*self._cancelled, *starting]

    def _is_over(self, number: int) -> None:
        """Its cold start is: it joins, unless it was cancelled."""
        if number in self._starting and not self._over():
            started_s, device = self._starting.pop(number)
            self._join(number, device, started_s)
