"""The load generator against real replicas: what it fires, what it notes, and how it ends when something else does."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import psutil
import pytest

from loadtests import payloads, raw_rows
from loadtests.load import LOCUSTFILE, LoadError, fire, meeting_point
from reference_apps.asking import wait_until
from reference_apps.decoding import decode
from reference_apps.launchers.member import Life
from reference_apps.launchers.process import ProcessLauncher
from reference_apps.models import load_inputs
from reference_apps.up import Up
from stages import traffic
from stages.records import Records
from stages.spec import Stage, load_stage, with_overrides
from tests.conftest import PATIENCE_S, ROOT, Served, processes_of, serving

pytestmark = pytest.mark.usefixtures("in_numpy")

DEAD = "http://127.0.0.1:9"  # nobody listens there
MICROSECOND_S = 1e-6  # to which a replica's times are rounded


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One request at a time, half a second each, and room for two: whoever wants to see a queue sees one."""
    changes = {"device.slowdown": 40.0, "admission.max_queue_length": 2}
    with serving("single-vm", tmp_path_factory.mktemp("slow"), changes) as served:
        yield served


def under(stage: Stage, rate_rps: float, duration_s: float, **keys: object) -> Stage:
    """The stage under steady Poisson traffic."""
    rate = {"shape": "constant", "rate_rps": rate_rps}
    changes: dict[str, object] = {"traffic.rate": rate, "traffic.duration_s": duration_s, "overload": True}
    return with_overrides(stage, changes | {f"traffic.{key}": value for key, value in keys.items()})


def shares(records: Records) -> set[tuple[str, str]]:
    return set(records.requests.select("outcome", "reason").unique().rows())


def assert_times_are_in_order(records: Records) -> None:
    columns = ("scheduled_s", "sent_s", "arrived_s", "started_s", "finished_s", "replied_s")
    ok = records.requests.filter(pl.col("outcome") == "ok")
    for before, after in itertools.pairwise(columns):
        assert (ok[after] - ok[before]).min() >= -MICROSECOND_S, (before, after)  # type: ignore[operator]


def assert_batches_are_those_of_the_answers(records: Records) -> None:
    """Every answer's batch was run at the times that the answer says, and every member of it is there."""
    told = records.requests.filter(pl.col("outcome") == "ok").group_by("batch").agg(
        pl.col("started_s", "finished_s", "batch_size").first(), pl.len().alias("members")
    ).sort("batch")  # fmt: skip
    assert told["batch"].to_list() == records.batches["batch"].to_list()
    for name in ("started_s", "finished_s"):
        np.testing.assert_allclose(told[name].to_numpy(), records.batches[name].to_numpy(), atol=MICROSECOND_S)
    assert told["batch_size"].to_list() == records.batches["batch_size"].to_list() == told["members"].to_list()


# ---- open loop -----------------------------------------------------------------------------------------------


def test_the_record_is_the_schedule_and_what_became_of_it(micro_batched: Served, tmp_path: Path) -> None:
    stage = under(micro_batched.stage, 100.0, 1.0)
    (tmp_path / "rows-7.parquet").write_text("of a run that had this folder before")
    seconds: list[float] = []
    loaded = fire(
        stage, micro_batched.url, tmp_path, device="a device", pids=(micro_batched.pid,), on_second=seconds.append
    )
    records, schedule = loaded.records, traffic.schedule(stage.traffic)
    assert records.requests["request"].to_list() == list(range(schedule.arrivals_s.size))
    assert records.requests["scheduled_s"].to_list() == schedule.arrivals_s.tolist()
    assert records.requests["item"].to_list() == schedule.items.tolist()
    assert shares(records) == {("ok", "")}
    assert_times_are_in_order(records)
    assert_batches_are_those_of_the_answers(records)
    assert records.batches["batch_size"].max() > 1  # type: ignore[operator]  # they were in flight together
    assert records.replicas["device"].to_list() == ["a device"]
    assert records.window_s == 1.0
    assert loaded.check.fired_share == 1.0
    assert 0.0 <= loaded.check.lag_s_p50 <= loaded.check.lag_s_p99
    assert loaded.check.generator_cpu_share > 0.0
    assert seconds == sorted(seconds)
    assert seconds[-1] > 1.0


