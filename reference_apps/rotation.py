"""Which replicas there are, and which of them may be sent requests.

    replicas.json ── looked at every 50 ms ──▶ Rotation ◀── GET /readyz of each, at its interval
                                                  ▲
                                      how each request ended

The file is written by whoever supervises the fleet, and replaced as a whole. What takes a replica out of rotation and
brings it back is decided in stages/policies/health.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from reference_apps.upstream import Address, LostError, Upstream
from stages.fleet import Gateway
from stages.policies.health import Health, speaks_against

LOOK_S = 0.05  # at replicas.json

log = logging.getLogger("rung.gateway")


@dataclass(eq=False, slots=True)
class Replica:
    """One replica as the gateway knows it."""

    number: int
    url: str
    health: Health
    draining: bool
    address: Address
    outstanding: int = 0  # requests sent there that are not back
    probing: asyncio.Task[None] | None = None
    held_s: float = 0.0  # what requests have spent there, all together, up to `counted_s`
    counted_s: float = 0.0

    def count(self, change: int, now_s: float) -> None:
        """So many more requests are there from now on."""
        self.held_s, self.counted_s = self.held_until_s(now_s), now_s
        self.outstanding += change

    def held_until_s(self, now_s: float) -> float:
        """Seconds that requests have spent there, all together, those that are there still included."""
        return self.held_s + self.outstanding * (now_s - self.counted_s)


class Rotation:
    """The replicas by number. `left` hears the number of one that is gone; `ejected` of one that failed too often.

    `renewed` hears the epoch that the file gives for what is kept of answers.
    """

    def __init__(
        self,
        gateway: Gateway,
        file: Path,
        upstream: Upstream,
        left: Callable[[int], None] = lambda _: None,
        ejected: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.replicas: dict[int, Replica] = {}
        self.generation = -1  # of the file; -1 before it was first read
        self.renewed: Callable[[int], None] = lambda _: None
        self._gateway = gateway
        self._file = file
        self._upstream = upstream
        self._left = left
        self._ejected = ejected
        self._seen: tuple[int, int, int] | None = None
        self._looking: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Reads the file, and goes on looking at it; called on the event loop that serves."""
        self._look()
        self._looking = asyncio.create_task(self._keep_looking())

    async def close(self) -> None:
        """Looks and probes no more."""
        tasks = [replica.probing for replica in self.replicas.values()] + [self._looking]
        for task in tasks:
            if task is not None:
                task.cancel()
        await asyncio.gather(*(task for task in tasks if task is not None), return_exceptions=True)

    def in_rotation(self, now_s: float) -> list[Replica]:
        """The replicas that may be sent requests now."""
        return [r for r in self.replicas.values() if not r.draining and r.health.in_rotation(now_s)]

    def came_back(self, replica: Replica, reason: str, now_s: float) -> None:
        """A request to `replica` ended: with an answer, or with one of stages.outcomes.REASONS."""
        health = replica.health.after_request(not speaks_against(reason), now_s)
        if health.ejected(now_s) and not replica.health.ejected(now_s):
            log.warning("replica %d is ejected for %g s: %s", replica.number, self._gateway.eject_s, reason)
            self._ejected(replica.number)
        replica.health = health

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            self._look()

    def _look(self) -> None:
        """Takes the file over if it is another one than before; one that cannot be read changes nothing."""
        try:
            found = self._file.stat()
            seen = (found.st_mtime_ns, found.st_ino, found.st_size)
            if seen == self._seen:
                return
            self._seen = seen
            told = json.loads(self._file.read_text(encoding="utf-8"))
            rows = {int(row["replica"]): (str(row["url"]), bool(row["draining"])) for row in told["replicas"]}
            for url, _ in rows.values():
                Address.of(url)
            generation, epoch = int(told["generation"]), int(told.get("cache", 0))
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s cannot be read, and the replicas stay as they were: %r", self._file, error)
            return
        self._take_over(rows)
        self.renewed(epoch)
        self.generation = generation

    def _take_over(self, rows: dict[int, tuple[str, bool]]) -> None:
        for number, known in list(self.replicas.items()):
            if number not in rows or rows[number][0] != known.url:
                self._remove(known)
        for number, (url, draining) in rows.items():
            if number not in self.replicas:
                self._add(number, url)
            self.replicas[number].draining = draining

    def _add(self, number: int, url: str) -> None:
        gateway = self._gateway
        health = Health(gateway.unhealthy_after, gateway.healthy_after, gateway.eject_after, gateway.eject_s)
        replica = Replica(number, url, health, False, Address.of(url))
        self.replicas[number] = replica
        replica.probing = asyncio.create_task(self._keep_probing(replica))

    def _remove(self, replica: Replica) -> None:
        """Forgets a replica; requests that are still there may come back."""
        del self.replicas[replica.number]
        if replica.probing is not None:
            replica.probing.cancel()
        self._upstream.forget(replica.address)
        self._left(replica.number)

    async def _keep_probing(self, replica: Replica) -> None:
        gateway = self._gateway
        due_s = time.monotonic()
        while True:
            ok = await self._ready(replica.address, gateway.probe_timeout_s)
            if (health := replica.health.after_probe(ok)).ready != replica.health.ready:
                log.info("replica %d is %s by its probes", replica.number, "ready" if health.ready else "not ready")
            replica.health = health
            due_s = max(due_s + gateway.probe_interval_s, time.monotonic())
            await asyncio.sleep(due_s - time.monotonic())

    async def _ready(self, address: Address, timeout_s: float) -> bool:
        with contextlib.suppress(LostError, TimeoutError):
            async with asyncio.timeout(timeout_s):
                return (await self._upstream.get(address, b"/readyz")).status == 200
        return False
