"""A night's work by the running stack, compressed: the same backlog, workers and interruptions as are predicted.

    backlog ─▶ broker, while nobody works ─▶ so many workers are started ─▶ results ─▶ done when, paid for how long
                                               └─ kill -9 when their machine is taken away; another one, cold

Twin: simulator/night.py, whose draws say when a machine is taken away here, too. Cold starts are held to the stage's,
as everywhere with processes. Workers that come by an autoscaler are in night_scaled.py, what all of it says in
night_report.py. Not here: containers, and putting the backlog, which is over before the clock starts.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf
from pathlib import Path

import numpy as np

from loadtests.host_cpu import HostCpu, StackCpu
from loadtests.load import LoadError
from reference_apps.broker import NewJob
from reference_apps.envelope import pack, sealed
from reference_apps.job_store import JobStore, open_store, server_of
from reference_apps.launchers.launcher import Launcher
from reference_apps.launchers.member import Member
from reference_apps.launchers.process import ProcessLauncher
from reference_apps.models import load_inputs
from simulator.night import Machine, Worked, lives_s
from stages.night import Night
from stages.spec import Stage

CHUNK = 500
DIFFERENT = 64  # inputs; a queue knows nothing of them
LOOK_S, COUNT_S = 0.05, 0.25
# Given up when nothing has been stored for so long, beyond a cold start and a lease.
STALL_S = 120.0
Progress = Callable[[str, float, float], None]  # what is done now, jobs done, jobs in all
OnHost = Callable[[float], None]  # the share of the machine's cores that others had


@dataclass
class Rented:
    """The machine that a worker is on: since when it is paid, when it is taken away, when its worker was there.

    Times are seconds of the monotonic clock.
    """

    ordered_s: float
    ends_s: float
    ready_s: float | None = None


def work_off(
    stage: Stage,
    night: Night,
    workers: int,
    folder: Path,
    seed: int,
    on_progress: Progress = lambda *_: None,
    on_host: OnHost = lambda _: None,
) -> Worked:
    """One night for real. Times count from the moment at which the machines are ordered, in seconds.

    `on_host` hears once what share of the machine's cores others had meanwhile.

    Raises LaunchError when the stack does not start, and LoadError when nothing goes on any more.
    """
    with backlogged(stage, night.backlog, folder, on_progress) as (launcher, store, ids):
        crew = Crew(stage, launcher, workers, seed, night.interruptions_per_hour)
        on_host(until_done(crew.step, launcher, store, night.backlog, on_progress))
        finished_s, dead = told(store, ids, crew.began_at)
        done_s = finished_s[-1] if finished_s else inf
        return Worked(done_s, crew.end(done_s), len(finished_s) - dead, dead, crew.interruptions, finished_s)


@contextlib.contextmanager
def backlogged(
    stage: Stage, backlog: int, folder: Path, on_progress: Progress
) -> Iterator[tuple[Launcher, JobStore, list[str]]]:
    """The stack with nobody who works yet, its store, and the ids of the jobs that are in its queue."""
    assert stage.queue is not None
    launcher = ProcessLauncher(stage, folder)
    launcher.first = 0  # the backlog is there before anybody works
    with launcher:
        queue = stage.queue.model_copy(update={"max_depth": max(stage.queue.max_depth, backlog)})
        kept = launcher.queue_folder
        with server_of(queue, kept), open_store(queue, kept) as store:
            yield launcher, store, put(stage, store, backlog, on_progress)


class Crew:
    """The workers of a night and the machines under them. `step` takes away whose time has come, and replaces it."""

    def __init__(
        self, stage: Stage, launcher: Launcher, workers: int, seed: int, interruptions_per_hour: float
    ) -> None:
        self._launcher = launcher
        self._cold_start_s = stage.scaling.cold_start.total_s if stage.scaling else 0.0
        self._lives_s = [lives_s(seed, number, interruptions_per_hour) for number in range(workers)]
        self.interruptions = 0
        self.began_s, self.began_at = time.monotonic(), time.time()
        self._there = [self._rented(number, self.began_s) for number in range(workers)]
        self._gone: list[Machine] = []
        for _ in range(workers):
            launcher.add(not_before_s=self.began_s + self._cold_start_s)

    @property
    def members(self) -> list[Member]:
        """The workers by number."""
        return sorted(self._launcher.replicas, key=lambda member: member.number)

    def step(self) -> None:
        """What is due now. Workers that end by themselves are started again where they are."""
        now_s = time.monotonic()
        for member in self.members:
            machine = self._there[member.number]
            if member.ready_s is not None and machine.ready_s is None:
                machine.ready_s = member.ready_s
            if member.state in ("starting", "ready") and now_s >= machine.ends_s:
                member.process.kill()
                member.process.wait(10.0)
                self.interruptions += 1
                self._gone.append(self._told(member.number, now_s))
                self._there[member.number] = self._rented(member.number, now_s)
                member.not_before_s = now_s + self._cold_start_s
        for dead in self._launcher.look():
            self._launcher.restart(dead)

    def end(self, done_s: float) -> tuple[Machine, ...]:
        """All machines of the night; those that are there are paid until `done_s` seconds after it began."""
        there = [self._told(number, self.began_s + done_s) for number in range(len(self._there))]
        return tuple(sorted([*self._gone, *there], key=lambda machine: (machine.worker, machine.ordered_s)))

    def _rented(self, number: int, now_s: float) -> Rented:
        return Rented(now_s, now_s + next(self._lives_s[number]))

    def _told(self, number: int, ended_s: float) -> Machine:
        """The machine of a worker as it is told: in seconds since the night began."""
        rented = self._there[number]
        ordered_s = min(rented.ordered_s, ended_s)  # one that was ordered after the last job was done cost nothing
        ready_s = None if rented.ready_s is None or rented.ready_s > ended_s else rented.ready_s - self.began_s
        return Machine(number, ordered_s - self.began_s, ready_s, ended_s - self.began_s)


def put(stage: Stage, store: JobStore, backlog: int, on_progress: Progress) -> list[str]:
    """Puts the backlog after everything that somebody waits for, and gives the jobs' ids."""
    assert stage.queue is not None
    inputs = load_inputs(stage.model).examples(DIFFERENT, seed=stage.traffic.seed)
    shape = "x".join(str(side) for side in inputs[0].shape)
    bodies = [x.astype("<f4").tobytes() for x in inputs]
    ids: list[str] = []
    for first in range(0, backlog, CHUNK):
        some = range(first, min(first + CHUNK, backlog))
        jobs = [
            NewJob(
                pack(sealed("application/octet-stream", shape, bodies[number % DIFFERENT])),
                stage.queue.priorities - 1,
            )
            for number in some
        ]
        ids += [accepted.job for accepted in store.broker.put(jobs)]
        on_progress(f"Putting {backlog:,} jobs", float(len(ids)), float(backlog))
    return ids


