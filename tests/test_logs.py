"""Logs: every line is JSON, requests have one where that is wanted, and `rung logs` joins them in the order of time."""

from __future__ import annotations

import heapq
import json
import logging
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from reference_apps import reading_logs
from reference_apps.asgi import Answer, problem
from reference_apps.logs import JsonLines, RequestLog, fields
from reference_apps.reading_logs import Log, Wanted, complaints, follow, for_people, joined, readable
from reference_apps.watch_cli import app
from stages.alerts import Logs
from stages.terminal import Exit
from tests.conftest import ROOT, serving

LOGGER = logging.getLogger("rung.test_logs")


def a_line(at_s: float, event: str = "something", **said: Any) -> str:
    time_ = datetime.fromtimestamp(at_s, UTC).isoformat().replace("+00:00", "Z")
    return json.dumps({"time": time_, "level": "info", "role": "gateway", "number": None, "event": event} | said)


@pytest.fixture
def written() -> Iterator[list[dict[str, Any]]]:
    """What this file's logger writes, as the objects of its lines."""
    lines: list[dict[str, Any]] = []

    class Into(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = self.format(record)
            assert "\n" not in text
            lines.append(json.loads(text))

    handler = Into()
    handler.setFormatter(JsonLines("replica", 3))
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.DEBUG)
    yield lines
    LOGGER.removeHandler(handler)


def test_a_line_says_when_who_and_what(written: list[dict[str, Any]]) -> None:
    before = datetime.now(UTC)
    LOGGER.warning("a batch of %d failed", 3, extra=fields(request_id="r1", seconds=0.5))
    (line,) = written
    assert (line["level"], line["role"], line["number"], line["event"]) == (
        "warning",
        "replica",
        3,
        "a batch of 3 failed",
    )
    assert (line["request_id"], line["seconds"]) == ("r1", 0.5)
    assert before <= datetime.fromisoformat(line["time"]) <= datetime.now(UTC)


def test_an_error_stays_on_its_line(written: list[dict[str, Any]]) -> None:
    try:
        _ = {}["nothing"]
    except KeyError:
        LOGGER.exception("it\nfailed")
    assert written[0]["event"] == "it\nfailed"
    assert "Traceback" in written[0]["error"] and "KeyError: 'nothing'" in written[0]["error"]


def test_what_cannot_be_written_is_written_somehow() -> None:
    record = LOGGER.makeRecord(LOGGER.name, logging.INFO, "", 0, "%d files", ("no number",), None)
    record.fields = {"path": Path("/tmp"), "numbers": {1: object()}}
    line = json.loads(JsonLines("gateway").format(record))
    assert "%d files" in line["event"] and "no number" in line["event"]
    assert line["path"] == "/tmp"


