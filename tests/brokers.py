"""Both brokers for tests, under a clock that only the test moves."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from reference_apps.broker import Broker
from reference_apps.broker_redis import SLACK_S, RedisBroker
from reference_apps.broker_sqlite import SqliteBroker
from reference_apps.claim_check import ClaimChecks
from stages.queue import Queue

Kind = Literal["sqlite", "redis"]


class HandClock:
    """Monotonic seconds that a test moves."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def pass_s(self, seconds: float) -> None:
        """So much time is over."""
        self.now_s += seconds


@dataclass
class Place:
    """Where one queue is kept; every `open` is another process to it."""

    kind: Kind
    folder: Path
    url: str = ""  # of redis
    clock: HandClock = field(default_factory=HandClock)
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    boot: str = "this boot"

    @property
    def slack_s(self) -> float:
        """So much longer than asked for a lease lasts."""
        return SLACK_S if self.kind == "redis" else 0.0

    @property
    def payloads(self) -> Path:
        return self.folder / "payloads"

    @contextlib.contextmanager
    def open(self, **keys: Any) -> Iterator[Broker]:
        """A broker of this place, with keys of [queue] set."""
        queue = Queue(broker=self.kind, **keys)
        checks = ClaimChecks(self.payloads, queue.payload_max_bytes)
        broker: SqliteBroker | RedisBroker
        if self.kind == "sqlite":
            broker = SqliteBroker(self.folder / "queue.db", queue, checks, self.clock, self.boot)
        else:
            broker = RedisBroker(self.url, queue, checks, self.clock, self.name)
        with contextlib.closing(broker):
            yield broker
