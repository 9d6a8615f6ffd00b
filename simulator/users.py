"""The users of a closed loop: each thinks, sends, waits for the reply or gives up, and thinks again.

    think ─▶ send ─▶ arrival_s: on its way ─▶ submit ─▶ … ─▶ settled: on its way back ─▶ think …
                         └── or `traffic.timeout_s` after it was sent ──────────────▶ think …

While traffic lasts; whoever waits when it ends waits on. No twin: loadtests/locustfile.py has Locust's users do it. Not
modelled: users who stay away after a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

import numpy as np
from simpy import Environment, Event

from simulator.clock import At
from simulator.draws import Floats
from stages import traffic
from stages.spec import Stage


class Users:
    """A closed loop: each user thinks, sends, waits for the reply or gives up, and thinks again while traffic lasts."""

    def __init__(self, stage: Stage, env: Environment, seed: int) -> None:
        self._traffic, self._env, self._seed = stage.traffic, env, seed
        self._scheduled_s: list[float] = []
        self.listed: list[int] = []  # what each request was for, in the order of sending
        self.senders: list[int] = []  # who sent each
        self._arrived_s: list[float] = []
        self._waiting: dict[int, Event] = {}  # request → the user who waits for it

    def begin(self, arrival_s: Callable[[int, float], float], submit: Callable[[int, int], object]) -> None:
        """Sends the users off: `arrival_s(request, sent_s)` says when a request is there, `submit(request, item)`
        has it come."""
        self._arrival_s, self._submit = arrival_s, submit
        for user in range(self._traffic.closed_users):
            self._env.process(self._user(user))

    @property
    def scheduled_s(self) -> Floats:
        """When each request was sent, in that order."""
        return np.array(self._scheduled_s, dtype=np.float64)

    @property
    def items(self) -> np.ndarray:
        """What each was for."""
        return np.array(self.listed, dtype=np.int64)

    @property
    def arrived_s(self) -> Floats:
        """When each was there."""
        return np.array(self._arrived_s, dtype=np.float64)

    def leaves_s(self, number: int) -> float:
        """When the user who sent it gives up."""
        return self._scheduled_s[number] + self._traffic.timeout_s

    def settled(self, number: int, replied_s: float, reason: str) -> None:
        """The reply to a request will be back at `replied_s`, whatever it says."""
        del reason
        self._at(replied_s, lambda: self._back(number))

    def _user(self, user: int) -> Generator[Event, None, None]:
        env = self._env
        for think_s, item in traffic.user_draws(self._traffic, user, seed=self._seed):
            send_s = env.now + think_s
            if send_s >= self._traffic.duration_s:
                return
            yield At(env, send_s)
            yield self._sent(user, item)

    def _sent(self, user: int, item: int) -> Event:
        """Sends a request now; the event is the user's return to thinking."""
        env, number = self._env, len(self._scheduled_s)
        arrived_s = self._arrival_s(number, env.now)
        self._scheduled_s.append(env.now)
        self.listed.append(item)
        self.senders.append(user)
        self._arrived_s.append(arrived_s)
        self._waiting[number] = back = env.event()
        self._at(arrived_s, lambda: self._submit(number, item))
        self._at(self.leaves_s(number), lambda: self._back(number))
        return back

    def _back(self, number: int) -> None:
        """The reply, or the end of the user's patience: the first of the two counts."""
        back = self._waiting.pop(number, None)
        if back is not None:
            back.succeed()

    def _at(self, time_s: float, call: Callable[[], object]) -> None:
        At(self._env, time_s).add_callback(lambda _: call())
