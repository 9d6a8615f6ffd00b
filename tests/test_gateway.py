"""The gateway over real sockets: who gets a request, what is tried again, who is turned away, what goes on with it."""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from reference_apps import serving
from reference_apps.asking import wait_until
from reference_apps.edge import Keys
from tests.conftest import PATIENCE_S
from tests.fake_replicas import FakeReplica, Fleet, fleet
from tests.told import Record

KEY, OTHER_KEY = "0123456789abcdef-one", "0123456789abcdef-two"


def asked(made: Fleet) -> list[int]:
    """How many requests reached each replica."""
    return [len(fake.asked) for fake in made.fakes]


def problem(response: httpx.Response) -> tuple[int, str]:
    """Status and title of an error, which is told as RFC 9457 has it."""
    assert response.headers["content-type"] == "application/problem+json"
    told = response.json()
    assert told["status"] == response.status_code
    assert told["detail"]
    return response.status_code, told["title"]


def tries(response: httpx.Response) -> int:
    return int(dict(part.split("=") for part in response.headers["x-rung-record"].split(","))["tries"])


@contextmanager
def held(made: Fleet, count: int, **headers: str) -> Iterator[list[Future[httpx.Response]]]:
    """So many requests that are inside and held by the replicas; they are let go at the end."""
    before = made.gateway.in_flight
    for fake in made.fakes:
        fake.answer = "hold"
    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(made.ask, **headers) for _ in range(count)]
        try:
            assert wait_until(lambda: made.gateway.in_flight == before + count == sum(asked(made)), PATIENCE_S)
            yield futures
        finally:
            made.release()


# ---- what passes through ---------------------------------------------------------------------------------------


def test_every_replica_gets_its_turn(tmp_path: Path) -> None:
    with fleet(tmp_path, 3) as made:
        labels = [made.ask().json()["label"] for _ in range(9)]
        assert asked(made) == [3, 3, 3]
        assert labels[:3] == labels[3:6] == labels[6:]


def test_an_answer_comes_back_whole_with_its_record(tmp_path: Path) -> None:
    with fleet(tmp_path, 1) as made:
        before_s = time.monotonic()
        response = made.ask(x_rung_shape="1x8x8", x_request_id="mine-1", authorization="Bearer secret", cookie="a=b")
        record = Record.of(response)
        assert (response.status_code, response.json()) == (200, {"label": 0})
        assert response.headers["content-type"] == "application/json"
        assert response.headers["x-request-id"] == "mine-1"
        assert (record.replica, record.batch, record.arrived_s, record.finished_s, record.tries) == (0, 1, 1.0, 3.0, 1)
        assert record.gateway_in_s is not None
        assert record.gateway_out_s is not None
        microsecond_s = 1e-6
        assert before_s - microsecond_s <= record.gateway_in_s <= record.gateway_out_s
        assert record.gateway_out_s <= time.monotonic() + microsecond_s
        (fake,) = made.fakes
        assert fake.bodies == [b"four"]
        passed_on = {"host", "content-length", "content-type", "x-rung-shape", "x-request-id", "x-rung-deadline-s"}
        assert set(fake.asked[0]) == passed_on  # no key, no cookie
        assert fake.asked[0]["x-request-id"] == "mine-1"
        assert (fake.asked[0]["content-type"], fake.asked[0]["x-rung-shape"]) == ("x/y", "1x8x8")


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "<script>", "a,b"])
def test_a_strange_request_id_is_replaced(tmp_path: Path, given: str) -> None:
    with fleet(tmp_path, 1) as made:
        ids = [made.ask(x_request_id=given).headers["x-request-id"] for _ in range(2)]
        assert [headers["x-request-id"] for headers in made.fakes[0].asked] == ids
        assert len({*ids, given}) == 3
        assert all(len(each) == 32 for each in ids)


