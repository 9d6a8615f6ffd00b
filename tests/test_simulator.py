"""The simulator against cases worked by hand, and against itself: two ways through the same schedule."""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from polars.testing import assert_frame_equal
from simpy import Environment, Event

from simulator import ahead, theory
from simulator.ahead import ReplicaAhead
from simulator.clock import At
from simulator.device import open_device
from simulator.host import Host
from simulator.replica import Replica
from simulator.run import Serve, arrivals, beyond_calibration, capacity_rps, serve_by_event, simulate
from stages import traffic
from stages.calibration import HostCosts
from stages.records import Records
from stages.spec import Stage, load_stage
from tests.cases import CASES, Case
from tests.made import Run, a_calibration, a_schedule, a_stage, random_runs

BOTH_WAYS = pytest.mark.parametrize("serve", [ahead.serve, serve_by_event], ids=["ahead", "by event"])


def run_case(case: Case, serve: Serve) -> Records:
    stage = a_stage(
        batching={"max_batch_size": case.max_batch_size, "batch_wait_timeout_s": case.batch_wait_timeout_s},
        admission={"max_queue_length": case.max_queue_length, "deadline_s": case.deadline_s},
    )
    calibration = a_calibration({size: (time_s,) for size, time_s in case.service_time_s.items()})
    return simulate(stage, a_schedule(list(case.arrivals_s)), calibration=calibration, serve=serve)


@BOTH_WAYS
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_case_worked_by_hand(case: Case, serve: Serve) -> None:
    records = run_case(case, serve)
    requests = records.requests
    batches = [
        (started_s, tuple(requests.filter(pl.col("batch") == batch)["request"]))
        for batch, started_s in records.batches.select("batch", "started_s").iter_rows()
    ]
    assert batches == list(case.batches)
    assert tuple(requests.filter(pl.col("reason") == "queue_full")["request"]) == case.shed
    assert tuple(requests.filter(pl.col("reason") == "deadline")["request"]) == case.expired
    ok = requests.filter(pl.col("outcome") == "ok")
    assert ok.height == sum(len(members) for _, members in case.batches)
    took_s = (ok["replied_s"] - ok["started_s"]).to_list()
    assert took_s == [case.service_time_s[size] for size in ok["batch_size"]]


# ---- two ways through the same schedule ----------------------------------------------------------------------


def assert_same(one: Records, other: Records, **tolerance: Any) -> None:
    assert_frame_equal(one.requests, other.requests, **tolerance)
    assert_frame_equal(one.batches, other.batches, **tolerance)
    assert_frame_equal(one.replicas, other.replicas, **tolerance)


@settings(max_examples=80, deadline=None)
@given(random_runs() | random_runs(largest=1, refusing=False))
def test_going_ahead_is_bit_for_bit_the_event_driven_replica(run: Run) -> None:
    stage, schedule, calibration = run
    records = [simulate(stage, schedule, calibration=calibration, serve=s) for s in (ahead.serve, serve_by_event)]
    assert_same(*records, check_exact=True)


COSTS: dict[str, Any] = {
    "send_quantiles_s": (0.001, 0.002, 0.004),
    "reply_quantiles_s": (0.0005, 0.0005, 0.01),
    "wake_s": 0.0001,
    "between_batches_s": 0.0002,
    "reply_per_item_s": 0.00005,
}


