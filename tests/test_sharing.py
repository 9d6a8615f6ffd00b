"""Two models on one GPU that does not hold both: nobody fails, everybody has a turn, the dead give their room back."""

from __future__ import annotations

import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_apps.asking import wait_until
from reference_apps.gpu_memory import Card
from stages.policies.sharing import TURN_S, Tenant, free_gib, may_enter, should_leave
from tests.conftest import PATIENCE_S, ROOT
from tests.queued import INPUTS, put, queued, results, stored, working

CARD_GIB = 8.0


def waits(owner: str, memory_gib: float, since_s: float) -> Tenant:
    return Tenant(owner, memory_gib, since_s, False)


def there(owner: str, memory_gib: float, since_s: float, idle: bool = False) -> Tenant:
    return Tenant(owner, memory_gib, since_s, True, idle)


def test_what_fits_comes_in() -> None:
    assert may_enter(CARD_GIB, [waits("a", 3.0, 0.0)], "a")
    assert may_enter(CARD_GIB, [there("a", 3.0, 0.0), waits("b", 5.0, 1.0)], "b")
    assert not may_enter(CARD_GIB, [there("a", 3.0, 0.0), waits("b", 6.0, 1.0)], "b")
    assert not may_enter(CARD_GIB, [there("a", 3.0, 0.0)], "b")
    assert may_enter(0.3, [there("a", 0.1, 0.0), waits("b", 0.2, 0.0)], "b")  # 0.1 + 0.2 > 0.3 in floats


def test_nobody_overtakes_the_first_of_the_line() -> None:
    tenants = [there("a", 6.0, 0.0), waits("large", 5.0, 1.0), waits("small", 1.0, 2.0)]
    assert not may_enter(CARD_GIB, tenants, "small")
    assert may_enter(CARD_GIB, [waits("large", 5.0, 1.0), waits("small", 1.0, 2.0)], "small")  # both fit at once


def test_one_leaves_when_somebody_waits_and_its_turn_is_over() -> None:
    tenants = [there("a", 3.0, 10.0), waits("b", 6.0, 11.0)]
    assert not should_leave(CARD_GIB, tenants, "a", 10.0 + TURN_S - 0.1)
    assert should_leave(CARD_GIB, tenants, "a", 10.0 + TURN_S)
    assert not should_leave(CARD_GIB, tenants[:1], "a", 1000.0)  # nobody waits
    assert not should_leave(CARD_GIB, [there("a", 3.0, 0.0), waits("b", 5.0, 1.0)], "a", 1000.0)  # there is room


def test_one_that_has_nothing_to_do_leaves_at_once() -> None:
    tenants = [there("a", 3.0, 10.0, idle=True), waits("b", 6.0, 11.0)]
    assert should_leave(CARD_GIB, tenants, "a", 11.0)


def test_no_more_leave_than_it_takes_and_none_in_vain() -> None:
    line = [waits("c", 4.0, 5.0)]
    two = [there("a", 4.0, 0.0), there("b", 4.0, 1.0)]
    assert [each for each in "ab" if should_leave(CARD_GIB, two + line, each, 100.0)] == ["a"]  # the longest there
    idle = [there("a", 4.0, 0.0), there("b", 4.0, 1.0, idle=True)]
    assert [each for each in "ab" if should_leave(CARD_GIB, idle + line, each, 100.0)] == ["b"]
    # The other's turn is not over, and this one's room alone is not enough.
    large = [there("a", 2.0, 0.0), there("b", 6.0, 9.0), waits("c", 7.0, 9.5)]
    assert not should_leave(CARD_GIB, large, "a", TURN_S + 1.0)


SIZES = st.lists(st.floats(0.5, CARD_GIB), min_size=2, max_size=5)


