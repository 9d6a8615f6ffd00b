"""Who is let in, and who has waited too long to be worth an answer?"""

from __future__ import annotations


def room(queue_length: int, max_queue_length: int) -> int:
    """How many more requests may join the queue; none when it is full. A batch on the device does not count."""
    return max(0, max_queue_length - queue_length)


def expired(waited_s: float, deadline_s: float | None) -> bool:
    """True when a request has waited past its deadline: nobody waits for the answer, so no device time is spent."""
    return deadline_s is not None and waited_s > deadline_s
