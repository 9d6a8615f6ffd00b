"""Those who wait for a job's end, and one thread that looks for all of them at once.

    see(job, wait_s) ──▶ [ waiting ] ── every 10 ms: which have a result? every 0.5 s: where are the others? ──▶ Seen

A question that names five hundred jobs costs the database little more than one that names a single one. Results are
written by other processes, which tell nobody: whoever waits is told at the next look.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from reference_apps.broker import BATCH_MAX, BrokerDownError, Found
from reference_apps.job_store import JobStore
from reference_apps.logs import fields
from reference_apps.loop_thread import LoopThread
from reference_apps.results import Result, ResultsDownError

SWEEP_S = 0.01  # between two looks for results
WHERE_S = 0.5  # between two looks for jobs that died or were never there
DOWN_S = 0.2

log = logging.getLogger("rung.jobs")


class Seen(NamedTuple):
    """What is known of a job: its result, or where it is. Neither: there is no such job (any more)."""

    result: Result | None
    found: Found | None

    @property
    def over(self) -> bool:
        """Whether waiting on changes nothing. A failure of a dead letter that is tried again is no end."""
        if self.result is not None and self.result.outcome == "failed":
            return self.found is None or self.found.state == "dead"
        return self.result is not None or self.found is None or self.found.state == "dead"


@dataclass(slots=True)
class _Waiter:
    job: str
    until_s: float
    end: asyncio.Future[Seen]
    fresh: bool  # nobody has looked for it yet
    stays: bool  # waits on when the process drains


class ResultWatch(LoopThread):
    """Looks for results on behalf of an event loop, through one thread; no more once it is closed."""

    def __init__(self, store: JobStore) -> None:
        super().__init__("watch")
        self._store = store
        self._waiters: dict[int, _Waiter] = {}
        self._numbers = itertools.count()
        self._any_fresh = False
        self._hurries = False

    def __len__(self) -> int:
        return len(self._waiters)

    async def see(self, job: str, wait_s: float, just_put: bool = False, stays: bool = False) -> Seen:
        """The end of a job, or after `wait_s` seconds what is known of it. 0 looks once.

        A job that was put a moment ago is not looked for at once. Who `stays` waits on when the process drains. Raises
        ResultsDownError and BrokerDownError when nothing is known.
        """
        assert self._loop is not None
        ends_s = time.monotonic() + (wait_s if stays or not self._hurries else 0.0)
        waiter = _Waiter(job, ends_s, self._loop.create_future(), not just_put, stays)
        number = next(self._numbers)
        with self._changed:
            self._waiters[number] = waiter
            self._any_fresh |= waiter.fresh
            if waiter.fresh or len(self._waiters) == 1:
                self._changed.notify()
        try:
            return await waiter.end
        finally:
            self._waiters.pop(number, None)

    def hurry(self) -> None:
        """Whoever does not stay is told at the next look what is known."""
        with self._changed:
            self._hurries = True
            for waiter in self._waiters.values():
                if not waiter.stays:
                    waiter.until_s = 0.0

    def _run(self) -> None:
        sweep_s = where_s = 0.0
        while self._wait(sweep_s):
            now_s = time.monotonic()
            with self._changed:
                waiters = list(self._waiters.values())
                self._any_fresh = False
            sweeps, asks_where = now_s >= sweep_s, now_s >= where_s
            chosen = [w for w in waiters if not w.end.done() and (w.fresh or sweeps)]
            try:
                self._look(chosen, asks_where and sweeps)
            except Exception as error:
                expected = isinstance(error, ResultsDownError | BrokerDownError)
                why = error if expected else BrokerDownError(f"the queue failed: {type(error).__name__}")
                told = fields(waiting=len(waiters), why=str(why))
                log.warning("results cannot be looked for", extra=told, exc_info=not expected)
                late = [w.end for w in chosen if w.fresh or w.until_s <= now_s]
                self._tell(late, [why] * len(late))
                sweep_s = time.monotonic() + DOWN_S
                continue
            took_s = time.monotonic() - now_s
            if sweeps:  # with very many that wait, at most half of the time goes into looking
                sweep_s = time.monotonic() + max(SWEEP_S, took_s)
            if asks_where and sweeps:
                where_s = time.monotonic() + max(WHERE_S, 10 * took_s)

    def _wait(self, sweep_s: float) -> bool:
        """Until the next look is due; False once closed."""
        with self._changed:
            while not self._closing and not self._any_fresh:
                left_s = sweep_s - time.monotonic()
                if self._waiters and left_s <= 0.0:
                    break
                self._changed.wait(left_s if self._waiters else None)
            return not self._closing

    def _look(self, waiters: Sequence[_Waiter], asks_where: bool) -> None:
        """One look for each; tells those whose job is over, or whose time is."""
        # Where it is comes first: a job leaves the queue when its result is there, and is found in one of the two.
        now_s = time.monotonic()
        asked = list({w.job: None for w in waiters if w.fresh or asks_where or w.until_s <= now_s})
        found: dict[str, Found] = {}
        for start in range(0, len(asked), BATCH_MAX):
            found |= self._store.broker.look(asked[start : start + BATCH_MAX])
        results = self._store.results.find(dict.fromkeys(w.job for w in waiters))
        ends, told = list[asyncio.Future[Seen]](), list[Seen]()
        looked = set(asked)
        for waiter in waiters:
            result = results.get(waiter.job)
            if waiter.job in looked:
                seen = Seen(result, found.get(waiter.job))
                over = seen.over or waiter.until_s <= now_s
            else:
                seen = Seen(result, None)
                over = result is not None and result.outcome != "failed"
            waiter.fresh = False
            if over:
                ends.append(waiter.end)
                told.append(seen)
        self._tell(ends, told)