@pytest.mark.parametrize("max_batch_size", [1, 8])
@pytest.mark.parametrize("load", [0.3, 0.9, 1.5])
@pytest.mark.parametrize("deadline_s", [None, 0.2])
def test_going_ahead_with_sampled_times_is_the_event_driven_replica(
    max_batch_size: int, load: float, deadline_s: float | None
) -> None:
    service_s = {n: (0.008 + 0.001 * n, 0.01 + 0.001 * n, 0.03 + 0.001 * n) for n in range(1, max_batch_size + 1)}
    calibration = a_calibration(service_s, **COSTS)
    stage = a_stage(
        batching={"max_batch_size": max_batch_size, "batch_wait_timeout_s": 0.005},
        admission={"max_queue_length": 20, "deadline_s": deadline_s},
    )
    capacity = capacity_rps(stage, calibration)
    offered = traffic.at_rate(stage.traffic.model_copy(update={"duration_s": 4000 / capacity}), load * capacity)
    stage = stage.model_copy(update={"traffic": offered})
    records = [simulate(stage, calibration=calibration, serve=serve) for serve in (ahead.serve, serve_by_event)]
    assert_same(*records, check_exact=True)


def test_others_may_watch_a_replica_that_goes_ahead() -> None:
    stage = load_stage("micro-batched", {"traffic.duration_s": 5.0})
    arrivals_s = traffic.schedule(stage.traffic).arrivals_s
    watch_s = np.sort(np.random.default_rng(7).uniform(0, 5.0, 200)).tolist()

    def watched(env: Environment, replica: ReplicaAhead | Replica) -> list[int]:
        seen: list[int] = []

        def watch() -> Generator[Event, None, None]:
            for time_s in watch_s:
                yield At(env, time_s)
                seen.append(replica.queue_length if isinstance(replica, ReplicaAhead) else replica.batcher.queue_length)

        env.process(watch())
        env.run()
        return seen

    ahead_env, event_env = Environment(), Environment()
    goes_ahead = ReplicaAhead(stage, ahead_env, open_device(stage), Host(HostCosts(), 1), arrivals_s)
    ahead_env.process(goes_ahead.run())
    by_event = Replica(stage, event_env, open_device(stage), Host(HostCosts(), 1))
    event_env.process(arrivals(event_env, by_event.submit, arrivals_s))
    seen = watched(ahead_env, goes_ahead)
    assert seen == watched(event_env, by_event)
    assert max(seen) > 3
    assert ahead_env.now == event_env.now  # the last batch has ended on both clocks
    np.testing.assert_array_equal(goes_ahead.log().started_s, by_event.log().started_s)


# ---- host, device, calibration -------------------------------------------------------------------------------


@BOTH_WAYS
def test_host_costs_stand_where_they_belong(serve: Serve) -> None:
    calibration = a_calibration(
        {1: (1.0,), 2: (2.0,)},
        send_quantiles_s=(0.5,),
        wake_s=0.25,
        between_batches_s=0.125,
        reply_quantiles_s=(4.0,),
        reply_per_item_s=0.0625,
    )
    stage = a_stage(batching={"max_batch_size": 2}, admission={"max_queue_length": 2})
    schedule = a_schedule([0.0, 0.5, 0.5, 0.5, 16.0])
    requests = simulate(stage, schedule, calibration=calibration, serve=serve).requests
    assert requests["arrived_s"].to_list() == [0.5, 1.0, 1.0, 1.0, 16.5]  # scheduled + send
    # Woken at 0.75 for one; it ends at 1.75, and the device runs on at 1.875 with the two that wait.
    assert requests["started_s"].to_list() == [0.75, 1.875, 1.875, None, 16.75]
    assert requests["finished_s"].to_list() == [1.75, 3.875, 3.875, None, 17.75]
    assert requests["replied_s"].to_list() == [5.75, 7.875, 7.9375, 5.0, 21.75]  # refused on arrival, + reply
    assert requests["outcome"].to_list() == ["ok", "ok", "ok", "shed", "ok"]
    assert requests["sent_s"].equals(requests["scheduled_s"])


