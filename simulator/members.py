"""A replica as a simulated gateway knows it, and the replicas of one version of the model.

No twin of the same name: reference_apps/rotation.py has the running gateway's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from simpy import Event

from simulator.host import Host
from simulator.line import Line
from simulator.replica import Replica
from stages.policies.balancing import Balancer
from stages.policies.health import Health


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
