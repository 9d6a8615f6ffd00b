"""Retries: only for what is safe, and never more than the budget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.outcomes import REASONS
from stages.policies.retrying import BUDGET_WINDOW_S, RetryBudget, safe_to_retry


def test_what_may_be_tried_again() -> None:
    sent = {reason for reason in REASONS if safe_to_retry(reason, sent=True)}
    assert sent == {"queue_full", "draining", "connection", "upstream_lost"}
    assert {reason for reason in REASONS if safe_to_retry(reason, sent=False)} == sent | {"upstream_timeout"}


def test_nginx_repeats_what_was_lost_and_no_refusal() -> None:
    for sent in (True, False):
        repeated = {reason for reason in REASONS if safe_to_retry(reason, sent, by_nginx=True)}
        assert repeated == {"connection", "upstream_lost"}


def granted(budget: RetryBudget, now_s: float, wanted: int = 1000) -> int:
    return sum(budget.may_retry(now_s) for _ in range(wanted))


@pytest.mark.parametrize(("share", "requests", "retries"), [(0.2, 100, 20), (0.2, 0, 3), (0.2, 10, 3), (1.0, 7, 7)])
def test_the_budget_is_a_share_of_the_requests_and_three_at_least(share: float, requests: int, retries: int) -> None:
    budget = RetryBudget(share)
    for _ in range(requests):
        budget.note_request(100.5)
    assert granted(budget, 100.7) == retries


def test_a_share_of_nothing_allows_none() -> None:
    budget = RetryBudget(0.0)
    budget.note_request(0.0)
    assert granted(budget, 0.0) == 0


def test_requests_and_retries_count_for_ten_seconds() -> None:
    budget = RetryBudget(0.5)
    for _ in range(20):
        budget.note_request(0.2)
    assert granted(budget, 9.9) == 10
    assert granted(budget, 9.95) == 0
    assert granted(budget, 12.0) == 0, "the retries of 9.9 s still count, the requests do not"
    assert granted(budget, 19.5) == 3


@given(
    share=st.floats(0.01, 1.0),
    events=st.lists(st.tuples(st.floats(0.0, 0.5), st.booleans()), min_size=1, max_size=200),
)
def test_no_window_has_more_retries_than_its_share(share: float, events: list[tuple[float, bool]]) -> None:
    budget, now_s = RetryBudget(share), 0.0
    requests, retries = list[float](), list[float]()
    for after_s, wants_retry in events:
        now_s += after_s
        if not wants_retry:
            budget.note_request(now_s)
            requests.append(now_s)
        elif budget.may_retry(now_s):
            retries.append(now_s)
            first_s = int(now_s) - BUDGET_WINDOW_S + 1
            within = sum(each >= first_s for each in retries)
            assert within <= max(share * sum(each >= first_s for each in requests), 3)
