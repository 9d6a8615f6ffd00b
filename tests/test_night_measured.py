"""A night's work by the running stack: all of it is done, and machines that are taken away come back."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loadtests import night as nights
from loadtests.night_cli import app
from simulator.night import Worked
from simulator.night import work_off as predicted
from stages.night import Night
from stages.terminal import Exit
from tests.queued import queued

BACKLOG = 200
# A device's time that leaves this machine idle: 25 batches of 8 on two workers, 13 after one another.
PACED = {
    "device": {"kind": "emulated", "profile": "t4-resnet50-fp16-pytorch", "slowdown": 8.0},
    "batching.batch_wait_timeout_s": 0.04,
}


@pytest.mark.parametrize("broker", ["sqlite", "redis"])
def test_all_of_it_is_done(tmp_path: Path, broker: str) -> None:
    stage = queued(**PACED, queue__broker=broker)
    worked = nights.work_off(stage, Night(BACKLOG, (2,)), 2, tmp_path, seed=1)
    ours = predicted(stage, BACKLOG, 2, None, seed=1, keep_times=True)
    assert (worked.stored, worked.dead, worked.interruptions) == (BACKLOG, 0, 0) == (ours.stored, ours.dead, 0)
    for each in (worked, ours):
        assert len(each.finished_s) == BACKLOG
        assert list(each.finished_s) == sorted(each.finished_s)
        assert each.done_s == each.finished_s[-1]
        assert sum(each.paid_s) == pytest.approx(2 * each.done_s, abs=0.01)
    assert worked.done_s > ours.done_s  # processes take their time to start


def test_machines_that_are_taken_away_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lives_s(seed: int, number: int, interruptions_per_hour: float) -> Iterator[float]:
        yield from (6.0, 1.0) if number == 0 else (inf,)  # the second one in its cold start
        while True:
            yield inf

    monkeypatch.setattr(nights, "lives_s", lives_s)
    worked = nights.work_off(queued(**PACED), Night(1000, (2,), spot=True), 2, tmp_path, seed=1)
    assert (worked.stored, worked.dead, worked.interruptions) == (1000, 0, 2)


def test_rows_tell_both_worlds_apart() -> None:
    real = [Worked(10.0, (10.0, 10.0), 5, 0, 0), Worked(12.0, (12.0, 12.0), 5, 0, 0), Worked(11.0, (11.0,), 5, 0, 0)]
    ours = [Worked(9.9, (9.9, 9.9), 5, 0, 0)] * 3
    rows = {row["metric"]: row for row in nights.document(queued(), Night(5, (2,)), 2, real, ours, None)}
    assert rows["done_s"]["measured"] == 11.0
    assert rows["done_s"]["error"] == pytest.approx(-0.1)
    assert (rows["done_s"]["spread_low"], rows["done_s"]["spread_high"]) == (10.0, 12.0)
    assert rows["dead"]["error"] == 0.0
    assert "cost_usd" not in rows


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["single-vm"], "--backlog: needs a stage with a [queue], got single-vm."),
        (["queued", "--backlog", "0"], "--backlog: must be 1 to 10000000 jobs, got 0."),
        (["queued", "--backlog", "200000"], "queue.max_depth: must be at least the backlog (200000 jobs), got 100000."),
        (["queued", "--interruptions", "1"], "--interruptions: are of spot machines, got no --spot."),
    ],
)
def test_what_cannot_be_meant_is_told(words: list[str], told: str) -> None:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == Exit.MISUSED
    assert told in " ".join(result.output.split())
