"""Policies: cases by hand, and what must hold for any numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.policies.admission import expired, room
from stages.policies.batching import batch_size, leaves_at_s

LENGTHS = st.integers(0, 10_000)
SIZES = st.integers(1, 4096)
TIMES_S = st.floats(0.0, 1e6)


@pytest.mark.parametrize(
    ("queue_length", "max_batch_size", "at_s"),
    [
        (1, 1, 3.0),  # no batching: at once
        (1, 8, 3.005),  # alone: after the wait
        (7, 8, 3.005),  # one short
        (8, 8, 3.0),  # full
        (20, 8, 3.0),  # more than full
    ],
)
def test_a_batch_leaves_full_or_when_its_oldest_has_waited(queue_length: int, max_batch_size: int, at_s: float) -> None:
    assert leaves_at_s(queue_length, 3.0, max_batch_size, 0.005) == pytest.approx(at_s)


@given(queue_length=st.integers(1, 10_000), oldest_s=TIMES_S, largest=SIZES, wait_s=st.floats(0.0, 60.0))
def test_batching_adds_no_more_than_its_wait_to_the_oldest(
    queue_length: int, oldest_s: float, largest: int, wait_s: float
) -> None:
    at_s = leaves_at_s(queue_length, oldest_s, largest, wait_s)
    assert oldest_s <= at_s <= oldest_s + wait_s
    assert leaves_at_s(queue_length + 1, oldest_s, largest, wait_s) <= at_s


@given(queue_length=LENGTHS, largest=SIZES)
def test_a_batch_is_as_large_as_queue_and_limit_allow(queue_length: int, largest: int) -> None:
    size = batch_size(queue_length, largest)
    assert 0 <= size <= largest
    assert size in (queue_length, largest)


@pytest.mark.parametrize(("queue_length", "places"), [(0, 4), (3, 1), (4, 0), (9, 0)])
def test_a_queue_has_the_room_that_is_left(queue_length: int, places: int) -> None:
    assert room(queue_length, 4) == places


@given(queue_length=LENGTHS, longest=st.integers(1, 10_000))
def test_letting_in_what_there_is_room_for_fills_the_queue_and_no_more(queue_length: int, longest: int) -> None:
    places = room(queue_length, longest)
    assert places >= 0
    assert room(queue_length + places, longest) == 0


@pytest.mark.parametrize(
    ("waited_s", "deadline_s", "is_expired"),
    [(0.0, 1.0, False), (1.0, 1.0, False), (1.001, 1.0, True), (1e9, None, False)],
)
def test_a_request_expires_after_its_deadline_and_never_without_one(
    waited_s: float, deadline_s: float | None, is_expired: bool
) -> None:
    assert expired(waited_s, deadline_s) is is_expired
