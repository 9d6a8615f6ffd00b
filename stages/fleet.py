"""The tables of a stage that say how many replicas there are, and what stands in front of them.

    clients ──▶ [gateway.edge] keys, TLS ──▶ [gateway] admission, balancing, health, retries ──▶ [fleet] replicas

How a policy decides is in stages/policies/; read by stages/spec.py alone.
"""

from __future__ import annotations

import ipaddress
import math
from typing import Literal

from pydantic import Field

from stages.table import Table

Policy = Literal[
    "round-robin",
    "random",
    "least-outstanding",
    "power-of-two",
    "sticky",
    "latency-weighted",
    "learned",
]

# What nginx's free edition does too; its sticky one has no bound on load.
NGINX_POLICIES: tuple[Policy, ...] = ("round-robin", "random", "least-outstanding", "power-of-two", "sticky")
# So many times its fair share no replica ever gets.
_NO_BOUND = 1e9


class Fleet(Table):
    """How many replicas, and which devices unequal ones emulate: replica i has `profiles[i % len(profiles)]`."""

    replicas: int = Field(1, ge=1, le=1000)
    profiles: tuple[str, ...] = Field((), strict=False, max_length=100)  # empty: all as in [device]


class Edge(Table):
    """Where the gateway listens and whom it believes. Keys are in the environment, under the name `api_keys_env`."""

    host: str = Field("127.0.0.1", min_length=1)
    port: int = Field(0, ge=0, le=65535)  # 0 takes a free one
    api_keys_env: str | None = Field(None, pattern=r"^[A-Z][A-Z0-9_]*$")
    tls_certificate: str | None = None
    tls_key: str | None = None


class Gateway(Table):
    """One address in front of the replicas: who gets the next request, who is healthy, what is tried again."""

    engine: Literal["rung", "nginx"] = "rung"
    policy: Policy = "least-outstanding"
    sticky_load_bound: float = Field(1.25, ge=1.0, le=100.0)  # of sticky: most of its fair share that a replica gets
    max_in_flight: int = Field(1024, ge=1, le=100_000)  # requests inside at once; more are refused with 503
    connections_per_replica: int = Field(512, ge=1, le=100_000)
    connect_timeout_s: float = Field(1.0, gt=0.0, le=60.0)
    upstream_timeout_s: float = Field(30.0, gt=0.0, le=3600.0)  # of a request that brings no deadline of its own
    retries_max: int = Field(1, ge=0, le=10)  # further tries of one request, where that is safe
    retry_budget_share: float = Field(0.2, ge=0.0, le=1.0)  # most retries, as a share of the last ten seconds' requests
    probe_interval_s: float = Field(1.0, gt=0.0, le=3600.0)
    probe_timeout_s: float = Field(0.5, gt=0.0, le=60.0)
    unhealthy_after: int = Field(2, ge=1, le=100)  # failed probes in a row
    healthy_after: int = Field(2, ge=1, le=100)  # good probes in a row
    eject_after: int = Field(3, ge=1, le=1000)  # failed requests in a row
    eject_s: float = Field(5.0, gt=0.0, le=3600.0)
    edge: Edge = Edge()

    @property
    def by_nginx(self) -> bool:
        """Whether nginx is the gateway, and not our own."""
        return self.engine == "nginx"

    @property
    def load_bound(self) -> float:
        """Most of its fair share that a replica of `sticky` gets; of nginx so much that it binds nobody."""
        return _NO_BOUND if self.by_nginx else self.sticky_load_bound

    @property
    def budget_share(self) -> float:
        """Most retries as a share of the requests; nginx has no such budget."""
        return math.inf if self.by_nginx else self.retry_budget_share


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on `host`; False for a name other than localhost."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
