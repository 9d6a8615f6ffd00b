"""The timeline is sound trace-event JSON: one slice a batch, rows that nest, counters that end where they began."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.timeline import trace_events, write_timeline
from stages.records import Records
from tests.hand_made_runs import DEVICE, run, steady

MEASURED, PREDICTED = 1, 2
REQUIRED = {
    "X": {"name", "cat", "ph", "ts", "dur", "pid", "tid", "args"},
    "C": {"name", "ph", "ts", "pid", "args"},
    "M": {"name", "ph", "pid", "args"},
}


def of(trace: dict[str, Any], ph: str, pid: int) -> list[dict[str, Any]]:
    return [event for event in trace["traceEvents"] if event["ph"] == ph and event["pid"] == pid]


def test_every_event_has_the_keys_of_its_kind() -> None:
    trace = trace_events(steady(0.02, shed=3), steady(0.03))
    assert {event["ph"] for event in trace["traceEvents"]} == set(REQUIRED)
    for event in trace["traceEvents"]:
        assert REQUIRED[event["ph"]] <= event.keys()
        assert event["ph"] == "M" or event["ts"] >= 0


def test_one_slice_a_batch_in_microseconds() -> None:
    trace = trace_events(run([(1.0, 1.25, 3), (2.0, 2.5, 1)]), run([(1.5, 1.75, 4)]))
    first, second = of(trace, "X", MEASURED)
    assert (first["name"], first["ts"], first["dur"]) == ("batch of 3", 1e6, 0.25e6)
    assert (second["name"], second["ts"], second["dur"]) == ("batch of 1", 2e6, 0.5e6)
    assert first["args"] == {
        "batch": 0,
        "batch_size": 3,
        "first_request": 0,
        "last_request": 2,
        "longest_queue_wait_ms": 10.0,
    }
    assert [event["name"] for event in of(trace, "X", PREDICTED)] == ["batch of 4"]


def test_worlds_are_processes_and_replicas_are_rows() -> None:
    trace = trace_events(run([(1, 2, 1), (1, 2, 1)], replicas=2), run([]))
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"}
    assert names[MEASURED, 1] == f"replica 0, {DEVICE}"
    assert names[MEASURED, 2] == f"replica 1, {DEVICE}"
    worlds = [e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"]
    assert worlds == ["measured", "predicted"]
    assert {(e["tid"], e["args"]["batch"]) for e in of(trace, "X", MEASURED)} == {(1, 0), (2, 1)}


def test_queue_length_rises_with_arrivals_and_falls_when_a_batch_starts() -> None:
    trace = trace_events(run([(1.0, 1.5, 3)], wait_s=0.25, shed=2), run([]))
    counted = [(event["ts"], event["args"]["requests"]) for event in of(trace, "C", MEASURED)]
    assert counted == [(0.75e6, 3), (1e6, 0)], "the refused were never in the queue"


def test_a_request_that_was_given_up_leaves_the_queue_then() -> None:
    records = run([(1.0, 1.5, 1)], wait_s=0.25)
    never = {name: pl.lit(None, pl.Float64) for name in ("started_s", "finished_s")}
    lost = records.requests.with_columns(
        request=pl.lit(1, pl.Int64), replied_s=pl.lit(3.0), outcome=pl.lit("timed_out", pl.Enum(_outcomes())), **never
    )
    both = Records(pl.concat([records.requests, lost]), records.batches, records.replicas, records.window_s)
    counted = [(event["ts"], event["args"]["requests"]) for event in of(trace_events(both, run([])), "C", MEASURED)]
    assert counted == [(0.75e6, 2), (1e6, 1), (3e6, 0)]


def _outcomes() -> list[str]:
    dtype = run([]).requests.schema["outcome"]
    assert isinstance(dtype, pl.Enum)
    return dtype.categories.to_list()


def test_a_warm_up_before_the_schedule_moves_both_worlds_alike() -> None:
    trace = trace_events(run([(-0.5, -0.25, 1), (1.0, 1.5, 1)], wait_s=0.0), run([(1.0, 1.5, 1)]))
    assert trace["otherData"]["schedule_began_us"] == 0.5e6
    assert [event["ts"] for event in of(trace, "X", MEASURED)] == [0.0, 1.5e6]
    assert [event["ts"] for event in of(trace, "X", PREDICTED)] == [1.5e6]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(1e-7, 0.5), min_size=1, max_size=30), st.floats(0.0, 1e4))
def test_batches_without_a_gap_do_not_overlap(services_s: list[float], start_s: float) -> None:
    batches, now_s = [], start_s
    for service_s in services_s:
        batches.append((now_s, now_s + service_s, 2))
        now_s += service_s
    events = of(trace_events(run(batches), run([])), "X", MEASURED)
    assert len(events) == len(batches)
    ends_ns = [round((event["ts"] + event["dur"]) * 1000) for event in events]
    starts_ns = [round(event["ts"] * 1000) for event in events]
    assert all(event["dur"] >= 0 for event in events)
    assert all(end <= start for end, start in zip(ends_ns, starts_ns[1:], strict=False))


def test_times_of_a_world_rise() -> None:
    times = [e["ts"] for ph in "XC" for e in of(trace_events(steady(0.02), run([])), ph, MEASURED)]
    in_file = [e["ts"] for e in trace_events(steady(0.02), run([]))["traceEvents"] if e["ph"] != "M"]
    assert in_file == sorted(times)


@pytest.mark.parametrize("empty", [True, False])
def test_the_file_is_json_that_a_viewer_takes(tmp_path: Path, empty: bool) -> None:
    path = tmp_path / "new" / "timeline.json"
    write_timeline(path, run([]) if empty else steady(0.02), run([]))
    trace = json.loads(path.read_text(encoding="utf-8"))
    kinds = Counter(event["ph"] for event in trace["traceEvents"])
    assert kinds["X"] == (0 if empty else 50)
    assert trace["displayTimeUnit"] == "ms"
