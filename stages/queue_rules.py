"""Rules over the queue and what stands around it: what fits together, and what nothing would read.

Asked by stages/rules.py, like the rules there. A stage without [queue] breaks none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from stages import unread
from stages.advice import amount
from stages.fleet import Gateway
from stages.problems import Problem
from stages.queue import BATCH_MAX, Queue
from stages.spec import Batching


def no_unread_queue_keys(queue: Queue | None) -> Iterator[Problem]:
    """A key that nothing reads would look like a choice."""
    return (key.problem() for key in unread.of_queue(queue) if key.given)


def queue_stands_alone(queue: Queue | None, gateway: Gateway | None) -> Iterator[Problem]:
    """Workers fetch their work; nobody sends it to them."""
    if queue is not None and gateway is not None:
        yield Problem(
            "queue",
            "must not stand beside a [gateway]",
            "both",
            "Workers claim jobs from the queue, and a gateway would have nobody to send requests to.",
            "Remove one of the two.",
        )


def depth_holds_a_batch(queue: Queue | None, batching: Batching) -> Iterator[Problem]:
    """A worker fills its batches out of the queue."""
    if queue is not None and queue.max_depth < batching.max_batch_size:
        yield Problem(
            "queue.max_depth",
            f"must be at least batching.max_batch_size ({amount(batching.max_batch_size, 'max_batch_size')})",
            str(queue.max_depth),
            "No batch could ever be full.",
            "Raise it, or lower batching.max_batch_size.",
        )


def batch_is_within_a_claim(queue: Queue | None, batching: Batching) -> Iterator[Problem]:
    """A broker gives no more than so many jobs a call."""
    if queue is not None and batching.max_batch_size > BATCH_MAX:
        yield Problem(
            "batching.max_batch_size",
            f"must be at most {BATCH_MAX} jobs beside a [queue]",
            str(batching.max_batch_size),
            "A broker gives no worker more at once.",
            f"Use {BATCH_MAX}, or fewer.",
        )


def wait_is_within_lease(queue: Queue | None, batching: Batching) -> Iterator[Problem]:
    """A job waits for the rest of its batch under its lease."""
    if queue is not None and batching.batch_wait_timeout_s >= queue.lease_s:
        least = amount(batching.batch_wait_timeout_s, "batch_wait_timeout_s")
        yield Problem(
            "queue.lease_s",
            f"must be greater than batching.batch_wait_timeout_s ({least})",
            f"{queue.lease_s:g}",
            "Jobs would be given to another worker while they wait for the rest of their batch.",
            "Raise it: a lease is extended while a worker computes, and 30.0 is soon enough after one that was killed.",
        )


def retry_delay_is_within_max(queue: Queue | None) -> Iterator[Problem]:
    """The delay begins somewhere below where it stops growing."""
    if queue is not None and queue.retry_delay_s > queue.retry_delay_max_s:
        yield Problem(
            "queue.retry_delay_s",
            f"must be at most queue.retry_delay_max_s ({amount(queue.retry_delay_max_s, 'retry_delay_max_s')})",
            f"{queue.retry_delay_s:g}",
            "It doubles with each failure up to there, and would begin beyond.",
            "Lower it, or raise queue.retry_delay_max_s.",
        )


RULES: tuple[Callable[..., Iterator[Problem]], ...] = (
    no_unread_queue_keys,
    queue_stands_alone,
    depth_holds_a_batch,
    batch_is_within_a_claim,
    wait_is_within_lease,
    retry_delay_is_within_max,
)
