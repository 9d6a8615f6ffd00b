"""The simulated gateway in cases worked by hand: where its time goes, whom it refuses, what it tries again."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from simpy import Environment

from simulator.clock import At
from simulator.device import Device, open_device
from simulator.drills import Slowdown
from simulator.gateway import Gateway
from simulator.run import beyond_calibration, capacity_rps, serve_by_event, simulate
from stages.calibration import Calibration, GatewayCosts, HostCosts, ServiceTimes
from stages.fleet import Fleet
from stages.records import Records
from stages.spec import Stage, device_label, load_stage, of_replica
from stages.traffic import Schedule
from tests.made import a_calibration, a_schedule, a_stage

ALWAYS_S = dict.fromkeys(range(1, 9), (1.0,))


def a_fleet(replicas: int = 2, *, queue: int = 256, deadline_s: float | None = None, **gateway: Any) -> Stage:
    """A stage whose replicas take one request at a time."""
    return a_stage(
        fleet={"replicas": replicas},
        gateway={"policy": "round-robin", "upstream_timeout_s": 3600.0, **gateway},
        admission={"max_queue_length": queue, "deadline_s": deadline_s},
    )


def costing(calibration: Calibration, **costs: Any) -> Calibration:
    return calibration.model_copy(update={"gateway": GatewayCosts.model_validate(costs)})


def run(stage: Stage, arrivals_s: list[float], calibration: Calibration | None = None, **changes: Any) -> pl.DataFrame:
    return simulate(
        stage, a_schedule(arrivals_s), calibration=calibration or a_calibration(ALWAYS_S), **changes
    ).requests


def column(requests: pl.DataFrame, name: str) -> list[Any]:
    return requests[name].to_list()


# ---- where the time goes -------------------------------------------------------------------------------------


def test_every_hop_stands_where_it_belongs() -> None:
    calibration = costing(
        a_calibration(ALWAYS_S, wake_s=0.25),
        send_quantiles_s=(0.5,),
        forward_quantiles_s=(2.0,),
        back_quantiles_s=(4.0,),
        reply_quantiles_s=(8.0,),
        busy_s=0.25,
    )
    (row,) = run(a_fleet(1), [1.0], calibration).iter_rows(named=True)
    assert row["gateway_in_s"] == 1.5, "low load: the hop as it was calibrated, its share of the event loop included"
    assert row["arrived_s"] == 3.5
    assert (row["started_s"], row["finished_s"]) == (3.75, 4.75)
    assert row["gateway_out_s"] == 8.75
    assert row["replied_s"] == 16.75
    assert (row["outcome"], row["replica"], row["tries"]) == ("ok", 0, 1)


def test_requests_queue_for_the_event_loop_in_both_directions() -> None:
    calibration = costing(a_calibration({1: (1.0,), 4: (1.0,)}), busy_s=0.5)
    stage = a_fleet(1).model_copy(update={"batching": a_stage(batching={"max_batch_size": 4}).batching})
    requests = run(stage, [0.0, 0.0, 0.0], calibration)
    assert column(requests, "gateway_in_s") == [0.25, 0.5, 0.75]
    assert column(requests, "started_s") == [0.25, 1.25, 1.25]  # the device takes the first alone
    assert column(requests, "gateway_out_s") == [1.5, 2.5, 2.75]


def test_who_comes_back_waits_behind_who_comes_in() -> None:
    """One loop, first come, first served: the first answer is there at 1.25, while it reads the other two."""
    calibration = costing(a_calibration(ALWAYS_S), busy_s=0.5)
    requests = run(a_fleet(1), [0.0, 1.125, 1.1875], calibration)
    assert column(requests, "gateway_in_s") == [0.25, 1.375, 1.625]
    assert column(requests, "gateway_out_s")[0] == 1.875


def test_a_hop_shorter_than_its_share_of_the_loop_takes_just_that() -> None:
    calibration = costing(a_calibration(ALWAYS_S), send_quantiles_s=(0.125,), busy_s=0.5)
    assert column(run(a_fleet(1), [0.0], calibration), "gateway_in_s") == [0.25]


def test_without_costs_of_its_own_its_hops_are_those_of_the_host() -> None:
    calibration = a_calibration(ALWAYS_S, send_quantiles_s=(0.5,), reply_quantiles_s=(0.25,))
    (row,) = run(a_fleet(1), [0.0], calibration).iter_rows(named=True)
    assert (row["gateway_in_s"], row["arrived_s"], row["gateway_out_s"], row["replied_s"]) == (0.0, 0.5, 1.75, 1.75)
    assert any("without a gateway" in note for note in beyond_calibration(a_fleet(1), calibration))


def test_every_replica_draws_from_streams_of_its_own() -> None:
    calibration = costing(a_calibration({1: (0.5, 1.5)}), forward_quantiles_s=(0.0, 1.0), back_quantiles_s=(0.0, 1.0))
    requests = run(a_fleet(4), [10.0 * n for n in range(4)], calibration)
    for later, earlier in (("finished_s", "started_s"), ("arrived_s", "gateway_in_s"), ("gateway_out_s", "finished_s")):
        assert len(set(column(requests.select(pl.col(later) - pl.col(earlier)), later))) == 4
    assert column(requests, "replica") == [0, 1, 2, 3]


# ---- whom it refuses -----------------------------------------------------------------------------------------


def test_a_full_gateway_refuses_and_has_room_again() -> None:
    requests = run(a_fleet(2, max_in_flight=2), [0.0, 0.0, 0.5, 1.0, 1.0])
    assert column(requests, "reason") == ["", "", "gateway_full", "", ""]
    assert column(requests, "outcome")[2] == "shed"
    (refused,) = requests[2:3].iter_rows(named=True)
    assert (refused["gateway_in_s"], refused["gateway_out_s"], refused["replied_s"]) == (0.5, 0.5, 0.5)
    assert (refused["replica"], refused["arrived_s"], refused["tries"]) == (None, None, 0)


def test_replicas_with_all_their_connections_taken_are_passed_over() -> None:
    requests = run(a_fleet(2, connections_per_replica=1, policy="sticky"), [0.0, 0.0, 0.0, 1.5])
    assert sorted(column(requests, "replica")[:2]) == [0, 1], "both have the same key"
    assert column(requests, "reason") == ["", "", "gateway_full", ""]


def test_a_refusal_is_tried_on_another_replica_and_counts_its_tries() -> None:
    """Taking turns, the third goes to replica 0, which is full: replica 1 has room, as its device is quick."""
    stage = a_fleet(2, queue=1)
    devices = [open_device(stage, a_calibration({1: (seconds,)})) for seconds in (8.0, 0.25)]
    calibration = a_calibration(ALWAYS_S)
    arrivals_s = [0.0, 0.0, 0.5, 0.5, 1.0]  # replica 0, 1, 0 (waits), 1, 0 (full) and then 1
    requests = run(stage, arrivals_s, calibration, devices=devices)
    assert column(requests, "replica") == [0, 1, 0, 1, 1]
    assert column(requests, "tries") == [1, 1, 1, 1, 2]
    assert column(requests, "reason") == [""] * 5
    assert column(requests, "replied_s")[4] == 1.25


@pytest.mark.parametrize(
    ("changes", "tries"),
    [({"retries_max": 0}, 1), ({"retry_budget_share": 0.0}, 1), ({"engine": "nginx"}, 1), ({}, 2)],
)
def test_what_is_refused_everywhere_is_refused(changes: dict[str, Any], tries: int) -> None:
    requests = run(a_fleet(2, queue=1, **changes), [0.0, 0.0, 0.25, 0.25, 0.5])
    assert column(requests, "reason") == ["", "", "", "", "queue_full"]
    assert column(requests, "outcome")[4] == "shed"
    assert column(requests, "tries") == [1, 1, 1, 1, tries]


def test_the_budget_ends_retries() -> None:
    """Three retries in ten seconds are always allowed, and a quarter of the requests: the fourth with the 16th."""
    stage = a_fleet(2, queue=1, retry_budget_share=0.25)
    devices = [open_device(stage, a_calibration({1: (100.0,)})) for _ in range(2)]
    requests = run(stage, [0.0, 0.0, *[0.25] * 18], a_calibration(ALWAYS_S), devices=devices)
    assert column(requests, "tries") == [1] * 4 + [2] * 3 + [1] * 8 + [2] + [1] * 3 + [2]


# ---- who does not wait any more ------------------------------------------------------------------------------


def test_the_gateway_waits_no_longer_than_it_says_and_the_replica_works_on() -> None:
    records = simulate(a_fleet(1, upstream_timeout_s=1.5), a_schedule([0.0, 0.25]), calibration=a_calibration(ALWAYS_S))
    requests = records.requests
    assert column(requests, "reason") == ["", "upstream_timeout"]
    assert column(requests, "outcome")[1] == "timed_out"
    assert column(requests, "replied_s") == [1.0, 1.75]
    assert records.batches["finished_s"].to_list() == [1.0, 2.0]


def test_a_client_that_leaves_frees_its_place_in_the_gateway() -> None:
    stage = a_fleet(1, max_in_flight=1)
    stage = stage.model_copy(update={"traffic": stage.traffic.model_copy(update={"timeout_s": 0.5})})
    requests = run(stage, [0.0, 0.25, 0.75])
    assert column(requests, "reason") == ["client_timeout", "gateway_full", "client_timeout"]
    assert column(requests, "replied_s") == [0.5, 0.25, 1.25]
    assert column(requests, "started_s") == [0.0, None, 1.0], "the replica did not hear of it"


def test_the_deadline_goes_with_the_request_and_what_is_left_of_it_with_the_next_try() -> None:
    """Replica 0 is full: the last is refused there, which takes half of its second. So it waits in vain at replica 1,
    though for 11/16 s only; the fourth waited for 12/16 s and had its answer."""
    calibration = costing(a_calibration(ALWAYS_S), forward_quantiles_s=(0.25,), back_quantiles_s=(0.25,))
    stage = a_fleet(2, queue=1, deadline_s=1.0)
    devices = [open_device(stage, a_calibration({1: (seconds,)})) for seconds in (8.0, 1.0)]
    requests = run(stage, [0.0, 0.0, 0.25, 0.25, 0.8125], calibration, devices=devices)
    assert column(requests, "reason") == ["", "", "deadline", "", "deadline"]
    assert column(requests, "tries") == [1, 1, 1, 1, 2]
    assert column(requests, "gateway_out_s")[4] == 2.5, "told when the device looks"


def test_a_replica_that_lets_requests_time_out_is_ejected_and_comes_back() -> None:
    stage = a_fleet(2, upstream_timeout_s=1.5, eject_after=2, eject_s=10.0, retries_max=0)
    devices = [open_device(stage, a_calibration({1: (seconds,)})) for seconds in (4.0, 0.125)]
    arrivals_s = [0.5 * n for n in range(40)]
    requests = run(stage, arrivals_s, a_calibration(ALWAYS_S), devices=devices)
    lost = requests.filter(pl.col("reason") == "upstream_timeout")
    assert set(lost["replica"]) == {0}
    sent_s = requests.filter(pl.col("replica") == 0)["gateway_in_s"].to_list()
    second_s = sorted(lost["gateway_out_s"])[1]
    assert not [at_s for at_s in sent_s if second_s < at_s < second_s + 10.0], "nothing is sent there meanwhile"
    assert [at_s for at_s in sent_s if at_s >= second_s + 10.0], "and then it is tried again"


def test_nobody_in_rotation_is_told() -> None:
    stage = a_fleet(1, upstream_timeout_s=1.0, eject_after=1, eject_s=5.0)
    devices = [open_device(stage, a_calibration({1: (4.0,)}))]
    requests = run(stage, [0.0, 2.0], a_calibration(ALWAYS_S), devices=devices)
    assert column(requests, "reason") == ["upstream_timeout", "no_replica"]


# ---- fleets --------------------------------------------------------------------------------------------------


T4, A100 = "t4-resnet50-fp16-pytorch", "a100-resnet50-tf32-tensorflow"


def unequal(**overrides: Any) -> Stage:
    fleet = {"fleet.replicas": 3, "fleet.profiles": [T4, A100], "overload": True}
    return load_stage("load-balanced", fleet | overrides)


def test_unequal_replicas_take_the_times_of_their_own_devices() -> None:
    stage = unequal(**{"traffic.duration_s": 20.0})
    records = simulate(stage)
    labels = dict(records.replicas.select("replica", "device").iter_rows())
    assert labels == {number: device_label(of_replica(stage, number)) for number in range(3)}
    assert labels[0] == labels[2] != labels[1]
    took = records.batches.with_columns(took_s=pl.col("finished_s") - pl.col("started_s"))
    for number in range(3):
        device = open_device(of_replica(stage, number))
        for size, took_s in took.filter(pl.col("replica") == number).select("batch_size", "took_s").iter_rows():
            assert took_s == pytest.approx(device.service_time_s(size))
    assert capacity_rps(stage) == pytest.approx(
        sum(capacity_rps(stage.model_copy(update=_alone(stage, number))) for number in range(3))
    )


def _alone(stage: Stage, number: int) -> dict[str, Any]:
    return {"device": of_replica(stage, number).device, "fleet": Fleet(), "gateway": None}


def test_each_kind_of_device_has_the_times_of_its_own_sweep() -> None:
    stage = unequal()
    first, second = (device_label(of_replica(stage, number)) for number in range(2))
    swept = {first: 0.5, second: 0.25}
    times = {
        label: tuple(ServiceTimes(batch_size=n, quantiles_s=(seconds,)) for n in range(1, 9))
        for label, seconds in swept.items()
    }
    calibration = a_calibration({1: (1.0,)}).model_copy(
        update={"device": first, "service_times": times[first], "other_devices": {second: times[second]}}
    )
    for number, seconds in enumerate((0.5, 0.25, 0.5)):
        assert open_device(of_replica(stage, number), calibration).service_time_s(3) == seconds
    notes = " ".join(beyond_calibration(stage, calibration))
    assert "not on" not in notes
    without = calibration.model_copy(update={"other_devices": {}})
    assert f"not on {second}" in " ".join(beyond_calibration(stage, without))


def test_the_gateways_loop_bounds_the_capacity_of_a_large_fleet() -> None:
    calibration = costing(a_calibration({1: (0.01,)}), busy_s=0.004)
    assert capacity_rps(a_fleet(2), calibration) == pytest.approx(200.0)
    assert capacity_rps(a_fleet(4), calibration) == pytest.approx(250.0)


def test_several_replicas_without_a_gateway_are_refused_in_words() -> None:
    devices = [open_device(a_stage(), a_calibration(ALWAYS_S)) for _ in range(2)]
    with pytest.raises(ValueError, match="must be 1 without a"):
        simulate(a_stage(), a_schedule([0.0]), calibration=a_calibration(ALWAYS_S), devices=devices)


def test_a_key_stays_with_its_replica_while_that_has_room() -> None:
    stage = a_fleet(4, policy="sticky", sticky_load_bound=100.0)
    items = np.arange(60) % 6
    schedule = Schedule(np.arange(60, dtype=np.float64) * 2.0, items, 120.0)
    requests = simulate(stage, schedule, calibration=a_calibration(ALWAYS_S)).requests
    assert requests.group_by("item").agg(pl.col("replica").n_unique())["replica"].to_list() == [1] * 6
    assert requests["replica"].n_unique() > 1


@pytest.mark.parametrize(("engine", "replicas"), [("rung", 2), ("nginx", 1)])
def test_nginx_bounds_no_load_of_a_key(engine: str, replicas: int) -> None:
    requests = run(a_fleet(2, policy="sticky", engine=engine), [0.0] * 8)
    assert requests["replica"].n_unique() == replicas


# ---- drills, and replicas that come and go -------------------------------------------------------------------


def slowed(records: Records, replica: int) -> list[float]:
    own = records.batches.filter(pl.col("replica") == replica)
    return (own["finished_s"] - own["started_s"]).to_list()


def test_a_device_is_slow_from_its_next_batch_on() -> None:
    """The batch that is under way at 2.5 s ends as it would have."""
    records = simulate(
        a_fleet(2),
        a_schedule([0.0, 0.0, 2.0, 2.0, 3.0, 3.0]),
        calibration=a_calibration(ALWAYS_S),
        slowdowns=[Slowdown(replica=1, factor=4.0, from_s=2.5)],
    )
    assert slowed(records, 0) == [1.0, 1.0, 1.0]
    assert slowed(records, 1) == [1.0, 1.0, 4.0]


def test_a_single_replica_is_slowed_too() -> None:
    slowdowns = [Slowdown(replica=0, factor=4.0, from_s=1.5)]
    schedule = a_schedule([0.0, 1.0, 2.0])
    records = simulate(a_stage(), schedule, calibration=a_calibration(ALWAYS_S), slowdowns=slowdowns)
    assert slowed(records, 0) == [1.0, 1.0, 4.0]
    by_event = simulate(
        *(a_stage(), schedule), calibration=a_calibration(ALWAYS_S), serve=serve_by_event, slowdowns=slowdowns
    )
    assert records.batches.equals(by_event.batches)


def test_policies_that_look_avoid_the_slow_one_and_taking_turns_does_not() -> None:
    slowdowns = [Slowdown(replica=0, factor=4.0, from_s=5.0)]
    shares = {}
    for policy in ("round-robin", "least-outstanding", "latency-weighted", "learned"):
        stage = load_stage(
            "load-balanced", {"gateway.policy": policy, "traffic.duration_s": 20.0, "traffic.rate.rate_rps": 70.0}
        )
        late = simulate(stage, slowdowns=slowdowns).requests.filter(pl.col("scheduled_s") > 7.0)
        shares[policy] = late.filter(pl.col("replica") == 0).height / late.height
    assert shares["round-robin"] == pytest.approx(0.5, abs=0.1)
    assert all(share < 0.35 for policy, share in shares.items() if policy != "round-robin"), shares


def fleet_of(stage: Stage, replicas: int) -> tuple[Environment, Gateway]:
    env = Environment()
    gateway = Gateway(stage, env, HostCosts(), None, seed=1)
    for number in range(replicas):
        gateway.join(number, a_device())
    return env, gateway


def a_device() -> Device:
    return open_device(a_stage(), a_calibration(ALWAYS_S))


def at(env: Environment, time_s: float, call: Any, *args: Any) -> None:
    At(env, time_s).add_callback(lambda _: call(*args))


def test_a_replica_that_leaves_gets_nothing_more_and_loses_nothing() -> None:
    env, gateway = fleet_of(a_fleet(2), 2)
    for number, sent_s in enumerate([0.0, 0.0, 0.25, 0.25, 0.5, 0.75]):
        at(env, sent_s, gateway.submit, number)
    gone_s: list[float] = []

    def leave() -> None:
        gateway.leave(1).callbacks.append(lambda _: gone_s.append(env.now))

    at(env, 0.375, leave)
    env.run()
    log = gateway.log()
    assert log.replicas.tolist() == [0, 1, 0, 1, 0, 0]
    assert log.reasons == [""] * 6
    assert gone_s == [2.0], "its two requests are back"
    first, second = gateway.lives()
    assert {life.number: life.stopped_s for life in (first, second)} == {1: 2.0, 0: None}


def test_a_replica_that_joins_is_chosen_from_then_on() -> None:
    env, gateway = fleet_of(a_fleet(1), 1)
    for number in range(4):
        at(env, float(number), gateway.submit, number)
    at(env, 1.5, gateway.join, 7, a_device(), 0.5)
    env.run()
    assert gateway.log().replicas.tolist() == [0, 0, 7, 0]
    joined = next(life for life in gateway.lives() if life.number == 7)
    assert (joined.started_s, joined.ready_s, joined.stopped_s) == (0.5, 1.5, None)
