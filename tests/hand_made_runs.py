"""Small records whose every figure can be worked out by hand, for the tests of plots, timelines and reports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import polars as pl

from stages.records import BATCHES, REPLICAS, REQUESTS, Records

DEVICE = "emulated t4-resnet50-fp16-pytorch"
Batch = tuple[float, float, int]  # started_s, finished_s, batch_size


def run(
    batches: Iterable[Batch],
    *,
    window_s: float = 10.0,
    wait_s: float = 0.010,
    shed: int = 0,
    replicas: int = 1,
    devices: Sequence[str] = (DEVICE,),
    through_gateway: bool = False,
) -> Records:
    """Requests that all wait `wait_s`; batches go to the replicas in turn, and these have the devices in turn.

    A gateway has each request half a millisecond after it was sent, and its answer so long before it is back.

    A request is scheduled 1 ms before it arrives and replied to 1 ms after its batch ends, so its latency is
    wait_s + 2 ms + the batch's time. The refused ones arrive at 0.5 s.
    """
    requests: list[tuple[object, ...]] = []
    rows: list[tuple[object, ...]] = []
    for number, (started_s, finished_s, size) in enumerate(batches):
        replica, arrived_s = number % replicas, started_s - wait_s
        rows.append((replica, number, started_s, finished_s, size))
        sent_s = arrived_s - 0.001
        gateway = (sent_s + 0.0005, finished_s + 0.0005) if through_gateway else (None, None)
        times = (sent_s, sent_s, gateway[0], arrived_s, started_s, finished_s, gateway[1], finished_s + 0.001)
        for _ in range(size):
            requests.append((len(requests), 0, *times, "ok", "", replica, number, size, None, "", ""))
    for _ in range(shed):
        times_of_refused = (0.5, 0.5, None, 0.5, None, None, None, 0.501)
        requests.append((len(requests), 0, *times_of_refused, "shed", "queue_full", 0, None, None, None, "", ""))
    lives = [(replica, devices[replica % len(devices)], -2.0, 0.0, window_s) for replica in range(replicas)]
    return Records(
        requests=pl.DataFrame(requests, schema=REQUESTS, orient="row"),
        batches=pl.DataFrame(rows, schema=BATCHES, orient="row"),
        replicas=pl.DataFrame(lives, schema=REPLICAS, orient="row"),
        window_s=window_s,
    )


def steady(service_s: float, *, count: int = 50, size: int = 2, shed: int = 0) -> Records:
    """`count` batches of `size`, one every 0.1 s from 0.1 s on, each `service_s` long: all latencies are alike."""
    return run([(0.1 * n, 0.1 * n + service_s, size) for n in range(1, count + 1)], shed=shed)
