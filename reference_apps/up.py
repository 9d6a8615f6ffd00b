"""What is up, and how a command finds, starts and stops it. Each stage that is up has a supervisor of its own.

    rung up ── Popen ──▶ supervisor ── writes ──▶ runs/up/<stage>.json ──▶ rung status, load, restart, down

What the supervisor does is in reference_apps/supervisor.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from reference_apps.asking import wait_until
from reference_apps.launchers.member import LaunchError, Life
from reference_apps.launchers.members import STOP_GRACE_S
from reference_apps.reading_logs import complaints
from stages.spec import Stage, stage_toml


@dataclass(frozen=True)
class Up:
    """A stage that is up, as its state file tells it."""

    stage: str
    url: str
    folder: str
    supervisor_pid: int
    supervisor_created: float  # tells the process from a later one under the same pid
    replicas: list[dict[str, Any]]  # replica, pid, port, url, state, device
    since: float  # seconds since the epoch
    gateway: dict[str, Any] | None = None  # pid, port, url, state
    cache: dict[str, Any] | None = None  # the same, of the server of its cache, where it has one of its own
    on: str = "process"  # what its replicas are: processes, or containers ("docker")
    lives: list[Any] = field(default_factory=list)  # as launchers.member.Life, of the replicas that there are and were

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes of the stack, without the supervisor."""
        members = [*self.replicas, *(member for member in (self.gateway, self.cache) if member is not None)]
        return tuple(int(member["pid"]) for member in members)

    @property
    def alive(self) -> bool:
        """True while the supervisor that wrote this still runs."""
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.supervisor_pid)
            return process.create_time() == self.supervisor_created and process.status() != psutil.STATUS_ZOMBIE
        return False


class Stack:
    """What is up of one stage now and at any later time: its processes come and go."""

    def __init__(self, up: Up) -> None:
        self._last = up

    def pids(self) -> tuple[int, ...]:
        """The processes of the stack, its supervisor included."""
        up = self._now()
        return (up.supervisor_pid, *up.pids)

    def lives(self) -> list[Life]:
        """The replicas that there are and were."""
        return [Life(*life) for life in self._now().lives]

    def _now(self) -> Up:
        """What the supervisor says now; what it last said, once it is gone."""
        up = _read_state(state_file(self._last.stage))
        if up is not None and up.supervisor_pid == self._last.supervisor_pid:
            self._last = up
        return self._last


def runs_folder() -> Path:
    """Where runs leave what they made: $RUNG_RUNS, or `runs` in the current folder."""
    return Path(os.environ.get("RUNG_RUNS", "runs")).absolute()


def fresh_folder(name: str) -> Path:
    """A new folder under the runs folder, named by time and `name`."""
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
    for attempt in range(1000):
        folder = runs_folder() / (stem if attempt == 0 else f"{stem}-{attempt}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise OSError(f"{runs_folder()}: no free name for a run folder")


def list_up() -> list[Up]:
    """The stages that are up; what a crash left behind is cleared away."""
    found = []
    for path in sorted((runs_folder() / "up").glob("*.json")):
        up = _read_state(path)
        if up is not None and up.alive:
            found.append(up)
        else:
            if up is not None:
                _end_what_stands_still(up)
            path.unlink(missing_ok=True)
    return found


def _end_what_stands_still(up: Up) -> None:
    """Kills the processes of a stage whose supervisor is no more that a drill had stopped: they would never notice."""
    for pid in up.pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            ours = any(word.startswith(up.folder) for word in process.cmdline())  # the pid may be another's by now
            if ours and process.status() == psutil.STATUS_STOPPED:
                process.kill()


def start(stage: Stage, on: str = "process") -> Up:
    """Starts a supervisor in the background and returns when the stage serves. Raises LaunchError."""
    folder = fresh_folder(f"up-{stage.name}")
    (folder / "stage.toml").write_text(stage_toml(stage), encoding="utf-8")
    with (folder / "supervisor.log").open("ab") as log:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "reference_apps.supervisor", str(folder), on],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def serves() -> Up | None:
        up = _read_state(state_file(stage.name))
        return up if up is not None and up.supervisor_pid == supervisor.pid else None

    timeout_s = _start_limit_s(stage)
    try:
        wait_until(lambda: supervisor.poll() is not None or serves() is not None, timeout_s)
        up = serves()
        if up is None or supervisor.poll() is not None:
            silent = f"Its supervisor did not come to serve, and did not say why. Its log: {folder}/supervisor.log"
            raise LaunchError(complaints(folder / "supervisor.log") or silent)
    except BaseException:
        if supervisor.poll() is None:
            supervisor.terminate()
        raise
    return up


def _start_limit_s(stage: Stage) -> float:
    """Seconds that a start may take: its supervisor gives up, and stops it, before they are over, and says why."""
    lifecycle = stage.lifecycle
    broker_s = lifecycle.ready_timeout_s if stage.queue is not None else 0.0  # is waited for before all others
    settled_s = max(lifecycle.ready_timeout_s, lifecycle.drain_timeout_s) + 2 * STOP_GRACE_S
    return broker_s + settled_s + lifecycle.drain_timeout_s + 2 * STOP_GRACE_S + 10.0


def stop(up: Up, timeout_s: float) -> bool:
    """Tells a stage's supervisor to stop and waits; kills it after the timeout. True when it ended by itself."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(up.supervisor_pid, signal.SIGTERM)
    if wait_until(lambda: not up.alive, timeout_s):
        return True
    with contextlib.suppress(ProcessLookupError):
        os.kill(up.supervisor_pid, signal.SIGKILL)  # its replicas notice the end of their pipe and drain
    state_file(up.stage).unlink(missing_ok=True)
    return False


def queue_folder(stage_name: str) -> Path:
    """Where the queue of a stage that is started by its name is kept, from one start to the next."""
    return runs_folder() / "queues" / stage_name


def feedback_folder(stage_name: str) -> Path:
    """Where the predictions and labels of a stage that is started by its name are kept, from one start to the next."""
    return runs_folder() / "feedback" / stage_name


def split_folder(stage_name: str) -> Path:
    """Where it is kept that a guardrail has stopped a stage's challenger, from one start by its name to the next."""
    return runs_folder() / "splits" / stage_name


def state_file(stage_name: str) -> Path:
    """Where a stage that is up is written down."""
    return runs_folder() / "up" / f"{stage_name}.json"


def _read_state(path: Path) -> Up | None:
    """What a state file tells; None for one that is gone by now or tells nothing."""
    try:
        return Up(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None
