"""What does a cache keep, and what goes when there is no room? Keys and sizes only: answers are kept by the caller.

    touch(key)  ─▶ there and fresh? ─▶ hit, and it counts as used
    admit(key)  ─▶ room? ─▶ who goes: Lru    the least recently used
                                      Lfu    the least often used, counts halved now and then
                                      S3Fifo first in, first out, in three queues

Both worlds use the same classes. An entry older than `ttl_s` is no hit. It keeps its place until it is stored anew or
has to go, and looks for it count, so that a favourite does not lose its standing each time that it expires: what is
kept does not depend on `ttl_s`. Times are seconds of any one clock that does not go back. They do not model what a look
costs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from stages.cache import CachePolicy

# What an entry costs beside the bytes of its key and its answer: objects, dictionaries, the policy's own records. A
# process that has kept 60,000 of 200,000 answers grew by 465 bytes for each with Lru, 557 with Lfu and 714 with S3Fifo,
# whose ghosts are the difference (CPython 3.11, 64 bits; a tenth to a quarter less before the first entry goes).
ENTRY_OVERHEAD_BYTES = 550

AGING_LOOKS = 10  # of Lfu: hits per entry between two halvings of all counts
SMALL_SHARE = 0.1  # of S3Fifo: what the queue of newcomers may take of the bytes
GHOST_SHARE = 0.9  # of S3Fifo: of how many bytes' worth of entries that went their keys are remembered
PROMOTED_FROM = 2  # of S3Fifo: hits among the newcomers
USES_MAX = 3  # of S3Fifo: two bits


def entry_bytes(key_bytes: int, answer_bytes: int) -> int:
    """What keeping an answer takes of `max_bytes`: the size that `admit` is to be told."""
    return key_bytes + answer_bytes + ENTRY_OVERHEAD_BYTES


def open_policy(name: CachePolicy, max_bytes: int, ttl_s: float | None = None) -> Eviction:
    """The policy of that name. Raises ValueError for one that is not of stages.cache.CachePolicy."""
    match name:
        case "lru":
            return Lru(max_bytes, ttl_s)
        case "lfu":
            return Lfu(max_bytes, ttl_s)
        case "s3-fifo":
            return S3Fifo(max_bytes, ttl_s)
        case _:
            raise ValueError(f"{name!r} is no cache policy")


@dataclass(slots=True)
class _Entry:
    size_bytes: int
    fresh_until_s: float
    uses: int = 0  # hits that count, for the policies that count them


class Eviction(ABC):
    """What is kept within `max_bytes`. A policy says what a use changes, where a newcomer stands and who goes next."""

    def __init__(self, max_bytes: int, ttl_s: float | None = None) -> None:
        self.max_bytes = max_bytes
        self.bytes_used = 0
        self._ttl_s = math.inf if ttl_s is None else ttl_s

    @abstractmethod
    def __len__(self) -> int:
        """How many entries are kept, those that are not fresh included."""

    def touch(self, key: Hashable, now_s: float) -> bool:
        """Looks for the key: True when it is there and fresh. It counts as used if it is there."""
        entry = self._find(key)
        if entry is None:
            return False
        self._used(key, entry)
        return now_s < entry.fresh_until_s

    def admit(self, key: Hashable, size_bytes: int, now_s: float) -> list[Hashable]:
        """Keeps the key from now on, fresh; it takes `size_bytes` (entry_bytes). Gives the keys that go for it.

        One that is larger than the whole cache goes itself, and so may one that is there and has grown.
        """
        if size_bytes > self.max_bytes:
            self.drop(key)
            return [key]
        gone: list[Hashable] = []
        entry = self._find(key)
        if entry is None:
            while self.bytes_used + size_bytes > self.max_bytes:
                gone.append(self._make_room())
            self._insert(key, _Entry(size_bytes, now_s + self._ttl_s))
            self.bytes_used += size_bytes
            return gone
        self._grow(key, size_bytes - entry.size_bytes)
        entry.size_bytes, entry.fresh_until_s = size_bytes, now_s + self._ttl_s
        while self.bytes_used > self.max_bytes:
            gone.append(self._make_room())
        return gone

    def drop(self, key: Hashable) -> None:
        """Keeps the key no longer, if it was kept."""
        entry = self._find(key)
        if entry is not None:
            self._remove(key, entry)
            self.bytes_used -= entry.size_bytes

    def _make_room(self) -> Hashable:
        key, entry = self._evict()
        self.bytes_used -= entry.size_bytes
        return key

    @abstractmethod
    def _find(self, key: Hashable) -> _Entry | None: ...

    @abstractmethod
    def _used(self, key: Hashable, entry: _Entry) -> None: ...

    @abstractmethod
    def _insert(self, key: Hashable, entry: _Entry) -> None: ...

    @abstractmethod
    def _remove(self, key: Hashable, entry: _Entry) -> None: ...

    @abstractmethod
    def _evict(self) -> tuple[Hashable, _Entry]:
        """Takes out the entry that goes next; there is one."""

    def _grow(self, key: Hashable, by_bytes: int) -> None:
        """An entry that is there takes so many bytes more."""
        self.bytes_used += by_bytes


class Lru(Eviction):
    """The least recently used goes: one list, a use moves to its end."""

    def __init__(self, max_bytes: int, ttl_s: float | None = None) -> None:
        super().__init__(max_bytes, ttl_s)
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()  # the least recently used first

    def __len__(self) -> int:
        return len(self._entries)

    def _find(self, key: Hashable) -> _Entry | None:
        return self._entries.get(key)

    def _used(self, key: Hashable, entry: _Entry) -> None:
        self._entries.move_to_end(key)

    def _insert(self, key: Hashable, entry: _Entry) -> None:
        self._entries[key] = entry

    def _remove(self, key: Hashable, entry: _Entry) -> None:
        del self._entries[key]

    def _evict(self) -> tuple[Hashable, _Entry]:
        return self._entries.popitem(last=False)


class Lfu(Eviction):
    """The least often used goes, and of those with as many uses the one whose last was longest ago.

    A list for each count of uses, so that every step takes the same time however many entries there are (Shah, Mitra,
    Matani, "An O(1) algorithm for implementing the LFU cache eviction scheme", 2010). A newcomer has one use. Counts
    age as in TinyLFU (Einziger, Friedman, Manes, 2017): after AGING_LOOKS hits per entry all of them are halved, so an
    old favourite that nobody asks for any more falls behind within a few such rounds. Of two counts that become one,
    the smaller goes first. A round takes time in proportion to the entries, which is a constant for each of its hits.
    """

    def __init__(self, max_bytes: int, ttl_s: float | None = None) -> None:
        super().__init__(max_bytes, ttl_s)
        self._entries: dict[Hashable, _Entry] = {}
        self._by_uses: dict[int, OrderedDict[Hashable, None]] = {}
        self._fewest = 0  # no entry has fewer uses
        self._looks = 0  # hits since the last halving

    def __len__(self) -> int:
        return len(self._entries)

    def _find(self, key: Hashable) -> _Entry | None:
        return self._entries.get(key)

    def _used(self, key: Hashable, entry: _Entry) -> None:
        self._leave(key, entry)
        entry.uses += 1
        self._by_uses.setdefault(entry.uses, OrderedDict())[key] = None
        self._looks += 1
        if self._looks >= AGING_LOOKS * len(self._entries):
            self._age()

    def _insert(self, key: Hashable, entry: _Entry) -> None:
        entry.uses = 1
        self._entries[key] = entry
        self._by_uses.setdefault(1, OrderedDict())[key] = None
        self._fewest = min(self._fewest, 1)

    def _remove(self, key: Hashable, entry: _Entry) -> None:
        del self._entries[key]
        self._leave(key, entry)

    def _evict(self) -> tuple[Hashable, _Entry]:
        # Uses grow by ones, and a newcomer brings the least back to 1: steps here are paid for by uses before.
        while self._fewest not in self._by_uses:
            self._fewest += 1
        key = next(iter(self._by_uses[self._fewest]))
        entry = self._entries.pop(key)
        self._leave(key, entry)
        return key, entry

    def _leave(self, key: Hashable, entry: _Entry) -> None:
        """Takes the key off the list of its count."""
        alike = self._by_uses[entry.uses]
        del alike[key]
        if not alike:
            del self._by_uses[entry.uses]

    def _age(self) -> None:
        """Halves every count."""
        halved: dict[int, OrderedDict[Hashable, None]] = {}
        for uses in sorted(self._by_uses):
            halved.setdefault(uses // 2, OrderedDict()).update(self._by_uses[uses])
        for entry in self._entries.values():
            entry.uses //= 2
        self._by_uses, self._looks, self._fewest = halved, 0, min(halved, default=0)


class S3Fifo(Eviction):
    """Three queues, first in, first out (Yang, Zhang, Qiu, Yue, Rashmi, "FIFO queues are all you need", SOSP 2023).

        newcomer ─▶ small, a tenth of the bytes ─ PROMOTED_FROM hits ─▶ main ─ no hit since its last turn ─▶ goes
                          │ fewer                                        ▲ └─ hits: another turn, one hit less
                          └─▶ goes, its key to the ghosts ─ comes again ─┘

    What is asked for once is gone soon, and does not push out what is asked for often. Numbers and steps are those of
    the authors' own code (libCacheSim, S3FIFO.c, of the paper's artifact). One thing differs: that refuses an entry
    larger than the small queue, this keeps whatever fits into the cache.
    """

    def __init__(self, max_bytes: int, ttl_s: float | None = None) -> None:
        super().__init__(max_bytes, ttl_s)
        self._small: OrderedDict[Hashable, _Entry] = OrderedDict()  # all three: the oldest first
        self._main: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._ghosts: OrderedDict[Hashable, int] = OrderedDict()  # key → the bytes that it took
        self._main_bytes = self._ghost_bytes = 0
        self._main_max_bytes = max_bytes - int(SMALL_SHARE * max_bytes)
        self._ghost_max_bytes = int(GHOST_SHARE * max_bytes)

    def __len__(self) -> int:
        return len(self._small) + len(self._main)

    def _find(self, key: Hashable) -> _Entry | None:
        return self._small.get(key) or self._main.get(key)

    def _used(self, key: Hashable, entry: _Entry) -> None:
        entry.uses = min(entry.uses + 1, USES_MAX)

    def _insert(self, key: Hashable, entry: _Entry) -> None:
        size_bytes = self._ghosts.pop(key, None)
        if size_bytes is None:
            self._small[key] = entry
        else:
            self._ghost_bytes -= size_bytes
            self._to_main(key, entry)

    def _remove(self, key: Hashable, entry: _Entry) -> None:
        if self._small.pop(key, None) is None:
            del self._main[key]
            self._main_bytes -= entry.size_bytes

    def _grow(self, key: Hashable, by_bytes: int) -> None:
        super()._grow(key, by_bytes)
        if key in self._main:
            self._main_bytes += by_bytes

    def _evict(self) -> tuple[Hashable, _Entry]:
        while True:
            if self._small and self._main_bytes <= self._main_max_bytes:
                gone = self._evict_newcomer()
            else:
                gone = self._evict_of_main()
            if gone is not None:
                return gone

    def _evict_newcomer(self) -> tuple[Hashable, _Entry] | None:
        """The oldest newcomer without hits; those before it go to main. None when there is no such."""
        while self._small:
            key, entry = self._small.popitem(last=False)
            if entry.uses < PROMOTED_FROM:
                self._remember(key, entry.size_bytes)
                return key, entry
            entry.uses = 0
            self._to_main(key, entry)
        return None

    def _evict_of_main(self) -> tuple[Hashable, _Entry]:
        """The oldest of main without hits; those before it have another turn."""
        while True:
            key, entry = self._main.popitem(last=False)
            if not entry.uses:
                self._main_bytes -= entry.size_bytes
                return key, entry
            entry.uses -= 1
            self._main[key] = entry

    def _to_main(self, key: Hashable, entry: _Entry) -> None:
        self._main[key] = entry
        self._main_bytes += entry.size_bytes

    def _remember(self, key: Hashable, size_bytes: int) -> None:
        if size_bytes > self._ghost_max_bytes:
            return
        self._ghosts[key] = size_bytes
        self._ghost_bytes += size_bytes
        while self._ghost_bytes > self._ghost_max_bytes:
            _, oldest_bytes = self._ghosts.popitem(last=False)
            self._ghost_bytes -= oldest_bytes
