"""A replica in this process: bodies that do not come, batches that all fail, and questions about very many batches."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from reference_apps import replica as running
from reference_apps.failure_log import FailureLog
from reference_apps.replica import Replica
from stages.alerts import Logs
from stages.spec import load_stage

LOGGER = logging.getLogger("rung.test_replica_inside")


def a_replica() -> Replica:
    """One that has no model, and whose device's thread does not run."""
    return Replica(load_stage("micro-batched"))


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "BODY_TIMEOUT_S", 0.0)
    sent: list[Any] = []

    async def receive() -> Any:
        return await asyncio.Future()

    async def send(message: Any) -> None:
        sent.append(message)

    served = a_replica()
    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": []}
    asyncio.run(served(scope, receive, send))
    assert (sent[0]["status"], b"did not come in time" in sent[1]["body"]) == (408, True)
    assert b'rung_requests_total{outcome="failed",reason="bad_input"} 1.0' in served.metrics.text()


def test_very_many_batches_are_told_bit_by_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who answers requests has a turn of the event loop after every few rows."""
    monkeypatch.setattr(running, "ROWS_AT_ONCE", 2)
    served = a_replica()
    rows = [(n, float(n), n + 0.5, 1 + n % 3) for n in range(2001)]
    served.batches.extend(rows)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def asked(since_s: str) -> list[Any]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(served), base_url="http://replica") as client:
            answer = await client.get(f"/batches{since_s}")
        assert answer.headers["content-type"] == "application/json"
        return [tuple(row) for row in answer.json()]

    async def all_of_it() -> None:
        beside = asyncio.create_task(others())
        assert await asked("") == rows
        assert turns >= 1000
        assert await asked("?since_s=1999") == rows[-2:]
        assert await asked("?since_s=1998.5") == rows[-2:]
        assert await asked("?since_s=3000") == []
        beside.cancel()

    asyncio.run(all_of_it())


def test_a_stack_a_second_is_written_and_the_others_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    times_s = iter((0.0, 0.1, 0.9, 1.0, 2.5))
    failures = FailureLog(LOGGER, Logs(), clock=lambda: next(times_s), stream=-1)
    for _ in range(5):
        fail(failures)
    assert [getattr(record, "fields", {}) for record in caplog.records] == [{}, {"left_out": 2}, {}]
    assert all(record.exc_info is not None for record in caplog.records)


def test_a_log_that_is_full_gets_no_more_stacks(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    limits = Logs(requests_max_bytes=1_048_576)
    with (tmp_path / "replica.log").open("wb") as file:
        file.truncate(limits.requests_max_bytes)
        failures = FailureLog(LOGGER, limits, stream=file.fileno())
        fail(failures)
        assert not caplog.records
        file.truncate(0)
        fail(failures)
    assert [getattr(record, "fields", {}) for record in caplog.records] == [{"left_out": 1}]


def test_a_device_that_is_gone_does_not_write_a_stack_an_item(caplog: pytest.LogCaptureFixture) -> None:
    class Gone:
        def run(self, _: object) -> None:
            raise RuntimeError("the device is gone")

    served, batch = a_replica(), [SimpleNamespace(inputs=None)] * 8
    served.device = cast(Any, Gone())
    served._failures = FailureLog(LOGGER, Logs(), clock=lambda: 1.0, stream=-1)
    assert served._run(cast(Any, batch)) == [None] * 8
    assert [record.message for record in caplog.records] == ["a batch of 8 failed"]


def fail(failures: FailureLog) -> None:
    """What somebody writes down who handles an exception."""
    try:
        raise RuntimeError("the device is gone")
    except RuntimeError:
        failures.note("a batch of 1 failed")
