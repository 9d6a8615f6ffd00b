"""A night's work by the running stack: all of it is done, and machines that are taken away come back."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from loadtests import night as nights
from loadtests import night_report
from loadtests.night_cli import app
from loadtests.night_scaled import work_off_scaled
from simulator.night import Machine, Worked
from simulator.night import work_off as predicted
from simulator.night_scaled import work_off_scaled as predicted_scaled
from stages.night import Night
from stages.spec import load_stage
from stages.terminal import Exit
from tests.queued import queued

pytestmark = pytest.mark.usefixtures("in_numpy")

BACKLOG = 200
# A device's time that leaves this machine idle: 25 batches of 8 on two workers, 13 after one another.
PACED = {
    "device": {"kind": "emulated", "profile": "t4-resnet50-fp16-pytorch", "slowdown": 8.0},
    "batching.batch_wait_timeout_s": 0.04,
    "queue.lease_s": 2.0,  # of workers that are taken away
}


@pytest.mark.parametrize("broker", ["sqlite", "redis"])
def test_all_of_it_is_done(tmp_path: Path, broker: str) -> None:
    stage = queued(**PACED, queue__broker=broker)
    foreign: list[float] = []
    worked = nights.work_off(stage, Night(BACKLOG, (2,)), 2, tmp_path, seed=1, on_host=foreign.append)
    ours = predicted(stage, BACKLOG, 2, None, seed=1, keep_times=True)
    assert (worked.stored, worked.dead, worked.interruptions) == (BACKLOG, 0, 0) == (ours.stored, ours.dead, 0)
    for each in (worked, ours):
        assert len(each.finished_s) == BACKLOG
        assert list(each.finished_s) == sorted(each.finished_s)
        assert each.done_s == each.finished_s[-1]
        assert each.machine_s == pytest.approx(2 * each.done_s, abs=0.01)
        assert [machine.worker for machine in each.machines] == [0, 1]
    assert worked.done_s > ours.done_s  # processes take their time to start
    (share,) = foreign
    assert 0.0 <= share <= 1.0


def test_machines_that_are_taken_away_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lives_s(seed: int, number: int, interruptions_per_hour: float) -> Iterator[float]:
        yield from (4.0, 1.0) if number == 0 else (inf,)  # the second one in its cold start
        while True:
            yield inf

    looks_s: list[float] = []
    step = nights.Crew.step

    def looked(crew: nights.Crew) -> None:
        looks_s.append(time.monotonic() - crew.began_s)
        step(crew)

    monkeypatch.setattr(nights, "lives_s", lives_s)
    monkeypatch.setattr(nights.Crew, "step", looked)
    worked = nights.work_off(queued(**PACED), Night(800, (2,), spot=True), 2, tmp_path, seed=1)
    assert (worked.stored, worked.dead, worked.interruptions) == (800, 0, 2)
    first, second, third, other = worked.machines  # three for worker 0, one after the other, and one for worker 1
    assert [each.worker for each in worked.machines] == [0, 0, 0, 1]
    assert first.ended_s == second.ordered_s >= 4.0
    before = [at_s for at_s in looks_s if at_s <= first.ended_s]
    assert max(before[:-1], default=0.0) < 4.0, "it goes at the first look from then on"
    assert second.ended_s == third.ordered_s
    assert other.ended_s == third.ended_s == worked.done_s == worked.over_s


SCALED: dict[str, Any] = {
    "scaling": {
        "policy": "keda",
        "min_replicas": 0,
        "max_replicas": 2,
        "metric": "queue-depth",
        "target": 50.0,
        **dict.fromkeys(("interval_s", "scrape_interval_s", "window_s", "polling_interval_s"), 0.5),
        "cooldown_s": 1.0,
        "up": {"period_s": 0.5},
        "down": {"stabilisation_window_s": 1.0, "period_s": 0.5},
        "cold_start": {"machine_s": 1.0},
    }
}


def test_an_autoscaler_brings_the_workers_and_sends_them_away(tmp_path: Path) -> None:
    stage = queued(**PACED, **SCALED)
    worked = work_off_scaled(stage, Night(BACKLOG, (1,)), tmp_path)
    ours = predicted_scaled(stage, BACKLOG, None, seed=1, keep_times=True)
    for each in (worked, ours):
        assert (each.stored, each.dead, len(each.finished_s)) == (BACKLOG, 0, BACKLOG)
        assert len(each.machines) >= 2  # one for each fifty that wait, and no more than two at a time
        assert night_report.ready(each).values.max() == 2.0
        assert max(wanted for _, wanted in each.wanted) == 2
        assert each.wanted[-1][1] == 0
        assert each.over_s > each.done_s
        assert min(machine.ready_s - machine.ordered_s for machine in each.machines if machine.ready_s) >= 1.0
    nights = night_report.Nights(stage, BACKLOG, None, False, [worked], [ours], "a machine", "rung night")
    path, picture = night_report.write(nights, tmp_path)
    told = json.loads(path.read_text(encoding="utf-8"))
    assert [night["world"] for night in told["nights"]] == ["measured", "predicted"]
    assert all(night["workers_wanted"][0] == [0.0, 0.0] for night in told["nights"])
    assert {"done_s", "ready_lag_s", "wanted_lag_s"} <= {row["metric"] for row in told["rows"]}
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "night.svg").exists()


def a_night(done_s: float, workers: int = 2, stored: int = 5) -> Worked:
    machines = tuple(Machine(number, 0.0, 2.0, done_s) for number in range(workers))
    return Worked(done_s, machines, stored, 0, 0, (3.0, done_s))


def test_rows_tell_both_worlds_apart() -> None:
    real = [a_night(10.0), a_night(12.0), a_night(11.0, workers=1)]
    nights = night_report.Nights(load_stage("queued"), 5, 2, False, real, [a_night(9.9)] * 3, "a machine", "rung night")
    rows = {row["metric"]: row for row in night_report.rows(nights)}
    assert rows["done_s"]["measured"] == 11.0
    assert rows["done_s"]["error"] == pytest.approx(-0.1)
    assert (rows["done_s"]["spread_low"], rows["done_s"]["spread_high"]) == (10.0, 12.0)
    assert rows["drain_s"]["measured"] == 8.0
    assert rows["machine_s"]["measured"] == 20.0
    assert rows["dead"]["error"] == 0.0
    assert rows["ready_lag_s"]["error"] == pytest.approx(7.9)  # the third has one worker from 2 s on
    assert "wanted_lag_s" not in rows
    workers, api = 20.0 / 3600 * 0.526, 10.0 / 3600 * 0.17  # of the first night, which is the median
    assert rows["cost_usd_workers"]["measured"] == pytest.approx(workers)
    assert rows["cost_usd"]["measured"] == pytest.approx(workers + api)
    told = night_report.document(nights)
    assert [item["component"] for item in told["bill"]["measured"]] == ["worker", "jobs API"]
    assert told["nights"][0]["workers_ready"] == [[0.0, 0.0], [2.0, 2.0]]
    assert [len(axes.lines) for axes in night_report.over_time(nights).axes] == [6, 6]
    console = Console(record=True, width=120)
    night_report.print_table(nights, console)
    said = console.export_text()
    assert "Queued: 5 jobs, 2 workers" in said
    assert "dollars, every component" in said
    assert "jobs API: 0.17 US dollars an hour" in said


def test_a_void_night_counts_for_nothing_where_another_is_sound() -> None:
    of = (
        load_stage("queued"),
        5,
        2,
        False,
        [a_night(10.0), a_night(20.0)],
        [a_night(9.9)] * 2,
        "a machine",
        "rung night",
    )
    nights = night_report.Nights(*of, [None, "The host was busy."])
    rows = {row["metric"]: row for row in night_report.rows(nights)}
    assert (rows["done_s"]["spread_low"], rows["done_s"]["spread_high"]) == (10.0, 10.0)
    told = night_report.document(nights)
    assert told["void"] is None
    assert told["void_runs"] == [{"repeat": 1, "why": "The host was busy."}]
    console = Console(record=True, width=120)
    night_report.print_table(nights, console)
    assert "Night 2 is void and counts for nothing. The host was busy." in console.export_text()
    all_void = night_report.Nights(*of, ["The host was busy."] * 2)
    assert all_void.sound == []
    assert night_report.document(all_void)["void"] == "The host was busy."
    assert {row["metric"]: row for row in night_report.rows(all_void)}["done_s"]["measured"] == 15.0


def test_without_a_price_there_are_no_dollars() -> None:
    stage = load_stage("queued", {"cost": None})
    nights = night_report.Nights(stage, 5, 2, False, [a_night(10.0)], [a_night(9.9)], "a machine", "rung night")
    assert not any(row["metric"].startswith("cost") for row in night_report.rows(nights))
    assert night_report.document(nights)["bill"] == {"measured": [], "predicted": []}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["single-vm"], "--backlog: needs a stage with a [queue], got single-vm."),
        (["queued", "--backlog", "0"], "--backlog: must be 1 to 10,000,000 jobs, got 0."),
        (["queued", "--backlog", "200000"], "queue.max_depth: must be at least the backlog (200000 jobs), got 100000."),
        (["queued", "--interruptions", "1"], "--interruptions: are of spot machines, got no --spot."),
        (["queued", "--autoscaled", "--workers", "2"], "--autoscaled: stands alone, got --workers beside it."),
        (["queued", "--autoscaled", "--spot"], "--autoscaled: stands alone, got --spot beside it."),
        (["queued", "--autoscaled", "--set", "scaling="], "--autoscaled: needs a stage with [scaling], got queued"),
        (
            [*("queued", "--spot", "--set", "cost.machine=", "--set", "cost.usd_per_hour=1.0")],
            "must be a machine with a spot price for --spot, got none",
        ),
    ],
)
def test_what_cannot_be_meant_is_told(words: list[str], told: str) -> None:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == Exit.MISUSED
    assert told in " ".join(result.output.split())
