"""The record of a run: one row a request, one row a batch, one row a replica's life. The same in both worlds.

    scheduled ─▶ sent ─▶ gateway_in ─▶ arrived ─▶ started ─▶ finished ─▶ gateway_out ─▶ replied
         client         │  gateway  │  queue   │   device   │     gateway     │ client

All in seconds since the schedule began.

Times are null where a request never came so far. `replied_s` is the end of every story: the last byte of an
answer or a refusal, or the moment at which the client gave up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from stages.outcomes import ARMS, CACHE, OUTCOMES, REASONS

_Columns = dict[str, pl.DataType | type[pl.DataType]]

_REQUESTS: _Columns = {
    "request": pl.Int64,  # index in the schedule; in a closed loop, the order of sending
    "item": pl.Int64,  # which input was asked for
    "scheduled_s": pl.Float64,  # when the client was to send
    "sent_s": pl.Float64,  # when it did
    "gateway_in_s": pl.Float64,  # when the gateway had read it; null where there is none
    "arrived_s": pl.Float64,  # when the replica had the decoded input: the queue wait begins
    "started_s": pl.Float64,  # when its batch started on the device
    "finished_s": pl.Float64,  # when its batch was done
    "gateway_out_s": pl.Float64,  # when the gateway had the replica's answer
    "replied_s": pl.Float64,  # last byte back at the client, or the client's giving up
    "outcome": pl.Enum(OUTCOMES),
    "reason": pl.Enum(REASONS),
    "replica": pl.Int64,
    "batch": pl.Int64,  # number of the batch on its replica
    "batch_size": pl.Int64,
    "tries": pl.Int64,  # replicas that the gateway sent it to, the last one included
    "cache": pl.Enum(CACHE),  # empty where nobody looked; hits and joined ones were on no replica
    "arm": pl.Enum(ARMS),  # empty where there is one version
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

_SCALING: _Columns = {
    "at_s": pl.Float64,  # when an autoscaler decided
    "wanted": pl.Int64,  # replicas
    "ready": pl.Int64,
    "starting": pl.Int64,
    "value": pl.Float64,  # of the metric that it goes by; null where nothing told it
    "why": pl.String,
}

REQUESTS, BATCHES, REPLICAS = pl.Schema(_REQUESTS), pl.Schema(_BATCHES), pl.Schema(_REPLICAS)
SCALING = pl.Schema(_SCALING)


def looks_frame(looks: Iterable[tuple[float, int, int, int, float | None, str]]) -> pl.DataFrame:
    """An autoscaler's decisions, a row each, in the order of the columns of SCALING."""
    return pl.DataFrame(list(looks), schema=SCALING, orient="row")


@dataclass(frozen=True)
class Records:
    """What one run left behind. `window_s` is the length of the schedule; rates are per second of it.

    `scaling` has a row a decision of the autoscaler, and none where there is no autoscaler.
    """

    requests: pl.DataFrame
    batches: pl.DataFrame
    replicas: pl.DataFrame
    window_s: float
    scaling: pl.DataFrame = field(default_factory=lambda: looks_frame(()))

    def __post_init__(self) -> None:
        schemas = {"requests": REQUESTS, "batches": BATCHES, "replicas": REPLICAS, "scaling": SCALING}
        for name, schema in schemas.items():
            frame: pl.DataFrame = getattr(self, name)
            if frame.schema != schema:
                raise ValueError(f"{name}: columns {frame.schema} are not those of stages.records: {schema}")


_WINDOW = "rung.window_s"


def write(records: Records, folder: Path) -> None:
    """Writes requests.parquet, batches.parquet and replicas.parquet into `folder`, which is made if need be.

    And scaling.parquet, where an autoscaler decided anything.
    """
    folder.mkdir(parents=True, exist_ok=True)
    records.requests.write_parquet(folder / "requests.parquet", metadata={_WINDOW: repr(records.window_s)})
    records.batches.write_parquet(folder / "batches.parquet")
    records.replicas.write_parquet(folder / "replicas.parquet")
    if records.scaling.height:
        records.scaling.write_parquet(folder / "scaling.parquet")


def read(folder: Path) -> Records:
    """Reads back what `write` left in `folder`. Raises FileNotFoundError where a file is missing.

    A folder of before there were caches, or arms, says that there was none.
    """
    metadata = pl.read_parquet_metadata(folder / "requests.parquet")
    requests = pl.read_parquet(folder / "requests.parquet")
    later = {"cache": pl.Enum(CACHE), "arm": pl.Enum(ARMS)}
    none = [pl.lit("", dtype=kind).alias(name) for name, kind in later.items() if name not in requests.columns]
    scaling = folder / "scaling.parquet"
    return Records(
        requests=requests.with_columns(none).select(REQUESTS.names()) if none else requests,
        batches=pl.read_parquet(folder / "batches.parquet"),
        replicas=pl.read_parquet(folder / "replicas.parquet"),
        window_s=float(metadata[_WINDOW]),
        scaling=pl.read_parquet(scaling) if scaling.exists() else looks_frame(()),
    )
