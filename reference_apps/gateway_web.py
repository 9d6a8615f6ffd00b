"""What a gateway serves beside the short path: documentation, probes, metrics, the replicas and their batches."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import FastAPI, Response
from fastapi import Request as HttpRequest
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST

from reference_apps.asgi import PREDICT_BODY
from stages.arms import arm_of

if TYPE_CHECKING:
    from reference_apps.gateway import Gateway

FEEDBACK_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["request_id", "label"],
                    "properties": {
                        "request_id": {"type": "string", "maxLength": 128},
                        "label": {"type": "integer", "minimum": 0},
                    },
                    "additionalProperties": False,
                }
            }
        },
    }
}


def web(gateway: Gateway) -> FastAPI:
    """The FastAPI application of `gateway`, which opens and closes with it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        gateway.open()
        yield
        await gateway.close()

    title = f"rung: {gateway.stage.title}, gateway"
    app = FastAPIOffline(title=title, description=gateway.stage.question, lifespan=lifespan)

    @app.post("/predict", openapi_extra=PREDICT_BODY, summary="One input, one answer")
    async def predict(request: HttpRequest) -> Response:
        """As a replica's. `x-rung-key` chooses the replica where balancing is sticky; `x-request-id` names the request;
        `x-rung-request`, its ticket in a load test, is what random choices follow.
        Where the stage has a cache, `x-rung-cache` of the answer says hit, joined or miss.
        Where two versions answer, `x-rung-user` says who asks, and `x-rung-arm` of the answer which it was.
        503 with Retry-After: no room, or no replica. 502, 504: a replica was lost, or took too long."""
        raise NotImplementedError(f"{request.url.path} is served before it comes here")

    if gateway.feedback is not None:

        @app.post("/feedback", openapi_extra=FEEDBACK_BODY, summary="What an answer should have been")
        async def feedback(request: HttpRequest) -> Response:
            """The label of an answer, by its `x-request-id`; twice is once. 200: it is stored, on the disk. 202: so it
            is, and waits for its prediction. 404: no such request. 422: no such label. 503, 504: send it again."""
            raise NotImplementedError(f"{request.url.path} is served before it comes here")

    @app.get("/healthz", summary="Is the process alive?")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz", summary="Would a request be served?")
    async def readyz(response: Response) -> dict[str, str]:
        rotation = gateway.rotation
        anybody = rotation is not None and bool(rotation.in_rotation(time.monotonic()))
        status = "draining" if gateway.draining else "ready" if anybody else "no replica"
        response.status_code = 200 if status == "ready" else 503
        return {"status": status}

    @app.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def metrics() -> Response:
        return Response(gateway.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/replicas", summary="The replicas as the gateway knows them")
    async def replicas() -> dict[str, object]:
        """The generation of the fleet that it works by; each replica's readiness by its probes, whether it is ejected
        for its failures or draining, and the requests that were sent there and are not back."""
        assert gateway.rotation is not None
        now_s = time.monotonic()
        rows = [
            {
                "replica": r.number,
                "url": r.url,
                "ready": r.health.ready,
                "ejected": r.health.ejected(now_s),
                "draining": r.draining,
                "outstanding": r.outstanding,
                **({"arm": arm_of(gateway.stage, r.number)} if gateway.splitter is not None else {}),
            }
            for r in gateway.rotation.replicas.values()
        ]
        return {"generation": gateway.rotation.generation, "replicas": rows}

    if gateway.splitter is not None:
        splitter = gateway.splitter

        @app.get("/split", summary="Which share the challenger has, and what both arms have done")
        async def split() -> dict[str, object]:
            """The generation of its control file, the share now, why the challenger was stopped if it was, and the
            counts that guardrails go by: requests, errors, answers, those that were late, good, right and labelled."""
            return splitter.told()

    @app.get("/batches", summary="The batches that all replicas ran since a time of the monotonic clock")
    async def batches(since_s: float = 0.0) -> Response:
        """Rows of (replica, batch, started_s, finished_s, batch_size)."""
        return Response(orjson.dumps(await gateway.batches(since_s)), media_type="application/json")

    return app
