"""Copies of requests at the challenger of a simulated gateway in shadow mode: computed, counted, and given to nobody.

    request forwarded to its champion ─▶ copied? ─▶ room? ─▶ event loop ─▶ challenger ─▶ event loop ─▶ counted
                                                      │ no: not made

A copy takes the event loop for half of what a request takes it, because no client is read or told: a quarter of
`busy_s` out, a quarter back. That is all that champions see of it. Twin: reference_apps/shadowing.py. Not modelled: the
processor that champion and challenger share where both run on one machine.
"""

from __future__ import annotations

from functools import partial
from math import inf
from typing import TYPE_CHECKING

from simpy import Environment

from simulator.event_loop import EventLoop, at
from simulator.passages import Passage, Waits
from stages.policies.health import speaks_against

if TYPE_CHECKING:
    from simulator.gateway import Gateway

__all__ = ["Shadow"]

ARM = "challenger"


class Shadow:
    """The copies of one gateway. `visit_s` is how long its loop is at a request each way."""

    def __init__(self, gateway: Gateway, env: Environment, loop: EventLoop, visit_s: float) -> None:
        self.outstanding = 0
        self.dropped = 0  # copies that were not made: too many were under way
        self._gateway, self._env, self._loop, self._visit_s = gateway, env, loop, visit_s / 2
        self._copies: dict[int, Passage] = {}  # by the request's number
        self._waits = Waits(env, lambda copy: self._end(copy, "upstream_timeout"))

    def copy(self, passage: Passage) -> None:
        """The request is on its way to its champion: the challenger gets a copy, if it is to have one."""
        splitter, split = self._gateway.splitter, self._gateway.stage.split
        assert splitter is not None and split is not None
        if not splitter.copied(passage):
            return
        if self.outstanding >= split.shadow_outstanding_max:
            self.dropped += 1
            return
        self.outstanding += 1
        copy = Passage(passage.request, passage.key, inf, in_s=passage.in_s, user=passage.user, arm=ARM)
        self._loop.do(self._visit_s, partial(self._send, copy))

    def replied(self, number: int, request: int, back_s: float, reason: str) -> None:
        """A challenger's answer to a copy is at the gateway at `back_s`."""
        copy = self._copies.get(request)

        def is_there() -> None:
            if copy is not None and not copy.over:
                self._loop.do(self._visit_s, partial(self._end, copy, reason))

        def comes() -> None:
            member = self._gateway.members.get(number)
            is_there() if member is None else member.line.back(is_there)

        at(self._env, back_s, comes)

    def lost(self, number: int, request: int, reason: str, sent: bool) -> None:
        """There will be no answer to a copy, which is not made again."""
        del number, sent
        if (copy := self._copies.get(request)) is not None:
            self._end(copy, "upstream_lost" if reason == "connection" else reason)

    def _send(self, copy: Passage) -> None:
        gateway = self._gateway
        assert gateway.stage.gateway is not None
        pool, timeout_s = gateway.rotation.pools[ARM], gateway.stage.gateway.upstream_timeout_s
        choosable = gateway.rotation.choosable(pool, ())
        if not choosable:
            self._end(copy, "no_replica")
            return
        self._copies[copy.request] = copy
        self._waits.add(self._env.now + timeout_s, copy)
        gateway.to_replica(copy, pool, choosable, timeout_s)

    def _end(self, copy: Passage, reason: str) -> None:
        if copy.over:
            return
        gateway = self._gateway
        copy.over = True
        self.outstanding -= 1
        self._copies.pop(copy.request, None)
        if copy.replica >= 0:
            gateway.rotation.release(copy.replica, copy.sent_s, ok=not reason)
            gateway.rotation.note_health(copy.replica, not speaks_against(reason))
            gateway.rotation.go_if_done(copy.replica)
        assert gateway.splitter is not None
        gateway.splitter.ended(copy, ARM, reason)
