"""What must hold for every simulated run, whatever the stage: stated of the record, not of the code that made it."""

from __future__ import annotations

import io
from math import inf

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from simpy import Environment

from simulator import ahead, theory
from simulator.device import open_device
from simulator.gateway import Gateway as SimulatedGateway
from simulator.host import Host
from simulator.replica import Replica
from simulator.run import Serve, arrivals, capacity_rps, serve_by_event, simulate
from stages import traffic
from stages.calibration import Calibration, HostCosts
from stages.fleet import Fleet, Gateway
from stages.records import Records
from stages.spec import Stage, load_stage, stage_files
from tests.made import Run, random_fleets, random_runs

PROJECT_STAGES = pytest.mark.parametrize("name", list(stage_files()))


REFUSALS = {"queue_full", "deadline", "client_timeout"}
QUEUE_REFUSALS = REFUSALS | {"upstream_timeout"}
GATEWAY_REFUSALS = QUEUE_REFUSALS | {"gateway_full", "no_replica"}
OF_OTHERS = pl.col("cache").is_in(["hit", "joined"])  # requests whose answer another request had computed


def check(stage: Stage, calibration: Calibration | None, records: Records) -> None:
    """Every invariant that can be read off a record alone."""
    host = calibration.host if calibration else HostCosts()
    conserved(records, refusals=refusals_of(stage))
    in_order(records.requests)
    batches_within_limits(stage, records)
    if stage.queue is not None:
        through_the_queue(stage, records.requests)
    elif stage.gateway is None:
        assert records.requests["tries"].null_count() == records.requests.height
        assert records.requests["arrived_s"].is_sorted()
    else:
        through_the_gateway(stage, records.requests)
    for replica in records.replicas["replica"]:
        own = of_replica(records, replica)
        device_runs_one_at_a_time(own, host)
        first_in_first_out(own.requests)
        if nobody_expires(stage) and own.requests.height:
            leaves_the_moment_it_may(stage, host, own)


def refusals_of(stage: Stage) -> set[str]:
    """The reasons that a request of the stage may be refused for."""
    if stage.queue is not None:
        return QUEUE_REFUSALS
    return REFUSALS if stage.gateway is None else GATEWAY_REFUSALS


def nobody_expires(stage: Stage) -> bool:
    """Whether no request leaves a replica's queue but for the device: a gateway's patience is a deadline, too.

    Workers have no queues of their own.
    """
    if stage.queue is not None:
        return False
    patient = stage.gateway is None or stage.gateway.upstream_timeout_s >= 3600.0
    return stage.admission.deadline_s is None and patient


def of_replica(records: Records, replica: int) -> Records:
    """What one replica saw of a run, requests in the order in which they came to it."""
    batched = records.requests.filter((pl.col("replica") == replica) & pl.col("started_s").is_not_null())
    return Records(
        batched.sort("arrived_s", "batch", maintain_order=True),
        records.batches.filter(pl.col("replica") == replica),
        records.replicas.filter(pl.col("replica") == replica),
        records.window_s,
    )


def conserved(records: Records, refusals: set[str]) -> None:
    """Every request has one end; those in batches are those who were started, each in one batch."""
    requests = records.requests
    assert requests["request"].to_list() == list(range(requests.height))
    assert (
        requests["outcome"].null_count() == requests["reason"].null_count() == requests["replied_s"].null_count() == 0
    )
    started = requests.filter(pl.col("started_s").is_not_null())
    refused = requests.filter(pl.col("started_s").is_null(), ~OF_OTHERS)
    assert requests.filter(OF_OTHERS)["started_s"].null_count() == requests.filter(OF_OTHERS).height
    assert started.height == records.batches["batch_size"].sum()
    assert set(refused["reason"]) <= refusals
    assert set(started["reason"]) <= {"", "client_timeout", "upstream_timeout"}
    by_batch = started.group_by("replica", "batch").len().sort("replica", "batch")
    assert by_batch.select("replica", "batch").rows() == records.batches.select("replica", "batch").rows()
    assert by_batch["len"].to_list() == records.batches["batch_size"].to_list()


def in_order(requests: pl.DataFrame) -> None:
    """scheduled <= read by the gateway <= arrived <= started <= finished <= back at the gateway <= replied, as far as
    each came; those whose client gave up, or whose gateway did, excepted."""
    for earlier, later in (
        ("scheduled_s", "arrived_s"),
        ("scheduled_s", "gateway_in_s"),
        ("gateway_in_s", "arrived_s"),
    ):
        assert (requests[earlier] <= requests[later]).all()
    assert (requests["scheduled_s"] <= requests["replied_s"]).all()
    assert (requests["arrived_s"] <= requests["started_s"]).all()
    assert (requests["started_s"] <= requests["finished_s"]).all()
    stayed = requests.filter(~pl.col("reason").is_in(["client_timeout", "upstream_timeout"]))
    for earlier, later in (
        ("finished_s", "gateway_out_s"),
        ("arrived_s", "gateway_out_s"),
        ("gateway_out_s", "replied_s"),
        ("finished_s", "replied_s"),
        ("arrived_s", "replied_s"),
    ):
        assert (stayed[earlier] <= stayed[later]).all()


