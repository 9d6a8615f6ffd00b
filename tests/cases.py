"""Small cases worked by hand, which drive both worlds: which batches must leave, and which replicas are tried.

All times are multiples of 1/64 s, so that floats are exact. At the very moment at which a batch leaves, requests
arrive first: they ride along where there is room, and find the queue full where there is none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """Requests are called by their index in `arrivals_s`; one device, nothing costs time but the service."""

    name: str
    arrivals_s: tuple[float, ...]
    service_time_s: dict[int, float]  # batch size → seconds
    batches: tuple[tuple[float, tuple[int, ...]], ...]  # (started_s, requests)
    max_batch_size: int = 1
    batch_wait_timeout_s: float = 0.0
    max_queue_length: int = 256
    deadline_s: float | None = None
    shed: tuple[int, ...] = ()
    expired: tuple[int, ...] = ()


def always(service_time_s: float, up_to: int = 1) -> dict[int, float]:
    """The same time for every batch size."""
    return dict.fromkeys(range(1, up_to + 1), service_time_s)


CASES = (
    Case(
        "one at a time",
        arrivals_s=(0.0, 0.25, 2.0),
        service_time_s=always(0.5),
        batches=((0.0, (0,)), (0.5, (1,)), (2.0, (2,))),
    ),
    Case(
        "a wait means nothing to batches of one",
        arrivals_s=(1.0,),
        service_time_s=always(0.5),
        batch_wait_timeout_s=4.0,
        batches=((1.0, (0,)),),
    ),
    Case(
        "without a wait nobody waits for company",
        arrivals_s=(0.0, 0.25, 0.5),
        service_time_s=always(0.125, 4),
        max_batch_size=4,
        batches=((0.0, (0,)), (0.25, (1,)), (0.5, (2,))),
    ),
    Case(
        "a full batch leaves at once",
        arrivals_s=(0.0, 0.25, 0.5, 0.75),
        service_time_s=always(0.125, 2),
        max_batch_size=2,
        batch_wait_timeout_s=1.0,
        batches=((0.25, (0, 1)), (0.75, (2, 3))),
    ),
    Case(
        "the wait counts from the oldest",
        arrivals_s=(0.0, 0.25, 0.4375),
        service_time_s=always(0.125, 8),
        max_batch_size=8,
        batch_wait_timeout_s=0.5,
        batches=((0.5, (0, 1, 2)),),
    ),
    Case(
        "a wait that ran out behind the device is over",
        arrivals_s=(0.0, 0.75, 1.0),
        service_time_s=always(2.0, 8),
        max_batch_size=8,
        batch_wait_timeout_s=0.5,
        batches=((0.5, (0,)), (2.5, (1, 2))),
    ),
    Case(
        "a busy device gathers",
        arrivals_s=(0.0, 0.125, 0.25, 0.375, 0.5, 0.625),
        service_time_s=always(1.0, 4),
        max_batch_size=4,
        batches=((0.0, (0,)), (1.0, (1, 2, 3, 4)), (2.0, (5,))),
    ),
    Case(
        "a free device waits on, until the batch is full",
        arrivals_s=(0.0, 0.125, 0.75, 0.875, 1.25),
        service_time_s=always(1.0, 3),
        max_batch_size=3,
        batch_wait_timeout_s=0.5,
        batches=((0.5, (0, 1)), (1.5, (2, 3, 4))),
    ),
    Case(
        "a free device waits on, until the oldest has waited enough",
        arrivals_s=(0.0, 1.25, 1.375),
        service_time_s=always(1.0, 3),
        max_batch_size=3,
        batch_wait_timeout_s=0.5,
        batches=((0.5, (0,)), (1.75, (1, 2))),
    ),
    Case(
        "larger batches take longer",
        arrivals_s=(0.0, 0.25, 0.5, 0.625, 0.75),
        service_time_s={1: 0.375, 2: 0.5, 3: 0.75},
        max_batch_size=3,
        batches=((0.0, (0,)), (0.375, (1,)), (0.75, (2, 3, 4))),
    ),
    Case(
        "all at once, one by one",
        arrivals_s=(1.0, 1.0, 1.0),
        service_time_s=always(0.25),
        batches=((1.0, (0,)), (1.25, (1,)), (1.5, (2,))),
    ),
    Case(
        "all at once, together",
        arrivals_s=(1.0,) * 5,
        service_time_s=always(0.25, 4),
        max_batch_size=4,
        batch_wait_timeout_s=0.5,
        batches=((1.0, (0, 1, 2, 3)), (1.5, (4,))),
    ),
    Case(
        "a full queue sheds, and has room again when a batch has left",
        arrivals_s=(0.0, 0.25, 0.5, 0.75, 1.5),
        service_time_s=always(1.0),
        max_queue_length=2,
        batches=((0.0, (0,)), (1.0, (1,)), (2.0, (2,)), (3.0, (4,))),
        shed=(3,),
    ),
    Case(
        "who comes at the moment at which a batch leaves finds the queue as full as it was",
        arrivals_s=(0.0, 0.25, 1.0, 1.25),
        service_time_s=always(1.0),
        max_queue_length=1,
        batches=((0.0, (0,)), (1.0, (1,)), (2.0, (3,))),
        shed=(2,),
    ),
    Case(
        "all at once, more than the queue holds",
        arrivals_s=(1.0,) * 5,
        service_time_s=always(0.25, 2),
        max_batch_size=2,
        max_queue_length=3,
        batches=((1.0, (0, 1)), (1.25, (2,))),
        shed=(3, 4),
    ),
    Case(
        "the expired cost no device time",
        arrivals_s=(0.0, 0.25, 0.625, 0.875),
        service_time_s=always(1.0),
        deadline_s=0.5,
        batches=((0.0, (0,)), (1.0, (2,))),
        expired=(1, 3),
    ),
    Case(
        "a deadline that is just reached is kept",
        arrivals_s=(0.0, 0.5),
        service_time_s=always(1.0),
        deadline_s=0.5,
        batches=((0.0, (0,)), (1.0, (1,))),
    ),
    Case(
        "the expired still fill the queue until the device looks",
        arrivals_s=(0.0, 0.125, 0.25, 0.875),
        service_time_s=always(1.0),
        max_queue_length=2,
        deadline_s=0.5,
        batches=((0.0, (0,)),),
        shed=(3,),
        expired=(1, 2),
    ),
    Case(
        "an expired request leaves its batch short again",
        arrivals_s=(0.0, 0.5, 0.8125, 1.0),
        service_time_s=always(0.25, 3),
        max_batch_size=3,
        batch_wait_timeout_s=1.0,
        deadline_s=0.75,
        batches=((1.0, (1, 2, 3)),),
        expired=(0,),
    ),
    Case(
        "expiry makes room in the batch for those behind",
        arrivals_s=(0.0, 0.125, 0.75, 0.875),
        service_time_s=always(1.0, 2),
        max_batch_size=2,
        deadline_s=0.5,
        batches=((0.0, (0,)), (1.0, (2, 3))),
        expired=(1,),
    ),
)


Ends = tuple[tuple[int, ...], str]  # (replicas in the order in which they were tried, what the client is told)


@dataclass(frozen=True)
class GatewayCase:
    """Requests of one client, one a second: each has its end before the next. "" is an answer, the rest are reasons."""

    name: str
    scripts: tuple[tuple[str, ...], ...]  # replica → how each try there ends, in order; the last for ever
    ends: tuple[Ends, ...]  # of each request
    gateway: dict[str, Any] = field(default_factory=dict)  # on top of taking turns, without an ejection
    keys: tuple[str, ...] = ()  # of the requests; as many different ones where there are none


GOOD, FULL, LOST = ("",), ("queue_full",), ("upstream_lost",)

GATEWAY_CASES = (
    GatewayCase("turns are taken", (GOOD, GOOD, GOOD), (((0,), ""), ((1,), ""), ((2,), ""), ((0,), ""))),
    GatewayCase("a full replica's request goes to the next", (FULL, GOOD), (((0, 1), ""), ((0, 1), ""))),
    GatewayCase(
        "when all are full the client is told so",
        (FULL, FULL, FULL),
        (((0, 1), "queue_full"), ((2, 0), "queue_full")),
    ),
    GatewayCase(
        "as many further tries as the stage says, each elsewhere",
        (FULL, FULL, FULL),
        (((0, 1, 2), "queue_full"),),
        gateway={"retries_max": 5},
    ),
    GatewayCase("no further try where none is allowed", (LOST, GOOD), (((0,), "upstream_lost"),), {"retries_max": 0}),
    GatewayCase(
        "what was lost is computed once more",
        (LOST, GOOD, ("draining",)),
        (((0, 1), ""), ((2, 0), "upstream_lost")),
    ),
    GatewayCase(
        "a connection that is refused reads as lost to the client",
        (("connection",), ("connection", "")),
        (((0, 1), "upstream_lost"), ((0, 1), "")),
    ),
    GatewayCase(
        "nobody repeats a missed deadline or a failing model",
        (("deadline",), ("model_error",)),
        (((0,), "deadline"), ((1,), "model_error")),
    ),
    GatewayCase(
        "failures in a row eject, for a time, and one more does so again",
        (("upstream_lost", "upstream_lost", "model_error", ""), GOOD),
        (
            ((0,), "upstream_lost"),
            ((1,), ""),
            ((0,), "upstream_lost"),  # at 2 s, and back at 2 1/8 s: out until 5 1/8 s
            ((1,), ""),
            ((1,), ""),
            ((1,), ""),
            ((0,), "model_error"),  # at 6 s: out until 9 1/8 s
            ((1,), ""),
            ((1,), ""),
            ((1,), ""),
            ((0,), ""),
        ),
        gateway={"retries_max": 0, "eject_after": 2, "eject_s": 3.0},
    ),
    GatewayCase(
        "a full queue ejects nobody",
        (FULL, GOOD),
        (((0,), "queue_full"), ((1,), ""), ((0,), "queue_full")),
        gateway={"retries_max": 0, "eject_after": 1},
    ),
    GatewayCase(
        "with all ejected there is nobody",
        (LOST, LOST),
        (((0,), "upstream_lost"), ((1,), "upstream_lost"), ((), "no_replica")),
        gateway={"retries_max": 0, "eject_after": 1, "eject_s": 60.0},
    ),
    GatewayCase(
        "the budget ends retries: three in ten seconds, and a share of the requests",
        (FULL, FULL),
        (*[((n % 2, 1 - n % 2), "queue_full") for n in (0, 0, 0)], ((0,), "queue_full"), ((1,), "queue_full")),
        gateway={"retry_budget_share": 0.2},
    ),
    GatewayCase(
        "a key keeps its replica, and moves while that one is out",
        (("", "", "upstream_lost", ""), GOOD),
        (((0,), ""), ((0,), ""), ((0, 1), ""), ((1,), ""), ((1,), ""), ((1,), ""), ((0,), "")),  # out until 5 1/8 s
        gateway={"policy": "sticky", "eject_after": 1, "eject_s": 3.0, "sticky_load_bound": 100.0},
        keys=("7",) * 7,
    ),
)
