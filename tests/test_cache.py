"""The cache of a gateway over real sockets: what is computed once, what is never given, who waits and who leads."""

from __future__ import annotations

import json
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import polars as pl
import pytest

from loadtests import payloads
from loadtests.load import fire
from reference_apps.asking import wait_until
from reference_apps.launchers.process import ProcessLauncher
from stages.policies.caching import entry_bytes
from stages.spec import load_stage
from tests.caching import KEPT, RUN, had, looks, post, raw, waiting
from tests.conftest import PATIENCE_S
from tests.fake_replicas import fleet
from tests.test_gateway import asked, problem
from tests.told import Record

pytestmark = pytest.mark.usefixtures("in_numpy")

# ---- what is kept ----------------------------------------------------------------------------------------------


def test_what_was_asked_before_is_not_computed_again(tmp_path: Path) -> None:
    with fleet(tmp_path, 1, **KEPT) as made:
        first, second = post(made, x_request_id="one"), post(made, x_request_id="two", x_rung_key="another")
        assert [had(first), had(second)] == ["miss", "hit"]
        assert (second.status_code, second.content) == (200, first.content)
        assert second.headers["content-type"] == first.headers["content-type"] == "application/json"
        assert (first.headers["x-request-id"], second.headers["x-request-id"]) == ("one", "two")
        assert asked(made) == [1]
        assert Record.of(first).tries == 1
        told = dict(part.split("=") for part in second.headers["x-rung-record"].split(","))
        assert set(told) == {"gateway_in_s", "gateway_out_s", "tries", "cache"}
        assert (told["tries"], float(told["gateway_in_s"]) <= float(told["gateway_out_s"])) == ("0", True)
        counts = made.counts()
        assert looks(made) == {"hit": 1, "joined": 0, "miss": 1}
        assert counts["rung_gateway_requests_total/ok/"] == 2
        assert counts["rung_cache_entries"] == 1
        assert counts["rung_cache_bytes"] == entry_bytes(16, len(b"application/json\n") + len(first.content))


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"fourx", {}),
        (b"Four", {}),
        (b"", {}),
        (b"four", {"content_type": "x/z"}),
        (b"four", {"x_rung_shape": "1x8x8"}),
        (b"r", {"x_rung_shape": "fou"}),  # the parts of a key do not run into each other
    ],
)
def test_another_input_is_computed(tmp_path: Path, body: bytes, headers: dict[str, str]) -> None:
    with fleet(tmp_path, 1, **KEPT) as made:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        assert had(post(made)) == "miss"
        other = made.client.post("/predict", content=body, headers={"content-type": "x/y"} | named)
        assert had(other) == "miss"
        assert asked(made) == [2]


@pytest.mark.parametrize("answer", [(500, "model_error"), (503, "queue_full"), (504, "deadline"), (422, "bad_input")])
def test_only_answers_are_kept(tmp_path: Path, answer: tuple[int, str]) -> None:
    with fleet(tmp_path, 1, **KEPT) as made:
        made.fakes[0].answer = answer
        for count in (1, 2):
            refused = post(made)
            assert (problem(refused), had(refused), asked(made)) == (answer, "miss", [count])
        made.fakes[0].answer = (200, "")
        assert [had(post(made)) for _ in range(2)] == ["miss", "hit"]


def test_without_a_cache_nothing_is_said_of_one(tmp_path: Path) -> None:
    with fleet(tmp_path, 1) as made:
        responses = [post(made) for _ in range(2)]
        assert asked(made) == [2]
        assert all("x-rung-cache" not in response.headers for response in responses)
        assert not any(name.startswith("rung_cache") for name in made.counts())


def test_another_epoch_begins_empty(tmp_path: Path) -> None:
    with fleet(tmp_path, 1, **KEPT) as made:
        assert [had(post(made)) for _ in range(2)] == ["miss", "hit"]
        rows = [{"replica": 0, "url": made.fakes[0].url, "draining": False}]
        made.file.write_text(json.dumps({"generation": 2, "cache": 1, "replicas": rows}))
        assert wait_until(lambda: made.seen()[-1]["generation"] == 2, PATIENCE_S)
        assert made.counts()["rung_cache_entries"] == 0
        assert [had(post(made)) for _ in range(2)] == ["miss", "hit"]