def through_the_gateway(stage: Stage, requests: pl.DataFrame) -> None:
    """It reads in the order of sending, tries no more often than it may, and gives answers of replicas only."""
    assert stage.gateway is not None
    assert requests["gateway_in_s"].null_count() == 0
    assert requests["gateway_in_s"].is_sorted()
    replicas = stage.fleet.replicas if stage.scaling is None else stage.scaling.max_replicas
    most = min(1 + stage.gateway.retries_max, replicas)
    assert requests["tries"].is_between(0, most).all()
    untried = requests.filter(pl.col("tries") == 0)
    computed = untried.filter(~OF_OTHERS)
    assert set(computed["reason"]) <= {"gateway_full", "no_replica", "client_timeout"}
    assert set(untried.filter(pl.col("cache") == "hit")["reason"]) <= {"", "client_timeout"}
    assert set(requests["cache"]) <= ({"hit", "joined", "miss"} if stage.cache else {""})
    assert requests.filter(OF_OTHERS, pl.col("tries") > 0).is_empty()
    assert untried["replica"].null_count() == untried["arrived_s"].null_count() == untried.height
    stayed = requests.filter(pl.col("reason") != "client_timeout")
    waited_s = stayed["gateway_out_s"] - stayed["gateway_in_s"]
    assert (waited_s <= stage.gateway.upstream_timeout_s + 1e-9).all()


def through_the_queue(stage: Stage, requests: pl.DataFrame) -> None:
    """The API reads in the order of sending, and no job is delivered more often than it may be."""
    assert stage.queue is not None
    assert requests["gateway_in_s"].null_count() == 0
    assert requests["gateway_in_s"].is_sorted()
    assert set(requests["cache"]) <= {""}
    computed = requests.filter(pl.col("started_s").is_not_null())
    assert computed["tries"].is_between(1, stage.queue.attempts_max).all()
    assert (requests.filter(pl.col("started_s").is_null())["tries"] == 0).all()
    assert requests.filter(pl.col("reason") == "queue_full")["arrived_s"].drop_nulls().is_empty()
    stayed = requests.filter(pl.col("reason") != "client_timeout")
    waited_s = stayed["gateway_out_s"] - stayed["gateway_in_s"]
    assert (waited_s <= stage.queue.request_reply_timeout_s + 1e-9).all()


def batches_within_limits(stage: Stage, records: Records) -> None:
    assert records.batches["batch_size"].is_between(1, stage.batching.max_batch_size).all()


def device_runs_one_at_a_time(records: Records, host: HostCosts) -> None:
    """A batch starts once the one before it is done and the gap has passed; so utilisation is at most 1."""
    if records.replicas["ready_s"].null_count():
        assert not records.batches.height
        return
    started_s, finished_s = records.batches["started_s"].to_numpy(), records.batches["finished_s"].to_numpy()
    assert (started_s[1:] >= finished_s[:-1] + host.between_batches_s).all()
    lived_s = records.replicas["stopped_s"][0] - records.replicas["ready_s"][0]
    assert (finished_s - started_s).sum() <= lived_s * (1 + 1e-9)


def first_in_first_out(requests: pl.DataFrame) -> None:
    """Nobody overtakes: later requests start in the same batch or a later one."""
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


@settings(max_examples=50, deadline=None)
@given(random_runs(), st.sampled_from([ahead.serve, serve_by_event]))
def test_random_stages_keep_every_invariant(run: Run, serve: Serve) -> None:
    stage, schedule, calibration = run
    check(stage, calibration, simulate(stage, schedule, calibration=calibration, serve=serve))


@settings(max_examples=25, deadline=None)
@given(load=st.floats(0.05, 1.5), seed=st.integers(0, 2**32), name=st.sampled_from(list(stage_files())))
def test_the_projects_stages_keep_every_invariant(load: float, seed: int, name: str) -> None:
    check_stage = at_load(load_stage(name), load, requests=400)
    check(check_stage, None, simulate(check_stage, seed=seed))


@settings(max_examples=60, deadline=None)
@given(random_fleets(), st.integers(0, 2**32))
def test_random_fleets_keep_every_invariant(run: Run, seed: int) -> None:
    stage, schedule, calibration = run
    check(stage, calibration, simulate(stage, schedule, calibration=calibration, seed=seed))


@settings(max_examples=30, deadline=None)
@given(random_fleets(refusing=False), st.integers(0, 2**32))
def test_a_gateway_that_refuses_nobody_answers_everybody(run: Run, seed: int) -> None:
    stage, schedule, calibration = run
    records = simulate(stage, schedule, calibration=calibration, seed=seed)
    check(stage, calibration, records)
    assert set(records.requests["outcome"]) <= {"ok"}
    assert set(records.requests["tries"]) <= {1}


