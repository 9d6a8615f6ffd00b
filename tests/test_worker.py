"""Workers: what they take is answered once, whatever becomes of them; what cannot be is told with its error."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import orjson
import pytest

from reference_apps.asking import wait_until
from reference_apps.broker import BATCH_MAX, Broker, BrokerDownError, Job, NewJob
from reference_apps.device import Device
from reference_apps.failure_log import FailureLog
from reference_apps.job_store import JobStore
from reference_apps.launchers.launcher import Launcher
from reference_apps.launchers.process import ProcessLauncher
from reference_apps.leases import Leases
from reference_apps.models import load_model
from reference_apps.results import Result, ResultsDownError, sqlite_url
from reference_apps.worker import Worker
from stages.policies.poison import is_poison
from tests.conftest import PATIENCE_S
from tests.queued import BROKEN, INPUTS, POISON, QUICK, Digits, payload, put, queued, results, stored, working
from tests.told import scraped

pytestmark = pytest.mark.usefixtures("in_numpy")


def answers(store: JobStore, jobs: list[str]) -> list[Any]:
    found = results(store, jobs)
    return [orjson.loads(found[job].answer) for job in jobs]


def test_jobs_are_answered_as_the_model_answers(tmp_path: Path) -> None:
    stage = queued()
    with stored(stage, tmp_path) as store:
        jobs = put(store, *INPUTS)
        with working(stage, store) as worker:
            found = results(store, jobs)
            assert wait_until(lambda: store.broker.depth().leased == 0, PATIENCE_S)
            batches = list(worker.batches)
        wanted = load_model(stage.model, "cpu").predict(INPUTS)
        for job, answer in zip(jobs, wanted, strict=True):
            result = found[job]
            told = orjson.loads(result.answer)
            assert (result.outcome, result.model, result.version, result.attempts) == ("ok", "digits", "1", 1)
            assert told["label"] == answer["label"]
            assert result.expires_at - result.finished_at == pytest.approx(86_400.0)
        depth = store.broker.depth()
        assert (depth.waiting, depth.leased, depth.delayed, depth.dead) == (0, 0, 0, 0)
        assert sum(size for *_, size in batches) == len(jobs)
        assert max(size for *_, size in batches) == 8
        records = [dict(part.split("=") for part in found[job].record.split(",")) for job in jobs]
        for record in records:
            assert (record["replica"], record["tries"]) == ("0", "1")
            assert float(record["arrived_s"]) <= float(record["started_s"]) <= float(record["finished_s"])
        assert {int(record["batch"]) for record in records} == {number for number, *_ in batches}


def test_workers_compete_and_each_job_is_computed_once(tmp_path: Path) -> None:
    stage, models = queued(), [Digits() for _ in range(3)]
    with stored(stage, tmp_path) as store:
        jobs = [job for _ in range(6) for job in put(store, *INPUTS)]
        with (
            working(stage, store, 0, models[0]),
            working(stage, store, 1, models[1]),
            working(stage, store, 2, models[2]),
        ):
            results(store, jobs)
        assert sum(sum(model.batches) for model in models) == len(jobs)


def test_a_bad_item_is_told_from_its_batch_and_ends_alone_in_the_dead_letters(tmp_path: Path) -> None:
    stage, model = queued(), Digits()
    with stored(stage, tmp_path) as store:
        jobs = put(store, *INPUTS[:3], POISON, *INPUTS[3:7])
        bad = jobs[3]
        with working(stage, store, model=model):
            found = results(store, jobs)
        assert {job: result.outcome for job, result in found.items() if job != bad} == dict.fromkeys(
            (job for job in jobs if job != bad), "ok"
        )
        assert orjson.loads(found[bad].answer) == {
            "title": "model_error",
            "detail": "ValueError: a picture that cannot be",
        }
        (letter,) = store.broker.dead()
        assert (letter.job, letter.error, letter.attempts) == (bad, "ValueError: a picture that cannot be", 1)
        assert model.batches == [8] + [1] * 8


def test_what_cannot_be_read_is_dead_without_ever_reaching_the_device(tmp_path: Path) -> None:
    stage, model = queued(), Digits()
    with stored(stage, tmp_path) as store:
        torn, other = (
            each.job for each in store.broker.put([NewJob(b"no envelope"), NewJob(payload(np.zeros((1, 4, 4))))])
        )
        (good,) = put(store, INPUTS[0])
        with working(stage, store, model=model):
            found = results(store, [torn, other, good])
        assert {letter.job for letter in store.broker.dead()} == {torn, other}
        assert orjson.loads(found[torn].answer)["title"] == "bad_input"
        assert "256 bytes" in orjson.loads(found[other].answer)["detail"]
        assert (found[good].outcome, model.batches) == ("ok", [1])


def test_a_device_that_is_gone_blames_no_job(tmp_path: Path) -> None:
    stage, broken, sound = queued(queue__retry_delay_s=0.5), Digits(), Digits()
    with stored(stage, tmp_path) as store:
        jobs = put(store, *INPUTS[:4], BROKEN)
        with working(stage, store, 0, broken):
            assert wait_until(lambda: store.broker.depth().delayed == 5, PATIENCE_S)
        assert store.broker.dead() == []
        sound.predict = lambda inputs: [{"fine": True} for _ in inputs]  # type: ignore[method-assign]
        with working(stage, store, 1, sound):
            assert answers(store, jobs) == [{"fine": True}] * 5
        assert {result.attempts for result in results(store, jobs).values()} >= {2}


def test_a_job_that_always_fails_alone_is_dead_when_its_attempts_are_used_up(tmp_path: Path) -> None:
    stage, model = queued(queue__attempts_max=3), Digits()
    with stored(stage, tmp_path) as store:
        (bad,) = put(store, POISON)
        with working(stage, store, model=model):
            assert wait_until(lambda: store.broker.depth().dead == 1, PATIENCE_S)
        (letter,) = store.broker.dead()
        assert (letter.job, letter.attempts, letter.error) == (bad, 3, "ValueError: a picture that cannot be")
        assert model.batches == [1, 1, 1]


def test_whom_a_failure_is_blamed_on() -> None:
    assert is_poison(1, 8)
    assert is_poison(7, 8)
    assert not is_poison(8, 8)
    assert not is_poison(1, 1)
    assert not is_poison(0, 8)


def test_a_dead_letter_that_is_tried_again_gets_its_answer(tmp_path: Path) -> None:
    stage, model = queued(), Digits()
    with stored(stage, tmp_path) as store:
        jobs = put(store, INPUTS[0], POISON)
        with working(stage, store, model=model):
            assert results(store, jobs)[jobs[1]].outcome == "failed"
        model.predict = lambda inputs: [{"mended": True} for _ in inputs]  # type: ignore[method-assign]
        assert store.broker.retry([jobs[1]]) == 1
        with working(stage, store, 1, model):
            assert wait_until(lambda: store.results.find(jobs)[jobs[1]].outcome == "ok", PATIENCE_S)
        assert store.broker.depth().dead == 0


def test_a_job_whose_deadline_has_passed_is_not_computed(tmp_path: Path) -> None:
    stage, model = queued(), Digits()
    with stored(stage, tmp_path) as store:
        late, good = put(store, INPUTS[0], deadline_s=1e-6) + put(store, INPUTS[0], deadline_s=60.0)
        with working(stage, store, model=model):
            found = results(store, [late, good])
        assert (found[late].outcome, found[good].outcome) == ("timed_out", "ok")
        assert orjson.loads(found[late].answer)["title"] == "deadline"
        assert model.batches == [1]


def test_a_job_that_has_its_answer_is_only_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results elsewhere: the answer was stored, and the acknowledgement lost with the worker."""
    monkeypatch.setenv("RUNG_RESULTS_URL", sqlite_url(tmp_path / "elsewhere.db"))
    stage, model = queued(queue__results_url_env="RUNG_RESULTS_URL", queue__lease_s=5.0), Digits()
    with stored(stage, tmp_path) as store:
        assert store.together is None
        jobs = put(store, *INPUTS[:3])
        monkeypatch.setattr(store.broker, "ack", _raises(BrokerDownError("gone")))
        with monkeypatch.context() as hurried:
            hurried.setattr("reference_apps.worker.Leases._extend", lambda _: None)  # as one that is killed
            worker = working(stage, store, model=model)
            with worker as doomed:
                results(store, jobs)
                doomed._settling._given_up.set()
        monkeypatch.undo()
        with working(stage, store, 1, model) as heir:
            assert wait_until(lambda: store.broker.depth().leased + store.broker.depth().waiting == 0, PATIENCE_S)
            counted = scraped_of(heir)
        assert sum(model.batches) == 3
        assert counted["known"] == 3.0


