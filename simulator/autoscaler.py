"""Starts and drains the replicas of a simulated stage as its [scaling] wants them.

    gateway, replicas ── scrape ──▶ Scaler ── decide ──▶ start … cold start … join the gateway
          every scrape_interval_s     every interval_s ──▶ drain … nothing outstanding … gone

Twin: reference_apps/autoscaler.py; what both do at a look is stages/policies/autoscaling.py. Not modelled: the time
that a scrape takes, cold starts that differ from one another, and machines that cannot be had.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

from simpy import Environment, Event

from simulator.clock import At
from simulator.cold_starts import ColdStarts
from simulator.device import Device
from simulator.gateway import Gateway
from simulator.outcomes import Life
from stages.policies.autoscaling import Fleet, Look, Scaler, timetable
from stages.policies.scraping import ReplicaSample, Sample
from stages.scaling import Scaling

__all__ = ["Autoscaler", "ScaledFleet"]


class ScaledFleet:
    """The replicas behind a simulated gateway; new ones are numbered from `first` on and have a device of their own."""

    def __init__(
        self,
        env: Environment,
        gateway: Gateway,
        open_device: Callable[[int], Device],
        first: int,
        over: Callable[[], bool] = lambda: False,  # says that the traffic is over: nobody joins any more
    ) -> None:
        self._env, self._gateway = env, gateway
        self._cold_starts = ColdStarts(env, open_device, gateway.join, first, over)

    def sample(self) -> Sample:
        """What a scrape finds now."""
        now_s = self._env.now
        replicas = {
            number: ReplicaSample(
                member.held_until_s(now_s), member.replica.batcher.queue_length, member.replica.busy_s
            )
            for number, member in self._gateway.members.items()
        }
        return Sample(now_s, self._gateway.arrived, self._gateway.latencies.within(), replicas)

    def members(self) -> list[int]:
        """Those that serve, or would if they were not ejected."""
        return [number for number, member in self._gateway.members.items() if member.gone is None]

    def ready(self) -> list[int]:
        """The members that the gateway has in rotation."""
        members, now_s = self._gateway.members, self._env.now
        return [number for number in self.members() if members[number].health.in_rotation(now_s)]

    def starting(self) -> list[int]:
        """Those in their cold start."""
        return self._cold_starts.numbers()

    def start(self, cold_start_s: float) -> None:
        """One more, which serves in `cold_start_s` seconds."""
        self._cold_starts.start(cold_start_s)

    def drain(self, number: int) -> None:
        """Lets it go when it has answered what it has; at once where it has not served yet."""
        if not self._cold_starts.cancel(number):
            self._gateway.leave(number)

    def never_served(self) -> list[Life]:
        """Those that were stopped in their cold start, and those that are in it still."""
        return self._cold_starts.never_served()


class Autoscaler:
    """Looks at the fleet by the timetable of `scaling`, from the start of the clock until `over` says so."""

    def __init__(
        self, scaling: Scaling, env: Environment, fleet: Fleet, replicas: int, over: Callable[[], bool]
    ) -> None:
        self._scaling, self._env, self._over = scaling, env, over
        self._scaler = Scaler(scaling, fleet, replicas)
        env.process(self._run())

    @property
    def looks(self) -> list[Look]:
        """Every decision so far."""
        return list(self._scaler.looks)

    def _run(self) -> Generator[Event, None, None]:
        for at_s, scrapes, decides in timetable(self._scaling):
            yield At(self._env, at_s)
            if self._over():
                return
            self._scaler.look(at_s, scrapes, decides)