@settings(max_examples=30, deadline=None)
@given(SIZES, st.randoms(use_true_random=False))
def test_the_card_is_never_too_full_and_everybody_has_turns(sizes: list[float], chance: random.Random) -> None:
    """All of them want the card all the time; they look in an order of chance."""
    tenants: dict[str, Tenant] = {str(n): waits(str(n), size, 0.0) for n, size in enumerate(sizes)}
    entries = dict.fromkeys(tenants, 0)
    now_s = 0.0
    for _ in range(12 * len(sizes)):
        now_s += 0.4 * TURN_S
        for owner in chance.sample(sorted(tenants), len(tenants)):
            tenant, everybody = tenants[owner], list(tenants.values())
            if not tenant.resident and may_enter(CARD_GIB, everybody, owner):
                tenants[owner] = there(owner, tenant.memory_gib, now_s)
                entries[owner] += 1
            elif tenant.resident and should_leave(CARD_GIB, everybody, owner, now_s):
                tenants[owner] = waits(owner, tenant.memory_gib, now_s)
            assert free_gib(CARD_GIB, list(tenants.values())) >= -1e-6
    assert min(entries.values()) > 0


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_two_workers_take_turns_in_their_files(tmp_path: Path) -> None:
    clock = Clock()
    with (
        Card(tmp_path, 8.0, 3.0, "small", 10.0, clock) as small,
        Card(tmp_path, 8.0, 6.0, "large", 10.0, clock) as large,
    ):
        assert small.enter()
        assert not large.enter()
        assert (small.resident, large.resident) == (True, False)
        clock.now_s = 9.0
        assert not small.leave_if_due(idle=False)
        clock.now_s = 10.0
        assert small.leave_if_due(idle=False)
        assert not large.enter()  # its model is there until it has gone
        small.leave()
        assert large.enter()
        assert not small.enter()
        clock.now_s = 11.0
        assert large.leave_if_due(idle=True)
        large.leave()
        assert small.enter()
        assert not small.leave_if_due(idle=True)  # nobody waits
    with Card(tmp_path, 8.0, 6.0, "another") as another:
        assert another.enter()
        assert [tenant.owner for tenant in another.tenants()] == [another.owner]


def test_models_that_fit_beside_each_other_do_not_wait(tmp_path: Path) -> None:
    with Card(tmp_path, 8.0, 3.0, "a") as a, Card(tmp_path, 8.0, 3.0, "b") as b, Card(tmp_path, 8.0, 3.0, "c") as c:
        assert (a.enter(), b.enter(), c.enter()) == (True, True, False)
        b.leave()
        assert c.enter()


def test_a_model_larger_than_the_card_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.memory_gib: must be at most device\.memory_gib \(8 GiB\), got 9\."):
        Card(tmp_path, 8.0, 9.0, "huge")


def test_one_that_is_killed_gives_its_room_back(tmp_path: Path) -> None:
    text = (
        "import sys, pathlib; from reference_apps.gpu_memory import Card\n"
        f"card = Card(pathlib.Path({str(tmp_path)!r}), 8.0, 6.0, 'doomed'); print(card.enter(), flush=True)\n"
        "sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        with Card(tmp_path, 8.0, 3.0, "heir") as heir:
            assert not heir.enter()
            process.kill()
            process.wait(PATIENCE_S)
            assert wait_until(heir.enter, PATIENCE_S)
            assert len(list(tmp_path.glob("*.json"))) == 1
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE_S)


def test_workers_of_two_stages_share_a_card_and_answer_everything(tmp_path: Path) -> None:
    """3 and 6 GiB on a card of 8: each has jobs, neither fails, and their models are never there at once."""
    small = queued(model__memory_gib=3.0, device={"kind": "cpu", "memory_gib": 8.0})
    large = queued(model__memory_gib=6.0, device={"kind": "cpu", "memory_gib": 8.0})
    with (
        stored(small, tmp_path / "small") as first,
        stored(large, tmp_path / "large") as second,
        Card(tmp_path / "gpu", 8.0, 3.0, "small", 0.2) as one,
        Card(tmp_path / "gpu", 8.0, 6.0, "large", 0.2) as other,
    ):
        jobs = [put(store, *INPUTS) for store in (first, second)]
        with working(small, first, card=one) as a, working(large, second, card=other) as b:
            found = [results(store, each) for store, each in zip((first, second), jobs, strict=True)]
            more = [put(store, *INPUTS[:8]) for store in (first, second)]
            for store, each in zip((first, second), more, strict=True):
                results(store, each)
            assert {result.outcome for each in found for result in each.values()} == {"ok"}
            spans = sorted(span[1:3] for worker in (a, b) for span in worker.batches)
            assert all(before[1] <= after[0] for before, after in pairwise(spans))