def test_one_connection_serves_one_request_after_the_other(tmp_path: Path) -> None:
    with fleet(tmp_path, 1) as made:
        before = made.fakes[0].connections
        assert [made.ask().status_code for _ in range(5)] == [200] * 5
        assert made.fakes[0].connections - before <= 1  # at most one more than the probe's


def test_what_is_left_of_the_deadline_goes_on(tmp_path: Path) -> None:
    with fleet(tmp_path, 1, gateway_upstream_timeout_s=20.0) as made:
        for given in ({}, {"x_rung_deadline_s": "5"}, {"x_rung_deadline_s": "3600"}):
            made.ask(**given)
        left_s = [float(headers["x-rung-deadline-s"]) for headers in made.fakes[0].asked]
        assert 0.0 < left_s[1] < 5.0
        assert left_s[0] == left_s[2] == 20.0
        assert problem(made.ask(x_rung_deadline_s="soon")) == (422, "bad_input")
        assert asked(made) == [3]


def test_the_stages_own_deadline_goes_on_where_there_is_no_other(tmp_path: Path) -> None:
    with fleet(tmp_path, 1, admission_deadline_s=7.0) as made:
        made.ask()
        made.ask(x_rung_deadline_s="3")
        left_s = [float(headers["x-rung-deadline-s"]) for headers in made.fakes[0].asked]
        assert 3.0 < left_s[0] < 7.0
        assert left_s[1] < 3.0


def test_sticky_keys_stay_with_their_replica(tmp_path: Path) -> None:
    with fleet(tmp_path, 4, gateway_policy="sticky") as made:
        homes = {key: {made.ask(x_rung_key=str(key)).json()["label"] for _ in range(3)} for key in range(24)}
        assert all(len(home) == 1 for home in homes.values())
        assert len(set.union(*homes.values())) == 4
        home = homes[0].pop()
        made.publish(*(n for n in range(4) if n != home))
        made.await_rotation(*(n for n in range(4) if n != home))
        moved = {key: made.ask(x_rung_key=str(key)).json()["label"] for key in range(1, 24)}
        assert all(label in homes[key] or homes[key] == {home} for key, label in moved.items())


# ---- what is tried again ---------------------------------------------------------------------------------------


def test_a_replica_that_is_not_there_is_passed_over(tmp_path: Path) -> None:
    with fleet(tmp_path) as made:
        made.do(made.fakes[0].close())
        responses = [made.ask() for _ in range(4)]
        assert [response.status_code for response in responses] == [200] * 4
        assert sorted(tries(response) for response in responses)[-1] == 2
        assert asked(made)[1] == 4


@pytest.mark.parametrize("answer", ["lose", "garble", (503, "queue_full"), (503, "draining")])
def test_what_is_safe_is_tried_on_another_replica(tmp_path: Path, answer: str | tuple[int, str]) -> None:
    with fleet(tmp_path) as made:
        made.fakes[0].answer = answer
        responses = [made.ask() for _ in range(2)]
        assert [(response.status_code, response.json()) for response in responses] == [(200, {"label": 1})] * 2
        assert [tries(response) for response in responses] == [2, 2]  # by turns it begins with the first again
        assert sum(value for name, value in made.counts().items() if "retries_total" in name) == 2
        ids = {headers["x-request-id"] for fake in made.fakes for headers in fake.asked}
        assert ids == {response.headers["x-request-id"] for response in responses}


@pytest.mark.parametrize(
    "answer", [(500, "model_error"), (422, "bad_input"), (504, "deadline"), (500, "never heard of"), (418, "")]
)
def test_what_is_not_safe_is_told_as_it_is(tmp_path: Path, answer: tuple[int, str]) -> None:
    with fleet(tmp_path) as made:
        for fake in made.fakes:
            fake.answer = answer
        response = made.ask()
        assert problem(response) == answer
        assert (response.json()["detail"], tries(response)) == ("as told", 1)
        assert sum(asked(made)) == 1


