"""The class of the cache by itself: keys, ages, who leads, and the twin of the simulator request by request."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_apps.cache import Cache, Kept
from reference_apps.cache_stores import ProcessStore
from simulator.cache import Cache as Simulated
from stages.policies.caching import entry_bytes
from stages.spec import Stage
from tests.caching import staged


def a_store(stage: Stage) -> ProcessStore:
    assert stage.cache is not None
    return ProcessStore(stage.cache)


ANSWER = Kept(200, b"application/json", b'{"label": 7}')


async def settled(cache: Cache) -> None:
    """Until what was to be kept is."""
    while cache._putting:
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    "other", [{"model_version": "2"}, {"model_name": "xor"}, {"model_weights": "other.safetensors"}]
)
def test_another_model_or_version_never_gives_an_old_answer(tmp_path: Path, other: dict[str, str]) -> None:
    weights = tmp_path / "other.safetensors"
    weights.write_bytes(b"")
    changed = {key: str(weights) if key == "model_weights" else value for key, value in other.items()}
    stage, second = staged(), staged(**changed)

    async def go() -> None:
        store = a_store(stage)
        old, new = Cache(stage, store), Cache(second, store)
        key = old.key_of(b"x/y", b"", b"four")
        assert (await old.look(key, 0.0)).how == "miss"
        old.store(key, ANSWER, 0.0)
        await settled(old)
        assert (await old.look(key, 0.0)).kept == ANSWER
        assert (await Cache(stage, Shared(store)).look(key, 0.0)).kept == ANSWER  # the same, in another process
        assert new.key_of(b"x/y", b"", b"four") != key
        assert (await new.look(new.key_of(b"x/y", b"", b"four"), 0.0)).how == "miss"

    asyncio.run(go())


class Shared(ProcessStore):
    """A store that others use as well: it does not forget when one of them begins anew."""

    def __init__(self, store: ProcessStore) -> None:
        self.__dict__ = store.__dict__

    def empty(self) -> None:
        """Nothing."""


def test_an_answer_ages(tmp_path: Path) -> None:
    stage = staged(cache_ttl_s=10.0)

    async def go() -> list[str]:
        cache, found = Cache(stage, a_store(stage)), []
        key = cache.key_of(b"", b"", b"x")
        for now_s in (0.0, 5.0, 9.99, 10.0, 12.0, 19.0, 20.1):
            how = (await cache.look(key, now_s)).how
            found.append(how)
            if how == "miss":
                cache.store(key, ANSWER, now_s)
                await settled(cache)
        return found

    assert asyncio.run(go()) == ["miss", "hit", "hit", "miss", "hit", "hit", "miss"]


def test_an_answer_larger_than_the_cache_is_given_and_not_kept() -> None:
    stage, why = staged(cache_max_bytes=1024), list[str]()
    assert stage.cache is not None

    async def go() -> None:
        assert stage.cache is not None
        store = ProcessStore(stage.cache, why.append)
        cache = Cache(stage, store)
        for _ in range(2):
            key = cache.key_of(b"", b"", b"x")
            assert (await cache.look(key, 0.0)).how == "miss"
            cache.store(key, ANSWER._replace(content=b"x" * 2000), 0.0)
            await settled(cache)
        assert store.holds() == (0, 0)

    asyncio.run(go())
    assert why == ["too_large", "too_large"]


def test_who_comes_while_the_answer_goes_into_the_store_gets_it() -> None:
    stage = staged()

    async def go() -> None:
        cache = Cache(stage, a_store(stage))
        key = cache.key_of(b"", b"", b"x")
        assert (await cache.look(key, 0.0)).how == "miss"
        cache.store(key, ANSWER, 0.0)
        assert cache._putting, "it is not in the store yet"
        assert await cache.look(key, 0.0) == ("hit", ANSWER)
        await settled(cache)
        assert await cache.look(key, 0.0) == ("hit", ANSWER)

    asyncio.run(go())


def test_one_look_into_a_slow_store_is_for_all() -> None:
    """Whoever comes while the first one looks waits with it, and has what it finds."""
    stage = staged()

    class Slow(ProcessStore):
        looked = 0

        async def get(self, key: bytes, now_s: float) -> bytes | None:
            Slow.looked += 1
            await asyncio.sleep(0.01)
            return await super().get(key, now_s)

    async def go() -> None:
        assert stage.cache is not None
        store = Slow(stage.cache)
        cache = Cache(stage, store)
        key = cache.key_of(b"", b"", b"x")
        await store.put(key, ANSWER.packed(), 0.0)

        async def one() -> tuple[str, Kept | None]:
            found = await cache.look(key, 0.0)
            return await cache.join(key) if found.how == "joined" else found

        assert await asyncio.gather(*(one() for _ in range(20))) == [("hit", ANSWER)] * 20
        assert Slow.looked == 1

    asyncio.run(go())


def test_who_is_told_to_lead_and_leaves_passes_it_on() -> None:
    stage = staged()

    async def go() -> None:
        cache = Cache(stage, a_store(stage))
        key = cache.key_of(b"", b"", b"x")
        assert (await cache.look(key, 0.0)).how == "miss"
        first, second = (asyncio.create_task(cache.join(key)) for _ in range(2))
        await asyncio.sleep(0)
        cache.failed(key)
        first.cancel()  # before it has heard that it leads
        assert (await second).how == "miss"
        assert first.cancelled()
        cache.failed(key)
        assert (await cache.look(key, 0.0)).how == "miss", "nobody is at it any more"

    asyncio.run(go())


OPS = st.lists(st.tuples(st.sampled_from(["ask", "ask", "ask", "answer", "fail"]), st.integers(0, 5)), max_size=80)


@settings(deadline=None, max_examples=60)
@given(
    ops=OPS, policy=st.sampled_from(["lru", "lfu", "s3-fifo"]), single_flight=st.booleans(), entries=st.integers(1, 4)
)
def test_both_worlds_have_the_same(
    ops: Sequence[tuple[str, int]], policy: str, single_flight: bool, entries: int
) -> None:
    """The same asking and answering, in the same order: hits, misses, who joins and who is handed the lead agree."""
    size = entry_bytes(16, len(ANSWER.packed()))
    stage = staged(cache_policy=policy, cache_single_flight=single_flight, cache_max_bytes=max(1024, entries * size))
    config = stage.cache
    assert config is not None

    async def run() -> list[tuple[int, str]]:
        cache, said = Cache(stage, a_store(stage)), list[tuple[int, str]]()
        keys = [cache.key_of(b"", b"", b"%d" % item) for item in range(6)]
        leaders: dict[int, int] = Counter()

        async def ask(number: int, item: int, now_s: float) -> None:
            found = await cache.look(keys[item], now_s)
            said.append((number, found.how))
            if found.how == "joined":
                found = await cache.join(keys[item])
                said.append((number, f"then {found.how}"))
            if found.how == "miss":
                leaders[item] += 1

        tasks = []
        for number, (what, item) in enumerate(ops):
            if what == "ask":
                tasks.append(asyncio.create_task(ask(number, item, float(number))))
            elif leaders[item]:
                leaders[item] -= 1
                if what == "answer":
                    cache.store(keys[item], ANSWER, float(number))
                else:
                    cache.failed(keys[item])
            await asyncio.sleep(0)
            await settled(cache)
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return said

    def simulate() -> list[tuple[int, str]]:
        cache, said = Simulated[int](config), list[tuple[int, str]]()
        leaders: dict[int, int] = Counter()
        for number, (what, item) in enumerate(ops):
            if what == "ask":
                how = cache.look(item, float(number), number)
                said.append((number, how))
                leaders[item] += how == "miss"
            elif leaders[item]:
                leaders[item] -= 1
                if what == "answer":
                    said += [(who, "then joined") for who in cache.store(item, size, float(number))]
                elif (who := cache.failed(item)) is not None:
                    said.append((who, "then miss"))
                    leaders[item] += 1
        return said

    assert asyncio.run(run()) == simulate()
