"""Is nothing lost? Jobs through a queued stage whose parts are killed, whose disk fills up, and whose clock is set.

    clients ── POST /jobs under a key, again until it is accepted ──▶ [ jobs API, broker, workers ]
                           kill -9, a full disk, an hour forth and back ──▶ ╵
    at the end: a job a key, a result or a dead letter a job, and nothing in the queue

`python -m loadtests.chaos`, or `make chaos-queue`. The stack lies on a disk of its own, in memory, in a mount namespace
that goes with it; the clock is that of its processes alone (libfaketime). Not tried: a power cut, which a disk in
memory cannot survive, and machines that lose each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import httpx
import psutil
import typer

from reference_apps.job_store import JobStore, open_store, server_of
from reference_apps.launchers.launcher import Launcher
from reference_apps.launchers.member import CACHE, GATEWAY, LaunchError, Member
from reference_apps.launchers.process import ProcessLauncher
from reference_apps.models import load_inputs
from reference_apps.results import Result
from stages.spec import Stage, load_stage
from stages.terminal import Exit, err, fail, out, print_json

DISK_BYTES = 1_073_741_824
CLIENTS = 24
RETRY_S, REQUEST_TIMEOUT_S = 0.2, 10.0
LOOK_S = 0.05
FULL_FOR_S = 6.0
FULL_LONGER_S = 20.0  # at most, of a Redis server: until somebody was refused
# When, as a share of the jobs that were accepted.
FULL_AT, FORTH_AT, BACK_AT = 0.35, 0.55, 0.75
SETTLE_TIMEOUT_S = 600.0
HOUSEKEEPING_S = 3.0  # dead letters get their results within a second
INSIDE = "RUNG_CHAOS_DISK"
# What the stack's processes import first: their time of day is set, and that of the servers that they start. Whatever
# they would import first without it, they do afterwards.
OTHER_TIME = """
import importlib.machinery, importlib.util, os, sys, time
_file, _time_ns = os.environ["RUNG_CHAOS_CLOCK"], time.time_ns
def time_ns():
    with open(_file) as setting:
        return _time_ns() + int(setting.read()) * 1_000_000_000