def test_when_all_are_full_the_last_one_says_so(tmp_path: Path) -> None:
    with fleet(tmp_path, 3, gateway_retries_max=1) as made:
        for fake in made.fakes:
            fake.answer = (503, "queue_full")
        response = made.ask()
        assert problem(response) == (503, "queue_full")
        assert (response.headers["retry-after"], tries(response)) == ("9", 2)
        assert sum(asked(made)) == 2


def test_a_request_goes_to_each_replica_once_at_most(tmp_path: Path) -> None:
    with fleet(tmp_path, 3, gateway_retries_max=10) as made:
        for fake in made.fakes:
            fake.answer = "lose"
        assert problem(made.ask()) == (502, "upstream_lost")
        assert asked(made) == [1, 1, 1]


def test_retries_have_a_budget(tmp_path: Path) -> None:
    with fleet(tmp_path, gateway_eject_after=1000, gateway_retry_budget_share=0.2) as made:
        for fake in made.fakes:
            fake.answer = "lose"
        responses = [made.ask() for _ in range(10)]
        assert {problem(response) for response in responses} == {(502, "upstream_lost")}
        assert sum(tries(response) == 2 for response in responses) == 3  # of a quiet service
        assert made.counts()["rung_gateway_retries_refused_total"] == 7


def test_without_a_budget_nothing_is_tried_again(tmp_path: Path) -> None:
    with fleet(tmp_path, gateway_retry_budget_share=0.0) as made:
        made.fakes[0].answer = "lose"
        assert sorted(made.ask().status_code for _ in range(2)) == [200, 502]


def test_a_replica_that_takes_too_long_is_given_up_and_the_request_not_repeated(tmp_path: Path) -> None:
    short = {"gateway_upstream_timeout_s": 1.0, "gateway_connect_timeout_s": 1.0}  # a busy host connects within it
    with fleet(tmp_path, **short) as made:
        for fake in made.fakes:
            fake.answer = "hold"
        response = made.ask()
        assert (problem(response), tries(response)) == ((504, "upstream_timeout"), 1)
        assert sum(asked(made)) == 1
        assert wait_until(lambda: sum(fake.left for fake in made.fakes) == 1, PATIENCE_S)  # its connection was closed
        assert [row["outstanding"] for number, row in made.seen().items() if number >= 0] == [0, 0]


def test_a_client_that_is_in_a_hurry_does_not_eject_anybody(tmp_path: Path) -> None:
    with fleet(tmp_path, 1, gateway_eject_after=1) as made:
        made.fakes[0].answer = "hold"
        assert problem(made.ask(x_rung_deadline_s="0.05")) == (504, "deadline")
        made.fakes[0].answer = (200, "")
        assert made.ask().status_code == 200


# ---- health ----------------------------------------------------------------------------------------------------


def test_a_replica_that_fails_is_ejected_and_returns(tmp_path: Path) -> None:
    with fleet(tmp_path, gateway_eject_after=2, gateway_eject_s=0.5, gateway_retry_budget_share=1.0) as made:
        bad = made.fakes[0]
        bad.answer = (500, "model_error")
        assert wait_until(lambda: made.ask().status_code == 500 and made.seen()[0]["ejected"], PATIENCE_S)
        assert len(bad.asked) == 2
        bad.answer = (200, "")
        made.await_rotation(0, 1)
        assert wait_until(lambda: made.ask().json() == {"label": 0}, PATIENCE_S)
        assert made.counts()["rung_gateway_ejections_total/0"] == 1


def test_while_it_is_ejected_it_gets_nothing(tmp_path: Path) -> None:
    with fleet(tmp_path, gateway_eject_after=1, gateway_eject_s=3600.0) as made:
        made.fakes[0].answer = "lose"
        assert {made.ask().status_code for _ in range(12)} == {200}
        assert asked(made) == [1, 12]
        assert made.seen()[0]["ready"]
        made.fakes[1].answer = "lose"
        assert problem(made.ask()) == (502, "upstream_lost")
        assert problem(made.ask()) == (503, "no_replica")


