"""The queue's decisions: cases by hand, and what must hold for any numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.policies.queueing import accepts, extend_after_s, is_dead, next_priority, ran_out, retry_delay_s

SECONDS = st.floats(0.0, 1e6)


@pytest.mark.parametrize(
    ("attempt", "delay_s"), [(1, 1.0), (2, 2.0), (3, 4.0), (6, 32.0), (7, 60.0), (1000, 60.0), (10**9, 60.0)]
)
def test_a_delay_doubles_up_to_its_longest(attempt: int, delay_s: float) -> None:
    assert retry_delay_s(attempt, 1.0, 60.0) == delay_s


@given(attempt=st.integers(1, 2000), first_s=SECONDS, longest_s=SECONDS)
def test_a_delay_never_shrinks_and_never_exceeds_its_longest(attempt: int, first_s: float, longest_s: float) -> None:
    delay_s = retry_delay_s(attempt, first_s, longest_s)
    assert 0.0 <= delay_s <= longest_s
    assert delay_s <= retry_delay_s(attempt + 1, first_s, longest_s)


@pytest.mark.parametrize(("attempt", "dead"), [(1, False), (4, False), (5, True), (6, True)])
def test_the_last_attempt_is_the_last(attempt: int, dead: bool) -> None:
    assert is_dead(attempt, 5) is dead


@pytest.mark.parametrize(("now_s", "over"), [(0.0, False), (9.999, False), (10.0, True), (1e9, True)])
def test_a_lease_is_over_at_its_deadline(now_s: float, over: bool) -> None:
    assert ran_out(10.0, now_s) is over


@given(lease_s=st.floats(1e-3, 1e5))
def test_two_extensions_may_fail_before_a_lease_is_over(lease_s: float) -> None:
    assert 0.0 < 2 * extend_after_s(lease_s) < lease_s


@pytest.mark.parametrize(
    ("waiting", "priority"), [([], None), ([0, 0], None), ([0, 3, 1], 1), ([1, 100, 100], 0), ([0, 0, 2], 2)]
)
def test_the_first_priority_that_has_any_goes_next(waiting: list[int], priority: int | None) -> None:
    assert next_priority(waiting) == priority


@given(inside=st.integers(0, 100), more=st.integers(0, 100), max_depth=st.integers(1, 100))
def test_what_is_accepted_fits(inside: int, more: int, max_depth: int) -> None:
    assert accepts(inside, more, max_depth) == (inside + more <= max_depth)
