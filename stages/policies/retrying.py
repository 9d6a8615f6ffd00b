"""May a failed request be tried again, on another replica? Where that is safe, and while the budget lasts.

Retries without a budget turn a slow service into a dead one: each failure brings another request. The budget is a
share of the requests of the last ten seconds (Finagle's and Linkerd's rule).
"""

from __future__ import annotations

from collections import deque

BUDGET_WINDOW_S = 10
_RETRIES_ALWAYS = 3  # in that time, so that a quiet service may retry at all

# Reasons of stages/outcomes.py. The first two were refusals: the replica did nothing with the request. An answer of
# POST /predict is a pure function of its input, so one that was lost on the way may be computed once more.
_SAFE = frozenset({"queue_full", "draining", "connection", "upstream_lost"})
# What our configuration of nginx has it repeat: a refusal would count as a failure of the replica there.
_SAFE_BY_NGINX = frozenset({"connection", "upstream_lost"})


def safe_to_retry(failure: str, sent: bool, by_nginx: bool = False) -> bool:
    """Whether a try that ended with this reason (of `stages.outcomes.REASONS`) may be repeated elsewhere.

    `sent` says whether any byte of the request went out. A timeout may be repeated only where nothing did (the
    connection was not made in time): otherwise the replica may be at it still, and a second try doubles the load
    just when there is too much. What the client or the model did wrong (4xx, 500) would only happen again.
    `by_nginx` says that nginx decides, and not our own gateway.
    """
    if by_nginx:
        return failure in _SAFE_BY_NGINX
    return failure in _SAFE or (failure == "upstream_timeout" and not sent)


class RetryBudget:
    """How many retries the last ten seconds allow: `share` of their requests, and three where that is fewer.

    Counts are kept by the second, so that memory does not grow with the rate. A share of 0 allows none.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._seconds: deque[list[int]] = deque(maxlen=BUDGET_WINDOW_S)  # [second, requests, retries], oldest first

    def note_request(self, now_s: float) -> None:
        """Counts a request as the client sent it; its retries do not count."""
        self._second(now_s)[1] += 1

    def may_retry(self, now_s: float) -> bool:
        """Takes one retry out of the budget; False, and nothing taken, when there is none left."""
        second = self._second(now_s)
        requests = sum(each[1] for each in self._seconds)
        retries = sum(each[2] for each in self._seconds)
        if self._share <= 0 or retries + 1 > max(self._share * requests, _RETRIES_ALWAYS):
            return False
        second[2] += 1
        return True

    def _second(self, now_s: float) -> list[int]:
        """The counts of the present second; those that are ten seconds old are dropped."""
        now = int(now_s // 1)
        while self._seconds and self._seconds[0][0] <= now - BUDGET_WINDOW_S:
            self._seconds.popleft()
        if not self._seconds or self._seconds[-1][0] < now:
            self._seconds.append([now, 0, 0])
        return self._seconds[-1]