@pytest.mark.parametrize("how", ["not ready", "hangs", "vanished"])
def test_probes_take_a_replica_out_and_bring_it_back(tmp_path: Path, how: str) -> None:
    often = {"gateway_probe_interval_s": 0.1, "gateway_probe_timeout_s": 0.1, "gateway_healthy_after": 3}
    with fleet(tmp_path, **often) as made:
        sick = made.fakes[0]
        if how == "not ready":
            sick.ready = False
        elif how == "hangs":
            sick.hangs = True
        else:
            made.do(sick.close())
        made.await_rotation(1)
        assert {made.ask().json()["label"] for _ in range(4)} == {1}
        assert made.counts()["rung_gateway_replica_in_rotation/0"] == 0.0
        sick.ready, sick.hangs = True, False
        if how == "vanished":
            made.do(sick.open())
        made.release()
        made.await_rotation(0, 1)
        assert {made.ask().json()["label"] for _ in range(4)} == {0, 1}


# ---- the fleet -------------------------------------------------------------------------------------------------


def test_replicas_come_and_go_by_the_file(tmp_path: Path) -> None:
    with fleet(tmp_path, 3) as made:
        made.publish(0)
        made.await_rotation(0)
        assert {made.ask().json()["label"] for _ in range(3)} == {0}
        assert made.seen()[-1]["generation"] == 2
        made.publish()
        made.await_rotation()
        refused = made.ask()
        assert (problem(refused), tries(refused)) == ((503, "no_replica"), 0)
        assert int(refused.headers["retry-after"]) >= 1
        assert made.client.get("/readyz").status_code == 503
        made.publish(1, 2)
        made.await_rotation(1, 2)
        assert {made.ask().json()["label"] for _ in range(4)} == {1, 2}
        assert made.client.get("/readyz").json() == {"status": "ready"}


ONE_ROW = '{"generation": 9, "replicas": [%s]}'


@pytest.mark.parametrize(
    "torn",
    [
        "",
        "{",
        "[]",
        '{"generation": 9}',
        ONE_ROW % '{"replica": 1}',
        ONE_ROW % '{"replica": 1, "url": "ftp://x", "draining": false}',
    ],
)
def test_a_file_that_is_none_changes_nothing(tmp_path: Path, torn: str) -> None:
    with fleet(tmp_path) as made:
        made.file.write_text(torn)
        time.sleep(0.2)  # some looks
        assert made.seen()[-1]["generation"] == 1
        assert [made.ask().status_code for _ in range(4)] == [200] * 4
        assert asked(made) == [2, 2]
        made.publish(1)
        made.await_rotation(1)


def test_a_draining_replica_gets_nothing_new_and_finishes_what_it_has(tmp_path: Path) -> None:
    with fleet(tmp_path) as made, held(made, 2) as futures:
        made.publish(0, 1, draining=(0,))
        made.await_rotation(1)
        seen = made.seen()
        assert (seen[0]["draining"], seen[0]["outstanding"], seen[-1]["generation"]) == (True, 1, 2)
        for fake in made.fakes:
            fake.answer = (200, "")
        assert {made.ask().json()["label"] for _ in range(4)} == {1}
        made.release()
        assert sorted(future.result(PATIENCE_S).json()["label"] for future in futures) == [0, 1]
        assert made.seen()[0]["outstanding"] == 0


def test_a_replica_that_leaves_the_file_still_answers_what_it_has(tmp_path: Path) -> None:
    with fleet(tmp_path, 1) as made, held(made, 1) as (future,):
        made.publish()
        made.await_rotation()
        made.release()
        assert future.result(PATIENCE_S).status_code == 200


def test_a_replica_with_another_address_is_another_one(tmp_path: Path) -> None:
    with fleet(tmp_path, 2, gateway_eject_after=1, gateway_eject_s=3600.0) as made:
        made.fakes[0].answer = "lose"
        assert {made.ask().status_code for _ in range(2)} == {200}
        assert made.seen()[0]["ejected"]
        moved = FakeReplica(0)
        made.do(moved.open())
        made.fakes[0], gone = moved, made.fakes[0]
        made.do(gone.close())
        made.publish(0, 1)
        made.await_rotation(0, 1)
        assert {made.ask().json()["label"] for _ in range(2)} == {0, 1}


