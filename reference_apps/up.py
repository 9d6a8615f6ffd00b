"""Keeps a stage up: starts its processes, starts again what dies, and stops them all when told to.

    rung up ──▶ supervisor (this module, a process of its own) ──▶ replicas
    rung down ── SIGTERM ──▶ supervisor

What is up is written in `runs/up/<stage>.json`, so that any later command finds it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import psutil

from reference_apps.launchers.process import LaunchError, ProcessLauncher, died, wait_until
from stages.spec import Stage, load_stage, stage_toml

# A replica that dies is started again after 1, 2, 4 … s; after so many deaths in a row the stage is given up.
RESTARTS_MAX = 5
HEALTHY_AFTER_S = 30.0


@dataclass(frozen=True)
class Up:
    """A stage that is up, as its state file tells it."""

    stage: str
    url: str
    folder: str
    supervisor_pid: int
    supervisor_created: float  # tells the process from a later one under the same pid
    replicas: list[dict[str, int]]
    since: float  # seconds since the epoch

    @property
    def alive(self) -> bool:
        """True while the supervisor that wrote this still runs."""
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.supervisor_pid)
            return process.create_time() == self.supervisor_created and process.status() != psutil.STATUS_ZOMBIE
        return False


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
            path.unlink(missing_ok=True)
    return found


def start(stage: Stage) -> Up:
    """Starts a supervisor in the background and returns when the stage serves. Raises LaunchError."""
    folder = fresh_folder(f"up-{stage.name}")
    (folder / "stage.toml").write_text(stage_toml(stage), encoding="utf-8")
    with (folder / "supervisor.log").open("ab") as log:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "reference_apps.up", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def serves() -> Up | None:
        up = _read_state(_state_file(stage.name))
        return up if up is not None and up.supervisor_pid == supervisor.pid else None

    timeout_s = stage.lifecycle.ready_timeout_s + 10.0
    try:
        wait_until(lambda: supervisor.poll() is not None or serves() is not None, timeout_s)
        up = serves()
        if up is None or supervisor.poll() is not None:
            raise LaunchError((folder / "supervisor.log").read_text(encoding="utf-8", errors="replace").strip())
    except BaseException:
        if supervisor.poll() is None:
            supervisor.terminate()
        raise
    return up


def stop(up: Up, timeout_s: float) -> bool:
    """Tells a stage's supervisor to stop and waits; kills it after the timeout. True when it ended by itself."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(up.supervisor_pid, signal.SIGTERM)
    if wait_until(lambda: not up.alive, timeout_s):
        return True
    with contextlib.suppress(ProcessLookupError):
        os.kill(up.supervisor_pid, signal.SIGKILL)  # its replicas notice the end of their pipe and drain
    _state_file(up.stage).unlink(missing_ok=True)
    return False


def supervise(folder: Path, stopping: threading.Event) -> None:
    """Runs the stage of `folder` until `stopping` is set. Raises LaunchError when it cannot be kept up."""
    stage = load_stage(folder / "stage.toml")
    state = _state_file(stage.name)
    with _alone(stage.name), ProcessLauncher(stage, folder) as launcher:
        try:
            since = time.time()
            _write_state(state, stage, launcher, since)
            _watch(launcher, stopping, lambda: _write_state(state, stage, launcher, since))
        finally:
            state.unlink(missing_ok=True)


def _watch(launcher: ProcessLauncher, stopping: threading.Event, restarted: Callable[[], None]) -> None:
    deaths = 0
    while not stopping.wait(0.2):
        for replica in list(launcher.replicas):
            if replica.process.poll() is None:
                continue
            healthy = replica.ready_s is not None and time.monotonic() - replica.ready_s > HEALTHY_AFTER_S
            deaths = 1 if healthy else deaths + 1
            _say(died(replica))
            if deaths > RESTARTS_MAX:
                raise LaunchError(f"replica {replica.number} died {deaths} times in a row: given up.")
            if stopping.wait(2.0 ** (deaths - 1)):
                return
            _say(f"replica {replica.number} is started again on port {replica.port}")
            try:
                launcher.restart(replica)
            except LaunchError as error:
                _say(str(error))
                launcher.replicas[replica.number].process.kill()  # if it hangs; the next round counts it as a death
            restarted()


def _write_state(path: Path, stage: Stage, launcher: ProcessLauncher, since: float) -> None:
    me = psutil.Process()
    up = Up(
        stage=stage.name,
        url=launcher.replicas[0].url,
        folder=str(launcher.folder),
        supervisor_pid=me.pid,
        supervisor_created=me.create_time(),
        replicas=[{"replica": r.number, "pid": r.process.pid, "port": r.port} for r in launcher.replicas],
        since=since,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(asdict(up), indent=2))
    fresh.replace(path)


def _read_state(path: Path) -> Up | None:
    """What a state file tells; None for one that is gone by now or tells nothing."""
    try:
        return Up(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


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


def _state_file(stage_name: str) -> Path:
    return runs_folder() / "up" / f"{stage_name}.json"


def _say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


def main(folder: Path) -> int:
    """The supervisor's process: supervises until SIGTERM or SIGINT."""
    stopping = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        del number, frame
        stopping.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    try:
        supervise(folder, stopping)
    except LaunchError as error:
        _say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
