"""Plain SimPy, as one writes it first: the batching server that the benchmarks hold the simulator against.

request: (arrived_s, done) ──▶ Store ──▶ gathered, waited for, served ──▶ done
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import simpy

from stages.spec import Batching

Process = Generator[simpy.Event, Any, None]


def batching_server(
    env: simpy.Environment, queue: simpy.Store, batching: Batching, service_time_s: Callable[[int], float]
) -> Process:
    """The process that serves what is put into `queue`, in batches, until nothing happens any more."""
    max_batch_size, wait_s = batching.max_batch_size, batching.batch_wait_timeout_s
    while True:
        oldest = yield queue.get()
        batch = [oldest]
        time_is_up = env.timeout(max(0.0, oldest[0] + wait_s - env.now))
        while len(batch) < max_batch_size:
            if queue.items:
                batch.append((yield queue.get()))
                continue
            getting = queue.get()
            came = yield getting | time_is_up
            if getting not in came:
                getting.cancel()
                break
            batch.append(came[getting])
        yield env.timeout(service_time_s(len(batch)))
        for _, done in batch:
            done.succeed()
