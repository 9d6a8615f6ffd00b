"""A gateway with two versions over real sockets: who answers, what a guardrail does, what a shadow never does."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from reference_apps import split_file
from reference_apps.alerts import Stops
from reference_apps.asking import wait_until
from reference_apps.feedback_store import Judged
from reference_apps.gateway import Gateway
from reference_apps.scrape import summed
from stages.alerts import latency_bounds_of
from stages.policies.splitting import bucket
from stages.spec import load_stage
from tests.conftest import PATIENCE_S
from tests.fake_replicas import Fleet, fleet
from tests.told import Record

CHAMPIONS, CHALLENGER = (0, 1), 2


@contextmanager
def arms(folder: Path, share: float = 0.4, **overrides: Any) -> Iterator[Fleet]:
    """Two champions and a challenger, with a control file."""
    split = {"champion": "1", "challenger": "2", "challenger_share": share}
    mine = {name.removeprefix("split_"): overrides.pop(name) for name in list(overrides) if name.startswith("split_")}
    never = {"gateway_eject_after": 1000}  # what its failures do to a replica is tested elsewhere
    with fleet(folder, 3, split=split | mine, **(never | overrides)) as made:
        assert made.stage.split is not None
        if not (folder / split_file.SPLIT_FILE).exists():  # else it is a gateway that was killed
            split_file.begin(folder, split_file.first(made.stage.split, time.monotonic()))
        yield made


def ask(made: Fleet, user: str, **headers: str) -> httpx.Response:
    return made.ask(x_rung_user=user, **headers)


def arm_of(response: httpx.Response) -> str:
    return response.headers["x-rung-arm"]


def splitter(made: Fleet) -> dict[str, Any]:
    told: dict[str, Any] = made.client.get("/split").json()
    return told


def await_share(made: Fleet, share: float) -> None:
    assert wait_until(lambda: splitter(made)["share"] == share, PATIENCE_S), splitter(made)


def test_every_user_keeps_the_arm_of_its_bucket(tmp_path: Path) -> None:
    with arms(tmp_path) as made:
        for user in map(str, range(60)):
            response = ask(made, user)
            assert response.status_code == 200
            assert arm_of(response) == ("challenger" if bucket(user, "") < 0.4 else "champion")
            assert Record.of(response).arm == arm_of(response)
            assert (response.json()["label"] == CHALLENGER) == (arm_of(response) == "challenger")
        first, second, _ = (len(fake.asked) for fake in made.fakes)
        assert abs(first - second) <= 1


def test_a_stranger_is_split_by_the_number_or_the_id_of_its_request(tmp_path: Path) -> None:
    with arms(tmp_path) as made:
        for number in range(30):
            numbered = made.ask(x_rung_request=f"7-{number}")
            named = made.ask(x_request_id=f"my-{number}")
            assert arm_of(numbered) == ("challenger" if bucket(str(number), "") < 0.4 else "champion")
            assert arm_of(named) == ("challenger" if bucket(f"my-{number}", "") < 0.4 else "champion")
        strange = ask(made, "two words")
        assert arm_of(strange) in ("champion", "challenger")


def test_a_header_forces_an_arm_and_counts_for_nothing(tmp_path: Path) -> None:
    with arms(tmp_path, 0.0, split_force_header="x-my-arm") as made:
        assert arm_of(ask(made, "1", x_my_arm="challenger")) == "challenger"
        assert arm_of(ask(made, "1", x_my_arm="champion")) == "champion"
        refused = ask(made, "1", x_my_arm="loser")
        assert refused.status_code == 422
        assert "x-my-arm: must be champion or challenger, got loser" in refused.json()["detail"]
        assert splitter(made)["arms"]["challenger"]["requests"] == 0
        assert splitter(made)["arms"]["champion"]["requests"] == 0


def test_a_share_changes_while_it_serves_and_moves_the_fewest(tmp_path: Path) -> None:
    users = [str(user) for user in range(80)]
    with arms(tmp_path, 0.2) as made:
        before = {user: arm_of(ask(made, user)) for user in users}
        split_file.set_share(tmp_path, 0.5)
        await_share(made, 0.5)
        after = {user: arm_of(ask(made, user)) for user in users}
        moved = {user for user in users if before[user] != after[user]}
        assert moved == {user for user in users if 0.2 <= bucket(user, "") < 0.5}
        (tmp_path / split_file.SPLIT_FILE).write_text('{"generation": 9, "share": 7}')
        time.sleep(0.2)
        assert splitter(made)["share"] == 0.5, "nonsense changes nothing"


def test_the_share_outlives_the_gateway(tmp_path: Path) -> None:
    with arms(tmp_path, 0.2):
        split_file.set_share(tmp_path, 0.7)
    with arms(tmp_path, 0.2) as made:
        await_share(made, 0.7)


def test_an_arm_without_a_replica_is_not_helped_out_by_the_other(tmp_path: Path) -> None:
    with arms(tmp_path, 1.0) as made:
        made.publish(*CHAMPIONS)
        made.await_rotation(*CHAMPIONS)
        refused = ask(made, "1")
        assert (refused.status_code, refused.json()["title"], arm_of(refused)) == (503, "no_replica", "challenger")
        made.fakes[0].answer = (503, "queue_full")
        assert ask(made, "1", x_rung_arm="champion").status_code == 200, "within an arm it is tried again"


GUARDRAILS = {"errors_share_max": 0.01, "requests_min": 10}


def test_a_broken_guardrail_stops_the_challenger_and_nobody_is_its_any_more(tmp_path: Path) -> None:
    with arms(tmp_path, 1.0, split_guardrails=GUARDRAILS) as made:
        stops = Stops(made.stage, tmp_path)
        assert stops.look() == []
        made.fakes[CHALLENGER].answer = (500, "model_error")
        answers = [ask(made, str(user)) for user in range(20)]
        assert [answer.status_code for answer in answers] == [500] * 10 + [200] * 10
        assert [arm_of(answer) for answer in answers] == ["challenger"] * 10 + ["champion"] * 10
        told = splitter(made)
        assert (told["stopped"], told["share"], told["requests"]) == ("errors", 0.0, 10)
        assert "had no answer" in told["why"]

        def written() -> bool:
            found = split_file.read(tmp_path)
            return found is not None and found.stopped == "errors"

        assert wait_until(written, PATIENCE_S)
        (alert,) = stops.look()
        assert (alert["alert"], alert["state"], alert["severity"]) == ("guardrail-errors", "firing", "page")
        assert "had no answer" in alert["text"]
        assert stops.look() == [], "told once"
        assert made.counts()["rung_gateway_challenger_stopped"] == 1.0
        with pytest.raises(split_file.SplitError, match="--again"):
            split_file.set_share(tmp_path, 0.5)
    with arms(tmp_path, 1.0, split_guardrails=GUARDRAILS) as made:  # it was killed, say
        await_share(made, 0.0)
        assert arm_of(ask(made, "1")) == "champion"
        split_file.set_share(tmp_path, 0.5, again=True)
        await_share(made, 0.5)
        assert splitter(made)["arms"]["challenger"]["requests"] == 0
        assert [alert["state"] for alert in stops.look()] == ["resolved"]


def test_a_stop_that_cannot_be_written_down_is_in_force_and_written_as_soon_as_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, failures = split_file.stop, iter(["the disk is full", "the disk is full"])

    def fails_twice(*told: Any) -> split_file.Told:
        for why in failures:
            raise split_file.SplitError(why)
        return stop(*told)

    monkeypatch.setattr(split_file, "stop", fails_twice)
    monkeypatch.setattr("reference_apps.splitter.AGAIN_S", 0.05)
    with arms(tmp_path, 1.0, split_guardrails=GUARDRAILS) as made:
        made.fakes[CHALLENGER].answer = (500, "model_error")
        assert [ask(made, str(user)).status_code for user in range(12)] == [500] * 10 + [200] * 2
        assert wait_until(lambda: stopped_in(tmp_path) == "errors", PATIENCE_S)


def stopped_in(folder: Path) -> str:
    told = split_file.read(folder)
    assert told is not None
    return told.stopped


def test_a_gateway_that_cannot_read_whether_the_challenger_is_out_gives_it_to_nobody(tmp_path: Path) -> None:
    (tmp_path / split_file.SPLIT_FILE).write_text("{")
    with arms(tmp_path, 1.0) as made:
        assert arm_of(ask(made, "1")) == "champion"
        (tmp_path / split_file.SPLIT_FILE).unlink()
        split_file.begin(tmp_path, split_file.first(made.stage.split or pytest.fail("no split"), 0.0))
        await_share(made, 1.0)
        assert arm_of(ask(made, "1")) == "challenger"


def test_labels_of_another_try_do_not_stop_the_next_one(tmp_path: Path) -> None:
    """The champion answers 0, the challenger 2: with the label 0 it is wrong each time, until it is tried again."""
    limits = {"accuracy_drop_max": 0.02, "requests_min": 1}
    with arms(tmp_path, 0.5, split_guardrails=limits, feedback={"share": 0.0}) as made:
        made.publish(0, CHALLENGER)
        made.await_rotation(0, CHALLENGER)
        answers = [ask(made, str(user)) for user in range(100)]
        late = answers.pop()
        for answer in answers:
            label(made, answer, 0)
        assert wait_until(lambda: splitter(made)["stopped"] == "accuracy", PATIENCE_S), splitter(made)
        assert wait_until(lambda: stopped_in(tmp_path) == "accuracy", PATIENCE_S)
        split_file.set_share(tmp_path, 0.5, again=True)
        await_share(made, 0.5)
        label(made, late, 0)
        label(made, ask(made, "1", x_rung_arm="challenger"), 2)
        time.sleep(0.2)
        told = splitter(made)
        assert (told["stopped"], told["trial"]) == ("", 1)
        assert [told["arms"][arm]["labelled"] for arm in ("champion", "challenger")] == [0, 0], (
            "and none of a forced one"
        )
        label(made, ask(made, "1"), 0)
        assert wait_until(
            lambda: sum(counts["labelled"] for counts in splitter(made)["arms"].values()) == 1, PATIENCE_S
        )


def label(made: Fleet, answer: httpx.Response, value: int) -> None:
    sent = {"request_id": answer.headers["x-request-id"], "label": value}
    assert made.client.post("/feedback", json=sent).status_code in (200, 202)


def test_labels_stop_a_challenger_that_is_wrong_too_often(tmp_path: Path) -> None:
    limits = {"accuracy_drop_max": 0.02, "requests_min": 1}
    right: dict[str, tuple[int, int]] = {}
    with arms(tmp_path, 1.0, split_guardrails=limits, feedback={"share": 0.0}) as made:
        assert made.gateway.splitter is not None
        made.gateway.splitter._right = lambda: right
        ask(made, "1")
        right |= {"champion": (9_700, 10_000), "challenger": (960, 1_000), "": (0, 5)}
        time.sleep(0.2)
        assert splitter(made)["stopped"] == ""
        right["challenger"] = (800, 1_000)
        assert wait_until(lambda: splitter(made)["stopped"] == "accuracy", PATIENCE_S)


def test_labels_of_what_was_answered_before_the_stage_started_do_not_count(tmp_path: Path) -> None:
    """The database of predictions outlives `rung down`: those of yesterday's challenger are in it."""
    overrides: dict[str, Any] = {"split": {"champion": "1", "challenger": "2"}, "feedback": {"share": 0.0}}
    stage = load_stage("load-balanced", overrides | {"overload": True})
    assert stage.split is not None
    split_file.begin(tmp_path, split_file.first(stage.split, 0.0, "digits/2@feed", began_at=1000.0))
    gateway = Gateway(stage, tmp_path / "replicas.json", split_folder=tmp_path)
    assert gateway.splitter is not None and gateway.feedback is not None
    gateway.splitter._look()
    gateway.feedback._count([Judged("challenger", False, +1, 999.0), Judged("challenger", True, +1, 1001.0)])
    gateway.feedback._store.close()
    assert gateway.feedback.right == {"challenger": (1, 1)}