def test_what_has_to_go_is_counted(tmp_path: Path) -> None:
    with fleet(tmp_path, 1, **KEPT, cache_max_bytes=4096) as made:
        for number in range(30):
            assert had(post(made, b"%d" % number)) == "miss"
        counts = made.counts()
        assert 0 < counts["rung_cache_bytes"] <= 4096
        assert counts["rung_cache_entries"] + counts["rung_cache_evictions_total/full"] == 30
        assert had(post(made, b"29")) == "hit"
        assert had(post(made, b"0")) == "miss"


# ---- one computation for many ----------------------------------------------------------------------------------


def test_a_stampede_costs_one_computation(tmp_path: Path) -> None:
    with fleet(tmp_path, 2, **KEPT) as made:
        with waiting(made, 50) as futures:
            assert sum(asked(made)) == 1
        responses = [future.result(PATIENCE_S) for future in futures]
        assert {response.status_code for response in responses} == {200}
        assert len({response.content for response in responses}) == 1
        assert Counter(map(had, responses)) == {"miss": 1, "joined": 49}
        assert len({response.headers["x-request-id"] for response in responses}) == 50
        assert sum(asked(made)) == 1
        assert had(post(made)) == "hit"
        assert looks(made) == {"hit": 1, "joined": 49, "miss": 1}
        assert made.gateway.in_flight == 0


def test_without_single_flight_everybody_computes(tmp_path: Path) -> None:
    with fleet(tmp_path, 1, **KEPT, cache_single_flight=False) as made:
        with waiting(made, 5) as futures:
            assert wait_until(lambda: asked(made) == [5], PATIENCE_S)
        assert Counter(had(future.result(PATIENCE_S)) for future in futures) == {"miss": 5}
        assert had(post(made)) == "hit"


def test_who_asks_for_something_else_does_not_wait(tmp_path: Path) -> None:
    with fleet(tmp_path, 1, **KEPT) as made, waiting(made, 3):
        made.fakes[0].answer = (200, "")
        assert had(post(made, b"else")) == "miss"


def test_a_wrong_input_is_wrong_for_all_who_sent_it(tmp_path: Path) -> None:
    with fleet(tmp_path, 1, **KEPT) as made:
        made.fakes[0].then = (422, "bad_input")
        with waiting(made, 5) as futures:
            pass
        responses = [future.result(PATIENCE_S) for future in futures]
        assert {problem(response) for response in responses} == {(422, "bad_input")}
        assert {response.json()["detail"] for response in responses} == {"as told"}
        assert Counter(map(had, responses)) == {"miss": 1, "joined": 4}
        assert asked(made) == [1]
        assert made.counts()["rung_cache_entries"] == 0
        assert made.counts()["rung_gateway_requests_total/failed/bad_input"] == 5


def test_a_failure_is_the_leaders_own_and_the_next_one_leads(tmp_path: Path) -> None:
    with fleet(tmp_path, 1, **KEPT, gateway_eject_after=1000) as made:
        made.fakes[0].then = (500, "model_error")
        with waiting(made, 4) as futures:
            pass
        responses = [future.result(PATIENCE_S) for future in futures]
        assert {problem(response) for response in responses} == {(500, "model_error")}
        assert Counter(map(had, responses)) == {"miss": 4}
        assert asked(made) == [4]
        made.fakes[0].answer = (200, "")
        assert [had(post(made)) for _ in range(2)] == ["miss", "hit"]


