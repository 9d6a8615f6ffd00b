"""When would each alert have fired? The rules of a stage over the record of a run, simulated or measured.

    Records ─▶ readings: what the metrics would have shown, every alerts.interval_s ─▶ rules ─▶ changes

Twin: reference_apps/alerts.py, which reads the metrics of processes. The arithmetic and the decisions are in
stages/policies/alerting.py. Not modelled: a process that does not answer the scrape, and how long a scrape takes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from simulator.draws import Floats
from simulator.host import Ints
from stages.alerts import latency_bounds_of, limits_of, rules_of
from stages.policies.alerting import Change, Reading, RuleSet
from stages.records import Records
from stages.spec import Stage

__all__ = ["readings", "watch"]

# No metric of the stack ever saw these.
_UNSEEN = ("connection", "unfinished")


def watch(stage: Stage, records: Records) -> list[Change]:
    """Every change of every alert of the stage within the schedule's window, in the order of time."""
    rules = RuleSet(rules_of(stage), limits_of(stage))
    return [change for reading in readings(stage, records) for change in rules.ask(reading)]


def readings(stage: Stage, records: Records) -> Iterator[Reading]:
    """What the metrics would have shown at 0, alerts.interval_s, … up to the end of the schedule's window."""
    interval_s = stage.alerts.interval_s
    at_s = np.arange(int(records.window_s / interval_s + 1e-9) + 1, dtype=np.float64)
    at_s *= interval_s
    ended = _ended(records, hears_of_leaving=_own_door(stage))
    served = ended.filter(pl.col("outcome") == "ok")
    requests = _counted(ended["end_s"], at_s)
    errors = _counted(ended.filter(pl.col("outcome") != "ok")["end_s"], at_s)
    answers = _answers_within(served, latency_bounds_of(stage), at_s)
    busy_s = _busy_s(records.batches, at_s)
    queued = _queue_lengths(records.requests, at_s)
    replicas = _ready_replicas(records.replicas, at_s)
    for n, now_s in enumerate(at_s.tolist()):
        yield Reading(
            at_s=now_s,
            requests=float(requests[n]),
            errors=float(errors[n]),
            answers_within=tuple(answers[n].tolist()),
            device_busy_s=float(busy_s[n]),
            queue_length=float(queued[n]),
            replicas=int(replicas[n]),
        )


def _own_door(stage: Stage) -> bool:
    """Whether our own gateway or a jobs API counts the requests; behind nginx it is the replicas that do."""
    by_gateway = stage.gateway is not None and stage.gateway.engine == "rung"
    return by_gateway or stage.queue is not None


def _ended(records: Records, hears_of_leaving: bool) -> pl.DataFrame:
    """Outcome, end and latency of every request as the stack's first process sees them, which is what it counts.

    A client that gave up is nothing to a replica: it answers all the same. Our gateway and a jobs API hear of it
    (`hears_of_leaving`), and count such a request neither as answered nor as lost.
    """
    left_out = (*_UNSEEN, "bad_input", *(("client_timeout",) if hears_of_leaving else ()))
    requests = records.requests.filter(~pl.col("reason").is_in(left_out))
    answered = pl.col("finished_s").is_not_null() & ~pl.col("reason").is_in(["model_error", "upstream_timeout"])
    return requests.select(
        pl.when(answered).then(pl.lit("ok")).otherwise(pl.col("outcome").cast(pl.String)).alias("outcome"),
        pl.coalesce("gateway_in_s", "arrived_s", "sent_s").alias("start_s"),
        pl.coalesce("gateway_out_s", "finished_s", "replied_s").alias("end_s"),
    ).with_columns((pl.col("end_s") - pl.col("start_s")).alias("latency_s"))


def _counted(times_s: pl.Series, at_s: Floats) -> Ints:
    """How many of the times are at or before each of the moments `at_s`."""
    counts: Ints = np.searchsorted(np.sort(times_s.drop_nulls().to_numpy()), at_s, side="right")
    return counts


def _answers_within(served: pl.DataFrame, bounds_s: tuple[float, ...], at_s: Floats) -> Floats:
    """A row a moment: answers so far by bound, cumulative; the last column has all."""
    counts = np.zeros((at_s.size + 1, len(bounds_s) + 1))  # one more row for answers after the last moment
    moment = np.searchsorted(at_s, served["end_s"].to_numpy(), side="left")
    bucket = np.searchsorted(np.array(bounds_s), served["latency_s"].to_numpy(), side="left")
    np.add.at(counts, (moment, bucket), 1.0)
    cumulative: Floats = counts[:-1].cumsum(axis=0).cumsum(axis=1)
    return cumulative


def _busy_s(batches: pl.DataFrame, at_s: Floats) -> Floats:
    """Device seconds of the batches that had ended by each moment: a replica counts them when they end."""
    ended = batches.sort("finished_s")
    so_far = np.concatenate([[0.0], (ended["finished_s"] - ended["started_s"]).to_numpy().cumsum()])
    seconds: Floats = so_far[np.searchsorted(ended["finished_s"].to_numpy(), at_s, side="right")]
    return seconds


def _queue_lengths(requests: pl.DataFrame, at_s: Floats) -> Ints:
    """How many requests waited for a batch at each moment, over all replicas.

    Whose client gave up and who was never started is taken to have waited: the record does not say it.
    """
    waited = requests.filter(pl.col("arrived_s").is_not_null(), pl.col("outcome") != "shed")
    left_s = waited.select(pl.coalesce("started_s", "replied_s")).to_series()
    return _counted(waited["arrived_s"], at_s) - _counted(left_s, at_s)


def _ready_replicas(replicas: pl.DataFrame, at_s: Floats) -> Ints:
    """How many replicas were ready at each moment; one that was stopped in its cold start never was."""
    lives = replicas.drop_nulls("ready_s")
    stopped = lives.filter(pl.col("stopped_s") < at_s[-1])  # the others outlived the window
    return _counted(lives["ready_s"], at_s) - _counted(stopped["stopped_s"], at_s)