@settings(max_examples=30, deadline=None)
@given(random_runs())
def test_a_gateway_that_costs_nothing_before_one_replica_changes_nothing(run: Run) -> None:
    stage, schedule, calibration = run
    patient = stage.model_copy(update={"traffic": stage.traffic.model_copy(update={"timeout_s": 3600.0})})
    gateway = Gateway(upstream_timeout_s=3600.0, retries_max=0)
    direct, through = (
        simulate(each, schedule, calibration=calibration)
        for each in (patient, patient.model_copy(update={"gateway": gateway}))
    )
    own = ["gateway_in_s", "gateway_out_s", "tries"]
    assert_frame_equal(direct.requests.drop(own), through.requests.drop(own), check_exact=True)
    assert_frame_equal(direct.batches, through.batches, check_exact=True)


def at_load(stage: Stage, load: float, requests: int) -> Stage:
    """The stage with its rate at a share of its capacity, for as long as about that many requests take."""
    rate_rps = load * capacity_rps(stage)
    offered = traffic.at_rate(stage.traffic.model_copy(update={"duration_s": requests / rate_rps}), rate_rps)
    return stage.model_copy(update={"traffic": offered})


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 30), st.floats(0, 0.2), st.integers(0, 2**32), st.sampled_from(["micro-batched", "load-balanced"])
)
def test_a_closed_loop_keeps_every_invariant(users: int, think_time_s: float, seed: int, name: str) -> None:
    stage = load_stage(name)
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
    env.process(arrivals(env, replica.submit, arrivals_s))
    area_s = 0.0
    while env.peek() < inf:
        waiting, before_s = replica.batcher.queue_length, env.now
        env.step()
        area_s += waiting * (env.now - before_s)
    return area_s, replica


@settings(max_examples=30, deadline=None)
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
    none = dict.fromkeys(("gateway", "queue", "scaling", "split"))  # of the others see below
    alone = {**none, "fleet": Fleet()}
    stage = at_load(load_stage(name).model_copy(update=alone), load, requests=2000)
    arrivals_s = traffic.schedule(stage.traffic).arrivals_s
    area_s, _ = queue_area_s(stage, None, arrivals_s)
    records = simulate(stage)
    in_queue = records.requests.filter(pl.col("started_s").is_not_null())
    ends_s = records.replicas["stopped_s"][0]
    wait_s = (in_queue["started_s"] - in_queue["arrived_s"]).to_numpy().mean()
    assert area_s / ends_s == pytest.approx(theory.number_in_system(in_queue.height / ends_s, wait_s), rel=1e-9)
    assert area_s > 0


def gateway_areas_s(run: Run, seed: int) -> tuple[float, dict[int, float], SimulatedGateway]:
    """The integrals over time of what the gateway counts as inside, and as outstanding at each replica."""
    stage, schedule, calibration = run
    env = Environment()
    gateway = SimulatedGateway(stage, env, calibration.host, calibration.gateway, seed)
    for number in range(stage.fleet.replicas):
        gateway.join(number, open_device(stage, calibration, number=number))
    env.process(arrivals(env, gateway.submit, gateway.from_clients.arrivals_s(schedule.arrivals_s)))
    inside_s, outstanding_s = 0.0, dict.fromkeys(gateway.members, 0.0)
    while env.peek() < inf:
        before_s, inside = env.now, gateway.in_flight
        counts = {number: member.outstanding for number, member in gateway.members.items()}
        env.step()
        inside_s += inside * (env.now - before_s)
        for number, count in counts.items():
            outstanding_s[number] += count * (env.now - before_s)
    return inside_s, outstanding_s, gateway


@settings(max_examples=30, deadline=None)
@given(random_fleets(refusing=False), st.integers(0, 2**32))
def test_littles_law_holds_exactly_for_the_gateway_and_each_replica(run: Run, seed: int) -> None:
    """Over a run that ends empty, requests inside integrated over time are the sum of their times inside."""
    inside_s, outstanding_s, gateway = gateway_areas_s(run, seed)
    log = gateway.log()
    stays_s = log.out_s - log.in_s
    assert gateway.in_flight == 0
    assert inside_s == stays_s.sum()
    for number, area_s in outstanding_s.items():
        assert area_s == stays_s[log.replicas == number].sum()


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
    update = {"loop": loop, "duration_s": 5.0} | ({"rate": None, "users": 20} if loop == "closed" else {})
    stage = stage.model_copy(update={"traffic": stage.traffic.model_copy(update=update)})
    first, again, other = (as_bytes(simulate(stage, calibration=sampled, seed=seed)) for seed in (3, 3, 4))
    assert first == again
    assert first != other