def test_the_batches_of_all_replicas_are_gathered(tmp_path: Path) -> None:
    with fleet(tmp_path, 3) as made:
        for fake in made.fakes:
            fake.batches = [[7, 1.0, 2.0, fake.number + 1]]
        made.do(made.fakes[2].close())  # one that does not answer is left out
        assert sorted(made.client.get("/batches?since_s=0.5").json()) == [[0, 7, 1.0, 2.0, 1], [1, 7, 1.0, 2.0, 2]]


# ---- room ------------------------------------------------------------------------------------------------------


def test_when_it_is_full_others_are_told_to_come_later(tmp_path: Path) -> None:
    with fleet(tmp_path, gateway_max_in_flight=2, admission_retry_after_s=7.0) as made:
        with held(made, 2) as futures:
            refused = made.ask()
            assert (problem(refused), refused.headers["retry-after"]) == ((503, "gateway_full"), "7")
            assert made.counts()["rung_gateway_in_flight"] == 2
        assert [future.result().status_code for future in futures] == [200, 200]
        assert made.ask().status_code == 200
        assert made.gateway.in_flight == 0


def test_no_replica_gets_more_than_its_connections(tmp_path: Path) -> None:
    with fleet(tmp_path, gateway_connections_per_replica=1) as made:
        with held(made, 2) as futures:
            assert asked(made) == [1, 1]
            assert problem(made.ask()) == (503, "gateway_full")
        assert [future.result().status_code for future in futures] == [200, 200]


def test_a_client_that_leaves_frees_its_place_and_its_connection(tmp_path: Path) -> None:
    with fleet(tmp_path, 1) as made:
        (fake,) = made.fakes
        fake.answer = "hold"
        address = made.url.removeprefix("http://").split(":")
        with socket.create_connection((address[0], int(address[1])), PATIENCE_S) as leaves:
            leaves.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nfour")
            assert wait_until(lambda: len(fake.asked) == 1, PATIENCE_S)
        assert wait_until(lambda: fake.left == 1 and made.gateway.in_flight == 0, PATIENCE_S)
        assert made.seen()[0]["outstanding"] == 0
        counts = made.counts()
        assert counts["rung_gateway_clients_gone_total"] == 1
        assert counts.get("rung_gateway_requests_total/failed/upstream_lost", 0) == 0
        fake.answer = (200, "")
        assert made.ask().status_code == 200  # and nobody is blamed


def test_a_client_that_leaves_within_its_body_does_no_harm(tmp_path: Path) -> None:
    with fleet(tmp_path, 1) as made:
        address = made.url.removeprefix("http://").split(":")
        with socket.create_connection((address[0], int(address[1])), PATIENCE_S) as leaves:
            leaves.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nfo")
            assert wait_until(lambda: made.gateway.in_flight == 1, PATIENCE_S)
        assert wait_until(lambda: made.gateway.in_flight == 0, PATIENCE_S)
        assert asked(made) == [0]


def test_a_body_that_does_not_come_is_not_waited_for(tmp_path: Path) -> None:
    short = {"gateway_upstream_timeout_s": 0.2, "gateway_connect_timeout_s": 0.1}
    with fleet(tmp_path, 1, **short) as made:
        address = made.url.removeprefix("http://").split(":")
        with socket.create_connection((address[0], int(address[1])), PATIENCE_S) as slow:
            slow.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nfo")
            assert slow.recv(65536).startswith(b"HTTP/1.1 408")
        assert asked(made) == [0]


def test_a_connection_that_says_nothing_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "HEAD_TIMEOUT_S", 0.1)
    with fleet(tmp_path, 1) as made:
        address = made.url.removeprefix("http://").split(":")
        for said in (b"", b"POST /predict HT"):
            with socket.create_connection((address[0], int(address[1])), PATIENCE_S) as silent:
                silent.sendall(said)
                assert silent.recv(65536) == b""


