"""A process' event loop: one server with a queue, first come, first served.

    do(seconds, work) ─▶ queue ─▶ the loop begins with it: how long? ─▶ that long ─▶ work()

What takes the loop no time is done at once. No twin: a running process has asyncio's. Not modelled: the garbage
collector, and threads that hold the interpreter meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

from simpy import Environment, Event

from simulator.clock import At

Work = Callable[[], object]


class EventLoop:
    """The loop of one process, which has nothing to do as yet."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._waiting: deque[tuple[float | Callable[[], float], Work]] = deque()
        self._busy = False

    def do(self, seconds: float | Callable[[], float], work: Work) -> None:
        """Has `work` done after all that it was given before, and after the time that it takes itself.

        `seconds` may be a function, which is asked when the loop begins with it.
        """
        if self._busy:
            self._waiting.append((seconds, work))
            return
        self._begin(seconds, work)
        self._go_on()

    def _begin(self, seconds: float | Callable[[], float], work: Work) -> None:
        self._busy = True
        takes_s = seconds() if callable(seconds) else seconds
        if takes_s > 0:
            At(self._env, self._env.now + takes_s).add_callback(partial(self._done, work))
        else:
            work()
            self._busy = False

    def _go_on(self) -> None:
        while self._waiting and not self._busy:
            self._begin(*self._waiting.popleft())

    def _done(self, work: Work, _: Event) -> None:
        work()
        self._busy = False
        self._go_on()


def at(env: Environment, time_s: float, work: Work) -> None:
    """Has this done then; what is due now is done at once."""
    if time_s == env.now:
        work()
    else:
        At(env, time_s).add_callback(lambda _: work())
