"""A simulated gateway's questions to its replicas: are you there?

    every probe_interval_s ─▶ line sound: yes, at once │ refusing: no, at once │ held, silent: no, at the timeout
                                                       └──▶ Rotation.probed

No twin of its own: reference_apps/rotation.py asks for the running gateway. Not modelled: what a probe costs, and how
long an answer takes that comes in time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

from simpy import Environment, Event

from simulator.clock import At
from simulator.gateway import Gateway
from simulator.line import Line
from stages.fleet import Gateway as Config


def keep_probing(
    env: Environment, gateway: Gateway, config: Config, number: int, first_s: float, over: Callable[[], bool]
) -> Generator[Event, None, None]:
    """The process that probes one replica from `first_s` on until it has left, or `over` says that all is."""
    member, due_s = gateway.members[number], first_s
    while True:
        yield At(env, due_s)
        if over() or gateway.members.get(number) is not member:
            return
        ok = yield from _asked(env, member.line, config.probe_timeout_s)
        if gateway.members.get(number) is not member:
            return
        gateway.rotation.probed(number, ok)
        due_s = max(due_s + config.probe_interval_s, env.now)


def _asked(env: Environment, line: Line, timeout_s: float) -> Generator[Event, None, bool]:
    """Whether it says in time that it is ready."""
    state = line.state
    if state == "held":
        yield line.mended | env.timeout(timeout_s)
        return line.mended.processed
    if state == "silent":
        yield env.timeout(timeout_s)
    return state == "sound"
