"""Labels of a load test: some of the answers are told, a while later, what they should have been.

    answer 200, x-request-id ──▶ gives? (stages/feedback.py) ── delay_s ──▶ POST /feedback ── 200, 202 │ else: counted

The truth is that of the data set: it goes with the bodies (loadtests/payloads.py). Nobody waits for it: a label is no
request of the schedule, and has no row. What is due later than `traffic.timeout_s` after the last answer is not sent.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import gevent
from gevent.pool import Group

from loadtests.payloads import Payloads
from stages.feedback import Feedback, gives
from stages.spec import Stage
from stages.streams import stream

# Labels that wait for their time at once; more are not sent, and counted.
WAITING_MAX = 100_000


@dataclass
class LabelSender:
    """What one Locust process tells of its answers. `counts`: accepted, refused, lost (no answer), unsent."""

    stage: Stage
    feedback: Feedback
    payloads: Payloads
    headers: dict[str, str]  # of every request: keys
    worker: int = 0
    requests: int = 0  # of the schedule; 0 in a closed loop
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        seed = self.stage.traffic.seed
        self._gives = gives(self.feedback, seed, self.requests)
        self._dice = stream(seed, "feedback of users", self.worker)  # in a closed loop requests have no number
        self._waiting = Group()

    def answered(self, client: Any, number: int, item: int, request_id: str | None) -> None:
        """An answer came: its label follows, if this request gives one. `number` is -1 in a closed loop."""
        chosen = self._gives[number] if number >= 0 else self._dice.random() < self.feedback.share
        if not chosen or request_id is None:
            return
        if len(self._waiting) >= WAITING_MAX:
            self.counts["unsent"] += 1
            return
        label = self.payloads.label(item)
        later = gevent.Greenlet(self._send, client, request_id, label)
        later.start_later(self.feedback.delay_s)
        self._waiting.add(later)

    def finish(self) -> None:
        """Waits for those that are due soon, and gives up the others."""
        self._waiting.join(self.stage.traffic.timeout_s)
        self.counts["unsent"] += len(self._waiting)
        self._waiting.kill(block=False)

    def _send(self, client: Any, request_id: str, label: int) -> None:
        body, timeout_s = json.dumps({"request_id": request_id, "label": label}), self.stage.traffic.timeout_s
        headers = self.headers | {"content-type": "application/json"}
        how = "lost"
        with (
            gevent.Timeout(timeout_s, False),
            client.post("/feedback", data=body, headers=headers, catch_response=True) as response,
        ):
            if response.status_code in (200, 202):
                how = "accepted"
                response.success()
            elif response.status_code > 0:
                how = "refused"
                response.failure(f"HTTP {response.status_code}")
        self.counts[how] += 1
