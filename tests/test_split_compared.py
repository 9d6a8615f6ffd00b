"""Two versions calibrated, loaded and compared: figures by arm, and none where there is one version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console
from typer.testing import CliRunner

from loadtests import drill, drill_cli, raw_rows, report, spike, spike_cli
from loadtests.calibrate import alone, before_one, kinds
from loadtests.verbs import at_rest
from reference_apps.launchers.member import LaunchError
from simulator.run import simulate
from stages import records
from stages.spec import Stage, device_label, load_stage
from stages.traffic import schedule
from tests.made import a_calibration

T4, A100 = "t4-resnet50-fp16-pytorch", "a100-resnet50-fp16-tensorflow"
KNOWN = a_calibration(dict.fromkeys(range(1, 9), (0.0125,)))


def a_stage(**changes: Any) -> Stage:
    plain = {
        "split.ramp": None,
        "split.guardrails": None,
        "feedback": None,
        "split.challenger_share": 0.3,
        "cost": None,
    }
    quick = {"device.slowdown": 1.0, "traffic.duration_s": 20.0, "traffic.rate.rate_rps": 50.0}
    return load_stage("ab-test", plain | quick | {key.replace("__", "."): value for key, value in changes.items()})


def a_comparison(stage: Stage, void: str | None = None) -> report.Comparison:
    found = simulate(stage, schedule(stage.traffic), calibration=KNOWN)
    runs = [report.Run(0.5, 50.0, 0, void, found, found)]
    return report.Comparison(
        stage=stage,
        device_label="emulated",
        machine="none",
        command="rung compare",
        capacity_rps=100.0,
        calibration=KNOWN,
        runs=runs,
        rows=report.rows(stage.name, runs, stage.slo.latency_s, stage),
        curve=[],
        caveats=[],
        made_at="",
        short=False,
    )


def test_a_calibration_is_of_the_devices_of_both_arms_and_of_no_version() -> None:
    stage = a_stage(split__challenger_profile=A100, split__challenger_facts={"service_time_factor": 3.0}, feedback={})
    found = kinds(stage)
    assert [device_label(kind) for kind in found] == [f"emulated {T4}", f"emulated {A100}"]
    for kind in found:
        for bare in (alone(kind), before_one(kind)):
            assert (bare.split, bare.feedback, bare.model.version, bare.traffic.users) == (None, None, None, None)
            assert bare.device == kind.device
            assert bare.model.known.service_time_factor == 1.0
    assert len(kinds(a_stage())) == 1


def test_rows_are_of_all_requests_and_of_each_arm() -> None:
    found = a_comparison(a_stage(split__challenger_facts={"service_time_factor": 4.0}))
    by_arm = {(row.arm, row.metric): row for row in found.rows}
    assert list(dict.fromkeys(row.arm for row in found.rows)) == ["", "champion", "challenger"]
    whole, champion, challenger = (by_arm[arm, "throughput_rps"].measured for arm in ("", "champion", "challenger"))
    assert champion + challenger == pytest.approx(whole)
    assert by_arm["challenger", "latency_s_p50"].measured > 2 * by_arm["champion", "latency_s_p50"].measured
    assert "arm" not in by_arm["", "throughput_rps"].document
    assert by_arm["champion", "throughput_rps"].document["arm"] == "champion"
    words = report.result_in_words(found)
    assert "Of the champion alone: 0.0 % for latency p50" in words
    assert "Of the challenger alone: 0.0 % for latency p50" in words


def test_each_arm_has_the_costs_of_its_own_machines_in_both_worlds() -> None:
    machines = {"cost__machine": "aws/g4dn.xlarge", "cost__challenger_machine": "gcp/a2-highgpu-1g"}
    stage = a_stage(split__challenger_profile=A100, **machines)
    found = simulate(stage)
    rows = report.rows(stage.name, [report.Run(0.5, 50.0, 0, None, found, found)], stage.slo.latency_s, stage)
    dollars = {row.arm: (row.measured, row.predicted) for row in rows if row.metric == "cost_usd"}
    hours = 20.0 / 3600.0
    assert dollars["champion"] == pytest.approx((2 * 0.526 * hours,) * 2)
    assert dollars["challenger"] == pytest.approx((3.67 * hours,) * 2)
    assert dollars[""] == pytest.approx(((2 * 0.526 + 3.67) * hours,) * 2)
    a_thousand = {row.arm: row.measured for row in rows if row.metric == "cost_usd_per_1000"}
    good = 50.0 * 20.0 * np.array([0.7, 0.3])
    expected = 1000.0 * np.array([dollars["champion"][0], dollars["challenger"][0]]) / good
    assert [a_thousand["champion"], a_thousand["challenger"]] == pytest.approx(expected.tolist(), rel=0.2)
    plain = a_stage()
    nothing = report.rows(plain.name, [report.Run(0.5, 50.0, 0, None, found, found)], 0.25, plain)
    assert not any(row.metric.startswith("cost") for row in nothing), "the stage does not say what anything costs"


def test_a_stage_with_one_version_has_the_rows_that_it_had() -> None:
    found = a_comparison(load_stage("load-balanced", {"traffic.duration_s": 5.0}))
    assert {row.arm for row in found.rows} == {""}
    assert all("arm" not in row for row in report.document(found, Path("report.html"))["rows"])
    assert "alone" not in report.result_in_words(found)


def test_table_and_page_name_the_arm(tmp_path: Path) -> None:
    found = a_comparison(a_stage())
    console = Console(record=True, width=160)
    report.print_table(found, console)
    assert "challenger, latency p95" in console.export_text()
    page = report.write_report(found, tmp_path).read_text(encoding="utf-8")
    assert page.count("challenger, latency p95") == 1
    assert "champion, throughput" in page


def test_what_is_compared_stands_still() -> None:
    still = at_rest(load_stage("ab-test"), "loads are compared")
    assert still.split is not None
    assert (still.split.ramp, still.split.guardrails, still.feedback) == (None, None, None)
    assert still.split.challenger_share == 0.5, "the ramp's last step"
    plain = load_stage("load-balanced")
    assert at_rest(plain, "loads are compared") is plain


@pytest.mark.parametrize(("module", "words"), [(spike_cli, ["spike"]), (drill_cli, ["drill", "hang"])])
def test_nothing_ramps_during_a_spike_or_a_drill(
    module: Any, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ramp would begin with the stack in one world, and with the schedule in the other."""
    run: list[Stage] = []

    def both_worlds(stage: Stage, *_: Any, **__: Any) -> Any:
        run.append(stage)
        raise LaunchError("it does not start")

    verb, *rest = words
    monkeypatch.setattr(module, "stage_of", lambda *_, **__: load_stage("ab-test"))
    monkeypatch.setattr(module, "calibration_of", lambda *_: None)
    monkeypatch.setattr({"spike": spike, "drill": drill}[verb], verb, both_worlds)
    done = CliRunner().invoke(module.app, ["ab-test", *rest, "--out", str(tmp_path)])
    assert done.exit_code == 1 and "it does not start" in done.output
    split = run[0].split
    assert split is not None and (split.ramp, split.guardrails) == (None, None)


