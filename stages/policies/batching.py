"""When does a batch leave, and how large is it?"""

from __future__ import annotations


def leaves_at_s(queue_length: int, oldest_arrival_s: float, max_batch_size: int, batch_wait_timeout_s: float) -> float:
    """The time from which a free device may take a batch; a time in the past means at once.

    A full batch has nothing to wait for. A smaller one waits until its *oldest* request has waited
    `batch_wait_timeout_s`, so that the wait is a bound on what batching adds to anybody's latency.
    """
    if queue_length >= max_batch_size:
        return oldest_arrival_s
    return oldest_arrival_s + batch_wait_timeout_s


def batch_size(queue_length: int, max_batch_size: int) -> int:
    """How many of the waiting requests leave together, oldest first."""
    return min(queue_length, max_batch_size)