def test_a_process_says_everything_as_json_warnings_and_crashes_too() -> None:
    code = (
        "import logging, threading, warnings\n"
        "from reference_apps import logs\n"
        "logs.configure('replica', 2, 'info')\n"
        "logging.getLogger('rung.x').debug('not this'); logging.getLogger('other').info('this')\n"
        "warnings.warn('careful')\n"
        "t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()\n"
        "raise RuntimeError('the end')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == 1
    assert [line["event"].splitlines()[0] for line in lines if line["level"] == "info"] == ["this"]
    assert any("careful" in line["event"] for line in lines)
    crashes = [line["error"].splitlines()[-1] for line in lines if line["event"] == "crash"]
    assert crashes == ["ZeroDivisionError: division by zero", "RuntimeError: the end"]
    assert {(line["role"], line["number"]) for line in lines} == {("replica", 2)}


# ---- a line a request ----


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


OK: Answer = (200, [(b"x-request-id", b"r7"), (b"x-rung-record", b"replica=1,batch=4,started_s=2.5")], b"{}")


def test_only_requests_that_went_wrong_have_a_line(written: list[dict[str, Any]]) -> None:
    log = RequestLog(LOGGER, Logs())
    log.note({}, OK, 0.001)
    assert written == []
    for status, reason in ((503, "queue_full"), (500, "model_error"), (422, "bad_input")):
        log.note({b"x-request-id": b"r8"}, problem(status, reason, "…"), 0.25)
    assert [(line["event"], line["request_id"], line["seconds"]) for line in written] == [("request", "r8", 0.25)] * 3
    assert [line["reason"] for line in written] == ["queue_full", "model_error", "bad_input"]
    assert [line["level"] for line in written] == ["warning", "error", "warning"]


@pytest.mark.parametrize("wanted", [Logs(requests="all"), Logs(level="debug")], ids=["all", "debug"])
def test_every_request_has_a_line_where_that_is_wanted(wanted: Logs, written: list[dict[str, Any]]) -> None:
    RequestLog(LOGGER, wanted).note({b"x-request-id": b"another"}, OK, 0.001)
    (line,) = written
    assert line["request_id"] == "r7"  # that of the answer
    assert (line["status"], line["replica"], line["batch"], line["started_s"]) == (200, 1, 4, 2.5)


def test_lines_are_bounded_and_those_left_out_are_counted(written: list[dict[str, Any]]) -> None:
    clock = Clock()
    log = RequestLog(LOGGER, Logs(requests_max_rps=3.0), clock)
    for _ in range(10):
        log.note({}, problem(503, "queue_full", ""), 0.0)
    assert [line["event"] for line in written] == ["request"] * 3
    clock.now_s += 1.0
    log.note({}, problem(503, "queue_full", ""), 0.0)
    left_out, request = written[3:]
    assert (left_out["event"], left_out["lines"], left_out["limit"]) == (
        "request lines left out",
        7,
        "logs.requests_max_rps",
    )
    assert request["event"] == "request"


def test_a_full_log_gets_no_more_requests(written: list[dict[str, Any]], tmp_path: Path) -> None:
    clock, wanted = Clock(), Logs(requests_max_bytes=1_048_576)
    with (tmp_path / "replica-0.log").open("wb") as file:
        log = RequestLog(LOGGER, wanted, clock, file.fileno())
        log.note({}, problem(500, "model_error", ""), 0.0)
        file.write(b"x" * wanted.requests_max_bytes)
        file.flush()
        clock.now_s += 1.0
        log.note({}, problem(500, "model_error", ""), 0.0)
        clock.now_s += 1.0
        log.note({}, problem(500, "model_error", ""), 0.0)
    assert [line["event"] for line in written] == ["request", "request lines left out"]
    assert written[1]["limit"] == "logs.requests_max_bytes"


def test_a_long_id_is_cut_and_a_strange_record_is_no_error(written: list[dict[str, Any]]) -> None:
    answer: Answer = (500, [(b"content-type", b"application/problem+json"), (b"x-rung-record", b"batch=,x=y,=3")], b"[")
    RequestLog(LOGGER, Logs()).note({b"x-request-id": b"\xff\x1b" * 500}, answer, 0.0)
    assert len(written[0]["request_id"]) == 128
    assert "reason" not in written[0]


@pytest.mark.usefixtures("in_numpy")
def test_a_replica_writes_json_and_names_the_request(tmp_path: Path) -> None:
    with serving("single-vm", tmp_path, {"logs.requests": "all"}) as served, served.client() as client:
        bad = client.post(
            "/predict", content=b"{", headers={"content-type": "application/json", "x-request-id": "bad-1"}
        )
        good = client.post("/predict", json={"input": [[[0.5] * 8] * 8]}, headers={"x-request-id": "good-1"})
        assert (bad.status_code, good.status_code) == (400, 200)
        shown = rung("logs", "--run", str(tmp_path), "--request", "bad-1", "--json")
    lines = [json.loads(line) for line in served.log().splitlines()]
    assert {(line["role"], line["number"]) for line in lines} == {("replica", 0)}
    (good_line,) = (line for line in lines if line.get("request_id") == "good-1")
    assert good_line["batch_size"] == 1 and good_line["seconds"] > 0
    (bad_line,) = (json.loads(line) for line in shown.stdout.splitlines())
    assert (bad_line["request_id"], bad_line["status"], bad_line["reason"]) == ("bad-1", 400, "bad_input")


# ---- reading them ----


def rung(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def logs_of(folder: Path, **logs: list[str]) -> None:
    for name, lines in logs.items():
        (folder / f"{name.replace('_', '-')}.log").write_text("".join(f"{line}\n" for line in lines))


def test_logs_are_joined_in_the_order_of_time(tmp_path: Path) -> None:
    logs_of(
        tmp_path,
        supervisor=[a_line(10.0, "begins"), a_line(14.0, "ends")],
        gateway=[a_line(12.0, "request", request_id="a")],
        replica_1=[a_line(11.0, "ready"), a_line(13.0, "request", request_id="a", level="warning")],
    )
    found = [(line.at_s, line.said["event"]) for line in joined(tmp_path, Wanted())]
    assert found == [(10.0, "begins"), (11.0, "ready"), (12.0, "request"), (13.0, "request"), (14.0, "ends")]
    assert [line.at_s for line in joined(tmp_path, Wanted(request_id="a"))] == [12.0, 13.0]
    assert [line.at_s for line in joined(tmp_path, Wanted(level="warning"))] == [13.0]
    assert [line.at_s for line in joined(tmp_path, Wanted("a", "error"))] == []


def test_lines_that_are_no_json_keep_their_place(tmp_path: Path) -> None:
    crash = ["Fatal Python error: Segmentation fault", "", "  File x.py, line 3"]
    logs_of(
        tmp_path, replica_4=["said before the log began", a_line(20.0), *crash, a_line(30.0)], gateway=[a_line(25.0)]
    )
    found = list(joined(tmp_path, Wanted()))
    assert [line.at_s for line in found] == [20.0, 20.0, 20.0, 20.0, 25.0, 30.0]
    raw = found[2].said
    assert raw == {"level": "error", "role": "replica", "number": 4, "event": "Fatal Python error: Segmentation fault"}
    assert complaints(tmp_path / "replica-4.log") == "said before the log began\n" + "\n".join([crash[0], crash[2]])


def test_a_clock_that_was_set_back_does_not_mix_up_a_process(tmp_path: Path) -> None:
    logs_of(tmp_path, gateway=[a_line(20.0, "first"), a_line(15.0, "second")])
    assert [(line.at_s, line.said["event"]) for line in joined(tmp_path, Wanted())] == [
        (20.0, "first"),
        (20.0, "second"),
    ]


@given(st.lists(st.lists(st.integers(0, 50), max_size=20).map(sorted), max_size=4), st.integers(1, 200))
def test_nothing_is_lost_however_it_is_read(times: list[list[int]], chunk: int) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patched:
        folder = Path(name)
        patched.setattr(reading_logs, "CHUNK_BYTES", 400 + chunk)
        for number, each in enumerate(times):
            lines = [a_line(at_s, f"{number}-{n}") for n, at_s in enumerate(each)]
            (folder / f"replica-{number}.log").write_text("\n".join(lines))  # the last one is not ended
        found = [(line.at_s, line.said["event"]) for line in joined(folder, Wanted())]
        expected = [
            [(float(at_s), f"{number}-{n}") for n, at_s in enumerate(each)] for number, each in enumerate(times)
        ]
        assert [at_s for at_s, _ in found] == [at_s for at_s, _ in heapq.merge(*expected)]
        assert sorted(found) == sorted(row for rows in expected for row in rows)


def test_following_sees_what_comes_from_whom_and_ends_with_the_stage(tmp_path: Path) -> None:
    logs_of(tmp_path, gateway=[a_line(time.time() - 5.0, "old")])
    ended = threading.Event()
    lines = follow(tmp_path, Wanted(), ended.is_set, poll_s=0.02)
    assert next(lines).said["event"] == "old"
    with (tmp_path / "replica-7.log").open("w") as new:  # a process that was not there before
        new.write(a_line(time.time(), "half a li")[:40])
        new.flush()
        time.sleep(0.1)
        new.write(a_line(time.time(), "half a li")[40:] + "\n")
    with (tmp_path / "gateway.log").open("a") as more:
        more.write(a_line(time.time(), "new") + "\n")
    assert {next(lines).said["event"], next(lines).said["event"]} == {"half a li", "new"}
    with (tmp_path / "gateway.log").open("a") as more:
        more.write(a_line(time.time(), "last") + "\n")
    ended.set()
    assert [line.said["event"] for line in lines] == ["last"]


def test_a_log_that_was_emptied_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "gateway.log"
    path.write_text(a_line(1.0, "a rather long first line") + "\n")
    log = Log(path)
    assert len(log.new()) == 1
    path.write_text(a_line(2.0, "b") + "\n")
    assert [line.said["event"] for line in log.new()] == ["b"]


def test_a_readable_line_has_what_matters_first() -> None:
    said = {"level": "warning", "role": "replica", "number": 2, "event": "request", "seconds": 0.25, "status": 503}
    text = readable(reading_logs.Line(time.time(), said | {"request_id": "r1", "time": "x"}))
    assert text.endswith("WARNING replica 2: request request_id=r1 status=503 seconds=0.25")


def test_a_readable_line_cannot_steer_the_terminal() -> None:
    said = {"event": "a\x1b[2Jb\nmore\x07", "request_id": "\x1b]0;x\x07\r"}
    text = readable(reading_logs.Line(0.0, said))
    assert all(character.isprintable() or character == "\n" for character in text)
    assert "a\\x1b[2Jb" in text and text.splitlines()[1] == "    more\\x07"


def test_a_piece_of_a_log_for_people() -> None:
    text = for_people("\n".join([a_line(1.0, "started"), "Traceback: no"]))
    assert text.splitlines()[0].endswith("gateway: started")
    assert text.splitlines()[1] == "Traceback: no"


def test_what_cannot_be_shown_is_told(runs: Path, tmp_path: Path) -> None:
    for words, told in (
        (["logs"], "STAGE: is not up. What is up: nothing. Its logs stay in its run folder: give that with --run.\n"),
        (["logs", "micro-batched"], "micro-batched: is not up. What is up: nothing."),
        (["logs", "--run", str(tmp_path / "none")], "none: must be a run folder with logs, got none there."),
    ):
        result = rung(*words)
        assert (result.exit_code, result.stdout) == (Exit.MISUSED, "")
        assert told in result.stderr
    assert not runs.exists()
