"""The leases of the jobs that a worker has, extended from a thread of its own for as long as it has them.

    claim ──▶ hold ──▶ extended every third of a lease ──▶ drop: acknowledged, or given back

A worker that is killed extends nothing any more, and what it had goes to another when its leases run out.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Self

from reference_apps.broker import BATCH_MAX, Broker, BrokerDownError, Job
from reference_apps.logs import fields
from stages.policies.queueing import extend_after_s

# When the broker did not answer, it is asked again after this share of the usual time.
_AGAIN_SHARE = 0.25

log = logging.getLogger("rung.worker")


class Leases:
    """Jobs under leases of `lease_s` seconds. A context manager: within it they are extended."""

    def __init__(self, broker: Broker, lease_s: float, lost: Callable[[int], None] = lambda _: None) -> None:
        self._broker, self._lease_s, self._lost = broker, lease_s, lost
        self._held: dict[tuple[str, str], Job] = {}  # by job and lease: one that came twice is there twice
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._extend, name="leases", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join(self._lease_s)

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, jobs: Iterable[Job]) -> None:
        """From now on these are extended."""
        with self._lock:
            self._held |= {(job.job, job.lease): job for job in jobs}

    def drop(self, jobs: Iterable[Job]) -> None:
        """These are not extended any more."""
        with self._lock:
            for job in jobs:
                self._held.pop((job.job, job.lease), None)

    def _extend(self) -> None:
        usual_s = extend_after_s(self._lease_s)
        wait_s = usual_s
        while not self._closing.wait(wait_s):
            with self._lock:
                jobs = list(self._held.values())
            wait_s = usual_s
            try:
                for start in range(0, len(jobs), BATCH_MAX):
                    some = jobs[start : start + BATCH_MAX]
                    if (lost := len(some) - self._broker.extend(some, self._lease_s)) > 0:
                        self._note_lost(some, lost)
            except BrokerDownError as error:
                log.warning("leases not extended", extra=fields(jobs=len(jobs), why=str(error)))
                wait_s = _AGAIN_SHARE * usual_s
            except Exception:
                log.exception("leases not extended")
                wait_s = _AGAIN_SHARE * usual_s

    def _note_lost(self, asked: list[Job], lost: int) -> None:
        """Some are not ours any more, unless they were finished between the two looks."""
        with self._lock:
            still = sum((job.job, job.lease) in self._held for job in asked)
        if lost > len(asked) - still:
            lost -= len(asked) - still
            log.warning("leases ran out, and others may have the jobs", extra=fields(jobs=lost))
            self._lost(lost)
