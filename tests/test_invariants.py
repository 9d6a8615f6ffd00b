"""What must hold for every simulated run, whatever the stage: stated of the record, not of the code that made it."""

from __future__ import annotations

import io
from math import inf

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simpy import Environment

from simulator import ahead, theory
from simulator.device import open_device
from simulator.host import Host
from simulator.replica import Replica
from simulator.run import Serve, arrivals, capacity_rps, serve_by_event, simulate
from stages import traffic
from stages.calibration import Calibration, HostCosts
from stages.records import Records
from stages.spec import Stage, load_stage, stage_files
from tests.made import Run, random_runs

PROJECT_STAGES = pytest.mark.parametrize("name", list(stage_files()))


def check(stage: Stage, calibration: Calibration | None, records: Records) -> None:
    """Every invariant that can be read off a record alone."""
    host = calibration.host if calibration else HostCosts()
    conserved(records)
    in_order(records.requests)
    batches_within_limits(stage, records)
    device_runs_one_at_a_time(records, host)
    first_in_first_out(records.requests)
    if stage.admission.deadline_s is None:
        leaves_the_moment_it_may(stage, host, records)


def conserved(records: Records) -> None:
    """Every request has one end; those in batches are those who were started, each in one batch."""
    requests = records.requests
    assert requests["request"].to_list() == list(range(requests.height))
    assert (
        requests["outcome"].null_count() == requests["reason"].null_count() == requests["replied_s"].null_count() == 0
    )
    started = requests.filter(pl.col("started_s").is_not_null())
    refused = requests.filter(pl.col("started_s").is_null())
    assert started.height == records.batches["batch_size"].sum()
    assert set(refused["reason"]) <= {"queue_full", "deadline", "client_timeout"}
    assert set(started["reason"]) <= {"", "client_timeout"}
    by_batch = started.group_by("batch").len().sort("batch")
    assert by_batch["batch"].to_list() == records.batches["batch"].to_list()
    assert by_batch["len"].to_list() == records.batches["batch_size"].to_list()


def in_order(requests: pl.DataFrame) -> None:
    """scheduled <= arrived <= started <= finished <= replied, as far as each came; a client who gave up excepted."""
    assert (requests["scheduled_s"] <= requests["arrived_s"]).all()
    assert (requests["scheduled_s"] <= requests["replied_s"]).all()
    assert (requests["arrived_s"] <= requests["started_s"]).all()
    assert (requests["started_s"] <= requests["finished_s"]).all()
    stayed = requests.filter(pl.col("reason") != "client_timeout")
    assert (stayed["finished_s"] <= stayed["replied_s"]).all()
    assert (stayed["arrived_s"] <= stayed["replied_s"]).all()


def batches_within_limits(stage: Stage, records: Records) -> None:
    assert records.batches["batch_size"].is_between(1, stage.batching.max_batch_size).all()


def device_runs_one_at_a_time(records: Records, host: HostCosts) -> None:
    """A batch starts once the one before it is done and the gap has passed; so utilisation is at most 1."""
    started_s, finished_s = records.batches["started_s"].to_numpy(), records.batches["finished_s"].to_numpy()
    assert (started_s[1:] >= finished_s[:-1] + host.between_batches_s).all()
    lived_s = records.replicas["stopped_s"][0] - records.replicas["ready_s"][0]
    assert (finished_s - started_s).sum() <= lived_s * (1 + 1e-9)


def first_in_first_out(requests: pl.DataFrame) -> None:
    """Nobody overtakes: later requests start in the same batch or a later one."""
    assert requests["arrived_s"].is_sorted()
    assert requests["batch"].drop_nulls().is_sorted()


def leaves_the_moment_it_may(stage: Stage, host: HostCosts, records: Records) -> None:
    """Work-conserving, and the batch wait is a bound: each batch starts at exactly the moment that the rule names.

    It may leave when it is full or its oldest has waited long enough. A free device takes it then, after a wake;
    a busy one when it is free. Everybody who had come by then is in it, up to the maximum.
    """
    batching = stage.batching
    queued = records.requests.filter(pl.col("started_s").is_not_null())
    arrived_s = queued["arrived_s"].to_numpy()
    free_s, first = -inf, 0
    for started_s, finished_s, size in records.batches.select("started_s", "finished_s", "batch_size").iter_rows():
        full = first + batching.max_batch_size - 1
        full_s = arrived_s[full] if full < arrived_s.size else inf
        may_leave_s = min(full_s, arrived_s[first] + batching.batch_wait_timeout_s)
        assert started_s == (free_s if may_leave_s <= free_s else may_leave_s + host.wake_s)
        come = np.searchsorted(arrived_s, started_s, side="right") - first
        assert size == min(come, batching.max_batch_size)
        free_s, first = finished_s + host.between_batches_s, first + size


@settings(max_examples=200, deadline=None)
@given(random_runs(), st.sampled_from([ahead.serve, serve_by_event]))
def test_random_stages_keep_every_invariant(run: Run, serve: Serve) -> None:
    stage, schedule, calibration = run
    check(stage, calibration, simulate(stage, schedule, calibration=calibration, serve=serve))


