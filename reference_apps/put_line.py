"""Jobs on their way into the queue: those that come while one transaction is written go together into the next.

    put, put, put … ──▶ [ line ] ── one call for all that wait ──▶ broker ──▶ each is told whether it was accepted

A commit that survives a power cut takes the disk a millisecond or more, and costs the same for one job and for a
hundred. Nobody waits for company: the first one goes at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass

from reference_apps.broker import Accepted, Broker, BrokerDownError, NewJob, QueueFullError
from reference_apps.loop_thread import LoopThread

LINE_MAX = 4096  # jobs that may wait for their turn to be put
BATCH_JOBS_MAX, BATCH_BYTES_MAX = 256, 8_388_608

log = logging.getLogger("rung.jobs")


class LineFullError(RuntimeError):
    """As many jobs wait to be written down as may; this one was not accepted."""

    def __init__(self) -> None:
        super().__init__(
            f"{LINE_MAX} jobs wait to be written into the queue, and no more may. This one was not accepted. Jobs come "
            "faster than the queue's disk or server takes them: send fewer at once, or give the queue a faster one."
        )


@dataclass(slots=True)
class _Waiting:
    job: NewJob
    accepted: asyncio.Future[Accepted]


class PutLine(LoopThread):
    """Puts jobs from an event loop into a broker, through one thread. What waits when it is closed is put."""

    def __init__(self, broker: Broker) -> None:
        super().__init__("put")
        self._broker = broker
        self._line: deque[_Waiting] = deque()

    def __len__(self) -> int:
        return len(self._line)

    async def put(self, job: NewJob) -> Accepted:
        """Accepted, and on the disk. Raises LineFullError, QueueFullError and BrokerDownError.

        Whoever does not wait for the end of it may find the job accepted all the same.
        """
        assert self._loop is not None
        waiting = _Waiting(job, self._loop.create_future())
        with self._changed:
            if self._closing:
                raise BrokerDownError("the jobs API is stopping.")
            if len(self._line) >= LINE_MAX:
                raise LineFullError
            self._line.append(waiting)
            if len(self._line) == 1:
                self._changed.notify()
        return await waiting.accepted

    def _run(self) -> None:
        while batch := self._next():
            self._tell([waiting.accepted for waiting in batch], self._put(batch))

    def _next(self) -> list[_Waiting]:
        """Those that go together; waits for the first. Empty once closed and empty."""
        with self._changed:
            while not self._line and not self._closing:
                self._changed.wait()
            batch: list[_Waiting] = []
            size = 0
            while self._line and len(batch) < BATCH_JOBS_MAX:
                size += len(self._line[0].job.payload)
                if batch and size > BATCH_BYTES_MAX:
                    break
                batch.append(self._line.popleft())
            return batch

    def _put(self, batch: list[_Waiting]) -> list[Accepted | Exception]:
        """What becomes of each. Where there is room for some of them only, the first of them get it."""
        jobs = [waiting.job for waiting in batch]
        try:
            return [*self._broker.put(jobs)]
        except QueueFullError as error:
            room = min(error.max_depth - error.inside, len(jobs) - 1)
            if room <= 0:
                return [error] * len(batch)
            refused: list[Accepted | Exception] = [error] * (len(batch) - room)
            return self._put(batch[:room]) + refused
        except BrokerDownError as error:
            return [error] * len(batch)
        except Exception as error:
            log.exception("jobs could not be put")
            return [BrokerDownError(f"the queue failed: {type(error).__name__}")] * len(batch)
