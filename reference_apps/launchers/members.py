"""The replicas of a stage, its gateway and its cache's server: which state each of them is in, and its next step.

    _spawn ──▶ starting ──▶ ready ──▶ draining ──▶ stopping ──▶ gone
                  │           │       no new requests: wait until the gateway has nothing there any more, then SIGTERM
                  └───────────┴──▶ died ──▶ whoever found it has it started again

`look` takes every step that is due and never waits. The fleet reaches the gateway as the file replicas.json, which has
those that are ready, or on their way out, and is replaced as a whole (fleet_file.py). What is done with all of them is
in launchers/launcher.py; how a process or a container is started is for a launcher of its own to say.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from abc import ABC, abstractmethod
from collections import deque
from pathlib import Path

from reference_apps.asking import probe
from reference_apps.launchers import fleet_file, valkey
from reference_apps.launchers.member import (
    CACHE,
    GATEWAY,
    Awaited,
    LaunchError,
    Life,
    Member,
    Nobody,
    Running,
    State,
)
from reference_apps.tolerated import Tolerated
from stages.fleet import Edge
from stages.spec import Stage, device_label, of_replica

log = logging.getLogger("rung.launcher")

# A process that was told to stop has its drain time and so much more; then it is killed.
STOP_GRACE_S = 5.0
# How long one question to a process of this machine may hold up all the others.
ASK_TIMEOUT_S = 0.5
# Lives that are remembered of replicas that are gone. All are written down anew whenever somebody comes or goes.
LIVED_MAX = 500


class Members(ABC):
    """Everything that was started for a stage, and nothing as yet. A step is taken when `look` finds that it is due."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.stage = stage
        self.folder = folder
        self.replicas: list[Member] = []
        self.gateway: Member | None = None
        self.cache: Member | None = None  # the server of cache or queue, where it needs one of its own
        self.cache_epoch = 0  # what the cache has begun with empty
        self._cache_password = valkey.password() if valkey.wanted(stage) else ""
        self.generation = 0  # of replicas.json
        self.lived: deque[Life] = deque(maxlen=LIVED_MAX)  # those that are gone, the last of them
        self._telling = Tolerated("replicas.json cannot be written, and the gateway goes on as it was", log)

    # ---- what a launcher of its own has to say ----

    @abstractmethod
    def _start_replica(self, member: Member) -> Running:
        """Starts replica `member.number`, on `member.port` unless that is 0; its output goes to `member.log`."""

    @abstractmethod
    def _start_gateway(self, member: Member) -> Running:
        """Starts the gateway, which reads `replicas_file`; of a stage with [queue] the jobs API."""

    @abstractmethod
    def _start_cache(self, member: Member) -> Running:
        """Starts the server of the cache, or of the queue, on `member.port` unless that is 0."""

    @abstractmethod
    def _addresses(self, member: Member) -> tuple[int, str, str] | None:
        """Its port, its URL from here and its URL for the gateway, once it listens."""

    def _published(self) -> None:  # noqa: B027  (most gateways look for themselves)
        """A new replicas.json was written."""

    def _looked(self) -> None:  # noqa: B027  (most gateways look for themselves)
        """It is time for another look."""

    def _let_go(self, member: Member) -> None:  # noqa: B027  (not everything holds something)
        """The process of `member` has ended: what was held for it may go."""

    # ---- what is there ----

    @property
    def replicas_file(self) -> Path:
        """Where the gateway finds the fleet."""
        return self.folder / "replicas.json"

    @property
    def members(self) -> list[Member]:
        """The replicas, and the gateway and its cache's server if there are any."""
        return [*self.replicas, *(member for member in (self.gateway, self.cache) if member is not None)]

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes that run."""
        return tuple(member.pid for member in self.members if member.pid and member.process.poll() is None)

    def lives(self) -> list[Life]:
        """Every replica that there was, in the order of starting; of those that are gone, the last LIVED_MAX."""
        return sorted([*self.lived, *(r.life() for r in self.replicas)], key=lambda life: life.started_s)

    @property
    def _fetch_work(self) -> bool:
        """Whether the replicas are workers, which fetch their work and are sent none."""
        return self.stage.queue is not None

    # ---- one member's next step ----

    def look(self) -> list[Member]:
        """Takes every step that is due. Gives those that were found dead, each once; `restart` brings one back."""
        self._looked()
        if self._telling.failing:
            self._publish()
        return [member for member in self.members if self._step(member)]

    def _step(self, member: Member) -> bool:
        """Takes what is due for one member; True when it was found dead, which nobody had asked for."""
        ended = member.process.poll() is not None
        match member.state:
            case "starting" if isinstance(member.process, Awaited):
                self._begin_if_there(member)
            case "stopping" if ended:
                self._gone(member)
            case "draining" if ended:
                self._gone(member)
            case "starting" | "ready" if ended:
                self._die(member)
                return True
            case "starting" if time.monotonic() >= member.not_before_s and self._answers(member):
                member.ready_s = time.monotonic()
                self._turn(member, "ready")
            case "starting" if self._overdue(member):
                member.process.kill()
            case "draining" if time.monotonic() > member.kill_at_s or self._has_nothing(member):
                self._terminate(member)
            case "stopping" if time.monotonic() > member.kill_at_s:
                member.process.kill()
        return False

    def _spawn(self, number: int, not_before_s: float = 0.0, launch_at_s: float = 0.0) -> Member:
        device = device_label(of_replica(self.stage, number))
        member = self._new(number, f"{'worker' if self._fetch_work else 'replica'}-{number}", device)
        member.not_before_s, member.launch_at_s = not_before_s, launch_at_s
        if launch_at_s > time.monotonic():
            member.process = Awaited()
        else:
            self._launch(member)
        self.replicas.append(member)
        return member

    def _begin_if_there(self, member: Member) -> None:
        """Starts a replica whose machine has come; its life, and its bill, began when it was asked for."""
        if time.monotonic() < member.launch_at_s:
            return
        asked_s, member.not_before_s = member.started_s, max(member.not_before_s, time.monotonic())
        try:
            self._launch(member)
        except LaunchError as error:
            log.warning("%s could not be started: %s", member.title, error)
            member.process = Nobody()
            self._gone(member)
        member.started_s = asked_s

    def _new(self, number: int, name: str, device: str) -> Member:
        return Member(number, name, device, Nobody(), self.folder / f"{name}.log", time.monotonic())

    def _launch(self, member: Member) -> Member:
        """Starts its process. Raises LaunchError where this machine, or the engine, does not."""
        member.started_s = time.monotonic()
        starts = {GATEWAY: self._start_gateway, CACHE: self._start_cache}
        try:
            member.process = starts.get(member.number, self._start_replica)(member)
        except OSError as error:
            raise LaunchError(f"{member.title}: its process could not be started: {error}") from error
        return member

    def _answers(self, member: Member) -> bool:
        if (found := self._addresses(member)) is None:
            return False
        member.port, member.url, member.inner_url = found
        if member.number == CACHE:
            return valkey.answers(*valkey.host_and_port(member.url), self._cache_password, ASK_TIMEOUT_S)
        # The gateway is ready for its replicas to come and go; whether any is there is asked in `settle`.
        path, edge = ("/healthz", self._edge()) if member.number == GATEWAY else ("/readyz", None)
        return probe(f"{member.url}{path}", ASK_TIMEOUT_S, edge)

    def _overdue(self, member: Member) -> bool:
        return time.monotonic() - max(member.started_s, member.not_before_s) > self.stage.lifecycle.ready_timeout_s

    def _turn(self, member: Member, state: State) -> None:
        """The member is in another state, and the gateway is told."""
        member.state = state
        if state == "draining":
            member.kill_at_s = time.monotonic() + self.stage.lifecycle.drain_timeout_s
        if member.number >= 0:
            self._publish()
        member.since_generation = self.generation

    def _terminate(self, member: Member) -> None:
        member.kill_at_s = time.monotonic() + self.stage.lifecycle.drain_timeout_s + STOP_GRACE_S
        # It stays in replicas.json while it drains: its answers are on their way through the gateway.
        member.state = "stopping"
        if isinstance(member.process, Awaited):
            member.process = Nobody()
        if member.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                member.process.send_signal(signal.SIGTERM)
                member.process.send_signal(signal.SIGCONT)  # one that is paused would never hear of it

    def _die(self, member: Member) -> None:
        self._let_go(member)
        member.stopped_s = time.monotonic()
        self._turn(member, "died")

    def _gone(self, member: Member) -> None:
        self._let_go(member)
        member.stopped_s = member.stopped_s or time.monotonic()
        self.replicas.remove(member)
        self.lived.append(member.life())
        self._turn(member, "gone")

    # ---- the gateway ----

    def _edge(self) -> Edge | None:
        return self.stage.gateway.edge if self.stage.gateway is not None else None

    def _publish(self) -> None:
        """Writes replicas.json anew, as a whole. Where that fails, the gateway stays as it is until the next look."""
        self.generation += 1
        with self._telling:
            fleet_file.publish(self.replicas_file, self.generation, self.cache_epoch, self.replicas)
            self._published()

    def _seen_by_gateway(self) -> fleet_file.Seen:
        """The generation that the gateway works by, and what it knows of each replica; (-1, {}) when it is silent."""
        return fleet_file.seen_by(self.gateway, self._edge(), ASK_TIMEOUT_S)

    def _has_nothing(self, member: Member) -> bool:
        """Whether the gateway knows that the replica drains, and has no request there any more."""
        generation, rows = self._seen_by_gateway()
        return generation >= member.since_generation and not rows.get(member.number, {}).get("outstanding")
