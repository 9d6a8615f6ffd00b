"""When is a run void, and what is said about it?"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import polars as pl
import pytest

from loadtests import host_cpu, load
from loadtests.checks import SelfCheck, other_clock, self_check, why_void
from loadtests.raw_rows import SCHEMA, Fired
from reference_apps.asking import wait_until
from tests.conftest import PATIENCE_S
from tests.hand_made_runs import steady

SERVICE_S = 0.010
SOUND = SelfCheck(lag_s_p50=0.0001, lag_s_p99=0.001, fired_share=1.0, generator_cpu_share=0.5, foreign_cpu_share=0.01)


def fired(*scheduled_and_sent_s: tuple[float, float], due: int, cpu_share: float = 0.0) -> Fired:
    rows = [
        (n, 0, at_s, sent_s, sent_s + 1, 200, "", None, None) for n, (at_s, sent_s) in enumerate(scheduled_and_sent_s)
    ]
    return Fired(pl.DataFrame(rows, schema=SCHEMA, orient="row"), 0.0, due, cpu_share)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lag_s_p99": 0.1 * SERVICE_S},
        {"fired_share": 0.98},
        {"generator_cpu_share": 0.90},
        {"foreign_cpu_share": 0.10},
    ],
)
def test_a_run_on_the_edge_is_sound(changes: dict[str, float]) -> None:
    assert why_void(replace(SOUND, **changes), SERVICE_S) is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"lag_s_p99": 0.0011},
            "The generator was late: p99 of its lag was 1.10 ms, over 10% of the service time of 10.00 ms.",
        ),
        (
            {"lag_s_p99": math.inf},
            "The generator was late: p99 of its lag was inf ms, over 10% of the service time of 10.00 ms.",
        ),
        (
            {"lag_s_p99": 0.0011, "foreign_cpu_share": 0.04},
            "The generator was late: p99 of its lag was 1.10 ms, over 10% of the service time of 10.00 ms. "
            "Meanwhile 4% of the host's cores went to something else, or to its neighbours.",
        ),
        ({"fired_share": 0.979}, "Only 97.9% of the schedule was fired, under 98%."),
        ({"generator_cpu_share": 0.91}, "The generator took 91% of a core, over 90%."),
        ({"foreign_cpu_share": 0.11}, "The host was busy with something else: 11% of its cores, over 10%."),
        (
            {"fired_share": 0.5, "foreign_cpu_share": 1.0},
            "Only 50.0% of the schedule was fired, under 98%. "
            "The host was busy with something else: 100% of its cores, over 10%.",
        ),
    ],
)
def test_a_void_run_says_every_reason(changes: dict[str, float], told: str) -> None:
    assert why_void(replace(SOUND, **changes), SERVICE_S) == told


def test_a_lag_is_seen_next_to_what_the_run_is_read_for() -> None:
    late = replace(SOUND, lag_s_p99=0.0079)
    assert why_void(late, 0.0507) is not None
    assert why_void(late, 0.15, "guardrail's latency") is None
    told = why_void(replace(SOUND, lag_s_p99=0.016), 0.15, "guardrail's latency")
    assert told is not None and "over 10% of the guardrail's latency of 150.00 ms" in told


def test_the_figures_of_a_run() -> None:
    lags_s = [0.001 * n for n in range(101)]
    run = fired(*((1.0 + n, 1.0 + n + lag_s) for n, lag_s in enumerate(lags_s)), due=202, cpu_share=0.25)
    check = self_check(run, foreign_cpu_share=0.125)
    assert check.lag_s_p50 == pytest.approx(0.050)
    assert check.lag_s_p99 == pytest.approx(0.099)
    assert (check.fired_share, check.generator_cpu_share, check.foreign_cpu_share) == (0.5, 0.25, 0.125)


@pytest.mark.parametrize("due", [0, 10])
def test_a_run_that_fired_nothing_is_void(due: int) -> None:
    check = self_check(fired(due=due), 0.0)
    assert (check.lag_s_p99, check.fired_share) == (math.inf, 0.0)
    assert why_void(check, SERVICE_S) is not None


def test_a_replica_that_ends_during_the_run_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a child of this process: once it is waited for, all its life stands in the sum of our children."""
    stack, children_s = host_cpu.StackCpu(lambda: ()), 0.0
    monkeypatch.setattr(host_cpu.os, "times", lambda: os.times_result((1.0, 1.0, children_s, children_s, 0.0)))
    before = host_cpu.HostCpu.now(stack)
    children_s = 1000.0
    assert host_cpu.HostCpu.now(stack, 2.5).ours_s - before.ours_s == 2.5, "the generator's"


@pytest.mark.parametrize(("code", "status"), [("sum(range(10**6))", 0), ("raise SystemExit(3)", 3)])
def test_what_a_generator_took_is_told_once_it_has_ended(code: str, status: int) -> None:
    process, took_s = subprocess.Popen([sys.executable, "-S", "-c", code]), list[float | None]()

    def ended() -> bool:
        took_s.append(load._ended(process))
        return took_s[-1] is not None

    assert wait_until(ended, PATIENCE_S)
    assert took_s[-1] is not None and took_s[-1] > 0.0
    assert process.returncode == process.poll() == status


@pytest.mark.parametrize("off_s", [-86_400.0, 86_400.0])
def test_times_by_another_machines_clock_are_known(off_s: float) -> None:
    records = steady(0.02)
    assert not other_clock(records)
    kept = [pl.lit(None, pl.Float64).alias(name) for name in ("started_s", "finished_s")]  # out of a cache
    assert not other_clock(replace(records, requests=records.requests.with_columns(kept)))
    moved: Any = [pl.col(name) + off_s for name in ("arrived_s", "started_s", "finished_s")]
    assert other_clock(replace(records, requests=records.requests.with_columns(moved)))
