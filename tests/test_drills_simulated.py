"""What the simulator says of a failure: who notices, who is out of rotation, what becomes of every request.

Failure ─▶ drilled ─▶ record, rotation
"""

from __future__ import annotations

import itertools
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simpy import Environment

from loadtests import drill
from loadtests.drill_watch import Plan
from simulator.batcher import Batcher, Request
from simulator.device import open_device
from simulator.drilled import Restart, drilled
from simulator.drills import Failure
from simulator.line import RESEND_S, Line, resent_s
from stages.spec import Admission, Batching
from tests.drill_cases import AT_S, FOR_S, a_failure, a_fleet, outage, reasons, retries
from tests.made import a_calibration, a_stage


def test_without_a_second_try_a_kill_loses_what_is_there_and_what_comes_before_it_is_seen() -> None:
    stage, arrivals = a_fleet(**{"gateway.retries_max": 0, "gateway.retry_budget_share": None})
    found = drilled(stage, arrivals, a_failure("kill"), None)
    lost = found.records.requests.filter(pl.col("outcome") != "ok")
    assert set(lost["reason"].cast(pl.String)) <= {"upstream_lost", "connection"}
    assert lost.filter(pl.col("reason") == "upstream_lost").height >= stage.gateway.eject_after  # type: ignore[union-attr]
    assert set(lost["outcome"].cast(pl.String)) == {"failed"}
    assert lost["gateway_out_s"].min() >= AT_S  # type: ignore[operator]
    assert lost["gateway_in_s"].max() <= AT_S + 0.1  # type: ignore[operator]


def test_with_a_second_try_nobody_notices_a_kill() -> None:
    stage, arrivals = a_fleet()
    found = drilled(stage, arrivals, a_failure("kill"), None)
    assert reasons(found) == {"": arrivals.arrivals_s.size}
    assert retries(found) >= stage.gateway.eject_after  # type: ignore[union-attr]
    assert outage(found) == pytest.approx((0.0, FOR_S), abs=0.03)
    assert [(row["replica"], row["started_s"]) for row in found.records.replicas.iter_rows(named=True)] == [
        (0, 0.0),
        (0, AT_S),
        (1, 0.0),
    ]
    while_away = found.records.requests.filter(pl.col("gateway_in_s").is_between(AT_S + 0.1, AT_S + FOR_S))
    assert set(while_away["replica"]) == {1}
    assert 0 in set(found.records.requests.filter(pl.col("gateway_in_s") > AT_S + FOR_S)["replica"])


@pytest.mark.parametrize("probe_phase", [0.05, 0.5, 0.95])
def test_probes_find_one_that_hangs_and_find_it_well_again(probe_phase: float) -> None:
    stage, arrivals = a_fleet()
    gateway = stage.gateway
    assert gateway is not None
    found = drilled(stage, arrivals, a_failure("hang"), None, probe_phase=probe_phase)
    out_s, back_s = outage(found)
    least_s = (gateway.unhealthy_after - 1) * gateway.probe_interval_s + gateway.probe_timeout_s
    assert least_s <= out_s <= least_s + gateway.probe_interval_s + 0.02
    again_s = (gateway.healthy_after - 1) * gateway.probe_interval_s
    assert FOR_S + again_s - gateway.probe_timeout_s <= back_s <= FOR_S + again_s + gateway.probe_interval_s + 0.02
    assert reasons(found) == {"": arrivals.arrivals_s.size}  # clients wait longer than it hangs
    took_s = found.records.requests["replied_s"] - found.records.requests["scheduled_s"]
    assert FOR_S < took_s.max() < FOR_S + 1.0  # type: ignore[operator]
    batches = found.records.batches.filter(pl.col("replica") == 0)
    assert batches.filter(pl.col("started_s").is_between(AT_S, AT_S + FOR_S, "none")).is_empty()


def test_one_that_hangs_for_less_than_its_probes_wait_stays_in_rotation() -> None:
    stage, arrivals = a_fleet()
    found = drilled(stage, arrivals, a_failure("hang", for_s=0.4), None)
    assert all(0 in inside for _, inside in found.looks)
    assert reasons(found) == {"": arrivals.arrivals_s.size}