def test_two_processes_fire_every_request_once(micro_batched: Served, tmp_path: Path) -> None:
    stage = under(micro_batched.stage, 120.0, 1.0)
    loaded = fire(stage, micro_batched.url, tmp_path, device="x", processes=2)
    schedule = traffic.schedule(stage.traffic)
    parts = [pl.read_parquet(tmp_path / f"rows-{worker}.parquet") for worker in (0, 1)]
    numbers = [sorted(part["request"]) for part in parts]
    assert numbers == [list(range(worker, schedule.arrivals_s.size, 2)) for worker in (0, 1)]
    assert loaded.records.requests["scheduled_s"].to_list() == schedule.arrivals_s.tolist()
    assert shares(loaded.records) == {("ok", "")}
    assert_times_are_in_order(loaded.records)
    assert loaded.check.fired_share == 1.0
    began_s = {json.loads((tmp_path / f"rows-{worker}.json").read_text())["began_s"] for worker in (0, 1)}
    assert len(began_s) == 1, "both fire by one clock: neither waited until the other was done"


def test_a_client_gives_up_or_is_refused(slow: Served, tmp_path: Path) -> None:
    stage = under(slow.stage, 20.0, 1.0, timeout_s=0.2)
    records = fire(stage, slow.url, tmp_path, device="x").records
    assert shares(records) == {("timed_out", "client_timeout"), ("shed", "queue_full")}
    assert records.requests.height == traffic.schedule(stage.traffic).arrivals_s.size
    took_s = records.requests.with_columns((pl.col("replied_s") - pl.col("scheduled_s")).alias("took_s"))
    assert took_s.filter(pl.col("outcome") == "timed_out")["took_s"].min() >= 0.2 - 0.001  # type: ignore[operator]


def test_a_stack_that_is_not_there_gives_requests_that_failed(tmp_path: Path) -> None:
    stage = under(load_stage("micro-batched"), 50.0, 0.5)
    loaded = fire(stage, DEAD, tmp_path, device="x", pids=(2**22 - 1,))
    assert shares(loaded.records) == {("failed", "connection")}
    assert loaded.records.requests.height == traffic.schedule(stage.traffic).arrivals_s.size
    assert loaded.records.batches.height == 0
    assert "Traceback" not in (tmp_path / "locust.log").read_text()


def test_a_stack_that_dies_on_the_way_leaves_what_it_had_answered(tmp_path: Path) -> None:
    with serving("micro-batched", tmp_path / "stack") as served:
        stage = under(served.stage, 50.0, 2.0)
        process = served.replica.process

        def kill_once_it_answers(_: float) -> None:
            if process.poll() is None:
                with served.client() as client:
                    answered = client.get("/batches").json()
                if len(answered) > 5:
                    process.kill()

        records = fire(
            stage, served.url, tmp_path, device="x", pids=(served.pid,), on_second=kill_once_it_answers
        ).records
    assert shares(records) == {("ok", ""), ("failed", "connection")}
    assert records.batches.height >= 5
    assert_batches_are_those_of_the_answers(records)


def test_a_load_generator_that_fails_is_told_with_its_last_words(tmp_path: Path) -> None:
    stage = load_stage("micro-batched").model_copy(update={"name": "Not A Name"})  # which Locust's process refuses
    with pytest.raises(LoadError) as caught:
        fire(stage, DEAD, tmp_path, device="x")
    told = str(caught.value)
    assert told.startswith("the load generator ended with status 2 and left no result (")
    assert "name: must be lower-case words joined by hyphens" in told
    assert told.endswith(f"The whole log: {tmp_path / 'locust.log'}")
    assert "Traceback" not in told


