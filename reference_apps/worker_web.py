"""What a worker serves: probes, metrics, and the batches that it ran. It takes no work from here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI, Response
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST

if TYPE_CHECKING:
    from reference_apps.worker import Worker


def web(worker: Worker) -> FastAPI:
    """The FastAPI application of `worker`, which opens and closes with it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker.open()
        yield
        worker.close()

    title = f"rung: {worker.stage.title}, worker {worker.number}"
    app = FastAPIOffline(title=title, description=worker.stage.question, lifespan=lifespan)

    @app.get("/healthz", summary="Is the process alive?")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz", summary="Would a job be computed?")
    async def readyz(response: Response) -> dict[str, str]:
        response.status_code = 200 if worker.ready else 503
        return {"status": "ready" if worker.ready else "draining"}

    @app.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def metrics() -> Response:
        return Response(worker.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/batches", summary="The batches that were run since a time of the monotonic clock")
    async def batches(since_s: float = 0.0) -> list[tuple[int, float, float, int]]:
        """Rows of (batch, started_s, finished_s, batch_size), oldest first; the last 100,000 are kept."""
        return [row for row in list(worker.batches) if row[1] >= since_s]

    return app
