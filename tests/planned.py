"""Candidates, estimates and plans made by hand, for the tests of plans and ladders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from simulator.candidates import Candidate
from simulator.estimate import Estimate
from simulator.search import Tried
from simulator.sweep import METRICS
from stages.prices import Price

T4, A100 = "t4-resnet50-fp16-pytorch", "a100-resnet50-fp16-tensorflow"


def a_price(gpu: str = "T4 16GB", usd: float = 0.5, gpus: int = 1, pricing: str = "on-demand") -> Price:
    return Price("AWS", f"{gpus}x{gpu.split()[0]}", gpu, gpus, usd, pricing, "here", "today", "a test")


def a_candidate(replicas: int = 1, usd: float = 0.5, **changes: Any) -> Candidate:
    """A fleet of T4s that costs at least `usd` an hour."""
    given: dict[str, Any] = {
        "architecture": "load-balanced" if replicas > 1 else "micro-batched",
        "profile": T4,
        "price": a_price(),
        "replicas": replicas,
        "max_batch_size": 8,
        "wait_s": 0.0,
        "usd_per_hour": usd,
    }
    return Candidate(**given | changes)


def an_estimate(seeds: Sequence[int] = (1, 2), **values: float | Sequence[float]) -> Estimate:
    """An estimate with those values, one for all seeds or one a seed; of nothing else it has anything."""
    every: dict[str, float | Sequence[float]] = dict.fromkeys(METRICS, 0.0)
    every |= {"slo_share": 1.0, "latency_s_p95": 0.05, "cost_usd_per_hour": 0.5, "hit_ratio": float("nan")} | values
    spread = {
        name: tuple(value) if isinstance(value, Sequence) else (float(value),) * len(seeds)
        for name, value in every.items()
    }
    return Estimate(tuple(seeds), spread, 100 * len(seeds), 0.0)


def a_try(replicas: int = 1, usd: float = 0.5, seeds: Sequence[int] = (1, 2), **values: Any) -> Tried:
    """A candidate with its estimate, which costs what the candidate is said to cost at least."""
    changes = {name: values.pop(name) for name in list(values) if name in Candidate.__dataclass_fields__}
    values.setdefault("cost_usd_per_hour", usd)
    return Tried(a_candidate(replicas, usd, **changes), an_estimate(seeds, **values))
