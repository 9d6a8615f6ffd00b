"""Looks after a stack during a run as the supervisor of `rung up` does: replicas come, go and are started again.

tended(launcher) ── a thread ──▶ Supervisor.look, twenty times a second ──▶ launcher, autoscaler
       begin(at_s) ──▶ scaling-begin: the autoscaler's timetable begins with the schedule, and rests until then
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from reference_apps.autoscaler import BEGIN_FILE, Autoscaler
from reference_apps.commands import Inbox
from reference_apps.launchers.launcher import Launcher
from reference_apps.launchers.member import write_atomically
from reference_apps.supervisor import LOOK_S, Supervisor, fleet_of

# The beginning that an autoscaler waits for until it is told the true one.
FAR_OFF_S = 86_400.0
# How long one look may take at most: questions to processes that do not answer.
LAST_LOOK_S = 60.0


class Tending:
    """A thread that looks after a launcher. An error in it is raised by `check`, and at the end."""

    def __init__(self, launcher: Launcher) -> None:
        self._folder = launcher.folder
        self._stopping = threading.Event()
        self._error: Exception | None = None
        self.begin(time.monotonic() + FAR_OFF_S)
        scaling = launcher.stage.scaling
        autoscaler = None if scaling is None else Autoscaler(scaling, fleet_of(launcher), launcher.folder)
        self._supervisor = Supervisor(launcher, Inbox(launcher.folder), autoscaler)
        self._thread = threading.Thread(target=self._look, name="tending", daemon=True)
        self._thread.start()

    def begin(self, at_s: float) -> None:
        """The autoscaler's timetable begins at that moment of the monotonic clock."""
        write_atomically(self._folder / BEGIN_FILE, repr(at_s))

    def check(self) -> None:
        """Raises what went wrong: LaunchError when the stage cannot be kept up."""
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """Stops looking."""
        self._stopping.set()
        self._thread.join(LAST_LOOK_S)
        self._supervisor.refuse_all()  # and ends whatever a command is at

    def _look(self) -> None:
        try:
            while not self._stopping.wait(LOOK_S):
                self._supervisor.look()
        except Exception as error:
            self._error = error


def start_s_of(launcher: Launcher) -> float:
    """How long a replica takes to be ready while the others idle, in seconds: one more is started, and goes."""
    extra = launcher.add()
    launcher.settle()
    assert extra.ready_s is not None
    launcher.drain(extra.number)
    launcher.settle()
    return extra.ready_s - extra.started_s


@contextmanager
def tended(launcher: Launcher) -> Iterator[Tending]:
    """Looks after `launcher` until the end of the block. Raises LaunchError when the stage could not be kept up."""
    tending = Tending(launcher)
    try:
        yield tending
    finally:
        tending.end()
    tending.check()
