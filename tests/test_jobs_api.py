"""The jobs API over real sockets: accepted and kept, found and waited for, told to whoever wanted to be told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import orjson
import pytest

from reference_apps import job_webhook, jobs_api, put_line
from reference_apps.asking import wait_until
from reference_apps.broker import BrokerDownError
from reference_apps.job_store import JobStore
from reference_apps.job_webhook import (
    SIGNATURE,
    TIMESTAMP,
    CallbackError,
    Callbacks,
    checked_callback,
    is_ours,
    is_public,
    secret_of,
    signature,
)
from reference_apps.jobs_housekeeping import Housekeeping
from reference_apps.launchers.process import ProcessLauncher
from reference_apps.queue_fleet import QueueFleet
from reference_apps.results import Result
from reference_apps.scrape import summed
from stages.policies.scraping import QueueSample
from tests.conftest import PATIENCE_S
from tests.listening import listening
from tests.queued import (
    INPUTS,
    POISON,
    RAW,
    SECRET,
    Digits,
    all_at_once,
    put,
    queued,
    results,
    serving_jobs,
    stored,
    working,
)
from tests.told import scraped

pytestmark = pytest.mark.usefixtures("in_numpy")

RAW_BODY = INPUTS[0].astype("<f4").tobytes()
SECRET_ENV = {"queue__webhook_secret_env": "RUNG_WEBHOOK_SECRET", "queue__webhook_private": True}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    with stored(queued(), tmp_path) as opened:
        yield opened


@pytest.fixture
def client(store: JobStore) -> Iterator[httpx.Client]:
    """The API of a stage that nobody works for, unless the test has somebody do so."""
    with serving_jobs(queued(), store) as opened:
        yield opened


def post(client: httpx.Client, path: str = "/jobs", body: bytes = RAW_BODY, **headers: str) -> httpx.Response:
    return client.post(
        path, content=body, headers=RAW | {name.replace("_", "-"): value for name, value in headers.items()}
    )


def title(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == answer.status_code
    return str(answer.json()["title"])


# ---- POST /jobs, GET /jobs/{id} ----


def test_a_job_is_accepted_and_found_wherever_it_is(client: httpx.Client, store: JobStore) -> None:
    answer = post(client)
    told = answer.json()
    job = told["job"]
    assert (answer.status_code, answer.headers["location"]) == (202, f"/jobs/{job}")
    assert told == {"job": job, "status": "accepted", "duplicate": False, "location": f"/jobs/{job}"}
    waiting = client.get(answer.headers["location"])
    assert (waiting.status_code, waiting.json()) == (200, {"job": job, "attempts": 0, "status": "waiting"})
    assert waiting.headers["retry-after"] == "1"
    model = Digits()
    model.hold.clear()
    with working(queued(), store, model=model):
        assert wait_until(lambda: client.get(f"/jobs/{job}").json()["status"] == "running", PATIENCE_S)
        model.hold.set()
        done = client.get(f"/jobs/{job}", params={"wait_s": 20})
    assert done.status_code == 200
    dark = round(float(INPUTS[0].sum()), 3)
    assert {name: done.json()[name] for name in ("status", "outcome", "answer", "model", "attempts")} == {
        "status": "done",
        "outcome": "ok",
        "answer": {"dark": dark},
        "model": "digits",
        "attempts": 1,
    }
    assert "replica=0,batch=0,batch_size=1" in done.headers["x-rung-record"]
    assert "retry-after" not in done.headers


def test_whoever_waits_is_told_when_the_job_is_done_and_not_before(client: httpx.Client, store: JobStore) -> None:
    job = post(client).json()["job"]
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(client.get, f"/jobs/{job}", params={"wait_s": 20}) for _ in range(3)]
        assert wait_until(lambda: scraped(client)["rung_jobs_waiters"] == 3.0, PATIENCE_S)
        assert not any(each.done() for each in waiting)
        with working(queued(), store):
            assert {each.result(PATIENCE_S).json()["status"] for each in waiting} == {"done"}
    assert scraped(client)["rung_jobs_waiters"] == 0.0


def test_a_wait_that_is_over_tells_where_the_job_is(client: httpx.Client) -> None:
    job, began_s = post(client).json()["job"], time.monotonic()
    assert client.get(f"/jobs/{job}", params={"wait_s": 0.3}).json()["status"] == "waiting"
    assert time.monotonic() - began_s >= 0.3


def test_a_client_that_leaves_its_wait_leaves_nothing_behind(client: httpx.Client) -> None:
    job = post(client).json()["job"]
    with pytest.raises(httpx.ReadTimeout):
        client.get(f"/jobs/{job}", params={"wait_s": 20}, timeout=0.3)
    assert wait_until(lambda: scraped(client)["rung_jobs_waiters"] == 0.0, PATIENCE_S)
    assert scraped(client)["rung_jobs_clients_gone_total"] == 1.0


@pytest.mark.parametrize("job", ["0" * 26, "no-such-job", "0123/4567", "%00" * 26])
def test_a_job_that_never_was_is_not_found(client: httpx.Client, job: str) -> None:
    answer = client.get(f"/jobs/{job}", params={"wait_s": 5})
    assert (answer.status_code, title(answer)) == (404, "not_found")


def test_the_same_key_is_the_same_job(client: httpx.Client, store: JobStore) -> None:
    first, again = (post(client, Idempotency_Key="order-17") for _ in range(2))
    assert first.json()["job"] == again.json()["job"]
    assert (first.json()["duplicate"], again.json()["duplicate"]) == (False, True)
    assert post(client, Idempotency_Key="order-18").json()["job"] != first.json()["job"]
    with working(queued(), store):
        results(store, [first.json()["job"]])
    done = post(client, Idempotency_Key="order-17")
    assert done.json()["duplicate"]
    assert store.broker.depth().waiting + store.broker.depth().leased == 0
    told = scraped(client)
    assert (told["rung_jobs_accepted_total"], told["rung_jobs_duplicates_total"]) == (2.0, 2.0)


def test_urgent_jobs_go_first_and_who_waits_before_all(store: JobStore) -> None:
    stage = queued(queue__request_reply_timeout_s=0.2, batching__max_batch_size=1)
    with serving_jobs(stage, store) as client:
        late = post(client, "/jobs?priority=2").json()["job"]
        usual = post(client).json()["job"]
        asked = post(client, "/predict").headers["x-rung-job"]
    order = [store.broker.claim(1, 30.0)[0] for _ in range(3)]
    assert [job.job for job in order] == [asked, usual, late]
    assert [job.priority for job in order] == [0, 1, 2]


@pytest.mark.parametrize(
    ("path", "headers", "body", "status", "said"),
    [
        ("/jobs", RAW, b"short", 422, "256 bytes"),
        ("/jobs", {"content-type": "text/plain"}, b"x", 415, "content-type: must be"),
        ("/jobs", {"content-type": "application/json"}, b"{", 400, "body: must be JSON"),
        ("/jobs?priority=3", RAW, RAW_BODY, 422, "priority: must be a whole number from 0"),
        ("/jobs?priority=-1", RAW, RAW_BODY, 422, "priority: must be a whole number"),
        ("/jobs", RAW | {"idempotency-key": "two words"}, RAW_BODY, 422, "Idempotency-Key: must be"),
        ("/jobs", RAW | {"idempotency-key": "k" * 257}, RAW_BODY, 422, "got 257 characters"),
        ("/jobs", RAW | {"x-rung-deadline-s": "soon"}, RAW_BODY, 422, "x-rung-deadline-s: must be seconds"),
        ("/jobs?callback=http://example.org/", RAW, RAW_BODY, 422, "callback: needs queue.webhook_secret_env"),
        ("/predict", RAW, b"short", 422, "256 bytes"),
    ],
)
def test_what_cannot_be_done_is_told_at_once(
    client: httpx.Client, store: JobStore, path: str, headers: dict[str, str], body: bytes, status: int, said: str
) -> None:
    answer = client.post(path, content=body, headers=headers)
    assert (answer.status_code, title(answer)) == (status, "bad_input")
    assert said in answer.json()["detail"]
    assert store.broker.depth().waiting == 0


@pytest.mark.parametrize("wait_s", ["-1", "31", "soon", "nan"])
def test_a_wait_out_of_bounds_is_refused(client: httpx.Client, wait_s: str) -> None:
    answer = client.get(f"/jobs/{'0' * 26}", params={"wait_s": wait_s})
    assert (answer.status_code, title(answer)) == (422, "bad_input")
    assert "wait_s: must be 0 to 30 seconds (queue.poll_wait_max_s)" in answer.json()["detail"]


def test_a_body_over_the_limit_is_refused(tmp_path: Path) -> None:
    stage = queued(admission__max_body_bytes=1024)
    with stored(stage, tmp_path) as store, serving_jobs(stage, store) as client:
        answer = post(client, body=b"0" * 1025)
        assert (answer.status_code, title(answer)) == (413, "bad_input")


def test_a_queue_that_is_full_says_so_and_takes_what_fits(tmp_path: Path) -> None:
    stage = queued(queue__max_depth=10, batching__max_batch_size=4)
    with stored(stage, tmp_path) as store, serving_jobs(stage, store) as client:
        with ThreadPoolExecutor(16) as pool:
            found = [each.result(PATIENCE_S) for each in [pool.submit(post, client) for _ in range(16)]]
        assert sorted(answer.status_code for answer in found) == [202] * 10 + [503] * 6
        refused = next(answer for answer in found if answer.status_code == 503)
        assert (title(refused), refused.headers["retry-after"]) == ("queue_full", "1")
        assert "queue.max_depth" in refused.json()["detail"]
        assert store.broker.depth().waiting == 10
        assert scraped(client)["rung_jobs_requests_total/shed/queue_full"] == 6.0


def test_jobs_that_come_together_are_put_together(
    client: httpx.Client, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, put_one = list[int](), store.broker.put
    first, go = threading.Event(), threading.Event()

    def counting(jobs: Any) -> Any:
        sizes.append(len(jobs))
        if len(sizes) == 1:
            first.set()
            assert go.wait(PATIENCE_S)
        return put_one(jobs)

    monkeypatch.setattr(store.broker, "put", counting)
    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(post, client)]
        assert first.wait(PATIENCE_S)
        asked += [pool.submit(post, client) for _ in range(11)]
        assert wait_until(lambda: scraped(client)["rung_jobs_in_flight"] == 12.0, PATIENCE_S)
        go.set()
        jobs = {each.result(PATIENCE_S).json()["job"] for each in asked}
    assert len(jobs) == 12
    assert sizes == [1, 11]


def test_a_line_that_is_full_refuses(client: httpx.Client, store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(put_line, "LINE_MAX", 0)
    answer = post(client)
    assert (answer.status_code, title(answer)) == (503, "queue_full")
    assert "max_depth" not in answer.json()["detail"]


def test_a_broker_that_is_down_is_told_and_comes_back(
    client: httpx.Client, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: object) -> Any:
        raise BrokerDownError("the queue's disk is gone")

    with monkeypatch.context() as broken:
        for name in ("put", "look", "depth"):
            broken.setattr(store.broker, name, down)
        answer = post(client)
        assert (answer.status_code, title(answer)) == (503, "broker_down")
        assert "under the same Idempotency-Key" in answer.json()["detail"]
        looked = client.get(f"/jobs/{'0' * 26}")
        assert (looked.status_code, title(looked)) == (503, "broker_down")
        assert client.get("/readyz").status_code == 503
        assert "rung_queue_oldest_seconds" not in scraped(client)
        assert client.get("/healthz").status_code == 200
    assert post(client).status_code == 202
    assert client.get("/readyz").json() == {"status": "ready"}


def test_more_inside_than_there_may_be_are_refused(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_api, "INSIDE_MAX", 0)
    answer = post(client)
    assert (answer.status_code, title(answer)) == (503, "gateway_full")


def test_the_metrics_tell_the_queue(client: httpx.Client, store: JobStore) -> None:
    for _ in range(3):
        post(client)
    store.broker.claim(1, 60.0)
    told = scraped(client)
    assert {state: told[f"rung_queue_jobs/{state}"] for state in ("waiting", "leased", "delayed", "dead")} == {
        "waiting": 2.0,
        "leased": 1.0,
        "delayed": 0.0,
        "dead": 0.0,
    }
    assert told["rung_queue_oldest_seconds"] > 0.0
    text = client.get("/metrics").text
    found = summed(text, "jobs", ())
    assert (found.requests, found.errors, found.queue_length) == (3.0, 0.0, 2.0)


def test_the_autoscaler_reads_the_queue_off_the_apis_page(client: httpx.Client, store: JobStore) -> None:
    for _ in range(3):
        post(client)
    store.broker.claim(1, 60.0)
    launcher: Any = SimpleNamespace(gateway=SimpleNamespace(url=str(client.base_url).rstrip("/")), replicas=[])
    sample = QueueFleet(launcher).sample()
    assert sample.queue is not None
    assert (sample.queue.waiting, sample.queue.leased) == (2.0, 1.0)
    assert sample.queue.oldest_s > 0.0
    assert sample.queue != QueueSample()
    launcher.gateway.url = "http://127.0.0.1:9"
    assert QueueFleet(launcher).sample().queue is None


def test_the_documentation_describes_it(client: httpx.Client) -> None:
    assert client.get("/docs").status_code == 200
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/jobs", "/jobs/{job}", "/predict", "/healthz", "/readyz", "/metrics"} <= set(paths)
    names = {parameter["name"] for parameter in paths["/jobs"]["post"]["parameters"]}
    assert {"priority", "callback", "Idempotency-Key", "x-rung-shape"} <= names


# ---- POST /predict ----


def test_predict_answers_as_a_replica_does(client: httpx.Client, store: JobStore) -> None:
    with working(queued(), store):
        found = all_at_once(str(client.base_url), 20)
    assert {answer.status_code for answer in found} == {200}
    assert list(found[0].json()) == ["model", "version", "label", "probability"]
    for answer in found:
        record = dict(part.split("=") for part in answer.headers["x-rung-record"].split(","))
        names = ("gateway_in_s", "arrived_s", "started_s", "finished_s", "gateway_out_s")
        times_s = [float(record[name]) for name in names]
        assert times_s == sorted(times_s)
        assert len(answer.headers["x-rung-job"]) == 26
    assert scraped(client)["rung_jobs_requests_total/ok/"] == 20.0


def test_predict_that_nobody_answers_says_where_to_look_later(tmp_path: Path) -> None:
    stage = queued(queue__request_reply_timeout_s=0.3)
    with stored(stage, tmp_path) as store, serving_jobs(stage, store) as client:
        late = post(client, "/predict")
        assert (late.status_code, title(late)) == (504, "upstream_timeout")
        assert "queue.request_reply_timeout_s" in late.json()["detail"]
        own = post(client, "/predict", x_rung_deadline_s="0.1")
        assert (own.status_code, title(own)) == (504, "deadline")
        jobs = [answer.headers["x-rung-job"] for answer in (late, own)]
        with working(stage, store):  # nobody waits any more, and so nothing is computed
            assert {result.outcome for result in results(store, jobs).values()} == {"timed_out"}
        told = client.get(f"/jobs/{jobs[0]}").json()
        assert (told["status"], told["outcome"], told["error"]["title"]) == ("done", "timed_out", "deadline")


def test_predict_is_told_of_poison_at_once(tmp_path: Path) -> None:
    stage, model = queued(batching__batch_wait_timeout_s=1.0), Digits()
    body = POISON.astype("<f4").tobytes()
    with (
        stored(stage, tmp_path) as store,
        serving_jobs(stage, store) as client,
        working(stage, store, model=model),
        ThreadPoolExecutor(3) as pool,
    ):
        bad = pool.submit(post, client, "/predict", body)
        good = [pool.submit(post, client, "/predict") for _ in range(2)]
        answer = bad.result(PATIENCE_S)
        assert (answer.status_code, title(answer)) == (500, "model_error")
        assert "a picture that cannot be" in answer.json()["detail"]
        assert {each.result(PATIENCE_S).status_code for each in good} == {200}


def test_predict_under_a_key_gives_the_first_answer_again(client: httpx.Client, store: JobStore) -> None:
    model = Digits()
    with working(queued(), store, model=model):
        first, again = (post(client, "/predict", Idempotency_Key="once") for _ in range(2))
    assert first.json() == again.json()
    assert model.batches == [1]


def test_what_was_accepted_is_answered_while_it_drains(tmp_path: Path) -> None:
    stage, model = queued(), Digits()
    model.hold.clear()
    with (
        stored(stage, tmp_path) as store,
        working(stage, store, model=model),
        # It outlives the API, whose own client may be closed before these threads have read their answers.
        httpx.Client(timeout=PATIENCE_S, trust_env=False) as patient,
        ThreadPoolExecutor(2) as pool,
    ):
        with serving_jobs(stage, store) as client:
            patient.base_url = client.base_url
            asked = pool.submit(post, patient, "/predict")
            assert wait_until(lambda: store.broker.depth().leased == 1, PATIENCE_S)
            looks = pool.submit(patient.get, f"/jobs/{post(client).json()['job']}", params={"wait_s": 25})
            assert wait_until(lambda: scraped(client)["rung_jobs_waiters"] == 2.0, PATIENCE_S)
            threading.Timer(0.3, model.hold.set).start()
        # It has ended by now: with an answer for the one, and the other told what was known.
        assert asked.result(PATIENCE_S).status_code == 200
        assert looks.result(PATIENCE_S).status_code == 200


# ---- dead letters ----


def test_a_job_whose_workers_were_all_killed_is_told_to_be_dead(tmp_path: Path) -> None:
    stage = queued(queue__attempts_max=2, queue__lease_s=0.1)
    with stored(stage, tmp_path) as store, serving_jobs(stage, store) as client:
        job = post(client).json()["job"]
        for _ in range(2):  # claims of workers that never come back
            assert wait_until(lambda: bool(store.broker.claim(1, 0.1)), PATIENCE_S)
        dead = client.get(f"/jobs/{job}", params={"wait_s": 20}).json()
        assert (dead["status"], dead["outcome"], dead["attempts"]) == ("dead", "failed", 2)
        assert wait_until(lambda: job in store.results.find([job]), PATIENCE_S)  # the housekeeping's
        assert client.get(f"/jobs/{job}").json()["status"] == "dead"
        store.broker.retry([job])
        assert client.get(f"/jobs/{job}").json()["status"] == "waiting"
        with working(stage, store):
            done = client.get(f"/jobs/{job}", params={"wait_s": 20}).json()
        assert (done["status"], done["outcome"]) == ("done", "ok")


def test_housekeeping_looks_at_every_dead_letter_once(tmp_path: Path) -> None:
    stage = queued()
    with stored(stage, tmp_path) as store:
        jobs = put(store, *INPUTS, *INPUTS, callback="https://example.org/")
        for job in store.broker.claim(1000, 60.0):
            store.broker.dead_letter(job, "It broke.")
        house = Housekeeping(stage, store)
        assert (house.look(), house.look()) == (128, 0)
        found = store.results.find(jobs)
        assert {result.outcome for result in found.values()} == {"failed"}
        assert {result.callback for result in found.values()} == {"https://example.org/"}
        assert Housekeeping(stage, store).look() == 128  # after a restart, which stores nothing anew
        assert store.results.counts() == {"failed": 128}


def test_a_dead_letter_whose_result_is_gone_is_not_told_again_after_a_restart(tmp_path: Path) -> None:
    with stored(queued(), tmp_path) as store:
        put(store, INPUTS[0], callback="https://example.org/")
        (job,) = store.broker.claim(1, 60.0)
        store.broker.dead_letter(job, "It broke.")
        assert Housekeeping(queued(), store).look() == 1
        assert store.results.counts() == {"failed": 1}
        assert store.results.forget_expired(1e12) == 1
        assert Housekeeping(queued(queue__result_ttl_s=1e-9), store).look() == 1
        assert store.results.counts() == {}


# ---- callbacks ----


class Taker:
    """A receiver that checks the signature of what it is told, and answers with one status after the other."""

    def __init__(self, *statuses: int) -> None:
        self.statuses, self.taken, self.ours = list(statuses or (200,)), list[dict[str, Any]](), list[bool]()

    def __call__(self, request: BaseHTTPRequestHandler, body: bytes) -> int:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.ours.append(is_ours(SECRET, headers, body, time.time()))
        assert not is_ours(SECRET, headers, body + b" ", time.time())
        assert not is_ours(b"another secret, as long", headers, body, time.time())
        assert not is_ours(SECRET, headers, body, time.time() + 3600.0)
        self.taken.append(json.loads(body))
        return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]


def test_a_callback_is_told_the_answer_signed(tmp_path: Path) -> None:
    stage, taker = queued(**SECRET_ENV), Taker()
    with (
        listening(taker) as url,
        stored(stage, tmp_path) as store,
        serving_jobs(stage, store, SECRET) as client,
        working(stage, store),
    ):
        jobs = [post(client, f"/jobs?callback={url}/told").json()["job"] for _ in range(3)]
        assert wait_until(lambda: len(taker.taken) == 3, PATIENCE_S)
        assert wait_until(lambda: scraped(client)["rung_jobs_callbacks_total/delivered"] == 3.0, PATIENCE_S)
        shown = {job: client.get(f"/jobs/{job}").json() for job in jobs}
    assert all(taker.ours)
    assert {each["job"]: each for each in taker.taken} == shown


def told_by(store: JobStore, taker: Taker, attempts_max: int, times: int) -> list[str]:
    """How the tries of one callback end, with short pauses between them."""
    ends: list[str] = []
    callbacks = Callbacks(store.results, SECRET, attempts_max, True, first_pause_s=0.01, ended=ends.append)
    with callbacks:
        assert wait_until(lambda: len(ends) >= times, PATIENCE_S)
        wait_until(lambda: len(ends) > times, 0.5)
    return ends


def a_told_result(url: str, job: str = "A") -> Result:
    return Result(job, "ok", "{}", "digits", "1", 1, 0.0, 0.0, 1e12, callback=url, callback_due_at=time.time())


def test_a_callback_is_tried_again_with_growing_pauses_and_not_for_ever(
    store: JobStore, caplog: pytest.LogCaptureFixture
) -> None:
    taker = Taker(500, 503, 200)
    with listening(taker) as url:
        store.results.store([a_told_result(f"{url}/a-secret")])
        assert told_by(store, taker, 6, 3) == ["put_off", "put_off", "delivered"]
        assert len(taker.taken) == 3
        assert not store.results.any_due(1e11)
        taker.statuses = [500]
        store.results.store([a_told_result(f"{url}/a-secret", "B")])
        assert told_by(store, taker, 3, 3) == ["put_off", "put_off", "given_up"]
        assert len(taker.taken) == 6
        assert not store.results.any_due(1e11)
    assert "a-secret" not in caplog.text
    assert all("a-secret" not in str(vars(record)) for record in caplog.records)


def test_a_receiver_that_is_gone_for_good_is_not_asked_again(store: JobStore) -> None:
    with listening(Taker(410)) as url:
        store.results.store([a_told_result(url)])
        assert told_by(store, Taker(), 6, 1) == ["given_up"]


def test_a_redirection_is_not_followed(store: JobStore) -> None:
    with listening(Taker(302)) as url:
        store.results.store([a_told_result(url)])
        assert told_by(store, Taker(), 2, 2) == ["put_off", "given_up"]


def test_connecting_is_a_part_of_the_time_that_a_receiver_has(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, tried = 100.0, list[float]()

    def silent(_: object, timeout_s: float) -> None:
        nonlocal now_s
        tried.append(timeout_s)
        now_s += timeout_s
        raise TimeoutError

    monkeypatch.setattr(job_webhook, "time", SimpleNamespace(monotonic=lambda: now_s))
    monkeypatch.setattr(job_webhook.socket, "create_connection", silent)
    connection = job_webhook._Pinned("a-host", 80, ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"])
    with pytest.raises(TimeoutError), connection.until(now_s + 8.0):
        pass
    assert tried == [5.0, 3.0]


def test_an_error_that_nobody_foresaw_ends_no_callbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_webhook, "LOOK_S", 0.001)
    monkeypatch.setattr(job_webhook, "DOWN_S", 0.001)
    looked = threading.Event()

    class Strange:
        failures = 1

        def any_due(self, _: float) -> bool:
            if self.failures:
                self.failures -= 1
                raise ValueError("a row that cannot be")
            looked.set()
            return False

    with Callbacks(cast(Any, Strange()), SECRET, 1):
        assert looked.wait(PATIENCE_S)


def test_what_is_due_outlives_a_restart(tmp_path: Path) -> None:
    stage, taker = queued(**SECRET_ENV), Taker()
    with listening(taker) as url:
        with stored(stage, tmp_path) as store:
            (job,) = put(store, INPUTS[0], callback=f"{url}/told")
            with working(stage, store):
                results(store, [job])
        assert taker.taken == []
        with stored(stage, tmp_path) as store, serving_jobs(stage, store, SECRET):  # another life
            assert wait_until(lambda: len(taker.taken) == 1, PATIENCE_S)
    assert (taker.taken[0]["job"], taker.ours) == (job, [True])


def test_a_private_address_is_called_only_where_the_stage_allows(store: JobStore) -> None:
    taker, ends = Taker(), list[str]()
    with listening(taker) as url:
        by_name = url.replace("127.0.0.1", "localhost")
        store.results.store([a_told_result(url, "A"), a_told_result(by_name, "B")])
        with Callbacks(store.results, SECRET, 6, private=False, ended=ends.append):
            assert wait_until(lambda: len(ends) == 2, PATIENCE_S)
    assert ends == ["given_up"] * 2
    assert taker.taken == []


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::5db8:d70e", True),
        ("2002:7f00:1::", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.org/",
        "file:///etc/passwd",
        "https://",
        "https://user:password@example.org/",
        "https://example.org:99999/",
        "https://example.org/a b",
        "http://exämple.org/",
        "https://example.org/" + "x" * 2048,
        "javascript:alert(1)",
    ],
)
def test_what_is_no_address_to_call_is_refused(url: str) -> None:
    with pytest.raises(CallbackError, match="callback: must be an address that begins with http"):
        checked_callback(url, private=True)


@pytest.mark.parametrize("host", ["127.0.0.1:80", "localhost", "[::1]:8000", "10.0.0.1", "a.localhost"])
def test_what_is_seen_to_be_within_is_refused_at_the_door(host: str) -> None:
    with pytest.raises(CallbackError, match=r"queue\.webhook_private = true"):
        checked_callback(f"http://{host}/", private=False)
    assert checked_callback(f"http://{host}/", private=True)
    assert checked_callback("https://example.org/told?job=1", private=False)


def test_a_secret_that_could_be_guessed_is_refused() -> None:
    assert secret_of(None, {}) is None
    assert secret_of("SECRET", {"SECRET": SECRET.decode()}) == SECRET
    for environment in ({}, {"SECRET": "short"}):
        with pytest.raises(CallbackError, match=r"SECRET: must hold the secret of queue\.webhook_secret_env") as caught:
            secret_of("SECRET", environment)
        assert "short" not in str(caught.value).replace("shorter", "")


def test_a_signature_is_the_hmac_of_timestamp_and_body() -> None:
    """Worked by another hand: printf '12.{}' | openssl dgst -sha256 -hmac 'a secret of more than 16 characters'."""
    import hashlib
    import hmac

    wanted = hmac.new(SECRET, b"12.{}", hashlib.sha256).hexdigest()
    assert signature(SECRET, 12, b"{}") == f"sha256={wanted}"
    assert is_ours(SECRET, {TIMESTAMP: "12", SIGNATURE: f"sha256={wanted}"}, b"{}", 13.0)
    assert not is_ours(SECRET, {SIGNATURE: f"sha256={wanted}"}, b"{}", 13.0)


# ---- as a process ----


@pytest.mark.parametrize("broker", ["sqlite", "redis"])
def test_what_is_killed_has_lost_nothing_that_was_accepted(
    tmp_path: Path, broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API; and the server of the queue, where the launcher runs one."""
    monkeypatch.delenv("RUNG_BROKER_URL", raising=False)
    stage = queued(queue__broker=broker, queue__lease_s=2.0)  # what was given out as the server died is given again
    with ProcessLauncher(stage, tmp_path) as launcher:
        api = launcher.gateway
        assert api is not None
        body = orjson.dumps({"input": INPUTS[0].tolist()})
        headers = {"content-type": "application/json"}
        with httpx.Client(base_url=launcher.url, timeout=PATIENCE_S, trust_env=False) as client:
            jobs = [client.post("/jobs", content=body, headers=headers).json()["job"] for _ in range(20)]
        killed = [api, *([launcher.cache] if launcher.cache is not None else [])]
        assert len(killed) == (1 if broker == "sqlite" else 2)
        for member in killed:
            member.process.kill()
            member.process.wait(PATIENCE_S)
        assert {dead.name for dead in launcher.look()} == {member.name for member in killed}
        assert launcher.told(api).startswith(f"the jobs API (pid {api.pid}) ended with signal SIGKILL.")
        for member in reversed(killed):  # the queue's server first: the others do not begin without it
            again = launcher.restart(member)
            assert wait_until(lambda again=again: launcher.look() == [] and again.state == "ready", PATIENCE_S)
            assert again.port == member.port
        with httpx.Client(base_url=launcher.url, timeout=PATIENCE_S, trust_env=False) as client:
            for job in jobs:
                assert client.get(f"/jobs/{job}", params={"wait_s": 20}).json()["outcome"] == "ok"
            answer = client.post("/predict", content=body, headers=headers)
            assert (answer.status_code, answer.json()["model"]) == (200, "digits")


def test_a_large_input_travels_as_well_as_a_small_one(tmp_path: Path) -> None:
    """A payload over queue.payload_max_bytes lies in a file beside the queue."""
    stage = queued(queue__payload_max_bytes=1024)
    padded = orjson.dumps({"input": INPUTS[0].tolist()}).replace(b"[", b"[" + b" " * 256)
    assert len(padded) > 1024

    def files() -> list[Path]:
        return [path for path in (tmp_path / "payloads").glob("*") if not path.name.startswith(".")]

    with stored(stage, tmp_path) as store, serving_jobs(stage, store) as client:
        job = client.post("/jobs", content=padded, headers={"content-type": "application/json"}).json()["job"]
        assert len(files()) == 1
        with working(stage, store):
            assert client.get(f"/jobs/{job}", params={"wait_s": 20}).json()["outcome"] == "ok"
        assert files() == []
