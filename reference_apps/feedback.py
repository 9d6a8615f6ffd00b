"""What was right: the gateway keeps what it answered, and takes labels for it.

    answered ──▶ note ─────────────────────────────────┐
                                                       ├─▶ FeedbackLine ─▶ SQLite, Postgres
    POST /feedback ──▶ sound? ──▶ put ── on the disk ──┘
                        │ 422       ├─▶ 200: it is stored          ├─▶ 404: no such request, and no room to wait for it
                                    └─▶ 202: it waits for its prediction       └─▶ 503, 504: send it again

A label is sent again with the same effect, as often as one likes. What was answered with 200 or 202 is on the disk. A
label that nobody answered may be there or not. No twin: in the simulator, who draws the inputs knows their labels.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
from prometheus_client import CollectorRegistry
from starlette.types import Receive, Send

from reference_apps.asgi import JSON, Answer, ClientGoneError, problem, read_body, send_answer
from reference_apps.feedback_errors import FeedbackDownError, FeedbackFullError
from reference_apps.feedback_line import FeedbackLine, Noted
from reference_apps.feedback_metrics import FeedbackMetrics
from reference_apps.feedback_schema import url_of
from reference_apps.feedback_store import FeedbackStore, Judged, Label, Told
from reference_apps.passage import Room
from stages.arms import arms_of
from stages.feedback import CLASSES
from stages.spec import Stage

BODY_MAX_BYTES = 4096
INSIDE_MAX = 1024  # labels that are sent at once; more are refused
# As a client may choose it: see reference_apps/passage.py.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_ASK = 'Send {"request_id": "…", "label": 3}, with the x-request-id of the answer.'


class FeedbackPath:
    """Predictions and labels of one gateway. Raises FeedbackDownError where they cannot be kept."""

    def __init__(self, stage: Stage, folder: Path, registry: CollectorRegistry) -> None:
        assert stage.feedback is not None
        self.right: dict[str, tuple[int, int]] = {}  # by arm: right, and right or wrong, since it began (again)
        self._since_at = 0.0  # what was answered before it is not counted, in seconds since the epoch
        self._stage, self._feedback = stage, stage.feedback
        self._classes = CLASSES[stage.model.name]
        self._room = Room(INSIDE_MAX)
        self._metrics = FeedbackMetrics(registry, arms_of(stage))
        self._store = FeedbackStore(url_of(stage.feedback, folder), stage.feedback)
        self._line = FeedbackLine(self._store, stage.feedback, self._metrics, self._count)
        self._metrics.watch(lambda: self._line.waiting)

    def open(self) -> None:
        """Called on the event loop that serves."""
        self._line.open()

    async def close(self) -> None:
        """Writes what waits, and lets go of the database."""
        await asyncio.to_thread(self._line.close, self._stage.lifecycle.drain_timeout_s)
        self._store.close()

    def begin_again(self, since_at: float) -> None:
        """`right` begins anew: labels of what was answered before then, in seconds since the epoch, do not count any
        more, whenever they come."""
        self.right, self._since_at = {}, since_at

    def note(
        self,
        request_id: bytes,
        user: str,
        arm: str,
        content: bytes,
        record: bytes,
        latency_s: float,
        given: bool = True,
        forced: bool = False,
    ) -> None:
        """Keeps an answer: what was told of which request, by whom, how fast. `given`: its client has got it. `forced`:
        it chose the arm itself, and no experiment counts it."""
        self._line.note(Noted(request_id, user, arm, content, record, latency_s, given, forced, time.time()))

    async def serve(self, receive: Receive, send: Send) -> None:
        """One POST /feedback."""
        try:
            why, answer = await self._answered(receive)
        except ClientGoneError:
            return
        if why:
            self._metrics.refused(why)
        await send_answer(send, answer)

    async def _answered(self, receive: Receive) -> tuple[str, Answer]:
        """Why a label was not taken, empty where it was or the line has counted it, and what its client is told."""
        retry_s = self._stage.admission.retry_after_s
        if self._room.full:
            text = f"{INSIDE_MAX} labels are on their way. Send it again later."
            return "feedback_full", problem(503, "feedback_full", text, retry_s)
        try:
            with self._room:
                async with asyncio.timeout(self._feedback.timeout_s):
                    body = await read_body(receive, BODY_MAX_BYTES)
                    if body is None:
                        text = f"body: must be at most {BODY_MAX_BYTES} bytes. {_ASK}"
                        return "bad_input", problem(413, "bad_input", text)
                    label = self._label(body)
                    return "", self._told(label, await self._line.put(label))
        except ValueError as error:
            return "bad_input", problem(422, "bad_input", str(error))
        except TimeoutError:
            text = (
                f"No answer of the database within {self._feedback.timeout_s:g} s (feedback.timeout_s): the label may "
                "be stored or not. Send it again, which is the same as once."
            )
            return "deadline", problem(504, "deadline", text)
        except FeedbackFullError as error:
            return "feedback_full", problem(503, "feedback_full", f"{error} Send it again later.", retry_s)
        except FeedbackDownError as error:
            return "feedback_down", problem(503, "feedback_down", f"{error} Send it again later.", retry_s)

    def _label(self, body: bytes) -> Label:
        """The label in a body. Raises ValueError with what to send instead."""
        try:
            sent = orjson.loads(body)
        except ValueError:
            raise ValueError(f"body: must be JSON. {_ASK}") from None
        if not isinstance(sent, dict):
            raise ValueError(f"body: must be an object. {_ASK}")
        if unknown := sorted(sent.keys() - {"request_id", "label"}):
            raise ValueError(f"{unknown[0][:40]}: is no key of a label. Nothing would read it. {_ASK}")
        request_id, label = sent.get("request_id"), sent.get("label")
        if not isinstance(request_id, str) or not _REQUEST_ID.fullmatch(request_id):
            raise ValueError(f"request_id: must be the x-request-id of an answer, got {_shown(request_id)}. {_ASK}")
        if type(label) is not int or not 0 <= label < self._classes:
            rule = f"must be a whole number from 0 to {self._classes - 1} for the model {self._stage.model.name}"
            raise ValueError(
                f"label: {rule}, got {_shown(label)}. No answer is judged by another one. Send such a one."
            )
        return Label(request_id, label, time.time())

    def _told(self, label: Label, what: Told) -> Answer:
        """What the client of a label is told that was dealt with."""
        if what.how == "unknown":
            text = (
                f"{label.request_id}: is no request that was answered here, and {self._feedback.orphans_max} labels "
                "wait for theirs already (feedback.orphans_max). Look at the x-request-id of the answer."
            )
            return problem(404, "not_found", text)
        content: dict[str, Any] = {"request_id": label.request_id, "status": what.how, "late": what.late}
        return 202 if what.how == "waiting" else 200, [(b"content-type", JSON)], orjson.dumps(content)

    def _count(self, judged: Sequence[Judged]) -> None:
        for arm, right, count, predicted_at in judged:
            if predicted_at < self._since_at:
                continue
            before, of = self.right.get(arm, (0, 0))
            self.right[arm] = (before + right * count, of + count)


def _shown(value: object) -> str:
    return "nothing" if value is None else orjson.dumps(value).decode()[:60]
