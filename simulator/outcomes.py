"""From what a replica did to what every client saw: the record of a simulated run.

    schedule, arrivals ─┐
    ReplicaLog ─────────┴──▶ records: outcome, reason, replied_s … one row a request, one a batch, one a replica

    schedule, GatewayLog ────┐
    a ReplicaLog a replica ──┴──▶ the same

A client gives up `traffic.timeout_s` after its scheduled time; the stack does not know it and does the work.
No twin: the running stack's clients keep the record (loadtests).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from simulator.draws import Floats
from simulator.host import Host, Ints
from stages.outcomes import ARMS, CACHE, OUTCOMES, REASONS
from stages.records import BATCHES, REPLICAS, REQUESTS, Records

ANSWERED, QUEUE_FULL, DEADLINE, CLIENT_TIMEOUT, MODEL_ERROR = (
    REASONS.index(name) for name in ("", "queue_full", "deadline", "client_timeout", "model_error")
)
# Reason → outcome: what the running gateway's status says to a client (503, 504, 502).
OUTCOME_OF = {
    "": "ok",
    "queue_full": "shed",
    "draining": "shed",
    "gateway_full": "shed",
    "no_replica": "shed",
    "deadline": "timed_out",
    "upstream_timeout": "timed_out",
    "client_timeout": "timed_out",
    "upstream_lost": "failed",
}
_OUTCOME_CODES = np.array([OUTCOMES.index(OUTCOME_OF.get(reason, "failed")) for reason in REASONS], dtype=np.int8)

_Columns = Mapping[str, Floats | Ints | pl.Series]


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
    # Of the served: those that the model failed on.
    crashed: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))


@dataclass(frozen=True)
class GatewayLog:
    """What a gateway did: an entry a request, in their order. Times are seconds, and NaN for what never came."""

    in_s: Floats  # read
    arrived_s: Floats  # in the queue of the last replica that it was sent to
    out_s: Floats  # that replica's answer or refusal was back
    replied_s: Floats  # back at the client, if it waits so long
    reasons: list[str]  # of stages.outcomes.REASONS
    replicas: Ints  # the last that it was sent to; -1 for none
    tries: Ints
    caches: list[str]  # of stages.outcomes.CACHE
    arms: list[str]  # of stages.outcomes.ARMS


@dataclass(frozen=True)
class Life:
    """One replica of a fleet: what it did, and when it was there. `stopped_s` is None for one that outlived the run."""

    number: int
    device: str
    log: ReplicaLog
    started_s: float = 0.0
    ready_s: float | None = 0.0  # None for one that was never ready
    stopped_s: float | None = None

    @classmethod
    def that_never_served(cls, number: int, device: str, started_s: float, stopped_s: float | None) -> Life:
        """One that was started and not ready before it was stopped, or before the run was over."""
        times, numbers = np.empty(0), np.empty(0, dtype=np.int64)
        nothing = ReplicaLog(times, times, numbers, numbers, numbers, numbers, times)
        return cls(number, device, nothing, started_s, None, stopped_s)


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
    batch, place = places(log.sizes)
    replied_s = np.empty(scheduled_s.size)
    replied_s[log.served] = host.answers_s(log.finished_s[batch], batch, place)
    replied_s[log.shed] = host.refusals_s(arrived_s[log.shed], log.shed)
    replied_s[log.expired] = host.refusals_s(log.expired_s, log.expired)
    reason = np.full(scheduled_s.size, ANSWERED, dtype=np.int8)
    reason[log.shed], reason[log.expired], reason[log.crashed] = QUEUE_FULL, DEADLINE, MODEL_ERROR
    columns: _Columns = {
        "gateway_in_s": _never(scheduled_s.size, pl.Float64),
        "arrived_s": arrived_s,
        "gateway_out_s": _never(scheduled_s.size, pl.Float64),
        "replica": np.zeros(scheduled_s.size, dtype=np.int64),
        "tries": _never(scheduled_s.size, pl.Int64),
        "cache": _enum(CACHE, np.zeros(scheduled_s.size, dtype=np.int8)),
        "arm": _enum(ARMS, np.zeros(scheduled_s.size, dtype=np.int8)),
    }
    lives = [Life(0, device_label, log)]
    return _records(scheduled_s, items, columns, replied_s, reason, lives, timeout_s, window_s)


def fleet_records(
    scheduled_s: Floats, items: Ints, log: GatewayLog, lives: Sequence[Life], *, timeout_s: float, window_s: float
) -> Records:
    """The record of a run through a gateway; the arrays have one entry a request, times in seconds."""
    lives = sorted(lives, key=lambda life: (life.number, life.started_s))
    reason = np.array([REASONS.index(reason) for reason in log.reasons], dtype=np.int8)
    replicas = pl.Series(log.replicas)
    columns: _Columns = {
        "gateway_in_s": pl.Series(log.in_s, nan_to_null=True),
        "arrived_s": pl.Series(log.arrived_s, nan_to_null=True),
        "gateway_out_s": pl.Series(log.out_s, nan_to_null=True),
        "replica": pl.select(pl.when(replicas >= 0).then(replicas)).to_series(),
        "tries": log.tries,
        "cache": pl.Series(log.caches, dtype=pl.Enum(CACHE)),
        "arm": pl.Series(log.arms, dtype=pl.Enum(ARMS)),
    }
    return _records(scheduled_s, items, columns, log.replied_s, reason, lives, timeout_s, window_s)


def _records(
    scheduled_s: Floats,
    items: Ints,
    columns: _Columns,
    replied_s: Floats,
    reason: np.ndarray,
    lives: Sequence[Life],
    timeout_s: float,
    window_s: float,
) -> Records:
    """`columns` and what can be said of every run: what the devices did, who gave up, how long it lasted."""
    gives_up_s = scheduled_s + timeout_s
    reason[replied_s > gives_up_s] = CLIENT_TIMEOUT
    outcome = _OUTCOME_CODES[reason]
    replied_s = np.minimum(replied_s, gives_up_s)
    requests = {
        "request": np.arange(scheduled_s.size),
        "item": items,
        "scheduled_s": scheduled_s,
        "sent_s": scheduled_s,
        "replied_s": replied_s,
        "outcome": _enum(OUTCOMES, outcome),
        "reason": _enum(REASONS, reason),
        **columns,
        **_on_devices(lives, pl.Series(columns["replica"]).fill_null(-1).to_numpy()),
    }
    frame = pl.DataFrame({name: requests[name] for name in REQUESTS}, schema=REQUESTS)
    ends_s = [window_s, *(float(life.log.finished_s.max(initial=0.0)) for life in lives)]
    end_s = max([*ends_s, float(replied_s.max(initial=0.0))])
    return Records(frame, _batches(lives), _replicas(lives, end_s), window_s)


def _on_devices(lives: Sequence[Life], replicas: Ints) -> dict[str, pl.Series]:
    """The columns of what the devices did with each request; null where it was in no batch.

    `replicas` has the last that each was sent to; one that was lost before may compute it too, for nobody.
    """
    count = replicas.size
    started_s, finished_s = np.zeros(count), np.zeros(count)
    batches, sizes = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    served = np.zeros(count, dtype=bool)
    for life, first in _with_first_batch(lives):
        log = life.log
        batch, _ = places(log.sizes)
        own = replicas[log.served] == life.number
        mine, batch = log.served[own], batch[own]
        started_s[mine], finished_s[mine] = log.started_s[batch], log.finished_s[batch]
        batches[mine], sizes[mine] = first + batch, log.sizes[batch]
        served[mine] = True
    columns = {"started_s": started_s, "finished_s": finished_s, "batch": batches, "batch_size": sizes}
    series = {name: pl.Series(values) for name, values in columns.items()}
    if served.all():
        return series
    mask = pl.Series(served)
    return {name: pl.select(pl.when(mask).then(values)).to_series() for name, values in series.items()}


def _with_first_batch(lives: Sequence[Life]) -> Iterator[tuple[Life, int]]:
    """Each life with the number of its first batch: one that took another's number counts on."""
    counts: dict[int, int] = {}
    for life in lives:
        first = counts.get(life.number, 0)
        counts[life.number] = first + life.log.sizes.size
        yield life, first


