"""Replicas as processes of this machine, each on a free port, each with a log, none of which outlives its launcher.

ProcessLauncher ── Popen ──▶ python -m reference_apps.serve
                ══ stdin pipe ══▶  ends with the launcher, whatever ended it: the replica drains and goes
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from stages.spec import Stage, stage_toml

POLL_S = 0.02


class LaunchError(RuntimeError):
    """A process did not become what it should; the text says which, its exit status, its last lines and its log."""


@dataclass
class ReplicaProcess:
    """One replica that was started."""

    number: int
    process: subprocess.Popen[bytes]
    log: Path
    announcement: Path
    started_s: float  # of the monotonic clock
    ready_s: float | None = None
    port: int = 0  # until it has announced itself, the one that it was told to take

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class ProcessLauncher:
    """Starts the replicas of a stage and stops them. A context manager: leaving it leaves nothing behind."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.stage = stage
        self.folder = folder
        self.replicas: list[ReplicaProcess] = []
        folder.mkdir(parents=True, exist_ok=True)
        self._stage_file = folder / "stage.toml"
        self._stage_file.write_text(stage_toml(stage), encoding="utf-8")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts every replica and returns when each would serve. Raises LaunchError, with nothing left running."""
        try:
            self.replicas = [self._spawn(0)]
            for replica in self.replicas:
                self._await_ready(replica)
        except BaseException:
            self.stop()
            raise

    def restart(self, replica: ReplicaProcess) -> None:
        """Starts a replica that has ended once more, on the port that it had."""
        if replica.process.stdin is not None:
            replica.process.stdin.close()
        fresh = self._spawn(replica.number, replica.port)
        self.replicas[self.replicas.index(replica)] = fresh
        self._await_ready(fresh)

    def stop(self) -> None:
        """Asks every replica to drain and waits for it; one that does not end in its time is killed."""
        for replica in self.replicas:
            _signal(replica.process, signal.SIGTERM)
        deadline_s = time.monotonic() + self.stage.lifecycle.drain_timeout_s + 5.0
        for replica in self.replicas:
            try:
                replica.process.wait(max(0.1, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                replica.process.kill()
                replica.process.wait(5.0)
            if replica.process.stdin is not None:
                replica.process.stdin.close()
        self.replicas = []

    def _spawn(self, number: int, port: int = 0) -> ReplicaProcess:
        log = self.folder / f"replica-{number}.log"
        announcement = self.folder / f"replica-{number}.json"
        announcement.unlink(missing_ok=True)
        command = [sys.executable, "-m", "reference_apps.serve", "--stage", str(self._stage_file)]
        command += [
            "--replica",
            str(number),
            "--port",
            str(port),
            "--announce",
            str(announcement),
            "--guarded",
        ]
        threads = str(self.stage.device.cpu_threads)
        environment = os.environ | {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "PYTHONUNBUFFERED": "1",
        }
        started_s = time.monotonic()
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C in the terminal is the launcher's to hear, which then drains
            )
        return ReplicaProcess(number, process, log, announcement, started_s, port=port)

    def _await_ready(self, replica: ReplicaProcess) -> None:
        timeout_s = self.stage.lifecycle.ready_timeout_s
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            if replica.process.poll() is not None:
                raise LaunchError(died(replica))
            if replica.announcement.exists():
                replica.port = int(json.loads(replica.announcement.read_text())["port"])
                if probe(f"{replica.url}/readyz"):
                    replica.ready_s = time.monotonic()
                    return
            time.sleep(POLL_S)
        raise LaunchError(
            f"replica {replica.number} was not ready after {timeout_s:g} s (lifecycle.ready_timeout_s).\n"
            f"{_last_lines(replica.log)}"
        )


def died(replica: ReplicaProcess) -> str:
    """What to tell about a replica that has ended: which, how, its last lines, and where the whole log is."""
    return (
        f"replica {replica.number} (pid {replica.process.pid}) ended with {_status(replica.process.returncode)}.\n"
        f"{_last_lines(replica.log)}"
    )


def probe(url: str, timeout_s: float = 1.0) -> bool:
    """True when `url` answers 200 within the timeout."""
    try:
        with open_url(url, timeout_s) as response:
            return bool(response.status == 200)
    except (http.client.HTTPException, OSError):
        return False


def open_url(url: str, timeout_s: float) -> http.client.HTTPResponse:
    """The answer to GET `url`, asked directly: a proxy out of the environment does not know this machine's ports.

    Raises OSError when there is none, and http.client.HTTPException when it is no HTTP.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    response: http.client.HTTPResponse = opener.open(url, timeout=timeout_s)
    return response


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Polls until `condition` holds; False when it does not within the timeout."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(POLL_S)
    return True


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)


def _status(returncode: int | None) -> str:
    if returncode is not None and returncode < 0:
        return f"signal {signal.Signals(-returncode).name}"
    return f"exit status {returncode}"


def _last_lines(log: Path, count: int = 12) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:] if log.exists() else []
    said = "\n".join(f"  | {line}" for line in lines) or "  | (it said nothing)"
    return f"Its last lines:\n{said}\nThe whole log: {log}"
