"""Between a gateway and one of its replicas: requests there, refusals and losses back. Sound until something breaks it.

    gateway ── reach ──▶ sound: the replica has it │ held: read when it goes on │ refusing: "connection" at once
            ◀── lost ──   silent: sent again and again, by TCP's rule, until somebody hears it; so are answers

No twin: a running replica has a kernel's sockets. Not modelled: connections that are closed for want of use, those of
before the run, and answers that are on their way when a process ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

from simpy import Environment, Event

from simulator.clock import At

State = Literal["sound", "held", "refusing", "silent"]
# Linux sends what is not acknowledged again after so long, and waits twice as long each time.
RESEND_S = 0.2


class Line:
    """The way to one replica, whose requests go to `submit(request, deadline_s)`.

    `lost(request, reason, sent)` is told of one that will have no answer: `reason` is one of stages.outcomes.REASONS,
    `sent` says whether any of it went out. `mended` fires when the line is sound again.
    """

    def __init__(
        self,
        env: Environment,
        submit: Callable[[int, float], object],
        lost: Callable[[int, str, bool], None],
        connect_timeout_s: float,
    ) -> None:
        self.state: State = "sound"
        self.mended: Event = env.event()
        self._env, self._submit, self._lost = env, submit, lost
        self._connect_timeout_s = connect_timeout_s
        self._connections = 0  # that were made: as many as were ever in use at once
        self._held: list[tuple[int, float]] = []
        self._unheard: list[tuple[float, Callable[[], object]]] = []  # since when, and what happens when it is heard

    def reach(self, request: int, deadline_s: float, outstanding: int) -> None:
        """A request is at the replica's end now; it is one of so many that are outstanding there."""
        if self.state == "sound":
            self._connections = max(self._connections, outstanding)
            self._submit(request, deadline_s)
        elif self.state == "held":  # the kernel takes it in; nobody reads it
            self._held.append((request, deadline_s))
        elif self.state == "refusing":
            self._lost(request, "connection", False)
        elif outstanding > self._connections:  # no answer to the first packet of a new connection
            at_s = self._env.now + self._connect_timeout_s
            At(self._env, at_s).add_callback(lambda _: self._lost(request, "upstream_timeout", False))
        else:
            self._unheard.append((self._env.now, lambda: self._submit(request, deadline_s)))

    def back(self, call: Callable[[], object]) -> None:
        """An answer is at the gateway's end: `call`, now or when it gets through."""
        if self.state == "silent":
            self._unheard.append((self._env.now, call))
        else:
            call()

    def breaks(self, state: State) -> None:
        """From now on the line is like that."""
        self.state = state
        if self.mended.triggered:
            self.mended = self._env.event()

    def mends(self) -> None:
        """It is sound again: what was held is read now, one after the other; what was not heard is soon sent again."""
        held, self._held = self._held, []
        unheard, self._unheard = self._unheard, []
        self.state = "sound"
        for since_s, call in unheard:
            At(self._env, resent_s(since_s, self._env.now)).add_callback(partial(_heard, call))
        for request, deadline_s in held:
            self._submit(request, deadline_s)
        if not self.mended.triggered:
            self.mended.succeed()


def resent_s(since_s: float, now_s: float) -> float:
    """When what was first sent at `since_s` is sent for the first time after `now_s`."""
    tries = math.floor(math.log2(1.0 + (now_s - since_s) / RESEND_S)) + 1
    return max(now_s, since_s + RESEND_S * (2.0**tries - 1.0))


def _heard(call: Callable[[], object], _: Event) -> None:
    call()