def test_a_slow_one_passes_its_probes_and_is_passed_by() -> None:
    stage, arrivals = a_fleet()
    found = drilled(stage, arrivals, a_failure("slow", factor=10.0), None)
    assert all(inside == {0, 1} for _, inside in found.looks)
    batches = found.records.batches.filter(pl.col("replica") == 0).with_columns(
        (pl.col("finished_s") - pl.col("started_s")).alias("took_s")
    )
    within = pl.col("started_s").is_between(AT_S, AT_S + FOR_S, "left")
    full = batches.filter(pl.col("batch_size") == 8)
    slow_s, usual_s = full.filter(within)["took_s"].min(), full.filter(~within)["took_s"].max()
    assert slow_s == pytest.approx(10.0 * usual_s, rel=1e-9)  # type: ignore[operator]
    counts = found.records.requests.filter(pl.col("gateway_in_s").is_between(AT_S, AT_S + FOR_S))["replica"]
    assert (counts == 0).sum() < 0.4 * counts.len()


def test_one_that_refuses_is_ejected_at_once_and_its_probes_keep_it_out() -> None:
    stage, arrivals = a_fleet()
    gateway = stage.gateway
    assert gateway is not None
    found = drilled(stage, arrivals, a_failure("refuse"), None)
    out_s, back_s = outage(found)
    assert out_s <= 0.05
    assert back_s >= max(FOR_S, gateway.eject_s)
    assert back_s <= FOR_S + (gateway.healthy_after + 1) * gateway.probe_interval_s
    assert reasons(found) == {"": arrivals.arrivals_s.size}
    assert retries(found) >= gateway.eject_after


def test_one_that_is_cut_off_answers_late_and_new_connections_go_elsewhere() -> None:
    stage, arrivals = a_fleet(**{"gateway.policy": "random", "traffic.timeout_s": 3.0, "traffic.rate.rate_rps": 100.0})
    gateway = stage.gateway
    assert gateway is not None
    found = drilled(stage, arrivals, a_failure("cut"), None)
    told = reasons(found)
    assert set(told) == {"", "client_timeout"}
    assert 0 < told["client_timeout"] < arrivals.arrivals_s.size
    assert retries(found) > 0
    again = found.records.requests.filter((pl.col("tries") == 2) & (pl.col("outcome") == "ok"))
    waited_s = again["replied_s"] - again["gateway_in_s"]
    assert again.height and waited_s.min() >= gateway.connect_timeout_s  # type: ignore[operator]


def test_a_rolling_restart_loses_nothing_and_replaces_all() -> None:
    stage, arrivals = a_fleet()
    found = drilled(stage, arrivals, Restart(AT_S, 2.0), None)
    assert reasons(found) == {"": arrivals.arrivals_s.size}
    assert found.looks[-1][1] == {2, 3}
    assert min(len(inside) for _, inside in found.looks) == 2
    assert found.done_s is not None and 4.0 <= found.done_s - AT_S < 5.0
    assert {life["replica"]: life["stopped_s"] < 10.0 for life in found.records.replicas.iter_rows(named=True)} == {
        0: True,
        1: True,
        2: False,
        3: False,
    }


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from(["kill", "hang", "slow", "refuse", "cut"]),
    replica=st.integers(0, 2),
    at_s=st.floats(0.5, 3.0),
    for_s=st.floats(0.1, 3.0),
    policy=st.sampled_from(["round-robin", "random", "least-outstanding", "power-of-two", "learned"]),
    retries_max=st.integers(0, 2),
    phase=st.floats(0.0, 1.0),
)
def test_every_request_has_one_end_and_its_times_are_in_order(
    kind: Any, replica: int, at_s: float, for_s: float, policy: str, retries_max: int, phase: float
) -> None:
    overrides = {"fleet.replicas": 3, "gateway.policy": policy, "traffic.duration_s": 5.0, "traffic.timeout_s": 4.0}
    overrides |= {"gateway.retries_max": retries_max} | ({} if retries_max else {"gateway.retry_budget_share": None})
    overrides |= {"gateway.upstream_timeout_s": 2.0, "gateway.eject_s": 0.5, "traffic.rate.rate_rps": 200.0}
    stage, arrivals = a_fleet(**overrides)
    failure = Failure(kind, replica, at_s, for_s, noticed_s=min(0.05, for_s))
    found = drilled(stage, arrivals, failure, None, probe_phase=phase)
    requests = found.records.requests
    assert requests.height == arrivals.arrivals_s.size
    assert "unfinished" not in reasons(found)
    assert requests["replied_s"].null_count() == 0
    ok = requests.filter(pl.col("outcome") == "ok")
    order = ["gateway_in_s", "arrived_s", "started_s", "finished_s", "gateway_out_s", "replied_s"]
    for earlier, later in itertools.pairwise(order):
        assert (ok[later] - ok[earlier]).min() >= 0.0, (earlier, later)  # type: ignore[operator]
    assert (requests["tries"] <= retries_max + 1).all()
    if kind == "slow" and "upstream_timeout" not in reasons(found):  # such failures take it out of rotation
        assert all(inside == {0, 1, 2} for _, inside in found.looks)
    # One that thaws refuses what its queue has no room for; tried again with hardly any time left, that counts against
    # the replica that gets it then.
    if not (kind == "hang" and retries_max):
        assert all(inside >= {0, 1, 2} - {replica} for _, inside in found.looks)


