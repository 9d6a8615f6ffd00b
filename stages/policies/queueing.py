"""What happens to a job that failed, who is next, and when a lease is renewed: the queue's decisions.

    failed or its lease ran out ── is_dead? ──▶ dead letter
                                      └─ no ──▶ again, after retry_delay_s (at once where nobody said why)

Plain numbers in, plain numbers out; times in seconds of a clock that never jumps. simulator/broker.py and
reference_apps/broker_sqlite.py call these. The scripts of reference_apps/broker_redis.py run inside the server and say
`is_dead`, `ran_out`, `accepts` and `next_priority` once more in Lua; tests hold them to these functions. Not decided
here: fair shares, and deadlines of jobs.
"""

from __future__ import annotations

from collections.abc import Sequence

# A lease is extended when this share of it has passed: two tries more may fail before anybody else gets the job.
_EXTEND_AFTER_SHARE = 1 / 3
_DOUBLINGS_MAX = 64


def retry_delay_s(attempt: int, first_s: float, longest_s: float) -> float:
    """Seconds until a job whose attempt (the first is 1) failed is tried again: doubles up to `longest_s`."""
    return min(longest_s, first_s * 2.0 ** min(attempt - 1, _DOUBLINGS_MAX))


def is_dead(attempt: int, attempts_max: int) -> bool:
    """Whether a job whose attempt (the first is 1) failed, or ended with its lease, is given up."""
    return attempt >= attempts_max


def ran_out(deadline_s: float, now_s: float) -> bool:
    """Whether a lease, or a delay, that lasts until `deadline_s` is over."""
    return now_s >= deadline_s


def extend_after_s(lease_s: float) -> float:
    """Seconds after a claim, or after the last extension, at which a worker that is not done extends its lease."""
    return lease_s * _EXTEND_AFTER_SHARE


def next_priority(waiting: Sequence[int]) -> int | None:
    """The priority whose first job goes next, given how many jobs wait in each: the first that has any.

    It is strict: while priority 0 keeps coming, priority 1 waits. None when nothing waits.
    """
    return next((priority for priority, jobs in enumerate(waiting) if jobs > 0), None)


def accepts(inside: int, more: int, max_depth: int) -> bool:
    """Whether `more` jobs may come in, all or none, where `inside` are already."""
    return inside + more <= max_depth
