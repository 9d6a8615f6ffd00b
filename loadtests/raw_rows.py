"""Rows as the load generator notes them, and the records that they become.

Locust: rows-<worker>.parquet          ┐
replica or gateway: GET /batches       ├──▶ Records
launcher: who lived from when to when  ┘
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from reference_apps.launchers.member import Life
from stages.outcomes import REASONS
from stages.records import BATCHES, REPLICAS, REQUESTS, Records

SCHEMA: dict[str, type[pl.DataType]] = {
    "request": pl.Int64,
    "item": pl.Int64,
    "scheduled_s": pl.Float64,
    "sent_s": pl.Float64,
    "replied_s": pl.Float64,
    "status": pl.Int64,
    "reason": pl.String,
    "record": pl.String,  # the header x-rung-record of an answer, or of a gateway's refusal
    "error": pl.String,
}

Batch = tuple[int, int, float, float, int]  # replica, batch, started_s, finished_s, batch_size; monotonic times

BEGAN = ".began"  # the suffix of the file in which Locust says when its schedule begins, in monotonic seconds
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
    fired: Fired,
    batches: Iterable[Batch],
    window_s: float,
    device_of: Callable[[int], str],
    lives: Sequence[Life] = (),
    arm_of: Callable[[int], str] = lambda _: "",
) -> Records:
    """Records of a run from what it left; monotonic times become seconds from the beginning of the schedule.

    `batches` are those that replicas told of; what only answers tell of is added. `lives` are of the replicas that are
    known to have been there; any other has the device that `device_of` says, and the whole run.
    `arm_of` says which version a replica runs, for answers that do not tell.
    """
    began_s = fired.began_s
    rows = fired.rows.with_columns(
        *(_field(name).cast(pl.Int64).alias(name) for name in ("replica", "batch", "batch_size", "tries"))
    )
    arms = {number: arm_of(number) for number in rows["replica"].drop_nulls().unique().to_list()}
    requests = (
        rows.with_columns(
            *(
                (_field(name).cast(pl.Float64) - began_s).alias(name)
                for name in ("gateway_in_s", "arrived_s", "started_s", "finished_s", "gateway_out_s")
            ),
            _field("cache").fill_null("").alias("cache"),
            _field("arm").alias("arm"),
            _outcome().alias("outcome"),
        )
        .with_columns(_reason().alias("reason"), _arm(arms).alias("arm"))
        .select([pl.col(name).cast(dtype) for name, dtype in REQUESTS.items()])
    )
    told = {(row[0], row[1]): row for row in [*answered_batches(fired), *batches]}
    frame = pl.DataFrame(sorted(told.values()), schema=BATCHES, orient="row").with_columns(
        pl.col("started_s") - began_s, pl.col("finished_s") - began_s
    )
    end_s = max([window_s, *(requests["replied_s"].drop_nulls().to_list())])
    seen = sorted(set(frame["replica"].to_list()))
    replicas = pl.DataFrame(_lives(seen, lives, device_of, began_s, end_s), schema=REPLICAS, orient="row")
    return Records(requests, frame, replicas, window_s)


def _lives(
    seen: list[int], lives: Sequence[Life], device_of: Callable[[int], str], began_s: float, end_s: float
) -> list[tuple[int, str, float, float | None, float]]:
    """Rows of the replicas that were there during the run, in seconds from its beginning."""
    rows = [
        (
            life.replica,
            life.device,
            life.started_s - began_s,
            None if life.ready_s is None else life.ready_s - began_s,
            end_s if life.stopped_s is None else min(end_s, life.stopped_s - began_s),
        )
        for life in lives
        if (life.stopped_s is None or life.stopped_s > began_s) and life.started_s < began_s + end_s
    ]
    known = {row[0] for row in rows}
    others = [number for number in seen if number not in known] or ([] if rows else [0])
    rows += [(number, device_of(number), 0.0, 0.0, end_s) for number in others]
    return sorted(rows, key=lambda row: row[:3])


def answered_batches(fired: Fired) -> list[Batch]:
    """The batches that answers came from: all that is known of a replica that is gone."""
    fields = [_field(name).cast(dtype).alias(name) for name, dtype in BATCHES.items()]
    return fired.rows.select(fields).filter(pl.col("batch").is_not_null()).unique().rows()


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


def _arm(arms: Mapping[int, str]) -> pl.Expr:
    """The version that a request was for: nginx does not tell, and refuses without a word of it."""
    of_replica = pl.col("replica").replace_strict(arms, default="", return_dtype=pl.String) if arms else pl.lit("")
    return pl.coalesce("arm", of_replica, pl.lit(""))


def _reason() -> pl.Expr:
    status = pl.col("status")
    return (
        pl.when(status == 200)
        .then(pl.lit(""))
        .when((status > 0) & pl.col("reason").is_in([reason for reason in REASONS if reason]))
        .then(pl.col("reason"))
        .when(pl.col("error") == GAVE_UP)
        .then(pl.lit("client_timeout"))
        .when((status >= 400) & (status < 500))
        .then(pl.lit("bad_input"))
        .otherwise(pl.lit("connection"))
    )
