"""The record of a run: one row a request, one row a batch, one row a replica's life. The same in both worlds.

    scheduled ─▶ sent ─▶ arrived ─▶ started ─▶ finished ─▶ replied        (seconds since the schedule began)
         client         │  queue   │   device   │        client

Times are null where a request never came so far. `replied_s` is the end of every story: the last byte of an
answer or a refusal, or the moment at which the client gave up.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

OUTCOMES = ("ok", "shed", "timed_out", "failed")
REASONS = (
    "",
    "queue_full",
    "deadline",
    "client_timeout",
    "draining",
    "connection",
    "bad_input",
    "model_error",
    "unfinished",
)

_Columns = dict[str, pl.DataType | type[pl.DataType]]

_REQUESTS: _Columns = {
    "request": pl.Int64,  # index in the schedule; in a closed loop, the order of sending
    "item": pl.Int64,  # which input was asked for
    "scheduled_s": pl.Float64,  # when the client was to send
    "sent_s": pl.Float64,  # when it did
    "arrived_s": pl.Float64,  # when the replica had the decoded input: the queue wait begins
    "started_s": pl.Float64,  # when its batch started on the device
    "finished_s": pl.Float64,  # when its batch was done
    "replied_s": pl.Float64,  # last byte back at the client, or the client's giving up
    "outcome": pl.Enum(OUTCOMES),
    "reason": pl.Enum(REASONS),
    "replica": pl.Int64,
    "batch": pl.Int64,  # number of the batch on its replica
    "batch_size": pl.Int64,
}
_BATCHES: _Columns = {
    "replica": pl.Int64,
    "batch": pl.Int64,
    "started_s": pl.Float64,
    "finished_s": pl.Float64,
    "batch_size": pl.Int64,
}
_REPLICAS: _Columns = {
    "replica": pl.Int64,
    "device": pl.String,  # as reports name it: "cpu", "cuda", "emulated t4-resnet50-fp16-pytorch"
    "started_s": pl.Float64,
    "ready_s": pl.Float64,
    "stopped_s": pl.Float64,  # the end of the run for a replica that outlived it
}

REQUESTS, BATCHES, REPLICAS = pl.Schema(_REQUESTS), pl.Schema(_BATCHES), pl.Schema(_REPLICAS)


@dataclass(frozen=True)
class Records:
    """What one run left behind. `window_s` is the length of the schedule; rates are per second of it."""

    requests: pl.DataFrame
    batches: pl.DataFrame
    replicas: pl.DataFrame
    window_s: float

    def __post_init__(self) -> None:
        for name, schema in (("requests", REQUESTS), ("batches", BATCHES), ("replicas", REPLICAS)):
            frame: pl.DataFrame = getattr(self, name)
            if frame.schema != schema:
                raise ValueError(f"{name}: columns {frame.schema} are not those of stages.records: {schema}")


_WINDOW = "rung.window_s"


def write(records: Records, folder: Path) -> None:
    """Writes requests.parquet, batches.parquet and replicas.parquet into `folder`, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    records.requests.write_parquet(folder / "requests.parquet", metadata={_WINDOW: repr(records.window_s)})
    records.batches.write_parquet(folder / "batches.parquet")
    records.replicas.write_parquet(folder / "replicas.parquet")


def read(folder: Path) -> Records:
    """Reads back what `write` left in `folder`. Raises FileNotFoundError where a file is missing."""
    metadata = pl.read_parquet_metadata(folder / "requests.parquet")
    return Records(
        requests=pl.read_parquet(folder / "requests.parquet"),
        batches=pl.read_parquet(folder / "batches.parquet"),
        replicas=pl.read_parquet(folder / "replicas.parquet"),
        window_s=float(metadata[_WINDOW]),
    )