@settings(max_examples=25, deadline=None)
@given(load=st.floats(0.05, 1.5), seed=st.integers(0, 2**32), name=st.sampled_from(list(stage_files())))
def test_the_projects_stages_keep_every_invariant(load: float, seed: int, name: str) -> None:
    check_stage = at_load(load_stage(name), load, requests=400)
    check(check_stage, None, simulate(check_stage, seed=seed))


def at_load(stage: Stage, load: float, requests: int) -> Stage:
    """The stage with its rate at a share of its capacity, for as long as about that many requests take."""
    rate_rps = load * capacity_rps(stage)
    offered = traffic.at_rate(stage.traffic.model_copy(update={"duration_s": requests / rate_rps}), rate_rps)
    return stage.model_copy(update={"traffic": offered})


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 30), st.floats(0, 0.2), st.integers(0, 2**32))
def test_a_closed_loop_keeps_every_invariant(users: int, think_time_s: float, seed: int) -> None:
    stage = load_stage("micro-batched")
    closed = {"loop": "closed", "users": users, "think_time_s": think_time_s, "duration_s": 1.0, "rate": None}
    stage = stage.model_copy(update={"traffic": stage.traffic.model_copy(update=closed)})
    records = simulate(stage, seed=seed)
    check(stage, None, records)
    assert records.requests.height == 0 or records.requests["scheduled_s"][-1] < 1.0
    scheduled_s, replied_s = (records.requests[name].to_numpy() for name in ("scheduled_s", "replied_s"))
    waiting = [int(((scheduled_s <= at_s) & (replied_s > at_s)).sum()) for at_s in scheduled_s]
    assert max(waiting, default=0) <= users  # each has one request under way at most


# ---- Little's law --------------------------------------------------------------------------------------------


def queue_area_s(stage: Stage, calibration: Calibration | None, arrivals_s: np.ndarray) -> tuple[float, Replica]:
    """The integral of the queue's own length over time, looked at between every two events of the clock."""
    env = Environment()
    replica = Replica(stage, env, open_device(stage, calibration), Host(HostCosts(), 1))
    env.process(arrivals(env, replica, arrivals_s))
    area_s = 0.0
    while env.peek() < inf:
        waiting, before_s = replica.batcher.queue_length, env.now
        env.step()
        area_s += waiting * (env.now - before_s)
    return area_s, replica


@settings(max_examples=100, deadline=None)
@given(random_runs())
def test_littles_law_holds_exactly_for_the_queue(run: Run) -> None:
    """Over a run that ends empty, the length integrated over time is the sum of all waits: L·T = (λT)·W."""
    stage, schedule, calibration = run
    calibration = calibration.model_copy(update={"host": HostCosts()})
    area_s, replica = queue_area_s(stage, calibration, schedule.arrivals_s)
    log = replica.log()
    waits_s = np.repeat(log.started_s, log.sizes) - schedule.arrivals_s[log.served]
    gave_up_s = log.expired_s - schedule.arrivals_s[log.expired]
    assert area_s == waits_s.sum() + gave_up_s.sum()


@PROJECT_STAGES
@pytest.mark.parametrize("load", [0.3, 0.9])
def test_littles_law_holds_on_every_stage(name: str, load: float) -> None:
    stage = at_load(load_stage(name), load, requests=2000)
    arrivals_s = traffic.schedule(stage.traffic).arrivals_s
    area_s, _ = queue_area_s(stage, None, arrivals_s)
    records = simulate(stage)
    in_queue = records.requests.filter(pl.col("started_s").is_not_null())
    ends_s = records.replicas["stopped_s"][0]
    wait_s = (in_queue["started_s"] - in_queue["arrived_s"]).to_numpy().mean()
    assert area_s / ends_s == pytest.approx(theory.number_in_system(in_queue.height / ends_s, wait_s), rel=1e-9)
    assert area_s > 0


# ---- the same again ------------------------------------------------------------------------------------------


def as_bytes(records: Records) -> bytes:
    buffer = io.BytesIO()
    for frame in (records.requests, records.batches, records.replicas):
        frame.write_ipc(buffer, compression="uncompressed")
    return buffer.getvalue()


@PROJECT_STAGES
@pytest.mark.parametrize("loop", ["open", "closed"])
def test_the_same_seed_gives_the_same_bytes(name: str, loop: str) -> None:
    stage = load_stage(name)
    sampled = Calibration(
        stage=name,
        machine="none",
        device="cpu",
        model="digits",
        made_at="",
        command="",
        low_load_rate_rps=1.0,
        host=HostCosts(send_quantiles_s=(0.001, 0.003), reply_quantiles_s=(0.001, 0.002, 0.009), wake_s=0.0001),
    )
    update = {"loop": loop, "duration_s": 5.0} | ({"rate": None} if loop == "closed" else {})
    stage = stage.model_copy(update={"traffic": stage.traffic.model_copy(update=update)})
    first, again, other = (as_bytes(simulate(stage, calibration=sampled, seed=seed)) for seed in (3, 3, 4))
    assert first == again
    assert first != other