time.time_ns, time.time = time_ns, lambda: time_ns() / 1e9
os.environ |= {"LD_PRELOAD": os.environ["RUNG_CHAOS_LIBRARY"], "FAKETIME_TIMESTAMP_FILE": _file,
               "FAKETIME_CACHE_DURATION": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
_elsewhere = [folder for folder in sys.path if folder != os.path.dirname(__file__)]
_next = importlib.machinery.PathFinder.find_spec("sitecustomize", _elsewhere)
if _next is not None:
    _next.loader.exec_module(importlib.util.module_from_spec(_next))
"""


@dataclass
class Tally:
    """What was done to the stack, and what became of the jobs."""

    broker: str
    jobs: int
    kills: dict[str, int] = field(default_factory=dict)  # by whom: worker, jobs API, broker
    restarts: int = 0
    refused: dict[str, int] = field(default_factory=dict)  # by status, or the error of the connection
    refused_while_full: int = 0
    clock_steps: list[str] = field(default_factory=list)
    accepted: int = 0
    keys_with_two_jobs: int = 0
    answered: int = 0
    dead: int = 0
    lost: int = 0  # accepted, and neither answered nor dead
    unasked: int = 0  # results of jobs that nobody was told of
    delivered_again: int = 0
    seconds: float = 0.0

    @property
    def sound(self) -> bool:
        """Whether nothing was lost, done under two ids, or left over."""
        whole = self.accepted == self.jobs == self.answered + self.dead
        return whole and not (self.lost or self.unasked or self.keys_with_two_jobs)


class Clients:
    """Puts every job until it is accepted, in a thread of its own. `accepted`: key → job ids that were told."""

    def __init__(self, stage: Stage, url: str, jobs: int) -> None:
        self.accepted: dict[int, set[str]] = {}
        self.refused: Counter[str] = Counter()
        self._url, self._keys = url, iter(range(jobs))
        self._bodies = [x.astype("<f4").tobytes() for x in load_inputs(stage.model).examples(64, seed=5)]
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all()), daemon=True)

    def __enter__(self) -> Clients:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(REQUEST_TIMEOUT_S)

    def done(self) -> bool:
        """Whether every job was accepted. Raises RuntimeError when the clients have ended before."""
        alive = self._thread.is_alive()
        if not alive and next(self._keys, None) is not None:
            raise RuntimeError("the clients ended before their jobs were accepted")
        return not alive

    async def _all(self) -> None:
        limits = httpx.Limits(max_connections=CLIENTS, max_keepalive_connections=CLIENTS)
        async with httpx.AsyncClient(
            base_url=self._url, timeout=REQUEST_TIMEOUT_S, limits=limits, trust_env=False
        ) as client:
            await asyncio.gather(*(self._one(client) for _ in range(CLIENTS)))

    async def _one(self, client: httpx.AsyncClient) -> None:
        for key in self._keys:
            headers = {
                "content-type": "application/octet-stream",
                "x-rung-shape": "1x8x8",
                "idempotency-key": f"chaos-{key}",
            }
            body = self._bodies[key % len(self._bodies)]
            while not self._over.is_set():
                try:
                    answer = await client.post("/jobs", headers=headers, content=body)
                except httpx.TransportError as error:
                    self.refused[type(error).__name__] += 1
                else:
                    if answer.status_code == 202:
                        self.accepted.setdefault(key, set()).add(str(answer.json()["job"]))
                        break
                    self.refused[str(answer.status_code)] += 1
                await asyncio.sleep(RETRY_S)


class Trouble:
    """Kills, fills and sets; `step` does what is due and starts again what has died."""

    def __init__(
        self, launcher: Launcher, tally: Tally, kills: int, seed: int, disk: Path, clock: Path, full_for_s: float
    ) -> None:
        self._launcher, self._tally, self._disk, self._clock = launcher, tally, disk, clock
        self._full_for_s = full_for_s
        self._chance = random.Random(seed)
        self._kill_at = [(number + 1) / (kills + 1) for number in range(kills)]
        self._full_until_s: float | None = None
        self._was_full, self._refused_before = False, 0
        self._steps = [(FORTH_AT, "+3600"), (BACK_AT, "-3600")]

    @property
    def goes_on(self) -> bool:
        """Whether there is more to come: somebody to be killed, or a disk that is full."""
        return bool(self._kill_at) or self._full_until_s is not None

    def step(self, share: float, refused: int) -> None:
        """Does what is due when `share` of the jobs were accepted; `refused` is how often clients were, so far."""
        self._restart()
        if self._kill_at and share >= self._kill_at[0] and self._kill():
            self._kill_at.pop(0)
        if self._steps and share >= self._steps[0][0]:
            self._set_clock(self._steps.pop(0)[1])
        if not self._was_full and share >= FULL_AT:
            until_s = time.monotonic() + self._full_for_s
            self._was_full, self._full_until_s, self._refused_before = True, until_s, refused
            fill(self._disk / "ballast")
        if self._full_until_s is not None:
            if time.monotonic() < self._full_until_s + self._longer_s(refused):
                with contextlib.suppress(OSError):
                    fill(self._disk / f"ballast-{time.monotonic_ns()}")  # what a log gave back
            else:
                for file in self._disk.glob("ballast*"):
                    file.unlink()
                self._full_until_s, self._tally.refused_while_full = None, refused - self._refused_before

    def _longer_s(self, refused: int) -> float:
        """How much longer the disk stays full: a server's log only grows, so that sooner or later it refuses somebody.

        SQLite may find room for all in what its write-ahead log has already.
        """
        return FULL_LONGER_S if self._tally.broker == "redis" and refused == self._refused_before else 0.0

    def _kill(self) -> bool:
        """Kills one that runs, whoever it is; False when nobody does."""
        ready = [member for member in self._launcher.members if member.state == "ready"]
        if not ready:
            return False
        member = self._chance.choice(ready)
        for pid in server_pids(member):
            with contextlib.suppress(psutil.Error):
                psutil.Process(pid).kill()
        whom = {GATEWAY: "jobs API", CACHE: "broker"}.get(member.number, "worker")
        self._tally.kills[whom] = self._tally.kills.get(whom, 0) + 1
        return True

    def _restart(self) -> None:
        """Starts again what is dead; what cannot start on a full disk is tried at the next step."""
        with contextlib.suppress(OSError):
            self._launcher.look()
        for member in [member for member in self._launcher.members if member.state == "died"]:
            with contextlib.suppress(OSError, LaunchError):
                self._launcher.restart(member)
                self._tally.restarts += 1

    def _set_clock(self, setting: str) -> None:
        fresh = self._clock.with_suffix(".new")
        fresh.write_text(setting)
        fresh.replace(self._clock)
        self._tally.clock_steps.append(setting)


def server_pids(member: Member) -> list[int]:
    """The processes that are to be killed: of a tethered server the server, whose tether follows it."""
    if member.number != CACHE:
        return [member.pid]
    with contextlib.suppress(psutil.Error):
        return [child.pid for child in psutil.Process(member.pid).children()] or [member.pid]
    return [member.pid]


def fill(file: Path) -> None:
    """Writes until the disk is full, and no more than such a disk can take: it might be another."""
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as ballast:
        for size in (4_194_304, 4096, 1):
            with contextlib.suppress(OSError):
                while ballast.tell() < DISK_BYTES:
                    ballast.write(b"\0" * size)


def run(
    broker: Literal["sqlite", "redis"], jobs: int, kills: int, workers: int, seed: int, disk: Path, full_for_s: float
) -> Tally:
    """The whole of it on `disk`, which is full for so many seconds; what became of the jobs."""
    changes = {
        "queue.broker": broker,
        "queue.lease_s": 5.0,
        "queue.retry_delay_s": 0.1,
        "queue.max_depth": 5000,
        "scaling": None,
        "fleet.replicas": workers,
        "device.slowdown": 1.0,
        "batching.batch_wait_timeout_s": 0.005,
        "overload": True,
    }
    stage, tally = load_stage("queued", changes), Tally(broker, jobs)
    assert stage.queue is not None
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as elsewhere:  # it can be set although the disk is full
        clock = Path(elsewhere) / "clock"
        clock.write_text("+0")
        with clock_of(clock), ProcessLauncher(stage, disk / "stack") as launcher:
            _through(launcher, stage, tally, Trouble(launcher, tally, kills, seed, disk, clock, full_for_s))
    tally.seconds = round(time.monotonic() - began_s, 1)
    return tally


def _through(launcher: Launcher, stage: Stage, tally: Tally, trouble: Trouble) -> None:
    """Puts all jobs while there is trouble, waits until they are over, and counts."""
    assert stage.queue is not None
    jobs = tally.jobs
    with Clients(stage, launcher.url, jobs) as clients, err.status("Putting jobs …") as shown:
        while not clients.done():
            trouble.step(len(clients.accepted) / jobs, clients.refused.total())
            shown.update(f"{len(clients.accepted):,} of {jobs:,} accepted, {sum(tally.kills.values())} kills …")
            time.sleep(LOOK_S)
    tally.refused = dict(clients.refused)
    folder = launcher.queue_folder
    with server_of(stage.queue, folder), open_store(stage.queue, folder) as store:
        deadline_s = time.monotonic() + SETTLE_TIMEOUT_S
        while (left(store) or trouble.goes_on) and time.monotonic() < deadline_s:
            trouble.step(1.0, sum(tally.refused.values()))
            time.sleep(LOOK_S)
        time.sleep(HOUSEKEEPING_S)
        settle(tally, clients.accepted, store)


def left(store: JobStore) -> int:
    """Jobs that are not over."""
    depth = store.broker.depth()
    return depth.waiting + depth.leased + depth.delayed


def settle(tally: Tally, accepted: dict[int, set[str]], store: JobStore) -> None:
    """Counts what became of the jobs that clients were told of."""
    ids = {job for told in accepted.values() for job in told}
    found: dict[str, Result] = {}
    every = sorted(ids)
    for first in range(0, len(every), 500):
        found.update(store.results.find(every[first : first + 500]))
    tally.accepted = len(accepted)
    tally.keys_with_two_jobs = sum(len(told) > 1 for told in accepted.values())
    tally.answered = sum(result.outcome == "ok" for result in found.values())
    tally.dead = len(found) - tally.answered
    tally.lost = len(ids) - len(found)
    tally.unasked = sum(store.results.counts().values()) - len(found)
    tally.delivered_again = sum(result.attempts > 1 for result in found.values())


@contextlib.contextmanager
def clock_of(setting: Path) -> Iterator[None]:
    """Processes that are started meanwhile take their dates from `setting`, and their monotonic clock from nobody.

    A Python process asks through the module that it imports at its start; the library under it would spoil its sleeps.
    """
    (setting.parent / "sitecustomize.py").write_text(OTHER_TIME, encoding="utf-8")
    path = os.pathsep.join([str(setting.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    ours = {"PYTHONPATH": path, "RUNG_CHAOS_CLOCK": str(setting), "RUNG_CHAOS_LIBRARY": faketime()}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def faketime() -> str:
    """The library that sets a process' clock. Ends in words where there is none."""
    places = (f"/usr/lib/{sysconfig.get_config_var('MULTIARCH')}", "/usr/lib", "/usr/local/lib")
    libraries = [Path(place) / "faketime/libfaketime.so.1" for place in places]
    found = next((library for library in libraries if library.is_file()), None)
    if found is None:
        fail("No libfaketime: the clock of the stack cannot be set. Install Debian's libfaketime.", Exit.MISUSED)
    return str(found)


def on_a_disk_of_its_own(words: list[str]) -> int:
    """Runs this again with `words` where its folder is a small disk in memory that nobody else sees."""
    if shutil.which("unshare") is None:
        fail("No unshare: the stack gets no disk of its own. Install util-linux.", Exit.MISUSED)
    with tempfile.TemporaryDirectory(prefix="rung-chaos-") as folder:
        mount = f'mount -t tmpfs -o size={DISK_BYTES} none "${INSIDE}" && exec "$@"'
        command = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"]), "sh", "-c"]
        command += [mount, "sh", sys.executable, "-m", "loadtests.chaos", *words]
        return subprocess.run(command, env=os.environ | {INSIDE: folder}, check=False).returncode


def main(
    broker: Annotated[str, typer.Option(help="sqlite or redis.")] = "sqlite",
    jobs: Annotated[int, typer.Option(min=100, max=10_000_000, help="How many.")] = 100_000,
    kills: Annotated[int, typer.Option(min=0, max=10_000, help="How many kill -9.")] = 60,
    workers: Annotated[int, typer.Option(min=1, max=64, help="How many work.")] = 2,
    seed: Annotated[int, typer.Option(help="Of who is killed.")] = 1,
    full_for: Annotated[float, typer.Option(min=0.0, max=600.0, help="Seconds that the disk is full.")] = FULL_FOR_S,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Puts jobs into a queued stage, does it every harm there is, and counts."""
    if broker not in ("sqlite", "redis"):
        fail(f"--broker: must be sqlite or redis, got {broker}. There is no other. Use sqlite.", Exit.MISUSED)
    if INSIDE not in os.environ:
        raise typer.Exit(on_a_disk_of_its_own(sys.argv[1:]))
    kind: Literal["sqlite", "redis"] = "redis" if broker == "redis" else "sqlite"
    tally = run(kind, jobs, kills, workers, seed, Path(os.environ[INSIDE]), full_for)
    if json_:
        print_json(asdict(tally) | {"sound": tally.sound})
    else:
        told = (f"{name.replace('_', ' '):20} {value}" for name, value in asdict(tally).items())
        out.print("\n".join(told), highlight=False)
    if not tally.sound:
        fail("Something was lost, or done twice: see the counts.")


if __name__ == "__main__":
    typer.run(main)
