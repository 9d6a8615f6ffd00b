"""What has to be done beside the jobs API's requests: dead letters get a result, and old results go.

    dead letters ── every second: those since the last look ──▶ a failed result each, and so their callback is told
    results      ── every minute ──▶ those whose time is over are thrown away

A job whose workers were all killed is dead without any of them to say so: its broker knows, and its client would wait
for ever. Several processes may do this at once, and after a restart all is looked at anew: results are stored once.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Self

from reference_apps.broker import BrokerDownError, DeadJob
from reference_apps.envelope import EnvelopeError, unpack
from reference_apps.job_store import JobStore
from reference_apps.logs import fields
from reference_apps.results import Result, ResultsDownError, failure
from stages.spec import Stage

DEAD_S, EXPIRED_S = 1.0, 60.0
LETTERS_MAX = 100  # of one look

log = logging.getLogger("rung.jobs")


class Housekeeping:
    """Keeps house in a thread of its own. A context manager."""

    def __init__(self, stage: Stage, store: JobStore) -> None:
        assert stage.queue is not None
        self._stage, self._store, self._ttl_s = stage, store, stage.queue.result_ttl_s
        self._closing = threading.Event()
        self._seen = ""  # the place of the last dead letter that has its result
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join(5.0)

    def look(self) -> int:
        """Gives every dead letter since the last look its result; how many there were.

        One that is older than queue.result_ttl_s had a result whose time is over: another would have its callback told
        once more after each restart.
        """
        seen = 0
        while letters := self._store.broker.dead(LETTERS_MAX, self._seen):
            since_s = time.time() - self._ttl_s
            self._store.results.store([self._failed(letter) for letter in letters if letter.died_s > since_s])
            self._seen = letters[-1].place
            seen += len(letters)
        return seen

    def _run(self) -> None:
        expired_s = time.monotonic() + EXPIRED_S
        while not self._closing.wait(DEAD_S):
            try:
                self.look()
                if time.monotonic() >= expired_s:
                    while self._store.results.forget_expired(time.time()) and not self._closing.is_set():
                        pass
                    expired_s = time.monotonic() + EXPIRED_S
            except (BrokerDownError, ResultsDownError) as error:
                log.warning("housekeeping waits", extra=fields(why=str(error)))
            except Exception:
                log.exception("housekeeping failed")

    def _failed(self, letter: DeadJob) -> Result:
        try:
            callback = unpack(letter.payload).callback
        except EnvelopeError:
            callback = None
        model, now_at = self._stage.model, time.time()
        return Result(
            letter.job,
            "failed",
            failure("model_error", letter.error),
            model.name,
            model.answers_as,
            letter.attempts,
            letter.enqueued_s,
            letter.died_s,
            now_at + self._ttl_s,
            callback=callback,
            callback_due_at=None if callback is None else now_at,
        )
