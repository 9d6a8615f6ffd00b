"""Stages, calibrations and schedules made for a test, and random ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
from hypothesis import strategies as st

from stages.calibration import Calibration, GatewayCosts, HostCosts, ServiceTimes
from stages.fleet import Policy
from stages.spec import Stage, parse_stage
from stages.traffic import Schedule


def a_stage(**tables: Mapping[str, Any]) -> Stage:
    """A stage on a calibrated device, with `tables` on top of the least that there must be; None removes a key."""
    table: dict[str, Any] = {
        "model": {"name": "digits"},
        "device": {"kind": "cpu"},
        "traffic": {"rate": {"shape": "constant", "rate_rps": 1.0}, "timeout_s": 3600.0},
        "slo": {"latency_s": 3600.0},
    }
    for name, keys in tables.items():
        table[name] = {key: value for key, value in (table.get(name, {}) | dict(keys)).items() if value is not None}
    return parse_stage({"name": "a-stage", "title": "A stage", "question": "Why?"} | table)


def a_calibration(service_s: Mapping[int, tuple[float, ...]], **host: Any) -> Calibration:
    """A calibration with the quantiles of each batch size and the given host costs."""
    swept = tuple(ServiceTimes(batch_size=n, quantiles_s=q) for n, q in service_s.items())
    return Calibration(
        stage="a-stage",
        machine="none",
        device="cpu",
        model="digits",
        made_at="",
        command="",
        low_load_rate_rps=1.0,
        service_times=swept,
        host=HostCosts.model_validate(host),
    )


def a_schedule(arrivals_s: list[float]) -> Schedule:
    """Those arrivals, all for item 0, over at least a second."""
    times_s = np.array(arrivals_s, dtype=np.float64)
    return Schedule(times_s, np.zeros(times_s.size, dtype=np.int64), max(1.0, times_s.max(initial=0.0)))


POLICIES = get_args(Policy)
GRID_S = 1 / 64  # sums of multiples of it are exact, so that ties are ties whichever way they are reached


def times(most: int, least: int = 0) -> st.SearchStrategy[float]:
    return st.integers(least, most).map(lambda n: n * GRID_S)


Run = tuple[Stage, Schedule, Calibration]


@st.composite
def random_runs(draw: st.DrawFn, *, largest: int = 6, refusing: bool = True) -> Run:
    """A stage, a schedule with bursts and ties, and host costs; every time is a multiple of GRID_S.

    `largest` bounds the batch size; nobody is refused unless `refusing`.
    """
    max_size = draw(st.integers(1, largest))
    batching = {"max_batch_size": max_size, "batch_wait_timeout_s": draw(times(40))}
    admission: dict[str, Any] = {"max_queue_length": max_size + draw(st.integers(0, 8)) if refusing else 256}
    if refusing and draw(st.booleans()):
        admission["deadline_s"] = draw(times(60, 1))
    timeout = {"timeout_s": draw(times(200, 1))}
    first_s, each_s = draw(times(20, 1)), draw(times(6))
    service_s = {n: (first_s + n * each_s,) for n in range(1, max_size + 1)}
    host = {
        "send_quantiles_s": (draw(times(3)),),
        "reply_quantiles_s": (draw(times(3)),),
        **{name: draw(times(3)) for name in ("wake_s", "between_batches_s", "reply_per_item_s")},
    }
    count = draw(st.integers(0, 60))  # drawn first: a list's own length would be short as a rule
    gaps_s = draw(st.lists(st.just(0.0) | times(30), min_size=count, max_size=count))
    stage = a_stage(batching=batching, admission=admission, traffic=timeout)
    return stage, a_schedule(np.cumsum(gaps_s).tolist()), a_calibration(service_s, **host)


@st.composite
def random_fleets(draw: st.DrawFn, *, refusing: bool = True) -> Run:
    """A stage with a gateway before one to four replicas, a schedule and costs; every time is a multiple of GRID_S.

    Nobody is refused, gives up or is waited for in vain unless `refusing`.
    """
    stage, schedule, calibration = draw(random_runs(largest=4, refusing=refusing))
    gateway: dict[str, Any] = {"policy": draw(st.sampled_from(POLICIES)), "upstream_timeout_s": 3600.0}
    if refusing:
        gateway |= {
            "max_in_flight": draw(st.integers(4, 40)),
            "connections_per_replica": draw(st.integers(4, 20)),
            "retries_max": draw(st.integers(0, 3)),
            "upstream_timeout_s": draw(times(300, 64)),
        }
    costs = GatewayCosts(
        send_quantiles_s=(draw(times(3)),),
        forward_quantiles_s=(draw(times(3)),),
        back_quantiles_s=(draw(times(3)),),
        reply_quantiles_s=(draw(times(3)),),
        busy_s=2 * draw(times(2)),
    )
    stage = a_stage(
        fleet={"replicas": draw(st.integers(1, 4))},
        gateway=gateway,
        admission=stage.admission.model_dump(),
        batching=stage.batching.model_dump(),
        traffic={"timeout_s": stage.traffic.timeout_s if refusing else 3600.0},
    )
    return stage, schedule, calibration.model_copy(update={"gateway": costs})