def test_metrics_are_told_by_arm_and_old_sums_stay(tmp_path: Path) -> None:
    with arms(tmp_path, 0.4) as made:
        made.fakes[CHALLENGER].answer = (500, "model_error")
        statuses = [ask(made, str(user)).status_code for user in range(40)]
        made.ask(x_rung_deadline_s="soon")  # nobody knows whose this would have been
        counts, page = made.counts(), made.client.get("/metrics").text
        failed = statuses.count(500)
        assert 5 < failed < 35
        of = "rung_gateway_requests_total/{}/{}/{}"
        assert counts[of.format("challenger", "failed", "model_error")] == failed
        assert counts[of.format("champion", "ok", "")] == 40 - failed
        assert counts[of.format("", "failed", "bad_input")] == 1
        assert counts["rung_gateway_arm_seconds_count/champion"] == 40 - failed
        assert counts["rung_gateway_challenger_share"] == 0.4
        seen = summed(page, "gateway", latency_bounds_of(made.stage))
        assert (seen.requests, seen.errors, seen.answers_within[-1]) == (40, failed, 40 - failed)
        rows = made.seen()
        assert [rows[number]["arm"] for number in range(3)] == ["champion", "champion", "challenger"]


# ---- shadows ---------------------------------------------------------------------------------------------------


