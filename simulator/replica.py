"""One copy of the model server, event by event: a request in, the batcher and the device behind it, an answer out.

    submit ─▶ room? ─▶ Batcher ─▶ Device ─▶ settled
                │ queue full │ deadline

The form that fits anywhere: behind a gateway, or with users who wait for their replies. Where all arrivals of a
single replica are known up front, simulator/ahead.py does the same with less work. Twin: reference_apps/replica.py.
Not modelled: start-up, bad inputs, and models that fail by chance: one fails on the same inputs each time, or on none.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from simpy import Environment

from simulator.batcher import Batcher, Request
from simulator.device import Device
from simulator.host import Host
from simulator.outcomes import ReplicaLog
from stages.policies.crashing import crashes
from stages.spec import Stage

__all__ = ["Replica"]

# (request, when its answer or refusal is back where it came from, one of stages.outcomes.REASONS: "" for an answer)
Settled = Callable[[int, float, str], None]


class Replica:
    """The server of one model on one device, from now on. `settled` is told of each request once its end is known.

    `replica.device.slow(factor)` slows it down. `crash_position` says where the input of a request is in [0, 1): the
    model fails on those below its crash share.
    """

    def __init__(
        self,
        stage: Stage,
        env: Environment,
        device: Device,
        host: Host,
        settled: Settled | None = None,
        crash_position: Callable[[int], float] | None = None,
    ) -> None:
        self.batcher = Batcher(stage.batching, stage.admission, env, host.wake_s)
        self.device = device
        self.busy_s = 0.0  # of the device, in batches that are done
        self._env = env
        self._host = host
        self._settled = settled
        self._deadline_s = stage.admission.deadline_s
        self._crash_share, self._crash_position = stage.model.known.crash_share, crash_position
        self._closed = False
        self._batches: list[tuple[float, float, int]] = []
        self._served: list[int] = []
        self._shed: list[int] = []
        self._crashed: list[int] = []
        self._expired: list[tuple[int, float]] = []
        fails = self._fails if self._crash_share and crash_position is not None else None
        env.process(device.run(env, self.batcher, self._finished, host.between_batches_s, fails))

    def submit(self, request: int, deadline_s: float | None = None) -> bool:
        """Request number `request` is in the replica now. False: it was refused.

        `deadline_s`, in seconds from now, stands in for the stage's own.
        """
        deadline_s = self._deadline_s if deadline_s is None else deadline_s
        if self.batcher.put(Request(request, self._env.now, deadline_s, self._expired_in_queue)):
            return True
        self._shed.append(request)
        self._tell_refused(request, "draining" if self._closed else "queue_full")
        return False

    def close(self) -> None:
        """Lets nobody in any more; the accepted are answered."""
        self._closed = True
        self.batcher.close()

    def log(self) -> ReplicaLog:
        """What has been done so far."""
        started_s, finished_s, sizes = zip(*self._batches, strict=True) if self._batches else ((), (), ())
        expired, expired_s = zip(*self._expired, strict=True) if self._expired else ((), ())
        return ReplicaLog(
            started_s=np.array(started_s, dtype=np.float64),
            finished_s=np.array(finished_s, dtype=np.float64),
            sizes=np.array(sizes, dtype=np.int64),
            served=np.array(self._served, dtype=np.int64),
            shed=np.array(self._shed, dtype=np.int64),
            expired=np.array(expired, dtype=np.int64),
            expired_s=np.array(expired_s, dtype=np.float64),
            crashed=np.array(self._crashed, dtype=np.int64),
        )

    def _finished(self, batch: list[Request], started_s: float, finished_s: float) -> None:
        number = len(self._batches)
        self._batches.append((started_s, finished_s, len(batch)))
        self.busy_s += finished_s - started_s
        self._served += [request.number for request in batch]
        crashed = [request.number for request in batch if self._fails(request)] if self._crash_share else []
        self._crashed += crashed
        if self._settled is not None:
            for place, request in enumerate(batch):
                reason = "model_error" if request.number in crashed else ""
                self._settled(request.number, self._host.answer_s(finished_s, number, place), reason)

    def _fails(self, request: Request) -> bool:
        """Whether the model raises on what the request asks."""
        position = self._crash_position
        return position is not None and crashes(position(request.number), self._crash_share)

    def _expired_in_queue(self, request: Request) -> None:
        self._expired.append((request.number, self._env.now))
        self._tell_refused(request.number, "deadline")

    def _tell_refused(self, request: int, reason: str) -> None:
        if self._settled is not None:
            self._settled(request, self._host.refusal_s(self._env.now, request), reason)
