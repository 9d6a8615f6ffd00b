"""What a cache keeps and what goes: each policy against a plain model of it, in lists, that is too slow to be of use.

random looks, storings and drops ─┬─▶ stages.policies.caching ─▶ found, who went, bytes ─┐
                                  └─▶ the model ─────────────────▶ the same ─────────────┴─ equal
"""

from __future__ import annotations

import math
import tracemalloc
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Protocol, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.cache import CachePolicy
from stages.policies.caching import (
    AGING_LOOKS,
    GHOST_SHARE,
    PROMOTED_FROM,
    SMALL_SHARE,
    USES_MAX,
    Eviction,
    Lfu,
    Lru,
    S3Fifo,
    entry_bytes,
    open_policy,
)

POLICIES = get_args(CachePolicy)
EACH_POLICY = pytest.mark.parametrize("name", POLICIES)


# ---- models --------------------------------------------------------------------------------------------------


class Model(Protocol):
    def touch(self, key: int, now_s: float) -> bool: ...

    def admit(self, key: int, size_bytes: int, now_s: float) -> list[int]: ...

    def drop(self, key: int) -> None: ...

    def sizes(self) -> dict[int, int]: ...


class LruModel:
    """An OrderedDict, the least recently used first: key → (bytes, fresh until)."""

    def __init__(self, max_bytes: int, ttl_s: float) -> None:
        self.max_bytes, self.ttl_s = max_bytes, ttl_s
        self.entries: OrderedDict[int, tuple[int, float]] = OrderedDict()

    def touch(self, key: int, now_s: float) -> bool:
        if key not in self.entries:
            return False
        self.entries.move_to_end(key)
        return now_s < self.entries[key][1]

    def admit(self, key: int, size_bytes: int, now_s: float) -> list[int]:
        if size_bytes > self.max_bytes:
            self.drop(key)
            return [key]
        gone = []
        if key not in self.entries:
            while sum(self.sizes().values()) + size_bytes > self.max_bytes:
                gone.append(self.entries.popitem(last=False)[0])
        self.entries[key] = (size_bytes, now_s + self.ttl_s)
        while sum(self.sizes().values()) > self.max_bytes:
            gone.append(self.entries.popitem(last=False)[0])
        return gone

    def drop(self, key: int) -> None:
        self.entries.pop(key, None)

    def sizes(self) -> dict[int, int]:
        return {key: size for key, (size, _) in self.entries.items()}


@dataclass
class Row:
    key: int
    size: int
    until_s: float
    uses: int


class LfuModel:
    """A list, those whose last use was longest ago first: the first of those with the fewest uses goes."""

    def __init__(self, max_bytes: int, ttl_s: float) -> None:
        self.max_bytes, self.ttl_s = max_bytes, ttl_s
        self.rows: list[Row] = []
        self.looks = 0

    def touch(self, key: int, now_s: float) -> bool:
        row = self._row(key)
        if row is None:
            return False
        self.rows.remove(row)
        self.rows.append(row)
        row.uses += 1
        self.looks += 1
        if self.looks >= AGING_LOOKS * len(self.rows):
            self.rows.sort(key=lambda each: each.uses)  # a stable sort
            for each in self.rows:
                each.uses //= 2
            self.looks = 0
        return now_s < row.until_s

    def admit(self, key: int, size_bytes: int, now_s: float) -> list[int]:
        if size_bytes > self.max_bytes:
            self.drop(key)
            return [key]
        row, gone = self._row(key), []
        if row is None:
            while sum(self.sizes().values()) + size_bytes > self.max_bytes:
                gone.append(self._evict())
            self.rows.append(Row(key, size_bytes, now_s + self.ttl_s, 1))
        else:
            row.size, row.until_s = size_bytes, now_s + self.ttl_s
            while sum(self.sizes().values()) > self.max_bytes:
                gone.append(self._evict())
        return gone

    def drop(self, key: int) -> None:
        self.rows = [row for row in self.rows if row.key != key]

    def sizes(self) -> dict[int, int]:
        return {row.key: row.size for row in self.rows}

    def _row(self, key: int) -> Row | None:
        return next((row for row in self.rows if row.key == key), None)

    def _evict(self) -> int:
        row = min(self.rows, key=lambda each: each.uses)  # the first of several
        self.rows.remove(row)
        return row.key


