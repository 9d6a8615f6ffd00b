"""What has become of a worker's jobs, written down by a thread of its own, so that the device goes on meanwhile.

    Ended ──▶ [ a few batches ] ──▶ done: result stored, acknowledged   again: nack   dead: dead letter, failure stored
                                       └─ broker or results down: tried again, under leases that are extended

Batches that have come meanwhile are stored in one transaction. No twin: in the simulator storing takes a time.
"""

from __future__ import annotations

import logging
import queue
import threading
from dataclasses import dataclass, field

import orjson

from reference_apps.broker import BrokerDownError, Job
from reference_apps.job_store import JobStore
from reference_apps.leases import Leases
from reference_apps.logs import fields
from reference_apps.results import Result, ResultsDownError
from reference_apps.worker_metrics import WorkerMetrics
from stages.policies.queueing import retry_delay_s
from stages.queue import Queue

# Batches that may wait for their storing; then the device waits too.
UNSTORED_MAX = 8
DOWN_S, DOWN_MAX_S = 0.1, 2.0  # pauses while broker or results are down

log = logging.getLogger("rung.worker")


@dataclass
class Ended:
    """What has become of some jobs: done (with a result, unless they had one before), to be tried again, dead."""

    done: list[Job] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    again: list[tuple[Job, str]] = field(default_factory=list)  # with what went wrong
    dead: list[tuple[Job, Result]] = field(default_factory=list)

    @property
    def jobs(self) -> list[Job]:
        """All of them."""
        return [*self.done, *(job for job, _ in self.again), *(job for job, _ in self.dead)]

    def add(self, other: Ended) -> None:
        """Takes the other's jobs in."""
        self.done += other.done
        self.results += other.results
        self.again += other.again
        self.dead += other.dead


class Settling:
    """Writes down what has become of jobs, and lets go of their leases."""

    def __init__(self, store: JobStore, settings: Queue, leases: Leases, metrics: WorkerMetrics) -> None:
        self._store, self._settings, self._leases, self._metrics = store, settings, leases, metrics
        self._waiting: queue.Queue[Ended | None] = queue.Queue(UNSTORED_MAX)
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="settling", daemon=True)

    def open(self) -> None:
        """Begins."""
        self._thread.start()

    def put(self, ended: Ended) -> None:
        """Hands jobs on; waits while too many batches wait already."""
        self._waiting.put(ended)

    def end(self) -> None:
        """Nothing comes any more."""
        self._waiting.put(None)

    def close(self, timeout_s: float) -> None:
        """Waits until all is written down; what is not by then is given up, and others do those jobs again."""
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self._given_up.set()

    def _run(self) -> None:
        last = False
        while not last and (ended := self._waiting.get()) is not None:
            while not last and not self._waiting.empty():
                more = self._waiting.get()
                last = more is None
                ended.add(more or Ended())
            self._settle(ended)
            self._leases.drop(ended.jobs)

    def _settle(self, ended: Ended) -> None:
        """Tries until everything is written down, or the worker has to end."""
        pause_s = DOWN_S
        while True:
            try:
                self._write(ended)
                return
            except (BrokerDownError, ResultsDownError) as error:
                self._metrics.store_failed()
                told = fields(jobs=len(ended.jobs), why=str(error), again_in_s=pause_s)
                log.warning("results wait", extra=told)
                if self._given_up.wait(pause_s):
                    return
                pause_s = min(2 * pause_s, DOWN_MAX_S)
            except Exception:
                log.exception("jobs could not be written down; they come back when their leases are over")
                return

    def _write(self, ended: Ended) -> None:
        """Every step may be repeated: what is not ours any more is left alone, and what is stored stays."""
        settings = self._settings
        if ended.done:
            self._store.finish(ended.done, ended.results)
        for job, error in ended.again:
            delay_s = retry_delay_s(job.attempt, settings.retry_delay_s, settings.retry_delay_max_s)
            self._store.broker.nack(job, error, delay_s)
        for job, result in ended.dead:
            error = str(orjson.loads(result.answer)["detail"])
            log.warning("poison", extra=fields(job=job.job, attempt=job.attempt, why=error))
            if self._store.broker.dead_letter(job, error):
                self._store.results.store([result])
