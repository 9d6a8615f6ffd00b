"""Predictions and labels on their way to the disk: one thread writes what has come together, and tells who waits.

    note (the hot path) ──▶ [ noted ] ── every quarter of a second ─┐
                                                                    ├─▶ one transaction ─▶ FeedbackStore
    put (POST /feedback) ──▶ [ line ] ── at once, for all that wait ─┘        └─▶ each label is told what became of it

A commit that survives a power cut takes the disk a millisecond or more, and costs the same for one label and for a
hundred. A prediction takes its request a microsecond: it is read by the thread. Predictions wait while the database is
down, as long as there is room for them, and are lost then, which is counted; a label is refused, and its client knows.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import orjson

from reference_apps.feedback_errors import FeedbackDownError, FeedbackFullError
from reference_apps.feedback_metrics import FeedbackMetrics
from reference_apps.feedback_store import FeedbackStore, Judged, Label, Prediction, Told
from reference_apps.logs import fields
from reference_apps.loop_thread import LoopThread
from stages.feedback import Feedback

FLUSH_S = 0.25
BATCH_MAX = 1000  # predictions, or labels, of one transaction
LINE_MAX = 4096  # labels that may wait for their turn
AGAIN_S = 0.5  # after a failure
FORGET_S = 60.0
USER_MAX_CHARS = 256

log = logging.getLogger("rung.feedback")


class Noted(NamedTuple):
    """A prediction as the hot path leaves it."""

    request_id: bytes
    user_key: str
    arm: str
    content: bytes
    record: bytes
    latency_s: float
    given: bool
    forced: bool
    predicted_at: float


@dataclass(slots=True)
class _Waiting:
    label: Label
    told: asyncio.Future[Told]


class FeedbackLine(LoopThread):
    """Writes what is noted and put, in a thread of its own; what waits when it is closed is written."""

    def __init__(
        self,
        store: FeedbackStore,
        feedback: Feedback,
        metrics: FeedbackMetrics,
        judged: Callable[[Sequence[Judged]], None],
    ) -> None:
        super().__init__("feedback")
        self._store, self._metrics, self._judged = store, metrics, judged
        self._predictions_max = feedback.predictions_max
        self._noted: deque[Noted] = deque()
        self._held: list[Prediction] = []  # of a transaction that failed, or was too large; the thread's own
        self._line: deque[_Waiting] = deque()
        self._forgets_s = time.monotonic() + FORGET_S

    @property
    def waiting(self) -> int:
        """Predictions that are not written yet."""
        return len(self._noted) + len(self._held)

    def note(self, noted: Noted) -> None:
        """Keeps a prediction to be written; one that finds no room is lost, and counted."""
        if self.waiting >= self._predictions_max:
            self._metrics.lost(1, "full")
        else:
            self._noted.append(noted)

    async def put(self, label: Label) -> Told:
        """What became of the label; unless that is "unknown", it is on the disk.

        Raises FeedbackFullError and FeedbackDownError. Whoever does not wait for the end of it may find it stored all
        the same, and may send it again.
        """
        assert self._loop is not None
        waiting = _Waiting(label, self._loop.create_future())
        with self._changed:
            if self._closing or len(self._line) >= LINE_MAX:
                raise FeedbackFullError("This service is stopping." if self._closing else f"{LINE_MAX} labels wait.")
            self._line.append(waiting)
            self._changed.notify()
        return await waiting.told

    # ---- the thread ----

    def _run(self) -> None:
        while True:
            labels, last = self._next()
            failed = self._write(labels)
            if last and (failed or not self.waiting):
                self._metrics.lost(self.waiting, "closed")
                return
            if failed:
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, AGAIN_S)
            elif time.monotonic() >= self._forgets_s:
                self._forget()

    def _next(self) -> tuple[list[_Waiting], bool]:
        """The labels to be written now, and whether none come after them; waits for one, but not for long."""
        with self._changed:
            if not self._line and not self._closing and len(self._noted) < BATCH_MAX and not self._held:
                self._changed.wait(FLUSH_S)
            labels = [self._line.popleft() for _ in range(min(BATCH_MAX, len(self._line)))]
            return labels, self._closing and not self._line

    def _write(self, labels: list[_Waiting]) -> bool:
        """Writes what was noted, and then the labels; whether that failed."""
        try:
            for _ in range(len(self._noted)):  # those that come meanwhile have their turn next
                self._held.append(_read(self._noted.popleft()))
            while len(self._held) > BATCH_MAX:
                self._transaction(self._held[:BATCH_MAX], [])
                del self._held[:BATCH_MAX]
            if self._held or labels:
                self._transaction(self._held, labels)
                self._held.clear()
            return False
        except FeedbackDownError as error:
            log.warning("predictions wait", extra=fields(why=str(error), waiting=self.waiting))
            if error.lasting:  # they would fail again, and for ever
                self._drop()
            self._refuse(labels, error)
            return True
        except Exception as error:
            log.exception("predictions could not be written")
            self._drop()
            self._refuse(labels, FeedbackDownError(f"the labels could not be stored: {type(error).__name__}"))
            return True

    def _transaction(self, predictions: list[Prediction], labels: list[_Waiting]) -> None:
        began_s = time.monotonic()
        written = self._store.write(predictions, [waiting.label for waiting in labels])
        self._metrics.wrote(len(predictions), written, time.monotonic() - began_s)
        if written.judged:
            self._on_loop(self._judged, written.judged)
        self._tell([waiting.told for waiting in labels], written.told)

    def _drop(self) -> None:
        self._metrics.lost(len(self._held), "refused")
        self._held.clear()

    def _forget(self) -> None:
        """Throws away what is old, a part at a time, so that nobody waits long."""
        try:
            if not self._store.forget(time.time()):
                self._forgets_s = time.monotonic() + FORGET_S
        except FeedbackDownError as error:
            log.warning("old predictions stay", extra=fields(why=str(error)))
            self._forgets_s = time.monotonic() + FORGET_S

    def _refuse(self, labels: list[_Waiting], error: Exception) -> None:
        self._tell([waiting.told for waiting in labels], [error] * len(labels))


def _read(noted: Noted) -> Prediction:
    """The prediction, read out of the answer and its record."""
    try:
        answer = orjson.loads(noted.content)
    except ValueError:
        answer = None
    told = answer if isinstance(answer, dict) else {}
    label = told.get("label")
    return Prediction(
        request_id=noted.request_id.decode("latin-1"),
        arm=noted.arm,
        user_key=noted.user_key[:USER_MAX_CHARS],
        model=str(told.get("model", "")),
        version=str(told.get("version", "")),
        answer=noted.content.decode("utf-8", "replace"),
        label=label if type(label) is int else None,
        latency_s=noted.latency_s,
        device_s=device_s_of(noted.record),
        given=noted.given,
        forced=noted.forced,
        predicted_at=noted.predicted_at,
    )


def device_s_of(record: bytes) -> float | None:
    """A request's part of its batch's time on the device, in seconds; None where the record does not tell."""
    told = dict(part.split("=", 1) for part in record.decode("latin-1").split(",") if "=" in part)
    try:
        return (float(told["finished_s"]) - float(told["started_s"])) / int(told["batch_size"])
    except (KeyError, ValueError, ZeroDivisionError):
        return None