def test_the_same_seed_gives_the_same_drill() -> None:
    stage, arrivals = a_fleet(**{"traffic.duration_s": 8.0})
    one, other = (drilled(stage, arrivals, a_failure("hang", for_s=2.0), None) for _ in range(2))
    assert one.records.requests.equals(other.records.requests)
    assert one.looks == other.looks


def test_a_device_that_is_held_up_hands_nothing_back_until_it_goes_on() -> None:
    env = Environment()
    stage = a_stage()
    device = open_device(stage, a_calibration({1: (1.0,)}))
    batcher, done = Batcher(Batching(), Admission(), env), []
    env.process(device.run(env, batcher, lambda batch, started_s, finished_s: done.append((started_s, finished_s))))
    go_on = env.event()
    for number in range(2):
        batcher.put(Request(number, 0.0, None, lambda _: None))
    env.timeout(0.5).callbacks.append(lambda _: device.hold(go_on))  # type: ignore[union-attr]
    env.timeout(4.0).callbacks.append(lambda _: go_on.succeed())  # type: ignore[union-attr]
    env.run()
    assert done == [(0.0, 4.0), (4.0, 5.0)]


def test_a_line_that_is_held_reads_what_came_meanwhile_when_it_goes_on() -> None:
    env, got, lost = Environment(), [], []
    line = Line(env, lambda request, _: got.append((env.now, request)), lambda *what: lost.append(what), 1.0)
    line.reach(0, 9.0, 1)
    line.breaks("held")
    line.reach(1, 9.0, 2)
    assert got == [(0, 0)]
    env.run(until=3.0)
    line.mends()
    assert got == [(0, 0), (3.0, 1)]
    line.breaks("refusing")
    line.reach(2, 9.0, 1)
    assert lost == [(2, "connection", False)]
    line.breaks("silent")
    line.reach(3, 9.0, 1)  # on the connection that there is: sent again after 0.2, 0.6, 1.4, 3.0 s
    line.reach(4, 9.0, 2)
    line.back(lambda: got.append((env.now, "answer")))
    env.run(until=5.0)
    assert lost[1:] == [(4, "upstream_timeout", False)]
    line.mends()
    env.run()
    assert got[2:] == [(pytest.approx(6.0), 3), (pytest.approx(6.0), "answer")]


@given(since_s=st.floats(0.0, 100.0), waits_s=st.floats(0.0, 100.0))
def test_what_was_not_heard_is_sent_again_after_twice_as_long_each_time(since_s: float, waits_s: float) -> None:
    marks_s = [RESEND_S * (2**n - 1) for n in range(1, 12)]
    next_s = resent_s(since_s, since_s + waits_s) - since_s
    assert min(abs(next_s - mark_s) for mark_s in marks_s) < 1e-6
    assert waits_s - 1e-6 <= next_s <= 2 * waits_s + RESEND_S + 1e-6


def test_the_inputs_that_are_sent_say_which_requests_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    stage, _ = a_fleet(**{"model.facts": {"crash_share": 0.5}, "traffic.duration_s": 10.0})
    plan = Plan("slow", 0, AT_S, FOR_S, 1.0, 0.5, True)
    for position, answered in ((0.6, True), (0.4, False)):
        monkeypatch.setattr(drill, "crash_positions", lambda _, position=position: lambda item: position)
        (found,) = drill.predict(stage, plan, None, 0.0, probes=1)
        assert ((found.records.requests["outcome"] == "ok") == answered).all()
