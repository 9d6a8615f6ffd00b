"""A candidate of a plan as a stage: the tables that `rung up` reads.

    Workload, Candidate ──▶ stage_table ──▶ stages.spec ──▶ Stage

No twin. Not chosen here: what stages/spec.py has good defaults for, such as timeouts and probes.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from simulator.candidates import QUEUED, TOLERANCE, Candidate, replica_rps
from simulator.workload import SHARE, Workload
from stages.spec import Stage, parse_stage

MODEL = "digits"  # what an emulated device really computes: its pace is that of the profile


@lru_cache(maxsize=4096)
def stage_of(workload: Workload, candidate: Candidate) -> Stage:
    """The candidate as a stage under the workload. Raises StageError when there is no such stage."""
    return parse_stage(stage_table(workload, candidate), str(candidate))


def stage_table(workload: Workload, candidate: Candidate) -> dict[str, Any]:
    """The tables of that stage. A queue holds what its replica answers within p95: what is deeper comes too late."""
    batch, name = candidate.max_batch_size, candidate.architecture
    each_rps = replica_rps(candidate)
    queue = batch + max(batch, math.ceil(each_rps * workload.p95_s))
    overloaded = candidate.architecture != "cached" and workload.rate_rps >= candidate.replicas * each_rps
    table: dict[str, Any] = {
        "name": f"planned-{name}",
        "title": f"Planned, {name}",
        "question": f"What is the cheapest stage for {workload.in_words}?",
        "grown_from": "rung plan",
        "overload": overloaded,
        "model": {"name": MODEL},
        "device": {"kind": "emulated", "profile": candidate.profile},
        "batching": {"max_batch_size": batch, "batch_wait_timeout_s": candidate.wait_s},
        "fleet": {"replicas": candidate.least or candidate.replicas},
        "cost": _cost(candidate),
        "traffic": workload.traffic(),
        "slo": {"latency_s": workload.p95_s, "share": SHARE},
    }
    if name == QUEUED:
        limit_s = min(3600.0, 4 * workload.p95_s)
        reply = {
            "request_reply_timeout_s": limit_s,
            "max_depth": 10_000_000,
            "lease_s": min(86_400.0, max(30.0, limit_s)),
        }
        return table | {"queue": reply, "traffic": workload.traffic(limit_s)}
    table["admission"] = {"max_queue_length": min(1_000_000, queue)}
    if candidate.has_gateway:
        inside = min(100_000, 4 * candidate.replicas * queue)
        connections = min(100_000, 2 * queue)
        table["gateway"] = {"max_in_flight": inside, "connections_per_replica": connections}
    if name == "cached":
        table["cache"] = {}
    if name == "autoscaled":
        bounds = {"min_replicas": candidate.least, "max_replicas": candidate.replicas}
        rule = {"metric": "rate", "target": candidate.target_rps, "tolerance": TOLERANCE}
        table["scaling"] = {"policy": "target-tracking", **bounds, **rule, **workload.autoscaler_times()}
    return table


def _cost(candidate: Candidate) -> dict[str, Any]:
    price = candidate.price
    table: dict[str, Any] = {"machine": price.machine, "pricing": price.pricing, "region": price.region}
    if candidate.host is not None and candidate.host.machine is not None:
        table["host_machine"] = candidate.host.machine
    elif candidate.host is not None:
        table["host_usd_per_hour"] = candidate.host.usd_per_hour
    return table
