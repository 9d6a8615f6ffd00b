"""Copies of requests at the challenger of a gateway in shadow mode: computed, counted, and given to nobody.

    request forwarded to its champion ─▶ copied? ─▶ room? ─▶ a task of its own ─▶ challenger ─▶ counted, kept
                                                      │ no: not made, and counted

The champion's request is on its way before the copy is, and never waits for it. A copy is tried once. Twin:
simulator/shadowing.py. What both arms share, the gateway's event loop and the machine, a copy takes its part of.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from reference_apps.passage import OUTCOMES, Request

if TYPE_CHECKING:
    from reference_apps.gateway import Gateway

__all__ = ["Shadow"]

ARM = "challenger"


class Shadow:
    """The copies of one gateway. Used and closed on its event loop."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._under_way: set[asyncio.Task[None]] = set()

    @property
    def outstanding(self) -> int:
        """Copies that are under way."""
        return len(self._under_way)

    def copy(self, request: Request) -> None:
        """The request is about to go to its champion: the challenger gets a copy, if it is to have one."""
        splitter = self._gateway.splitter
        assert splitter is not None
        if not splitter.copied(request):
            return
        if self.outstanding >= splitter.split.shadow_outstanding_max:
            self._gateway.metrics.copy_dropped()
            return
        copy = replace(request, arm=ARM, deadline_s=None, tried=[], at=None)
        task = asyncio.create_task(self._have_answered(copy))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def close(self) -> None:
        """Waits for no copy."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _have_answered(self, copy: Request) -> None:
        gateway = self._gateway
        content = record = b""
        candidates = gateway.candidates(copy)
        if not candidates:
            reason = "no_replica"
        else:
            try:
                async with asyncio.timeout(gateway.policy.upstream_timeout_s):
                    ended = await gateway.try_one(copy, candidates)
                reason = "upstream_lost" if ended.reason == "connection" else ended.reason
                if ended.reply is not None:
                    content, record = ended.reply.content, ended.reply.record
            except TimeoutError:
                reason = "upstream_timeout"
                if gateway.rotation is not None and copy.at is not None:
                    gateway.rotation.came_back(copy.at, reason, time.monotonic())
        took_s = time.monotonic() - copy.came_s
        gateway.metrics.copied(OUTCOMES.get(reason, "failed"), reason)
        assert gateway.splitter is not None
        gateway.splitter.ended(ARM, reason, took_s)
        if not reason and gateway.feedback is not None:
            gateway.feedback.note(copy.request_id, copy.user, ARM, content, record, took_s, given=False)
