"""The table of a stage that says which answers its gateway keeps, and for how long.

    request ──▶ gateway ──▶ key ──▶ [cache] kept and fresh? ──▶ answer
                                       │ no
                                       └──▶ admission, balancing, a replica ──▶ answer, kept from now on

Which entry goes when there is no room is in stages/policies/caching.py. Rules are in stages/cache_rules.py. Not here: a
cache of the client's or of a network in between, and answers that are alike without being the same.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stages.table import Table

CachePolicy = Literal["lru", "lfu", "s3-fifo"]

# A Redis-compatible server evicts by its own maxmemory-policy, which has these.
REDIS_POLICIES: tuple[CachePolicy, ...] = ("lru", "lfu")


class Cache(Table):
    """The cache of the gateway. Its key has the model's version: another version never gives an old answer."""

    policy: CachePolicy = "lru"
    max_bytes: int = Field(67_108_864, ge=1024, le=1_099_511_627_776)  # keys, answers, and what keeping them costs
    ttl_s: float | None = Field(None, gt=0.0, le=31_536_000.0)  # from its storing; none: for ever
    single_flight: bool = True  # requests for what is being computed wait for that answer
    store: Literal["process", "redis"] = "process"
    url_env: str = Field("RUNG_CACHE_URL", pattern=r"^[A-Z][A-Z0-9_]*$")  # of redis: the variable with its URL
    timeout_s: float = Field(0.02, gt=0.0, le=10.0)  # of redis: slower is a miss
    down_s: float = Field(1.0, gt=0.0, le=3600.0)  # of redis: after a failure it is left alone for so long
