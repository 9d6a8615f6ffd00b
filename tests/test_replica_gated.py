"""A replica over real sockets in a thread of this process, whose model waits for a gate: every order of events is ours.

requests ─▶ uvicorn ─▶ Replica ─▶ queue ─▶ Gate.predict, held until the test opens it
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn

from reference_apps.asking import wait_until
from reference_apps.device import Device
from reference_apps.replica import Replica
from stages.spec import Stage, load_stage
from tests.conftest import PATIENCE_S
from tests.told import Record, scraped

BAD = 666.0  # an input on which the model fails


class Gate:
    """A model of two numbers that holds every batch until it is opened. It fails on a batch that has BAD in it."""

    name, version, input_shape, png_mode = "gate", "7", (2,), None

    def __init__(self) -> None:
        self.batches: list[list[float]] = []  # the first number of each input
        self._opened = threading.Event()

    def predict(self, inputs: np.ndarray) -> list[dict[str, Any]]:
        self.batches.append(inputs[:, 0].tolist())
        assert self._opened.wait(PATIENCE_S)
        if (inputs == BAD).any():
            raise RuntimeError("this input is not for me")
        return [{"sum": float(x.sum())} for x in inputs]

    def open(self) -> None:
        self._opened.set()


@dataclass
class Gated:
    """A replica in a thread, whose device is held by the answer to a first request, 0.0."""

    replica: Replica
    gate: Gate
    server: uvicorn.Server
    url: str
    pool: ThreadPoolExecutor
    first: Future[httpx.Response] = field(init=False)

    def __post_init__(self) -> None:
        self.first = self.pool.submit(self.ask, 0.0, x_rung_deadline_s="3600")
        assert wait_until(lambda: self.gate.batches == [[0.0]], PATIENCE_S)

    def ask(self, number: float, **headers: str) -> httpx.Response:
        with httpx.Client(base_url=self.url, timeout=PATIENCE_S, trust_env=False, verify=False) as client:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return client.post("/predict", json={"input": [number, 1.0]}, headers=named)

    def queue(self, *numbers: float, **headers: str) -> list[Future[httpx.Response]]:
        """Requests that wait behind the gate, in this order."""
        asked = []
        for number in numbers:
            length = self.replica.batcher.queue_length
            asked.append(self.pool.submit(self.ask, number, **headers))
            self.await_queue(length + 1)
        return asked

    def await_queue(self, length: int) -> None:
        assert wait_until(lambda: self.replica.batcher.queue_length == length, PATIENCE_S)

    def connect(self) -> socket.socket:
        host, port = self.url.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), PATIENCE_S)


def gated_stage(**keys: object) -> Stage:
    changes: dict[str, object] = {"model.name": "xor", "device.kind": "cpu", "device.profile": None}
    changes |= {"batching.max_batch_size": 4, "batching.batch_wait_timeout_s": 0.0, "admission.max_queue_length": 4}
    return load_stage("micro-batched", changes | {f"admission.{key}": value for key, value in keys.items()})


@contextlib.contextmanager
def served_in_a_thread(stage: Stage) -> Iterator[Gated]:
    replica, gate = Replica(stage), Gate()
    replica.model, replica.device = gate, Device("cpu", gate, None)
    server = uvicorn.Server(uvicorn.Config(replica, log_level="warning", lifespan="on", ws="none"))
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener, ThreadPoolExecutor(16) as pool:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield Gated(replica, gate, server, "http://{}:{}".format(*listener.getsockname()), pool)
        finally:
            gate.open()
            server.should_exit = True
            thread.join(PATIENCE_S)
    assert not thread.is_alive()


@pytest.fixture
def gated() -> Iterator[Gated]:
    with served_in_a_thread(gated_stage(retry_after_s=7.0, max_body_bytes=1024)) as served:
        yield served


def problem(response: httpx.Response) -> tuple[int, str, str]:
    """Status, title and detail of an error, which is told as RFC 9457 has it."""
    assert response.headers["content-type"] == "application/problem+json"
    told = response.json()
    assert told["status"] == response.status_code
    return response.status_code, told["title"], told["detail"]


def test_those_who_wait_together_ride_together(gated: Gated) -> None:
    asked = gated.queue(1.0, 2.0, 3.0)
    gated.gate.open()
    assert [each.result().json()["sum"] for each in (gated.first, *asked)] == [1.0, 2.0, 3.0, 4.0]
    assert gated.gate.batches == [[0.0], [1.0, 2.0, 3.0]]
    assert [Record.of(each.result()).batch_size for each in (gated.first, *asked)] == [1, 3, 3, 3]
    assert asked[0].result().json() == {"model": "gate", "version": "7", "sum": 2.0}


def test_one_bad_input_of_a_batch_fails_alone(gated: Gated, caplog: pytest.LogCaptureFixture) -> None:
    asked = gated.queue(1.0, BAD, 3.0)
    gated.gate.open()
    good, bad, other = (each.result() for each in asked)
    assert (good.json()["sum"], other.json()["sum"]) == (2.0, 4.0)
    told = "The model failed on this input. The log of the replica has its error."
    assert problem(bad) == (500, "model_error", told)
    assert gated.gate.batches == [[0.0], [1.0, BAD, 3.0], [1.0], [BAD], [3.0]]
    assert Record.of(good).batch == Record.of(other).batch
    assert "this input is not for me" in caplog.text
    assert gated.ask(5.0).status_code == 200  # the device goes on


def test_a_full_queue_is_told_when_to_come_again(gated: Gated) -> None:
    asked = gated.queue(1.0, 2.0, 3.0, 4.0)
    refused = gated.ask(5.0)
    assert problem(refused) == (503, "queue_full", "The queue is full (4 requests). Try again later.")
    assert refused.headers["retry-after"] == "7"
    gated.gate.open()
    assert [each.result().status_code for each in (gated.first, *asked)] == [200] * 5
    assert 5.0 not in [number for batch in gated.gate.batches for number in batch]
    with httpx.Client(base_url=gated.url, trust_env=False) as client:
        counts = scraped(client)
    assert (counts["rung_requests_total/ok/"], counts["rung_requests_total/shed/queue_full"]) == (5, 1)


def test_a_request_that_expires_in_the_queue_costs_no_device_time(gated: Gated) -> None:
    (expires,) = gated.queue(1.0, x_rung_deadline_s="0.001")
    (waits,) = gated.queue(2.0, x_rung_deadline_s="3600")
    assert wait_until(lambda: gated.replica.batcher.oldest_wait_s > 0.001, PATIENCE_S)
    gated.gate.open()
    told = "The deadline passed while the request waited; it was not computed."
    assert problem(expires.result()) == (504, "deadline", told)
    assert waits.result().status_code == 200
    assert gated.gate.batches == [[0.0], [2.0]]
    with httpx.Client(base_url=gated.url, trust_env=False) as client:
        counts = scraped(client)
    assert (counts["rung_requests_total/timed_out/deadline"], counts["rung_batch_size_count"]) == (1, 2)


def test_the_stages_own_deadline_holds_for_those_who_bring_none() -> None:
    with served_in_a_thread(gated_stage(deadline_s=0.001)) as gated:
        (expires,) = gated.queue(1.0)
        (waits,) = gated.queue(2.0, x_rung_deadline_s="3600")
        assert wait_until(lambda: gated.replica.batcher.oldest_wait_s > 0.001, PATIENCE_S)
        gated.gate.open()
        assert (expires.result().status_code, waits.result().status_code) == (504, 200)


@pytest.mark.parametrize("given", ["0", "-1", "soon", "nan", "inf", ""])
def test_a_deadline_must_be_seconds(gated: Gated, given: str) -> None:
    told = f"x-rung-deadline-s: must be seconds greater than 0, got {given}. Leave it out to wait."
    assert problem(gated.ask(1.0, x_rung_deadline_s=given)) == (422, "bad_input", told)


@pytest.mark.parametrize("in_parts", [False, True])
def test_a_body_that_is_too_long_is_refused_whichever_way_it_comes(gated: Gated, in_parts: bool) -> None:
    def parts(length: int) -> Iterator[bytes]:
        yield from (b"x" * 100 for _ in range(length // 100))
        yield b"x" * (length % 100)

    with httpx.Client(base_url=gated.url, timeout=PATIENCE_S, trust_env=False) as client:
        for length, status in ((1025, 413), (1024, 415), (100_000, 413)):
            response = client.post("/predict", content=parts(length) if in_parts else b"x" * length)
            assert problem(response)[0] == status
            if status == 413:
                told = "body: must be at most 1024 bytes (admission.max_body_bytes). Send a smaller input."
                assert problem(response)[2] == told


def test_a_client_that_goes_away_does_not_harm_its_batch(gated: Gated, caplog: pytest.LogCaptureFixture) -> None:
    body = json.dumps({"input": [1.0, 1.0]})
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with gated.connect() as goes_away:
        goes_away.sendall((head + body).encode())
        gated.await_queue(1)
    (stays,) = gated.queue(2.0)
    gated.gate.open()
    assert stays.result().json()["sum"] == 3.0
    assert gated.gate.batches == [[0.0], [1.0, 2.0]]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_handler_that_was_cancelled_does_not_harm_its_batch(gated: Gated) -> None:
    loop = gated.replica._loop
    assert loop is not None
    body = b'{"input": [1.0, 1.0]}'
    answer = gated.replica.answer({b"content-type": b"application/json"}, body)
    cancelled = asyncio.run_coroutine_threadsafe(answer, loop)
    gated.await_queue(1)
    cancelled.cancel()
    (stays,) = gated.queue(2.0)
    gated.gate.open()
    assert stays.result().json()["sum"] == 3.0
    assert gated.gate.batches == [[0.0], [1.0, 2.0]]


def test_a_client_that_goes_away_within_its_body_does_no_harm(gated: Gated, caplog: pytest.LogCaptureFixture) -> None:
    with gated.connect() as goes_away:
        goes_away.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 200\r\n\r\nhalf")
    gated.gate.open()
    assert gated.ask(1.0).status_code == 200
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_while_it_drains_the_accepted_are_answered_and_others_refused(gated: Gated) -> None:
    (accepted,) = gated.queue(1.0)
    with gated.connect() as half:
        body = b'{"input": [2.0, 1.0]}'
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        half.sendall(head % len(body))
        with httpx.Client(base_url=gated.url, trust_env=False) as client:
            assert client.get("/readyz").status_code == 200
        gated.replica.drain()
        with httpx.Client(base_url=gated.url, trust_env=False) as client:
            refused = client.get("/readyz")
        assert (refused.status_code, refused.json()) == (503, {"status": "draining"})
        half.sendall(body)
        answer = ""
        while "}" not in answer:
            answer += half.recv(65536).decode()
    assert answer.startswith("HTTP/1.1 503")
    assert "retry-after: 7\r\n" in answer
    assert '"title":"draining"' in answer
    gated.server.should_exit = True
    gated.gate.open()
    assert (gated.first.result().status_code, accepted.result().status_code) == (200, 200)