class S3FifoModel:
    """The paper's procedures on lists whose first is the oldest: insert, evict, evict_small, evict_main."""

    def __init__(self, max_bytes: int, ttl_s: float) -> None:
        self.max_bytes, self.ttl_s = max_bytes, ttl_s
        self.small: list[Row] = []
        self.main: list[Row] = []
        self.ghost: list[tuple[int, int]] = []
        self.main_max = max_bytes - int(max_bytes * SMALL_SHARE)
        self.ghost_max = int(max_bytes * GHOST_SHARE)

    def touch(self, key: int, now_s: float) -> bool:
        for row in self.small + self.main:
            if row.key == key:
                row.uses = min(row.uses + 1, USES_MAX)
                return now_s < row.until_s
        return False

    def admit(self, key: int, size_bytes: int, now_s: float) -> list[int]:
        if size_bytes > self.max_bytes:
            self.drop(key)
            return [key]
        gone: list[int] = []
        until_s = now_s + self.ttl_s
        for row in self.small + self.main:
            if row.key == key:
                row.size, row.until_s = size_bytes, until_s
                while sum(self.sizes().values()) > self.max_bytes:
                    self._evict(gone)
                return gone
        while sum(self.sizes().values()) + size_bytes > self.max_bytes:
            self._evict(gone)
        if any(ghost == key for ghost, _ in self.ghost):
            self.ghost = [each for each in self.ghost if each[0] != key]
            self.main.append(Row(key, size_bytes, until_s, 0))
        else:
            self.small.append(Row(key, size_bytes, until_s, 0))
        return gone

    def _evict(self, gone: list[int]) -> None:
        if sum(row.size for row in self.main) > self.main_max or not self.small:
            self._evict_main(gone)
        else:
            self._evict_small(gone)

    def _evict_small(self, gone: list[int]) -> None:
        while self.small:
            row = self.small.pop(0)
            if row.uses >= PROMOTED_FROM:
                self.main.append(Row(row.key, row.size, row.until_s, 0))
            else:
                gone.append(row.key)
                if row.size <= self.ghost_max:
                    while sum(size for _, size in self.ghost) + row.size > self.ghost_max:
                        self.ghost.pop(0)
                    self.ghost.append((row.key, row.size))
                return

    def _evict_main(self, gone: list[int]) -> None:
        while self.main:
            row = self.main.pop(0)
            if row.uses >= 1:
                row.uses = min(row.uses, 3) - 1
                self.main.append(row)
            else:
                gone.append(row.key)
                return

    def drop(self, key: int) -> None:
        self.small = [row for row in self.small if row.key != key]
        self.main = [row for row in self.main if row.key != key]

    def sizes(self) -> dict[int, int]:
        return {row.key: row.size for row in self.small + self.main}


MODELS: dict[str, Any] = {"lru": LruModel, "lfu": LfuModel, "s3-fifo": S3FifoModel}

KEYS = st.integers(0, 12)
# Mostly looks that store what they do not find, as a gateway does; now and then only one of the two.
STEPS = st.lists(
    st.tuples(st.sampled_from(["ask", "ask", "ask", "ask", "look", "store", "drop"]), KEYS, st.integers(1, 30)),
    min_size=1,
    max_size=200,
)
TTLS = st.none() | st.integers(1, 40).map(float)


