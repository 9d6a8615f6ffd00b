"""The stages that a plan chooses from, and what arithmetic alone says of them.

    Offer … ──▶ candidates: architecture × device × replicas × batching
                  │ the capacity is too small, a batch takes too long, a larger batch carries no more
                  └──▶ Grid: what is left, with the least that each can cost an hour

The bounds hold for every run: capacity is that of full batches, and a fluid waits no longer than requests do. No twin.
Not here: fleets of unequal devices, and several models on one GPU.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from simulator.cache import kept_bytes
from simulator.draws import Floats
from simulator.offers import BATCHES, Host, Offer, Replicas, paid_usd_per_hour
from simulator.workload import SHARE, Workload, fluid_share
from stages.cache import Cache
from stages.catalogue import Profile, profiles
from stages.demand import Items
from stages.prices import Price
from stages.spec import Model, capacity_rps
from stages.traffic import popularity

ARCHITECTURES = ("single-vm", "micro-batched", "load-balanced", "autoscaled", "cached")
QUEUED = "queued"  # of the ladder alone: nobody waits for it
WAITS = (0.0, 0.05)  # shares of p95 for which a batch waits to be filled
FILLS = (0.9, 0.75, 0.6)  # shares of its capacity that an autoscaler gives a replica
TOLERANCE = 0.1  # so near to its target an autoscaler changes nothing
MOST = 2.2  # times the fewest replicas that could do are tried
STEPS = 20  # large fleets are tried in steps of a twentieth
REPLICAS_MAX = 1000  # of an autoscaled fleet, as of any stage


@dataclass(frozen=True)
class Candidate:
    """A stage that may be the answer. Of an autoscaled fleet `replicas` are the most, `least` the fewest."""

    architecture: str
    profile: str
    price: Price
    replicas: int
    max_batch_size: int
    wait_s: float
    usd_per_hour: float  # the least that it can cost
    least: int | None = None
    target_rps: float | None = None  # arrivals that its autoscaler gives a replica
    host: Host | None = None  # the machine of its gateway

    @property
    def gpu(self) -> str:
        """The family of its GPU."""
        return self.price.gpu_family

    @property
    def has_gateway(self) -> bool:
        """Whether clients talk to a gateway."""
        return self.architecture in ("load-balanced", "autoscaled", "cached")

    def __str__(self) -> str:
        fleet = (
            f"{self.replicas} x {self.gpu}" if self.least is None else f"{self.least} to {self.replicas} x {self.gpu}"
        )
        batches = "one request at a time" if self.max_batch_size == 1 else f"batches of up to {self.max_batch_size}"
        wait = f" after up to {1e3 * self.wait_s:g} ms" if self.wait_s and self.max_batch_size > 1 else ""
        target = "" if self.target_rps is None else f", another one for every {self.target_rps:.0f} requests/s"
        contract = f"{self.price.machine}, {self.price.pricing}"
        return f"{self.architecture}: {fleet} ({contract}), {batches}{wait}{target}, {self.profile}"


@dataclass(frozen=True)
class Grid:
    """What is left to be simulated, cheapest bound first, and how many were refused for what reason."""

    candidates: tuple[Candidate, ...]
    refused: dict[str, int]


def candidates(
    workload: Workload,
    rented: Sequence[Offer],
    *,
    architectures: Sequence[str] = ARCHITECTURES,
    host: Host | None = None,
    pruned: bool = True,
) -> Grid:
    """Every stage of those devices that may answer the workload; all there are, whatever they can do, if not `pruned`.

    `host` is the machine that a gateway has; without it none is counted.
    """
    refused: Counter[str] = Counter()
    found: list[Candidate] = []
    for offer in rented:
        for batch in _batches(workload, offer.profile, pruned, refused):
            for wait_s in _waits(workload, batch):
                for architecture in architectures:
                    found += _of_kind(workload, offer, architecture, batch, wait_s, pruned, refused)
    hosted = [_with_host(each, host) for each in found]
    ordered = sorted(dict.fromkeys(hosted), key=lambda each: (each.usd_per_hour, str(each)))
    return Grid(tuple(ordered), dict(refused))


def sibling(workload: Workload, rented: Sequence[Offer], candidate: Candidate, **changes: Any) -> Candidate:
    """The candidate with changes, on the machine that is cheapest for it then, and with its own least cost."""
    changed = replace(candidate, **changes)
    offer = next(offer for offer in rented if offer.profile.name == changed.profile)
    count: Replicas = changed.replicas if changed.least is None else _least_over_time(workload, changed)
    price = offer.price_of(count)
    bare = replace(changed, price=price, usd_per_hour=paid_usd_per_hour(price, count), host=None)
    return _with_host(bare, candidate.host)


def most_replicas(workload: Workload, target_rps: float) -> int:
    """The most that an autoscaler may have who gives each replica `target_rps`: what the peak takes, and one more."""
    return math.ceil(workload.peak_rps / target_rps) + 1


def replica_rps(candidate: Candidate) -> float:
    """The most requests per second that one replica computes."""
    return capacity_rps(profiles()[candidate.profile].service_time_s, candidate.max_batch_size)


def hit_share(workload: Workload) -> float:
    """The most that a cache of the default size can have of what is asked: its most popular entries; 0 without one."""
    if workload.items is None:
        return 0.0
    entries = Cache().max_bytes // kept_bytes(Model(name="digits"))
    shares = popularity(Items(popularity="zipf", count=workload.items, exponent=workload.zipf))
    return min(1.0, float(shares[:entries].sum()))


# ---- which there are -----------------------------------------------------------------------------------------


def _batches(workload: Workload, profile: Profile, pruned: bool, refused: Counter[str]) -> Iterator[int]:
    """The largest batches to try: those that are done in time, and carry more than smaller ones."""
    best_rps = 0.0
    for batch in (batch for batch in BATCHES if batch <= profile.max_batch_size):
        rps = capacity_rps(profile.service_time_s, batch)
        if pruned and profile.service_time_s(batch) >= workload.p95_s:
            refused["a full batch alone takes longer than p95"] += 1
        elif pruned and rps <= 1.001 * best_rps:
            refused["a larger batch carries no more"] += 1
        else:
            best_rps = max(best_rps, rps)
            yield batch


def _waits(workload: Workload, batch: int) -> tuple[float, ...]:
    return tuple(share * workload.p95_s for share in WAITS) if batch > 1 else (0.0,)


def _of_kind(
    workload: Workload,
    offer: Offer,
    architecture: str,
    batch: int,
    wait_s: float,
    pruned: bool,
    refused: Counter[str],
) -> Iterator[Candidate]:
    """The candidates of one architecture on one device with one way to make batches."""
    each_rps = capacity_rps(offer.profile.service_time_s, batch)
    plain = Candidate(architecture, offer.profile.name, offer.prices[0], 1, batch, wait_s, 0.0)
    counts: Sequence[int]
    match architecture:
        case "single-vm" | "micro-batched":
            if (batch == 1) != (architecture == "single-vm"):
                return
            counts = (1,)
        case "cached":
            if workload.items is None or wait_s:
                return
            counts = _counts(max(1, math.floor((1 - hit_share(workload)) * workload.rate_rps / each_rps)), pruned)
        case "autoscaled":
            if workload.shape != "steady" and not wait_s:
                yield from _autoscaled(workload, offer, plain, each_rps)
            return
        case "queued":
            if wait_s:
                return
            counts = _counts(math.floor(workload.rate_rps / each_rps) + 1, pruned)
        case _:
            fewest = _fewest(workload, each_rps)
            counts = [count for count in _counts(fewest, pruned) if count > 1]
    for count in counts:
        if pruned and architecture != "cached" and count * each_rps <= workload.rate_rps:
            refused["its capacity is below the mean rate"] += 1
        elif pruned and architecture not in ("cached", QUEUED) and _share(workload, count * each_rps) < SHARE:
            refused["even a fluid would be late"] += 1
        else:
            price = offer.price_of(count)
            yield replace(plain, replicas=count, price=price, usd_per_hour=paid_usd_per_hour(price, count))


def _autoscaled(workload: Workload, offer: Offer, plain: Candidate, each_rps: float) -> Iterator[Candidate]:
    """Fleets that follow the rate: how full a replica is to be, and how many are always there."""
    alone = False
    for fill in FILLS:
        target_rps = fill * each_rps
        most = most_replicas(workload, target_rps)
        if alone and most == 2:  # this one would never have a second replica either
            continue
        alone = most == 2
        for least in sorted({1, max(1, math.ceil(workload.rate_rps / target_rps))}):
            if least < most <= REPLICAS_MAX:
                fleet = replace(plain, replicas=most, least=least, target_rps=target_rps)
                count = _least_over_time(workload, fleet)
                price = offer.price_of(count)
                yield replace(fleet, price=price, usd_per_hour=paid_usd_per_hour(price, count))


def _least_over_time(workload: Workload, fleet: Candidate) -> Floats:
    """The fewest replicas that an autoscaler keeps in each bin of a run: one more only where its tolerance ends.

    What it is late with when the rate rises it is later with when the rate falls.
    """
    assert fleet.target_rps is not None
    wanted = np.ceil(workload.rates_rps() / (fleet.target_rps * (1 + TOLERANCE)))
    return np.asarray(np.clip(wanted, fleet.least or 1, fleet.replicas), dtype=np.float64)


def _counts(fewest: int, pruned: bool) -> Sequence[int]:
    """Replicas to try: from the fewest that could do (from 1, where nothing is pruned) to MOST times as many."""
    step = max(1, fewest // STEPS)
    return range(fewest if pruned else 1, math.ceil(MOST * fewest) + 2, step)


@lru_cache(maxsize=1024)
def _fewest(workload: Workload, each_rps: float) -> int:
    """The fewest replicas that a fluid needs."""
    low = math.floor(workload.rate_rps / each_rps) + 1
    high = max(low, math.ceil(workload.peak_rps / each_rps))
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _share(workload, middle * each_rps) >= SHARE else (middle + 1, high)
    return low


@lru_cache(maxsize=4096)
def _share(workload: Workload, fleet_rps: float) -> float:
    rates = workload.rates_rps()
    return fluid_share(rates, workload.duration_s / rates.size, fleet_rps, workload.p95_s)


def _with_host(candidate: Candidate, host: Host | None) -> Candidate:
    """The candidate with the machine of its gateway, where it has one and that costs anything."""
    if host is None or not (candidate.has_gateway or candidate.architecture == QUEUED):
        return candidate
    total = candidate.usd_per_hour + host.usd_per_hour
    return replace(candidate, usd_per_hour=total, host=host)
