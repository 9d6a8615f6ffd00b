"""What goes wrong in a simulated run, and when.

    Slowdown(replica, factor, from_s) ──▶ at from_s: replica.device.slow(factor)
    Failure(kind, replica, at_s, for_s) ──▶ at at_s: its line breaks, its device stands still ──▶ for_s later: mended

No twin of the same names: reference_apps/drills.py does to a running stack what is only told here. Not modelled: what a
process that starts takes from its neighbours, and a batch under way on a device that is not emulated and is held up:
here its time runs on.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from simpy import Environment, Event

from simulator.clock import At
from simulator.device import Device
from simulator.gateway import Gateway

__all__ = ["Failure", "Slowdown", "rolling", "slow_down", "strike"]

Kind = Literal["kill", "hang", "slow", "refuse", "cut"]


@dataclass(frozen=True)
class Slowdown:
    """From `from_s` on, each batch of the replica takes `factor` times as long; a batch under way does not."""

    replica: int
    factor: float
    from_s: float


@dataclass(frozen=True)
class Failure:
    """What befalls a replica at `at_s`. `for_s` later it is over; of a kill, another process has its place by then.

    `noticed_s` after a kill whoever looks after the fleet has seen it, and the gateway knows.
    """

    kind: Kind
    replica: int
    at_s: float
    for_s: float
    factor: float = 10.0  # of "slow"
    noticed_s: float = 0.0  # of "kill"


def slow_down(env: Environment, devices: Mapping[int, Device], slowdowns: Sequence[Slowdown]) -> None:
    """Has the clock of `env` slow those devices. Raises KeyError for a replica that there is not."""
    for each in slowdowns:
        device = devices[each.replica]

        def strike(_: Event, device: Device = device, factor: float = each.factor) -> None:
            device.slow(factor)

        At(env, each.from_s).add_callback(strike)


def strike(
    env: Environment, gateway: Gateway, failure: Failure, again: Callable[[float], None]
) -> Generator[Event, None, None]:
    """The process that has the failure befall its replica. `again(started_s)` has the killed one's successor join."""
    yield At(env, failure.at_s)
    member = gateway.members[failure.replica]
    line, device = member.line, member.replica.device
    match failure.kind:
        case "kill":
            line.breaks("refusing")
            device.hold(env.event())  # for good
            gateway.break_off(failure.replica)
            yield At(env, failure.at_s + failure.noticed_s)
            gateway.leave(failure.replica)
        case "hang":
            line.breaks("held")
            device.hold(line.mended)
        case "slow":
            device.slow(failure.factor)
        case "refuse":  # its connections break; what it has in its queue it works off for nobody
            line.breaks("refusing")
            gateway.break_off(failure.replica)
        case "cut":
            line.breaks("silent")
    yield At(env, failure.at_s + failure.for_s)
    if failure.kind == "kill":
        again(failure.at_s)
    elif failure.kind == "slow":
        device.slow(1.0)
    else:
        line.mends()


def rolling(
    env: Environment,
    gateway: Gateway,
    at_s: float,
    start_s: float,
    add: Callable[[int, float], int],
) -> Generator[Event, None, list[tuple[int, int]]]:
    """The process that replaces every replica from `at_s` on, each by one that takes `start_s` to be there.

    `add(like, started_s)` has a new one join, on the device of replica `like`, and gives its number. The process' value
    is old and new numbers.
    """
    yield At(env, at_s)
    replaced = []
    for old in sorted(gateway.members):
        started_s = env.now
        yield At(env, started_s + start_s)
        replaced.append((old, add(old, started_s)))
        yield gateway.leave(old)
    return replaced
