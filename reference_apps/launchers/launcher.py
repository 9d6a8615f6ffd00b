"""A stage's replicas and its gateway as a whole, whatever they run in: started, more or fewer, replaced, stopped.

    start ──▶ settle ──▶ add, drain, restart, pin, empty_cache … ──▶ stop
                └── `look` (members.py): each takes its next step, until all are at rest

What only begins something returns at once, and the next looks go on with it; `start`, `settle` and `stop` look until
something is so. A stage with [queue] has a jobs API in the gateway's place, and workers in that of the replicas: nobody
sends them requests, so that one that drains is told so at once, and goes when it has finished what it has. How a
process or a container is started is for a launcher of its own: launchers/process.py, launchers/docker.py.
"""

from __future__ import annotations

import itertools
import logging
import signal
import time
from pathlib import Path
from typing import Self

from reference_apps.asking import POLL_S, wait_until
from reference_apps.launchers import split_start, valkey
from reference_apps.launchers.member import (
    BROKER_FILE,
    CACHE,
    FEEDBACK,
    GATEWAY,
    LaunchError,
    Member,
    Nobody,
    drill_file,
    ending,
    last_lines,
    write_atomically,
)
from reference_apps.launchers.members import STOP_GRACE_S, Members
from reference_apps.registry import pinned
from stages.arms import kinds_of, replicas_of
from stages.problems import StageError
from stages.spec import Stage, stage_toml

RENEW_TIMEOUT_S = 5.0  # for a cache to be empty
ASKED_FILE = "asked.toml"  # in the folder of a run: the stage before its aliases were resolved
SPLIT_FOLDER = "split"  # in the same: what the processes of a split tell each other

log = logging.getLogger("rung.launcher")


