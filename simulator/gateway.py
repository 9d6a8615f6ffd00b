"""One address in front of the replicas, event by event: admission, who gets a request, what is tried again.

    submit ─▶ event loop ─▶ room? ─▶ Balancer ─ forward ─▶ Replica ─ back ─▶ event loop ─▶ again? ─ reply ─▶ settled
              one server,    │ gateway_full                                  the same one    │
              first come     │ no_replica                      ◀── another replica, in the budget
              first served

Each request takes the event loop twice, half of `busy_s` each time, on its way in and on its way back; that is how a
gateway fills up. The hops around it are those of low load, less that share. Twin: reference_apps/gateway.py; the
decisions are in stages/policies. A replica that is there passes its probes; simulator/probes.py asks where one may not.
Not modelled: the making of connections, bodies that come late, and keys and TLS beyond what they cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from math import inf, nan

import numpy as np
from simpy import Environment, Event

from simulator.clock import At
from simulator.device import Device
from simulator.host import Hop, Host
from simulator.line import Line
from simulator.outcomes import GatewayLog, Life
from simulator.replica import Replica, Settled
from stages.calibration import GatewayCosts, HostCosts
from stages.policies import admission as admits
from stages.policies.balancing import Balancer, ticket_of
from stages.policies.health import Health, speaks_against
from stages.policies.histogram import LatencyCounts
from stages.policies.retrying import RetryBudget, safe_to_retry
from stages.spec import Stage

__all__ = ["Gateway"]


@dataclass(slots=True, eq=False)
class _Passage:
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


@dataclass(slots=True, eq=False)
class Member:
    """A replica as its gateway knows it."""

    replica: Replica
    host: Host
    line: Line
    health: Health
    started_s: float
    ready_s: float
    outstanding: int = 0  # requests that were sent there and are not back
    sent: int = 0  # all that ever were
    gone: Event | None = None  # of one that is leaving: fires when it has left
    left_s: float | None = None
    held_s: float = 0.0  # what requests have spent there, all together, up to `counted_s`
    counted_s: float = 0.0

    def count(self, change: int, now_s: float) -> None:
        """So many more requests are there from now on."""
        self.held_s, self.counted_s = self.held_until_s(now_s), now_s
        self.outstanding += change

    def held_until_s(self, now_s: float) -> float:
        """Seconds that requests have spent there, all together, those that are there still included."""
        return self.held_s + self.outstanding * (now_s - self.counted_s)


class Gateway:
    """The gateway of a stage, with no replica as yet: `join` them, then `submit` requests.

    `settled` is told of each request once its end is known. `seed` gives all draws; the replicas' streams are their
    numbers'. Without `costs` the gateway takes no time: its hops then are those of the host.
    """

    def __init__(
        self,
        stage: Stage,
        env: Environment,
        host: HostCosts,
        costs: GatewayCosts | None,
        seed: int,
        settled: Settled | None = None,
    ) -> None:
        assert stage.gateway is not None
        self.members: dict[int, Member] = {}
        self.left: list[tuple[int, Member]] = []
        self.arrived = 0  # requests that it has read
        self.in_flight = 0
        self.latencies = LatencyCounts()  # of its answers, from read to answered
        self._stage, self._env, self._seed = stage, env, seed
        self._config = config = stage.gateway
        self._settled = settled
        costs = costs or GatewayCosts(
            forward_quantiles_s=host.send_quantiles_s, back_quantiles_s=host.reply_quantiles_s
        )
        self._visit_s = costs.busy_s / 2
        self._free_s = -inf  # when the event loop has done what it was given
        self.from_clients = Hop(_less(costs.send_quantiles_s, self._visit_s), seed, "gateway send")
        self._to_clients = Hop(costs.reply_quantiles_s, seed, "gateway reply")
        self._host = host.model_copy(
            update={
                "send_quantiles_s": costs.forward_quantiles_s,
                "reply_quantiles_s": _less(costs.back_quantiles_s, self._visit_s),
            }
        )
        self._balancer = Balancer(config.policy, seed, config.sticky_load_bound)
        self._budget = RetryBudget(config.retry_budget_share)
        self._open: dict[int, int] = {}  # outstanding of each that may be chosen, were none ejected or full
        self._ejections_until_s = -inf
        self._full: set[int] = set()  # those with all the requests that they may have
        self._unready: set[int] = set()  # those whose probes say so
        self._passages: list[_Passage] = []
        self._due: list[tuple[float, int]] = []  # a heap of (when the wait is over, request)
        self._alarm_s = inf  # when the first of them is looked at

    def join(self, number: int, device: Device, started_s: float | None = None) -> Replica:
        """A replica on that device is ready from now on; it was started at `started_s`. Gives back the replica."""
        now_s, config = self._env.now, self._config
        host = Host(self._host, self._seed, number)
        replica = Replica(self._stage, self._env, device, host, partial(self._replied, number))
        line = Line(self._env, partial(self._enter, replica), partial(self._lost, number), config.connect_timeout_s)
        # A new replica is in rotation from its first good probe on.
        health = Health(config.unhealthy_after, config.healthy_after, config.eject_after, config.eject_s)
        started_s = now_s if started_s is None else started_s
        self.members[number] = Member(replica, host, line, health.after_probe(True), started_s, now_s)
        self._open[number] = 0
        return replica

    def leave(self, number: int) -> Event:
        """Sends the replica nothing more. The event fires when all that it has are back: it is closed and gone then."""
        member = self.members[number]
        if member.gone is None:
            member.gone = self._env.event()
            self._open.pop(number)
            self._go_if_done(number)
        return member.gone

    def in_rotation(self) -> list[int]:
        """The replicas that may be sent requests now, full ones too."""
        return [number for number in self._open if self.members[number].health.in_rotation(self._env.now)]

    def probed(self, number: int, ok: bool) -> None:
        """A probe of the replica has ended."""
        member = self.members[number]
        member.health = member.health.after_probe(ok)
        (self._unready.discard if member.health.ready else self._unready.add)(number)

    def break_off(self, number: int) -> None:
        """Every connection to the replica ends now, and with it whatever was sent there and is not back."""
        for passage in [p for p in self._passages if p.replica == number and not p.over]:
            self._lost(number, passage.request, "upstream_lost", True)

    def submit(self, request: int, key: int | str = 0, leaves_s: float = inf) -> None:
        """Request number `request` is at the gateway now; numbers come in order, from 0. `key` is for sticky ones.

        Its client goes away at `leaves_s` if it has no answer by then.
        """
        passage = _Passage(request, key, leaves_s)
        self._passages.append(passage)
        self._on_loop(lambda: self._read(passage))

    def log(self) -> GatewayLog:
        """What became of the requests so far."""
        passages = self._passages
        return GatewayLog(
            in_s=np.array([p.in_s for p in passages], dtype=np.float64),
            arrived_s=np.array([p.arrived_s for p in passages], dtype=np.float64),
            out_s=np.array([p.out_s for p in passages], dtype=np.float64),
            replied_s=np.array([p.replied_s for p in passages], dtype=np.float64),
            reasons=[p.reason for p in passages],
            replicas=np.array([p.replica for p in passages], dtype=np.int64),
            tries=np.array([len(p.tried) for p in passages], dtype=np.int64),
        )

    def lives(self) -> list[Life]:
        """What each replica did, those that left first."""
        all_of_them = [*self.left, *self.members.items()]
        return [
            Life(number, m.replica.device.label, m.replica.log(), m.started_s, m.ready_s, m.left_s)
            for number, m in all_of_them
        ]

    # ---- in ----

    def _read(self, passage: _Passage) -> None:
        """The event loop has read the request: is there room, and who gets it?"""
        now_s = passage.in_s = self._env.now
        self.arrived += 1
        if not admits.room(self.in_flight, self._config.max_in_flight):
            self._answer(passage, "gateway_full")
            return
        self.in_flight += 1
        self._budget.note_request(now_s)
        self._watch(min(now_s + self._config.upstream_timeout_s, max(now_s, passage.leaves_s)), passage)
        choosable = self._choosable(())
        if choosable:
            self._forward(passage, choosable)
        else:
            in_rotation = any(self.members[number].health.in_rotation(now_s) for number in self._open)
            self._end(passage, "gateway_full" if in_rotation else "no_replica")

    def _choosable(self, tried: Sequence[int]) -> Mapping[int, int]:
        """Outstanding of each replica that may be chosen: in rotation, with room, and not tried before."""
        now_s, most = self._env.now, self._config.connections_per_replica
        if not tried and not self._full and not self._unready and now_s >= self._ejections_until_s:
            return self._open
        members = self.members
        return {
            number: count
            for number, count in self._open.items()
            if number not in tried and admits.room(count, most) and members[number].health.in_rotation(now_s)
        }

    def _forward(self, passage: _Passage, choosable: Mapping[int, int]) -> None:
        """Sends the request to the replica that the policy names."""
        now_s = self._env.now
        number = self._balancer.choose(passage.key, choosable, now_s, ticket_of(self._seed, passage.request))
        self._balancer.sent(number, now_s)
        member = self.members[number]
        passage.replica, passage.sent_s = number, now_s
        passage.tried = (*passage.tried, number)
        arrives_s, passage.arrived_s = member.host.arrival_s(member.sent, now_s), nan
        member.sent += 1
        self._count(number, +1)
        line, request, deadline_s = member.line, passage.request, self._left_s(passage, now_s)
        self._at(arrives_s, lambda: line.reach(request, deadline_s, member.outstanding))

    def _enter(self, replica: Replica, request: int, deadline_s: float) -> None:
        """The request is in the replica, which has decoded it."""
        self._passages[request].arrived_s = self._env.now
        replica.submit(request, deadline_s)

    def _left_s(self, passage: _Passage, now_s: float) -> float:
        """The deadline that goes with the request: what is left of the stage's own, and no more than is waited for."""
        deadline_s, timeout_s = self._stage.admission.deadline_s, self._config.upstream_timeout_s
        return timeout_s if deadline_s is None else max(0.001, min(timeout_s, deadline_s - (now_s - passage.in_s)))

    # ---- back ----

    def _replied(self, number: int, request: int, back_s: float, reason: str) -> None:
        """A replica's answer or refusal is at the gateway at `back_s`."""
        passage = self._passages[request]

        def is_there() -> None:
            if not passage.over:
                self._on_loop(lambda: self._back(passage, number, reason, sent=True))

        def comes() -> None:
            member = self.members.get(number)
            is_there() if member is None else member.line.back(is_there)

        self._at(back_s, comes)

    def _lost(self, number: int, request: int, reason: str, sent: bool) -> None:
        """There will be no answer from the replica."""
        passage = self._passages[request]
        self._on_loop(lambda: self._back(passage, number, reason, sent))

    def _back(self, passage: _Passage, number: int, reason: str, sent: bool) -> None:
        """The event loop has read it, unless nobody waits for it any more: try again, or tell the client."""
        if passage.over or passage.replica != number:
            return
        self._release(passage, ok=not reason)
        self._note_health(number, not speaks_against(reason))
        choosable = self._choosable(passage.tried) if reason and self._may_be_repeated(passage, reason, sent) else {}
        if choosable and self._budget.may_retry(self._env.now):
            self._forward(passage, choosable)
        else:
            self._end(passage, "upstream_lost" if reason == "connection" else reason)
        self._go_if_done(number)

    def _release(self, passage: _Passage, ok: bool) -> None:
        """The request is not at its replica any more."""
        now_s = self._env.now
        self._count(passage.replica, -1)
        self._balancer.done(passage.replica, now_s - passage.sent_s, ok, now_s)

    def _may_be_repeated(self, passage: _Passage, reason: str, sent: bool) -> bool:
        return len(passage.tried) <= self._config.retries_max and safe_to_retry(reason, sent)

    def _note_health(self, number: int, ok: bool) -> None:
        member, now_s = self.members[number], self._env.now
        member.health = member.health.after_request(ok, now_s)
        self._ejections_until_s = max(self._ejections_until_s, member.health.ejected_until_s)

    def _end(self, passage: _Passage, reason: str) -> None:
        self.in_flight -= 1
        self._answer(passage, reason)

    def _answer(self, passage: _Passage, reason: str) -> None:
        """The answer or refusal goes to the client now."""
        now_s = passage.out_s = self._env.now
        passage.reason, passage.over = reason, True
        if not reason:
            self.latencies.add(now_s - passage.in_s)
        passage.replied_s = now_s + self._to_clients.one_s(passage.request)
        if self._settled is not None:
            self._settled(passage.request, passage.replied_s, reason)

    def _count(self, number: int, change: int) -> None:
        """Keeps the outstanding of a replica, one that is leaving too."""
        member = self.members[number]
        member.count(change, self._env.now)
        if member.gone is None:
            self._open[number] = member.outstanding
        if admits.room(member.outstanding, self._config.connections_per_replica):
            self._full.discard(number)
        else:
            self._full.add(number)

    def _go_if_done(self, number: int) -> None:
        """A replica that is leaving is gone when it has nothing outstanding."""
        member = self.members.get(number)
        if member is not None and member.gone is not None and not member.outstanding:
            member.replica.close()
            member.left_s = self._env.now
            self.left.append((number, self.members.pop(number)))
            self._unready.discard(number)
            self._balancer.forget(number)
            member.gone.succeed()

    # ---- time ----

    def _on_loop(self, work: Callable[[], None]) -> None:
        """Has the event loop do this, after all that it was given before."""
        self._free_s = max(self._free_s, self._env.now) + self._visit_s
        self._at(self._free_s, work)

    def _at(self, time_s: float, work: Callable[[], object]) -> None:
        """Has this done then; what takes no time is done at once."""
        if time_s == self._env.now:
            work()
        else:
            At(self._env, time_s).add_callback(lambda _: work())

    def _watch(self, due_s: float, passage: _Passage) -> None:
        """Ends the wait for an answer at `due_s`."""
        heappush(self._due, (due_s, passage.request))
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
            due_s, request = self._due[0]
            passage = self._passages[request]
            if not passage.over and due_s > now_s:
                break
            heappop(self._due)
            if not passage.over:
                self._give_up(passage)
        self._set_alarm()

    def _give_up(self, passage: _Passage) -> None:
        """Nobody waits for this request any more: its client has gone, or the gateway has waited long enough.

        The replica does not hear of it, and does the work.
        """
        number = passage.replica
        self._release(passage, ok=False)
        if self._env.now >= passage.leaves_s:
            self.in_flight -= 1
            passage.reason, passage.over = "client_timeout", True
        else:
            self._note_health(number, ok=False)
            self._end(passage, "upstream_timeout")
        self._go_if_done(number)


def _less(quantiles_s: Sequence[float], share_s: float) -> tuple[float, ...]:
    """The quantiles without the share that is modelled by itself; never below 0."""
    return tuple(max(0.0, quantile_s - share_s) for quantile_s in quantiles_s)