@EACH_POLICY
@settings(max_examples=150, deadline=None)
@given(max_bytes=st.integers(10, 90), ttl_s=TTLS, steps=STEPS)
def test_each_policy_does_what_its_model_does(
    name: CachePolicy, max_bytes: int, ttl_s: float | None, steps: list[tuple[str, int, int]]
) -> None:
    policy = open_policy(name, max_bytes, ttl_s)
    model: Model = MODELS[name](max_bytes, math.inf if ttl_s is None else ttl_s)
    for now_s, (step, key, size) in enumerate(steps):
        found = True
        if step in ("ask", "look"):
            found = model.touch(key, now_s)
            assert policy.touch(key, now_s) == found
        if step == "store" or (step == "ask" and not found):
            assert policy.admit(key, size, now_s) == model.admit(key, size, now_s)
        if step == "drop":
            policy.drop(key)
            model.drop(key)
        sizes = model.sizes()
        assert (policy.bytes_used, len(policy)) == (sum(sizes.values()), len(sizes))
        assert policy.bytes_used <= max_bytes


@EACH_POLICY
@settings(max_examples=100, deadline=None)
@given(max_bytes=st.integers(10, 90), ttl_s=TTLS, steps=STEPS)
def test_what_is_told_to_go_is_not_found_and_what_is_too_old_is_no_hit(
    name: CachePolicy, max_bytes: int, ttl_s: float | None, steps: list[tuple[str, int, int]]
) -> None:
    """Said of the answers, without a model: whoever keeps values beside the policy keeps the right ones."""
    policy, kept = open_policy(name, max_bytes, ttl_s), dict[int, tuple[int, float]]()
    for now_s, (step, key, size) in enumerate(steps):
        found = step != "store" and policy.touch(key, now_s)
        if found:
            assert key in kept
            assert ttl_s is None or now_s - kept[key][1] < ttl_s
        elif step != "store" and key in kept:
            assert ttl_s is not None and now_s - kept[key][1] >= ttl_s
        if not found:
            kept[key] = size, now_s
            gone = policy.admit(key, size, now_s)
            assert len(set(gone)) == len(gone)
            for each in gone:
                del kept[each]  # type: ignore[arg-type]
        assert policy.bytes_used == sum(size for size, _ in kept.values()) <= max_bytes
        assert len(policy) == len(kept)


@EACH_POLICY
def test_one_that_is_larger_than_everything_goes_itself_and_nobody_else(name: CachePolicy) -> None:
    policy = open_policy(name, 100)
    assert policy.admit("a", 60, 0.0) == policy.admit("b", 40, 0.0) == []
    assert policy.admit("c", 101, 0.0) == ["c"]
    assert policy.touch("a", 1.0) and policy.touch("b", 1.0) and not policy.touch("c", 1.0)
    assert policy.admit("a", 101, 2.0) == ["a"], "its answer has grown: the old one is not true any more"
    assert not policy.touch("a", 2.0)
    assert policy.bytes_used == 40


@EACH_POLICY
def test_an_entry_is_fresh_for_its_time_from_its_storing(name: CachePolicy) -> None:
    policy = open_policy(name, 100, 10.0)
    policy.admit("a", 1, 0.0)
    assert policy.touch("a", 9.75)
    assert not policy.touch("a", 10.0), "a hit does not renew it"
    policy.admit("a", 1, 12.0)
    assert policy.touch("a", 21.75) and not policy.touch("a", 22.0)


@EACH_POLICY
def test_what_expires_does_not_lose_its_standing(name: CachePolicy) -> None:
    """A favourite that is stored anew each time it expires outlives those that are asked for once."""
    policy = open_policy(name, 10, 2.0)
    policy.admit("favourite", 1, 0.0)
    for n in range(1, 200):
        for _ in range(3):
            if not policy.touch("favourite", float(n)):
                assert "favourite" not in policy.admit("favourite", 1, float(n))
        assert "favourite" not in policy.admit(n, 1, float(n))


def test_a_policy_of_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="'fifo' is no cache policy"):
        open_policy("fifo", 100)  # type: ignore[arg-type]


def test_each_name_opens_its_class() -> None:
    opened = {name: type(open_policy(name, 100)) for name in POLICIES}
    assert opened == {"lru": Lru, "lfu": Lfu, "s3-fifo": S3Fifo}


