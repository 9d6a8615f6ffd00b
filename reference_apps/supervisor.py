"""The process that keeps a stage up: starts it, starts again what dies, does what it is told, and stops it all.

    rung up ──▶ supervisor (this module, a process of its own) ──▶ replicas, gateway
    rung restart ── a file in the run folder ──▶ supervisor
    rung down ── SIGTERM ──▶ supervisor

It looks at everything twenty times a second, and no look waits: while one replica is started again, the others are
looked after. What is up is written in `runs/up/<stage>.json` whenever it changes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from reference_apps import alerts, logs
from reference_apps.autoscaler import Autoscaler, ScaledFleet
from reference_apps.commands import Command, Inbox
from reference_apps.drills import drill
from reference_apps.launchers.launcher import Launcher
from reference_apps.launchers.member import LaunchError, Member, write_atomically
from reference_apps.launchers.process import ProcessLauncher
from reference_apps.queue_fleet import QueueFleet
from reference_apps.restarting import Steps, rolling
from reference_apps.tolerated import Tolerated
from reference_apps.up import Up, feedback_folder, queue_folder, runs_folder, split_folder, state_file
from reference_apps.webhook import WebhookError, address
from stages.arms import arm_of
from stages.policies.autoscaling import Fleet
from stages.spec import Stage, load_stage

LOOK_S = 0.05
# What dies is started again after 1, 2, 4 … s, and no later than this. After so many deaths in a row of its last
# replica, or of its gateway, a stage is given up.
RESTART_PAUSE_MAX_S = 32.0
RESTARTS_MAX = 5
HEALTHY_AFTER_S = 30.0

# What can be asked for: the launcher and the command's arguments to steps that end with the answer.
COMMANDS: dict[str, Callable[[Launcher, Mapping[str, Any]], Steps]] = {
    "restart": lambda launcher, _: rolling(launcher),
    "drill": drill,
}

log = logging.getLogger("rung.supervisor")


@dataclass
class _Death:
    """A member that died: how often in a row, and when it is to be started again (monotonic seconds)."""

    member: Member
    deaths: int
    due_s: float


class Supervisor:
    """Looks after the members of one launcher. Nothing here waits."""

    def __init__(self, launcher: Launcher, inbox: Inbox, autoscaler: Autoscaler | None = None) -> None:
        self.launcher = launcher
        self._autoscaler = autoscaler
        self._inbox = inbox
        self._dead: dict[int, _Death] = {}  # by the member's number
        self._commands: deque[Command] = deque()
        self._at_work: tuple[Command, Steps] | None = None

    def look(self) -> None:
        """Takes every step that is due. Raises LaunchError when the stage cannot be kept up."""
        for member in self.launcher.look():
            self._died(member)
        self._restart_what_is_due()
        self._commands.extend(self._inbox.take())
        self._work()
        # A rolling restart has one replica more for a while, which is not the autoscaler's to drain.
        if self._autoscaler is not None and self._at_work is None:
            self._autoscaler.look()

    def refuse_all(self) -> None:
        """Answers every command that is not done: the stage is being stopped."""
        if self._at_work is not None:
            self._commands.appendleft(self._at_work[0])
        for command in self._commands:
            command.refuse(f"{command.name}: was not finished, because the stage is being stopped.")
        self._commands.clear()
        self._at_work = None

    def _died(self, member: Member) -> None:
        now_s = time.monotonic()
        healthy = member.ready_s is not None and now_s - member.ready_s > HEALTHY_AFTER_S
        before = self._dead.get(member.number)
        deaths = 1 if healthy or before is None else before.deaths + 1
        log.warning(self.launcher.told(member))
        others = any(r.state == "ready" for r in self.launcher.replicas if r is not member)
        if deaths > RESTARTS_MAX and (member is self.launcher.gateway or not others):
            raise LaunchError(f"{member.title} died {deaths} times in a row: given up.")
        self._dead[member.number] = _Death(member, deaths, now_s + restart_pause_s(deaths))

    def _restart_what_is_due(self) -> None:
        for dead in self._dead.values():
            here = any(member is dead.member for member in self.launcher.members)
            if here and dead.member.state == "died" and time.monotonic() >= dead.due_s:
                say(f"{dead.member.title} is started again on port {dead.member.port}")
                try:
                    dead.member = self.launcher.restart(dead.member)
                except LaunchError as error:  # found dead at the next look, which counts one death more
                    log.warning("%s could not be started again: %s", dead.member.title, error)

    def _work(self) -> None:
        """The next step of the command at work; they are done one after the other."""
        if self._at_work is None and self._commands:
            command = self._commands.popleft()
            if command.name not in COMMANDS:
                command.refuse(f"{command.name}: is no command of this supervisor, which has {', '.join(COMMANDS)}.")
                return
            say(f"{command.name} begins")
            self._at_work = command, COMMANDS[command.name](self.launcher, command.arguments)
        if self._at_work is None:
            return
        command, steps = self._at_work
        try:
            next(steps)
            return
        except StopIteration as stop:
            command.done(stop.value)
            say(f"{command.name} is done")
        except LaunchError as error:
            command.refuse(str(error))
            say(f"{command.name} was not done: {error}")
        except Exception as error:  # whatever a command does wrong, the stage stays up
            log.exception("%s failed", command.name)
            command.refuse(f"{command.name}: failed ({error!r}). The supervisor's log has more.")
        self._at_work = None


def restart_pause_s(deaths: int) -> float:
    """Seconds until a member is started again that died so many times in a row."""
    return min(2.0 ** (deaths - 1), RESTART_PAUSE_MAX_S)


def supervise(folder: Path, stopping: threading.Event, on: str = "process") -> None:
    """Runs the stage of `folder` until `stopping` is set. Raises LaunchError when it cannot be kept up.

    `on` is what it runs in: "process" or "docker".

    Raises WebhookError when alerts are to be posted and there is no address.
    """
    stage = load_stage(folder / "stage.toml")
    logs.configure("supervisor", None, stage.logs.level)
    if stage.alerts.webhook is not None:
        address(stage.alerts.webhook)  # raises where there is nobody to tell
    state, written, writing = state_file(stage.name), "", Tolerated("the state file cannot be written", log)
    me, since = psutil.Process(), time.time()
    who = {"supervisor_pid": me.pid, "supervisor_created": me.create_time(), "since": since, "on": on}
    with _alone(stage.name), _made(on, stage, folder) as launcher, alerts.watching(launcher):
        autoscaler = Autoscaler(stage.scaling, fleet_of(launcher), folder) if stage.scaling is not None else None
        supervisor = Supervisor(launcher, Inbox(folder), autoscaler)
        try:
            while True:
                now = json.dumps(asdict(_described(stage, launcher, who)), indent=2)
                if now != written:
                    with writing:
                        write_atomically(state, now)
                        written = now
                if stopping.wait(LOOK_S):
                    return
                supervisor.look()
        finally:
            supervisor.refuse_all()
            state.unlink(missing_ok=True)


def _made(on: str, stage: Stage, folder: Path) -> Launcher:
    """The stage's launcher. What outlives `rung down` is not in the folder of the run: what a queue has accepted, what
    was answered, and that a challenger was stopped."""
    launcher = _launcher(on)(stage, folder)
    if stage.queue is not None:
        launcher.queue_folder = queue_folder(stage.name)
    if stage.feedback is not None:
        launcher.feedback_folder = feedback_folder(stage.name)
    if stage.split is not None:
        launcher.split_folder = split_folder(stage.name)
    return launcher


def fleet_of(launcher: Launcher) -> Fleet:
    """What an autoscaler moves: the replicas behind a gateway, or the workers of a queue."""
    return ScaledFleet(launcher) if launcher.stage.queue is None else QueueFleet(launcher)


def _launcher(on: str) -> type[Launcher]:
    if on == "docker":
        from reference_apps.launchers.docker import DockerLauncher  # its library is an extra

        return DockerLauncher
    return ProcessLauncher


def _described(stage: Stage, launcher: Launcher, who: dict[str, Any]) -> Up:
    gateway = launcher.gateway
    return Up(
        stage=stage.name,
        url=launcher.url,
        folder=str(launcher.folder),
        replicas=[_row(replica) | _arm(stage, replica) for replica in launcher.replicas],
        **who,
        gateway=None if gateway is None else _row(gateway),
        cache=None if launcher.cache is None else _row(launcher.cache),
        lives=[tuple(life) for life in launcher.lives()],
    )


def _row(member: Member) -> dict[str, str | int]:
    row: dict[str, str | int] = {"name": member.name, "pid": member.pid, "port": member.port, "url": member.url}
    row["state"] = member.state
    return row if member.number < 0 else {"replica": member.number, **row, "device": member.device}


def _arm(stage: Stage, member: Member) -> dict[str, str | int]:
    """Which version of the model it runs, where there are two."""
    return {} if stage.split is None else {"arm": arm_of(stage, member.number)}


@contextlib.contextmanager
def _alone(stage_name: str) -> Iterator[None]:
    """Holds the stage's lock, which ends with this process; two commands at once must not both start a stage."""
    path = runs_folder() / "up" / f"{stage_name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise LaunchError(
                f"{stage_name}: is being started or is up already, by another command. See `rung status`."
            ) from None
        yield


def say(text: str) -> None:
    """A line in the supervisor's log."""
    log.info(text)


def main(folder: Path, on: str = "process") -> int:
    """The supervisor's process: supervises until SIGTERM or SIGINT."""
    stopping = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        del number, frame
        stopping.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    logs.configure("supervisor", None, "info")
    try:
        supervise(folder, stopping, on)
    except (LaunchError, WebhookError) as error:
        log.error(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
