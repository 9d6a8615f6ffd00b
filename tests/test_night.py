"""Night work: when a backlog is done with how many workers, for how much, and what interruptions do to it."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from simulator.cli import app
from simulator.night import LIMIT_S, Machine, bill_of, cheapest, nights, work_off
from simulator.night_scaled import work_off_scaled
from stages.cost import Cost, usd_per_hour
from stages.night import Night, contracted, seconds_of, workers_of
from stages.prices import find
from stages.spec import Stage, load_stage
from tests.made import a_calibration, a_stage

FOURS = a_calibration({1: (1.0,), 4: (2.0,)})


def price_of(machine: str, pricing: str = "on-demand") -> float:
    row = find(machine, pricing)
    assert row is not None
    return row.usd_per_hour


def a_night_stage(**queue: Any) -> Stage:
    return a_stage(batching={"max_batch_size": 4, "batch_wait_timeout_s": 0.1}, queue={"lease_s": 30.0, **queue})


@pytest.mark.parametrize(("workers", "done_s"), [(1, 20.0), (2, 10.0), (3, 8.0), (10, 2.0)])
def test_a_backlog_takes_as_many_batches_as_it_has(workers: int, done_s: float) -> None:
    worked = work_off(a_night_stage(), 40, workers, FOURS, seed=1)
    assert worked.done_s == pytest.approx(done_s)
    assert [machine.worker for machine in worked.machines] == list(range(workers))
    assert worked.machine_s == pytest.approx(workers * done_s)
    assert (worked.stored, worked.dead, worked.interruptions) == (40, 0, 0)


def test_a_cold_start_comes_before_all_work_and_is_paid() -> None:
    stage = load_stage("queued")
    assert stage.scaling is not None
    cold_s = stage.scaling.cold_start.total_s
    worked = work_off(stage, 80, 1, None, seed=1)
    warm = work_off(stage.model_copy(update={"scaling": None}), 80, 1, None, seed=1)
    assert worked.done_s == pytest.approx(cold_s + warm.done_s)
    assert worked.machines == (Machine(0, 0.0, cold_s, worked.done_s),)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 5), st.floats(0.0, 60.0), st.integers(0, 1000))
def test_whatever_is_taken_away_all_is_done_or_dead(backlog: int, workers: int, rate: float, seed: int) -> None:
    stage = a_night_stage(attempts_max=3)
    worked = work_off(stage, backlog, workers, FOURS, seed, rate)
    assert worked.done_s < LIMIT_S
    assert worked.stored + worked.dead == backlog
    assert worked.done_s >= worked.stored * 0.5 / workers - 1e-9  # all the time in full batches, four in two seconds
    assert worked.over_s == worked.done_s
    for number in range(workers):  # a machine a worker at a time, one after the other
        own = [machine for machine in worked.machines if machine.worker == number]
        assert own[0].ordered_s == 0.0
        assert all(one.ended_s == other.ordered_s for one, other in pairwise(own))
    assert worked == work_off(stage, backlog, workers, FOURS, seed, rate)


def test_interruptions_cost_time_and_come_from_a_stream_of_their_own() -> None:
    stage = a_night_stage(attempts_max=100)
    calm = work_off(stage, 2000, 2, FOURS, seed=1)
    found = [work_off(stage, 2000, 2, FOURS, seed, 30.0) for seed in range(10)]
    assert all(each.stored == 2000 for each in found)
    hours = sum(each.machine_s for each in found) / 3600.0
    assert sum(each.interruptions for each in found) == pytest.approx(30.0 * hours, rel=0.5)
    assert sum(each.done_s for each in found) > 10 * calm.done_s
    assert len({each.done_s for each in found}) > 1


def test_nights_are_compared_by_time_and_price() -> None:
    stage = load_stage("queued")
    backlog = 800
    rows = nights(stage, Night(backlog, (1, 2, 4), deadline_s=60.0, spot=True, interruptions_per_hour=0.5), None)
    assert [(row.workers, row.pricing) for row in rows] == [
        (workers, pricing) for workers in (1, 2, 4) for pricing in ("on-demand", "spot")
    ]
    on_demand, spot = rows[::2], rows[1::2]
    assert [row.nights for row in on_demand] == [1] * 3
    assert all(row.nights > 10 for row in spot)
    done_s = [row.done_s.mean for row in on_demand]
    assert done_s == sorted(done_s, reverse=True)
    for row, cheap in zip(on_demand, spot, strict=True):
        assert row.usd is not None
        assert cheap.usd is not None
        hours = row.workers * row.done_s.mean / 3600.0
        worker, api = (each.usd for each in row.bill)
        assert [each.component for each in row.bill] == ["worker", "jobs API"]
        assert worker == pytest.approx(hours * price_of("aws/g4dn.xlarge"))
        assert api == pytest.approx(row.done_s.mean / 3600.0 * price_of("aws/c5.xlarge"))
        assert row.usd.mean == pytest.approx(worker + api)
        assert cheap.usd.lowest < row.usd.mean
        assert row.in_time_share == float(row.done_s.mean <= 60.0)
    best = cheapest(rows)
    in_time = [row for row in rows if row.in_time_share == 1.0 and row.usd]
    if best is None:
        assert not in_time
    else:
        assert best in in_time
        assert best.usd is not None
        assert all(best.usd.mean <= row.usd.mean for row in in_time if row.usd)


def test_a_night_in_which_nothing_is_taken_away_is_the_calm_one() -> None:
    stage, rate = load_stage("queued", {"queue.attempts_max": 100}), 20.0
    (_, spot) = nights(stage, Night(800, (2,), spot=True, interruptions_per_hour=rate), None, seed=5)
    each = [work_off(stage, 800, 2, None, seed, rate) for seed in range(5, 5 + spot.nights)]
    assert 0 < sum(worked.interruptions > 0 for worked in each) < spot.nights  # some are calm, and some are not
    assert spot.done_s.mean == pytest.approx(sum(worked.done_s for worked in each) / spot.nights)
    assert spot.interruptions == pytest.approx(sum(worked.interruptions for worked in each) / spot.nights)


def test_a_backlog_that_the_queue_does_not_hold_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"queue\.max_depth: must be at least the backlog"):
        nights(a_night_stage(max_depth=10), Night(11, (1,)), FOURS)


def test_every_component_is_on_a_nights_bill() -> None:
    stage = load_stage("queued", {"queue.broker": "redis"})
    worked = work_off(stage, 400, 3, None, seed=1)
    found = bill_of(stage, worked, spot=True)
    assert found is not None
    assert [item.component for item in found.items] == ["worker", "jobs API", "broker"]
    assert found.items[0].machine.startswith("aws/g4dn.xlarge, spot")
    hours = worked.done_s / 3600.0
    expected = 3 * price_of("aws/g4dn.xlarge", "spot") + 2 * price_of("aws/c5.xlarge")
    assert found.usd == pytest.approx(hours * expected)
    assert not any("taken to stay" in note for note in found.notes)
    unpriced = bill_of(load_stage("queued", {"cost.host_machine": None}), worked, spot=False)
    assert unpriced is not None
    assert math.isnan(unpriced.items[1].usd)
    assert unpriced.usd == pytest.approx(3 * hours * price_of("aws/g4dn.xlarge"))
    assert any("Without the machine of jobs API" in note for note in unpriced.notes)
    assert bill_of(load_stage("queued", {"cost": None}), worked, spot=False) is None


def test_an_autoscaler_brings_workers_from_nobody_and_sends_them_away_when_all_is_done() -> None:
    stage = load_stage("queued")
    scaling = stage.scaling
    assert scaling is not None
    backlog = 4000
    worked = work_off_scaled(stage, backlog, None, seed=1, keep_times=True)
    assert (worked.stored, worked.dead, len(worked.finished_s)) == (backlog, 0, backlog)
    assert len(worked.machines) == scaling.max_replicas  # 4000 jobs wait, one for each hundred
    ordered_s = min(machine.ordered_s for machine in worked.machines)
    assert 0.0 < ordered_s <= scaling.polling_interval_s + scaling.interval_s
    for machine in worked.machines:
        assert machine.ready_s == pytest.approx(machine.ordered_s + scaling.cold_start.total_s)
    assert max(wanted for _, wanted in worked.wanted) == scaling.max_replicas
    assert worked.wanted[-1][1] == scaling.min_replicas == 0
    idles_s = worked.over_s - worked.done_s  # and is paid until the rule sends the last one away
    assert idles_s >= scaling.cooldown_s - scaling.polling_interval_s
    calm = work_off(stage, backlog, scaling.max_replicas, None, seed=1)
    assert worked.done_s == pytest.approx(calm.done_s + ordered_s, abs=scaling.interval_s)


def test_nobody_comes_without_an_autoscaler() -> None:
    with pytest.raises(ValueError, match="scaling: is required"):
        work_off_scaled(load_stage("queued", {"scaling": None}), 10, None, seed=1)


def test_contracts_are_of_the_same_machine() -> None:
    for cost in (Cost(machine="aws/g4dn.xlarge"), Cost(machine="aws-g4dn.xlarge-spot", pricing="spot")):
        for spot, pricing in ((True, "spot"), (False, "on-demand")):
            assert usd_per_hour(contracted(cost, spot), 3) == price_of("aws/g4dn.xlarge", pricing)
    assert contracted(Cost(usd_per_hour=1.0), spot=False) == Cost(usd_per_hour=1.0)
    several = Cost(machines=("azure-nc6s-v3", "aws-g4dn.xlarge"))
    for cost in (Cost(machine="azure-nc6s-v3"), Cost(usd_per_hour=1.0), several):
        with pytest.raises(ValueError, match="must be a machine with a spot price"):
            contracted(cost, spot=True)


@pytest.mark.parametrize(("text", "seconds"), [("8h", 28_800.0), ("30m", 1800.0), ("1.5 h", 5400.0), ("45", 45.0)])
def test_times_are_read(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "0h", "8 hours", "-1s", "h", "1e9h", "200d"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--deadline: must be a time of more than 0 seconds and at most 115 days"):
        seconds_of(text)


def test_workers_are_read() -> None:
    assert workers_of("4") == (4,)
    assert workers_of("1..3") == (1, 2, 3)
    for text in ("", "0", "3..1", "1-3", "1..9999", "many"):
        with pytest.raises(ValueError, match="--workers: must be"):
            workers_of(text)


def rung_simulate(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_verb_prints_a_table_and_json() -> None:
    asked = ("queued", "--backlog", 200, "--deadline", "8h", "--workers", "1..2")
    result = rung_simulate(*asked)
    assert result.exit_code == 0, result.output
    assert "The cheapest that was in time every night: " in result.stdout
    assert "due in 8 h 00 min" in result.stdout
    said = " ".join(result.stdout.split())
    assert "Dollars are of worker: aws/g4dn.xlarge, on-demand, us-east-1; jobs API: 0.17 US dollars an hour" in said
    assert "8 times slower than the one that is paid" in said
    told = json.loads(rung_simulate(*asked, "--spot", "--interruptions", 1, "--json").stdout)
    assert [(row["workers"], row["pricing"]) for row in told["rows"]] == [
        (1, "on-demand"),
        (1, "spot"),
        (2, "on-demand"),
        (2, "spot"),
    ]
    assert told["night"]["deadline_s"] == 28_800.0
    assert told["cheapest"]["pricing"] == "spot"
    assert any("1 times an hour" in note for note in told["notes"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["single-vm", "--backlog", "10"], "needs a stage with a [queue]"),
        (["queued", "--backlog", "0"], "must be 1 to 10,000,000 jobs, got 0. There would be no night's work"),
        (["queued", "--backlog", "20000000"], "got 20000000. They would not fit into memory"),
        (["queued", "--deadline", "8h"], "got no --backlog"),
        (["queued", "--backlog", "10", "--deadline", "soon"], "--deadline: must be a time"),
        (["queued", "--backlog", "10", "--workers", "none"], "--workers: must be"),
        (["queued", "--backlog", "10", "--interruptions", "1"], "got no --spot"),
        (["queued", "--backlog", "10", "--spot", "--interruptions", "1e6"], "--interruptions: must be 0 to 60"),
        (["queued", "--backlog", "10", "--rate", "5"], "stands in for traffic"),
        (["queued", "--backlog", "10", "--beside-set", "model.memory_gib=6"], "stands in for traffic"),
        (["queued", "--backlog", "200000"], "queue.max_depth: must be at least the backlog"),
        (["queued", "--backlog", "10", "--spot", "--set", "cost="], "cost: is required for --spot"),
    ],
)
def test_mistakes_are_answered_in_words(arguments: list[str], said: str) -> None:
    result = rung_simulate(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "Traceback" not in result.output