# ---- through a gateway ---------------------------------------------------------------------------------------


def test_a_run_through_a_gateway_has_every_replica_and_every_hop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEYS", "0123456789abcdef")
    profiles = ["t4-resnet50-fp16-pytorch", "v100-resnet50-fp32-pytorch"]
    changes = {"device.slowdown": 1.0, "fleet.profiles": profiles, "gateway.edge.api_keys_env": "SOME_KEYS"}
    # On a machine that is busy for a moment nobody is refused, and nobody is tried elsewhere.
    changes |= {"gateway.unhealthy_after": 100, "gateway.eject_after": 1000, "gateway.connect_timeout_s": 10.0}
    changes |= {"admission.max_queue_length": 10_000}
    stage = under(load_stage("load-balanced", changes | {"gateway.policy": "sticky", "overload": True}), 100.0, 2.0)
    with ProcessLauncher(stage, tmp_path / "stack") as launcher:
        pids = launcher.pids
        records = fire(
            stage, launcher.url, tmp_path, device="x", pids=lambda: launcher.pids, lives=launcher.lives
        ).records
    assert len(pids) == 3
    assert shares(records) == {("ok", "")}
    columns = ("scheduled_s", "sent_s", "gateway_in_s", "arrived_s", "started_s", "finished_s", "gateway_out_s")
    for before, after in itertools.pairwise((*columns, "replied_s")):
        assert (records.requests[after] - records.requests[before]).min() >= -MICROSECOND_S, (before, after)  # type: ignore[operator]
    assert records.requests["tries"].unique().to_list() == [1]
    assert set(records.requests["replica"]) == set(records.batches["replica"]) == {0, 1}
    told = records.requests.group_by("replica", "batch").agg(pl.col("batch_size").first(), pl.len().alias("members"))
    assert told["batch_size"].to_list() == told["members"].to_list()
    assert sorted(told.select("replica", "batch").rows()) == records.batches.select("replica", "batch").rows()
    homes = records.requests.group_by("item").agg(pl.col("replica").n_unique().alias("homes"), pl.len())
    assert homes["len"].max() == 1 or homes.filter(pl.col("homes") == 1).height > homes.height / 2
    assert records.replicas["device"].to_list() == [f"emulated {profile}" for profile in profiles]
    assert records.replicas["ready_s"].max() < 0.0  # type: ignore[operator]
    assert records.replicas["stopped_s"].min() >= 2.0  # type: ignore[operator]


# ---- closed loop ---------------------------------------------------------------------------------------------


def closed(stage: Stage, users: int, think_time_s: float, duration_s: float, seed: int = 1) -> Stage:
    loop = {"loop": "closed", "users": users, "think_time_s": think_time_s, "duration_s": duration_s, "seed": seed}
    left_out = {"traffic.rate": None, "traffic.arrivals": None}
    return with_overrides(stage, left_out | {f"traffic.{key}": value for key, value in loop.items()})


def test_users_of_two_processes_wait_for_their_answers(micro_batched: Served, tmp_path: Path) -> None:
    users = 5
    stage = closed(micro_batched.stage, users, 0.02, 1.0)
    loaded = fire(stage, micro_batched.url, tmp_path, device="x", processes=2)
    requests = loaded.records.requests
    assert shares(loaded.records) == {("ok", "")}
    assert requests["request"].to_list() == list(range(requests.height))
    assert requests["sent_s"].is_sorted()
    assert requests["scheduled_s"].min() >= 0.0  # type: ignore[operator]
    assert_times_are_in_order(loaded.records)
    ends = [(row["sent_s"], 1) for row in requests.iter_rows(named=True)]
    ends += [(row["replied_s"], -1) for row in requests.iter_rows(named=True)]
    waiting = list(itertools.accumulate(change for _, change in sorted(ends)))
    assert max(waiting) <= users
    assert requests.height > 2 * users
    assert loaded.check.fired_share == 1.0