def _raises(error: Exception) -> Any:
    def fail(*_: object) -> Any:
        raise error

    return fail


def scraped_of(worker: Any) -> dict[str, float]:
    """Jobs of a worker by how they ended."""
    lines = worker.metrics.text().decode().splitlines()
    told = (line for line in lines if line.startswith("rung_worker_jobs_total"))
    return {line.split('"')[1]: float(line.split()[-1]) for line in told}


def test_leases_are_extended_after_an_error_that_nobody_foresaw() -> None:
    extended = threading.Event()

    class Strange:
        failures = 1

        def extend(self, jobs: list[Job], _: float) -> int:
            if self.failures:
                self.failures -= 1
                raise ValueError("a server that nobody foresaw")
            extended.set()
            return len(jobs)

    with Leases(cast(Broker, Strange()), 0.03) as leases:
        leases.hold([Job("a", b"", 1, 0.0, 1, "lease")])
        assert extended.wait(PATIENCE_S)


def test_a_lease_is_extended_for_as_long_as_the_device_computes(tmp_path: Path) -> None:
    stage, slow = queued(queue__lease_s=5.0), Digits()
    with stored(stage, tmp_path) as store:
        (job,) = put(store, INPUTS[0])
        slow.hold.clear()
        with working(stage, store, 0, slow), working(stage, store, 1, slow):
            assert wait_until(lambda: store.broker.depth().leased == 1, PATIENCE_S)
            taken_s = time.monotonic()
            while time.monotonic() < taken_s + 6.0:  # longer than the lease
                assert store.broker.depth().waiting == 0
                time.sleep(0.02)
            slow.hold.set()
            assert results(store, [job])[job].attempts == 1
        assert slow.batches == [1]


