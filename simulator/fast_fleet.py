"""A fleet that stays as it is, behind a gateway: the events of simulator/gateway.py on a heap of plain tuples.

    arrivals ─▶ event loop ─▶ Balancer ─▶ forward ─▶ queue ─▶ device ─▶ back ─▶ event loop ─▶ again, or out
    (sorted array)  LOOP                   REACH      ALARM, FREE  FINISH   BACK    LOOP

The same policies decide, and what happens at one moment happens in the same order: NORMAL before LATE (a device that
becomes free finds who arrives just then), and first scheduled, first done. So the log is the same, bit for bit, as that
of simulator/gateway.py, its reference. No twin. Not here: the end of anybody's patience, which simulator/fast.py looks
for afterwards, and whatever breaks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf, nan

import numpy as np

from simulator.device import Device
from simulator.draws import Floats
from simulator.host import Host
from simulator.outcomes import GatewayLog, Life, ReplicaLog
from stages.calibration import HostCosts
from stages.policies import admission as admits
from stages.policies import batching as leaves
from stages.policies.autoscaling import Look
from stages.policies.balancing import LEARNING, Balancer, first_dice
from stages.policies.retrying import RetryBudget, safe_to_retry
from stages.spec import Stage
from stages.traffic import Schedule

_NORMAL, _LATE = 0, 1
_LOOP, _REACH, _FINISH, _FREE, _ALARM, _BACK, OTHER = range(7)
_Event = tuple[float, int, int, int, int, int, str]  # time, priority, order, kind, replica, request, reason


@dataclass(frozen=True)
class Served:
    """What gateway and replicas did with a schedule. `sent_s` is when the last try of each request was sent."""

    log: GatewayLog
    lives: list[Life]
    sent_s: Floats
    looks: tuple[Look, ...] = ()  # of an autoscaler, where there is one


class UsedUpError(Exception):
    """A replica has as many connections as it may: who may be chosen is not simple any more."""


def serve(
    stage: Stage,
    schedule: Schedule,
    at_gateway_s: Floats,
    visit_s: float,
    host: HostCosts,
    seed: int,
    devices: Sequence[Device],
    to_client_s: Floats,
) -> Served | None:
    """What gateway and replicas did with a schedule whose requests come to the gateway at `at_gateway_s` (ascending).

    `visit_s` is what the gateway's event loop takes in each direction, `host` what surrounds a device,
    `to_client_s` how long each answer is on its way back. None where a replica's connections are used up.
    """
    fleet = Fleet(stage, at_gateway_s, visit_s, host, seed, devices)
    try:
        fleet.run(schedule.items.tolist())
    except UsedUpError:
        return None
    lives = [Life(number, each.device.label, each.log()) for number, each in fleet.replicas.items()]
    return Served(fleet.log(to_client_s), lives, fleet.sent_s())


class Replica:
    """One replica: its queue, its device and what it did."""

    def __init__(self, device: Device, host: Host) -> None:
        self.device, self.host = device, host
        self.queue: deque[int] = deque()
        self.asleep = True
        self.alarm_s = inf
        self.sent = 0
        self.running: list[int] = []
        self.batches: list[tuple[float, float, int]] = []
        self.busy_s = 0.0  # of its device, in batches that are done
        self.served: list[int] = []
        self.shed: list[int] = []

    def log(self) -> ReplicaLog:
        """What it did."""
        started_s, finished_s, sizes = zip(*self.batches, strict=True) if self.batches else ((), (), ())
        return ReplicaLog(
            started_s=np.array(started_s, dtype=np.float64),
            finished_s=np.array(finished_s, dtype=np.float64),
            sizes=np.array(sizes, dtype=np.int64),
            served=np.array(self.served, dtype=np.int64),
            shed=np.array(self.shed, dtype=np.int64),
            expired=np.empty(0, dtype=np.int64),
            expired_s=np.empty(0),
        )


class Fleet:
    """The gateway, its replicas and the heap."""

    def __init__(
        self, stage: Stage, at_gateway_s: Floats, visit_s: float, host: HostCosts, seed: int, devices: Sequence[Device]
    ) -> None:
        config = stage.gateway
        assert config is not None
        count = at_gateway_s.size
        self.replicas = {n: Replica(device, Host(host, seed, n)) for n, device in enumerate(devices)}
        self._config, self._visit_s = config, visit_s
        self._per_item_s, self._between_s, self._wake_s = host.reply_per_item_s, host.between_batches_s, host.wake_s
        self._hop_s = host.send_quantiles_s[0] if len(host.send_quantiles_s) == 1 else None  # None: left to chance
        self._max_size, self._wait_s = stage.batching.max_batch_size, stage.batching.batch_wait_timeout_s
        # As many as there is room for when nobody is inside: asked once, for speed.
        self._most_queued = admits.room(0, stage.admission.max_queue_length)
        self._most_inside = admits.room(0, config.max_in_flight)
        self._most_there = admits.room(0, config.connections_per_replica)
        thrown = first_dice(seed, count).tolist() if config.policy in ("random", "power-of-two") else []
        dice = [(one, two) for one, two in thrown]
        self._balancer = Balancer(config.policy, seed, config.load_bound, dice)
        self._learns = config.policy in LEARNING
        self._budget = RetryBudget(config.budget_share)
        self._noted = 0  # requests that the budget knows of: it is asked only when something is refused
        self._read = 0  # requests that have been read
        self._open = dict.fromkeys(range(len(devices)), 0)  # outstanding of each
        self._in_flight = 0
        self._heap: list[_Event] = []
        self._order = 0
        self._late: list[tuple[int, int]] = []  # (kind, replica): due at the end of this moment
        self._loop_busy = False
        self._loop_waits: deque[tuple[int, int, str]] = deque()
        self._came_s: list[float] = at_gateway_s.tolist()
        self._keys: list[int] = []
        self._in_s, self._arrived_s, self._sent_s, self._out_s = ([nan] * count for _ in range(4))
        self._reasons = [""] * count
        self._number = [-1] * count  # of the last replica that it was sent to
        self._tried: dict[int, tuple[int, ...]] = {}  # of those that were sent again: all but the last

    def run(self, keys: list[int]) -> None:
        """Works through every arrival and all that follows from them. Raises UsedUpError."""
        self._keys = keys
        heap, came_s, count = self._heap, self._came_s, len(self._came_s)
        comes = self._do if self._visit_s else self._work
        number, order, next_s = 0, 0, came_s[0] if came_s else inf  # of the next arrival; its place at its moment
        while number < count or heap:
            if heap and (heap[0][0] < next_s or (heap[0][0] == next_s and heap[0][1:3] < (_NORMAL, order))):
                event = heappop(heap)
                now_s = event[0]
                self._happens(event)
            else:
                now_s = next_s
                while next_s <= now_s:
                    comes(now_s, number, -1, "")
                    number += 1
                    next_s = came_s[number] if number < count else inf
                self._order = order = self._order + 1
            if self._late:
                self._end_of_moment(now_s, next_s)

    def sent_s(self) -> Floats:
        """When the last try of each request was sent; NaN for those of which there was none."""
        return np.array(self._sent_s, dtype=np.float64)

    def log(self, to_client_s: Floats) -> GatewayLog:
        """What became of the requests."""
        out_s, replicas = np.array(self._out_s, dtype=np.float64), np.array(self._number, dtype=np.int64)
        tries = (replicas >= 0).astype(np.int64)
        for request, before in self._tried.items():
            tries[request] += len(before)
        return GatewayLog(
            in_s=np.array(self._in_s, dtype=np.float64),
            arrived_s=np.array(self._arrived_s, dtype=np.float64),
            out_s=out_s,
            replied_s=out_s + to_client_s,
            reasons=self._reasons,
            replicas=replicas,
            tries=tries,
            caches=[""] * len(self._came_s),
            arms=[""] * len(self._came_s),
        )

    # ---- moments ----

    def _push(self, at_s: float, priority: int, kind: int, replica: int, request: int = -1, reason: str = "") -> None:
        self._order = order = self._order + 1
        heappush(self._heap, (at_s, priority, order, kind, replica, request, reason))

    def _happens(self, event: _Event) -> None:
        now_s, _, _, kind, number, request, reason = event
        if kind == _FINISH:
            self._finish(now_s, number)
        elif kind == _BACK:
            self._do(now_s, request, number, reason)
        elif kind == _LOOP:
            self._work(now_s, request, number, reason)
            self._loop_busy = False
            if self._loop_waits:
                self._begin(now_s, *self._loop_waits.popleft())
        elif kind == _REACH:
            self._reach(now_s, request, number)
        elif kind == OTHER:
            self._other(now_s, number)
        else:
            self._wakes(now_s, kind, number)

    def _end_of_moment(self, now_s: float, next_s: float) -> None:
        """What is LATE now: at once where nothing else is due at this moment, otherwise in its turn."""
        late, self._late = self._late, []
        if len(late) == 1 and next_s > now_s and not (self._heap and self._heap[0][0] <= now_s):
            self._wakes(now_s, *late[0])
            return
        for kind, number in late:
            self._push(now_s, _LATE, kind, number)

    def _wakes(self, now_s: float, kind: int, number: int) -> None:
        replica = self.replicas[number]
        if kind == _ALARM:
            if replica.alarm_s != now_s or not replica.asleep:
                return
            replica.alarm_s = inf
        self._take(now_s, number, replica)

    def _other(self, now_s: float, which: int) -> None:
        """What a fleet that changes has to do at its moments."""
        raise NotImplementedError

    # ---- the gateway ----

    def _do(self, now_s: float, request: int, number: int, reason: str) -> None:
        """Has the event loop see to a request that has come (`number` -1), or that is back from a replica."""
        if not self._visit_s:
            self._work(now_s, request, number, reason)
        elif self._loop_busy:
            self._loop_waits.append((request, number, reason))
        else:
            self._begin(now_s, request, number, reason)

    def _begin(self, now_s: float, request: int, number: int, reason: str) -> None:
        self._loop_busy = True
        self._push(now_s + self._visit_s, _NORMAL, _LOOP, number, request, reason)

    def _work(self, now_s: float, request: int, number: int, reason: str) -> None:
        if number >= 0:
            self._back(now_s, request, number, reason)
            return
        self._in_s[request] = now_s
        self._read = request + 1
        if self._in_flight >= self._most_inside:
            self._out_s[request], self._reasons[request] = now_s, "gateway_full"
            return
        self._in_flight += 1
        self._forward(now_s, request, self._open)

    def _forward(self, now_s: float, request: int, choosable: Mapping[int, int]) -> None:
        number = self._balancer.choose(self._keys[request], choosable, now_s, request)
        if self._learns:
            self._balancer.sent(number, now_s)
        self._number[request], self._sent_s[request] = number, now_s
        self._sent_to(now_s, number)
        if self._hop_s == 0.0:
            self._reach(now_s, request, number)
            return
        replica = self.replicas[number]
        arrives_s = replica.host.arrival_s(replica.sent, now_s)
        replica.sent += 1
        if arrives_s == now_s:
            self._reach(now_s, request, number)
        else:
            self._push(arrives_s, _NORMAL, _REACH, number, request)

    def _sent_to(self, now_s: float, number: int) -> None:
        """One request more is outstanding there. Raises UsedUpError where that takes its last connection."""
        del now_s
        self._open[number] = outstanding = self._open[number] + 1
        if outstanding >= self._most_there:
            raise UsedUpError

    def _back_from(self, now_s: float, request: int, number: int, reason: str) -> None:
        """One request less is outstanding there."""
        del now_s, request, reason
        self._open[number] -= 1

    def _back(self, now_s: float, request: int, number: int, reason: str) -> None:
        self._back_from(now_s, request, number, reason)
        if self._learns:
            self._balancer.done(number, now_s - self._sent_s[request], not reason, now_s)
        if reason and self._again(now_s, request, number, reason):
            return
        self._in_flight -= 1
        self._out_s[request] = now_s

    def _again(self, now_s: float, request: int, number: int, reason: str) -> bool:
        """Sends a refused request to another replica, if it may; otherwise notes why it was refused."""
        tried = (*self._tried.get(request, ()), number)
        if len(tried) <= self._config.retries_max and safe_to_retry(reason, sent=True, by_nginx=self._config.by_nginx):
            choosable = {each: count for each, count in self._open.items() if each not in tried}
            if choosable and self._may_retry(now_s):
                self._tried[request] = tried
                self._forward(now_s, request, choosable)
                return True
        self._reasons[request] = reason
        return False

    def _may_retry(self, now_s: float) -> bool:
        for request in range(self._noted, self._read):
            if self._reasons[request] != "gateway_full":
                self._budget.note_request(self._in_s[request])
        self._noted = self._read
        return self._budget.may_retry(now_s)

    # ---- replicas ----

    def _reach(self, now_s: float, request: int, number: int) -> None:
        """The request is in the replica: in its queue, or refused."""
        replica = self.replicas[number]
        self._arrived_s[request] = now_s
        if len(replica.queue) < self._most_queued:
            replica.queue.append(request)
            if replica.asleep:
                self._set_alarm(now_s, number, replica)
            return
        replica.shed.append(request)
        back_s = replica.host.refusal_s(now_s, request)
        if back_s == now_s:
            self._do(now_s, request, number, "queue_full")
        else:
            self._push(back_s, _NORMAL, _BACK, number, request, "queue_full")

    def _leaves_at_s(self, replica: Replica) -> float:
        queue = replica.queue
        return leaves.leaves_at_s(len(queue), self._arrived_s[queue[0]], self._max_size, self._wait_s)

    def _set_alarm(self, now_s: float, number: int, replica: Replica) -> None:
        at_s = max(self._leaves_at_s(replica), now_s) + self._wake_s
        if at_s < replica.alarm_s:
            replica.alarm_s = at_s
            if at_s == now_s:
                self._late.append((_ALARM, number))
            else:
                self._push(at_s, _LATE, _ALARM, number)

    def _take(self, now_s: float, number: int, replica: Replica) -> None:
        """The device is free: it takes the batch that may leave, or sleeps until one may."""
        queue = replica.queue
        if queue and self._leaves_at_s(replica) <= now_s:
            size = leaves.batch_size(len(queue), self._max_size)
            replica.running = [queue.popleft() for _ in range(size)]
            replica.asleep = False
            finished_s = now_s + replica.device.service_time_s(size)
            replica.batches.append((now_s, finished_s, size))
            self._push(finished_s, _NORMAL, _FINISH, number)
            return
        replica.asleep = True
        if queue:
            self._set_alarm(now_s, number, replica)

    def _finish(self, now_s: float, number: int) -> None:
        replica = self.replicas[number]
        replica.served += replica.running
        started_s, finished_s, _ = replica.batches[-1]
        replica.busy_s += finished_s - started_s
        first_s = replica.host.answer_s(now_s, len(replica.batches) - 1, 0)
        for place, request in enumerate(replica.running):
            back_s = first_s + place * self._per_item_s
            if back_s != now_s:
                self._push(back_s, _NORMAL, _BACK, number, request)
            elif self._visit_s:
                self._do(now_s, request, number, "")
            else:
                self._back(now_s, request, number, "")
        if self._between_s:
            self._push(now_s + self._between_s, _LATE, _FREE, number)
        else:
            self._late.append((_FREE, number))
