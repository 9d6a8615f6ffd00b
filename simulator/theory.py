"""Closed forms of queueing and caching theory that the simulator is held against, each with its source.

Queues: arrivals are Poisson at `rate_rps`; one queue without a limit, first in first out; steady state. Caches: every
item is asked for by a Poisson process of its own, and all entries are of one size. No twin. Not here: batches,
deadlines, full queues, and caches that evict by another rule than the least recently used; for these there is the
simulator.

Sources, as they were opened: Wikipedia, "M/M/c queue" (Erlang's C) and "M/D/1 queue" (Pollaczek-Khinchine, after
Cooper, Introduction to Queueing Theory, 1981, p. 189); Gunther's PDQ, examples/ppa_1998/chap2/erlang.py (the
recursion for Erlang's B, there named Jagerman's, and C out of B); Allen, Probability, Statistics and Queueing
Theory, 1978, p. 276, as quoted on authorea.com (mean wait of M/M/c); Jain, The Art of Computer Systems Performance
Analysis, 1991, ch. 33, as summed up in lecture notes (the operational laws); Wikipedia, "G/M/1 queue", as mirrored on
owiki.org (who is found on arrival: geometric, with the smallest root of σ = A*(μ(1-σ)) as its ratio); Icarus,
icarus/tools/cacheperf.py (Che's approximation with one characteristic time for all items, and λT / (1 + λT) for entries
whose time no hit renews, after Martina, Garetto, Leonardi, INFOCOM 2014); the abstracts of Fricker, Robert, Roberts, "A
versatile and accurate approximation for LRU cache performance", 2012, and of Jiang, Nain, Towsley, 2018, arXiv
1707.06204 (why it holds, and that it is exact in the limit of many items). What is derived here says so.
"""

from __future__ import annotations

import math

import numpy as np

from simulator.draws import Floats


def offered_load(rate_rps: float, service_time_s: float, servers: int = 1) -> float:
    """Offered work per server, which is its utilisation. Raises ValueError when the queue would grow for ever."""
    load = rate_rps * service_time_s / servers
    if not 0 <= load < 1:
        raise ValueError(
            f"the load of each server must be at least 0 and below 1, got {load:g} "
            f"({rate_rps:g} requests per second of {service_time_s:g} s on {servers}): there is no steady state."
        )
    return load


def mg1_wait_s(rate_rps: float, service_time_s: float, service_variance_s2: float) -> float:
    """Mean queue wait of M/G/1 in seconds: ρ s (1 + σ²/s²) / 2(1 - ρ), Pollaczek-Khinchine (Cooper, p. 189)."""
    load = offered_load(rate_rps, service_time_s)
    spread = service_variance_s2 / service_time_s**2
    return load * service_time_s * (1 + spread) / (2 * (1 - load))


def mm1_wait_s(rate_rps: float, service_time_s: float) -> float:
    """Mean queue wait of M/M/1 in seconds: M/G/1 with the variance of the exponential law, the mean squared."""
    return mg1_wait_s(rate_rps, service_time_s, service_time_s**2)


def md1_wait_s(rate_rps: float, service_time_s: float) -> float:
    """Mean queue wait of M/D/1 in seconds: M/G/1 without variance; half of M/M/1's."""
    return mg1_wait_s(rate_rps, service_time_s, 0.0)


def mm1_latency_percentile_s(rate_rps: float, service_time_s: float, percent: float) -> float:
    """A percentile of wait plus service in M/M/1, in seconds: latency is exponential with rate μ - λ."""
    load = offered_load(rate_rps, service_time_s)
    return -math.log1p(-percent / 100) * service_time_s / (1 - load)


def em1_wait_s(rate_rps: float, service_time_s: float, phases: int) -> float:
    """Mean queue wait of E_k/M/1 in seconds: σ s / (1 - σ), σ = (k λ / (k λ + μ (1 - σ)))^k.

    Gaps between arrivals are sums of `phases` exponential times: what one of k servers gets of a Poisson stream that
    goes round. With one phase it is M/M/1.
    """
    offered_load(rate_rps, service_time_s)
    busy = 0.0
    for _ in range(100_000):  # rises to the smallest root
        before, busy = busy, (phases * rate_rps / (phases * rate_rps + (1 - busy) / service_time_s)) ** phases
        if busy - before < 1e-15:
            break
    return busy * service_time_s / (1 - busy)


def erlang_b(servers: int, erlangs: float) -> float:
    """The share of arrivals that would be lost without a queue: B(0) = 1, B(c) = aB(c-1) / (c + aB(c-1))."""
    blocked = 1.0
    for server in range(1, servers + 1):
        blocked = erlangs * blocked / (server + erlangs * blocked)
    return blocked


def erlang_c(servers: int, erlangs: float) -> float:
    """The share of arrivals that must wait: B / (1 - ρ + ρB) with ρ = a / c. Raises ValueError from ρ = 1 on."""
    load = offered_load(erlangs, 1.0, servers)
    blocked = erlang_b(servers, erlangs)
    return blocked / (1 - load + load * blocked)


def mmc_wait_s(rate_rps: float, service_time_s: float, servers: int) -> float:
    """Mean queue wait of M/M/c in seconds: C / (cμ - λ), all who arrive counted."""
    waits = erlang_c(servers, rate_rps * service_time_s)
    return waits / (servers / service_time_s - rate_rps)


