"""Rows as the load generator notes them, and the records that they become.

Locust: rows-<worker>.parquet ┐
replica: GET /batches         ├──▶ Records
launcher: start and ready     ┘
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from stages.records import BATCHES, REPLICAS, REQUESTS, Records

SCHEMA: dict[str, type[pl.DataType]] = {
    "request": pl.Int64,
    "item": pl.Int64,
    "scheduled_s": pl.Float64,
    "sent_s": pl.Float64,
    "replied_s": pl.Float64,
    "status": pl.Int64,
    "reason": pl.String,
    "record": pl.String,  # the header x-rung-record of an answer
    "error": pl.String,
}


GAVE_UP = "the client gave up"  # in the column `error`: no answer before the client's own timeout


@dataclass(frozen=True)
class Fired:
    """What one run of the load generator left: its rows, and what it can say of itself."""

    rows: pl.DataFrame
    began_s: float  # the monotonic time that all other times count from
    due: int  # requests that the schedule held
    cpu_share_max: float  # of one core, of the busiest worker


def read(stem: Path, workers: int = 1) -> Fired:
    """Gathers the files that the workers of one run wrote under `stem`. Raises FileNotFoundError if one is missing."""
    parts = sorted(stem.parent.glob(f"{stem.stem}-*.parquet"))
    if len(parts) != workers:
        raise FileNotFoundError(f"{stem.parent}: {len(parts)} of {workers} processes left {stem.stem}-*.parquet")
    summaries = [json.loads(part.with_suffix(".json").read_text()) for part in parts]
    rows = pl.concat([pl.read_parquet(part) for part in parts])
    if rows.height and bool((rows["request"] < 0).any()):  # a closed loop: numbered in the order of sending
        rows = rows.sort("sent_s").with_columns(pl.int_range(pl.len()).alias("request"))
    return Fired(
        rows=rows.sort("request"),
        began_s=float(summaries[0]["began_s"]),
        due=sum(int(s["due"]) for s in summaries),
        cpu_share_max=max(float(s["cpu_s"]) / max(float(s["wall_s"]), 1e-9) for s in summaries),
    )


def to_records(
    fired: Fired, batches: list[tuple[int, int, float, float, int]], device: str, window_s: float
) -> Records:
    """Records of a run from what it left.

    `batches` are rows (replica, batch, started_s, finished_s, batch_size) in monotonic time; times become seconds
    from the beginning of the schedule.
    """
    began_s = fired.began_s
    requests = (
        fired.rows.with_columns(
            *(_field(name).cast(pl.Int64).alias(name) for name in ("replica", "batch", "batch_size")),
            *(
                (_field(name).cast(pl.Float64) - began_s).alias(name)
                for name in ("arrived_s", "started_s", "finished_s")
            ),
            _outcome().alias("outcome"),
        )
        .with_columns(_reason().alias("reason"))
        .select([pl.col(name).cast(dtype) for name, dtype in REQUESTS.items()])
    )
    frame = pl.DataFrame(batches, schema=BATCHES, orient="row").with_columns(
        pl.col("started_s") - began_s, pl.col("finished_s") - began_s
    )
    end_s = max([window_s, *(requests["replied_s"].drop_nulls().to_list())])
    replicas = pl.DataFrame(
        [(replica, device, 0.0, 0.0, end_s) for replica in sorted(set(frame["replica"].to_list())) or [0]],
        schema=REPLICAS,
        orient="row",
    )
    return Records(requests, frame.sort("replica", "batch"), replicas, window_s)


def answered_batches(fired: Fired) -> list[tuple[int, int, float, float, int]]:
    """The batches that answers came from, as `to_records` takes them: all that is known when a replica is gone."""
    fields = [_field(name).cast(dtype).alias(name) for name, dtype in BATCHES.items()]
    return fired.rows.filter(pl.col("record").is_not_null()).select(fields).unique().rows()


def _field(name: str) -> pl.Expr:
    return pl.col("record").str.extract(rf"(?:^|,){name}=([^,]+)", 1)


def _outcome() -> pl.Expr:
    status, gave_up = pl.col("status"), pl.col("error") == GAVE_UP
    return (
        pl.when(status == 200)
        .then(pl.lit("ok"))
        .when(status == 503)
        .then(pl.lit("shed"))
        .when((status == 504) | ((status == 0) & gave_up))
        .then(pl.lit("timed_out"))
        .otherwise(pl.lit("failed"))
    )


def _reason() -> pl.Expr:
    known = ["queue_full", "deadline", "draining", "bad_input", "model_error"]
    return (
        pl.when(pl.col("status") == 200)
        .then(pl.lit(""))
        .when(pl.col("reason").is_in(known))
        .then(pl.col("reason"))
        .when(pl.col("error") == GAVE_UP)
        .then(pl.lit("client_timeout"))
        .otherwise(pl.lit("connection"))
    )