def test_a_leader_in_a_hurry_leaves_the_lead_to_another(tmp_path: Path) -> None:
    with fleet(tmp_path, 1, **KEPT) as made:
        made.fakes[0].answer = "hold"
        with ThreadPoolExecutor(4) as pool:
            hurried = pool.submit(post, made, x_rung_deadline_s="5.0")  # the others are to join before
            assert wait_until(lambda: asked(made) == [1], PATIENCE_S)
            others = [pool.submit(post, made) for _ in range(3)]
            assert wait_until(lambda: made.gateway.in_flight == 4, PATIENCE_S)
            response = hurried.result(PATIENCE_S)
            assert (problem(response), had(response)) == ((504, "deadline"), "miss")
            assert wait_until(lambda: asked(made) == [2], PATIENCE_S)
            made.release()
            told = [future.result(PATIENCE_S) for future in others]
        assert {response.status_code for response in told} == {200}
        assert Counter(map(had, told)) == {"miss": 1, "joined": 2}
        assert asked(made) == [2]


def test_who_joined_has_a_deadline_of_their_own(tmp_path: Path) -> None:
    with fleet(tmp_path, 1, **KEPT, gateway_eject_after=1) as made:
        with waiting(made, 1) as (leader,):
            response = post(made, x_rung_deadline_s="0.05")
            assert (problem(response), had(response)) == ((504, "deadline"), "joined")
            assert made.gateway.in_flight == 1
        assert had(leader.result(PATIENCE_S)) == "miss"
        assert (asked(made), made.seen()[0]["ejected"]) == ([1], False)


def test_a_leader_that_goes_away_leaves_the_lead_to_another(tmp_path: Path) -> None:
    with fleet(tmp_path, 1, **KEPT) as made:
        (fake,) = made.fakes
        fake.answer = "hold"
        with ThreadPoolExecutor(3) as pool:
            with raw(made):
                assert wait_until(lambda: asked(made) == [1], PATIENCE_S)
                futures = [pool.submit(post, made) for _ in range(3)]
                assert wait_until(lambda: made.gateway.in_flight == 4, PATIENCE_S)
            assert wait_until(lambda: asked(made) == [2] and fake.left == 1, PATIENCE_S)
            made.release()
            responses = [future.result(PATIENCE_S) for future in futures]
        assert {response.status_code for response in responses} == {200}
        assert Counter(map(had, responses)) == {"miss": 1, "joined": 2}
        assert asked(made) == [2]
        assert made.counts()["rung_gateway_clients_gone_total"] == 1
        assert made.gateway.in_flight == 0


def test_one_after_the_other_may_lead_and_leave(tmp_path: Path) -> None:
    with fleet(tmp_path, 1, **KEPT) as made:
        made.fakes[0].answer = "hold"
        with ThreadPoolExecutor(1) as pool:
            with raw(made):
                assert wait_until(lambda: asked(made) == [1], PATIENCE_S)
                with raw(made), raw(made):
                    assert wait_until(lambda: made.gateway.in_flight == 3, PATIENCE_S)
                    last = pool.submit(post, made)
                    assert wait_until(lambda: made.gateway.in_flight == 4, PATIENCE_S)
                # Those two only waited: nobody leads in their place.
                assert wait_until(lambda: made.gateway.in_flight == 2, PATIENCE_S)
                assert asked(made) == [1]
            assert wait_until(lambda: asked(made) == [2], PATIENCE_S)
            made.release()
            assert had(last.result(PATIENCE_S)) == "miss"
        assert made.gateway.in_flight == 0
        assert had(post(made)) == "hit"


def test_when_the_replicas_are_gone_nobody_waits_for_ever(tmp_path: Path) -> None:
    with fleet(tmp_path, 1, **KEPT) as made:
        with waiting(made, 6) as futures:
            made.do(made.fakes[0].close())
            responses = [future.result(PATIENCE_S) for future in futures]
        assert {response.status_code for response in responses} <= {502, 503}
        assert Counter(map(had, responses)) == {"miss": 6}
        assert made.gateway.in_flight == 0


# ---- room ------------------------------------------------------------------------------------------------------


