"""A run over time: arrivals, replicas, queue, latency, refusals and dollars. Functions of records of either world.

    Records ──▶ Steps        what changes at moments: replicas wanted, ready and paid, the queue
            ──▶ bins         what is counted in stretches of time: arrivals and refusals a second
            ──▶ on a grid    what is looked at now and then: a percentile of the last seconds, dollars so far

Times are seconds since the schedule began; everything is told for the schedule's window and not beyond.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.records import Records

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Steps:
    """A step function: `values[i]` from `times_s[i]` until `times_s[i + 1]`. Times rise strictly, from 0 on."""

    times_s: Floats
    values: Floats

    def at(self, times_s: Floats) -> Floats:
        """The value at each of `times_s`, none of which may be negative; at a step, the one after it."""
        found: Floats = self.values[np.searchsorted(self.times_s, times_s, side="right") - 1]
        return found

    def means(self, edges_s: Floats) -> Floats:
        """The mean over time in each bin between `edges_s`, which rise from 0 on."""
        moments_s = np.union1d(self.times_s, edges_s)
        areas = np.append(0.0, np.cumsum(np.diff(moments_s) * self.at(moments_s[:-1])))
        return np.asarray(np.diff(np.interp(edges_s, moments_s, areas)) / np.diff(edges_s), dtype=np.float64)


def arrivals_rps(records: Records, bins: int = 100) -> tuple[Floats, Floats]:
    """Edges in seconds (`bins` + 1) and the requests sent per second in each bin of the window."""
    return _counted(records.requests["sent_s"], records.window_s, bins)


def shed_rps(records: Records, bins: int = 100) -> tuple[Floats, Floats]:
    """Edges in seconds (`bins` + 1) and the requests refused (503) per second, each when it was sent."""
    refused = records.requests.filter(pl.col("outcome") == "shed")
    return _counted(refused["sent_s"], records.window_s, bins)


def wanted(records: Records) -> Steps | None:
    """How many replicas the autoscaler wanted; at first as many as there were. None without an autoscaler."""
    looks = records.scaling
    if not looks.height:
        return None
    found = np.insert(looks["wanted"].cast(pl.Float64).to_numpy(), 0, paid(records).values[0])
    return _clean(np.insert(looks["at_s"].to_numpy(), 0, 0.0), found, records.window_s)


def ready(records: Records) -> Steps:
    """How many replicas were ready: from there on until they were gone, the time in which they drain included."""
    lives = records.replicas.drop_nulls("ready_s")
    return balance(lives["ready_s"].to_numpy(), lives["stopped_s"].to_numpy(), records.window_s)


def paid(records: Records) -> Steps:
    """How many replicas were paid: from their start, the cold start included, until they were gone."""
    lives = records.replicas
    return balance(lives["started_s"].to_numpy(), lives["stopped_s"].to_numpy(), records.window_s)


def queue_length(records: Records) -> Steps:
    """How many requests waited for a batch, on all replicas together.

    Of those that were answered: nobody tells a client how long a request waited that was given up.
    """
    answered = records.requests.filter(pl.col("outcome") == "ok").drop_nulls(["arrived_s", "started_s"])
    return balance(answered["arrived_s"].to_numpy(), answered["started_s"].to_numpy(), records.window_s)


def balance(comes_s: Floats, goes_s: Floats, window_s: float) -> Steps:
    """How many have come and not gone, within the window."""
    times_s = np.concatenate([[0.0], comes_s, goes_s])
    changes = np.repeat([0.0, 1.0, -1.0], [1, len(comes_s), len(goes_s)])
    order = np.argsort(times_s, kind="stable")
    return _clean(np.maximum(times_s[order], 0.0), np.cumsum(changes[order]), window_s)


def latency_s(records: Records, at_s: Floats, last_s: float, percent: float = 95.0) -> Floats:
    """At each of `at_s` the percentile of the latencies of the answers of the last `last_s` seconds; NaN for none."""
    answered = records.requests.filter(pl.col("outcome") == "ok").sort("replied_s")
    replied_s = answered["replied_s"].to_numpy()
    took_s = replied_s - answered["scheduled_s"].to_numpy()
    first = np.searchsorted(replied_s, np.asarray(at_s) - last_s, side="right")
    end = np.searchsorted(replied_s, at_s, side="right")
    spans = zip(first.tolist(), end.tolist(), strict=True)
    found = [float(np.percentile(took_s[i:j], percent)) if j > i else np.nan for i, j in spans]
    return np.array(found, dtype=np.float64)


def hit_ratios(records: Records, edges_s: Floats) -> Floats:
    """Of the requests sent in each bin between `edges_s` that looked into a cache, the share that found its answer
    kept; NaN where nobody looked."""
    looked = records.requests.filter(pl.col("cache") != "")
    counts = np.histogram(looked["sent_s"].to_numpy(), edges_s)[0]
    hits = np.histogram(looked.filter(pl.col("cache") == "hit")["sent_s"].to_numpy(), edges_s)[0]
    found: Floats = np.divide(hits, counts, out=np.full(counts.size, np.nan), where=counts > 0)
    return found


def latencies_s(records: Records, edges_s: Floats, percent: float = 95.0) -> Floats:
    """The percentile of the latencies of the answers to those that were sent in each bin between `edges_s`; NaN for
    none."""
    answered = records.requests.filter(pl.col("outcome") == "ok").sort("sent_s")
    took_s = (answered["replied_s"] - answered["scheduled_s"]).to_numpy()
    cuts = np.searchsorted(answered["sent_s"].to_numpy(), edges_s)
    found = [float(np.percentile(took_s[i:j], percent)) if j > i else np.nan for i, j in pairwise(cuts.tolist())]
    return np.array(found, dtype=np.float64)


def dollars(
    records: Records, at_s: Floats, usd_per_hour: Callable[[int], float], beside_usd_per_hour: float = 0.0
) -> Floats:
    """US dollars from 0 to each of `at_s` for the replicas that were paid; `usd_per_hour` tells the price of one.

    `beside_usd_per_hour` is of what stands beside them all the time.
    """
    at_s = np.asarray(at_s, dtype=np.float64)
    total = beside_usd_per_hour / 3600.0 * at_s
    for number, started_s, stopped_s in records.replicas.select("replica", "started_s", "stopped_s").iter_rows():
        since_s = max(0.0, started_s)
        total += usd_per_hour(number) / 3600.0 * np.maximum(0.0, np.minimum(at_s, stopped_s) - since_s)
    return total


def lag_s(one: Steps, other: Steps, end_s: float) -> float:
    """The largest time in seconds by which one of two step functions is ahead of the other, from 0 to `end_s`.

    The least L for which each function takes each of its values no further than L from where the other takes it; a step
    over several values takes those between at its moment. What comes after the end counts as coming at the end, so
    that a value which the other never takes is as far off as that.
    """
    return max(_furthest_s(one, other, end_s), _furthest_s(other, one, end_s))


def same_share(one: Steps, other: Steps, end_s: float) -> float:
    """The share of the time from 0 to `end_s` in which two step functions have the same value."""
    edges_s = np.union1d(np.union1d(one.times_s, other.times_s), [end_s])
    edges_s = edges_s[edges_s <= end_s]
    same = one.at(edges_s[:-1]) == other.at(edges_s[:-1])
    return float(np.diff(edges_s)[same].sum() / end_s)


def _furthest_s(of: Steps, to: Steps, end_s: float) -> float:
    ends_s = np.append(of.times_s[1:], end_s)
    pieces = zip(of.times_s.tolist(), ends_s.tolist(), of.values.tolist(), strict=True)
    return max((_away_s(start_s, stop_s, _taken(to, value, end_s)) for start_s, stop_s, value in pieces), default=0.0)


def _taken(steps: Steps, value: float, end_s: float) -> list[tuple[float, float]]:
    """Stretches of time in which the function takes the value, and the end, beyond which nobody knows."""
    ends_s = np.append(steps.times_s[1:], end_s).tolist()
    stretches = zip(steps.times_s.tolist(), ends_s, steps.values.tolist(), strict=True)
    found = [(start_s, stop_s) for start_s, stop_s, here in stretches if here == value]
    jumps = zip(steps.times_s[1:].tolist(), steps.values[:-1].tolist(), steps.values[1:].tolist(), strict=True)
    found += [(at_s, at_s) for at_s, low, high in jumps if min(low, high) < value < max(low, high)]
    return sorted([*found, (end_s, end_s)])


def _away_s(start_s: float, stop_s: float, taken: list[tuple[float, float]]) -> float:
    """How far the furthest moment from `start_s` to `stop_s` is from all of the stretches, which are in order."""
    middles = [(before[1] + after[0]) / 2 for before, after in pairwise(taken)]
    moments = [start_s, stop_s, *(at_s for at_s in middles if start_s < at_s < stop_s)]
    return max(min(max(first_s - at_s, at_s - last_s, 0.0) for first_s, last_s in taken) for at_s in moments)


def _counted(times_s: pl.Series, window_s: float, bins: int) -> tuple[Floats, Floats]:
    counts, edges_s = np.histogram(times_s.to_numpy(), bins=bins, range=(0.0, window_s))
    return edges_s, counts * bins / window_s


def _clean(times_s: Floats, values: Floats, window_s: float) -> Steps:
    """Steps within the window: of several at one moment the last, and none that changes nothing. Times are in order."""
    times_s = np.maximum(times_s, 0.0)
    kept = np.append(np.diff(times_s) > 0, True) & (times_s < max(window_s, np.nextafter(0.0, 1.0)))
    times_s, values = times_s[kept], values[kept]
    new = np.insert(np.diff(values) != 0, 0, True)
    return Steps(times_s[new], values[new])