def test_an_answer_that_tells_no_arm_has_that_of_its_replica() -> None:
    """Ours tells; nginx passes the replica's record on as it is."""
    row = (0, 0.0, 0.0, 0.1, 200, "")
    told = [
        "replica=0,batch=1,batch_size=1,arrived_s=1.0,started_s=1.0,finished_s=1.1,arm=challenger",
        "replica=2,batch=1,batch_size=1,arrived_s=1.0,started_s=1.0,finished_s=1.1",
        "replica=1,batch=1,batch_size=1,arrived_s=1.0,started_s=1.0,finished_s=1.1",
        None,
        "gateway_in_s=1.0,gateway_out_s=1.0,tries=0,arm=champion",
    ]
    frame = pl.DataFrame(
        [(n, *row, record, None) for n, record in enumerate(told)], schema=raw_rows.SCHEMA, orient="row"
    )
    fired = raw_rows.Fired(frame, 0.0, 5, 0.1)
    stage = a_stage()

    def arm_of(number: int) -> str:
        return "champion" if number < stage.fleet.replicas else "challenger"

    found = raw_rows.to_records(fired, [], 2.0, lambda _: "emulated", (), arm_of).requests["arm"]
    assert found.cast(pl.String).to_list() == ["challenger", "challenger", "champion", "", "champion"]
    plain = raw_rows.to_records(fired, [], 2.0, lambda _: "emulated").requests["arm"].cast(pl.String)
    assert plain.to_list() == ["challenger", "", "", "", "champion"]


def test_records_of_before_there_were_arms_are_read(tmp_path: Path) -> None:
    found = simulate(a_stage(), calibration=KNOWN)
    records.write(found, tmp_path)
    assert records.read(tmp_path).requests.equals(found.requests)
    file = tmp_path / "requests.parquet"
    metadata = pl.read_parquet_metadata(file)
    old = pl.read_parquet(file).drop("arm")
    old.write_parquet(file, metadata={"rung.window_s": metadata["rung.window_s"]})
    assert set(records.read(tmp_path).requests["arm"]) == {""}
