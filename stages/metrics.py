"""What a run amounts to: throughput, goodput, percentiles, utilisation. Functions of records of either world."""

from __future__ import annotations

import math

import numpy as np
import polars as pl

from stages.records import Records

PERCENTILES = (50, 90, 95, 99)

METRICS = (
    "throughput_rps",
    "goodput_rps",
    "shed_share",
    "timed_out_share",
    "failed_share",
    *(f"latency_s_p{p}" for p in PERCENTILES),
    "latency_s_mean",
    "queue_wait_s_mean",
    "queue_wait_s_p95",
    "batch_size_mean",
    "device_throughput_ips",
    "utilisation",
    "hit_ratio",
    "joined_ratio",
)


def summarise(records: Records, slo_latency_s: float) -> dict[str, float]:
    """Every metric of METRICS by name. NaN where there is nothing to measure (no answer, no batch).

    - `throughput_rps`: answers per second of the window that came back within it; late ones do not count, so
      that a queue left over at the end is not taken for capacity.
    - `goodput_rps`: those of them within `slo_latency_s` of the scheduled time.
    - `shed_share`, `timed_out_share`, `failed_share`: of all requests of the schedule.
    - `latency_s_*`: scheduled send to last byte back, over all answers, also those after the window.
    - `queue_wait_s_*`: arrival at the replica to the start of the batch, over all answers that were computed.
    - `batch_size_mean`: requests per batch, over batches that started within the window.
    - `device_throughput_ips`: items per second of device-busy time. `utilisation`: busy time within the
      window over the time that replicas were ready within it.
    - `hit_ratio`, `joined_ratio`: requests whose answer was kept, and those that waited for that of another, over all
      that were looked up in the gateway's cache. What is left over was computed, or refused.
    """
    requests, window_s = records.requests, records.window_s
    total = requests.height
    ok = requests.filter(pl.col("outcome") == "ok")
    in_time = ok.filter(pl.col("replied_s") <= window_s)
    latency_s = (ok["replied_s"] - ok["scheduled_s"]).to_numpy()
    in_time_latency_s = in_time["replied_s"] - in_time["scheduled_s"]
    queue_wait_s = (ok["started_s"] - ok["arrived_s"]).drop_nulls().to_numpy()
    result = {
        "throughput_rps": in_time.height / window_s,
        "goodput_rps": int((in_time_latency_s <= slo_latency_s).sum()) / window_s,
    }
    for outcome in ("shed", "timed_out", "failed"):
        share = int((requests["outcome"] == outcome).sum()) / total if total else math.nan
        result[f"{outcome}_share"] = share
    for p in PERCENTILES:
        result[f"latency_s_p{p}"] = _percentile(latency_s, p)
    result["latency_s_mean"] = float(latency_s.mean()) if latency_s.size else math.nan
    result["queue_wait_s_mean"] = float(queue_wait_s.mean()) if queue_wait_s.size else math.nan
    result["queue_wait_s_p95"] = _percentile(queue_wait_s, 95)
    return result | _device_metrics(records) | _cache_metrics(requests)


def busy_s(batches: pl.DataFrame, start_s: float, end_s: float) -> float:
    """Device-busy seconds of `batches` that fall between `start_s` and `end_s`."""
    clipped = batches.select(
        (pl.col("finished_s").clip(start_s, end_s) - pl.col("started_s").clip(start_s, end_s)).sum()
    )
    return float(clipped.item() or 0.0)


def replica_seconds(records: Records) -> float:
    """Seconds of the window for which replicas were paid, from start to stop: cold starts and drains included."""
    lives, window_s = records.replicas, records.window_s
    paid_s = lives.select((pl.col("stopped_s").clip(0, window_s) - pl.col("started_s").clip(0, window_s)).sum())
    return float(paid_s.item() or 0.0)


def _device_metrics(records: Records) -> dict[str, float]:
    batches, replicas, window_s = records.batches, records.replicas, records.window_s
    within = batches.filter((pl.col("started_s") >= 0) & (pl.col("started_s") < window_s))
    available_s = float(
        replicas.select((pl.col("stopped_s").clip(0, window_s) - pl.col("ready_s").clip(0, window_s)).sum()).item()
        or 0.0
    )
    occupied_s = float((within["finished_s"] - within["started_s"]).sum())
    mean_size = within["batch_size"].mean()
    return {
        "batch_size_mean": float(mean_size) if isinstance(mean_size, (int, float)) else math.nan,
        "device_throughput_ips": float(within["batch_size"].sum()) / occupied_s if occupied_s else math.nan,
        "utilisation": busy_s(batches, 0.0, window_s) / available_s if available_s else math.nan,
    }


def _cache_metrics(requests: pl.DataFrame) -> dict[str, float]:
    found = requests["cache"]
    hits, joined, misses = (int((found == how).sum()) for how in ("hit", "joined", "miss"))
    looked_up = hits + joined + misses
    return {
        "hit_ratio": hits / looked_up if looked_up else math.nan,
        "joined_ratio": joined / looked_up if looked_up else math.nan,
    }


def _percentile(values: np.ndarray, percent: float) -> float:
    """The percentile by linear interpolation between order statistics (numpy's default, Hyndman and Fan's type 7)."""
    return float(np.percentile(values, percent)) if values.size else math.nan
