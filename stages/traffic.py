"""Traffic: rate shapes and arrival processes become one seeded array of arrival times and items.

    unit-rate gaps ──cumulate──▶ operational time u ──invert Λ(t)──▶ arrival times ┐
    (stream "arrivals")                                (rate shape)                ├──▶ Schedule
    popularity ── ranks (stream "items") ── who has the rank then (stream "drift") ┤
    activity ── who sends it (stream "users") ─────────────────────────────────────┘

Both worlds fire this same schedule, so that a difference between them is not the dice's. Not modelled:
users who come back after a failure, items that come and go, and one whose popularity grows without another's falling.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stages import traces
from stages.demand import ConstantRate, DiurnalRate, Items, RampRate, Rate, SpikeRate, StepRate, TraceRate, Traffic
from stages.spec import mean_rate_rps
from stages.streams import stream

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Schedule:
    """Who arrives when, and asks for what: request i of the run is entry i of each array."""

    arrivals_s: Floats  # ascending, in [0, duration_s)
    items: Ints  # in [0, count of items)
    duration_s: float
    users: Ints | None = None  # who sends each, in [0, count of users); None where nobody says so


def schedule(traffic: Traffic, *, seed: int | None = None) -> Schedule:
    """The arrivals of an open loop over `traffic.duration_s`; `seed` stands in for the traffic's own.

    Times, items and users come from a stream each: none moves when the settings of another change, and a
    higher rate squeezes the same gaps. Raises ValueError for a closed loop, whose arrivals follow from its
    replies, and StageError for a trace that cannot be replayed.
    """
    seed = traffic.seed if seed is None else seed
    arrivals_s = _arrivals_s(traffic, seed)
    ranks = _draw_ranks(traffic.items, stream(seed, "items"), arrivals_s.size)
    items = _items_of(ranks, traffic.items, arrivals_s, seed)
    return Schedule(arrivals_s, items, traffic.duration_s, _users_of(traffic, arrivals_s.size, seed))


def split(whole: Schedule, index: int, of: int) -> tuple[Ints, Schedule]:
    """Part `index` of a schedule that `of` workers share: every of-th arrival, with its number in the whole.

    Raises ValueError unless 0 <= index < of.
    """
    if not 0 <= index < of:
        raise ValueError(f"a worker's index must be at least 0 and below the {of} workers, got {index}")
    numbers = np.arange(index, whole.arrivals_s.size, of, dtype=np.int64)
    users = None if whole.users is None else whole.users[numbers]
    return numbers, Schedule(whole.arrivals_s[numbers], whole.items[numbers], whole.duration_s, users)


def user_draws(traffic: Traffic, user: int, *, seed: int | None = None) -> Iterator[tuple[float, int]]:
    """What one user of a closed loop does, for ever: thinks for so many seconds, then asks for that item.

    Think times are exponential with mean `traffic.think_time_s`; the first comes before the first request, so
    that users do not start as one. Every user has streams of their own: more users change nobody's draws.
    """
    seed = traffic.seed if seed is None else seed
    thinking, choosing = stream(seed, "think times", user), stream(seed, "user items", user)
    while True:
        think_s = thinking.exponential(traffic.think_time_s, _USER_BLOCK)
        items = _draw_ranks(traffic.items, choosing, _USER_BLOCK)
        yield from zip(think_s.tolist(), items.tolist(), strict=True)


_USER_BLOCK = 64  # draws are made by the block: one numpy call a draw would cost 30 times as much


def rate_at_rps(traffic: Traffic, times_s: Floats) -> Floats:
    """The arrival rate in requests per second at each of `times_s` (from 0 to `duration_s`), for plots.

    Times out of a trace have no rate of their own: they are counted in 100 bins of the run.
    Raises ValueError for a closed loop.
    """
    rate = _open_rate(traffic)
    times_s = np.asarray(times_s, dtype=np.float64)
    if isinstance(rate, DiurnalRate):
        return rate.rate_rps * (1 - rate.amplitude * np.cos(2 * np.pi * times_s / rate.period_s))
    replayed = _replayed(traffic, traffic.seed) if isinstance(rate, TraceRate) else None
    if isinstance(replayed, traces.Times):
        counts, edges_s = np.histogram(replayed.times_s, bins=100, range=(0.0, traffic.duration_s))
        rates = counts / np.diff(edges_s)
        return _PiecewiseLinear(edges_s, rates, rates).rate_rps(times_s)
    return _piecewise(rate, replayed, traffic.duration_s).rate_rps(times_s)


def at_rate(traffic: Traffic, rate_rps: float) -> Traffic:
    """The same traffic with its rate scaled so that its mean over the run is `rate_rps`.

    Every rate of a shape is scaled alike; a trace by its `rate_scale`. Raises ValueError for a closed loop,
    or for a rate that is not positive.
    """
    rate, mean_rps = _open_rate(traffic), mean_rate_rps(traffic)
    if not rate_rps > 0 or not mean_rps:
        raise ValueError(f"a mean rate of {mean_rps} requests per second cannot be scaled to {rate_rps}")
    factor = rate_rps / mean_rps
    scaled: dict[str, float]
    match rate:
        case ConstantRate():
            scaled = {"rate_rps": rate_rps}
        case RampRate():
            scaled = {
                "rate_rps_start": rate.rate_rps_start * factor,
                "rate_rps_end": rate.rate_rps_end * factor,
            }
        case StepRate():
            scaled = {"rate_rps": rate.rate_rps * factor, "rate_rps_after": rate.rate_rps_after * factor}
        case SpikeRate() | DiurnalRate():
            scaled = {"rate_rps": rate.rate_rps * factor}
        case TraceRate():
            scaled = {"rate_scale": rate.rate_scale * factor}
    return traffic.model_copy(update={"rate": rate.model_copy(update=scaled)})


def _open_rate(traffic: Traffic) -> Rate:
    if traffic.loop == "closed" or traffic.rate is None:
        raise ValueError(
            "a closed loop has no arrival rate, because a user's next request waits for a reply: "
            'draw think times from user_draws, or set traffic.loop = "open"'
        )
    return traffic.rate


def _replayed(traffic: Traffic, seed: int) -> traces.Times | traces.Counts:
    rate = _open_rate(traffic)
    assert isinstance(rate, TraceRate)
    return traces.replay(rate, traffic.duration_s, seed=seed)


def _arrivals_s(traffic: Traffic, seed: int) -> Floats:
    rate = _open_rate(traffic)
    replayed = _replayed(traffic, seed) if isinstance(rate, TraceRate) else None
    if isinstance(replayed, traces.Times):
        return replayed.times_s
    cumulative: _Cumulative
    if isinstance(rate, DiurnalRate):
        cumulative = _Diurnal(rate, traffic.duration_s)
    else:
        cumulative = _piecewise(rate, replayed, traffic.duration_s)
    u = _unit_rate_times(traffic, seed, cumulative.total)
    # Rounding may swap neighbours, and put the last on the very end of the run.
    ordered_s = np.maximum.accumulate(cumulative.inverse(u))
    return np.minimum(ordered_s, np.nextafter(traffic.duration_s, 0.0))


def _unit_rate_times(traffic: Traffic, seed: int, end: float) -> Floats:
    """Arrival times below `end` of a stationary renewal process of mean gap 1.

    The first gap is what a random moment finds left of the gap under way: a uniform share of a gap drawn with
    probability proportional to its length. Without that, bursty traffic would begin with (cv² - 1) / 2
    arrivals too many. Evenly spaced arrivals begin half a gap after the start, without chance.
    """
    rng = stream(seed, "arrivals")
    if traffic.arrivals == "deterministic":
        return np.arange(0.5, end)
    cv = 1.0 if traffic.arrivals == "poisson" else traffic.coefficient_of_variation or 1.0
    shape, scale = cv**-2, cv**2
    first = float(rng.random() * rng.standard_gamma(shape + 1) * scale)
    blocks, reached = [np.array([first])], first
    while reached < end:
        size = int(min(max(1024.0, 1.1 * (end - reached)), 4e6))
        gaps = rng.standard_exponential(size) if cv == 1.0 else rng.standard_gamma(shape, size) * scale
        blocks.append(reached + np.cumsum(gaps))
        reached = float(blocks[-1][-1])
    times = np.concatenate(blocks)
    return times[times < end]


class _Cumulative(Protocol):
    """The number of requests that a rate gives from 0 to t, in the mean: Λ(t)."""

    total: float

    def inverse(self, u: Floats) -> Floats: ...


class _PiecewiseLinear:
    """A rate of straight lines between edges, with jumps at them; Λ is a parabola a piece, exactly inverted."""

    def __init__(self, edges_s: Floats, left_rps: Floats, right_rps: Floats) -> None:
        self.edges_s, self.left_rps = edges_s, left_rps
        self.slope = (right_rps - left_rps) / np.diff(edges_s)
        self.cumulative = np.concatenate([[0.0], np.cumsum(np.diff(edges_s) * (left_rps + right_rps) / 2)])
        self.total = float(self.cumulative[-1])

    def rate_rps(self, times_s: Floats) -> Floats:
        piece = np.clip(np.searchsorted(self.edges_s, times_s, side="right") - 1, 0, self.left_rps.size - 1)
        rates: Floats = self.left_rps[piece] + self.slope[piece] * (times_s - self.edges_s[piece])
        return rates

    def inverse(self, u: Floats) -> Floats:
        # side="right" leaves out pieces without traffic: nobody arrives while the rate is 0.
        piece = np.clip(np.searchsorted(self.cumulative, u, side="right") - 1, 0, self.left_rps.size - 1)
        rest, rate, slope = u - self.cumulative[piece], self.left_rps[piece], self.slope[piece]
        # rate·x + slope·x²/2 = rest, in the form that stays exact when the slope is 0 or nearly.
        root = rate + np.sqrt(np.maximum(rate**2 + 2 * slope * rest, 0.0))
        x = np.divide(2 * rest, root, out=np.zeros_like(rest), where=root > 0)
        times_s: Floats = np.minimum(self.edges_s[piece] + x, self.edges_s[piece + 1])
        return times_s


class _Diurnal:
    """Λ(t) = rate (t - amplitude period / 2π sin(2πt / period)), inverted by halving within a period."""

    def __init__(self, rate: DiurnalRate, duration_s: float) -> None:
        self.rate = rate
        self.total = float(self._cumulative(np.array([duration_s]))[0])

    def _cumulative(self, times_s: Floats) -> Floats:
        rate = self.rate
        swing = rate.amplitude * rate.period_s / (2 * np.pi) * np.sin(2 * np.pi * times_s / rate.period_s)
        cumulative: Floats = rate.rate_rps * (times_s - swing)
        return cumulative

    def inverse(self, u: Floats) -> Floats:
        per_period = self.rate.rate_rps * self.rate.period_s
        periods, rest = np.divmod(u, per_period)
        low, high = np.zeros_like(u), np.full_like(u, self.rate.period_s)
        for _ in range(54):  # as many halvings as a float64 has bits
            middle = (low + high) / 2
            before = self._cumulative(middle) < rest
            low, high = np.where(before, middle, low), np.where(before, high, middle)
        return periods * self.rate.period_s + low


def _piecewise(rate: Rate, counts: traces.Counts | None, duration_s: float) -> _PiecewiseLinear:
    """The rate shapes that are made of straight lines, over [0, duration_s]."""
    match rate:
        case ConstantRate():
            return _steps([(0.0, rate.rate_rps)], duration_s)
        case RampRate():
            ends = np.array([rate.rate_rps_start]), np.array([rate.rate_rps_end])
            return _PiecewiseLinear(np.array([0.0, duration_s]), *ends)
        case StepRate():
            return _steps([(0.0, rate.rate_rps), (rate.step_at_s, rate.rate_rps_after)], duration_s)
        case SpikeRate():
            start_s, end_s = rate.spike_start_s, rate.spike_start_s + rate.spike_duration_s
            high = rate.rate_rps * rate.spike_factor
            return _steps([(0.0, rate.rate_rps), (start_s, high), (end_s, rate.rate_rps)], duration_s)
        case TraceRate() if counts is not None:
            return _PiecewiseLinear(counts.edges_s, counts.rates_rps, counts.rates_rps)
        case _:
            raise ValueError(f"{rate.shape} is not made of straight lines")


def _steps(starts_s_and_rates_rps: list[tuple[float, float]], duration_s: float) -> _PiecewiseLinear:
    starts_s, rates_rps = np.array(starts_s_and_rates_rps).T
    edges_s = np.minimum(np.append(starts_s, duration_s), duration_s)
    kept = np.diff(edges_s) > 0
    edges_s, rates_rps = np.append(edges_s[:-1][kept], duration_s), rates_rps[kept]
    return _PiecewiseLinear(edges_s, rates_rps, rates_rps)


def popularity(items: Items) -> Floats:
    """The share of the requests that is for the item of each rank, the most popular first; they add up to 1."""
    if items.popularity == "uniform":
        return np.full(items.count, 1 / items.count)
    cumulative = _zipf_cumulative(items.count, items.exponent)
    shares: Floats = np.diff(cumulative, prepend=0.0) / cumulative[-1]
    return shares


def _draw_ranks(items: Items, rng: np.random.Generator, size: int) -> Ints:
    """`size` ranks; by Zipf's law rank k has a probability proportional to 1 / (k + 1) ** exponent."""
    if items.popularity == "uniform":
        return rng.integers(0, items.count, size, dtype=np.int64)
    cumulative = _zipf_cumulative(items.count, items.exponent)
    drawn = np.searchsorted(cumulative, rng.random(size) * cumulative[-1], side="right")
    return np.asarray(np.minimum(drawn, items.count - 1), dtype=np.int64)


