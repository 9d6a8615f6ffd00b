"""The running stack watches itself: scrapes, sums, alerts.jsonl; and `rung up` with all of it."""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_apps.alerts import Whole, readings, watch
from reference_apps.asking import wait_until
from reference_apps.batcher import Batcher
from reference_apps.gateway_metrics import GatewayMetrics
from reference_apps.replica_metrics import ReplicaMetrics
from reference_apps.scrape import Scraped, Target, scrape, summed
from stages.alerts import latency_bounds_of
from stages.policies.alerting import Change, Reading, RuleSet
from stages.spec import Stage, load_stage
from tests.conftest import PATIENCE_S, ROOT, Rung, processes_of, result
from tests.listening import Receiver, listening
from tests.made import a_stage

pytestmark = pytest.mark.usefixtures("in_numpy")


def replica_metrics(stage: Stage) -> ReplicaMetrics:
    return ReplicaMetrics(Batcher(stage.batching, stage.admission), 8, lambda: 0, latency_bounds_of(stage))


# ---- what the metrics say ----


def test_a_page_is_summed_to_what_alerts_are_about() -> None:
    stage = load_stage("micro-batched")
    bounds_s = latency_bounds_of(stage)
    metrics = replica_metrics(stage)
    for outcome, reason, took_s in (
        ("ok", "", 0.07),
        ("ok", "", 0.1),
        ("ok", "", 99.0),
        ("shed", "queue_full", 0.001),
        ("timed_out", "deadline", 0.5),
        ("failed", "bad_input", 0.0),
    ):
        metrics.answered(outcome, reason, took_s)
    metrics.batch(3, [0.0, 0.1, 0.2], 0.25)
    found = summed(metrics.text().decode(), "replica", bounds_s)
    assert (found.requests, found.errors, found.device_busy_s, found.queue_length) == (5.0, 2.0, 0.25, 0.0)
    within = dict(zip((*bounds_s, None), found.answers_within, strict=True))
    assert (within[0.05], within[0.075], within[0.1], within[None]) == (0.0, 1.0, 2.0, 3.0)
    gateway = GatewayMetrics(lambda: 0, lambda: [], bounds_s)
    gateway.answered("failed", "upstream_lost", 0.1)
    found = summed(gateway.text().decode(), "gateway", bounds_s)
    assert (found.requests, found.errors, found.answers_within[-1]) == (1.0, 1.0, 0.0)


LIVES = st.lists(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=6), min_size=1, max_size=4
)


@given(LIVES)
def test_what_a_process_counted_is_not_lost_when_it_starts_anew(lives: list[list[tuple[int, int]]]) -> None:
    """Counters go up by those steps, and begin at 0 with each life; no reset is hidden by a steep first step."""
    whole = Whole(load_stage("micro-batched"))
    target, zeros = Target("replica", 0, ""), (0.0,) * (len(whole.bounds_s) + 1)
    total_ok = total_errors = 0
    for life in lives:
        ok = errors = 0
        whole.reading(0.0, [(target, Scraped(answers_within=zeros))])
        for more_ok, more_errors in life:
            ok, errors = ok + more_ok, errors + more_errors
            total_ok, total_errors = total_ok + more_ok, total_errors + more_errors
            scraped = Scraped(ok + errors, errors, (float(ok),) * len(zeros), 0.5 * ok, 3.0)
            found = whole.reading(1.0, [(target, scraped), (Target("replica", 1, ""), None)])
            assert (found.requests, found.errors) == (total_ok + total_errors, total_errors)
            assert (found.answers_within[-1], found.device_busy_s) == (total_ok, pytest.approx(0.5 * total_ok))
            assert (found.queue_length, found.replicas) == (3.0, 1)


def test_requests_are_counted_once_where_a_gateway_counts_them_too() -> None:
    whole = Whole(load_stage("load-balanced"))
    within = (8.0,) * (len(whole.bounds_s) + 1)
    gateway = (Target("gateway", None, ""), Scraped(10.0, 2.0, within))
    replicas = [(Target("replica", n, ""), Scraped(9.0, 5.0, within, 1.5, 4.0)) for n in (0, 1)]
    found = whole.reading(1.0, [gateway, *replicas])
    assert (found.requests, found.errors, found.answers_within[0]) == (10.0, 2.0, 8.0)
    assert (found.device_busy_s, found.queue_length, found.replicas) == (3.0, 8.0, 2)


