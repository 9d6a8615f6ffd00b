"""The cache of a simulated gateway: what is kept, and who waits for whose answer.

    look ─▶ is somebody at it? ─ joined ─▶ waits for the leader's answer, or for the lead
              │ nobody                          ▲            ▲
              └─▶ kept and fresh? ─ hit         │            │
                    └─ miss: leads, and ends by ─▶ store   failed ─▶ who waited longest leads

Keys are items: an item is one input of one version of the model. Twin: reference_apps/cache.py; what is kept and what
goes is in stages/policies/caching.py. Not modelled: answers of different lengths, the time that a server on the network
takes to look, the sample by which such a server evicts, and one that is down.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, Literal, TypeVar

from stages.cache import Cache as Config
from stages.policies.caching import entry_bytes, open_policy
from stages.spec import Model

__all__ = ["Cache"]

Found = Literal["hit", "joined", "miss"]
Waiter = TypeVar("Waiter")

KEY_BYTES = 16
# The body of an answer, in the mean over examples; before it is kept "application/json" and a line break.
_ANSWER_BYTES = {"digits": 64, "resnet50": 262, "xor": 58}
_CONTENT_TYPE_BYTES = 17


def kept_bytes(model: Model) -> int:
    """What an answer of the model takes of `cache.max_bytes`."""
    return entry_bytes(KEY_BYTES, _CONTENT_TYPE_BYTES + _ANSWER_BYTES[model.name])


class Cache(Generic[Waiter]):
    """The cache of one gateway, empty as yet. Times are the clock's, in seconds."""

    def __init__(self, config: Config) -> None:
        self._kept = open_policy(config.policy, config.max_bytes, config.ttl_s)
        self._single_flight = config.single_flight
        self._flights: dict[Hashable, deque[Waiter]] = {}  # what is being computed, and who waits for it

    def look(self, key: Hashable, now_s: float, who: Waiter) -> Found:
        """A hit; joined, and `who` is told by `store` or `failed`; or a miss, which leads and ends by one of these."""
        waiting = self._flights.get(key)
        if waiting is not None:
            waiting.append(who)
            return "joined"
        if self._kept.touch(key, now_s):
            return "hit"
        if self._single_flight:
            self._flights[key] = deque()
        return "miss"

    def store(self, key: Hashable, size_bytes: int, now_s: float) -> list[Waiter]:
        """The leader has the answer, which is kept from now on. Gives those who waited for it, the first first."""
        self._kept.admit(key, size_bytes, now_s)
        return list(self._flights.pop(key, ()))

    def failed(self, key: Hashable) -> Waiter | None:
        """The leader has no answer. Gives who waited longest and leads now; None when nobody waits."""
        waiting = self._flights.get(key)
        if waiting:
            return waiting.popleft()
        self._flights.pop(key, None)
        return None