def test_the_last_answers_of_a_closed_loop_are_waited_for(slow: Served, tmp_path: Path) -> None:
    # By these draws user 1 is served first, then user 0, whose end ends the run, and then user 1 once more.
    stage = closed(slow.stage, 2, 0.1, 0.7, seed=29)
    loaded = fire(stage, slow.url, tmp_path, device="x")
    assert loaded.check.fired_share == 1.0
    assert shares(loaded.records) == {("ok", "")}
    assert loaded.records.requests.height == 3
    first_think_s = [next(traffic.user_draws(stage.traffic, user))[0] for user in (0, 1)]
    assert loaded.records.requests["scheduled_s"][0] >= first_think_s[1]
    assert loaded.records.requests["scheduled_s"][1] >= first_think_s[0]


# ---- by hand -------------------------------------------------------------------------------------------------


def locust(*words: str) -> list[str]:
    meet = meeting_point() if "--processes" in words else []
    return [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", *words, *meet]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=2 * PATIENCE_S, check=False)


def say_it_is_up(runs: Path, served: Served) -> None:
    me = psutil.Process()
    up = Up(served.stage.name, served.url, "", me.pid, me.create_time(), [], 0.0)
    (runs / "up").mkdir(parents=True)
    (runs / "up" / f"{up.stage}.json").write_text(json.dumps(vars(up)))


def test_locust_by_hand_finds_the_stage_that_is_up(runs: Path, micro_batched: Served) -> None:
    say_it_is_up(runs, micro_batched)
    with micro_batched.client() as client:
        before = len(client.get("/batches").json())
        done = run(locust("--stage", "micro-batched", "--run-time", "2s"))
        assert done.returncode == 0, done.stderr
        assert len(client.get("/batches").json()) > before, done.stderr
    assert "Traceback" not in done.stderr
    assert "POST     /predict" in done.stdout + done.stderr


def test_locust_by_hand_says_what_to_do_when_nothing_is_up(runs: Path) -> None:
    done = run(locust("--stage", "micro-batched", "--processes", "2"))
    assert done.returncode != 0
    told = (
        "micro-batched: is not up and no --host was given. Start it with `rung up micro-batched`, or give --host URL."
    )
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert processes_of(runs) == []


def test_the_generator_ends_with_whoever_started_it(runs: Path) -> None:
    words = ["--stage", "micro-batched", "--host", DEAD, "--guarded", "--processes", "2"]
    parent = subprocess.Popen([sys.executable, "-c", PARENT, *locust(*words)], cwd=ROOT)
    assert wait_until(lambda: len(processes_of(runs)) == 4, PATIENCE_S)
    time.sleep(0.5)  # until it is in the midst of it
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert wait_until(lambda: processes_of(runs) == [], PATIENCE_S)


PARENT = """
import subprocess, sys
subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).wait()
"""


# ---- rows and payloads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "reason", "error", "outcome"),
    [
        (200, "", None, ("ok", "")),
        (503, "queue_full", "HTTP 503", ("shed", "queue_full")),
        (503, "draining", "HTTP 503", ("shed", "draining")),
        (504, "deadline", "HTTP 504", ("timed_out", "deadline")),
        (0, "", raw_rows.GAVE_UP, ("timed_out", "client_timeout")),
        (0, "", "[Errno 111] Connection refused", ("failed", "connection")),
        (422, "bad_input", "HTTP 422", ("failed", "bad_input")),
        (500, "model_error", "HTTP 500", ("failed", "model_error")),
        (502, "Bad Gateway", "HTTP 502", ("failed", "connection")),
        (503, "gateway_full", "HTTP 503", ("shed", "gateway_full")),
        (503, "no_replica", "HTTP 503", ("shed", "no_replica")),
        (502, "upstream_lost", "HTTP 502", ("failed", "upstream_lost")),
        (504, "upstream_timeout", "HTTP 504", ("timed_out", "upstream_timeout")),
        (401, "unauthorized", "HTTP 401", ("failed", "bad_input")),
    ],
)
def test_what_came_back_has_one_outcome(status: int, reason: str, error: str | None, outcome: tuple[str, str]) -> None:
    record = "replica=0,batch=4,batch_size=2,arrived_s=100.5,started_s=101.0,finished_s=101.25"
    row = (3, 7, 0.25, 0.3, 2.0, status, reason, record if status == 200 else None, error)
    fired = raw_rows.Fired(pl.DataFrame([row], schema=raw_rows.SCHEMA, orient="row"), 100.0, 1, 0.0)
    records = raw_rows.to_records(fired, [], 1.0, lambda _: "x")
    (request,) = records.requests.iter_rows(named=True)
    assert (request["outcome"], request["reason"]) == outcome
    assert (request["request"], request["item"], request["scheduled_s"], request["replied_s"]) == (3, 7, 0.25, 2.0)
    times = (request["arrived_s"], request["started_s"], request["finished_s"], request["batch"], request["batch_size"])
    assert times == ((0.5, 1.0, 1.25, 4, 2) if status == 200 else (None,) * 5)
    assert raw_rows.answered_batches(fired) == ([(0, 4, 101.0, 101.25, 2)] if status == 200 else [])


