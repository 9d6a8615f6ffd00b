"""What the jobs API serves beside its short paths: documentation, probes and metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Response
from fastapi import Request as HttpRequest
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST

from reference_apps.asgi import PREDICT_BODY

if TYPE_CHECKING:
    from reference_apps.jobs_api import JobsApi

_PRIORITY: dict[str, Any] = {
    "name": "priority",
    "in": "query",
    "schema": {"type": "integer", "minimum": 0},
    "description": "0 goes first",
}
_KEY: dict[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string", "maxLength": 256},
    "description": "a request that is sent again under the same key is the same job",
}
_CALLBACK: dict[str, Any] = {
    "name": "callback",
    "in": "query",
    "schema": {"type": "string", "format": "uri"},
    "description": "is told the result by a POST that is signed: x-rung-signature is sha256= and the HMAC-SHA256 of "
    "x-rung-timestamp, a dot and the body",
}


def web(api: JobsApi) -> FastAPI:
    """The FastAPI application of `api`, which opens and closes with it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        api.open()
        yield
        api.close()

    title = f"rung: {api.stage.title}, jobs"
    app = FastAPIOffline(title=title, description=api.stage.question, lifespan=lifespan)
    body = PREDICT_BODY["requestBody"]
    headers = PREDICT_BODY["parameters"]
    asks = {"parameters": [*headers, _PRIORITY, _KEY, _CALLBACK], "requestBody": body}

    @app.post("/jobs", status_code=202, openapi_extra=asks, summary="One input, to be computed later")
    async def jobs(request: HttpRequest) -> Response:
        """Send one input as to a replica. 202 with its Location: it is kept, whatever dies. 503 with Retry-After: the
        queue is full, or does not answer; send it again under the same Idempotency-Key."""
        raise NotImplementedError(f"{request.url.path} is served before it comes here")

    @app.get("/jobs/{job}", summary="What became of a job")
    async def job(job: str, wait_s: float = 0.0) -> Response:
        """`status` is waiting, running, delayed (it failed, and is tried again), done or dead; `answer` is there when
        it is done, `error` when it is dead. `wait_s` waits so long for the end of it. 404: no such job (any more)."""
        raise NotImplementedError(f"/jobs/{job}?wait_s={wait_s} is served before it comes here")

    @app.post("/predict", openapi_extra=asks, summary="One input, one answer, over the queue")
    async def predict(request: HttpRequest) -> Response:
        """As a replica's: it waits for a worker. 504: none was in time; `x-rung-job` says where to look later."""
        raise NotImplementedError(f"{request.url.path} is served before it comes here")

    @app.get("/healthz", summary="Is the process alive?")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz", summary="Would a job be accepted?")
    async def readyz(response: Response) -> dict[str, str]:
        told = await api.depth() is not None
        status = "draining" if api.draining else "ready" if told else "the queue does not answer"
        response.status_code = 200 if status == "ready" else 503
        return {"status": status}

    @app.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def metrics() -> Response:
        return Response(api.metrics.text(await api.depth()), media_type=CONTENT_TYPE_LATEST)

    return app
