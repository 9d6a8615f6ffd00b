"""What a supervisor does to a replica that runs, to see what becomes of it. It ends by itself, whatever happens.

    rung drill ── a file in the run folder ──▶ supervisor ──▶ kill    SIGKILL; the supervisor starts another process
                                                          ──▶ hang    SIGSTOP … SIGCONT
                                                          ──▶ slow    ┐ a file that the replica looks at: it slows its
                                                          ──▶ refuse  ┘ device, it closes its door
                                                          ──▶ cut     off its network (containers only)

No server of the stage knows of any of this: the only way in is the folder reference_apps/commands.py, which belongs to
the user who started the stage. A process that was stopped would not notice that its supervisor has died; a guard, a
process of its own at the other end of a pipe, lets it go on then. No twin of the same names: simulator/drills.py.
"""

from __future__ import annotations

import contextlib
import math
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Mapping
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from reference_apps.launchers.launcher import Launcher
from reference_apps.launchers.member import LaunchError
from reference_apps.obeying import FACTOR_MAX, LENGTH_MAX_S, Told, write
from reference_apps.restarting import Steps

Failure = Literal["kill", "hang", "slow", "refuse", "cut"]
FAILURES: tuple[str, ...] = get_args(Failure)
AHEAD_MAX_S = 3600.0  # how long before it a failure may be asked for
TELL_S = 0.2  # before it begins, a replica has to be told of it: it looks every 50 ms
# The last of a wait is slept away, so that a failure is not late by a look of the supervisor's.
NEAR_S = 0.06

# Waits for the end of its stdin, which comes with the end of its supervisor, and lets the process go on.
_GUARD = "import os, signal, sys; sys.stdin.buffer.read(); os.kill(int(sys.argv[1]), signal.SIGCONT)"


@runtime_checkable
class CutsOff(Protocol):
    """A launcher whose replicas are on a network that they can be taken off."""

    def cut_off(self, number: int) -> None: ...
    def rejoin(self, number: int) -> None: ...


def drill(launcher: Launcher, arguments: Mapping[str, Any]) -> Steps:
    """One failure: `failure`, `replica`, `at_s` (monotonic), `for_s`, and the `factor` of a slow one.

    Gives `struck_s` and `ended_s`, on the monotonic clock. Raises LaunchError for what makes no sense, and where the
    replica is not ready when its time has come.
    """
    failure, number, at_s, for_s, factor = _checked(launcher, arguments)
    if failure in ("slow", "refuse"):
        yield from until_s(at_s - TELL_S)
    else:
        yield from until_s(at_s)
    replica = launcher.replica(number)
    if replica.state != "ready":
        raise LaunchError(f"{replica.title}: must be ready to be drilled, and is {replica.state}. Wait until it is.")
    struck_s = max(at_s, time.monotonic())
    if failure == "kill":
        launcher.kill(number)
        return {"struck_s": struck_s, "ended_s": struck_s}
    with _struck(launcher, failure, number, Told(failure, struck_s, struck_s + for_s, factor)):
        yield from until_s(struck_s + for_s)
    return {"struck_s": struck_s, "ended_s": struck_s + for_s}


def until_s(at_s: float) -> Generator[None]:
    """Yields until that moment of the monotonic clock, and is there neither early nor a look late."""
    while at_s - time.monotonic() > NEAR_S:
        yield
    time.sleep(max(0.0, at_s - time.monotonic()))


def _checked(launcher: Launcher, arguments: Mapping[str, Any]) -> tuple[Failure, int, float, float, float]:
    """The arguments, as they must be."""
    try:
        failure, number = arguments["failure"], int(arguments["replica"])
        at_s, for_s, factor = (float(arguments[name]) for name in ("at_s", "for_s", "factor"))
    except (KeyError, TypeError, ValueError) as error:
        raise LaunchError(f"drill: needs failure, replica, at_s, for_s and factor, got {dict(arguments)}.") from error
    if failure not in FAILURES:
        raise LaunchError(f"drill: must be one of {', '.join(FAILURES)}, got {failure}.")
    if failure == "cut" and not isinstance(launcher, CutsOff):
        raise LaunchError(
            "drill: cut takes a replica off its network, and processes share this machine's. Use --on docker, or "
            "drill refuse or hang."
        )
    if not any(replica.number == number for replica in launcher.replicas):
        there = ", ".join(str(replica.number) for replica in launcher.replicas)
        raise LaunchError(f"--replica: must be one that runs ({there}), got {number}.")
    ahead_s = at_s - time.monotonic()
    if not (math.isfinite(ahead_s) and ahead_s <= AHEAD_MAX_S and 0.0 < for_s <= LENGTH_MAX_S):
        raise LaunchError(
            f"drill: must begin within {AHEAD_MAX_S:g} s and last at most {LENGTH_MAX_S:g} s, got {ahead_s:.3g} s and "
            f"{for_s:g} s."
        )
    if not 1.0 <= factor <= FACTOR_MAX:
        raise LaunchError(f"--factor: must be 1 to {FACTOR_MAX:g}, got {factor:g}.")
    return failure, number, at_s, for_s, factor


@contextlib.contextmanager
def _struck(launcher: Launcher, failure: Failure, number: int, told: Told) -> Iterator[None]:
    """The replica has that failure, until this is left."""
    if failure in ("slow", "refuse"):
        launcher.tell(number, write(told))
        try:
            yield
        finally:
            launcher.tell(number, "")
    elif failure == "hang":
        with _guarded(launcher, number):
            launcher.pause(number)
            try:
                yield
            finally:
                with contextlib.suppress(KeyError):  # the replica is no more
                    launcher.resume(number)
    elif isinstance(launcher, CutsOff):
        launcher.cut_off(number)
        try:
            yield
        finally:
            with contextlib.suppress(KeyError):
                launcher.rejoin(number)


@contextlib.contextmanager
def _guarded(launcher: Launcher, number: int) -> Iterator[None]:
    """Whatever becomes of this process meanwhile, the replica's goes on; containers are removed by the next command."""
    process = launcher.replica(number).process
    if not isinstance(process, subprocess.Popen):
        yield
        return
    command = [sys.executable, "-I", "-S", "-c", _GUARD, str(process.pid)]
    # A session of its own: Ctrl-C in the terminal is not for it.
    guard = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        assert guard.stdin is not None
        guard.stdin.close()
        try:
            guard.wait(5.0)
        except subprocess.TimeoutExpired:
            guard.kill()
            guard.wait()
