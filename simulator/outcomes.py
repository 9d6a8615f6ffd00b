"""From what a replica did to what every client saw: the record of a simulated run.

    schedule, arrivals ─┐
    ReplicaLog ─────────┴──▶ records: outcome, reason, replied_s … one row a request, one a batch, one a replica

A client gives up `traffic.timeout_s` after its scheduled time; the replica does not know it and does the work.
No twin: the running stack's clients keep the record (loadtests).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from simulator.draws import Floats
from simulator.host import Host, Ints
from stages.records import BATCHES, OUTCOMES, REASONS, REPLICAS, REQUESTS, Records

OK, SHED, TIMED_OUT = (OUTCOMES.index(name) for name in ("ok", "shed", "timed_out"))
ANSWERED, QUEUE_FULL, DEADLINE, CLIENT_TIMEOUT = (
    REASONS.index(name) for name in ("", "queue_full", "deadline", "client_timeout")
)


@dataclass(frozen=True)
class ReplicaLog:
    """What one replica did: batches in order, and the numbers of the requests that each fate befell.

    `served` holds the requests of all batches one after the other, in the order in which they left the queue.
    """

    started_s: Floats  # one a batch
    finished_s: Floats
    sizes: Ints
    served: Ints  # sum(sizes) request numbers
    shed: Ints  # request numbers
    expired: Ints  # request numbers
    expired_s: Floats  # when each of those was dropped


def to_records(
    scheduled_s: Floats,
    items: Ints,
    arrived_s: Floats,
    log: ReplicaLog,
    host: Host,
    *,
    timeout_s: float,
    window_s: float,
    device_label: str,
) -> Records:
    """The record of a run on one replica; the arrays have one entry a request, times in seconds."""
    batch, place = _places(log.sizes)
    replied_s = np.empty(scheduled_s.size)
    replied_s[log.served] = host.answers_s(log.finished_s[batch], batch, place)
    replied_s[log.shed] = host.refusals_s(arrived_s[log.shed], log.shed)
    replied_s[log.expired] = host.refusals_s(log.expired_s, log.expired)
    outcome = np.full(scheduled_s.size, OK, dtype=np.int8)
    reason = np.full(scheduled_s.size, ANSWERED, dtype=np.int8)
    outcome[log.shed], reason[log.shed] = SHED, QUEUE_FULL
    outcome[log.expired], reason[log.expired] = TIMED_OUT, DEADLINE
    gives_up_s = scheduled_s + timeout_s
    gone = replied_s > gives_up_s
    outcome[gone], reason[gone] = TIMED_OUT, CLIENT_TIMEOUT
    np.minimum(replied_s, gives_up_s, out=replied_s)
    requests = {
        "request": np.arange(scheduled_s.size),
        "item": items,
        "scheduled_s": scheduled_s,
        "sent_s": scheduled_s,
        "arrived_s": arrived_s,
        "started_s": _for_served(log, scheduled_s.size, log.started_s[batch]),
        "finished_s": _for_served(log, scheduled_s.size, log.finished_s[batch]),
        "replied_s": replied_s,
        "outcome": _enum(OUTCOMES, outcome),
        "reason": _enum(REASONS, reason),
        "replica": np.zeros(scheduled_s.size, dtype=np.int64),
        "batch": _for_served(log, scheduled_s.size, batch),
        "batch_size": _for_served(log, scheduled_s.size, log.sizes[batch]),
    }
    end_s = max(window_s, float(replied_s.max(initial=0.0)), float(log.finished_s.max(initial=0.0)))
    return Records(pl.DataFrame(requests, schema=REQUESTS), _batches(log), _replica(device_label, end_s), window_s)


def _places(sizes: Ints) -> tuple[Ints, Ints]:
    """For each served request in order: the number of its batch, and its place in it."""
    batch = np.repeat(np.arange(sizes.size), sizes)
    firsts = np.cumsum(sizes) - sizes
    return batch, np.arange(batch.size) - firsts[batch]


def _for_served(log: ReplicaLog, count: int, values: Floats | Ints) -> pl.Series:
    """A column with `values` at the served requests and null at the others."""
    column = np.zeros(count, dtype=values.dtype)
    column[log.served] = values
    series = pl.Series(column)
    if log.served.size == count:
        return series
    served = np.zeros(count, dtype=bool)
    served[log.served] = True
    return pl.select(pl.when(pl.Series(served)).then(series)).to_series()


def _enum(names: tuple[str, ...], codes: np.ndarray) -> pl.Series:
    return pl.Series(names, dtype=pl.Enum(names)).gather(codes)


def _batches(log: ReplicaLog) -> pl.DataFrame:
    count = log.sizes.size
    columns = {
        "replica": np.zeros(count, dtype=np.int64),
        "batch": np.arange(count),
        "started_s": log.started_s,
        "finished_s": log.finished_s,
        "batch_size": log.sizes,
    }
    return pl.DataFrame(columns, schema=BATCHES)


def _replica(label: str, end_s: float) -> pl.DataFrame:
    columns = {"replica": [0], "device": [label], "started_s": [0.0], "ready_s": [0.0], "stopped_s": [end_s]}
    return pl.DataFrame(columns, schema=REPLICAS)
