"""What a gateway has answered before, and who is computing what: one computation for many who ask the same.

    look ─▶ is somebody at it? ─ joined ─▶ join ─▶ the leader's answer, or the lead
              │ nobody                                    ▲          ▲
              └─▶ kept? ─ hit ─▶ answer                   │          │
                    └─ miss: leads, and ends by ─▶ store, share   failed ─▶ who waited longest leads

The key is a digest of the model, its version and the input as it was sent, so that another version never gives an old
answer. Where the answers lie is in reference_apps/cache_stores.py, what goes is in stages/policies/caching.py.
Twin: simulator/cache.py. Not modelled: inputs that are alike without being the same to the byte.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Literal, NamedTuple

import orjson

from reference_apps.asgi import Answer
from reference_apps.cache_stores import Store
from stages.spec import Stage

__all__ = ["Cache"]

DIGEST_BYTES = 16
# Answers that may be on their way into the store; a further one is not kept.
PUTS_MAX = 1024


class Kept(NamedTuple):
    """What of an answer is the same for everybody who asks for it."""

    status: int
    content_type: bytes
    content: bytes

    @classmethod
    def of(cls, answer: Answer) -> Kept:
        """An answer without what is one request's own."""
        status, headers, content = answer
        return cls(status, dict(headers).get(b"content-type", b""), content)

    @classmethod
    def unpacked(cls, value: bytes) -> Kept | None:
        """What `packed` gave; None for what is something else."""
        content_type, separator, content = value.partition(b"\n")
        return cls(200, content_type, content) if separator else None

    def packed(self) -> bytes:
        """As a store keeps it: only answers with status 200 are kept."""
        return b"%b\n%b" % (self.content_type, self.content)

    def answer(self) -> Answer:
        """The answer for one more request."""
        return self.status, [(b"content-type", self.content_type)], self.content


class Found(NamedTuple):
    """What a look gave. `kept` is there with a hit, and with one that joined once its leader has an answer.

    A miss without it leads: it has to end by `store`, `share` or `failed`.
    """

    how: Literal["hit", "joined", "miss"]
    kept: Kept | None = None


JOINED, MISS = Found("joined"), Found("miss")


class _Flight:
    """One computation under way. `ended` is there when its answer is, which then goes into the store."""

    __slots__ = ("ended", "waiting")

    def __init__(self) -> None:
        self.ended: Found | None = None
        self.waiting: dict[asyncio.Future[Found], None] = {}  # who came first is first

    def tell_all(self, found: Found) -> None:
        """Everybody who waits has this now."""
        for waiter in self.waiting:
            if not waiter.done():
                waiter.set_result(found)
        self.waiting.clear()

    def tell_first(self, found: Found) -> bool:
        """Who waited longest has this now; False when nobody waits."""
        while self.waiting:
            waiter = next(iter(self.waiting))
            del self.waiting[waiter]
            if not waiter.done():
                waiter.set_result(found)
                return True
        return False


class Cache:
    """The answers of one gateway. Made anywhere; used and closed on one event loop. Times are monotonic seconds."""

    def __init__(self, stage: Stage, store: Store) -> None:
        if stage.cache is None:
            raise ValueError(f"{stage.name} has no cache")
        self._model, self._store = stage.model, store
        self._single_flight = stage.cache.single_flight
        self._flights: dict[bytes, _Flight] = {}
        self._putting: set[asyncio.Task[None]] = set()
        self.epoch = -1
        self.renew(0)

    def renew(self, epoch: int) -> None:
        """From now on it begins empty: nothing that was kept under another epoch is found."""
        if epoch == self.epoch:
            return
        self.epoch, model = epoch, self._model
        named = [model.name, model.version, model.weights, model.image_size_px, epoch]
        self._salted = hashlib.blake2b(orjson.dumps(named), digest_size=DIGEST_BYTES)
        self._store.empty()

    def key_of(self, content_type: bytes, shape: bytes, body: bytes) -> bytes:
        """The key of an input: DIGEST_BYTES of everything that its answer depends on."""
        digest = self._salted.copy()
        digest.update(b"%d:%b%d:%b" % (len(content_type), content_type, len(shape), shape))
        digest.update(body)
        return digest.digest()

    async def look(self, key: bytes, now_s: float) -> Found:
        """A hit with its answer; joined, who is to `join` at once; or a miss, who leads."""
        flight = self._flights.get(key)
        if flight is not None:
            return flight.ended or JOINED
        if self._single_flight:
            # From here on, so that whoever comes while the store is asked does not ask it, too.
            self._flights[key] = _Flight()
        try:
            value = await self._store.get(key, now_s)
        except BaseException:  # its client has gone
            self.failed(key)
            raise
        kept = None if value is None else Kept.unpacked(value)
        if kept is None:
            return MISS
        found = Found("hit", kept)
        if (flight := self._flights.pop(key, None)) is not None:
            flight.tell_all(found)
        return found

    async def join(self, key: bytes) -> Found:
        """Waits for the leader's answer. A miss leads now: the one that led has none.

        How long is the caller's to say, whose task may be cancelled.
        """
        waiter: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        flight = self._flights[key]
        flight.waiting[waiter] = None
        try:
            return await waiter
        except asyncio.CancelledError:
            flight.waiting.pop(waiter, None)
            if waiter.done() and not waiter.cancelled() and waiter.result() is MISS:  # it was told to lead, and leaves
                self.failed(key)
            raise

    def store(self, key: bytes, kept: Kept, now_s: float) -> None:
        """The leader's answer: for all who joined at once, and for the store. `kept.status` is 200."""
        flight = self._flights.get(key)
        if flight is not None:
            flight.ended = Found("hit", kept)  # for who comes before it is in the store
            flight.tell_all(Found("joined", kept))
        if len(self._putting) >= PUTS_MAX:
            self._flights.pop(key, None)
            return
        task = asyncio.create_task(self._put(key, kept.packed(), now_s))
        self._putting.add(task)
        task.add_done_callback(self._putting.discard)

    def share(self, key: bytes, kept: Kept) -> None:
        """The leader's answer is that of all who joined, and is not kept: the input is wrong, which is theirs, too."""
        if (flight := self._flights.pop(key, None)) is not None:
            flight.tell_all(Found("joined", kept))

    def failed(self, key: bytes) -> None:
        """The leader has no answer for others: who waited longest leads now, and the rest wait for that one."""
        flight = self._flights.get(key)
        if flight is not None and not flight.tell_first(MISS):
            del self._flights[key]

    async def close(self) -> None:
        """Keeps nothing any more. Nobody looks by then."""
        for task in self._putting:
            task.cancel()
        await asyncio.gather(*self._putting, return_exceptions=True)
        await self._store.close()

    async def _put(self, key: bytes, value: bytes, now_s: float) -> None:
        try:
            await self._store.put(key, value, now_s)
        finally:
            self._flights.pop(key, None)
