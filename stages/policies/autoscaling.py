"""An autoscaler without a clock: at each look it scrapes, decides, and has a fleet start and drain replicas.

    timetable ──▶ look(at_s) ──▶ fleet.sample ──▶ Sample … ──▶ observe ──▶ decide ──▶ fleet.start, fleet.drain ──▶ Look
                                 │ last window │

The same class in both worlds; whose clock it is, and what a replica is, is for simulator/autoscaler.py and
reference_apps/autoscaler.py to say. Decisions are dated by the timetable and not by when the clock let them happen:
so a window ends at the same look in both.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Collection, Iterator
from typing import NamedTuple, Protocol

from stages.policies.scaling import begin, decide, leaving
from stages.policies.scraping import Sample, observe, samples_of
from stages.scaling import Scaling


class Fleet(Protocol):
    """Replicas that can be counted, measured, started and drained. None of the calls waits for a replica."""

    def sample(self) -> Sample:
        """What a scrape finds now."""
        ...

    def members(self) -> Collection[int]:
        """The numbers of those that serve or would, were they not down: neither starting nor on their way out."""
        ...

    def ready(self) -> Collection[int]:
        """The members that the gateway has in rotation."""
        ...

    def starting(self) -> Collection[int]:
        """Those that were started and have never served."""
        ...

    def start(self, cold_start_s: float) -> None:
        """One more, which serves no sooner than in `cold_start_s` seconds."""
        ...

    def drain(self, number: int) -> None:
        """No new requests for that one, which goes when it has answered those that it has."""
        ...


class Look(NamedTuple):
    """One decision: what was wanted, and why; counts of replicas as they are right after it."""

    at_s: float  # of the timetable
    wanted: int
    ready: int
    starting: int
    value: float | None  # of the metric; None where nothing told it
    why: str


class Scaler:
    """Keeps a fleet, which has `replicas` now, at the size that the policy wants. `looks`: the last `looks_max`."""

    def __init__(self, scaling: Scaling, fleet: Fleet, replicas: int, looks_max: int | None = None) -> None:
        self.looks: deque[Look] = deque(maxlen=looks_max)
        self._scaling, self._fleet = scaling, fleet
        self._state = begin(replicas)
        self._samples: deque[Sample] = deque(maxlen=samples_of(scaling))

    def look(self, at_s: float, scrapes: bool, decides: bool) -> Look | None:
        """Does what is due at `at_s` seconds of the timetable; gives the decision, if one was due."""
        if scrapes and self._scaling.policy != "scheduled":
            self._samples.append(self._fleet.sample())
        return self._decide(at_s) if decides else None

    def _decide(self, at_s: float) -> Look:
        scaling, fleet = self._scaling, self._fleet
        seen = observe(scaling.metric, self._samples, fleet.ready())
        self._state, why = decide(scaling, self._state, seen, at_s)
        wanted, members, starting = self._state.wanted, fleet.members(), fleet.starting()
        more = wanted - len(members) - len(starting)
        for _ in range(more):
            fleet.start(scaling.cold_start.total_s)
        for number in leaving(starting, members, -more):
            fleet.drain(number)
        look = Look(at_s, wanted, len(fleet.ready()), len(fleet.starting()), seen.value, why)
        self.looks.append(look)
        return look


def timetable(scaling: Scaling) -> Iterator[tuple[float, bool, bool]]:
    """When to look, for ever: (seconds after the start, to scrape, to decide). A scrape comes before a decision.

    Moments are rounded to nanoseconds, so that those which are the same but for their last bit are one look.
    """
    scrapes = ((round(n * scaling.scrape_interval_s, 9), "scrape") for n in itertools.count())
    decisions = ((round(n * scaling.interval_s, 9), "decide") for n in itertools.count(1))
    for at_s, due in itertools.groupby(heapq.merge(scrapes, decisions), key=lambda look: look[0]):
        what = {name for _, name in due}
        yield at_s, "scrape" in what, "decide" in what