def test_a_body_that_is_too_long_never_reaches_a_replica(tmp_path: Path) -> None:
    with fleet(tmp_path, 1, admission_max_body_bytes=1024) as made:
        assert problem(made.client.post("/predict", content=b"x" * 1025)) == (413, "bad_input")
        assert made.client.post("/predict", content=b"x" * 1024).status_code == 200
        assert [len(body) for body in made.fakes[0].bodies] == [1024]


def test_a_long_body_arrives_whole(tmp_path: Path) -> None:
    with fleet(tmp_path, 1) as made:
        body = bytes(range(256)) * 20_000
        assert made.client.post("/predict", content=body).status_code == 200
        assert made.fakes[0].bodies == [body]


# ---- the edge --------------------------------------------------------------------------------------------------


def test_without_a_key_nothing_is_told(tmp_path: Path) -> None:
    with fleet(tmp_path, 1, keys=Keys((KEY, OTHER_KEY))) as made:
        for headers in ({}, {"authorization": f"Bearer {KEY}x"}, {"authorization": f"Basic {KEY}"}, {"x-api-key": ""}):
            for path in ("/readyz", "/metrics", "/replicas", "/batches", "/docs", "/nowhere"):
                assert problem(made.client.get(path, headers=headers)) == (401, "unauthorized")
            refused = made.client.post("/predict", content=b"four", headers=headers)
            assert problem(refused) == (401, "unauthorized")
            assert refused.headers["www-authenticate"] == "Bearer"
        assert made.client.get("/healthz").status_code == 200
        assert asked(made) == [0]
        for headers in (
            {"authorization": f"Bearer {KEY}"},
            {"authorization": f"bearer {OTHER_KEY}"},
            {"x-api-key": KEY},
        ):
            assert made.client.post("/predict", content=b"four", headers=headers).status_code == 200
            assert made.client.get("/readyz", headers=headers).status_code == 200
        assert all("authorization" not in headers and "x-api-key" not in headers for headers in made.fakes[0].asked)


# ---- what it tells ---------------------------------------------------------------------------------------------


def test_the_metrics_agree_with_what_happened(tmp_path: Path) -> None:
    with fleet(tmp_path) as made:
        for _ in range(3):
            made.ask()
        made.fakes[0].answer = made.fakes[1].answer = (503, "queue_full")
        made.ask()
        counts = Counter(made.counts())
    assert counts["rung_gateway_arrived_total"] == 4
    assert counts["rung_gateway_requests_total/ok/"] == 3
    assert counts["rung_gateway_requests_total/shed/queue_full"] == 1
    assert counts["rung_gateway_request_seconds_count/ok"] == 3
    assert counts["rung_gateway_retries_total/queue_full"] == 1
    assert counts["rung_gateway_outstanding/0"] == counts["rung_gateway_outstanding/1"] == 0
    assert counts["rung_gateway_replica_in_rotation/0"] == counts["rung_gateway_replica_in_rotation/1"] == 1


def test_its_documentation_names_what_there_is(tmp_path: Path) -> None:
    with fleet(tmp_path, 1) as made:
        assert made.client.get("/docs").status_code == 200
        described = made.client.get("/openapi.json").json()
        assert {"/predict", "/healthz", "/readyz", "/metrics", "/replicas", "/batches"} == set(described["paths"])
        assert made.client.get("/predict").status_code == 405
        assert made.client.get("/nowhere").status_code == 404


def test_while_it_drains_it_says_so_and_serves_on(tmp_path: Path) -> None:
    with fleet(tmp_path, 1) as made:
        made.gateway.drain()
        assert (made.client.get("/readyz").status_code, made.client.get("/readyz").json()) == (
            503,
            {"status": "draining"},
        )
        assert made.client.post("/predict", content=b"four").status_code == 200
        assert json.loads(made.client.get("/healthz").content) == {"status": "alive"}