def test_what_a_gateway_tells_is_taken_down() -> None:
    """Its times, its tries, and of a refusal what there is."""
    told = "gateway_in_s=100.25,gateway_out_s=101.5,tries=2"
    answered = f"replica=3,batch=4,batch_size=2,arrived_s=100.5,started_s=101.0,finished_s=101.25,{told}"
    rows = [
        (0, 7, 0.2, 0.2, 1.6, 200, "", answered, None),
        (1, 7, 0.2, 0.2, 1.6, 502, "upstream_lost", told, "HTTP 502"),
        (2, 7, 0.2, 0.2, 1.6, 0, "", None, raw_rows.GAVE_UP),
    ]
    fired = raw_rows.Fired(pl.DataFrame(rows, schema=raw_rows.SCHEMA, orient="row"), 100.0, 3, 0.0)
    records = raw_rows.to_records(fired, [(3, 9, 102.0, 102.5, 1)], 4.0, lambda number: f"device {number}")
    columns = ("gateway_in_s", "gateway_out_s", "tries", "replica", "arrived_s", "outcome")
    assert records.requests.select(columns).rows() == [
        (0.25, 1.5, 2, 3, 0.5, "ok"),
        (0.25, 1.5, 2, None, None, "failed"),
        (None, None, None, None, None, "timed_out"),
    ]
    assert records.batches.rows() == [(3, 4, 1.0, 1.25, 2), (3, 9, 2.0, 2.5, 1)]
    assert records.replicas.rows() == [(3, "device 3", 0.0, 0.0, 4.0)]


def test_the_lives_of_replicas_are_told_by_their_launcher() -> None:
    fired = raw_rows.Fired(pl.DataFrame(schema=raw_rows.SCHEMA), 100.0, 0, 0.0)
    lives = [
        Life(0, "t4", 90.0, 95.0, None),
        Life(1, "t4", 90.0, 95.0, 101.0),
        Life(1, "t4", 102.0, None, None),
        Life(2, "a100", 80.0, 85.0, 99.0),  # was gone before
        Life(3, "a100", 105.0, 106.0, None),  # came later
    ]
    records = raw_rows.to_records(fired, [(4, 0, 100.5, 100.75, 1)], 4.0, lambda number: f"device {number}", lives)
    assert records.replicas.rows() == [
        (0, "t4", -10.0, -5.0, 4.0),
        (1, "t4", -10.0, -5.0, 1.0),
        (1, "t4", 2.0, None, 4.0),
        (4, "device 4", 0.0, 0.0, 4.0),
    ]


