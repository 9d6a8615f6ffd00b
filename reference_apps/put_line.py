"""Jobs on their way into the queue: those that come while one transaction is written go together into the next.

    put, put, put … ──▶ [ line ] ── one call for all that wait ──▶ broker ──▶ each is told whether it was accepted

A commit that survives a power cut takes the disk a millisecond or more, and costs the same for one job and for a
hundred. Nobody waits for company: the first one goes at once.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from dataclasses import dataclass

from reference_apps.broker import Accepted, Broker, BrokerDownError, NewJob, QueueFullError

LINE_MAX = 4096  # jobs that may wait for their turn to be put
BATCH_JOBS_MAX, BATCH_BYTES_MAX = 256, 8_388_608

log = logging.getLogger("rung.jobs")


@dataclass(slots=True)
class _Waiting:
    job: NewJob
    accepted: asyncio.Future[Accepted]


class PutLine:
    """Puts jobs from an event loop into a broker, through one thread. `open` it on the loop."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._line: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="put", daemon=True)

    def __len__(self) -> int:
        return len(self._line)

    def open(self) -> None:
        """Begins; called on the event loop that will put."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Puts what waits, and ends."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    async def put(self, job: NewJob) -> Accepted:
        """Accepted, and on the disk. Raises QueueFullError and BrokerDownError.

        Whoever does not wait for the end of it may find the job accepted all the same.
        """
        assert self._loop is not None
        waiting = _Waiting(job, self._loop.create_future())
        with self._changed:
            if self._closing or len(self._line) >= LINE_MAX:
                raise QueueFullError(len(self._line), LINE_MAX)
            self._line.append(waiting)
            if len(self._line) == 1:
                self._changed.notify()
        return await waiting.accepted

    def _run(self) -> None:
        while batch := self._next():
            told = self._put(batch)
            assert self._loop is not None
            self._loop.call_soon_threadsafe(_tell, batch, told)

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


def _tell(batch: list[_Waiting], told: list[Accepted | Exception]) -> None:
    for waiting, what in zip(batch, told, strict=True):
        if waiting.accepted.done():  # its client may have gone
            continue
        if isinstance(what, Exception):
            waiting.accepted.set_exception(what)
        else:
            waiting.accepted.set_result(what)
