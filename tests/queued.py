"""The parts of a queued stage for tests: its store, workers and the API in this process, and inputs to send."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn

from reference_apps.asking import wait_until
from reference_apps.broker import Accepted, NewJob
from reference_apps.device import Device
from reference_apps.envelope import pack, sealed
from reference_apps.gpu_memory import Card
from reference_apps.job_store import JobStore, open_store
from reference_apps.jobs_api import JobsApi
from reference_apps.models import load_inputs
from reference_apps.results import Result
from reference_apps.serving import Impatient
from reference_apps.worker import Worker
from stages.queue import Queue
from stages.spec import Stage, load_stage
from tests.conftest import PATIENCE_S

SECRET = b"a secret of more than 16 characters"
RAW = {"content-type": "application/octet-stream", "x-rung-shape": "1x8x8"}
INPUTS = load_inputs(load_stage("single-vm").model).examples(64, seed=5)
# What the model of `working` fails on, and what ends its device.
POISON, BROKEN = np.full((1, 8, 8), 7.0, np.float32), np.full((1, 8, 8), 9.0, np.float32)

QUICK: dict[str, Any] = {
    "device": {"kind": "cpu"},
    "batching.batch_wait_timeout_s": 0.002,
    "scaling": None,
    "queue.lease_s": 20.0,  # longer than a host keeps a worker from extending it
    "queue.retry_delay_s": 0.05,
    "lifecycle.drain_timeout_s": 10.0,
}


def queued(**more: Any) -> Stage:
    """The stage `queued`, quick and with a fleet that stays; keys are dotted, dots written as __."""
    return load_stage("queued", QUICK | {key.replace("__", "."): value for key, value in more.items()})


def queue_of(stage: Stage) -> Queue:
    assert stage.queue is not None
    return stage.queue


@contextlib.contextmanager
def stored(stage: Stage, folder: Path) -> Iterator[JobStore]:
    """The stage's queue and results, in a folder."""
    with open_store(queue_of(stage), folder) as store:
        yield store


def payload(x: np.ndarray, **more: Any) -> bytes:
    """An input as the API would put it."""
    return pack(sealed(RAW["content-type"], RAW["x-rung-shape"], x.astype("<f4").tobytes(), **more))


def put(store: JobStore, *inputs: np.ndarray, **more: Any) -> list[str]:
    """Puts inputs into the queue and gives their jobs."""
    accepted: list[Accepted] = store.broker.put([NewJob(payload(x, **more)) for x in inputs])
    return [each.job for each in accepted]


class Digits:
    """A model that says how dark a picture is; it fails on POISON, and on everything in a batch with BROKEN."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.gone = False
        self.hold = threading.Event()
        self.hold.set()

    def predict(self, inputs: np.ndarray) -> list[dict[str, Any]]:
        assert self.hold.wait(PATIENCE_S)
        self.batches.append(len(inputs))
        if self.gone or (inputs == 9.0).all(axis=(1, 2, 3)).any():
            self.gone = True
            raise RuntimeError("the device is gone")
        if (inputs == 7.0).all(axis=(1, 2, 3)).any():
            raise ValueError("a picture that cannot be")
        return [{"dark": round(float(x.sum()), 3)} for x in inputs]


@contextlib.contextmanager
def working(
    stage: Stage, store: JobStore, number: int = 0, model: Digits | None = None, card: Card | None = None
) -> Iterator[Worker]:
    """A worker of this process, without its web server; with a `model` of the test's own."""
    worker = Worker(stage, number, store, card)
    worker.load()
    if model is not None:
        worker.model.device = Device("test", model, None)
    worker.open()
    try:
        yield worker
    finally:
        if model is not None:
            model.hold.set()
        worker.close()


@contextlib.contextmanager
def serving_jobs(stage: Stage, store: JobStore, secret: bytes | None = None) -> Iterator[httpx.Client]:
    """The stage's jobs API on a free port, in a thread, and a client of it."""
    server = uvicorn.Server(
        uvicorn.Config(JobsApi(stage, store, secret), log_level="warning", lifespan="on", http=Impatient, ws="none")
    )
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        url = "http://{}:{}".format(*listener.getsockname())
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        with httpx.Client(base_url=url, timeout=PATIENCE_S, trust_env=False, verify=False) as client:
            try:
                assert wait_until(lambda: server.started, PATIENCE_S)
                yield client
            finally:
                server.should_exit = True
                thread.join(PATIENCE_S)
    assert not thread.is_alive()


def all_at_once(url: str, count: int) -> list[httpx.Response]:
    """The answers to so many POST /predict that are sent without waiting for one another."""

    async def send() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S, trust_env=False, verify=False) as client:
            bodies = [x.astype("<f4").tobytes() for x in INPUTS[:count]]
            return await asyncio.gather(*(client.post("/predict", headers=RAW, content=body) for body in bodies))

    return asyncio.run(send())


def results(store: JobStore, jobs: list[str], timeout_s: float = PATIENCE_S) -> dict[str, Result]:
    """The results of the jobs, once all of them have one."""
    found: dict[str, Result] = {}

    def there() -> bool:
        found.update(store.results.find(jobs))
        return len(found) == len(set(jobs))

    assert wait_until(there, timeout_s), f"{len(found)} of {len(jobs)} have a result: {store.broker.depth()}"
    return found