@BOTH_WAYS
def test_a_deadline_that_ran_out_is_told_when_the_device_looks(serve: Serve) -> None:
    calibration = a_calibration({1: (2.0,)}, between_batches_s=0.125, reply_quantiles_s=(0.25,), reply_per_item_s=0.5)
    stage = a_stage(admission={"deadline_s": 1.0})
    requests = simulate(stage, a_schedule([0.0, 0.5, 0.75]), calibration=calibration, serve=serve).requests
    assert requests["outcome"].to_list() == ["ok", "timed_out", "timed_out"]
    assert requests["reason"].to_list() == ["", "deadline", "deadline"]
    assert requests["replied_s"].to_list() == [2.25, 2.375, 2.375]


@BOTH_WAYS
def test_a_client_gives_up_and_the_work_is_done_all_the_same(serve: Serve) -> None:
    stage = a_stage(traffic={"timeout_s": 1.5})
    schedule = a_schedule([0.0, 0.25, 0.5])
    records = simulate(stage, schedule, calibration=a_calibration({1: (1.0,)}), serve=serve)
    requests = records.requests
    assert requests["outcome"].to_list() == ["ok", "timed_out", "timed_out"]
    assert requests["reason"].to_list() == ["", "client_timeout", "client_timeout"]
    assert requests["replied_s"].to_list() == [1.0, 1.75, 2.0]
    assert requests["started_s"].to_list() == [0.0, 1.0, 2.0]
    assert records.batches["finished_s"].to_list() == [1.0, 2.0, 3.0]
    assert records.replicas["stopped_s"].to_list() == [3.0]


def test_a_calibrated_device_draws_from_its_quantiles() -> None:
    quantiles_s = (0.010, 0.011, 0.013, 0.030)
    stage, calibration = a_stage(), a_calibration({1: quantiles_s})
    device = open_device(stage, calibration, seed=3)
    drawn_s = np.array([device.service_time_s(1) for _ in range(20_000)])
    shares = np.linspace(0, 1, 31)
    wanted_s = np.interp(shares, np.linspace(0, 1, 4), quantiles_s)
    assert drawn_s.min() >= 0.010 and drawn_s.max() <= 0.030
    np.testing.assert_allclose(np.quantile(drawn_s, shares), wanted_s, atol=0.0004)
    mean_s = calibration.service_times[0].mean_s
    assert abs(drawn_s.mean() - mean_s) < 5 * drawn_s.std() / math.sqrt(drawn_s.size)
    assert capacity_rps(stage, calibration) == pytest.approx(1 / mean_s)
    again = open_device(stage, calibration, seed=3)
    np.testing.assert_array_equal(again.times.ahead_s(1, 100), drawn_s[:100])
    assert again.service_time_s(1) == drawn_s[0]  # looking ahead uses nothing up


def test_sizes_between_two_of_the_sweep_are_interpolated_and_said_so() -> None:
    stage = a_stage(batching={"max_batch_size": 4})
    calibration = a_calibration({1: (0.01, 0.02), 2: (0.02,), 4: (0.04, 0.06, 0.08)})
    device = open_device(stage, calibration)
    assert 0.03 <= device.service_time_s(3) <= 0.05
    assert any("Batches of 3 " in note for note in beyond_calibration(stage, calibration))
    with pytest.raises(ValueError, match="batches of 1 to 4, got 8"):
        open_device(a_stage(batching={"max_batch_size": 8}), calibration)


def test_an_emulated_device_keeps_its_profile_times_its_slowdown() -> None:
    stage = load_stage("micro-batched", {"device.slowdown": 8.0, "overload": True})
    plain = load_stage("micro-batched")
    device, quick = open_device(stage), open_device(plain)
    assert device.service_time_s(5) == 8 * quick.service_time_s(5)
    assert device.label == "emulated t4-resnet50-fp16-pytorch, 8 times slower"
    assert capacity_rps(stage) == pytest.approx(capacity_rps(plain) / 8)
    assert capacity_rps(plain) == pytest.approx(8 / quick.service_time_s(8))


def test_capacity_counts_the_gap_between_batches() -> None:
    calibration = a_calibration({1: (0.5,), 2: (0.75,)}, between_batches_s=0.25)
    assert capacity_rps(a_stage(batching={"max_batch_size": 2}), calibration) == 2.0