def test_what_could_not_be_stored_is_stored_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage, model = queued(), Digits()
    with stored(stage, tmp_path) as store:
        failures = [BrokerDownError("the disk is full"), ResultsDownError("the disk is full")]
        finish = JobStore.finish

        def fails_twice(self: JobStore, *args: Any) -> None:
            if failures:
                raise failures.pop()
            finish(self, *args)

        monkeypatch.setattr(JobStore, "finish", fails_twice)
        jobs = put(store, *INPUTS[:5])
        with working(stage, store, model=model):
            assert {result.attempts for result in results(store, jobs).values()} == {1}
        assert (failures, sum(model.batches)) == ([], 5)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_any_number_of_jobs_can_be_finished_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    """Batches pile up while the disk is slow, and are stored together: more than a broker takes a call."""
    if elsewhere:
        monkeypatch.setenv("RUNG_RESULTS_URL", sqlite_url(tmp_path / "elsewhere.db"))
    stage = queued(queue__results_url_env="RUNG_RESULTS_URL" if elsewhere else None)
    with stored(stage, tmp_path) as store:
        for count in (BATCH_MAX, 150):
            store.broker.put([NewJob(b"") for _ in range(count)])
        jobs = store.broker.claim(BATCH_MAX, 60.0) + store.broker.claim(BATCH_MAX, 60.0)
        ends = [Result(job.job, "ok", "1", "digits", "1", 1, 0.0, 0.0, 1e12) for job in jobs]
        store.finish(jobs, ends)
        assert store.results.counts() == {"ok": BATCH_MAX + 150}
        assert store.broker.depth().leased == 0


def test_a_broker_that_is_down_for_a_while_stops_nobody_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, model = queued(), Digits()
    with stored(stage, tmp_path) as store:
        failures, claim = [BrokerDownError("gone")] * 3, store.broker.claim

        def fails(*args: Any) -> list[Job]:
            if failures:
                raise failures.pop()
            return claim(*args)

        monkeypatch.setattr(store.broker, "claim", fails)
        jobs = put(store, *INPUTS[:3])
        with working(stage, store, model=model):
            results(store, jobs)
        assert failures == []


