"""A simulated gateway with two versions: who gets which, what it costs, and when the challenger is out."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from simpy import Environment

from simulator.rehearsed import rehearsed, stop_of
from simulator.run import capacity_rps, simulate
from simulator.splitter import Splitter
from stages.arms import records_of
from stages.calibration import GatewayCosts
from stages.metrics import summarise
from stages.policies.splitting import Wanted, bucket
from stages.records import Records
from stages.spec import Stage, fleet_label
from stages.traffic import Schedule, schedule
from tests.made import a_calibration, a_schedule, a_stage

T4, A100 = "t4-resnet50-fp16-pytorch", "a100-resnet50-fp16-tensorflow"
QUICK = a_calibration(dict.fromkeys(range(1, 9), (1 / 64,)))


def a_split(replicas: int = 2, rate_rps: float = 40.0, duration_s: float = 60.0, **split: Any) -> Stage:
    guardrails = split.pop("guardrails", None)
    feedback = split.pop("feedback", None)
    tables: dict[str, Any] = {"split": split if guardrails is None else split | {"guardrails": guardrails}}
    if feedback is not None:
        tables["feedback"] = feedback
    return a_stage(
        fleet={"replicas": replicas},
        gateway={"policy": "round-robin"},
        slo={"latency_s": 1.0},
        traffic={
            "rate": {"shape": "constant", "rate_rps": rate_rps},
            "duration_s": duration_s,
            "users": 500,
            "items": {"count": 100_000},
            "timeout_s": 30.0,
        },
        **tables,
    )


def arms(records: Records) -> list[str]:
    return records.requests["arm"].cast(pl.String).to_list()


def test_every_user_gets_the_arm_of_its_bucket_and_that_arms_replicas() -> None:
    stage = a_split(challenger_share=0.3, salt="a-salt")
    arrivals = schedule(stage.traffic)
    assert arrivals.users is not None
    records = simulate(stage, arrivals, calibration=QUICK)
    expected = ["challenger" if bucket(str(user), "a-salt") < 0.3 else "champion" for user in arrivals.users]
    assert arms(records) == expected
    replicas = records.requests.group_by("arm").agg(pl.col("replica").unique().sort()).sort("arm")
    assert replicas["replica"].to_list() == [[0, 1], [2]]
    counts = records.requests.filter(pl.col("arm") == "champion")["replica"].value_counts().sort("replica")["count"]
    assert abs(counts[0] - counts[1]) <= 1, "within an arm the policy shares out as it does without a split"


def test_strangers_are_split_by_their_request() -> None:
    stage = a_split(challenger_share=0.5, key="request")
    records = simulate(stage, calibration=QUICK)
    numbers = range(records.requests.height)
    assert arms(records) == ["challenger" if bucket(str(n), "") < 0.5 else "champion" for n in numbers]


def test_a_closed_loop_splits_its_users() -> None:
    stage = a_split(challenger_share=0.5)
    closed = stage.model_copy(
        update={"traffic": stage.traffic.model_copy(update={"loop": "closed", "users": 20, "duration_s": 20.0})}
    )
    records = simulate(closed, calibration=QUICK)
    own = sum(bucket(str(user), "") < 0.5 for user in range(20)) / 20
    share = arms(records).count("challenger") / records.requests.height
    assert share == pytest.approx(own, abs=0.1)


def test_without_a_split_records_have_no_arm() -> None:
    stage = a_split().model_copy(update={"split": None})
    assert set(arms(simulate(stage, calibration=QUICK))) == {""}


def test_an_arm_that_is_slower_is_slower_alone() -> None:
    facts = {"service_time_factor": 4.0}
    records = simulate(a_split(challenger_share=0.3, challenger_facts=facts), calibration=QUICK)
    plain = simulate(a_split(challenger_share=0.3), calibration=QUICK)
    stage = a_split(challenger_share=0.3)
    for arm, factor in (("champion", 1.0), ("challenger", 4.0)):
        slow, quick = (records_of(each, stage, arm).batches for each in (records, plain))
        seconds = [(each["finished_s"] - each["started_s"]).mean() for each in (slow, quick)]
        assert seconds[0] == pytest.approx(factor * seconds[1])
    assert_frame_equal(records_of(records, stage, "champion").requests, records_of(plain, stage, "champion").requests)


def test_arms_of_unequal_devices_are_named_and_carry_what_they_can() -> None:
    device = {"kind": "emulated", "profile": T4}
    split = {"challenger_share": 0.25, "challenger_profile": A100}
    traffic = {"rate": {"shape": "constant", "rate_rps": 10.0}}
    stage = a_stage(device=device, fleet={"replicas": 2}, gateway={}, split=split, traffic=traffic)
    assert fleet_label(stage) == f"2 x emulated {T4} + emulated {A100}"
    t4_rps, a100_rps = (1 / seconds for seconds in (0.012658, 0.004477))
    assert capacity_rps(stage) == pytest.approx(min(2 * t4_rps / 0.75, a100_rps / 0.25))
    mostly = stage.model_copy(
        update={"split": stage.split and stage.split.model_copy(update={"challenger_share": 0.9})}
    )
    assert capacity_rps(mostly) == pytest.approx(a100_rps / 0.9)


def test_each_arm_has_its_own_figures() -> None:
    stage = a_split(challenger_share=0.3)
    records = simulate(stage, calibration=QUICK)
    parts = [summarise(records_of(records, stage, arm), 1.0) for arm in ("champion", "challenger")]
    whole = summarise(records, 1.0)
    assert sum(part["throughput_rps"] for part in parts) == pytest.approx(whole["throughput_rps"])
    assert 2 / 3 * parts[0]["utilisation"] + parts[1]["utilisation"] / 3 == pytest.approx(whole["utilisation"])


# ---- shadows ---------------------------------------------------------------------------------------------------


def in_shadow(**split: Any) -> Stage:
    return a_split(mode="shadow", challenger_share=1.0, **split)


def test_a_shadow_never_changes_what_its_champion_does() -> None:
    stage = in_shadow(challenger_facts={"service_time_factor": 50.0, "crash_share": 0.2})
    with_it = simulate(stage, calibration=QUICK)
    without = simulate(stage.model_copy(update={"split": None}), calibration=QUICK)
    assert set(arms(with_it)) == {"champion"}
    assert_frame_equal(with_it.requests.drop("arm"), without.requests.drop("arm"))
    assert with_it.batches.filter(pl.col("replica") == 2).height > 0


def test_a_copy_takes_half_of_a_requests_time_of_the_event_loop() -> None:
    """One request that waits for nobody, and one behind whose copy another has to wait."""
    costs = GatewayCosts(busy_s=0.5)
    calibration = a_calibration({1: (1.0,)}).model_copy(update={"gateway": costs})
    two = a_schedule([0.0, 0.3])
    stage = in_shadow()
    plain = simulate(stage.model_copy(update={"split": None}), two, calibration=calibration).requests
    copied = simulate(stage, two, calibration=calibration).requests
    assert plain["gateway_in_s"].to_list() == [0.25, 0.55]
    assert copied["gateway_in_s"].to_list() == [0.25, 0.375 + 0.25], "the copy of the first was read from 0.25 on"


def test_copies_are_bounded() -> None:
    stage = in_shadow(shadow_outstanding_max=3, challenger_facts={"service_time_factor": 100.0})
    records = simulate(stage, a_schedule([0.001 * n for n in range(50)]), calibration=QUICK)
    assert records.batches.filter(pl.col("replica") == 2)["batch_size"].sum() == 3


# ---- guardrails ------------------------------------------------------------------------------------------------


def test_one_that_always_crashes_is_out_at_once_and_its_users_are_served_again() -> None:
    guardrails = {"errors_share_max": 0.01, "requests_min": 20}
    stage = a_split(challenger_share=0.5, challenger_facts={"crash_share": 1.0}, guardrails=guardrails)
    arrivals = schedule(stage.traffic)
    found = rehearsed(stage, arrivals, QUICK)
    assert found.stopped is not None
    assert (found.stopped.broken.guardrail, found.stopped.broken.requests, found.stopped.errors) == ("errors", 20, 20)
    requests = found.records.requests
    late = requests.filter(pl.col("gateway_in_s") > found.stopped.at_s)
    assert set(late["arm"]) == {"champion"}
    assert set(late["outcome"]) == {"ok"}
    failed = requests.filter(pl.col("outcome") != "ok")
    assert set(failed["arm"]) == {"challenger"}
    assert 20 <= failed.height <= 23, "those under way when it was stopped"
    assert found.stopped == stop_of(stage, arrivals, QUICK), "the run to the stop alone says the same"


def test_a_slower_and_a_worse_one_are_out_by_their_own_guardrails() -> None:
    limits = {"requests_min": 20, "latency_s": 0.05, "accuracy_drop_max": 0.02}
    feedback = {"share": 1.0, "delay_s": 0.5}
    for facts, guardrail in (
        ({"service_time_factor": 4.0, "accuracy": 0.97}, "latency"),
        ({"accuracy": 0.7}, "accuracy"),
        ({"accuracy": 0.97}, None),
        ({"accuracy": 0.99}, None),
    ):
        stage = a_split(
            challenger_share=0.5,
            champion_facts={"accuracy": 0.97},
            challenger_facts=facts,
            guardrails=limits,
            feedback=feedback,
        )
        stopped = stop_of(stage, schedule(stage.traffic), QUICK)
        assert (None if stopped is None else stopped.broken.guardrail) == guardrail


def test_labels_need_an_accuracy_of_both_arms() -> None:
    limits = {"requests_min": 20, "accuracy_drop_max": 0.02}
    stage = a_split(challenger_facts={"accuracy": 0.5}, challenger_share=0.5, guardrails=limits, feedback={})
    assert stop_of(stage, schedule(stage.traffic), QUICK) is None


def test_a_ramp_takes_its_steps_and_moves_nobody_back() -> None:
    stage = a_split(rate_rps=100.0, ramp={"shares": [0.1, 0.4], "step_duration_s": 30.0}, duration_s=60.0)
    arrivals = schedule(stage.traffic)
    assert arrivals.users is not None
    requests = simulate(stage, arrivals, calibration=QUICK).requests
    frame = requests.with_columns(pl.Series("user", arrivals.users), (pl.col("gateway_in_s") < 30.0).alias("early"))
    for user, early, arm in frame.select("user", "early", pl.col("arm").cast(pl.String)).iter_rows():
        assert (arm == "challenger") == (bucket(str(user), "") < (0.1 if early else 0.4))


def test_the_stage_of_the_ladder_carries_everybody_with_its_champion() -> None:
    from stages.spec import load_stage

    stage = load_stage("ab-test")
    assert stage.split is not None and stage.split.guardrails is not None
    assert set(stage.split.guardrails.given) == {
        "errors_share_max",
        "latency_s",
        "goodput_share_min",
        "accuracy_drop_max",
    }
    assert isinstance(schedule(stage.traffic), Schedule)
    assert np.isfinite(capacity_rps(stage))


def test_another_try_begins_with_no_label_of_the_one_before() -> None:
    stage = a_split(guardrails={"accuracy_drop_max": 0.02, "requests_min": 1}, feedback={"share": 0.5, "delay_s": 1.0})
    splitter = Splitter(stage, Environment(), 1)
    splitter.experiment.ended("challenger", "", 0.1)
    for _ in range(200):
        splitter._labelled(0, "champion", True, None)
        splitter._labelled(0, "challenger", False, None)
    assert splitter.stopped is not None and splitter.stopped.broken.guardrail == "accuracy"
    splitter.want(Wanted(0.5))
    splitter._labelled(0, "challenger", False, None)  # of what was answered before
    splitter._labelled(1, "champion", True, None)
    counts = splitter.experiment.guard.arms
    assert [(counts[arm].right, counts[arm].labelled) for arm in ("champion", "challenger")] == [(1, 1), (0, 0)]
    assert splitter.stopped is None and splitter.experiment.share(0.0) == 0.5
