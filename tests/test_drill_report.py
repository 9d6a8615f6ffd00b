"""What a drill comes to: figures, the report, the verb, and the real stack beside its prediction.

drill(stage, …) ─▶ real processes, Locust, the prediction ─▶ rows, report.json, a picture
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from rich.console import Console
from typer.testing import CliRunner

from loadtests import drill_figures as figures
from loadtests import drill_report
from loadtests.drill import Drill, back_s, drill, duration_s, phases_of, turns
from loadtests.drill_cli import app
from loadtests.drill_figures import Look, Phases
from loadtests.drill_watch import Plan
from simulator.drilled import drilled
from stages import catalogue
from stages.calibration import Calibration
from stages.records import Records
from stages.spec import Stage, load_stage, with_overrides
from tests.drill_cases import AT_S, FOR_S, QUICK, a_drill, a_failure, a_fleet, reasons, row
from tests.made import a_calibration
from tests.no_warm_up import no_warm_up

__all__ = ["no_warm_up"]
pytestmark = pytest.mark.usefixtures("in_numpy")

# ---- figures ----------------------------------------------------------------------------------------------------

LOOKS: list[Look] = [
    (0.0, frozenset({0, 1})),
    (1.0, frozenset({0, 1})),
    (2.0, frozenset({1})),
    (3.0, frozenset({0, 1})),
    (4.0, frozenset({1})),
    (5.0, frozenset({0, 1})),
    (6.0, frozenset({0, 1})),
]


def test_an_outage_lasts_from_the_first_look_without_it_until_it_is_back_for_good() -> None:
    assert figures.outage_s(LOOKS, 0, 0.5) == (1.5, 4.5)
    assert figures.outage_s(LOOKS, 0, 2.5) == (1.5, 2.5)
    out_s, back_s = figures.outage_s(LOOKS, 1, 0.5)
    assert math.isnan(out_s) and math.isnan(back_s)
    out_s, back_s = figures.outage_s(LOOKS[:5], 0, 0.5)
    assert out_s == 1.5 and math.isnan(back_s)
    assert turns(LOOKS) == [LOOKS[0], LOOKS[2], LOOKS[3], LOOKS[4], LOOKS[5]]


def test_a_report_holds_both_worlds_against_each_other(tmp_path: Path) -> None:
    found = a_drill("hang", void="The host was busy.")
    out = row(found, "out of rotation after")
    assert out.low == out.measured == pytest.approx(out.predicted - 1 / 3, abs=0.03) or out.measured <= out.high
    assert out.low < out.predicted < out.high < out.low + 1.0
    assert row(found, "requests").measured == row(found, "requests").predicted == found.measured.records.requests.height
    console = Console(width=200, record=True)
    drill_report.print_table(found, console)
    text = console.export_text()
    assert "Load-balanced: replica 0 hung at 4 s for 5 s, load 0.5, short run" in text
    assert f"{out.measured:.2f} s" in text and "void: The host was busy." in text
    picture = drill_report.write(found, tmp_path)
    assert picture.read_bytes().startswith(b"\x89PNG")
    told = json.loads((tmp_path / "report.json").read_text())
    assert told["plan"]["failure"] == "hang" and told["void"] == "The host was busy."
    assert sum(second["due"] for second in told["seconds"]["measured"]) == found.measured.records.requests.height
    assert told["rotation"]["predicted"][1]["replicas"] == [1]


def test_what_does_not_happen_is_called_never(tmp_path: Path) -> None:
    found = a_drill("slow")
    out = row(found, "out of rotation after")
    assert math.isnan(out.measured) and math.isnan(out.predicted)
    assert drill_report.shown(out, out.measured) == drill_report.spread(out) == "never"
    assert "It never left the rotation (predicted: never)." in drill_report.in_words(found)
    drill_report.write(found, tmp_path)
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert next(each for each in rows if each["name"] == "out of rotation after")["measured"] is None
    assert row(found, "latency p95 during").measured > 1.5 * row(found, "latency p95 before").measured


def test_a_restart_has_its_own_figures() -> None:
    found = a_drill("restart")
    names = {each.name for each in found.rows}
    assert {"the restart took", "fewest in rotation"} <= names and "out of rotation after" not in names
    assert row(found, "not answered").predicted == 0
    assert row(found, "fewest in rotation").predicted == 2
    assert "It took" in drill_report.in_words(found)


def test_a_run_lasts_until_all_may_be_well_again() -> None:
    stage, _ = a_fleet()
    gateway = stage.gateway
    assert gateway is not None
    kill = phases_of(stage, Plan("kill", 0, 8.0, 0.0, 1.0, 0.5, False), 3.0)
    assert kill.ends_s == pytest.approx(8.0 + back_s(3.0)) and 4.0 < back_s(3.0) < 4.5
    hang = phases_of(stage, Plan("hang", 0, 8.0, 5.0, 1.0, 0.5, False), 3.0)
    assert hang == Phases(8.0, 13.0)
    assert duration_s(stage, hang) >= 13.0 + gateway.eject_s + gateway.healthy_after * gateway.probe_interval_s


def test_a_second_without_an_answer_has_no_percentile() -> None:
    stage, arrivals = a_fleet(**{"fleet.replicas": 1, "traffic.rate.rate_rps": 40.0, "overload": True})
    found = drilled(stage, arrivals, a_failure("kill"), None)
    seconds = figures.by_second(found.records)
    assert seconds["due"].sum() == found.records.requests.height
    assert (seconds["answered"] + seconds["not_answered"] == seconds["due"]).all()
    gone = seconds.filter(pl.col("second").is_between(int(AT_S) + 1, int(AT_S + FOR_S) - 1))
    assert gone["answered"].sum() == 0 and gone["p95_s"].is_nan().all()
    assert "no_replica" in reasons(found)


# ---- the verb ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["single-vm", "kill"], "single-vm: must have a [gateway] to be drilled."),
        (["load-balanced", "cut"], "cut: takes a replica off its network, and processes share this machine's."),
        (["load-balanced", "kill", "--for", "3"], "--for: must not be given with kill, which would not read it."),
        (["load-balanced", "hang", "--factor", "3"], "--factor: must not be given with hang"),
        (["load-balanced", "restart", "--replica", "1"], "--replica: must not be given with restart"),
        (["load-balanced", "hang", "--replica", "2"], "--replica: must be 0 to 1, got 2."),
        (["load-balanced", "hang", "--for", "0"], "--for: must be 0.5 to 600, got 0."),
        (["load-balanced", "hang", "--at", "0"], "--at: must be 1 to 600, got 0."),
        (["load-balanced", "slow", "--factor", "0.5"], "--factor: must be 1 to 1000, got 0.5."),
        (["load-balanced", "hang", "--load", "0"], "--load: must be 0.01 to 10, got 0."),
    ],
)
def test_what_cannot_be_drilled_is_told_before_anything_is_started(words: list[str], said: str, runs: Path) -> None:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert said in done.stderr
    assert not runs.exists()


# ---- both worlds together ---------------------------------------------------------------------------------------


@pytest.fixture
def stage() -> Stage:
    return load_stage("load-balanced", QUICK)


def a_swept(stage: Stage) -> Calibration:
    """A calibration that says of the device what its profile says."""
    profile = catalogue.profiles()[str(stage.device.profile)]
    sizes = range(1, stage.batching.max_batch_size + 1)
    made = a_calibration({n: (profile.service_time_s(n) * stage.device.slowdown,) for n in sizes})
    device = f"emulated {stage.device.profile}, {stage.device.slowdown:g} times slower"
    return made.model_copy(update={"device": device, "stage": stage.name})


def _kept(folder: Path) -> Iterator[Records]:
    from stages import records

    yield from (records.read(folder / world) for world in ("measured", "predicted"))


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("no_warm_up")
def test_a_kill_for_real_and_in_simulation(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtests.drill.MARGIN_S", 1.0)
    plan = Plan("kill", 1, 2.0, 1.0, 1.0, 0.15, True)
    found = drill(stage, a_swept(stage), plan, tmp_path, command="rung drill")
    assert row(found, "requests").measured == row(found, "requests").predicted > 0
    measured = found.measured.records
    assert not measured.requests.filter((pl.col("scheduled_s") > 2.0) & (pl.col("replica") == 0)).is_empty()
    assert row(found, "out of rotation after").measured < row(found, "back in rotation after").measured or math.isnan(
        row(found, "back in rotation after").measured
    )
    assert math.isfinite(row(found, "out of rotation after").measured)
    assert measured.replicas.filter(pl.col("replica") == 1).height == 2  # the one that was killed, and its successor
    for world in _kept(tmp_path):
        assert world.requests.height == measured.requests.height
    log = (tmp_path / "stack" / "supervisor.log").read_text()
    assert "ended with signal SIGKILL" in log and "replica 1 is started again" in log
    drill_report.write(found, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["plan"]["replica"] == 1


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("no_warm_up")
def test_a_rolling_restart_under_load_loses_nothing(stage: Stage, tmp_path: Path) -> None:
    # On a machine that is busy for a moment the only replica is not called ill.
    stage = with_overrides(stage, {"fleet.replicas": 1, "gateway.unhealthy_after": 100})
    plan = Plan("restart", 0, 1.5, 1.0, 1.0, 0.1, True)
    found = drill(stage, a_swept(stage), plan, tmp_path, command="rung drill")
    assert row(found, "not answered").measured == row(found, "not answered").predicted == 0
    assert row(found, "fewest in rotation").measured == 1
    assert found.measured.done_s > 0.0
    assert {0} < set(found.measured.records.replicas["replica"])


def test_the_verb_prints_the_drill_as_json(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: Path
) -> None:
    """The verb alone: what it runs is played by the simulator."""
    from loadtests import drill as both
    from stages import calibration

    calibration.write(a_swept(load_stage("load-balanced")), tmp_path / "calibration.json")
    asked: list[Plan] = []

    def played(resolved: Stage, swept: Calibration, plan: Plan, folder: Path, **_: Any) -> Drill:
        asked.append(plan)
        found = a_drill(plan.failure, "The host was busy." if plan.failure == "hang" else None)
        return replace(found, plan=plan)

    monkeypatch.setattr(both, "drill", played)
    words = ["load-balanced", "slow", "--at", "4", "--for", "5", "--factor", "3", "--replica", "1", "--json"]
    words += ["--calibration", str(tmp_path / "calibration.json"), "--out", str(tmp_path / "kept")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.stderr
    assert asked == [Plan("slow", 1, 4.0, 5.0, 3.0, 0.5, True)]
    told = json.loads(done.stdout)
    assert told["plan"]["factor"] == 3.0 and Path(told["picture"]).is_file()
    void = CliRunner().invoke(app, ["load-balanced", "hang", *words[-4:]])
    assert void.exit_code == 3
    assert "This run is void. The host was busy." in void.stderr
    assert "out of rotation after" in void.stdout
