"""Is the challenger too bad to go on? Counts of both arms so far, and a verdict for each guardrail at any time.

    ends of requests ─▶ errors, late answers, answers within the promise ─┐
                                                                          ├─▶ is it proven? ─▶ Broken: share 0, stopped
    labels ─▶ right answers of both arms ─────────────────────────────────┘

A guardrail is broken when the always-valid interval of stages/policies/sequential.py lies wholly on its wrong side:
one may look after every request, and a challenger that keeps all of them is stopped with a probability of `alpha` at
most, whatever number of guardrails there is (each takes its part of alpha: Bonferroni). The same class in both worlds.
Not decided here: what becomes of those who are its users by then; and nobody stops a champion.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from stages.policies.sequential import difference_of_shares, ruled_out
from stages.split import Guardrails

PERCENTILE = 0.95  # of the latency that a guardrail bounds

# Reasons of stages/outcomes.py that say nothing of an arm: the client's fault, its leaving, and a gateway that is full.
_NOT_THE_ARMS = frozenset({"bad_input", "client_timeout", "gateway_full"})
_TIMED_OUT = frozenset({"deadline", "upstream_timeout"})


class Broken(NamedTuple):
    """The guardrail that stopped a challenger. `value` and `limit` are in the guardrail's unit."""

    guardrail: str  # "errors", "latency", "goodput", "accuracy"
    value: float  # what was found: a share, or of accuracy the drop
    limit: float
    requests: int  # of the challenger, by then


@dataclass(slots=True)
class Counts:
    """What one arm has done so far."""

    requests: int = 0  # that came to their end
    errors: int = 0  # of them, those without an answer
    answers: int = 0  # and those that timed out: what a percentile of the latency is taken over
    late: int = 0  # of the answers, those over the guardrail's latency
    good: int = 0  # answers within the promise
    right: int = 0
    labelled: int = 0


class Guard:
    """The guardrails of one experiment and what they have seen. `slo_latency_s` is the promise that goodput counts."""

    def __init__(self, limits: Guardrails | None, slo_latency_s: float) -> None:
        self.arms: dict[str, Counts] = {"champion": Counts(), "challenger": Counts()}
        self._limits, self._slo_latency_s = limits, slo_latency_s
        self._late_after_s = slo_latency_s if limits is None or limits.latency_s is None else limits.latency_s

    def ended(self, arm: str, reason: str, latency_s: float) -> None:
        """Counts a request that came to its end `latency_s` after it was read; reasons are those of stages.outcomes."""
        if reason in _NOT_THE_ARMS:
            return
        counts = self.arms[arm]
        counts.requests += 1
        if not reason:
            counts.answers += 1
            counts.late += latency_s > self._late_after_s
            counts.good += latency_s <= self._slo_latency_s
            return
        counts.errors += 1
        if reason in _TIMED_OUT:
            counts.answers += 1
            counts.late += 1

    def labels(self, arm: str, right: int, labelled: int) -> None:
        """So many answers of the arm have a label by now, and so many of them were right."""
        self.arms[arm].right, self.arms[arm].labelled = right, labelled

    def begin_again(self) -> None:
        """Forgets what it has seen: another challenger, or another try."""
        self.arms = {"champion": Counts(), "challenger": Counts()}

    def broken(self) -> Broken | None:
        """The first guardrail that the challenger is proven to have broken by now; None while there is none."""
        limits, seen, other = self._limits, self.arms["challenger"], self.arms["champion"]
        if limits is None or seen.requests < limits.requests_min:
            return None
        alpha = limits.alpha / len(limits.given)
        if above(seen.errors, seen.requests, limits.errors_share_max, alpha):
            return _broken("errors", seen.errors / seen.requests, limits.errors_share_max, seen)
        if limits.latency_s is not None and above(seen.late, seen.answers, 1.0 - PERCENTILE, alpha):
            return _broken("latency", seen.late / seen.answers, 1.0 - PERCENTILE, seen)
        if below(seen.good, seen.requests, limits.goodput_share_min, alpha):
            return _broken("goodput", seen.good / seen.requests, limits.goodput_share_min, seen)
        counts = (other.right, other.labelled, seen.right, seen.labelled)
        if dropped(*counts, limits.accuracy_drop_max, alpha):
            drop = other.right / other.labelled - seen.right / seen.labelled
            return _broken("accuracy", drop, limits.accuracy_drop_max, seen)
        return None


def above(count: int, of: int, limit: float | None, alpha: float) -> bool:
    """Whether a share is proven to be above its limit; never without a limit."""
    if limit is None or of == 0 or count <= limit * of:  # most looks end here, and cost nothing
        return False
    return bool(ruled_out(count, of, limit, alpha))


def below(count: int, of: int, limit: float | None, alpha: float) -> bool:
    """Whether a share is proven to be below its limit; never without a limit."""
    if limit is None or of == 0 or count >= limit * of:
        return False
    return bool(ruled_out(count, of, limit, alpha))


def dropped(right_a: int, of_a: int, right_b: int, of_b: int, most: float | None, alpha: float) -> bool:
    """Whether the share of right answers is proven to be lower in b than in a by more than `most`."""
    if most is None or of_a == 0 or of_b == 0 or right_a / of_a - right_b / of_b <= most:
        return False
    _, high = difference_of_shares(right_a, of_a, right_b, of_b, alpha)
    return float(high) < -most


def in_words(broken: Broken, latency_s: float | None) -> str:
    """Why a challenger was stopped, for people; `latency_s` is the guardrail's."""
    after = f"after {broken.requests:,} of its requests"
    found, limit = f"{100 * broken.value:.3g} %", f"{100 * broken.limit:.3g} %"
    match broken.guardrail:
        case "errors":
            return f"{found} of its requests had no answer, more than {limit}, {after}"
        case "latency":
            return f"{found} of its answers took longer than {latency_s:g} s, more than {limit}, {after}"
        case "goodput":
            return f"{found} of its requests were answered within the promise, less than {limit}, {after}"
        case _:
            return f"its answers are right less often than the champion's by {found}, more than {limit}, {after}"


def _broken(guardrail: str, value: float, limit: float | None, seen: Counts) -> Broken:
    assert limit is not None
    return Broken(guardrail, value, limit, seen.requests)