def test_a_claim_that_fails_takes_nothing_from_what_was_claimed_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = queued(batching__batch_wait_timeout_s=1.5)
    with stored(stage, tmp_path) as store:
        jobs, claim = put(store, *INPUTS[:2]), store.broker.claim

        def fails(most: int, *more: Any) -> list[Job]:
            if most < stage.batching.max_batch_size:
                raise RuntimeError("BROKEN a server that nobody foresaw")
            return claim(most, *more)

        monkeypatch.setattr(store.broker, "claim", fails)
        worker = Worker(stage, 0, store)
        assert [job.job for job in worker._claim()] == jobs


def test_batches_that_fail_fill_no_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A device that is gone fails thousands of items a second."""
    stage, now_s = queued(), [100.0]
    with stored(stage, tmp_path) as store:
        worker = Worker(stage, 0, store)
        worker.model.device = Device("test", Digits(), None)
        worker._failures = FailureLog(logging.getLogger("rung.worker"), stage.logs, lambda: now_s[0])
        assert {str(answer) for answer in worker._run([BROKEN] * 8)} == {"the device is gone"}
        assert [record.getMessage() for record in caplog.records] == ["a batch of 8 failed"]
        now_s[0] += 1.0
        worker._run([BROKEN])
    assert [record.getMessage() for record in caplog.records[1:]] == ["a batch of 1 failed"]
    assert caplog.records[1].fields == {"left_out": 8}  # type: ignore[attr-defined]


def test_one_that_drains_finishes_what_it_has_and_claims_no_more(tmp_path: Path) -> None:
    stage, model = queued(), Digits()
    with stored(stage, tmp_path) as store:
        model.hold.clear()
        first = put(store, *INPUTS[:8])
        with working(stage, store, model=model) as worker:
            assert wait_until(lambda: store.broker.depth().leased == 8, PATIENCE_S)
            later = put(store, *INPUTS[8:10])
            worker.drain()
            assert not worker.ready
            model.hold.set()
        assert set(store.results.find(first + later)) == set(first)
        assert store.broker.depth().waiting == 2


def test_it_waits_for_company_no_longer_than_it_may(tmp_path: Path) -> None:
    patient = queued(batching__batch_wait_timeout_s=60.0, queue__lease_s=120.0, slo__latency_s=61.0)
    brief, model = queued(batching__batch_wait_timeout_s=0.5), Digits()
    with stored(patient, tmp_path) as store:
        with working(patient, store, model=model):
            first = put(store, *INPUTS[:2])
            assert wait_until(lambda: store.broker.depth().leased == 2, PATIENCE_S)
            rest = put(store, *INPUTS[2:8])
            results(store, first + rest)
            assert model.batches == [8]  # the one that fills it sends it off
        with working(brief, store, 1, model) as worker:
            alone = put(store, INPUTS[8])
            record = results(store, alone)[alone[0]].record
            times_s = {name: float(value) for name, value in (part.split("=") for part in record.split(","))}
            assert times_s["started_s"] - times_s["arrived_s"] + 0.01 >= 0.5
            assert len(worker.batches) == 1


# ---- as processes ----


def until(launcher: Launcher, condition: Any, timeout_s: float = PATIENCE_S) -> None:
    """Looks, as a supervisor does, until `condition` holds; what dies is started again."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not come to be so in time"
        for dead in launcher.look():
            launcher.restart(dead)
        time.sleep(0.02)