def test_what_does_not_answer_or_talks_nonsense_is_left_out() -> None:
    stage, over = load_stage("micro-batched"), threading.Event()
    bounds_s = latency_bounds_of(stage)

    def hangs(*_: object) -> int:
        over.wait(PATIENCE_S)
        return 200

    with listening(lambda *_: 200, lambda: b"<html>{") as strange, listening(hangs) as hanging:
        with listening(lambda *_: 404) as empty:
            asked = [scrape(stage, Target("replica", 0, url), bounds_s, 0.2) for url in (strange, hanging, empty)]
        gone = scrape(stage, Target("replica", 0, empty), bounds_s, 0.2)
        over.set()
    assert [*asked, gone] == [None] * 4


def test_readings_follow_the_targets_and_their_counts() -> None:
    stage = a_stage(alerts={"interval_s": 0.1, "burn_rate": {"enabled": False}}, slo={"latency_s": 0.2})
    first, second = replica_metrics(stage), replica_metrics(stage)
    stopping = threading.Event()
    with listening(lambda *_: 200, first.text) as one, listening(lambda *_: 200, second.text) as other:
        targets = [Target("replica", 0, one)]
        found = readings(stage, lambda: targets, stopping)
        first.answered("ok", "", 0.1)
        assert (next(found).requests, targets.append(Target("replica", 1, other))) == (1.0, None)
        first.answered("shed", "queue_full", 0.1)
        second.answered("ok", "", 0.1)
        reading = next(found)
        assert (reading.requests, reading.errors, reading.replicas) == (3.0, 1.0, 2)
        earlier_s = reading.at_s
        assert next(found).at_s > earlier_s
        stopping.set()
        assert list(found) == []


