"""Closed forms of queueing theory that the simulator is held against, each with its source.

Arrivals are Poisson at `rate_rps`; one queue without a limit, first in first out; steady state. No twin. Not here:
batches, deadlines and full queues, for which there is the simulator.

Sources, as they were opened: Wikipedia, "M/M/c queue" (Erlang's C) and "M/D/1 queue" (Pollaczek-Khinchine, after
Cooper, Introduction to Queueing Theory, 1981, p. 189); Gunther's PDQ, examples/ppa_1998/chap2/erlang.py (the
recursion for Erlang's B, there named Jagerman's, and C out of B); Allen, Probability, Statistics and Queueing
Theory, 1978, p. 276, as quoted on authorea.com (mean wait of M/M/c); Jain, The Art of Computer Systems Performance
Analysis, 1991, ch. 33, as summed up in lecture notes (the operational laws); Wikipedia, "G/M/1 queue", as mirrored on
owiki.org (who is found on arrival: geometric, with the smallest root of σ = A*(μ(1-σ)) as its ratio).
"""

from __future__ import annotations

import math


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