class Launcher(Members):
    """Starts the replicas and the gateway of a stage, and stops them. A context manager: it leaves nothing behind."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        super().__init__(_pinned(stage), folder)
        self.asked = stage  # as it was given: with aliases, where it names any
        self.first = replicas_of(stage)  # are started with it; set it before the start for another number
        self._numbers = itertools.count(replicas_of(stage))
        folder.mkdir(parents=True, exist_ok=True)
        self.queue_folder = folder  # where queue and results are kept; set it before the start to keep them longer
        self.feedback_folder = folder / FEEDBACK  # the same of predictions and labels
        self.split_folder = folder / SPLIT_FOLDER  # of the split's control file
        self.stage_file = folder / "stage.toml"
        self.stage_file.write_text(stage_toml(self.stage), encoding="utf-8")
        if self.stage != stage:
            (folder / ASKED_FILE).write_text(stage_toml(stage), encoding="utf-8")

    def _repinned(self) -> None:
        """`stage` and its file are new; most processes read the file themselves."""

    # ---- what is there ----

    @property
    def url(self) -> str:
        """Where clients go."""
        return (self.gateway or self.replicas[0]).url

    def replica(self, number: int) -> Member:
        """The replica of that number. Raises KeyError when there is none."""
        for replica in self.replicas:
            if replica.number == number:
                return replica
        raise KeyError(number)

    def in_rotation(self, member: Member) -> bool:
        """Whether the gateway sends this replica requests; without a gateway, whether it is ready."""
        if self._fetch_work or self.gateway is None or member.state != "ready":
            return member.state == "ready"
        generation, rows = self._seen_by_gateway()
        return generation >= member.since_generation and bool(rows.get(member.number, {}).get("ready"))

    # ---- what can be done with it ----

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts everything and returns when clients would be served. Raises LaunchError, with nothing left running."""
        try:
            if valkey.wanted(self.stage):
                self.cache = self._launch(self._new(CACHE, "cache" if self.stage.queue is None else "broker", ""))
                self._await_broker()
            self._begin_split()
            self._numbers = itertools.count(self.first)
            for number in range(self.first):
                self._spawn(number)
            if self.stage.queue is not None:
                self.gateway = self._launch(self._new(GATEWAY, "jobs", ""))
            elif self.stage.gateway is not None:
                self._publish()
                self.gateway = self._launch(self._new(GATEWAY, "gateway", ""))
            self.settle()
        except BaseException:
            self.stop()
            raise

    def add(self, like: int | None = None, not_before_s: float = 0.0, launch_at_s: float = 0.0) -> Member:
        """Starts one more replica, under a number that was never used; with `like`, on the device of that replica.

        It comes into rotation by itself when it is ready, and no sooner than `not_before_s` of the monotonic clock.
        With `launch_at_s` its process is started then only: until then, its machine is waited for.
        """
        kinds = kinds_of(self.stage)
        number = next(self._numbers)
        while like is not None and number % kinds != like % kinds:
            number = next(self._numbers)
        return self._spawn(number, not_before_s, launch_at_s)

    def add_cold(self, cold_start_s: float) -> Member:
        """Adds one as an autoscaler does: in rotation no sooner than in `cold_start_s` seconds, the stage's own."""
        return self.add(not_before_s=time.monotonic() + cold_start_s)

    def drain(self, number: int) -> None:
        """Takes a replica out of rotation, and lets it go when it has answered what it was sent.

        Raises KeyError for a number that nobody has.
        """
        member = self.replica(number)
        if member.state == "ready" and self.gateway is not None and not self._fetch_work:
            self._turn(member, "draining")
        elif member.state in ("starting", "ready"):
            self._terminate(member)
        elif member.state == "died":
            self._gone(member)

    def restart(self, member: Member) -> Member:
        """Starts one that has ended once more, under its number and on its port.

        Raises LaunchError where it cannot be started; the next look finds it dead again.
        """
        fresh = self._new(member.number, member.name, member.device)
        fresh.port, fresh.restarts, fresh.not_before_s = member.port, member.restarts + 1, member.not_before_s
        fresh.url = member.url  # its address stays, as far as clients are concerned
        if member.number == GATEWAY:
            self.gateway = fresh
        elif member.number == CACHE:
            self.cache = fresh
        else:
            self.lived.append(member.life())
            self.replicas[self.replicas.index(member)] = fresh
        return self._launch(fresh)

    def kill(self, number: int) -> None:
        """Ends a replica's process by SIGKILL, as a crash would. Raises KeyError for a number that nobody has."""
        self.replica(number).process.kill()

    def pause(self, number: int) -> None:
        """Stops a replica in its tracks, connections and all (SIGSTOP). Raises KeyError like `kill`."""
        self.replica(number).process.send_signal(signal.SIGSTOP)

    def resume(self, number: int) -> None:
        """Lets a paused replica go on. Raises KeyError like `kill`."""
        self.replica(number).process.send_signal(signal.SIGCONT)

    def empty_cache(self) -> None:
        """Has the gateway's cache begin anew with nothing in it. Raises LaunchError when it does not say so."""
        self.cache_epoch += 1
        self._publish()
        renewed = wait_until(lambda: self._seen_by_gateway()[0] >= self.generation, RENEW_TIMEOUT_S)
        if renewed and self.cache is not None:
            renewed = valkey.empty(*valkey.host_and_port(self.cache.url), self._cache_password, RENEW_TIMEOUT_S)
        if not renewed:
            raise LaunchError(f"{self.stage.name}: its cache was not empty within {RENEW_TIMEOUT_S:g} s.")

    def pin(self) -> bool:
        """Replicas that are started from now on are of the versions that the stage's aliases are now.

        Gives back whether those are others than before. Raises LaunchError where one is not there.
        """
        stage = _pinned(self.asked)
        if stage == self.stage:
            return False
        self.stage = stage
        write_atomically(self.stage_file, stage_toml(stage))
        self._repinned()
        return True

    def forget_answers(self) -> None:
        """Has the gateway's cache begin anew without waiting for it: its answers are another version's.

        A store that outlives the gateway has met no such epoch before.
        """
        self.cache_epoch = max(self.cache_epoch + 1, int(time.time()))
        self._publish()

    def tell(self, number: int, text: str) -> None:
        """Writes what a drill wants of a replica into the file that it looks at: see reference_apps/obeying.py."""
        write_atomically(self.folder / drill_file(number), text)

    def settle(self) -> None:
        """Looks until nobody is starting, draining or stopping, and the gateway has every ready replica in rotation.

        Raises LaunchError when somebody dies meanwhile, and after `lifecycle.ready_timeout_s` and the drain's time.
        """
        lifecycle = self.stage.lifecycle
        limit_s = max(lifecycle.ready_timeout_s, lifecycle.drain_timeout_s) + 2 * STOP_GRACE_S
        deadline_s = time.monotonic() + limit_s
        while True:
            for dead in self.look():
                raise LaunchError(self.told(dead))
            if all(member.state in ("ready", "died") for member in self.members) and self._gateway_has_all():
                return
            if time.monotonic() > deadline_s:
                raise LaunchError(f"{self.stage.name}: its replicas did not come to rest within {limit_s:g} s.")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """Asks the gateway and then every replica to drain, and waits; one that does not end in its time is killed."""
        alone = [[member] if member is not None else [] for member in (self.gateway, self.cache)]
        for members in (alone[0], list(self.replicas), alone[1]):
            for member in members:
                self._terminate(member)
            for member in members:
                self._await_end(member)
        self.lived += [replica.life() for replica in self.replicas]
        self.replicas, self.gateway, self.cache = [], None, None

    def told(self, dead: Member) -> str:
        """What to tell about one that has ended: which, how, its last lines, and where the whole log is."""
        what = f"(pid {dead.pid}) ended with {ending(dead.process.poll())}."
        if isinstance(dead.process, Nobody):
            what = "has no process: it could not be started."
        elif dead.ready_s is None and self._overdue(dead):
            what = f"was not ready after {self.stage.lifecycle.ready_timeout_s:g} s (lifecycle.ready_timeout_s)."
        return f"{dead.title} {what}\n{last_lines(dead.log)}"

    # ---- parts of the above ----

    def _begin_split(self) -> None:
        """Writes the control file of the split: a ramp begins with the stage, and who was stopped stays out."""
        split_start.begin(self.stage, self.split_folder)

    def _await_broker(self) -> None:
        """Workers and jobs API do without a cache, and not without their queue."""
        broker = self.cache
        if broker is None or not self._fetch_work:
            return
        ready_s = self.stage.lifecycle.ready_timeout_s
        wait_until(lambda: broker.process.poll() is not None or self._answers(broker), ready_s)
        if not self._answers(broker):
            raise LaunchError(self.told(broker))
        address = valkey.url(*valkey.host_and_port(broker.url), self._cache_password)
        valkey.write_secret(self.queue_folder / BROKER_FILE, address)  # for `rung jobs`

    def _await_end(self, member: Member) -> None:
        """Waits until its process has ended; kills it when its time is over. One that stays all the same is left."""
        if not wait_until(lambda: member.process.poll() is not None, member.kill_at_s - time.monotonic()):
            member.process.kill()
            if not wait_until(lambda: member.process.poll() is not None, STOP_GRACE_S):
                log.error(
                    "%s (pid %d) was killed, and has not ended within %g s", member.title, member.pid, STOP_GRACE_S
                )
        self._let_go(member)
        member.stopped_s = member.stopped_s or time.monotonic()
        member.state = "gone"

    def _gateway_has_all(self) -> bool:
        if self.gateway is None or self.gateway.state != "ready":
            return self.gateway is None
        if self._fetch_work:
            return True
        generation, rows = self._seen_by_gateway()
        ready = (r.number for r in self.replicas if r.state == "ready")
        return generation >= self.generation and all(rows.get(number, {}).get("ready") for number in ready)


def _pinned(stage: Stage) -> Stage:
    try:
        return pinned(stage)
    except (StageError, OSError) as error:
        raise LaunchError(str(error)) from None
