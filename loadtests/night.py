"""A night's work by the running stack, compressed: the same backlog, workers and interruptions as are predicted.

    backlog ─▶ broker, while nobody works ─▶ so many workers are started ─▶ results ─▶ done when, paid for how long
                                               └─ kill -9 when their machine is taken away; another one, cold

Twin: simulator/night.py, whose draws say when a machine is taken away here, too. Cold starts are held to the stage's,
as everywhere with processes. Not here: containers, and putting the backlog, which is over before the clock starts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from loadtests.load import LoadError
from reference_apps.broker import NewJob
from reference_apps.envelope import pack, sealed
from reference_apps.job_store import JobStore, open_store, server_of
from reference_apps.launchers.launcher import Launcher
from reference_apps.launchers.member import Member
from reference_apps.launchers.process import ProcessLauncher
from reference_apps.models import load_inputs
from simulator.night import Worked, lives_s
from simulator.plot_frame import framed, styled, world_key, world_line
from stages.night import Night
from stages.spec import Stage

CHUNK = 500
DIFFERENT = 64  # inputs; a queue knows nothing of them
LOOK_S, COUNT_S = 0.05, 0.25
# Given up when nothing has been stored for so long, beyond a cold start and a lease.
STALL_S = 120.0
CURVE_POINTS = 500


@dataclass(frozen=True)
class Machine:
    """The machine that a worker is on: since when it is paid, and when it is taken away."""

    started_s: float
    ends_s: float


def work_off(
    stage: Stage,
    night: Night,
    workers: int,
    folder: Path,
    seed: int,
    on_progress: Callable[[str, float, float], None] = lambda *_: None,
) -> Worked:
    """One night for real. Times count from the moment at which the machines are ordered, in seconds.

    Raises LaunchError when the stack does not start, and LoadError when nothing goes on any more.
    """
    assert stage.queue is not None
    launcher = ProcessLauncher(stage, folder)
    launcher.first = 0  # the backlog is there before anybody works
    with launcher:
        queue = stage.queue.model_copy(update={"max_depth": max(stage.queue.max_depth, night.backlog)})
        kept = launcher.queue_folder
        with server_of(queue, kept), open_store(queue, kept) as store:
            ids = put(stage, store, night.backlog, on_progress)
            crew = Crew(stage, launcher, workers, seed, night.interruptions_per_hour)
            _until_done(crew, store, night.backlog, stage, on_progress)
            return _told(crew, store, ids)


class Crew:
    """The workers of a night and the machines under them. `step` takes away whose time has come, and replaces it."""

    def __init__(
        self, stage: Stage, launcher: Launcher, workers: int, seed: int, interruptions_per_hour: float
    ) -> None:
        self._launcher = launcher
        self._cold_start_s = stage.scaling.cold_start.total_s if stage.scaling else 0.0
        self._lives_s = [lives_s(seed, number, interruptions_per_hour) for number in range(workers)]
        self.interruptions = 0
        self.paid_s = [0.0] * workers
        self.began_s, self.began_at = time.monotonic(), time.time()
        self._machines = [self._machine(number, self.began_s) for number in range(workers)]
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
            machine = self._machines[member.number]
            if member.state in ("starting", "ready") and now_s >= machine.ends_s:
                member.process.kill()
                member.process.wait(10.0)
                self.interruptions += 1
                self.paid_s[member.number] += now_s - machine.started_s
                self._machines[member.number] = self._machine(member.number, now_s)
                member.not_before_s = now_s + self._cold_start_s
        for dead in self._launcher.look():
            self._launcher.restart(dead)

    def end(self, done_s: float) -> None:
        """The machines that are there are paid until `done_s` of the monotonic clock."""
        for number, machine in enumerate(self._machines):
            self.paid_s[number] += max(0.0, done_s - machine.started_s)

    def _machine(self, number: int, now_s: float) -> Machine:
        return Machine(now_s, now_s + next(self._lives_s[number]))


def put(stage: Stage, store: JobStore, backlog: int, on_progress: Callable[[str, float, float], None]) -> list[str]:
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


def _until_done(
    crew: Crew, store: JobStore, backlog: int, stage: Stage, on_progress: Callable[[str, float, float], None]
) -> None:
    assert stage.queue is not None
    patience_s = STALL_S + stage.queue.lease_s + (stage.scaling.cold_start.total_s if stage.scaling else 0.0)
    before, since_s, counted_s = 0, time.monotonic(), 0.0
    while before < backlog:
        crew.step()
        now_s = time.monotonic()
        if now_s - counted_s >= COUNT_S:
            counted_s = now_s
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


def _told(crew: Crew, store: JobStore, ids: list[str]) -> Worked:
    """What the results say. Their dates are this machine's, which nobody has set meanwhile."""
    found = list(store.results.find(ids).values())
    finished_s = np.sort([result.finished_at - crew.began_at for result in found])
    done_s = float(finished_s[-1]) if finished_s.size else inf
    crew.end(crew.began_s + done_s)
    dead = sum(result.outcome != "ok" for result in found)
    return Worked(done_s, tuple(crew.paid_s), len(found) - dead, dead, crew.interruptions, tuple(finished_s.tolist()))