def places(sizes: Ints) -> tuple[Ints, Ints]:
    """For each served request in order: the number of its batch, and its place in it."""
    batch = np.repeat(np.arange(sizes.size), sizes)
    firsts = np.cumsum(sizes) - sizes
    return batch, np.arange(batch.size) - firsts[batch]


def _never(count: int, dtype: type[pl.DataType]) -> pl.Series:
    """A column of nulls."""
    return pl.repeat(None, count, dtype=dtype, eager=True)


def _enum(names: tuple[str, ...], codes: np.ndarray) -> pl.Series:
    return pl.Series(names, dtype=pl.Enum(names)).gather(codes)


def _batches(lives: Sequence[Life]) -> pl.DataFrame:
    """A row a batch, replica by replica."""
    frames = [
        pl.DataFrame(
            {
                "replica": np.full(life.log.sizes.size, life.number),
                "batch": first + np.arange(life.log.sizes.size),
                "started_s": life.log.started_s,
                "finished_s": life.log.finished_s,
                "batch_size": life.log.sizes,
            },
            schema=BATCHES,
        )
        for life, first in _with_first_batch(lives)
    ]
    return pl.concat(frames) if frames else pl.DataFrame(schema=BATCHES)


def _replicas(lives: Sequence[Life], end_s: float) -> pl.DataFrame:
    rows = [
        (life.number, life.device, life.started_s, life.ready_s, end_s if life.stopped_s is None else life.stopped_s)
        for life in lives
    ]
    return pl.DataFrame(rows, schema=REPLICAS, orient="row")
