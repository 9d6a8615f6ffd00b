"""Labels for answers, over real sockets: what is stored, what waits, what is refused, and who is killed meanwhile."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
import sqlalchemy as sa

from loadtests import payloads
from loadtests.load import fire
from reference_apps.asking import wait_until
from reference_apps.feedback_errors import FeedbackDownError
from reference_apps.feedback_line import device_s_of
from reference_apps.feedback_reading import FeedbackReader, Version
from reference_apps.feedback_schema import LABELS, PREDICTIONS, engine_of, sqlite_url
from reference_apps.feedback_store import FeedbackStore
from reference_apps.models.inputs import DIGIT_LEVELS, held_out_digits
from stages.feedback import Feedback, gives
from stages.spec import load_stage, stage_toml
from tests.conftest import PATIENCE_S, ROOT
from tests.fake_replicas import Fleet, fleet
from tests.labelled import NOW, a_prediction

KEPT: dict[str, Any] = {"feedback_share": 1.0}


def label(made: Fleet, **content: Any) -> httpx.Response:
    return made.client.post("/feedback", json=content)


def database(made: Fleet) -> Path:
    return made.file.parent / "feedback" / "feedback.db"


def rows(path: Path, table: sa.Table) -> list[Any]:
    engine = engine_of(sqlite_url(path), read_only=True)
    with engine.connect() as connection:
        found = list(connection.execute(sa.select(table)))
    engine.dispose()
    return found


def problem(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == "application/problem+json"
    told = answer.json()
    assert told["status"] == answer.status_code
    return str(told["title"])


def labels_told(made: Fleet) -> dict[str, float]:
    name = "rung_feedback_labels_total/"
    return {key.removeprefix(name): value for key, value in made.counts().items() if key.startswith(name) and value}


# ---- what is stored ----


def test_an_answer_is_kept_and_its_label_stored(tmp_path: Path) -> None:
    with fleet(tmp_path, 2, **KEPT) as made:
        made.fakes[1].number = 1
        first = made.ask(x_request_id="one")
        second = made.ask(x_request_id="two")
        stored = label(made, request_id="one", label=first.json()["label"])
        assert (stored.status_code, stored.json()) == (200, {"request_id": "one", "status": "stored", "late": False})
        wrong = label(made, request_id="two", label=9)
        assert wrong.json()["status"] == "stored"
        assert second.status_code == 200
        kept = {row.request_id: row for row in rows(database(made), PREDICTIONS)}
        assert set(kept) == {"one", "two"}
        assert (kept["one"].label, json.loads(kept["one"].answer)) == (first.json()["label"], first.json())
        assert 0.0 < kept["one"].latency_s < PATIENCE_S
        assert kept["one"].device_s == 1.0  # by the fake's record: from 2.0 to 3.0, alone
        assert (kept["one"].given, kept["one"].forced) == (True, False)
        assert abs(kept["one"].predicted_at - time.time()) < PATIENCE_S
        feedback = made.gateway.feedback
        assert feedback is not None
        assert wait_until(lambda: feedback.right == {"": (1, 2)}, PATIENCE_S)
        counts = made.counts()
        assert counts["rung_feedback_predictions_total"] == 2
        assert (counts["rung_feedback_judged_total//yes"], counts["rung_feedback_judged_total//no"]) == (1, 1)


def test_twice_is_once_and_the_last_counts(tmp_path: Path) -> None:
    with fleet(tmp_path, 1, **KEPT) as made:
        made.ask(x_request_id="one")
        how = [label(made, request_id="one", label=each).json()["status"] for each in (3, 3, 0)]
        assert how == ["stored", "duplicate", "replaced"]
        feedback = made.gateway.feedback
        assert feedback is not None
        assert wait_until(lambda: feedback.right == {"": (1, 1)}, PATIENCE_S)


def test_only_answers_are_kept(tmp_path: Path) -> None:
    with fleet(tmp_path, 1, **KEPT) as made:
        made.fakes[0].answer = (500, "model_error")
        assert made.ask(x_request_id="bad").status_code == 500
        made.fakes[0].answer = (200, "")
        made.ask(x_request_id="good")
        label(made, request_id="good", label=1)
        assert [row.request_id for row in rows(database(made), PREDICTIONS)] == ["good"]


def test_a_label_may_come_before_its_answer(tmp_path: Path) -> None:
    with fleet(tmp_path, 1, **KEPT) as made:
        early = label(made, request_id="one", label=0)
        assert (early.status_code, early.json()["status"]) == (202, "waiting")
        assert made.counts()["rung_feedback_orphans"] == 1
        made.ask(x_request_id="one")
        feedback = made.gateway.feedback
        assert feedback is not None
        assert wait_until(lambda: feedback.right == {"": (1, 1)}, PATIENCE_S)
        assert wait_until(lambda: made.counts()["rung_feedback_orphans"] == 0, PATIENCE_S)


def test_what_nobody_asked_is_told_where_no_label_may_wait(tmp_path: Path) -> None:
    with fleet(tmp_path, 1, feedback_orphans_max=0) as made:
        refused = label(made, request_id="nobody", label=1)
        assert (refused.status_code, problem(refused)) == (404, "not_found")
        assert "nobody: is no request that was answered here" in refused.json()["detail"]
        assert labels_told(made) == {"unknown": 1}


def test_a_late_label_is_marked(tmp_path: Path) -> None:
    with fleet(tmp_path, 1, feedback_window_s=0.2) as made:
        made.ask(x_request_id="one")
        time.sleep(0.25)
        assert label(made, request_id="one", label=1).json() == {"request_id": "one", "status": "stored", "late": True}
        assert made.counts()["rung_feedback_labels_late_total"] == 1


def test_what_the_gateway_holds_is_written_when_it_ends(tmp_path: Path) -> None:
    with fleet(tmp_path, 1, **KEPT) as made:
        for number in range(5):
            made.ask(x_request_id=f"r{number}")
    assert len(rows(database(made), PREDICTIONS)) == 5


def test_a_stage_without_feedback_takes_none(tmp_path: Path) -> None:
    with fleet(tmp_path, 1) as made:
        assert label(made, request_id="one", label=1).status_code in (404, 405)
        assert not database(made).exists()
        assert "/feedback" not in made.client.get("/openapi.json").json()["paths"]


def test_labels_are_documented(tmp_path: Path) -> None:
    with fleet(tmp_path, 1, **KEPT) as made:
        assert "/feedback" in made.client.get("/openapi.json").json()["paths"]


# ---- what is refused ----


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "body: must be JSON"),
        (b"[1]", "body: must be an object"),
        (b'{"request_id": "a", "label": 1, "lable": 2}', "lable: is no key of a label"),
        (b'{"label": 1}', "request_id: must be the x-request-id of an answer, got nothing"),
        (b'{"request_id": "a b", "label": 1}', 'got "a b"'),
        (b'{"request_id": 7, "label": 1}', "got 7"),
        (b'{"request_id": "a"}', "label: must be a whole number from 0 to 9 for the model digits, got nothing"),
        (b'{"request_id": "a", "label": 10}', "got 10"),
        (b'{"request_id": "a", "label": -1}', "got -1"),
        (b'{"request_id": "a", "label": true}', "got true"),
        (b'{"request_id": "a", "label": 1.0}', "got 1.0"),
        (b'{"request_id": "a", "label": "1"}', 'got "1"'),
    ],
)
def test_a_label_that_is_none_is_refused_in_words(tmp_path: Path, body: bytes, said: str) -> None:
    with fleet(tmp_path, 1, **KEPT) as made:
        refused = made.client.post("/feedback", content=body)
        assert (refused.status_code, problem(refused)) == (422, "bad_input")
        assert said in refused.json()["detail"]
        assert labels_told(made) == {"bad_input": 1}


def test_a_body_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with fleet(tmp_path, 1, **KEPT) as made:
        refused = made.client.post("/feedback", content=b" " * 5000)
        assert (refused.status_code, problem(refused)) == (413, "bad_input")


def test_a_body_that_does_not_come_is_not_waited_for(tmp_path: Path) -> None:
    with fleet(tmp_path, 1, feedback_timeout_s=0.3) as made:
        address = (httpx.URL(made.url).host, int(httpx.URL(made.url).port or 0))
        with socket.create_connection(address, PATIENCE_S) as slow:
            slow.sendall(b"POST /feedback HTTP/1.1\r\nhost: x\r\ncontent-length: 40\r\n\r\n{")
            slow.settimeout(PATIENCE_S)
            assert b" 504 " in slow.recv(4096)
        assert labels_told(made) == {"deadline": 1}


def _instead_of_writing(made: Fleet, monkeypatch: pytest.MonkeyPatch, what: Callable[..., Any]) -> None:
    assert made.gateway.feedback is not None
    monkeypatch.setattr(made.gateway.feedback._store, "write", what)


def test_a_database_that_is_down_is_told_and_predictions_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: object) -> None:
        raise FeedbackDownError("the database of predictions: gone for a walk.")

    with fleet(tmp_path, 1, **KEPT) as made:
        with monkeypatch.context() as patched:
            _instead_of_writing(made, patched, down)
            made.ask(x_request_id="one")
            refused = label(made, request_id="one", label=1)
            assert (refused.status_code, problem(refused)) == (503, "feedback_down")
            assert "gone for a walk" in refused.json()["detail"]
            assert int(refused.headers["retry-after"]) >= 1
            assert made.counts()["rung_feedback_waiting"] == 1
        assert label(made, request_id="one", label=1).json()["status"] == "stored"
        assert made.counts()["rung_feedback_waiting"] == 0


def test_a_database_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = threading.Event()
    with fleet(tmp_path, 1, feedback_timeout_s=0.3) as made:
        assert made.gateway.feedback is not None
        real = made.gateway.feedback._store.write

        def hangs(*arguments: Any) -> Any:
            free.wait(PATIENCE_S)
            return real(*arguments)

        _instead_of_writing(made, monkeypatch, hangs)
        try:
            late = label(made, request_id="one", label=1)
            assert (late.status_code, problem(late)) == (504, "deadline")
            assert made.ask(x_request_id="one").status_code == 200  # answers go on
        finally:
            free.set()
        assert wait_until(lambda: label(made, request_id="one", label=1).json()["status"] == "duplicate", PATIENCE_S)


def test_predictions_that_find_no_room_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(*_: object) -> None:
        raise FeedbackDownError("down")

    with fleet(tmp_path, 1, feedback_predictions_max=3) as made:
        with monkeypatch.context() as patched:
            _instead_of_writing(made, patched, down)
            for number in range(5):
                assert made.ask(x_request_id=f"r{number}").status_code == 200
            assert made.counts()["rung_feedback_predictions_lost_total/full"] == 2
        label(made, request_id="r0", label=1)
        assert len(rows(database(made), PREDICTIONS)) == 3


# ---- crashes ----


def test_a_killed_gateway_has_every_label_that_it_accepted(tmp_path: Path) -> None:
    stage = load_stage("load-balanced", {"feedback.share": 1.0})
    (tmp_path / "stage.toml").write_text(stage_toml(stage))
    (tmp_path / "replicas.json").write_text('{"generation": 1, "replicas": []}')
    words = ["--stage", str(tmp_path / "stage.toml"), "--replicas", str(tmp_path / "replicas.json")]
    command = [sys.executable, "-m", "reference_apps.serve_gateway", *words, "--announce", str(tmp_path / "at.json")]
    accepted: list[str] = []
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
    try:
        assert wait_until((tmp_path / "at.json").exists, PATIENCE_S)
        port = json.loads((tmp_path / "at.json").read_text())["port"]

        def send(who: int) -> None:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=PATIENCE_S) as client:
                for number in range(100_000):
                    try:
                        answer = client.post("/feedback", json={"request_id": f"{who}-{number}", "label": 1})
                    except httpx.HTTPError:
                        return
                    assert answer.status_code == 202
                    accepted.append(f"{who}-{number}")

        with ThreadPoolExecutor(4) as threads:
            sending = [threads.submit(send, who) for who in range(4)]
            assert wait_until(lambda: len(accepted) > 100, PATIENCE_S)
            process.send_signal(signal.SIGKILL)
            for each in sending:
                each.result(PATIENCE_S)
    finally:
        process.kill()
        process.wait(PATIENCE_S)
    assert set(accepted) <= {row.request_id for row in rows(tmp_path / "feedback" / "feedback.db", LABELS)}


# ---- labels of load tests ----


@pytest.mark.parametrize("input_format", ["raw", "json"])
def test_labels_go_with_the_bodies(input_format: str) -> None:
    stage = load_stage("load-balanced", {"traffic.input_format": input_format})
    made = payloads.make_payloads(stage)
    assert len(made.labels) == len(made.bodies)
    images, labels = held_out_digits()
    shown = {image.tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
    for item in range(0, 1000, 7):
        body = made.body(item)
        values = np.frombuffer(body, "<f4") if input_format == "raw" else np.array(orjson.loads(body)["input"])
        image = np.rint(np.asarray(values, dtype=np.float64) * DIGIT_LEVELS).astype(np.uint8).reshape(8, 8)
        assert made.label(item) == shown[image.tobytes()]


def test_labels_are_kept_with_the_payloads(tmp_path: Path) -> None:
    for name, labelled in (("single-vm", True), ("resnet", False)):
        changes: dict[str, Any] = {"model.name": "resnet50", "model.image_size_px": 32} if not labelled else {}
        changes["traffic.items.count"] = 4
        made = payloads.make_payloads(load_stage("single-vm", changes))
        payloads.write(made, tmp_path / f"{name}.npz")
        assert payloads.read(tmp_path / f"{name}.npz") == made
        assert bool(made.labels) == labelled


def test_exclusive_or_has_its_labels() -> None:
    made = payloads.make_payloads(load_stage("single-vm", {"model.name": "xor", "traffic.items.count": 4}))
    assert sorted(made.labels) == [0, 0, 1, 1]


def test_who_gives_a_label_is_the_same_in_both_worlds_and_more_with_a_larger_share() -> None:
    tenth, half = (gives(Feedback(share=share), 3, 10_000) for share in (0.1, 0.5))
    assert (gives(Feedback(share=0.1), 3, 10_000) == tenth).all()
    assert (half | ~tenth).all()
    assert abs(tenth.mean() - 0.1) < 0.015
    assert gives(Feedback(share=1.0), 3, 100).all()
    assert not gives(Feedback(share=0.0), 3, 100).any()


def test_a_load_test_labels_what_it_was_answered(tmp_path: Path) -> None:
    traffic = {"traffic_rate": {"shape": "constant", "rate_rps": 40.0}, "traffic_duration_s": 2.0}
    with fleet(tmp_path, 1, feedback={"share": 0.5, "delay_s": 0.2}, **traffic) as made:
        stage = made.stage
        loaded = fire(stage, made.url, tmp_path / "load", device="emulated")
    answered = int((loaded.records.requests["outcome"] == "ok").sum())
    assert answered > 40
    summary = json.loads((tmp_path / "load" / "rows-0.json").read_text())
    sent = summary["labels"]["accepted"]
    assert summary["labels"] == {"accepted": sent, "unsent": 0}
    chosen = gives(Feedback(share=0.5), stage.traffic.seed, loaded.records.requests.height)
    assert sent == int(chosen.sum())
    assert stage.feedback is not None
    with FeedbackReader(stage.feedback, database(made).parent) as reader:
        counts = reader.counts(reader.newest()[""], 0.0)
    assert (counts.predictions, counts.labelled, counts.late) == (answered, sent, 0)
    # The fake takes everything for a 0, and the truth is that of the data.
    bodies, items = payloads.make_payloads(stage), loaded.records.requests["item"].to_list()
    assert counts.right == sum(bodies.label(item) == 0 for item in np.array(items)[chosen])


def test_a_device_s_part_of_a_batch() -> None:
    record = b"replica=0,batch=3,batch_size=4,arrived_s=1.0,started_s=2.0,finished_s=2.5,gateway_in_s=0.9"
    assert device_s_of(record) == 0.125
    for nothing in (
        b"",
        b"cache=hit",
        b"batch_size=0,started_s=1,finished_s=2",
        b"batch_size=x,started_s=1,finished_s=2",
    ):
        assert device_s_of(nothing) is None


def test_versions_are_told_by_arm(tmp_path: Path) -> None:
    with FeedbackStore(sqlite_url(tmp_path / "feedback.db"), Feedback()) as store:
        store.write(
            [
                a_prediction("a", version="1"),
                a_prediction("b", version="2", predicted_at=NOW + 1.0),
                a_prediction("c", arm="challenger", version="3"),
                a_prediction("d", arm="challenger", version="9", predicted_at=NOW + 9.0, forced=True),
            ],
            [],
        )
    with FeedbackReader(Feedback(), tmp_path) as reader:
        newest = reader.newest()
    assert newest["champion"] == Version("champion", "2", NOW + 1.0, NOW + 1.0)
    assert newest["challenger"].version == "3"