# ---- what each is good for -----------------------------------------------------------------------------------


def ask(policy: Eviction, key: object, now_s: float = 0.0) -> bool:
    """Looks for a key of one byte, and stores it where it is not found."""
    found = policy.touch(key, now_s)
    if not found:
        policy.admit(key, 1, now_s)
    return found


def test_an_old_favourite_of_lfu_goes_when_nobody_asks_for_it_any_more() -> None:
    policy = Lfu(10)
    for key in range(9):
        ask(policy, key)
    for _ in range(500):
        ask(policy, "old")
    for n in range(2000):  # 222 each: fewer than the favourite ever had
        ask(policy, f"new {n % 9}")
    ask(policy, "another")
    assert not policy.touch("old", 0.0)
    assert all(policy.touch(f"new {n}", 0.0) for n in range(9))


def test_lfu_keeps_what_is_asked_for_often_however_long_ago_the_last_time_was() -> None:
    policy = Lfu(10)
    for _ in range(3):
        for key in range(5):
            ask(policy, key)
    for n in range(100):
        ask(policy, f"once {n}")
    assert all(policy.touch(key, 0.0) for key in range(5))


def test_a_scan_pushes_everything_out_of_lru_and_nothing_that_is_asked_for_often_out_of_s3_fifo() -> None:
    found = {}
    for name in ("lru", "s3-fifo"):
        policy = open_policy(name, 100)  # type: ignore[arg-type]
        for _ in range(4):
            for key in range(20):
                ask(policy, key)
        for n in range(1000):
            ask(policy, f"once {n}")
        found[name] = sum(policy.touch(key, 0.0) for key in range(20))
    assert found == {"lru": 0, "s3-fifo": 20}


def test_who_comes_again_soon_after_it_went_is_in_main_at_once() -> None:
    policy = S3Fifo(100)
    for n in range(110):
        ask(policy, n)
    assert not policy.touch(5, 0.0), "it went first in, first out"
    ask(policy, 5)
    for n in range(1000, 1200):
        ask(policy, n)
    assert policy.touch(5, 0.0), "newcomers go before it"
    assert not policy.touch(1000, 0.0)


@settings(max_examples=100, deadline=None)
@given(max_bytes=st.integers(10, 90), steps=STEPS)
def test_ghosts_are_bounded_and_nobody_is_two_things(max_bytes: int, steps: list[tuple[str, int, int]]) -> None:
    policy = S3Fifo(max_bytes)
    for step, key, size in steps:
        if step == "drop":
            policy.drop(key)
        elif not policy.touch(key, 0.0):
            policy.admit(key, size, 0.0)
        queues = [set(policy._small), set(policy._main), set(policy._ghosts)]
        assert sum(map(len, queues)) == len(set().union(*queues))
        assert policy._ghost_bytes == sum(policy._ghosts.values()) <= GHOST_SHARE * max_bytes
        assert policy._main_bytes == sum(entry.size_bytes for entry in policy._main.values())


# ---- bytes ---------------------------------------------------------------------------------------------------


@EACH_POLICY
def test_a_process_grows_by_about_max_bytes(name: CachePolicy) -> None:
    """Keys and answers of their usual lengths, kept as the gateway keeps them: in a dictionary beside the policy."""
    max_bytes, key_bytes, answer_bytes = 4_000_000, 16, 80
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        policy, kept = open_policy(name, max_bytes), dict[bytes, bytes]()
        for n in range(20_000):
            key = n.to_bytes(key_bytes, "big")
            kept[key] = n.to_bytes(answer_bytes, "big")
            for gone in policy.admit(key, entry_bytes(key_bytes, answer_bytes), float(n)):
                del kept[gone]  # type: ignore[arg-type]
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.95 * max_bytes < policy.bytes_used <= max_bytes
    assert 0.6 * max_bytes < grown < 1.35 * max_bytes
