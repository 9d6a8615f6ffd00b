"""One copy of the model server: HTTP in, the batcher and the device behind it, answers out.

    POST /predict ─▶ decode ─▶ room? ─▶ Batcher ─▶ Device ─▶ answer
                       │ 4xx     │ 503                │ 504 deadline, 500 model error

`/predict` is bare ASGI in front of a FastAPI application that serves everything else: the framework would cost
a request more than the rest of the path together. The device's own thread takes its next batch the moment it is
free, so that the event loop never stands between two batches.

Twin: simulator/replica.py.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, cast

import numpy as np
import orjson
from fastapi import FastAPI, Response
from fastapi import Request as HttpRequest
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp, Receive, Scope, Send

from reference_apps.asgi import (
    JSON,
    PREDICT_BODY,
    Answer,
    ClientGoneError,
    Headers,
    deadline_of,
    problem,
    read_body,
    send_answer,
    too_long,
)
from reference_apps.batcher import Batcher, Request
from reference_apps.decoding import BadInputError, Decodes, decode
from reference_apps.device import Device, open_device
from reference_apps.failure_log import FailureLog
from reference_apps.logs import RequestLog
from reference_apps.replica_metrics import ReplicaMetrics
from stages.alerts import latency_bounds_of
from stages.spec import Stage

__all__ = ["Replica"]

log = logging.getLogger("rung.replica")

# The rest of a body that has not come by then does not come.
BODY_TIMEOUT_S = 30.0

# Batches remembered for `GET /batches`: an hour at 25 batches a second.
BATCHES_KEPT = 100_000
# Of them so many are written down before the event loop, which serves requests, goes on with others.
ROWS_AT_ONCE = 1000

# Batches of every size up to this one are run once before the first request.
WARM_BATCH_SIZE_MAX = 32

# What a request without an answer comes to, by its reason; "failed" for all others.
_OUTCOMES = {"": "ok", "queue_full": "shed", "draining": "shed", "deadline": "timed_out"}


@dataclass(slots=True)
class Reply:
    """What the handler of a request wakes up to: an answer, or the reason why there is none."""

    answer: dict[str, Any] | None
    reason: str = ""
    batch: int = -1
    batch_size: int = 0
    started_s: float = 0.0
    finished_s: float = 0.0


class Replica:
    """The server of one model on one device: `load()` it, then serve it as an ASGI application with lifespan."""

    def __init__(self, stage: Stage, number: int = 0, first_batch: int = 0) -> None:
        self.stage = stage
        self.number = number
        self.batcher = Batcher(stage.batching, stage.admission)
        self.metrics = ReplicaMetrics(
            self.batcher, stage.batching.max_batch_size, self._overruns, latency_bounds_of(stage)
        )
        self.request_log = RequestLog(log, stage.logs)
        self._failures = FailureLog(log, stage.logs)
        self.batches: deque[tuple[int, float, float, int]] = deque(maxlen=BATCHES_KEPT)
        self.device: Device | None = None
        self.model: Any = None
        self.draining = False
        self._numbers = itertools.count(first_batch)
        self._thread = threading.Thread(target=self._serve, name="device", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._web: ASGIApp = web(self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: `/predict` on the short path, everything else through FastAPI."""
        if scope["type"] == "http" and scope["path"] == "/predict" and scope["method"] == "POST":
            headers = dict(scope["headers"])
            try:
                async with asyncio.timeout(BODY_TIMEOUT_S):
                    body = await read_body(receive, self.stage.admission.max_body_bytes)
            except ClientGoneError:
                return
            except TimeoutError:
                text = "The rest of the body did not come in time. Send it at once."
                await send_answer(send, self._told(headers, "bad_input", problem(408, "bad_input", text), 0.0))
                return
            await send_answer(send, await self.answer(headers, body))
        else:
            await self._web(scope, receive, send)

    def load(self) -> None:
        """Loads the model onto its device. Raises ValueError for weights that do not fit, and for a missing GPU."""
        from reference_apps.models import load_model

        kind = "cuda" if self.stage.device.kind == "cuda" else "cpu"
        sizes = range(1, min(self.stage.batching.max_batch_size, WARM_BATCH_SIZE_MAX) + 1)
        threads = self.stage.device.cpu_threads
        self.model = load_model(self.stage.model, kind, cpu_threads=threads, warm_batch_sizes=sizes)
        self.device = open_device(self.stage, self.model)

    def open(self) -> None:
        """Starts the device's thread; called on the event loop that will serve."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def drain(self) -> None:
        """Lets nobody in any more; those who wait leave at once, without waiting for company."""
        self.draining = True
        self.batcher.close()

    def close(self) -> None:
        """Drains, waits until the device has done the last of it, and ends its thread."""
        self.drain()
        if self._thread.is_alive():
            self._thread.join(self.stage.lifecycle.drain_timeout_s)

    async def answer(self, headers: Headers, body: bytes | None) -> Answer:
        """One request from its headers and body to status, headers and content. `body` is None when it was too long."""
        began_s = time.monotonic()
        reason, answer = await self._answered(headers, body)
        return self._told(headers, reason, answer, time.monotonic() - began_s)

    def _told(self, headers: Headers, reason: str, answer: Answer, took_s: float) -> Answer:
        """The answer to a request with these headers, counted."""
        self.metrics.answered(_OUTCOMES.get(reason, "failed"), reason, took_s)
        self.request_log.note(headers, answer, took_s)
        return answer

    async def _answered(self, headers: Headers, body: bytes | None) -> tuple[str, Answer]:
        """The reason why there is no answer to a request, empty if there is one, and what its client is told."""
        try:
            inputs, deadline_s = self._decoded(headers, body)
        except BadInputError as error:
            return "bad_input", problem(error.status, "bad_input", str(error))
        loop = asyncio.get_running_loop()
        request = Request(inputs, time.monotonic(), deadline_s, self._refuse, loop.create_future())
        if not self.batcher.put(request):
            reason = "draining" if self.draining else "queue_full"
            return reason, self._refusal(503, reason)
        reply: Reply = await request.reply
        if reply.answer is None:
            if reply.reason == "deadline":
                return "deadline", self._refusal(504, "deadline")
            text = "The model failed on this input. The log of the replica has its error."
            return "model_error", problem(500, "model_error", text)
        content = {"model": self.model.name, "version": self.model.version, **reply.answer}
        return "", (200, [(b"content-type", JSON), self._record(request, reply)], orjson.dumps(content))

    def _decoded(self, headers: Headers, body: bytes | None) -> tuple[np.ndarray, float | None]:
        if body is None:
            raise BadInputError(413, too_long(self.stage.admission.max_body_bytes))
        try:
            deadline_s = deadline_of(headers)
        except ValueError as error:
            raise BadInputError(422, str(error)) from None
        if deadline_s is None:
            deadline_s = self.stage.admission.deadline_s
        content_type = headers.get(b"content-type", b"").decode("latin-1")
        shape = headers.get(b"x-rung-shape", b"").decode("latin-1")
        return decode(cast(Decodes, self.model), content_type, shape, body), deadline_s

    def _refusal(self, status: int, reason: str) -> Answer:
        admission = self.stage.admission
        text = {
            "queue_full": f"The queue is full ({admission.max_queue_length} requests). Try again later.",
            "draining": "This replica is stopping. Try again.",
            "deadline": "The deadline passed while the request waited; it was not computed.",
        }[reason]
        return problem(status, reason, text, admission.retry_after_s if status == 503 else None)

    def _record(self, request: Request, reply: Reply) -> tuple[bytes, bytes]:
        """Where this answer's time went, for whoever measures: times of this machine's monotonic clock, in seconds."""
        return b"x-rung-record", (
            f"replica={self.number},batch={reply.batch},batch_size={reply.batch_size},"
            f"arrived_s={request.arrived_s:.6f},started_s={reply.started_s:.6f},finished_s={reply.finished_s:.6f}"
        ).encode()

    def _serve(self) -> None:
        """The device's thread: takes the next batch itself, the moment the last one is done."""
        while batch := self.batcher.take():
            started_s = time.monotonic()
            answers = self._run(batch)
            finished_s = time.monotonic()
            number = next(self._numbers)
            self.batches.append((number, started_s, finished_s, len(batch)))
            replies = [
                Reply(
                    answer,
                    "" if answer is not None else "model_error",
                    number,
                    len(batch),
                    started_s,
                    finished_s,
                )
                for answer in answers
            ]
            self._hand_back(batch, replies)

    def _run(self, batch: list[Request]) -> list[dict[str, Any] | None]:
        """Answers of a batch; when it fails, each alone, so that one bad item does not fail its neighbours."""
        assert self.device is not None
        try:
            return list(self.device.run([request.inputs for request in batch]))
        except Exception:
            self._failures.note(f"a batch of {len(batch)} failed")
        if len(batch) == 1:
            return [None]
        return [answer for request in batch for answer in self._run([request])]

    def _overruns(self) -> int:
        return self.device.overruns if self.device is not None else 0

    def _refuse(self, request: Request) -> None:
        self._hand_back([request], [Reply(None, "deadline")])

    def _hand_back(self, batch: list[Request], replies: list[Reply]) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._wake, batch, replies)

    def _wake(self, batch: list[Request], replies: list[Reply]) -> None:
        for request, reply in zip(batch, replies, strict=True):
            if not request.reply.done():  # its client may have gone
                request.reply.set_result(reply)
        first = replies[0]
        if first.batch_size:
            waits_s = (first.started_s - request.arrived_s for request in batch)
            self.metrics.batch(first.batch_size, waits_s, first.finished_s - first.started_s)


