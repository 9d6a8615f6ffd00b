"""One replica that was started, or the gateway: what it is called, where it listens, what became of it."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from reference_apps.reading_logs import for_people

State = Literal["starting", "ready", "draining", "stopping", "died", "gone"]
GATEWAY = -1  # the number of the gateway, or of the jobs API in its place
CACHE = -2  # that of the server that keeps a cache, or a queue
FEEDBACK = "feedback"  # the folder of predictions and labels, in that of a run
BROKER_FILE = "broker.url"  # in the folder of a queue: the address of its server, where a launcher has started one


_TITLES = {
    "gateway": "the gateway",
    "jobs": "the jobs API",
    "cache": "the cache's server",
    "broker": "the queue's server",
}


class LaunchError(RuntimeError):
    """A process did not become what it should; the text says which, its exit status, its last lines and its log."""


class Running(Protocol):
    """A process, or a container that passes for one: the part of subprocess.Popen that is used."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...
    def kill(self) -> None: ...


class Life(NamedTuple):
    """When a replica lived, in seconds of the monotonic clock; None for what has not happened yet."""

    replica: int
    device: str
    started_s: float
    ready_s: float | None
    stopped_s: float | None


@dataclass(eq=False)
class Member:
    """One replica that was started, the gateway, or the server of its cache."""

    number: int
    name: str  # "replica-0", "gateway", "cache": of its files
    device: str
    process: Running
    log: Path
    started_s: float  # of the monotonic clock
    port: int = 0  # as seen from this machine; the one that it was told to take until it has said which it has
    url: str = ""
    inner_url: str = ""  # as the gateway reaches it
    state: State = "starting"
    launch_at_s: float = 0.0  # of one whose machine has still to come: when it will be there
    not_before_s: float = 0.0  # it is held out of rotation until then
    ready_s: float | None = None
    stopped_s: float | None = None
    restarts: int = 0  # how many processes had its number before
    since_generation: int = 0  # the replicas.json that first had it as it is now
    kill_at_s: float = 0.0  # of one that drains or stops

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def title(self) -> str:
        """How it is called in messages."""
        return _TITLES.get(self.name, self.name.replace("-", " "))

    def life(self) -> Life:
        return Life(self.number, self.device, self.started_s, self.ready_s, self.stopped_s)


class Nobody:
    """Stands for the process of a member that is only just being started."""

    pid = 0

    def poll(self) -> int | None:
        return 0

    def wait(self, timeout: float | None = None) -> int:
        del timeout
        return 0

    def send_signal(self, sig: int) -> None:
        del sig

    def kill(self) -> None: ...


class Awaited(Nobody):
    """Stands for the process of a member whose machine has not come yet."""

    def poll(self) -> int | None:
        return None


def drill_file(number: int) -> str:
    """The name of the file in which a replica is told what a drill wants of it."""
    return f"drill-{number}.json"


def write_atomically(path: Path, text: str) -> None:
    """Replaces the file's text so that a reader sees the old one or the new one, and never half of it."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def ending(returncode: int | None) -> str:
    if returncode is not None and returncode < 0:
        return f"signal {signal.Signals(-returncode).name}"
    return f"exit status {returncode}"


def last_lines(log: Path, count: int = 12) -> str:
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = for_people("\n".join(text.splitlines()[-count:])).splitlines()
    said = "\n".join(f"  | {line}" for line in lines) or "  | (it said nothing)"
    return f"Its last lines:\n{said}\nThe whole log: {log}"
