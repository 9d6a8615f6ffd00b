"""One address in front of the replicas, event by event: admission, who gets a request, what is tried again.

    submit ─▶ event loop ─▶ kept? ─▶ room? ─▶ Balancer ─ forward ─▶ Replica ─ back ─▶ event loop ─▶ again? ─▶ settled
              one server,    │ hit     │ gateway_full                                 the same one    │
              first come,    │         │ no_replica                     ◀── another replica, in the budget
              first served   └─▶ reply └─ joined: waits for its leader

Each request takes the event loop twice, half of `busy_s` each time, on its way in and on its way back; that is how a
gateway fills up. A kept answer takes it once, for `hit_busy_s`; one that waits for another's takes half of that twice.
The hops around it are those of low load, less that share. Twin: reference_apps/gateway.py; the decisions are in
stages/policies, and which replicas there are is in simulator/members.py. A replica that is there passes its probes;
simulator/probes.py asks where one may not.
Not modelled: the making of connections, bodies that come late, and keys and TLS beyond what they cost; and of nginx in
our gateway's place its own ring of keys, and what it takes for a replica's failure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import inf, nan

from simpy import Environment, Event

from simulator.cached_path import CachedPath
from simulator.device import Device
from simulator.event_loop import EventLoop, at
from simulator.host import Hop, Host, less
from simulator.line import Line
from simulator.members import Member, Pool, Rotation
from simulator.outcomes import GatewayLog, Life
from simulator.passages import Passage, Waits, log_of
from simulator.replica import Replica, Settled
from simulator.shadowing import Shadow
from simulator.splitter import Splitter
from stages.arms import arm_of
from stages.calibration import GatewayCosts, HostCosts
from stages.policies import admission as admits
from stages.policies.balancing import ticket_of
from stages.policies.crashing import item_position
from stages.policies.health import Health, speaks_against
from stages.policies.histogram import LatencyCounts
from stages.policies.retrying import RetryBudget, safe_to_retry
from stages.spec import Stage, of_replica

__all__ = ["Gateway"]


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
        self.rotation = Rotation(stage, env, seed)
        self.arrived = 0  # requests that it has read
        self.in_flight = 0
        self.latencies = LatencyCounts()  # of its answers, from read to answered
        # Of what a request is for: where its input stands among those that a crashing model may fail on.
        self.crash_position: Callable[[int | str], float] = item_position
        self.stage, self._env, self._seed = stage, env, seed
        self._config = config = stage.gateway
        self._settled = settled
        costs = costs or GatewayCosts(
            forward_quantiles_s=host.send_quantiles_s, back_quantiles_s=host.reply_quantiles_s
        )
        self._loop = EventLoop(env)
        self._visit_s = costs.busy_s / 2
        self.from_clients = Hop(less(costs.send_quantiles_s, self._visit_s), seed, "gateway send")
        self._to_clients = Hop(costs.reply_quantiles_s, seed, "gateway reply")
        self._host = host.model_copy(
            update={
                "send_quantiles_s": costs.forward_quantiles_s,
                "reply_quantiles_s": less(costs.back_quantiles_s, self._visit_s),
            }
        )
        self._budget = RetryBudget(config.budget_share)
        self._passages: list[Passage] = []
        self._waits = Waits(env, self._give_up)
        self.splitter = None if stage.split is None else Splitter(stage, env, seed)
        self._shadow = None
        if stage.split is not None and stage.split.mode == "shadow":
            self._shadow = Shadow(self, env, self._loop, self._visit_s)
        self._cached = None
        if stage.cache is not None:
            self._cached = CachedPath(stage, env, self._loop, costs, seed, self._send_on, self._end)

    @property
    def members(self) -> dict[int, Member]:
        """The replicas that are there, by number; those that are leaving too."""
        return self.rotation.members

    def join(self, number: int, device: Device, started_s: float | None = None) -> Replica:
        """A replica on that device is ready from now on; it was started at `started_s`. Gives back the replica."""
        now_s, config = self._env.now, self._config
        host = Host(self._host, self._seed, number)
        arm = arm_of(self.stage, number)
        settled, lost = partial(self._replied, number), partial(self._lost, number)
        shadow = self._shadow if arm == "challenger" else None
        if shadow is not None:  # what it has are copies
            settled, lost = partial(shadow.replied, number), partial(shadow.lost, number)
        own = of_replica(self.stage, number)
        replica = Replica(own, self._env, device, host, settled, self._crash_position)
        enter = replica.submit if shadow is not None else partial(self._enter, replica)
        line = Line(self._env, enter, lost, config.connect_timeout_s)
        # A new replica is in rotation from its first good probe on.
        health = Health(config.unhealthy_after, config.healthy_after, config.eject_after, config.eject_s)
        started_s = now_s if started_s is None else started_s
        self.rotation.add(number, Member(replica, host, line, health.after_probe(True), started_s, now_s, arm))
        return replica

    def leave(self, number: int) -> Event:
        """Sends the replica nothing more. The event fires when it is gone: see `Rotation.leave`."""
        return self.rotation.leave(number)

    def break_off(self, number: int) -> None:
        """Every connection to the replica ends now, and with it whatever was sent there and is not back."""
        for passage in [p for p in self._passages if p.replica == number and not p.over]:
            self._lost(number, passage.request, "upstream_lost", True)

    def submit(self, request: int, key: int | str = 0, leaves_s: float = inf, user: int | None = None) -> None:
        """Request number `request` is at the gateway now; numbers come in order, from 0. `key` is what it is for:
        sticky balancing goes by it, and so does the cache.

        Its client goes away at `leaves_s` if it has no answer by then. `user` is who sent it.
        """
        passage = Passage(request, key, leaves_s, user="" if user is None else str(user))
        self._passages.append(passage)
        seconds = self._visit_s if self._cached is None else partial(self._cached.look, passage)
        self._loop.do(seconds, partial(self._read, passage))

    def log(self) -> GatewayLog:
        """What became of the requests so far."""
        return log_of(self._passages)

    def lives(self) -> list[Life]:
        """What each replica did, those that left first."""
        all_of_them = [*self.rotation.left, *self.members.items()]
        return [
            Life(number, m.replica.device.label, m.replica.log(), m.started_s, m.ready_s, m.left_s)
            for number, m in all_of_them
        ]

    # ---- in ----

    def _read(self, passage: Passage) -> None:
        """The event loop has read the request: is it answered by now, is there room, and who gets it?"""
        now_s = passage.in_s = self._env.now
        self.arrived += 1
        if self.splitter is not None:
            passage.arm = self.splitter.arm_of(passage)
        if self._cached is not None and passage.cache == "hit":
            self._answer(passage, "", self._cached.to_clients or self._to_clients)
        elif not admits.room(self.in_flight, self._config.max_in_flight):
            self._answer(passage, "gateway_full", self._to_clients)
        else:
            self.in_flight += 1
            self._waits.add(min(now_s + self._config.upstream_timeout_s, max(now_s, passage.leaves_s)), passage)
            if passage.cache != "joined":
                self._send_on(passage)

    def _send_on(self, passage: Passage) -> None:
        """The request is computed, if anybody can be had for it."""
        self._budget.note_request(self._env.now)
        pool = self.rotation.pools[passage.arm]
        choosable = self.rotation.choosable(pool, ())
        if choosable:
            self._forward(passage, pool, choosable)
            if self._shadow is not None:
                self._shadow.copy(passage)
        else:
            self._end(passage, "gateway_full" if self.rotation.of_pool(pool) else "no_replica")

    def _forward(self, passage: Passage, pool: Pool, choosable: Mapping[int, int]) -> None:
        """Sends the request to the replica that the policy names."""
        passage.arrived_s = nan
        self.to_replica(passage, pool, choosable, self._left_s(passage, self._env.now))

    def to_replica(self, passage: Passage, pool: Pool, choosable: Mapping[int, int], deadline_s: float) -> None:
        """The same for a copy, which nobody waits for."""
        now_s = self._env.now
        number = pool.balancer.choose(passage.key, choosable, now_s, ticket_of(self._seed, passage.request))
        pool.balancer.sent(number, now_s)
        member = self.rotation.members[number]
        passage.replica, passage.sent_s = number, now_s
        passage.tried = (*passage.tried, number)
        arrives_s = member.host.arrival_s(member.sent, now_s)
        member.sent += 1
        self.rotation.count(number, +1)
        line, request = member.line, passage.request
        at(self._env, arrives_s, lambda: line.reach(request, deadline_s, member.outstanding))

    def _enter(self, replica: Replica, request: int, deadline_s: float) -> None:
        """The request is in the replica, which has decoded it."""
        self._passages[request].arrived_s = self._env.now
        replica.submit(request, deadline_s)

    def _crash_position(self, request: int) -> float:
        return self.crash_position(self._passages[request].key)

    def _left_s(self, passage: Passage, now_s: float) -> float:
        """The deadline that goes with the request: what is left of the stage's own, and no more than is waited for."""
        deadline_s, timeout_s = self.stage.admission.deadline_s, self._config.upstream_timeout_s
        return timeout_s if deadline_s is None else max(0.001, min(timeout_s, deadline_s - (now_s - passage.in_s)))

    # ---- back ----

    def _replied(self, number: int, request: int, back_s: float, reason: str) -> None:
        """A replica's answer or refusal is at the gateway at `back_s`."""
        passage = self._passages[request]

        def is_there() -> None:
            if not passage.over:
                self._loop.do(self._visit_s, lambda: self._back(passage, number, reason, sent=True))

        def comes() -> None:
            member = self.members.get(number)
            is_there() if member is None else member.line.back(is_there)

        at(self._env, back_s, comes)

    def _lost(self, number: int, request: int, reason: str, sent: bool) -> None:
        """There will be no answer from the replica."""
        passage = self._passages[request]
        self._loop.do(self._visit_s, lambda: self._back(passage, number, reason, sent))

    def _back(self, passage: Passage, number: int, reason: str, sent: bool) -> None:
        """The event loop has read it, unless nobody waits for it any more: try again, or tell the client."""
        if passage.over or passage.replica != number:
            return
        rotation = self.rotation
        rotation.release(number, passage.sent_s, ok=not reason)
        rotation.note_health(number, not speaks_against(reason))
        pool, again = rotation.pools[passage.arm], bool(reason) and self._may_be_repeated(passage, reason, sent)
        choosable = rotation.choosable(pool, passage.tried) if again else {}
        if choosable and self._budget.may_retry(self._env.now):
            self._forward(passage, pool, choosable)
        else:
            self._end(passage, "upstream_lost" if reason == "connection" else reason)
        rotation.go_if_done(number)

    def _may_be_repeated(self, passage: Passage, reason: str, sent: bool) -> bool:
        config = self._config
        return len(passage.tried) <= config.retries_max and safe_to_retry(reason, sent, config.by_nginx)

    def _end(self, passage: Passage, reason: str) -> None:
        self.in_flight -= 1
        self._answer(passage, reason, self._to_clients)

    def _answer(self, passage: Passage, reason: str, to_client: Hop) -> None:
        """The answer or refusal goes to the client now."""
        now_s = passage.out_s = self._env.now
        passage.reason, passage.over = reason, True
        if not reason:
            self.latencies.add(now_s - passage.in_s)
        passage.replied_s = now_s + to_client.one_s(passage.request)
        if self._settled is not None:
            self._settled(passage.request, passage.replied_s, reason)
        if self.splitter is not None:
            self.splitter.ended(passage, passage.arm, reason)
        if self._cached is not None:
            self._cached.over(passage)

    def _give_up(self, passage: Passage) -> None:
        """Nobody waits for this request any more: its client has gone, or the gateway has waited long enough.

        The replica does not hear of it, and does the work.
        """
        number, left = passage.replica, self._env.now >= passage.leaves_s
        if number >= 0:
            self.rotation.release(number, passage.sent_s, ok=False)
            if not left:
                self.rotation.note_health(number, ok=False)
        if not left:
            self._end(passage, "upstream_timeout")
        else:
            self.in_flight -= 1
            passage.reason, passage.over = "client_timeout", True
            if self._cached is not None:
                self._cached.over(passage)
        if number >= 0:
            self.rotation.go_if_done(number)