def test_a_watch_writes_what_changes_and_whom_it_asks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stage = a_stage(
        alerts={
            "interval_s": 0.1,
            "errors": {"window_s": 0.5, "for_s": 0.0},
            "queue": {"window_s": 1.0},
            "burn_rate": {"enabled": False},
        },
    )
    metrics, stopping = replica_metrics(stage), threading.Event()
    with listening(lambda *_: 200, metrics.text) as url:
        arguments = (stage, lambda: [Target("replica", 4, url)], tmp_path, stopping)
        watcher = threading.Thread(target=watch, args=arguments)
        watcher.start()
        try:
            file = tmp_path / "alerts.jsonl"
            assert wait_until(lambda: (tmp_path / "targets.json").exists(), PATIENCE_S)
            assert wait_until(lambda: metrics.answered("shed", "queue_full", 0.1) or file.exists(), PATIENCE_S)
            assert wait_until(lambda: len(file.read_bytes().splitlines()) == 2, PATIENCE_S)
        finally:
            stopping.set()
            watcher.join(PATIENCE_S)
    (target,) = json.loads((tmp_path / "targets.json").read_text())
    assert target["labels"] == {"stage": "a-stage", "role": "replica", "replica": "4"}
    fired, resolved = (json.loads(line) for line in file.read_text().splitlines())
    assert (fired["alert"], fired["state"], fired["severity"]) == ("errors", "firing", "page")
    assert (fired["value"], fired["above"]) == (1.0, 0.05)
    assert fired["text"] == (
        "a-stage: errors is firing: share of requests without an answer over 0.5 s: 100 % (alerts above 5 %)"
    )
    assert (resolved["alert"], resolved["state"], resolved["value"]) == ("errors", "resolved", None)
    assert fired["text"] in [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_nothing_unforeseen_ends_a_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stopping, asked, ruled = threading.Event(), list[int](), list[float]()

    def targets() -> list[Target]:
        asked.append(1)
        if len(asked) <= 2:
            raise KeyError("nobody thought of this")
        return []

    def ask(_: RuleSet, reading: Reading) -> list[Change]:
        ruled.append(reading.at_s)
        if len(ruled) <= 2:
            raise ZeroDivisionError("nor of that")
        stopping.set()
        return []

    monkeypatch.setattr(RuleSet, "ask", ask)
    watch(a_stage(alerts={"interval_s": 0.1, "burn_rate": {"enabled": False}}), targets, tmp_path, stopping)
    assert (len(asked), len(ruled)) == (5, 3)
    assert caplog.text.count("the metrics could not be looked at: ") == 1
    assert caplog.text.count("alerts could not be worked out or told: ") == 1
    assert "ZeroDivisionError" in caplog.text


# ---- all of it ----

UNDER_WATCH = {
    "overload": True,
    "fleet.replicas": 1,
    "batching.max_batch_size": 1,
    "batching.batch_wait_timeout_s": 0.0,
    "admission.max_queue_length": 1,
    "logs.requests": "all",
    "alerts.interval_s": 0.2,
    "alerts.errors.window_s": 1.0,
    "alerts.errors.for_s": 0.2,
    **{f"alerts.{rule}.enabled": False for rule in ("latency", "queue", "utilisation", "burn_rate")},
    "alerts.webhook.url_env": "RUNG_TEST_HOOK",
}


def test_a_stage_that_is_up_alerts_and_shows_its_logs(
    rung: Rung, verb: Rung, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver, given = Receiver(), [f"{key}={json.dumps(value)}" for key, value in UNDER_WATCH.items()]
    with listening(receiver) as hook:
        monkeypatch.setenv("RUNG_TEST_HOOK", hook)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        up = result(rung("up", "load-balanced", "--json", *(word for each in given for word in ("--set", each))))
        folder = Path(up["folder"])
        overload(up["url"], lambda: bool(receiver.taken))
        assert wait_until(lambda: len(receiver.taken) == 2, PATIENCE_S)
        assert [(each["alert"], each["state"]) for each in receiver.taken] == [
            ("errors", "firing"),
            ("errors", "resolved"),
        ]
        told = [json.loads(line) for line in (folder / "alerts.jsonl").read_text().splitlines()]
        assert told[0]["state"] == "pending"
        # On a machine that is busy for a moment it may be pending more than once.
        posted = [each for each in told if each["state"] != "pending"]
        assert [each["state"] for each in posted] == ["firing", "resolved"]
        assert posted == receiver.taken

        lines = [json.loads(line) for line in verb("logs", "--request", "one-1", "--json").stdout.splitlines()]
        assert [(line["role"], line["number"], line["status"]) for line in lines] == [
            ("replica", 0, 200),
            ("gateway", None, 200),
        ]
        shown = verb("logs", "load-balanced", "--level", "warning").stdout
        assert (
            "gateway: request" in shown
            and "reason=queue_full" in shown
            and "supervisor: load-balanced: errors" in shown
        )
        with following() as follower:
            assert follower.stdout is not None
            first = follower.stdout.readline()  # it has found the stage, which may end now
            exported = result(verb("export", "prometheus", "load-balanced", "--out", str(tmp_path / "prom"), "--json"))
            assert str(folder / "targets.json") in Path(exported["files"][0]).read_text()
            roles = {each["labels"]["role"] for each in json.loads((folder / "targets.json").read_text())}
            assert roles == {"gateway", "replica"}
            assert "RungErrors" in Path(exported["files"][1]).read_text()
            assert "RungLatency" not in Path(exported["files"][1]).read_text()  # as it is up, not as its file says
            down = result(rung("down", "load-balanced", "--json"))
            followed = first + follower.stdout.read()
    assert down == {"stopped": [{"stage": "load-balanced", "drained": True}]}
    assert processes_of(runs) == []
    every_line = [json.loads(line) for log in folder.glob("*.log") for line in log.read_text().splitlines()]
    assert {line["role"] for line in every_line} == {"supervisor", "gateway", "replica"}
    assert len(followed.splitlines()) == len(every_line)


@contextlib.contextmanager
def following() -> Iterator[subprocess.Popen[str]]:
    """`rung logs --follow` in the background."""
    command = [sys.executable, "-m", "rung", "logs", "--follow", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as follower:
        try:
            yield follower
        finally:
            follower.kill()


def overload(url: str, enough: Callable[[], bool]) -> None:
    """One request with an id that is answered, then twenty at a time, most of which are refused, until it is enough."""
    with httpx.Client(base_url=url, timeout=PATIENCE_S, trust_env=False) as client, ThreadPoolExecutor(20) as pool:

        def ask(request_id: str) -> int:
            answer = client.post("/predict", json={"input": [[[0.5] * 8] * 8]}, headers={"x-request-id": request_id})
            return answer.status_code

        assert ask("one-1") == 200
        began_s = time.monotonic()
        while not enough():
            assert time.monotonic() < began_s + PATIENCE_S
            statuses = set(pool.map(ask, [f"many-{n}" for n in range(20)]))
            assert statuses <= {200, 503}


def test_a_webhook_without_an_address_is_told_before_anything_is_started(verb: Rung) -> None:
    done = verb("up", "single-vm", "--set", "alerts.webhook.url_env=RUNG_NO_SUCH_HOOK")
    assert done.returncode in (1, 2)
    assert "RUNG_NO_SUCH_HOOK must hold an address" in done.stderr
    assert "Traceback" not in done.stderr
    assert result(verb("status", "--json")) == {"stages": []}
