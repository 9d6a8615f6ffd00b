"""How much of this machine's processors went to neither the stack nor us, between two looks.

No twin: a simulation has the machine to itself.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil


class StackCpu:
    """Processor seconds of the stack's processes, which may come and go: of one that is gone, what was last seen."""

    def __init__(self, pids: Callable[[], Sequence[int]]) -> None:
        self._pids = pids
        self._processes: dict[int, psutil.Process] = {}
        self._seen_s: dict[int, float] = {}

    def look(self) -> float:
        """The sum so far."""
        for pid in self._pids():
            with contextlib.suppress(psutil.Error):
                if pid not in self._processes:
                    self._processes[pid] = psutil.Process(pid)
                times = self._processes[pid].cpu_times()
                self._seen_s[pid] = times.user + times.system
        return sum(self._seen_s.values())


@dataclass(frozen=True)
class HostCpu:
    """Processor seconds so far: of the whole machine, and of our processes."""

    wall_s: float
    busy_s: float
    ours_s: float

    @classmethod
    def now(cls, stack: StackCpu, generator_s: float = 0.0) -> HostCpu:
        """Of ours are this process, the stack, and a generator that has ended and took so many processor seconds."""
        total = psutil.cpu_times()
        busy_s = sum(total) - total.idle - getattr(total, "iowait", 0.0)
        busy_s -= getattr(total, "guest", 0.0) + getattr(total, "guest_nice", 0.0)  # counted in user already
        own = os.times()
        return cls(time.monotonic(), busy_s, own.user + own.system + generator_s + stack.look())

    def foreign_share(self, later: HostCpu) -> float:
        """The share of all cores between the two looks that went to others."""
        capacity_s = (later.wall_s - self.wall_s) * (psutil.cpu_count() or 1)
        return max(0.0, (later.busy_s - self.busy_s) - (later.ours_s - self.ours_s)) / capacity_s
