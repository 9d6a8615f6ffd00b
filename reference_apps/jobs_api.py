"""The address of a queued stage: work is accepted now and done later, and whoever asks learns what became of it.

    POST /jobs ──▶ checked ─▶ PutLine ─▶ broker      202, Location: /jobs/ID          ▲ a callback, signed
    GET /jobs/ID?wait_s= ──▶ ResultWatch ─▶ results  200: done, dead, or where it is  │ (job_webhook.py)
    POST /predict ──▶ both: put, wait, answer        200 as a replica's; 504: it is at /jobs/ID later

The input is checked before it is accepted: what cannot be read is told at once, and not by a dead letter in a minute.
`Idempotency-Key` makes a request that is sent again the same job. What is accepted is on the disk. A client that leaves
its POST /predict leaves its job behind, which is computed unless its deadline passes. These paths are bare ASGI before
a FastAPI application that serves all else, as in reference_apps/replica.py; what may be asked is in jobs_door.py.

Not here: authentication (it listens on this machine), lists of jobs, and taking a job back. No twin: the simulator's
clients put jobs into its broker themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import cast

from starlette.types import ASGIApp, Receive, Scope, Send

from reference_apps.asgi import Answer, ClientGoneError, Headers, Patience, read_body, send_answer, too_long
from reference_apps.broker import Accepted, BrokerDownError, Depth, NewJob, QueueFullError
from reference_apps.decoding import BadInputError, Decodes, decode
from reference_apps.envelope import pack, sealed
from reference_apps.job_store import JobStore
from reference_apps.job_webhook import Callbacks
from reference_apps.jobs_door import Asked, RefusedError, accepted, asked_of, job_of, refused, replied, told, wait_of
from reference_apps.jobs_housekeeping import Housekeeping
from reference_apps.jobs_metrics import JobsMetrics
from reference_apps.jobs_web import web
from reference_apps.logs import RequestLog
from reference_apps.models import load_inputs
from reference_apps.put_line import LineFullError, PutLine
from reference_apps.result_watch import ResultWatch
from reference_apps.results import ResultsDownError
from stages.alerts import latency_bounds_of
from stages.policies import admission as admits
from stages.spec import Stage

# Requests inside at once, those that wait for a result included; more are refused.
INSIDE_MAX = 10_000
BODY_TIMEOUT_S = 30.0
DEPTH_TIMEOUT_S = 0.4
# What the queue may take beyond the wait for a result, before the client is told that it does not answer.
_SLACK_S = 1.0


@dataclass(slots=True)
class _Request:
    """One request on its way. Times are seconds of the monotonic clock."""

    headers: Headers
    query: bytes
    waits: bool  # it is a POST /predict
    began_s: float
    came_s: float = 0.0  # when it had been read
    job: str = ""


class JobsApi:
    """The jobs API of a stage: an ASGI application with lifespan. Without a `secret` nobody is called back."""

    def __init__(self, stage: Stage, store: JobStore, secret: bytes | None = None) -> None:
        if stage.queue is None:
            raise ValueError(f"{stage.name} has no queue")
        self.stage, self.queue = stage, stage.queue
        self.draining = False
        self.inside = 0
        self.metrics = JobsMetrics(lambda: self.inside, lambda: len(self._watch), latency_bounds_of(stage))
        self.request_log = RequestLog(logging.getLogger("rung.jobs"), stage.logs)
        self._store, self._secret = store, secret
        self._inputs = cast(Decodes, load_inputs(stage.model))
        self._line, self._watch = PutLine(store.broker), ResultWatch(store)
        self._asking = ThreadPoolExecutor(2, "depth")
        self._beside = contextlib.ExitStack()
        self._web: ASGIApp = web(self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: jobs on the short path, everything else through FastAPI."""
        method, path = (scope["method"], scope["path"]) if scope["type"] == "http" else ("", "")
        if method == "POST" and path in ("/jobs", "/predict"):
            await self._post(scope, receive, send)
        elif method == "GET" and path.startswith("/jobs/"):
            await self._get(scope, receive, send)
        else:
            await self._web(scope, receive, send)

    def open(self) -> None:
        """Begins; called on the event loop that will serve."""
        self._line.open()
        self._watch.open()
        self._beside.enter_context(Housekeeping(self.stage, self._store))
        if self._secret is not None:
            most, private = self.queue.webhook_attempts_max, self.queue.webhook_private
            ended = self.metrics.called_back
            self._beside.enter_context(Callbacks(self._store.results, self._secret, most, private, ended=ended))

    def drain(self) -> None:
        """Accepts no more jobs. A POST /predict still gets its answer; whoever only looks is told what is known."""
        self.draining = True
        self._watch.hurry()

    def close(self) -> None:
        """Ends what goes on beside."""
        self._beside.close()
        for each in (self._line, self._watch):
            each.close(self.stage.lifecycle.drain_timeout_s)
        self._asking.shutdown(wait=False, cancel_futures=True)

    async def depth(self) -> Depth | None:
        """The queue's depth; None when the broker does not tell it in time."""
        try:
            asking = asyncio.get_running_loop().run_in_executor(self._asking, self._store.broker.depth)
            return await asyncio.wait_for(asking, DEPTH_TIMEOUT_S)
        except (BrokerDownError, TimeoutError):
            return None

    # ---- POST /jobs, POST /predict ----

    async def _post(self, scope: Scope, receive: Receive, send: Send) -> None:
        began_s = time.monotonic()
        request = _Request(dict(scope["headers"]), scope["query_string"], scope["path"] == "/predict", began_s)
        reason = ""
        try:
            answer = await self._bounded(request, receive)
        except RefusedError as error:
            reason, answer = error.reason, refused(error, self.stage.admission.retry_after_s, request.job)
        if answer is None:
            self.metrics.client_gone()
            return
        took_s = time.monotonic() - (request.came_s or began_s)
        self.metrics.answered(reason, took_s)
        self.request_log.note(request.headers, answer, took_s)
        await send_answer(send, answer)

    async def _bounded(self, request: _Request, receive: Receive) -> Answer | None:
        """The answer; None when its client has left. Raises RefusedError."""
        if not admits.room(self.inside, INSIDE_MAX):
            raise RefusedError("gateway_full", f"{INSIDE_MAX} requests are inside. Try again later.")
        asked = asked_of(request.query, request.headers, self.queue, request.waits, self.stage.admission.deadline_s)
        self.inside += 1
        patience = Patience(receive, request.began_s + max(BODY_TIMEOUT_S, asked.wait_s + _SLACK_S))
        try:
            body = await read_body(receive, self.stage.admission.max_body_bytes)
            request.came_s = time.monotonic()
            patience.listen()
            return await self._answer(request, asked, body)
        except ClientGoneError:
            return None
        except asyncio.CancelledError:
            if patience.over and not request.came_s:
                text = "The rest of the body did not come in time. Send it at once."
                raise RefusedError("bad_input", text, 408) from None
            if patience.over:
                text = "The queue did not answer in time. Send it again under the same Idempotency-Key."
                raise RefusedError("broker_down", text) from None
            if patience.gone:
                return None
            raise
        finally:
            patience.end()
            self.inside -= 1

    async def _answer(self, request: _Request, asked: Asked, body: bytes | None) -> Answer:
        job = await self._put(self._new(asked, body))
        request.job = job.job
        self.metrics.accepted(job.duplicate)
        if not request.waits:
            return accepted(job.job, job.duplicate)
        left_s = max(0.0, request.began_s + asked.wait_s - time.monotonic())
        try:
            seen = await self._watch.see(job.job, left_s, just_put=not job.duplicate, stays=True)
        except (BrokerDownError, ResultsDownError) as error:
            raise RefusedError("broker_down", f"{error} The job was accepted: look at /jobs/{job.job} later.") from None
        return replied(job.job, seen, asked, request.came_s)

    def _new(self, asked: Asked, body: bytes | None) -> NewJob:
        """The job, if its input can be read."""
        if body is None:
            raise RefusedError("bad_input", too_long(self.stage.admission.max_body_bytes), 413)
        try:
            decode(self._inputs, asked.content_type, asked.shape, body)
        except BadInputError as error:
            raise RefusedError("bad_input", str(error), error.status) from None
        envelope = sealed(asked.content_type, asked.shape, body, asked.callback, asked.deadline_s)
        return NewJob(pack(envelope), asked.priority, asked.key)

    async def _put(self, job: NewJob) -> Accepted:
        if self.draining:
            raise RefusedError("draining", "This service is stopping. Try again.")
        try:
            return await self._line.put(job)
        except (QueueFullError, LineFullError) as error:
            raise RefusedError("queue_full", f"{error} Try again later.") from None
        except BrokerDownError as error:
            text = f"{error} The job may have been accepted or not: send it again under the same Idempotency-Key."
            raise RefusedError("broker_down", text) from None

    # ---- GET /jobs/{id} ----

    async def _get(self, scope: Scope, receive: Receive, send: Send) -> None:
        began_s = time.monotonic()
        self.metrics.looked()
        try:
            answer = await self._looked(scope, receive, began_s)
        except RefusedError as error:
            answer = refused(error, self.stage.admission.retry_after_s)
        if answer is None:
            self.metrics.client_gone()
            return
        self.request_log.note(dict(scope["headers"]), answer, time.monotonic() - began_s)
        await send_answer(send, answer)

    async def _looked(self, scope: Scope, receive: Receive, began_s: float) -> Answer | None:
        job, wait_s = job_of(scope["path"]), wait_of(scope["query_string"], self.queue.poll_wait_max_s)
        if self.draining or not admits.room(self.inside, INSIDE_MAX):
            wait_s = 0.0
        self.inside += 1
        patience = Patience(receive, began_s + BODY_TIMEOUT_S + wait_s)
        try:
            await read_body(receive, 0)
            patience.listen()
            return told(job, await self._watch.see(job, wait_s))
        except (BrokerDownError, ResultsDownError) as error:
            raise RefusedError("broker_down", str(error)) from None
        except ClientGoneError:
            return None
        except asyncio.CancelledError:
            if patience.over:
                raise RefusedError("broker_down", "The queue did not answer in time. Try again.") from None
            if patience.gone:
                return None
            raise
        finally:
            patience.end()
            self.inside -= 1