def test_rows_of_a_worker_that_are_missing_are_missed(tmp_path: Path) -> None:
    pl.DataFrame(schema=raw_rows.SCHEMA).write_parquet(tmp_path / "rows-0.parquet")
    (tmp_path / "rows-0.json").write_text('{"began_s": 1.0, "due": 0, "cpu_s": 0.0, "wall_s": 1.0}')
    assert raw_rows.read(tmp_path / "rows.parquet").due == 0
    with pytest.raises(FileNotFoundError, match=r"1 of 2 processes left rows-\*\.parquet"):
        raw_rows.read(tmp_path / "rows.parquet", workers=2)


@pytest.mark.parametrize("input_format", ["raw", "json", "png"])
def test_payloads_are_what_the_model_reads(input_format: str, tmp_path: Path) -> None:
    stage = load_stage("micro-batched", {"traffic.input_format": input_format, "traffic.items.count": 20})
    made = payloads.make_payloads(stage)
    payloads.write(made, tmp_path / "payloads.npz")
    assert payloads.read(tmp_path / "payloads.npz") == made
    model = load_inputs(stage.model)
    wanted = model.examples(20, stage.traffic.seed)
    for item in (0, 7, 19, 27):
        headers = made.headers
        inputs = decode(model, headers["content-type"], headers.get("x-rung-shape", ""), made.body(item))
        np.testing.assert_allclose(inputs, wanted[item % 20], atol=1e-5)


KINDS = [(model, kind) for model in ("digits", "resnet50", "xor") for kind in ("raw", "json", "png")]
KINDS.remove(("xor", "png"))  # two numbers are no picture


@pytest.mark.parametrize(("model", "input_format"), KINDS)
def test_every_item_is_an_input_of_its_own(model: str, input_format: str) -> None:
    size = {"model.image_size_px": 32} if model == "resnet50" else {}
    changes = {"model.name": model, "traffic.input_format": input_format, "traffic.items.count": 10_000_000}
    stage = load_stage("micro-batched", changes | size)
    made, again = payloads.make_payloads(stage), payloads.make_payloads(stage)
    items = [*range(600), 4095, 4096, 70_000, 9_999_743, 9_999_999]
    bodies = [made.body(item) for item in items]
    assert len(set(bodies)) == len(bodies)
    assert bodies == [again.body(item) for item in items]
    inputs = load_inputs(stage.model)
    for item, body in zip(items, bodies, strict=True):
        headers = made.headers
        shape = headers.get("x-rung-shape", "")
        read = decode(inputs, headers["content-type"], shape, body)
        example = decode(inputs, headers["content-type"], shape, made.bodies[item % len(made.bodies)])
        np.testing.assert_allclose(read, example, atol=0.005 if model == "xor" else 1e-5)


def test_what_a_cache_had_is_taken_down() -> None:
    gateway = "gateway_in_s=100.25,gateway_out_s=100.5,tries=0"
    rows = [
        (0, 7, 0.2, 0.2, 0.6, 200, "", f"{gateway},cache=hit", None),
        (1, 7, 0.2, 0.2, 0.6, 503, "gateway_full", f"{gateway},cache=miss", "HTTP 503"),
        (2, 7, 0.2, 0.2, 0.6, 200, "", f"{gateway},cache=joined", None),
        (3, 7, 0.2, 0.2, 0.6, 200, "", gateway, None),
    ]
    fired = raw_rows.Fired(pl.DataFrame(rows, schema=raw_rows.SCHEMA, orient="row"), 100.0, 4, 0.0)
    requests = raw_rows.to_records(fired, [], 1.0, lambda _: "x").requests
    assert requests["cache"].to_list() == ["hit", "miss", "joined", ""]
    assert requests["replica"].to_list() == [None] * 4
    assert requests["gateway_out_s"].to_list() == [0.5] * 4
