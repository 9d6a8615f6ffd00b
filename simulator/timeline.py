"""A timeline of both worlds in Chrome's trace-event format, for https://ui.perfetto.dev or chrome://tracing.

    measured  (process 1) ─ replica 0 (row) ─ batches as slices, and the length of its queue as a counter
                          ─ replica 1 (row) …
                          ─ requests inside the gateway as a counter
    predicted (process 2) ─ the same, on the same clock

No twin: a function of records. The format: JSON object format, complete events `X`, counters `C` and metadata
`M` of https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU. Not shown: requests one
by one, and those that were refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import polars as pl

from stages.records import Records

Event = dict[str, Any]


def trace_events(measured: Records, predicted: Records) -> dict[str, Any]:
    """The trace as a JSON object: `traceEvents`, times and durations in microseconds to the nanosecond.

    Time 0 is the start of the schedule, or the first event of either world if one came before it (a warm-up):
    `otherData.schedule_began_us` says where the schedule starts. One slice a batch, ordered by time.
    """
    worlds = {"measured": measured, "predicted": predicted}
    began_s = -min(0.0, *(_first_s(records) for records in worlds.values()))
    events: list[Event] = []
    for pid, (world, records) in enumerate(worlds.items(), start=1):
        events += _names(pid, world, records)
        timed = [
            *_slices(pid, records, began_s),
            *_queue_lengths(pid, records, began_s),
            *_in_gateway(pid, records, began_s),
        ]
        events += sorted(timed, key=lambda event: float(event["ts"]))
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"schedule_began_us": _us(_ns(began_s)), "window_s": measured.window_s},
    }


def write_timeline(path: Path, measured: Records, predicted: Records) -> None:
    """Writes the timeline of one run and its prediction to `path`, whose folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(orjson.dumps(trace_events(measured, predicted)))


def _first_s(records: Records) -> float:
    """The earliest start of a batch or arrival of a request; 0 where there is none."""
    firsts = (records.batches["started_s"].min(), records.requests["arrived_s"].min())
    return min((first for first in firsts if isinstance(first, float)), default=0.0)


def _names(pid: int, world: str, records: Records) -> list[Event]:
    """Names and order of a world and its replicas. Rows start at 1: viewers take thread 0 for an idle one."""
    labels = [("process_name", 0, {"name": world}), ("process_sort_index", 0, {"sort_index": pid})]
    for replica, device in records.replicas.select("replica", "device").iter_rows():
        labels.append(("thread_name", replica + 1, {"name": f"replica {replica}, {device}"}))
        labels.append(("thread_sort_index", replica + 1, {"sort_index": replica}))
    return [{"name": name, "ph": "M", "pid": pid, "tid": tid, "args": args} for name, tid, args in labels]


def _slices(pid: int, records: Records, began_s: float) -> list[Event]:
    """A complete event for each batch. Start and end are rounded before the duration is taken, so that batches
    that follow each other without a gap do not overlap: viewers want the slices of a row to nest."""
    riders = records.requests.drop_nulls(["replica", "batch"]).group_by("replica", "batch")
    requests = riders.agg(
        pl.col("request").min().alias("first"),
        pl.col("request").max().alias("last"),
        (pl.col("started_s") - pl.col("arrived_s")).max().alias("longest_wait_s"),
    )
    batches = records.batches.drop_nulls(["started_s", "finished_s"])
    events: list[Event] = []
    for row in batches.join(requests, on=["replica", "batch"], how="left").iter_rows(named=True):
        start_ns = _ns(row["started_s"] + began_s)
        args = {"batch": row["batch"], "batch_size": row["batch_size"]}
        if row["first"] is not None:
            args |= {"first_request": row["first"], "last_request": row["last"]}
        if row["longest_wait_s"] is not None:
            args["longest_queue_wait_ms"] = round(1e3 * row["longest_wait_s"], 3)
        events.append(
            {
                "name": f"batch of {row['batch_size']}",
                "cat": "batch",
                "ph": "X",
                "ts": _us(start_ns),
                "dur": _us(max(_ns(row["finished_s"] + began_s) - start_ns, 0)),
                "pid": pid,
                "tid": row["replica"] + 1,
                "args": args,
            }
        )
    return events


def _queue_lengths(pid: int, records: Records, began_s: float) -> list[Event]:
    """A counter a replica: +1 when a request comes into its queue, -1 when its batch starts or its story ends.

    Refused requests were never in the queue; one whose client gave up while it waited leaves at that moment.
    """
    queued = records.requests.filter(
        (pl.col("outcome") != "shed") & pl.col("arrived_s").is_not_null() & pl.col("replica").is_not_null()
    )
    enters = queued.select("replica", at_s="arrived_s", change=pl.lit(1))
    leaves = queued.select("replica", at_s=pl.coalesce("started_s", "replied_s"), change=pl.lit(-1))
    lengths = _running(pl.concat([enters, leaves.drop_nulls("at_s")]), "replica")
    return [
        _counter(f"queue of replica {replica}", pid, replica + 1, at_s + began_s, length)
        for replica, at_s, length in lengths.select("replica", "at_s", "length").iter_rows()
    ]


def _in_gateway(pid: int, records: Records, began_s: float) -> list[Event]:
    """A counter of the requests inside the gateway: from read to answered, or to their client's giving up."""
    came = records.requests.drop_nulls("gateway_in_s")
    enters = came.select(at_s="gateway_in_s", change=pl.lit(1))
    leaves = came.select(at_s=pl.coalesce("gateway_out_s", "replied_s"), change=pl.lit(-1))
    lengths = _running(pl.concat([enters, leaves]).with_columns(gateway=0), "gateway")
    return [
        _counter("inside the gateway", pid, 0, at_s + began_s, length)
        for at_s, length in lengths.select("at_s", "length").iter_rows()
    ]


def _running(steps: pl.DataFrame, of: str) -> pl.DataFrame:
    """The running sum of `change` at every moment of each `of`, as `length`."""
    steps = steps.group_by(of, "at_s").agg(pl.col("change").sum()).sort(of, "at_s")
    return steps.with_columns(length=pl.col("change").cum_sum().over(of))


def _counter(name: str, pid: int, tid: int, at_s: float, requests: int) -> Event:
    return {"name": name, "ph": "C", "ts": _us(_ns(at_s)), "pid": pid, "tid": tid, "args": {"requests": requests}}


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _us(nanoseconds: int) -> float:
    return nanoseconds / 1000