def test_a_kept_answer_is_given_though_all_is_full(tmp_path: Path) -> None:
    with fleet(tmp_path, 1, **KEPT, gateway_max_in_flight=2) as made:
        assert had(post(made, b"kept")) == "miss"
        with waiting(made, 2) as futures:
            assert had(post(made, b"kept")) == "hit"
            for body, how in ((b"four", "joined"), (b"new", "miss"), (b"new", "miss")):
                refused = post(made, body)
                assert (problem(refused), had(refused)) == ((503, "gateway_full"), how)
            assert made.gateway.in_flight == 2
        assert Counter(had(future.result(PATIENCE_S)) for future in futures) == {"miss": 1, "joined": 1}
        made.fakes[0].answer = (200, "")
        assert [had(post(made, b"new")) for _ in range(2)] == ["miss", "hit"]


def test_bodies_at_the_door_are_bounded(tmp_path: Path) -> None:
    with fleet(tmp_path, 1, **KEPT, gateway_max_in_flight=1) as made:
        address = made.url.removeprefix("http://").split(":")
        with socket.create_connection((address[0], int(address[1])), PATIENCE_S) as slow:
            slow.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nfo")
            assert wait_until(lambda: problem_of(post(made)) == (503, "gateway_full"), PATIENCE_S)
            slow.sendall(b"ur")
            assert slow.recv(65536).startswith(b"HTTP/1.1 200")
        assert wait_until(lambda: post(made).status_code == 200, PATIENCE_S)


def problem_of(response: httpx.Response) -> tuple[int, str] | None:
    return None if response.status_code == 200 else problem(response)


def test_a_body_that_is_too_long_or_does_not_come_is_refused_as_without_a_cache(tmp_path: Path) -> None:
    short = {"gateway_upstream_timeout_s": 0.2, "gateway_connect_timeout_s": 0.1, "admission_max_body_bytes": 1024}
    with fleet(tmp_path, 1, **KEPT, **short) as made:
        assert problem(post(made, b"x" * 1025)) == (413, "bad_input")
        address = made.url.removeprefix("http://").split(":")
        with socket.create_connection((address[0], int(address[1])), PATIENCE_S) as slow:
            slow.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nfo")
            assert slow.recv(65536).startswith(b"HTTP/1.1 408")
        assert asked(made) == [0]


# ---- a whole run -----------------------------------------------------------------------------------------------


def test_a_run_through_a_cache_is_taken_down(tmp_path: Path) -> None:
    traffic = {
        "traffic.rate": {"shape": "constant", "rate_rps": 100.0},
        "traffic.duration_s": 3.0,
        "traffic.items": {"popularity": "zipf", "count": 600, "exponent": 1.0},
    }
    roomy = {"fleet.replicas": 1, "admission.max_queue_length": 10_000}
    stage = load_stage("load-balanced", RUN | roomy | {"cache.policy": "s3-fifo"} | traffic)
    sent = payloads.make_payloads(stage)
    with ProcessLauncher(stage, tmp_path / "stack") as launcher:
        with httpx.Client(base_url=launcher.url, timeout=PATIENCE_S, trust_env=False) as client:
            # What the run would find there, if the cache were not emptied before it: all that most ask for.
            for item in (*range(40), 0):
                answer = client.post("/predict", headers=sent.headers, content=sent.body(item))
            assert had(answer) == "hit"
        launcher.empty_cache()
        records = fire(stage, launcher.url, tmp_path, device="x", lives=launcher.lives).records
    requests = records.requests
    assert set(requests["outcome"].cast(pl.String)) == {"ok"}
    found = Counter(requests["cache"].cast(pl.String).to_list())
    assert set(found) <= {"hit", "joined", "miss"}
    assert found["hit"] > 0
    kept = requests.filter(pl.col("cache") != "miss")
    assert (
        kept.select(pl.col("replica", "batch", "started_s", "finished_s", "arrived_s").is_not_null().any()).row(0)
        == (False,) * 5
    )
    assert kept["tries"].unique().to_list() == [0]
    assert kept["gateway_in_s"].null_count() == 0
    computed = requests.filter(pl.col("cache") == "miss")
    assert computed["item"].n_unique() == computed.height, "every item was computed once"
    assert set(computed["item"]) == set(requests["item"])
    assert records.batches["batch_size"].sum() == computed.height