def web(replica: Replica) -> FastAPI:
    """Everything beside the short path: documentation, probes, metrics, and the batches that were run."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        replica.open()
        yield
        replica.close()

    app = FastAPIOffline(title=f"rung: {replica.stage.title}", description=replica.stage.question, lifespan=lifespan)

    @app.post("/predict", openapi_extra=PREDICT_BODY, summary="One input, one answer")
    async def predict(request: HttpRequest) -> Response:
        """Send one input as JSON, as PNG bytes, or as raw float32. The header `x-rung-deadline-s` gives the
        seconds after which you will not wait any more. 503 with Retry-After: the queue is full."""
        status, headers, content = await replica.answer(dict(request.headers.raw), await request.body())
        return Response(content, status, {k.decode(): v.decode() for k, v in headers})

    @app.get("/healthz", summary="Is the process alive?")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz", summary="Would a request be served?")
    async def readyz(response: Response) -> dict[str, str]:
        ready = replica.device is not None and not replica.draining
        response.status_code = 200 if ready else 503
        return {"status": "ready" if ready else "draining"}

    @app.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def metrics() -> Response:
        return Response(replica.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get(
        "/batches",
        summary="The batches that were run since a time of the monotonic clock",
        response_model=list[tuple[int, float, float, int]],
    )
    async def batches(since_s: float = 0.0) -> Response:
        """Rows of (batch, started_s, finished_s, batch_size), oldest first; the last 100,000 are kept."""
        rows = list(replica.batches)
        first, parts = bisect_left(rows, since_s, key=itemgetter(1)), []
        for start in range(first, len(rows), ROWS_AT_ONCE):
            parts.append(orjson.dumps(rows[start : start + ROWS_AT_ONCE])[1:-1])
            await asyncio.sleep(0)
        return Response(b"[%b]" % b",".join(parts), media_type="application/json")

    return app
