"""A replica as a process of its own, over real sockets: answers, records, metrics, and an orderly end."""

from __future__ import annotations

import asyncio
import io
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from typer.testing import CliRunner

from reference_apps import serve
from reference_apps.asking import wait_until
from reference_apps.models import load_inputs, load_model
from stages.spec import load_stage
from tests.conftest import PATIENCE_S, ROOT, Served, serving
from tests.told import Record, scraped

DIGITS = load_inputs(load_stage("micro-batched").model)


def as_raw(count: int) -> list[tuple[dict[str, str], bytes]]:
    headers = {"content-type": "application/octet-stream", "x-rung-shape": "1x8x8"}
    return [(headers, x.astype("<f4").tobytes()) for x in DIGITS.examples(count, seed=5)]


def as_json(count: int) -> list[tuple[dict[str, str], bytes]]:
    headers = {"content-type": "application/json"}
    return [(headers, json.dumps({"input": x.tolist()}).encode()) for x in DIGITS.examples(count, seed=5)]


def as_png(count: int) -> list[tuple[dict[str, str], bytes]]:
    def encoded(picture: Any) -> bytes:
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        return buffer.getvalue()

    return [({"content-type": "image/png"}, encoded(x)) for x in DIGITS.example_images(count, seed=5)]


def all_at_once(url: str, requests: list[tuple[dict[str, str], bytes]]) -> list[httpx.Response]:
    """The answers to requests that are all sent without waiting for one another."""

    async def send() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S, trust_env=False, verify=False) as client:
            return await asyncio.gather(*(client.post("/predict", headers=h, content=body) for h, body in requests))

    return asyncio.run(send())


@pytest.mark.parametrize("form", [as_raw, as_json, as_png])
def test_digits_are_read_in_every_form(
    micro_batched: Served, form: Callable[[int], list[tuple[dict[str, str], bytes]]]
) -> None:
    model = load_model(micro_batched.stage.model, "cpu")
    with micro_batched.client() as client:
        responses = [client.post("/predict", headers=headers, content=body) for headers, body in form(12)]
    for response, wanted in zip(responses, model.predict(DIGITS.examples(12, seed=5)), strict=True):
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/json"
        answer = response.json()
        assert list(answer) == ["model", "version", "label", "probability"]
        assert (answer["model"], answer["version"], answer["label"]) == ("digits", "1", wanted["label"])
        assert answer["probability"] == pytest.approx(wanted["probability"], abs=1e-5)


def test_the_record_tells_where_the_time_went(micro_batched: Served) -> None:
    sent_s = time.monotonic()
    responses = all_at_once(micro_batched.url, as_raw(40))
    replied_s = time.monotonic()
    records = [Record.of(response) for response in responses]
    microsecond_s = 1e-6  # to which times are rounded
    for record in records:
        assert record.replica == 0
        assert sent_s - microsecond_s <= record.arrived_s <= record.started_s <= record.finished_s
        assert record.finished_s <= replied_s + microsecond_s
        assert 1 <= record.batch_size <= 8
    batches = {record.batch: (record.started_s, record.finished_s, record.batch_size) for record in records}
    assert {(r.batch, r.started_s, r.finished_s, r.batch_size) for r in records} == {
        (number, *batch) for number, batch in batches.items()
    }
    assert Counter(r.batch for r in records) == {number: size for number, (_, _, size) in batches.items()}
    for before, after in pairwise(sorted(batches.values())):
        assert before[1] <= after[0]  # one at a time


def test_the_batches_that_were_run_can_be_asked_for(micro_batched: Served) -> None:
    first = {Record.of(response) for response in all_at_once(micro_batched.url, as_raw(9))}
    since_s = max(record.finished_s for record in first)
    second = {Record.of(response) for response in all_at_once(micro_batched.url, as_raw(9))}
    with micro_batched.client() as client:
        rows = client.get("/batches", params={"since_s": since_s}).json()
        everything = client.get("/batches").json()
    shown = [(number, round(start, 6), round(end, 6), size) for number, start, end, size in rows]
    assert shown == sorted({(r.batch, r.started_s, r.finished_s, r.batch_size) for r in second})
    assert everything[-len(rows) :] == rows
    assert [row[0] for row in everything] == list(range(len(everything)))


@pytest.mark.usefixtures("in_numpy")
def test_the_first_two_stages_differ_in_their_stage_file_alone(micro_batched: Served, tmp_path: Path) -> None:
    with serving("single-vm", tmp_path) as single:
        tables = [stage.model_dump() for stage in (single.stage, load_stage("micro-batched", {"overload": True}))]
        differ = {key for key in tables[0] if tables[0][key] != tables[1][key]}
        assert differ == {"name", "title", "question", "grown_from", "batching", "traffic"}
        sizes = [{Record.of(r).batch_size for r in all_at_once(s.url, as_raw(20))} for s in (single, micro_batched)]
    assert sizes[0] == {1}
    assert max(sizes[1]) > 1


