"""A night's work under the running stack's autoscaler: nobody works when the backlog comes, and nobody when it is done.

    backlog ─▶ broker ─▶ jobs API: /metrics ─▶ Autoscaler ─▶ launcher: workers come ─▶ results ─▶ workers go

Twin: simulator/night_scaled.py. The autoscaler's timetable begins with the night, and what it wanted is read from its
scaling.jsonl. Not here: containers, and machines that are taken away.
"""

from __future__ import annotations

import time
from math import inf
from pathlib import Path

from loadtests import scaling_rows
from loadtests.load import LoadError
from loadtests.night import LOOK_S, STALL_S, OnHost, Progress, backlogged, told, until_done
from loadtests.tending import Tending, tended
from reference_apps.launchers.launcher import Launcher
from simulator.night import Machine, Worked
from stages.night import Night
from stages.spec import Stage


def work_off_scaled(
    stage: Stage,
    night: Night,
    folder: Path,
    on_progress: Progress = lambda *_: None,
    on_host: OnHost = lambda _: None,
) -> Worked:
    """One night for real. Times count from the moment at which the backlog is there, in seconds.

    `on_host` hears once what share of the machine's cores others had until all was done.

    Raises LaunchError when the stack does not start or cannot be kept up, and LoadError when nothing goes on any more.
    """
    assert stage.scaling is not None
    with (
        backlogged(stage, night.backlog, folder, on_progress) as (launcher, store, ids),
        tended(launcher) as tending,
    ):
        began_s, began_at = time.monotonic(), time.time()
        tending.begin(began_s)
        on_host(until_done(tending.check, launcher, store, night.backlog, on_progress))
        on_progress("Sending the workers away", float(night.backlog), float(night.backlog))
        _until_few(launcher, tending, stage)
        finished_s, dead = told(store, ids, began_at)
        done_s = finished_s[-1] if finished_s else inf
        machines = _machines(launcher, began_s, done_s)
        ends_s = max(machine.ended_s for machine in machines)
        looks = scaling_rows.read(launcher.folder, began_s, ends_s)
        wanted = tuple(looks.select("at_s", "wanted").iter_rows())
        return Worked(done_s, machines, len(finished_s) - dead, dead, 0, finished_s, wanted)


def _until_few(launcher: Launcher, tending: Tending, stage: Stage) -> None:
    """Until no more workers are there than the stage keeps. Raises LoadError when they do not go."""
    scaling = stage.scaling
    assert scaling is not None
    waits_s = scaling.cooldown_s + scaling.down.stabilisation_window_s + stage.lifecycle.drain_timeout_s + STALL_S
    ends_s = time.monotonic() + waits_s
    while len(launcher.replicas) > scaling.min_replicas:
        tending.check()
        if time.monotonic() > ends_s:
            raise LoadError(
                f"{stage.name}: all is done, and {len(launcher.replicas)} workers were still there after "
                f"{waits_s:.0f} s; scaling.min_replicas is {scaling.min_replicas}. See scaling.jsonl in the run's "
                "folder."
            )
        time.sleep(LOOK_S)


def _machines(launcher: Launcher, began_s: float, done_s: float) -> tuple[Machine, ...]:
    """The machines of everybody who was ever there; who is still there is paid until all is done, or the last one went.

    A worker that died and was started again is two of them.
    """
    lives = launcher.lives()
    gone = [life.stopped_s - began_s for life in lives if life.stopped_s is not None]
    ends_s = max([done_s, *gone])
    return tuple(
        Machine(
            life.replica,
            life.started_s - began_s,
            None if life.ready_s is None else life.ready_s - began_s,
            ends_s if life.stopped_s is None else life.stopped_s - began_s,
        )
        for life in lives
    )
