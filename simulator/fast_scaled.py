"""A fleet under an autoscaler, behind a gateway, on the heap of simulator/fast_fleet.py.

    timetable ─▶ OTHER: look ─▶ Scaler ─▶ start … cold start … OTHER: join ─▶ gets requests
                                      └─▶ drain … nothing outstanding … gone

The log, the lives of the replicas and every decision are those of simulator/autoscaler.py and gateway.py, their
reference. No twin, and nothing that is not modelled there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from simulator.device import Device
from simulator.draws import Floats
from simulator.fast_fleet import OTHER, Fleet, Replica, Served, UsedUpError
from simulator.host import Host
from simulator.outcomes import Life
from stages.calibration import HostCosts
from stages.policies.autoscaling import Scaler, timetable
from stages.policies.histogram import LatencyCounts
from stages.policies.scraping import ReplicaSample, Sample
from stages.spec import Stage
from stages.traffic import Schedule

_LOOK = -1  # of an OTHER: no replica joins, the autoscaler looks


def serve(
    stage: Stage,
    schedule: Schedule,
    at_gateway_s: Floats,
    visit_s: float,
    host: HostCosts,
    seed: int,
    devices: Sequence[Device],
    to_client_s: Floats,
    another: Callable[[int], Device],
) -> Served | None:
    """`fast_fleet.serve` for a stage with [scaling]; `another` gives the device of a replica that is started."""
    fleet = ScaledFleet(stage, at_gateway_s, visit_s, host, seed, devices, another, schedule.duration_s)
    try:
        fleet.run(schedule.items.tolist())
    except UsedUpError:
        return None
    return Served(fleet.log(to_client_s), fleet.lives(), fleet.sent_s(), tuple(fleet.scaler.looks))


class _Stay:
    """When one replica was there, and what requests spent there."""

    def __init__(self, started_s: float, ready_s: float) -> None:
        self.started_s, self.ready_s = started_s, ready_s
        self.outstanding = 0
        self.leaving = False
        self.left_s: float | None = None
        self._held_s, self._counted_s = 0.0, 0.0

    def count(self, change: int, now_s: float) -> None:
        """So many more requests are there from now on."""
        self._held_s, self._counted_s = self.held_until_s(now_s), now_s
        self.outstanding += change

    def held_until_s(self, now_s: float) -> float:
        """Seconds that requests have spent there, all together."""
        return self._held_s + self.outstanding * (now_s - self._counted_s)


class ScaledFleet(Fleet):
    """The fleet, which is what its own autoscaler looks at and changes (stages.policies.autoscaling.Fleet)."""

    def __init__(
        self,
        stage: Stage,
        at_gateway_s: Floats,
        visit_s: float,
        host: HostCosts,
        seed: int,
        devices: Sequence[Device],
        another: Callable[[int], Device],
        window_s: float,
    ) -> None:
        super().__init__(stage, at_gateway_s, visit_s, host, seed, devices)
        assert stage.scaling is not None
        self.scaler = Scaler(stage.scaling, self, len(devices))
        self._host, self._seed, self._another, self._window_s = host, seed, another, window_s
        self._stays = {number: _Stay(0.0, 0.0) for number in self.replicas}
        self._left: list[int] = []
        self._starting: dict[int, tuple[float, Device]] = {}  # number → (started_s, device)
        self._cancelled: list[Life] = []
        self._next = len(devices)
        self._now_s = 0.0
        self._latencies = LatencyCounts() if stage.scaling.metric == "latency-p95" else None
        self._timetable: Iterator[tuple[float, bool, bool]] = timetable(stage.scaling)
        self._due = next(self._timetable)
        self._push(self._due[0], 0, OTHER, _LOOK)

    def lives(self) -> list[Life]:
        """What each replica did, those that left first, and last those that never served."""
        there = [number for number, stay in self._stays.items() if stay.left_s is None]
        served = []
        for number in (*self._left, *there):
            stay, replica = self._stays[number], self.replicas[number]
            times = (stay.started_s, stay.ready_s, stay.left_s)
            served.append(Life(number, replica.device.label, replica.log(), *times))
        starting = [
            Life.that_never_served(number, device.label, started_s, None)
            for number, (started_s, device) in self._starting.items()
        ]
        return [*served, *self._cancelled, *starting]

    # ---- what the autoscaler sees and does ----

    def sample(self) -> Sample:
        """What a scrape finds now."""
        now_s = self._now_s
        replicas = {
            number: ReplicaSample(stay.held_until_s(now_s), len(replica.queue), replica.busy_s)
            for number, stay in self._stays.items()
            if stay.left_s is None
            for replica in (self.replicas[number],)
        }
        within = () if self._latencies is None else self._latencies.within()
        return Sample(now_s, self._read, within, replicas)

    def members(self) -> list[int]:
        """Those that serve."""
        return list(self._open)

    def ready(self) -> list[int]:
        """The same: nobody is ejected here."""
        return list(self._open)

    def starting(self) -> list[int]:
        """Those in their cold start."""
        return list(self._starting)

    def start(self, cold_start_s: float) -> None:
        """One more, which serves in `cold_start_s` seconds."""
        number = self._next
        self._next += 1
        self._starting[number] = self._now_s, self._another(number)
        self._push(self._now_s + cold_start_s, 0, OTHER, number)

    def drain(self, number: int) -> None:
        """Lets it go when it has answered what it has; at once where it has not served yet."""
        if number in self._starting:
            started_s, device = self._starting.pop(number)
            self._cancelled.append(Life.that_never_served(number, device.label, started_s, self._now_s))
            return
        self._stays[number].leaving = True
        self._open.pop(number)
        self._go_if_done(self._now_s, number)

    # ---- moments ----

    def _over(self, now_s: float) -> bool:
        return now_s >= self._window_s and not self._in_flight

    def _other(self, now_s: float, number: int) -> None:
        self._now_s = now_s
        if number == _LOOK:
            if self._over(now_s):
                return
            self.scaler.look(*self._due)
            self._due = next(self._timetable)
            self._push(self._due[0], 0, OTHER, _LOOK)
        elif number in self._starting and not self._over(now_s):
            started_s, device = self._starting.pop(number)
            self.replicas[number] = Replica(device, Host(self._host, self._seed, number))
            self._stays[number] = _Stay(started_s, now_s)
            self._open[number] = 0

    def _forward(self, now_s: float, request: int, choosable: Mapping[int, int]) -> None:
        if not choosable:
            self._in_flight -= 1
            self._out_s[request], self._reasons[request] = now_s, "no_replica"
            return
        super()._forward(now_s, request, choosable)

    def _sent_to(self, now_s: float, number: int) -> None:
        self._stays[number].count(1, now_s)
        super()._sent_to(now_s, number)

    def _back_from(self, now_s: float, request: int, number: int, reason: str) -> None:
        self._stays[number].count(-1, now_s)
        if number in self._open:
            self._open[number] -= 1
        if self._latencies is not None and not reason:
            self._latencies.add(now_s - self._in_s[request])

    def _back(self, now_s: float, request: int, number: int, reason: str) -> None:
        super()._back(now_s, request, number, reason)
        self._go_if_done(now_s, number)

    def _go_if_done(self, now_s: float, number: int) -> None:
        """A replica that is leaving is gone when it has nothing outstanding."""
        stay = self._stays[number]
        if stay.leaving and not stay.outstanding and stay.left_s is None:
            stay.left_s = now_s
            self._left.append(number)
            self._balancer.forget(number)