def until_done(
    step: Callable[[], None], launcher: Launcher, store: JobStore, backlog: int, on_progress: Progress
) -> float:
    """Until every job has its result; `step` is called often. Gives the share of the cores that others had meanwhile.

    Raises LoadError when nothing goes on any more.
    """
    stage = launcher.stage
    assert stage.queue is not None
    stack = StackCpu(lambda: launcher.pids)
    before_cpu = HostCpu.now(stack)
    patience_s = STALL_S + stage.queue.lease_s + (stage.scaling.cold_start.total_s if stage.scaling else 0.0)
    before, since_s, counted_s = 0, time.monotonic(), 0.0
    while before < backlog:
        step()
        now_s = time.monotonic()
        if now_s - counted_s >= COUNT_S:
            counted_s = now_s
            stack.look()
            # A job that died without a word has no result; nobody is there to write one but the jobs API.
            done = sum(store.results.counts().values())
            on_progress(f"Working off {backlog:,} jobs", float(done), float(backlog))
            if done > before:
                before, since_s = done, now_s
        if now_s - since_s > patience_s:
            raise LoadError(
                f"{stage.name}: {backlog - before:,} of {backlog:,} jobs are left, and none was done for "
                f"{patience_s:.0f} s. See the workers' logs in the run's folder."
            )
        time.sleep(LOOK_S)
    return before_cpu.foreign_share(HostCpu.now(stack))


def told(store: JobStore, ids: list[str], began_at: float) -> tuple[tuple[float, ...], int]:
    """When each job had its result, rising, in seconds since the night began; and how many of them are failures.

    The results' dates are this machine's, which nobody has set meanwhile.
    """
    found = list(store.results.find(ids).values())
    finished_s = np.sort([result.finished_at - began_at for result in found])
    return tuple(finished_s.tolist()), sum(result.outcome != "ok" for result in found)
