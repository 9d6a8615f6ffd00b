"""What lies beside the answer of a plan: one change each, dearer ones for the front, and why something is not there.

    choice ─▶ changes ─▶ neighbours          grid, choice ─▶ dearer ─▶ the front beyond it

No twin. Not here: two changes at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from simulator.candidates import FILLS, REPLICAS_MAX, WAITS, Candidate, Grid, hit_share, most_replicas, replica_rps
from simulator.offers import BATCHES
from simulator.search import Tried
from simulator.workload import SHARE, Workload
from stages.catalogue import profiles

FRONT_TIMES, FRONT_OF_A_KIND, FRONT_MOST = 3.0, 3, 12  # so much dearer, of one device and architecture, in all


def changes(workload: Workload, own: Candidate) -> list[tuple[str, dict[str, Any]]]:
    """What may be changed of a candidate, one thing each, in words."""
    found: list[tuple[str, dict[str, Any]]] = []
    if own.target_rps is None and own.has_gateway:
        if own.replicas > (1 if own.architecture == "cached" else 2):
            found.append(("one replica fewer", {"replicas": own.replicas - 1}))
        found.append(("one replica more", {"replicas": own.replicas + 1}))
    if own.target_rps is not None:
        each_rps = replica_rps(own)
        for fill in FILLS:
            target_rps = fill * each_rps
            most = most_replicas(workload, target_rps)
            if abs(target_rps / own.target_rps - 1) > 0.01 and (own.least or 1) < most <= REPLICAS_MAX:
                found.append((f"replicas filled to {fill:.0%}", {"target_rps": target_rps, "replicas": most}))
        if own.least is not None and own.least > 1:
            found.append(("one replica fewer at least", {"least": own.least - 1}))
    if own.max_batch_size > 2:
        found.append(("half the batch", {"max_batch_size": own.max_batch_size // 2}))
    if own.architecture != "single-vm" and 2 * own.max_batch_size in BATCHES:
        found.append(("twice the batch", {"max_batch_size": 2 * own.max_batch_size}))
    if own.wait_s:
        found.append(("batches that do not wait", {"wait_s": 0.0}))
    elif own.max_batch_size > 1:
        wait_s = WAITS[-1] * workload.p95_s
        found.append((f"batches that wait up to {1e3 * wait_s:g} ms", {"wait_s": wait_s}))
    return [(what, change) for what, change in found if _exists(own, change)]


def _exists(own: Candidate, change: dict[str, Any]) -> bool:
    """Whether the profile was measured for batches so large."""
    return int(change.get("max_batch_size", 1)) <= profiles()[own.profile].max_batch_size


def dearer(grid: Grid, choice: Tried, tried: Sequence[Tried]) -> list[Candidate]:
    """What the front beyond the choice is looked for in: of each device and architecture the next dearer ones, with
    batches that did best so far, and no more than FRONT_TIMES as dear."""
    usd = choice.usd_per_hour.mean
    best: dict[tuple[str, str], Candidate] = {}
    for known in sorted(tried, key=lambda known: -known.p95_s.mean):
        if known.lost < 1 - SHARE:
            best[known.candidate.architecture, known.candidate.profile] = known.candidate
    counts: dict[tuple[str, str], int] = {}
    found: list[Candidate] = []
    for each in grid.candidates:
        if not usd < each.usd_per_hour <= FRONT_TIMES * usd or len(found) == FRONT_MOST:
            continue
        kind = each.architecture, each.profile
        like = best.setdefault(kind, each)
        same = (each.max_batch_size, each.wait_s) == (like.max_batch_size, like.wait_s)
        if same and counts.get(kind, 0) < FRONT_OF_A_KIND:
            counts[kind] = counts.get(kind, 0) + 1
            found.append(each)
    return found


def none_of(workload: Workload, architecture: str | None) -> str:
    """Why arithmetic leaves nothing of an architecture."""
    match architecture:
        case "cached" if workload.items is None:
            return "no two requests are for the same: say --items for what is asked for again"
        case "cached":
            return f"even with {hit_share(workload):.0%} of the answers kept, no fleet carries the rest in time"
        case "autoscaled" if workload.shape == "steady":
            return "the rate is steady: there is nothing to follow"
        case "single-vm" | "micro-batched":
            return f"one replica does not carry {workload.peak_rps:.0f} requests per second in time"
        case _:
            return "no fleet that it could have answers in time"