def test_a_copy_is_computed_and_given_to_nobody(tmp_path: Path) -> None:
    with arms(tmp_path, 1.0, split_mode="shadow") as made:
        answers = [ask(made, str(user)) for user in range(12)]
        assert {arm_of(answer) for answer in answers} == {"champion"}
        assert {answer.json()["label"] for answer in answers} == set(CHAMPIONS)
        shadowed = made.fakes[CHALLENGER]
        assert wait_until(lambda: len(shadowed.asked) == 12, PATIENCE_S)
        ids = {answer.headers["x-request-id"] for answer in answers}
        assert {headers["x-request-id"] for headers in shadowed.asked} == ids
        assert shadowed.bodies == [b"four"] * 12
        copies = "rung_gateway_copies_total/ok/"
        assert wait_until(lambda: made.counts().get(copies) == 12, PATIENCE_S)
        assert splitter(made)["arms"]["challenger"]["requests"] == 12
        assert arm_of(ask(made, "1", x_rung_arm="challenger")) == "challenger", "whoever forces it gets it"


def test_a_shadow_that_hangs_holds_nobody_up_and_is_bounded(tmp_path: Path) -> None:
    with arms(tmp_path, 1.0, split_mode="shadow", split_shadow_outstanding_max=3) as made:
        made.fakes[CHALLENGER].answer = "hold"
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda user: ask(made, str(user)), range(10)))
        assert {answer.status_code for answer in answers} == {200}
        assert made.counts()["rung_gateway_copies_in_flight"] == 3
        assert made.counts()["rung_gateway_copies_dropped_total"] == 7
        assert made.gateway.in_flight == 0
        made.release()
        assert wait_until(lambda: made.counts()["rung_gateway_copies_in_flight"] == 0, PATIENCE_S)


