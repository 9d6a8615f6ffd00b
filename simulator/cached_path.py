"""The way of a request through a simulated gateway with a cache: answered at once, waiting for another, or computed.

    look ─ hit ─▶ answered           the event loop is at it once, for `hit_busy_s`
      ├─ joined ─▶ waits ─▶ answered with its leader, or leads now      twice, half as long each time
      └─ miss ─▶ computed ─▶ over: kept and shared, or the next one leads

No twin of the same names: reference_apps/cached_path.py does it in the running gateway. Not modelled: a leader's answer
that says that the input is bad, which is that of all who wait.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from simpy import Environment

from simulator.cache import Cache, kept_bytes
from simulator.event_loop import EventLoop
from simulator.host import Hop, less
from simulator.passages import Passage
from stages.calibration import GatewayCosts
from stages.spec import Stage


class CachedPath:
    """The cache of one gateway and the way past it.

    `send_on` has a request computed, `end` answers one that waited. `to_clients` is the way of a kept answer, None
    where it was not measured.
    """

    def __init__(
        self,
        stage: Stage,
        env: Environment,
        loop: EventLoop,
        costs: GatewayCosts,
        seed: int,
        send_on: Callable[[Passage], None],
        end: Callable[[Passage, str], None],
    ) -> None:
        assert stage.cache is not None
        self._cache: Cache[Passage] = Cache(stage.cache)
        self._env, self._loop, self._send_on, self._end = env, loop, send_on, end
        self._kept_bytes = kept_bytes(stage.model)
        self._visit_s = costs.busy_s / 2
        self._hit_s = self._visit_s if costs.hit_busy_s is None else costs.hit_busy_s
        # It was measured from read to the client, and so with all the loop's time but the share of the way in.
        own_s = less(costs.hit_reply_quantiles_s, self._hit_s - self._visit_s)
        self.to_clients = Hop(own_s, seed, "gateway hit") if own_s else None

    def look(self, passage: Passage) -> float:
        """The event loop begins with the request. Gives how long it is at it, in seconds."""
        passage.cache = found = self._cache.look(passage.key, self._env.now, passage)
        return {"hit": self._hit_s, "joined": self._hit_s / 2, "miss": self._visit_s}[found]

    def over(self, passage: Passage) -> None:
        """The request has its end: one that led has its answer kept and shared, or hands the lead on."""
        if passage.cache != "miss":
            return
        if passage.reason:
            self._hand_on(passage.key)
            return
        for waiting in self._cache.store(passage.key, self._kept_bytes, self._env.now):
            if not waiting.over:  # who was refused, or waits no more, takes none of the loop's time
                self._loop.do(self._hit_s / 2, partial(self._share, waiting))

    def _share(self, waiting: Passage) -> None:
        """The leader's answer is this one's, too, if it is still waited for."""
        if not waiting.over:
            self._end(waiting, "")

    def _hand_on(self, key: int | str) -> None:
        """Whoever waited longest for the answer to `key` has it computed."""
        waiting = self._cache.failed(key)
        while waiting is not None and waiting.over:
            waiting = self._cache.failed(key)
        if waiting is not None:
            self._loop.do(self._hit_s / 2, partial(self._lead, waiting))

    def _lead(self, waiting: Passage) -> None:
        """This one leads now; if nobody waits for it any more, the next one does."""
        if waiting.over:
            self._hand_on(waiting.key)
        else:
            waiting.cache = "miss"
            self._send_on(waiting)