@pytest.mark.timeout(180)
def test_workers_that_are_killed_in_the_middle_leave_every_job_answered_once(tmp_path: Path) -> None:
    stage = queued(
        device={"kind": "emulated", "profile": "t4-resnet50-fp16-pytorch", "slowdown": 40.0},
        queue__lease_s=1.0,
        queue__attempts_max=20,
        fleet__replicas=2,
        overload=True,
    )
    with ProcessLauncher(stage, tmp_path) as launcher, stored(stage, tmp_path) as store:
        assert [member.title for member in launcher.members] == ["worker 0", "worker 1", "the jobs API"]
        jobs: list[str] = []
        for number in (0, 1):
            until(launcher, lambda: all(member.state == "ready" for member in launcher.replicas))
            jobs += put(store, *INPUTS)
            until(launcher, lambda: store.broker.depth().leased > 8)  # both are in the middle of a batch
            before = launcher.replica(number).pid
            launcher.kill(number)
            until(launcher, lambda n=number, pid=before: launcher.replica(n).pid != pid)  # type: ignore[misc]
        until(launcher, lambda: len(store.results.find(jobs)) == len(jobs), 2 * PATIENCE_S)
        found = results(store, jobs)
        assert {result.outcome for result in found.values()} == {"ok"}
        assert max(result.attempts for result in found.values()) > 1  # some were taken from the dead
        assert store.results.counts() == {"ok": len(jobs)}
        until(launcher, lambda: store.broker.depth().leased == 0)
        depth = store.broker.depth()
        assert (depth.waiting, depth.leased, depth.dead) == (0, 0, 0)
        with httpx.Client(base_url=launcher.replicas[0].url, trust_env=False, timeout=PATIENCE_S) as client:
            told = scraped(client)
        assert told["rung_worker_device_seconds_sum"] > 0.0
        assert told["rung_worker_jobs_total/poison"] == 0.0


def test_a_worker_drains_at_sigterm_and_says_so_in_json(tmp_path: Path) -> None:
    stage = queued(device={"kind": "emulated", "profile": "t4-resnet50-fp16-pytorch", "slowdown": 20.0}, overload=True)
    with ProcessLauncher(stage, tmp_path) as launcher, stored(stage, tmp_path) as store:
        jobs = put(store, *INPUTS)
        worker = launcher.replicas[0]
        until(launcher, lambda: len(store.results.find(jobs)) > 8)
        os.kill(worker.pid, signal.SIGTERM)
        assert worker.process.wait(PATIENCE_S) == 0
        depth = store.broker.depth()
        assert depth.leased == 0
        assert depth.waiting == len(jobs) - len(store.results.find(jobs)) > 0
        lines = [json.loads(line) for line in worker.log.read_text().splitlines()]
        assert {(line["role"], line["number"]) for line in lines} == {("worker", 0)}
        assert {result.attempts for result in store.results.find(jobs).values()} == {1}


def test_a_worker_begins_no_sooner_than_its_machine_is_there(tmp_path: Path) -> None:
    stage = queued()
    with stored(stage, tmp_path) as store, ProcessLauncher(stage, tmp_path) as launcher:
        begins_s = time.monotonic() + 6.0
        late = launcher.add(not_before_s=begins_s)
        launcher.drain(0)
        until(launcher, lambda: [member.number for member in launcher.replicas] == [late.number])
        jobs = put(store, *INPUTS[:8])
        until(launcher, lambda: late.state == "ready")
        (first,) = {result.record for result in list(results(store, jobs).values())[:1]}
        started_s = float(dict(part.split("=") for part in first.split(","))["started_s"])
        assert started_s >= begins_s


@pytest.mark.parametrize("name", ["stage", "queue"])
def test_a_worker_that_cannot_be_started_says_so(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor can a jobs API, which says so in this process: that spares it its imports."""
    import subprocess
    import sys

    import typer
    from typer.testing import CliRunner

    from reference_apps import logs, serve_jobs
    from stages.spec import load_stage, stage_toml
    from tests.conftest import ROOT

    file = tmp_path / "stage.toml"
    stage = load_stage("single-vm") if name == "stage" else load_stage("queued", QUICK | {"queue.broker": "redis"})
    file.write_text(stage_toml(stage))
    words = ["--stage", str(file), "--folder", str(tmp_path)]
    monkeypatch.delenv("RUNG_BROKER_URL", raising=False)
    done = subprocess.run(
        [sys.executable, "-m", "reference_apps.serve_worker", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=PATIENCE_S,
        check=False,
    )
    monkeypatch.setattr(logs, "configure", lambda *_: None)
    door = typer.Typer()
    door.command()(serve_jobs.main)
    refused = CliRunner().invoke(door, words)
    for status, said in ((done.returncode, done.stderr), (refused.exit_code, refused.stderr)):
        assert status == 2
        assert ("has no [queue]" if name == "stage" else "queue.url_env: RUNG_BROKER_URL must hold") in said
        assert "Traceback" not in said