def test_a_shadow_that_takes_too_long_or_is_lost_is_an_error_of_its_own(tmp_path: Path) -> None:
    limits = {"errors_share_max": 0.01, "requests_min": 4}
    with arms(tmp_path, 1.0, split_mode="shadow", split_guardrails=limits, gateway_upstream_timeout_s=1.0) as made:
        made.fakes[CHALLENGER].answer = "hold"
        assert [ask(made, str(user)).status_code for user in range(3)] == [200] * 3
        assert wait_until(lambda: splitter(made)["arms"]["challenger"]["errors"] == 3, PATIENCE_S)
        made.fakes[CHALLENGER].answer = "lose"
        assert ask(made, "9").status_code == 200
        assert wait_until(lambda: splitter(made)["stopped"] == "errors", PATIENCE_S)
        before = len(made.fakes[CHALLENGER].asked)
        assert ask(made, "10").status_code == 200
        assert len(made.fakes[CHALLENGER].asked) == before, "no copies any more"


def test_what_get_split_tells_is_json(tmp_path: Path) -> None:
    with arms(tmp_path) as made:
        told = json.loads(made.client.get("/split").content)
        assert set(told["arms"]["champion"]) == {
            *("requests", "errors", "answers", "late", "good", "right", "labelled")
        }
        assert made.client.get("/replicas").status_code == 200