@styled
def left_over_time(worlds: dict[str, list[Worked]], backlog: int, title: str, subtitle: str) -> Figure:
    """How many jobs are left, against time, of each night of both worlds."""
    figure = framed(5.2, title, subtitle)
    axes = figure.subplots()
    for world, nights in worlds.items():
        for each in nights:
            at_s, left = _curve(each, backlog)
            axes.plot(at_s, left, drawstyle="steps-post", **world_line(world))
    axes.set_xlabel("time since the machines were ordered (s)")
    axes.set_ylabel("jobs left")
    axes.set_ylim(bottom=0.0)
    axes.set_xlim(left=0.0)
    world_key(figure)
    return figure


def _curve(worked: Worked, backlog: int) -> tuple[list[float], list[int]]:
    """Times and jobs left then; as many points as a picture can show."""
    every = max(1, len(worked.finished_s) // CURVE_POINTS)
    points = list(enumerate(worked.finished_s, start=1))
    shown = [(at_s, backlog - done) for done, at_s in (*points[::every], *points[-1:])]
    return [0.0, *(at_s for at_s, _ in shown)], [backlog, *(left for _, left in shown)]


def document(
    stage: Stage,
    night: Night,
    workers: int,
    measured: list[Worked],
    predicted: list[Worked],
    usd: Callable[[Worked], float] | None,
) -> Iterator[dict[str, object]]:
    """A row a metric: measured (the median of the nights), predicted, error, and the measured nights' spread."""
    figures: dict[str, Callable[[Worked], float]] = {
        "done_s": lambda each: each.done_s,
        "machine_s": lambda each: sum(each.paid_s),
        "stored": lambda each: float(each.stored),
        "dead": lambda each: float(each.dead),
        "interruptions": lambda each: float(each.interruptions),
    }
    if usd is not None:
        figures["cost_usd"] = usd
    for metric, of in figures.items():
        real, ours = sorted(of(each) for each in measured), float(np.median([of(each) for each in predicted]))
        middle = float(np.median(real))
        yield {
            "stage": stage.name,
            "backlog": night.backlog,
            "workers": workers,
            "metric": metric,
            "measured": middle,
            "predicted": ours,
            "error": (ours - middle) / middle if middle else (0.0 if ours == middle else None),
            "spread_low": real[0],
            "spread_high": real[-1],
        }


def write(folder: Path, rows: list[dict[str, object]], machine: str, command: str) -> Path:
    """Writes night.json into the run's folder and gives its path."""
    path = folder / "night.json"
    path.write_text(
        json.dumps({"machine": machine, "command": command, "rows": rows}, indent=2) + "\n", encoding="utf-8"
    )
    return path
