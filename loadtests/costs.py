"""What the records of a calibration's runs tell: device times, and the seconds that the host takes around them.

    batch sweep ─▶ service_times, between_batches_s, reply_per_item_s ┐
    low load, replica alone ─▶ send, wake, reply                      ├─▶ HostCosts
    low load, through a gateway ─▶ send, forward, back, reply, busy ──┼─▶ GatewayCosts
    the same item again and again, out of its cache ─▶ hit ───────────┘

Functions of records; the runs are made by loadtests/calibrate.py.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from stages.calibration import Door, GatewayCosts, HostCosts, ServiceTimes
from stages.policies.batching import leaves_at_s
from stages.records import Records
from stages.spec import Stage

QUANTILES = 101
OFTEN = 5  # times that a batch size was seen
HELD_UP_S = 0.001  # an emulated batch that is so much later than most of its size waited for a processor


def service_times(sweep: Records, emulated: bool = False) -> tuple[ServiceTimes, ...]:
    """Device time of each batch size that the sweep saw at least OFTEN times, as quantiles.

    And of its smallest and its largest batches, however rare: other sizes lie between them. On a busy machine single
    requests meet in batches. An `emulated` device keeps its pace to hundredths of a millisecond: what it took longer
    was the host's, whose neighbours are others in the runs that are predicted, and is left out.
    """
    seconds = sweep.batches.with_columns((pl.col("finished_s") - pl.col("started_s")).alias("service_s"))
    if emulated:
        usual_s = pl.col("service_s").median().over("batch_size")
        seconds = seconds.filter(pl.col("service_s") <= usual_s + HELD_UP_S)
    ends = (seconds["batch_size"].min(), seconds["batch_size"].max())
    return tuple(
        ServiceTimes(batch_size=int(str(size)), quantiles_s=_quantiles(rows["service_s"]))
        for (size,), rows in sorted(seconds.group_by("batch_size"), key=lambda group: int(str(group[0][0])))
        if rows.height >= OFTEN or size in ends
    )


def host_costs(stage: Stage, sweep: Records, low_load: Records) -> HostCosts:
    """What the host takes around the device, from the sweep's batches and the low load's requests."""
    answered = _answered(low_load)
    firsts = _first_of_each_batch(answered)
    return HostCosts(
        send_quantiles_s=_quantiles(answered["arrived_s"] - answered["scheduled_s"]),
        wake_s=wake_s(stage, low_load),
        between_batches_s=between_batches_s(sweep),
        reply_quantiles_s=_quantiles(firsts["replied_s"] - firsts["finished_s"]),
        reply_per_item_s=reply_per_item_s(sweep),
    )


def gateway_costs(low_load: Records, busy_s: float, of: Door = "gateway") -> GatewayCosts:
    """The hops of a low load through a gateway, or a jobs API; `busy_s` is the processor time a request that it took.

    A gateway that does not tell when it had a request (nginx) is one long hop each way.
    """
    answered = _answered(low_load)
    firsts = _first_of_each_batch(answered)
    if answered["gateway_in_s"].null_count():
        return GatewayCosts(
            forward_quantiles_s=_quantiles(answered["arrived_s"] - answered["scheduled_s"]),
            back_quantiles_s=_quantiles(firsts["replied_s"] - firsts["finished_s"]),
            busy_s=busy_s,
            of=of,
        )
    return GatewayCosts(
        send_quantiles_s=_quantiles(answered["gateway_in_s"] - answered["scheduled_s"]),
        forward_quantiles_s=_quantiles(answered["arrived_s"] - answered["gateway_in_s"]),
        back_quantiles_s=_quantiles(firsts["gateway_out_s"] - firsts["finished_s"]),
        reply_quantiles_s=_quantiles(firsts["replied_s"] - firsts["gateway_out_s"]),
        busy_s=busy_s,
        of=of,
    )


def with_hits(costs: GatewayCosts, repeated: Records, busy_s: float) -> GatewayCosts:
    """The costs with those of a kept answer, from a low load of which nearly all was kept.

    As they were where none was kept: the place for answers is down, say.
    """
    hits = repeated.requests.filter((pl.col("outcome") == "ok") & (pl.col("cache") == "hit"))
    if not hits.height:
        return costs
    return costs.model_copy(
        update={"hit_busy_s": busy_s, "hit_reply_quantiles_s": _quantiles(hits["replied_s"] - hits["gateway_in_s"])}
    )


def wake_s(stage: Stage, low_load: Records) -> float:
    """Median seconds from the moment at which a batch may leave to its start, on an idle device."""
    batching = stage.batching
    rows = low_load.requests.filter(pl.col("outcome") == "ok").sort("batch", "arrived_s")
    late_s = []
    idle_from_s = 0.0
    for (_,), batch in rows.group_by("batch", maintain_order=True):
        arrived, started_s = batch["arrived_s"].to_list(), float(batch["started_s"][0])
        leaves_s = max(
            arrived[-1],
            leaves_at_s(len(arrived), arrived[0], batching.max_batch_size, batching.batch_wait_timeout_s),
        )
        if leaves_s > idle_from_s:
            late_s.append(max(0.0, started_s - leaves_s))
        idle_from_s = float(batch["finished_s"][0])
    return float(np.median(late_s)) if late_s else 0.0


def between_batches_s(sweep: Records) -> float:
    """Median seconds between the end of a batch and the start of the next, where all of the next had been waiting.

    Full batches alone: others may have waited for company. 0 where no batch had to wait.
    """
    came = sweep.requests.group_by("replica", "batch").agg(pl.col("arrived_s").max())
    gaps = (
        sweep.batches.sort("batch")
        .with_columns(pl.col("finished_s").shift(1).alias("before_s"))
        .join(came, on=["replica", "batch"])
        .filter(
            (pl.col("arrived_s") <= pl.col("before_s")) & (pl.col("batch_size") == sweep.batches["batch_size"].max())
        )
        .select(pl.col("started_s") - pl.col("before_s"))
        .to_series()
    )
    return max(0.0, float(np.median(gaps.to_numpy()))) if gaps.len() else 0.0


def reply_per_item_s(sweep: Records) -> float:
    """Median seconds from one answer of a batch to its next at the client."""
    spans = (
        sweep.requests.filter(pl.col("outcome") == "ok")
        .group_by("batch")
        .agg(((pl.col("replied_s").max() - pl.col("replied_s").min()) / (pl.len() - 1)).alias("step_s"), pl.len())
        .filter(pl.col("len") >= 2)
    )
    return float(np.median(spans["step_s"].to_numpy())) if spans.height else 0.0


def _answered(low_load: Records) -> pl.DataFrame:
    """What was computed for the request itself: a kept answer, or that of another, was in no batch."""
    own = (pl.col("outcome") == "ok") & pl.col("batch").is_not_null()
    return low_load.requests.filter(own).sort("finished_s", "replied_s")


def _first_of_each_batch(answered: pl.DataFrame) -> pl.DataFrame:
    """The answer of each batch that was back first."""
    return answered.group_by("batch", maintain_order=True).first()


def _quantiles(values: pl.Series) -> tuple[float, ...]:
    """The sample's quantiles at (i + 1/2) / QUANTILES, so that its most, one freak of many, is not drawn often."""
    at = (np.arange(QUANTILES) + 0.5) / QUANTILES
    return tuple(round(float(max(0.0, point)), 7) for point in np.quantile(values.to_numpy(), at))
