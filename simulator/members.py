"""The replicas behind a simulated gateway: which there are, which of them may be sent a request, what each of them has.

    add ──▶ Member, in the Pool of its version of the model ──▶ choosable: in rotation, with room, not tried before
                │ ▲ count, release: outstanding                    ▲ probed, note_health: what a Health makes of it
    leave ──────┴─┴─ nothing outstanding ──▶ gone

No twin of the same name: reference_apps/rotation.py has the running gateway's. Not here: how a request is sent, and
what is done when it comes back with nothing (simulator/gateway.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from simpy import Environment, Event

from simulator.host import Host
from simulator.line import Line
from simulator.replica import Replica
from stages.arms import arms_of
from stages.policies import admission as admits
from stages.policies.balancing import Balancer
from stages.policies.health import Health
from stages.spec import Stage


@dataclass(slots=True, eq=False)
class Member:
    """One replica: how it is reached, whether it may be chosen, and what it has."""

    replica: Replica
    host: Host
    line: Line
    health: Health
    started_s: float
    ready_s: float
    arm: str = ""  # of the model whose version it runs
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


@dataclass(slots=True, eq=False)
class Pool:
    """The replicas that run one version of the model, and the policy that chooses among them."""

    balancer: Balancer
    open: dict[int, int] = field(default_factory=dict)  # outstanding of each that may be chosen, were none ejected


class Rotation:
    """The replicas of a stage's gateway by number, none as yet, and those that have left. `seed` is of the draws."""

    def __init__(self, stage: Stage, env: Environment, seed: int) -> None:
        config = stage.gateway
        assert config is not None
        self.members: dict[int, Member] = {}
        self.left: list[tuple[int, Member]] = []
        # One a version of the model: each has its replicas, and a balancer that knows no others.
        self.pools = {arm: Pool(Balancer(config.policy, seed, config.load_bound)) for arm in arms_of(stage)}
        self._env, self._connections_max = env, config.connections_per_replica
        self._ejections_until_s = -inf
        self._full: set[int] = set()  # those with all the requests that they may have
        self._unready: set[int] = set()  # those whose probes say so

    def add(self, number: int, member: Member) -> None:
        """One more, which has nothing yet."""
        self.members[number] = member
        self.pools[member.arm].open[number] = 0

    def leave(self, number: int) -> Event:
        """Sends the replica nothing more. The event fires when all that it has are back: it is closed and gone then."""
        member = self.members[number]
        if member.gone is None:
            member.gone = self._env.event()
            self.pools[member.arm].open.pop(number)
            self.go_if_done(number)
        return member.gone

    def in_rotation(self) -> list[int]:
        """The replicas that may be sent requests now, full ones too."""
        return [number for pool in self.pools.values() for number in self.of_pool(pool)]

    def of_pool(self, pool: Pool) -> list[int]:
        """Those of them that run one version of the model."""
        now_s = self._env.now
        return [number for number in pool.open if self.members[number].health.in_rotation(now_s)]

    def choosable(self, pool: Pool, tried: Sequence[int]) -> Mapping[int, int]:
        """Outstanding of each replica of the pool that may be chosen: in rotation, with room, and not tried before."""
        now_s, most = self._env.now, self._connections_max
        if not tried and not self._full and not self._unready and now_s >= self._ejections_until_s:
            return pool.open
        members = self.members
        return {
            number: count
            for number, count in pool.open.items()
            if number not in tried and admits.room(count, most) and members[number].health.in_rotation(now_s)
        }

    def count(self, number: int, change: int) -> None:
        """Keeps the outstanding of a replica, one that is leaving too."""
        member = self.members[number]
        member.count(change, self._env.now)
        if member.gone is None:
            self.pools[member.arm].open[number] = member.outstanding
        if admits.room(member.outstanding, self._connections_max):
            self._full.discard(number)
        else:
            self._full.add(number)

    def release(self, number: int, sent_s: float, ok: bool) -> None:
        """A request that was sent to the replica at `sent_s` is not there any more."""
        now_s = self._env.now
        self.count(number, -1)
        self.pools[self.members[number].arm].balancer.done(number, now_s - sent_s, ok, now_s)

    def probed(self, number: int, ok: bool) -> None:
        """A probe of the replica has ended."""
        member = self.members[number]
        member.health = member.health.after_probe(ok)
        (self._unready.discard if member.health.ready else self._unready.add)(number)

    def note_health(self, number: int, ok: bool) -> None:
        """A request to the replica has ended: with nothing that speaks against it, or otherwise."""
        member, now_s = self.members[number], self._env.now
        member.health = member.health.after_request(ok, now_s)
        self._ejections_until_s = max(self._ejections_until_s, member.health.ejected_until_s)

    def go_if_done(self, number: int) -> None:
        """A replica that is leaving is gone when it has nothing outstanding."""
        member = self.members.get(number)
        if member is not None and member.gone is not None and not member.outstanding:
            member.replica.close()
            member.left_s = self._env.now
            self.left.append((number, self.members.pop(number)))
            self._unready.discard(number)
            self.pools[member.arm].balancer.forget(number)
            member.gone.succeed()
