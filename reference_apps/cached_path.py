"""The way of a request through a gateway with a cache: who is answered at once, who waits for another, who goes on.

    door: body ─▶ look ─ hit ─────────────────────────────▶ answer      takes no room: it is answered though all is full
                   └─ joined, miss ─▶ room? ─ joined ─▶ join ─▶ answer
                                       │ 503     └─ leads now ─▶ replica ─▶ answer ─▶ kept, shared, or the next leads
                                       └────────── miss ──────────┘

`max_in_flight` bounds both: bodies at the door, and requests that wait or are computed. What is kept is in
reference_apps/cache.py.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from reference_apps.asgi import Answer
from reference_apps.cache import Cache, Found, Kept
from reference_apps.cache_stores import open_store
from reference_apps.gateway_metrics import CacheMetrics
from reference_apps.passage import Request, Room, refusal

if TYPE_CHECKING:
    from reference_apps.gateway import Gateway


class CachedPath:
    """The cache of one gateway and the way past it. Raises StoreError where its answers cannot be kept."""

    def __init__(self, gateway: Gateway, environment: Mapping[str, str] = os.environ) -> None:
        assert gateway.stage.cache is not None
        self.door = Room(gateway.policy.max_in_flight)
        self._gateway = gateway
        self._metrics = metrics = CacheMetrics(gateway.metrics.registry)
        self._store = open_store(gateway.stage.cache, environment, metrics.evicted, metrics.store_failed)
        metrics.watch(self._store.holds)
        self._cache = Cache(gateway.stage, self._store)

    def open(self) -> None:
        """Called on the event loop that serves."""
        self._store.open()

    async def close(self) -> None:
        """Lets go of what it has."""
        await self._cache.close()

    def renew(self, epoch: int) -> None:
        """Begins empty, if `epoch` is another one than before."""
        self._cache.renew(epoch)

    async def look(self, request: Request) -> Found:
        """Whether the answer is there; `answer` has to follow at once."""
        sent = dict(request.headers)
        kind, shape = (sent.get(name, b"") for name in (b"content-type", b"x-rung-shape"))
        request.digest = self._cache.key_of(kind, shape, request.body)
        found = await self._cache.look(request.digest, request.came_s)
        request.cache = found.how
        return found

    async def answer(self, request: Request, found: Found) -> Answer:
        """The kept answer, that of who computes it already, or one of its own."""
        try:
            if found.kept is not None:
                return self._told(request, found.kept)
            if self._gateway.room.full:
                if found.how == "miss":
                    self._cache.failed(request.digest)
                return self._gateway.finished(request, "gateway_full", refusal(self._gateway.stage, "gateway_full"))
            with self._gateway.room:
                if found.how == "joined":
                    found = await self._cache.join(request.digest)
                    request.cache = found.how
                    if found.kept is not None:
                        return self._told(request, found.kept)
                return await self._lead(request)
        finally:
            self._metrics.looked_up(request.cache)

    async def _lead(self, request: Request) -> Answer:
        """Has it computed, for itself and for who joins meanwhile."""
        try:
            answer = await self._gateway.until_answered(request)
        except BaseException:  # its client has gone, or its time is over
            self._cache.failed(request.digest)
            raise
        if answer[0] == 200:
            self._cache.store(request.digest, Kept.of(answer), time.monotonic())
        elif 400 <= answer[0] < 500:
            self._cache.share(request.digest, Kept.of(answer))
        else:
            self._cache.failed(request.digest)
        return answer

    def _told(self, request: Request, kept: Kept) -> Answer:
        return self._gateway.finished(request, "" if kept.status == 200 else "bad_input", kept.answer())
