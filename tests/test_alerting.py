"""Alerts: the arithmetic of the rules, when they fire, and what both worlds read from the same story."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.alerts import readings, watch
from simulator.run import simulate
from stages.alerts import BURN_RATES, in_words, latency_bounds_of, limits_of, rules_of
from stages.calibration import GatewayCosts
from stages.policies.alerting import (
    Change,
    Limits,
    Reading,
    Rule,
    RuleSet,
    Status,
    after,
    burn_rate,
    latency_bounds_s,
    mean_queue_share,
    utilisation,
    value,
)
from stages.policies.histogram import quantile
from stages.records import REPLICAS
from stages.spec import Stage, load_stage
from tests import hand_made_runs
from tests.made import Run, a_calibration, a_schedule, a_stage, random_runs

DAYS_S = 86_400.0
LIMITS = Limits((0.1, 0.5, 1.0), 0.1, 10)
ERRORS = Rule("errors", "errors", 0.1, (3.0,), 2.0, "page")


def story(errors: list[float], per_s: float = 10.0) -> list[Reading]:
    """A reading a second; of `per_s` requests in each, this share goes wrong and the others are answered at once."""
    found, gone_wrong = [Reading(0.0, answers_within=(0.0,) * 4)], 0.0
    for second, share in enumerate(errors, start=1):
        gone_wrong += per_s * share
        answers = per_s * second - gone_wrong
        found.append(Reading(float(second), per_s * second, gone_wrong, (answers,) * 4))
    return found


def told(rules: tuple[Rule, ...], told: list[Reading], limits: Limits = LIMITS) -> list[tuple[str, str, float]]:
    asked = RuleSet(rules, limits)
    return [(change.alert, change.state, change.at_s) for reading in told for change in asked.ask(reading)]


def test_an_alert_waits_fires_and_is_resolved() -> None:
    seconds = [0.0] * 5 + [0.5] * 4 + [0.0] * 6
    assert told((ERRORS,), story(seconds)) == [
        ("errors", "pending", 6.0),  # 5 of the last 30
        ("errors", "firing", 8.0),
        ("errors", "resolved", 12.0),  # the last bad second has left the window
    ]


def test_an_alert_that_does_not_hold_for_long_enough_is_not_told_as_firing() -> None:
    short = Rule("errors", "errors", 0.4, (1.0,), 2.0, "page")
    assert told((short,), story([0.5, 0.5, 0.0, 0.5])) == [
        ("errors", "pending", 1.0),
        ("errors", "inactive", 3.0),
        ("errors", "pending", 4.0),
    ]


def test_without_a_wait_it_fires_at_once() -> None:
    at_once = Rule("errors", "errors", 0.4, (1.0,), 0.0, "page")
    assert told((at_once,), story([0.0, 0.5])) == [("errors", "firing", 2.0)]


@given(st.lists(st.booleans(), max_size=60), st.integers(0, 5))
def test_firing_means_above_for_so_long_without_a_break(above: list[bool], for_s: int) -> None:
    status = Status()
    for second, is_above in enumerate(above):
        status = after(status, is_above, float(second), float(for_s))
        run = next((n for n, past in enumerate(reversed(above[: second + 1])) if not past), second + 1)
        expected = "inactive" if run == 0 else "firing" if run > for_s else "pending"
        assert status.state == expected


def test_the_workbooks_burn_rates_spend_2_5_and_10_percent_of_a_months_budget() -> None:
    spent = [rate * long_s / (30 * DAYS_S) for _, rate, long_s, _, _ in BURN_RATES]
    assert spent == pytest.approx([0.02, 0.05, 0.10])
    assert [long_s / short_s for _, _, long_s, short_s, _ in BURN_RATES] == [12.0] * 3


def test_a_burn_rate_of_one_spends_the_budget_exactly() -> None:
    assert burn_rate(1000, 990, 0.99) == pytest.approx(1.0)
    assert burn_rate(1000, 856, 0.99) == pytest.approx(14.4)
    assert burn_rate(1000, 1000, 0.99) == 0.0


def test_a_burn_rate_is_over_with_its_short_window() -> None:
    rule = Rule("burn", "burn-rate", 5.5, (12.0, 1.0), 0.0, "page", 0.9)
    seconds = [0.0] * 3 + [1.0] * 9 + [0.0] * 5
    changes = told((rule,), story(seconds))
    # Of the long window 4 of 7 seconds are bad at 7 s, and most are for long after the short one is over it.
    assert changes == [("burn", "firing", 7.0), ("burn", "resolved", 13.0)]


def test_late_answers_burn_the_budget_too() -> None:
    now = Reading(1.0, 100.0, 0.0, (60.0, 100.0, 100.0, 100.0))
    rule = Rule("burn", "burn-rate", 1.0, (1.0,), 0.0, "page", 0.9)
    assert value(rule, [Reading(0.0, answers_within=(0.0,) * 4), now], LIMITS) == pytest.approx(4.0)


@pytest.mark.parametrize("signal", ["latency", "errors", "utilisation", "burn-rate"])
def test_where_there_is_nothing_to_measure_there_is_no_value(signal: Any) -> None:
    rule = Rule("a", signal, 0.0, (1.0,), 0.0, "page", 0.95)
    assert value(rule, [Reading(0.0, answers_within=(0.0,) * 4)], LIMITS) is None
    nothing_came = [Reading(0.0, 7.0, 1.0, (6.0,) * 4), Reading(1.0, 7.0, 1.0, (6.0,) * 4)]
    assert value(rule, nothing_came, LIMITS) is None
    assert told((rule,), [Reading(0.0, answers_within=(0.0,) * 4)]) == []


def test_the_share_of_a_queue_counts_the_room_of_the_replicas_there_are() -> None:
    window = [Reading(0.0, queue_length=10.0, replicas=1), Reading(1.0, queue_length=10.0, replicas=2), Reading(2.0)]
    assert mean_queue_share(window, 10) == pytest.approx((1.0 + 0.5) / 2)
    assert mean_queue_share([Reading(0.0)], 10) is None


def test_utilisation_is_over_the_time_that_devices_were_there() -> None:
    window = [
        Reading(10.0, device_busy_s=5.0, replicas=2),
        Reading(11.0, device_busy_s=6.0, replicas=2),
        Reading(12.0, device_busy_s=8.0, replicas=4),
    ]
    assert utilisation(window) == pytest.approx(3.0 / (2 + 3))


latencies = st.lists(
    st.sampled_from([0.0004, 0.003, 0.09, 0.1, 0.2, 0.25, 0.2501, 3.0, 70.0]), min_size=1, max_size=200
)


@given(latencies, st.sampled_from([0.05, 0.1, 0.25, 60.0]), st.sampled_from([0.5, 0.75, 0.95]))
def test_whether_a_percentile_is_above_a_threshold_is_exact(seen: list[float], above_s: float, share: float) -> None:
    bounds_s = latency_bounds_s([above_s])
    counts = [float(sum(latency_s <= bound_s for latency_s in seen)) for bound_s in (*bounds_s, float("inf"))]
    found = quantile(counts, bounds_s, share)
    assert found is not None
    within = sum(latency_s <= above_s for latency_s in seen)
    assert (found > above_s) == (within < share * len(seen))


some_readings = st.lists(
    st.tuples(st.integers(0, 20), st.integers(0, 5), st.integers(0, 10), st.integers(0, 3), st.sampled_from([1, 1, 2])),
    max_size=60,
)


@given(some_readings)
def test_what_is_forgotten_is_missed_by_no_window(rows: list[tuple[int, int, int, int, int]]) -> None:
    rules = (
        Rule("a", "errors", 0.1, (3.0,), 1.0, "page"),
        Rule("b", "burn-rate", 1.5, (11.0, 2.0), 0.0, "page", 0.9),
        Rule("c", "queue", 0.2, (5.0,), 0.0, "ticket"),
    )
    kept: list[Reading] = [Reading(0.0, answers_within=(0.0,) * 4)]
    asked = RuleSet(rules, LIMITS)
    asked.ask(kept[0])
    expected = {rule.name: Status() for rule in rules}
    for ok, errors, queued, replicas, pause_s in rows:
        last = kept[-1]
        answers = tuple(count + ok for count in last.answers_within)
        now = Reading(
            last.at_s + pause_s,
            last.requests + ok + errors,
            last.errors + errors,
            answers,
            queue_length=float(queued),
            replicas=replicas,
        )
        kept.append(now)
        asked.ask(now)
        for rule in rules:
            values = [
                value(rule, [each for each in kept if each.at_s >= now.at_s - window_s], LIMITS)
                for window_s in rule.windows_s
            ]
            above = all(found is not None and found > rule.above for found in values)
            expected[rule.name] = after(expected[rule.name], above, now.at_s, rule.for_s)
            assert asked.status(rule.name) == expected[rule.name]


def test_every_stage_has_rules_without_saying_so() -> None:
    names = [rule.name for rule in rules_of(load_stage("micro-batched"))]
    assert names == [
        *("latency", "errors", "queue", "utilisation"),
        *("burn-rate-fast", "burn-rate-slow", "burn-rate-leak"),
    ]
    fast = rules_of(load_stage("micro-batched"))[4]
    assert (fast.windows_s, fast.above, fast.share) == ((60.0, 5.0), 14.4, 0.95)  # an hour is a minute


def test_what_the_stage_says_counts() -> None:
    given = {
        "alerts.latency.above_s": 0.3,
        "alerts.latency.percentile": 99.0,
        "alerts.errors.enabled": False,
        "alerts.burn_rate.speedup": 30.0,
        "slo.share": 0.9,  # a budget of a tenth burns at most ten times as fast as allowed
    }
    stage = load_stage("micro-batched", given)
    rules = {rule.name: rule for rule in rules_of(stage)}
    assert list(rules) == ["latency", "queue", "utilisation", "burn-rate-slow", "burn-rate-leak"]
    assert (rules["latency"].above, rules["latency"].share) == (0.3, 0.99)
    assert rules["burn-rate-slow"].windows_s == (720.0, 60.0)
    assert {0.1, 0.3} <= set(latency_bounds_of(stage))
    assert limits_of(stage).max_queue_length == 64


def test_rules_are_worded_with_their_units() -> None:
    latency, errors, *_, leak = rules_of(load_stage("micro-batched"))
    assert in_words(latency, 0.25) == "p95 of the latency over 30 s: 0.25 s (alerts above 0.1 s)"
    assert in_words(errors) == "share of requests without an answer over 30 s (alerts above 5 %)"
    assert "over 4320 s and 360 s" in in_words(leak, 2.0)


# ---- readings of a run ----


def test_readings_are_what_the_metrics_would_have_shown() -> None:
    stage = a_stage(alerts={"interval_s": 0.5, "burn_rate": {"enabled": False}}, slo={"latency_s": 0.3})
    records = hand_made_runs.run([(0.6, 1.0, 2), (1.1, 1.6, 3)], window_s=2.0, wait_s=0.2, shed=4)
    found = list(readings(stage, records))
    assert [each.at_s for each in found] == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert [each.requests for each in found] == [0, 0, 6, 6, 9]  # the refused are back at 0.501
    assert [each.errors for each in found] == [0, 0, 4, 4, 4]
    assert [each.queue_length for each in found] == [0, 2, 3, 0, 0]
    assert [each.device_busy_s for each in found] == pytest.approx([0, 0, 0.4, 0.4, 0.9])
    assert [each.replicas for each in found] == [1] * 5
    bounds_s = latency_bounds_of(stage)
    within = [dict(zip((*bounds_s, None), each.answers_within, strict=True)) for each in found]
    # From its arrival at the replica, the first two took 0.6 s, the others 0.7 s.
    assert [each[0.5] for each in within] == [0] * 5
    assert [each[0.75] for each in within] == [0, 0, 2, 2, 5]
    assert [each[None] for each in within] == [0, 0, 2, 2, 5]


@settings(max_examples=40)
@given(random_runs())
def test_readings_count_every_request_once(run: Run) -> None:
    stage, schedule, calibration = run
    patient = stage.traffic.model_copy(update={"timeout_s": 3600.0})  # a refusal is still one for who has gone
    stage = stage.model_copy(
        update={"traffic": patient, "alerts": stage.alerts.model_copy(update={"interval_s": 0.25})}
    )
    records = simulate(stage, schedule, calibration=calibration)
    found = list(readings(stage, records))
    for earlier, later in pairwise(found):
        assert earlier.requests <= later.requests and earlier.errors <= later.errors
        assert all(before <= now for before, now in zip(earlier.answers_within, later.answers_within, strict=True))
        assert later.device_busy_s - earlier.device_busy_s >= -1e-9
    for each in found:
        assert each.answers_within[-1] == each.requests - each.errors
        assert list(each.answers_within) == sorted(each.answers_within)
        assert 0 <= each.queue_length <= stage.admission.max_queue_length
    last_s = found[-1].at_s
    rows = records.requests.rows(named=True)
    ended = [row for row in rows if (row["finished_s"] or row["replied_s"]) <= last_s]
    assert found[-1].requests == len(ended)


def test_where_there_is_a_gateway_its_times_count() -> None:
    stage = a_stage(
        alerts={"interval_s": 0.25, "burn_rate": {"enabled": False}},
        fleet={"replicas": 2},
        gateway={"policy": "round-robin"},
        slo={"latency_s": 0.3},
    )
    quantiles = {f"{name}_quantiles_s": (0.125,) for name in ("send", "forward", "back", "reply")}
    calibration = a_calibration({1: (0.25,)}).model_copy(update={"gateway": GatewayCosts.model_validate(quantiles)})
    records = simulate(stage, a_schedule([0.0, 0.0, 1.5, 1.5]), calibration=calibration)
    found = list(readings(stage, records))
    # Read by the gateway at 0.125 s; 0.125 s to the replica, 0.25 s there, and 0.125 s back.
    assert [each.requests for each in found] == [0, 0, 0, 2, 2, 2, 2]
    assert [each.replicas for each in found] == [2] * 7
    assert found[-1].device_busy_s == pytest.approx(0.5)
    within = dict(zip(latency_bounds_of(stage), found[-1].answers_within, strict=False))
    assert (within[0.3], within[0.5]) == (0.0, 2.0)


def a_bad_minute(**alerts: Any) -> tuple[Stage, list[Change]]:
    """Ten requests a second for a device that does 20, but 40 a second from 20 s to 40 s."""
    stage = a_stage(
        alerts={"burn_rate": {"speedup": 60.0}} | alerts,
        admission={"max_queue_length": 20},
        slo={"latency_s": 0.2},
        traffic={"rate": {"shape": "constant", "rate_rps": 20.0}},
    )
    calm = [n / 10 for n in range(800)]
    spike = [20.0 + n / 30 for n in range(600)]
    records = simulate(stage, a_schedule(sorted([*calm, *spike])), calibration=a_calibration({1: (0.05,)}))
    return stage, watch(stage, records)


def test_the_simulator_says_when_each_alert_would_have_fired() -> None:
    _, changes = a_bad_minute()
    at_s = {(change.alert, change.state): change.at_s for change in changes}
    for alert in ("latency", "errors", "queue", "burn-rate-fast", "burn-rate-slow"):
        assert 20.0 < at_s[alert, "firing"] < 42.0
        assert at_s[alert, "firing"] < at_s[alert, "resolved"] < 80.0
    # The queue of 20 is full after a second; its mean over 10 s is above 80 % some 8 s later, and that has to last.
    assert at_s["queue", "firing"] == at_s["queue", "pending"] + 10.0
    assert ("burn-rate-fast", "pending") not in at_s  # its two windows are its wait


def test_a_quiet_stage_has_no_alerts() -> None:
    stage = a_stage(alerts={"burn_rate": {"speedup": 60.0}}, slo={"latency_s": 0.2})
    records = simulate(stage, a_schedule([n / 10 for n in range(800)]), calibration=a_calibration({1: (0.05,)}))
    assert watch(stage, records) == []


def test_a_rule_that_is_switched_off_is_silent() -> None:
    _, changes = a_bad_minute(queue={"enabled": False})
    assert "queue" not in {change.alert for change in changes}


@pytest.mark.parametrize(
    ("tables", "counted"),
    [
        ({}, 3),  # a lone replica answers those who have left, too
        ({"gateway": {"policy": "round-robin"}}, 2),
        ({"gateway": {"policy": "round-robin", "engine": "nginx"}}, 3),
        ({"queue": {}}, 2),
    ],
)
def test_our_own_doors_do_not_count_who_has_left(tables: dict[str, dict[str, Any]], counted: int) -> None:
    stage = a_stage(
        alerts={"interval_s": 1.0, "burn_rate": {"enabled": False}},
        batching={"max_batch_size": 1, "batch_wait_timeout_s": 0.0},
        traffic={"timeout_s": 1.5},
        **tables,
    )
    records = simulate(stage, a_schedule([0.0, 0.0, 4.0, 6.0]), calibration=a_calibration({1: (1.0,)}))
    assert records.requests["reason"].to_list() == ["", "client_timeout", "", ""]
    assert [each.requests for each in readings(stage, records)][-1] == counted


def test_a_replica_that_was_stopped_in_its_cold_start_is_not_taken_off_the_others() -> None:
    stage = a_stage(alerts={"interval_s": 0.5, "burn_rate": {"enabled": False}})
    records = hand_made_runs.run([(0.6, 1.0, 2)], window_s=2.0)
    cancelled = pl.DataFrame([(1, hand_made_runs.DEVICE, 0.25, None, 1.0)], schema=REPLICAS, orient="row")
    records = replace(records, replicas=pl.concat([records.replicas, cancelled]))
    assert [each.replicas for each in readings(stage, records)] == [1] * 5