def test_probes_and_documentation_that_needs_no_network(micro_batched: Served) -> None:
    with micro_batched.client() as client:
        assert client.get("/healthz").json() == {"status": "alive"}
        assert client.get("/readyz").json() == {"status": "ready"}
        page = client.get("/docs").text
        assets = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert any(asset.endswith(".js") for asset in assets)
        assert any(asset.endswith(".css") for asset in assets)
        for asset in assets:
            assert "//" not in asset
            assert client.get(asset).status_code == 200
        described = client.get("/openapi.json").json()
    predict = described["paths"]["/predict"]["post"]
    assert set(predict["requestBody"]["content"]) == {"application/json", "image/png", "application/octet-stream"}
    assert {parameter["name"] for parameter in predict["parameters"]} == {"x-rung-shape", "x-rung-deadline-s"}
    assert {"/healthz", "/readyz", "/metrics", "/batches"} <= set(described["paths"])
    assert described["info"]["title"] == "rung: Micro-batched"


def test_the_metrics_agree_with_what_was_sent(micro_batched: Served) -> None:
    with micro_batched.client() as client:
        before = scraped(client)
        records = [Record.of(response) for response in all_at_once(micro_batched.url, as_raw(30))]
        for _ in range(3):
            assert client.post("/predict", content=b"", headers={"content-type": "text/plain"}).status_code == 415
        after = scraped(client)
    added = Counter({name: value - before.get(name, 0.0) for name, value in after.items()})
    batches = {(r.batch, r.finished_s - r.started_s) for r in records}
    assert added["rung_requests_total/ok/"] == 30
    assert added["rung_requests_total/failed/bad_input"] == 3
    assert added["rung_batch_size_count"] == added["rung_device_seconds_count"] == len(batches)
    assert added["rung_batch_size_sum"] == added["rung_batch_wait_seconds_count"] == 30
    assert added["rung_device_seconds_sum"] == pytest.approx(sum(took_s for _, took_s in batches), abs=1e-4)
    waits_s = sum(r.started_s - r.arrived_s for r in records)
    assert added["rung_batch_wait_seconds_sum"] == pytest.approx(waits_s, abs=1e-4)
    assert after["rung_queue_depth"] == after["rung_queue_age_seconds"] == 0.0


@pytest.mark.usefixtures("in_numpy")
def test_sigterm_under_load_leaves_nobody_without_an_answer(tmp_path: Path) -> None:
    # 16 of the 30 are on the device at once; the others would wait a minute for company, if nothing happened.
    patient = {"batching.max_batch_size": 16, "batching.batch_wait_timeout_s": 60.0, "slo.latency_s": 61.0}
    with serving("micro-batched", tmp_path, patient | {"device.slowdown": 10.0}) as served:
        with ThreadPoolExecutor(1) as pool, served.client() as client:
            answers = pool.submit(all_at_once, served.url, as_raw(30))
            assert wait_until(lambda: scraped(client)["rung_queue_depth"] == 14, PATIENCE_S)
            served.replica.process.send_signal(signal.SIGTERM)
            responses = answers.result(PATIENCE_S)
        assert [response.status_code for response in responses] == [200] * 30
        assert Counter(Record.of(response).batch_size for response in responses) == {16: 16, 14: 14}
        assert served.replica.process.wait(PATIENCE_S) == 0
        assert "Traceback" not in served.log()
        with pytest.raises(httpx.ConnectError), served.client() as client:
            client.get("/healthz")


def test_a_replica_whose_port_is_taken_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "reference_apps.serve", "--stage", "micro-batched", "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE_S, check=False)
    assert done.returncode == 2
    assert f"port {port} of 127.0.0.1: cannot be listened on" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--stage", "micro-batchd"], "micro-batchd: 1 problem\n  stage: must be the name of a stage, its file"),
        (["--stage", "micro-batched", "--port", "70000"], "65535"),
    ],
)
def test_a_replica_that_is_asked_for_what_cannot_be_says_so(words: list[str], said: str) -> None:
    """In this process: it ends before it does anything to it."""
    app = typer.Typer()
    app.command()(serve.main)
    done = CliRunner().invoke(app, words)
    assert (done.exit_code, type(done.exception)) == (2, SystemExit)
    assert said in done.stderr