def mmc_wait_exceeds(rate_rps: float, service_time_s: float, servers: int, wait_s: float) -> float:
    """The share of arrivals of M/M/c that wait longer than `wait_s`: C exp(-(cμ - λ) t)."""
    waits = erlang_c(servers, rate_rps * service_time_s)
    return waits * math.exp(-(servers / service_time_s - rate_rps) * wait_s)


def number_in_system(rate_rps: float, time_in_system_s: float) -> float:
    """Little's law, L = λW: how many are within, in the mean, of those who come and stay for so long."""
    return rate_rps * time_in_system_s


def closed_loop_latency_s(users: int, throughput_rps: float, think_time_s: float) -> float:
    """The interactive response time law, R = N/X - Z: mean latency of a closed loop in seconds."""
    return users / throughput_rps - think_time_s


def characteristic_time_s(rates_rps: Floats, entries: float) -> float:
    """The characteristic time T of a least-recently-used cache, in seconds: Σ(1 - exp(-λT)) = entries (Che).

    So long an item is kept that nobody asks for. `rates_rps` has the rate λ of each item; infinite where all fit.
    """
    rates = rates_rps[rates_rps > 0]
    if entries >= rates.size:
        return math.inf

    def kept(time_s: float) -> float:
        return float(-np.expm1(-rates * time_s).sum())

    low_s, high_s = 0.0, entries / float(rates.sum())
    while kept(high_s) < entries:
        low_s, high_s = high_s, 2 * high_s
    for _ in range(60):  # as many halvings as a float64 has bits, and some
        middle_s = (low_s + high_s) / 2
        low_s, high_s = (middle_s, high_s) if kept(middle_s) < entries else (low_s, middle_s)
    return high_s


def lru_hit_ratio(rates_rps: Floats, entries: float, ttl_s: float = math.inf) -> float:
    """Hits over looks of a least-recently-used cache that has room for so many entries, in steady state (Che).

    An entry is fresh for `ttl_s` from its storing, which a hit does not renew; one that is not keeps its place until it
    has to go, so that the characteristic time does not depend on `ttl_s`.
    """
    rates = rates_rps[rates_rps > 0]
    looks = looks_per_storing(rates, characteristic_time_s(rates, entries), ttl_s)
    return float(np.average(1 - 1 / looks, weights=rates))


def looks_per_storing(rates_rps: Floats, kept_s: float, ttl_s: float) -> Floats:
    """How often each item is looked for from one storing to the next, the look that brought it there included.

    Derived: from a storing on, looks are hits while none comes later than `kept_s` = T after the one before, nor
    later than `ttl_s` = t after the storing. Their mean number n(t) has n(t) = 1 + λt up to T, and from there on
    n'(t) = λ - λ exp(-λT) n(t - T). By Laplace's transform, with x = t - kT for each k from 0 to t/T:

        n(t) = Σ (-exp(-λT) λx)^k / k! · (1 + λx / (k + 1))

    For t without end it is exp(λT), which is Che's 1 - exp(-λT); where all fit it is 1 + λt. The signs of the sum
    change: once its terms grow large, the two leading roots of the transform say the same to more digits.
    """
    if math.isinf(kept_s):
        return np.full_like(rates_rps, math.inf) if math.isinf(ttl_s) else 1 + rates_rps * ttl_s
    with np.errstate(over="ignore"):
        looks: Floats = np.exp(rates_rps * kept_s)  # those that only a pause ends
    if math.isinf(ttl_s) or kept_s == 0:
        return looks
    step = rates_rps * kept_s * np.exp(-rates_rps * kept_s)
    summed = step * (ttl_s / kept_s) <= _LARGEST_STEP
    looks[summed] = _by_sum(rates_rps[summed], kept_s, ttl_s)
    rest = ~summed & (rates_rps * kept_s > 1)  # below that, the ttl is so long that nothing of it is left
    root = np.zeros_like(step[rest])
    for _ in range(200):  # the smaller root of y exp(-y) = step; the greater is λT itself
        root = step[rest] * np.exp(root)
    share = np.expm1(rates_rps[rest] * kept_s - root) / np.maximum(1 - root, 1e-9)
    looks[rest] -= share * np.exp(-root * ttl_s / kept_s)
    return looks


# e to this is how much larger than the sum its terms may be: five digits of sixteen are given away.
_LARGEST_STEP = 12.0
_TERMS_MAX = 80  # 12^80 / 80! is below what a float64 can tell


def _by_sum(rates_rps: Floats, kept_s: float, ttl_s: float) -> Floats:
    """The sum of `looks_per_storing`."""
    total, terms = np.zeros_like(rates_rps), int(min(ttl_s / kept_s, _TERMS_MAX))
    falling = -np.exp(-rates_rps * kept_s)
    for k in range(terms + 1):
        load = rates_rps * (ttl_s - k * kept_s)
        total += (falling * load) ** k / math.factorial(k) * (1 + load / (k + 1))
    return total


def warming_hit_ratio(rates_rps: Floats, entries: float, window_s: float) -> float:
    """Hits over looks in the first `window_s` of a least-recently-used cache that is empty at their start.

    Derived: at time t an item is there if it was asked for in the last min(t, T) seconds, the mean over t of
    1 - exp(-λ min(t, T)). Nothing goes before T, Che's characteristic time.
    """
    rates = rates_rps[rates_rps > 0]
    filling_s = min(characteristic_time_s(rates, entries), window_s)
    full = -np.expm1(-rates * filling_s)
    hits = (filling_s - full / rates + (window_s - filling_s) * full) / window_s
    return float(np.average(hits, weights=rates))