def test_a_timed_device_without_a_calibration_is_refused_in_words() -> None:
    for call in (capacity_rps, simulate):
        with pytest.raises(ValueError, match=r"got no calibration.*Run `rung calibrate a-stage`"):
            call(a_stage())


def test_what_lies_beyond_the_calibration_is_said() -> None:
    calibration = a_calibration({1: (0.01,)}).model_copy(update={"low_load_rate_rps": 5.0, "model": "xor"})
    notes = " ".join(beyond_calibration(load_stage("single-vm", {"traffic.rate.rate_rps": 2.0}), calibration))
    for part in (
        "on the stage a-stage",
        "on the device cpu",
        "with the model xor",
        "2.0 requests per second are below",
    ):
        assert part in notes
    assert beyond_calibration(a_stage(), a_calibration({1: (0.01,)})) == []


@BOTH_WAYS
def test_a_schedule_without_requests_gives_an_empty_record(serve: Serve) -> None:
    records = simulate(a_stage(), a_schedule([]), calibration=a_calibration({1: (1.0,)}), serve=serve)
    assert records.requests.height == records.batches.height == 0
    assert records.replicas["stopped_s"].to_list() == [1.0]


# ---- closed loop ---------------------------------------------------------------------------------------------


def closed_stage(users: int, think_time_s: float, duration_s: float, **keys: float) -> Stage:
    loop = {"loop": "closed", "users": users, "think_time_s": think_time_s, "duration_s": duration_s, "rate": None}
    return a_stage(traffic={**loop, **keys})


def test_a_user_thinks_from_one_reply_to_the_next_request() -> None:
    stage = closed_stage(1, 1.0, 60.0, timeout_s=0.75)
    calibration = a_calibration({1: (0.25, 1.25)}, send_quantiles_s=(0.0625,), reply_quantiles_s=(0.125,), wake_s=0.03)
    requests = simulate(stage, calibration=calibration).requests
    thought = traffic.user_draws(stage.traffic, 0)
    back_s = 0.0
    for row in requests.iter_rows(named=True):
        think_s, item = next(thought)
        assert (row["scheduled_s"], row["item"]) == (back_s + think_s, item)
        back_s = row["replied_s"]
    assert back_s + next(thought)[0] >= 60.0  # it stopped because time was up
    assert set(requests["reason"]) == {"", "client_timeout"}
    assert requests["arrived_s"].is_sorted()


@pytest.mark.parametrize("users", [5, 60])
def test_the_closed_loop_obeys_the_interactive_response_time_law(users: int) -> None:
    think_s, duration_s = 0.5, 500.0
    stage = closed_stage(users, think_s, duration_s)
    calibration = a_calibration({1: (0.02,)}, send_quantiles_s=(0.001, 0.003), reply_quantiles_s=(0.001,))
    requests = simulate(stage, calibration=calibration).requests
    answered = requests.filter(pl.col("replied_s") <= duration_s)
    latency_s = (answered["replied_s"] - answered["scheduled_s"]).to_numpy().mean()
    throughput_rps = answered.height / duration_s
    # The law holds for the mean think time that was drawn; over n requests that is off by about 0.5 s / sqrt(n).
    slack_s = 3 * think_s / math.sqrt(answered.height)
    assert latency_s == pytest.approx(theory.closed_loop_latency_s(users, throughput_rps, think_s), abs=slack_s)
    if users == 60:  # they could ask for 115 a second: the device is the limit
        assert throughput_rps == pytest.approx(50.0, rel=0.002)


def test_a_closed_loop_takes_no_schedule() -> None:
    with pytest.raises(ValueError, match="closed loop has no schedule"):
        simulate(closed_stage(1, 1.0, 1.0), a_schedule([0.0]), calibration=a_calibration({1: (1.0,)}))
