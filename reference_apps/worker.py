"""One worker: fetches jobs from the queue in batches, has its device compute them, and stores what came out.

    broker ── claim under a lease ──▶ company? ──▶ decode ──▶ Device ──▶ Settling: result stored, job acknowledged
                 ▲                                   │ poison ─▶ dead letter     (a thread of its own: the device
                 └─ nack: again later ◀──────────────┘ late   ─▶ timed_out        takes its next batch meanwhile)

Workers compete: whoever is free takes the next jobs, and nobody sends them any. A job stays under its lease, which is
extended, until its result is stored; a worker that is killed leaves its jobs to the others, when their leases run out.
Whether a result is there already is asked for jobs that were delivered before. A batch that fails is run again job by
job, and what fails then is poison (stages/policies/poison.py). Beside another model on one GPU it waits for its turn
(gpu_memory.py). A client that does not wait any more is not noticed: only a deadline takes a job out of the line.

Twin: simulator/worker.py.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import orjson
from starlette.types import ASGIApp, Receive, Scope, Send

from reference_apps.broker import BrokerDownError, Job
from reference_apps.decoding import BadInputError, Decodes, decode
from reference_apps.envelope import Envelope, EnvelopeError, unpack
from reference_apps.failure_log import FailureLog
from reference_apps.gpu_memory import Card
from reference_apps.job_store import JobStore
from reference_apps.leases import Leases
from reference_apps.logs import fields
from reference_apps.replica import BATCHES_KEPT
from reference_apps.results import Outcome, Result, ResultsDownError, failure
from reference_apps.settling import DOWN_MAX_S, DOWN_S, Ended, Settling
from reference_apps.worker_metrics import WorkerMetrics
from reference_apps.worker_model import PlacedModel
from reference_apps.worker_web import web
from stages.policies import admission as admits
from stages.policies import batching as leaves
from stages.policies.poison import is_poison
from stages.spec import Stage

__all__ = ["Worker"]

log = logging.getLogger("rung.worker")

# How long one question for jobs waits: after so long a worker looks whether it is to end, or to make room on its GPU.
CLAIM_WAIT_S = 0.25
DEFER_S = 0.1  # between two looks of one that waits for room on a GPU
ERROR_MAX_CHARS = 500


@dataclass(slots=True)
class _Task:
    """One job that can be computed."""

    job: Job
    envelope: Envelope
    inputs: np.ndarray


class Worker:
    """A competing consumer of one model on one device: `load()` it, then serve it as an ASGI application."""

    def __init__(
        self,
        stage: Stage,
        number: int,
        store: JobStore,
        card: Card | None = None,
        first_batch: int = 0,
        begin_at_s: float = 0.0,  # of the monotonic clock: its machine is not there before
    ) -> None:
        if stage.queue is None:
            raise ValueError(f"{stage.name} has no queue")
        self.stage, self.number = stage, number
        self.draining = False
        self.batches: deque[tuple[int, float, float, int]] = deque(maxlen=BATCHES_KEPT)
        self.model = PlacedModel(stage, card, lambda: self.metrics.entered_card())
        self.metrics = WorkerMetrics(
            lambda: len(self.leases),
            lambda: self.model.overruns,
            lambda: self.model.on_card,
            stage.batching.max_batch_size,
        )
        self.leases = Leases(store.broker, stage.queue.lease_s, self.metrics.leases_lost)
        self._queue, self._store = stage.queue, store
        self._settling = Settling(store, stage.queue, self.leases, self.metrics)
        self._failures = FailureLog(log, stage.logs)
        self._inputs: Decodes | None = None
        self._idle = False
        self._begin_at_s = begin_at_s
        self._numbers = itertools.count(first_batch)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="device", daemon=True)
        self._web: ASGIApp = web(self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: probes and metrics. Work comes from the queue alone."""
        await self._web(scope, receive, send)

    @property
    def ready(self) -> bool:
        """Whether jobs would be computed, were there any; one that waits for its turn on a GPU is ready too."""
        return self._inputs is not None and not self.draining

    def load(self) -> None:
        """Loads the model; one that shares a GPU is loaded when its turn comes.

        Raises ValueError for weights that do not fit, and for a missing GPU.
        """
        from reference_apps.models import load_inputs

        self.model.prepare()
        self._inputs = cast(Decodes, load_inputs(self.stage.model))

    def open(self) -> None:
        """Begins to work."""
        self.leases.__enter__()
        self._settling.open()
        self._thread.start()

    def drain(self) -> None:
        """Claims no more jobs; those that it has are computed and stored."""
        self.draining = True
        self._stopping.set()

    def close(self) -> None:
        """Drains, and waits until everything is stored, for lifecycle.drain_timeout_s; the rest others do again."""
        self.drain()
        ends_s = time.monotonic() + self.stage.lifecycle.drain_timeout_s
        if self._thread.is_alive():
            self._thread.join(self.stage.lifecycle.drain_timeout_s)
        self._settling.close(max(0.0, ends_s - time.monotonic()))
        self.leases.__exit__()
        self.model.close()

    # ---- the device's thread: claim, compute, claim … ----

    def _serve(self) -> None:
        self._stopping.wait(max(0.0, self._begin_at_s - time.monotonic()))
        pause_s = DOWN_S
        while not self._stopping.is_set():
            try:
                if not self.model.may_compute(self._idle, self._anything_waits):
                    self._stopping.wait(DEFER_S)
                    continue
                jobs = self._claim()
                self._idle = not jobs
                if jobs:
                    self._work(jobs)
                pause_s = DOWN_S
                continue
            except BrokerDownError as error:
                log.warning("no jobs can be had", extra=fields(why=str(error), again_in_s=pause_s))
            except Exception:
                log.exception("the worker cannot work")
            self.metrics.store_failed()
            self._stopping.wait(pause_s)
            pause_s = min(2 * pause_s, DOWN_MAX_S)
        self._settling.end()

    def _anything_waits(self) -> bool:
        return self._store.broker.depth().waiting > 0

    def _claim(self) -> list[Job]:
        """The next batch; waits for company as long as its oldest job has not waited enough. Empty: there is none."""
        batching, broker, lease_s = self.stage.batching, self._store.broker, self._queue.lease_s
        most = batching.max_batch_size
        jobs = broker.claim(most, lease_s, CLAIM_WAIT_S)
        self.leases.hold(jobs)
        if not jobs or len(jobs) == most:
            return jobs
        oldest_s = time.monotonic() - max(map(_age_s, jobs))
        while len(jobs) < most and not self._stopping.is_set():
            leaves_s = leaves.leaves_at_s(len(jobs), oldest_s, most, batching.batch_wait_timeout_s)
            if (wait_s := leaves_s - time.monotonic()) <= 0.0:
                break
            try:
                more = broker.claim(most - len(jobs), lease_s, wait_s)
            except Exception as error:  # those that it has can be computed all the same
                log.warning("no more jobs can be had", extra=fields(why=_told(error)))
                break
            self.leases.hold(more)
            jobs += more
        return jobs

    def _work(self, jobs: list[Job]) -> None:
        """Computes a batch and hands it on to be stored. Whatever goes wrong, its jobs are tried again."""
        ended = Ended()
        try:
            if tasks := self._tasks(jobs, ended):
                self._compute(tasks, ended)
        except Exception as error:
            self._failures.note(f"a batch of {len(jobs)} could not be worked on")
            ended = Ended(again=[(job, _told(error)) for job in jobs])
        self._settling.put(ended)

    def _tasks(self, jobs: Sequence[Job], ended: Ended) -> list[_Task]:
        """The jobs that are to be computed; what becomes of the others goes into `ended`."""
        known = self._known(jobs)
        tasks = []
        for job in jobs:
            if job.job in known:
                ended.done.append(job)
                self.metrics.ended("known")
                continue
            envelope: Envelope | None = None
            try:
                envelope = unpack(job.payload)
                if admits.expired(envelope.age_s, envelope.deadline_s):
                    text = failure("deadline", "The deadline passed while the job waited; it was not computed.")
                    ended.done.append(job)
                    ended.results.append(self._result(job, envelope, "timed_out", text))
                    self.metrics.ended("late")
                    continue
                assert self._inputs is not None
                inputs = decode(self._inputs, envelope.content_type, envelope.shape, envelope.body)
                tasks.append(_Task(job, envelope, inputs))
            except (EnvelopeError, BadInputError) as error:
                ended.dead.append((job, self._failed(job, envelope, "bad_input", str(error))))
                self.metrics.ended("poison")
        return tasks

    def _known(self, jobs: Sequence[Job]) -> set[str]:
        """Those that have an answer already, from a delivery whose acknowledgement was lost."""
        before = [job.job for job in jobs if job.attempt > 1]
        try:
            found = self._store.results.find(before) if before else {}
        except ResultsDownError:  # computing once more changes nothing
            return set()
        return {result.job for result in found.values() if result.outcome != "failed"}

    def _compute(self, tasks: list[_Task], ended: Ended) -> None:
        number, size = next(self._numbers), len(tasks)
        waits_s = [task.envelope.age_s for task in tasks]
        started_s = time.monotonic()
        answers = self._run([task.inputs for task in tasks])
        finished_s = time.monotonic()
        self.batches.append((number, started_s, finished_s, size))
        self.metrics.batch(waits_s, size, finished_s - started_s)
        failed = sum(isinstance(answer, Exception) for answer in answers)
        for task, answer in zip(tasks, answers, strict=True):
            job = task.job
            if not isinstance(answer, Exception):
                record = self._record(task, number, size, started_s, finished_s)
                ended.done.append(job)
                ended.results.append(self._result(job, task.envelope, "ok", orjson.dumps(answer).decode(), record))
                self.metrics.ended("ok")
            elif is_poison(failed, size):
                ended.dead.append((job, self._failed(job, task.envelope, "model_error", _told(answer))))
                self.metrics.ended("poison")
            else:
                ended.again.append((job, _told(answer)))
                self.metrics.ended("again")

    def _run(self, inputs: list[np.ndarray]) -> list[dict[str, Any] | Exception]:
        """Answers of a batch; when it fails, each alone, so that one bad item does not fail its neighbours."""
        assert self.model.device is not None
        try:
            return [*self.model.device.run(inputs)]
        except Exception as error:
            self._failures.note(f"a batch of {len(inputs)} failed")
            if len(inputs) == 1:
                return [error]
        return [answer for each in inputs for answer in self._run([each])]

    # ---- what is told of a job ----

    def _result(self, job: Job, envelope: Envelope | None, outcome: Outcome, answer: str, record: str = "") -> Result:
        now_at, callback = time.time(), None if envelope is None else envelope.callback
        return Result(
            job.job,
            outcome,
            answer,
            self.stage.model.name,
            self.stage.model.answers_as,
            job.attempt,
            job.enqueued_s,
            now_at,
            now_at + self._queue.result_ttl_s,
            record,
            callback,
            None if callback is None else now_at,
        )

    def _failed(self, job: Job, envelope: Envelope | None, title: str, detail: str) -> Result:
        return self._result(job, envelope, "failed", failure(title, detail))

    def _record(self, task: _Task, number: int, size: int, started_s: float, finished_s: float) -> str:
        """Where this answer's time went, for whoever measures: times of this machine's monotonic clock, in seconds."""
        arrived = f"arrived_s={task.envelope.came_s:.6f}," if task.envelope.here else ""
        return (
            f"replica={self.number},batch={number},batch_size={size},{arrived}"
            f"started_s={started_s:.6f},finished_s={finished_s:.6f},tries={task.job.attempt}"
        )


def _age_s(job: Job) -> float:
    try:
        return unpack(job.payload).age_s
    except EnvelopeError:
        return 0.0


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:ERROR_MAX_CHARS]