def _users_of(traffic: Traffic, size: int, seed: int) -> Ints | None:
    """Who sends each of `size` requests: user k has the rank k of an activity that is drawn as items are."""
    if traffic.users is None:
        return None
    active = Items(popularity=traffic.user_popularity, count=traffic.users, exponent=traffic.user_exponent)
    return _draw_ranks(active, stream(seed, "users"), size)


def _items_of(ranks: Ints, items: Items, arrivals_s: Floats, seed: int) -> Ints:
    """Which item has each rank when it is asked for. Item k has rank k, as long as nothing drifts.

    At the end of each interval some ranks are drawn, and the item of each goes to the next of them, in the order of
    drawing: none of these stays where it was.
    """
    if items.drift_interval_s is None or items.drift_share is None or not ranks.size:
        return ranks
    rng = stream(seed, "drift")
    moving = min(items.count, max(2, round(items.drift_share * items.count)))
    ends_s = items.drift_interval_s * np.arange(1, int(arrivals_s[-1] / items.drift_interval_s) + 1)
    holders, result = np.arange(items.count, dtype=np.int64), np.empty_like(ranks)
    first = 0
    for end in [*np.searchsorted(arrivals_s, ends_s).tolist(), ranks.size]:
        result[first:end] = holders[ranks[first:end]]
        drawn = rng.choice(items.count, moving, replace=False)
        holders[drawn] = np.roll(holders[drawn], 1)
        first = end
    return result


@lru_cache(maxsize=4)
def _zipf_cumulative(count: int, exponent: float) -> Floats:
    return np.cumsum(np.arange(1, count + 1, dtype=np.float64) ** -exponent)
