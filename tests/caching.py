"""What the tests of the cache share: requests, what the cache had for them, and many who wait for one answer."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from reference_apps.asking import wait_until
from stages.spec import Stage, load_stage
from tests.conftest import PATIENCE_S
from tests.fake_replicas import Fleet
from tests.test_gateway import asked

KEPT = {"cache_policy": "lru"}
RUN = {
    "gateway.probe_interval_s": 0.2,
    "gateway.probe_timeout_s": 0.2,
    "gateway.unhealthy_after": 100,  # a machine that is busy for a moment is no illness
    "device.slowdown": 1.0,
    "batching.batch_wait_timeout_s": 0.002,
}


@pytest.fixture(scope="module", autouse=True)
def no_address() -> Iterator[None]:
    """Whatever this machine's environment says."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RUNG_CACHE_URL", "RUNG_CACHE_PASSWORD"):
            patch.delenv(name, raising=False)
        yield


def post(made: Fleet, body: bytes = b"four", **headers: str) -> httpx.Response:
    """One request."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return made.client.post("/predict", content=body, headers={"content-type": "x/y"} | named)


def had(response: httpx.Response) -> str:
    """What the cache had for it: as its header and its record say, which agree."""
    assert f"cache={response.headers['x-rung-cache']}" in response.headers["x-rung-record"].split(",")
    return str(response.headers["x-rung-cache"])


def looks(made: Fleet) -> dict[str, float]:
    """Requests by what the cache had, as the metrics count them."""
    counts = made.counts()
    return {how: counts[f"rung_cache_requests_total/{how}"] for how in ("hit", "joined", "miss")}


@contextmanager
def waiting(made: Fleet, count: int, body: bytes = b"four") -> Iterator[list[Future[httpx.Response]]]:
    """So many requests for one input, all inside: one at a replica, which holds it, the others joined."""
    before = sum(asked(made))
    for fake in made.fakes:
        fake.answer = "hold"
    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(post, made, body) for _ in range(count)]
        try:
            assert wait_until(lambda: made.gateway.in_flight == count, PATIENCE_S), made.gateway.in_flight
            assert wait_until(lambda: sum(asked(made)) > before, PATIENCE_S)
            yield futures
        finally:
            made.release()


@contextmanager
def raw(made: Fleet, body: bytes = b"four") -> Iterator[socket.socket]:
    """A client that has sent a request, and leaves when the block does."""
    address = made.url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1])), PATIENCE_S) as client:
        head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: x/y\r\ncontent-length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        yield client


def staged(**overrides: Any) -> Stage:
    """A stage with a cache; `cache_x` and `model_x` set those keys."""
    changed = {name.replace("_", ".", 1): value for name, value in overrides.items()}
    return load_stage("load-balanced", {"overload": True, "cache.policy": "lru"} | changed)
