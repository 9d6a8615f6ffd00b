"""One experiment of two versions and where it stands: who gets which arm now, and is the challenger stopped?

    user, request ─▶ bucket ─▶ share now: fixed, of the ramp, or 0 once stopped ─▶ arm, or a copy for the challenger
    ends, labels ─▶ Guard ─▶ Broken ─▶ stopped

The same class in both worlds; times are seconds of any one clock. How a share that somebody wants reaches it, and how
its stop is told, is in reference_apps/splitter.py and simulator/splitter.py.
"""

from __future__ import annotations

from stages.policies.guardrails import Broken, Guard
from stages.policies.splitting import Arm, Wanted, arm, bucket, bucket_of_nginx, share_at, split_key
from stages.split import Split

_BUCKETS_MAX = 100_000  # of keys that are remembered: a user comes again


class Experiment:
    """The policy of a stage's [split] with its state. `by_nginx` says that nginx's hash chooses, not ours."""

    def __init__(self, split: Split, slo_latency_s: float, wanted: Wanted, by_nginx: bool = False) -> None:
        self.split, self.wanted = split, wanted
        self.guard = Guard(split.guardrails, slo_latency_s)
        self.broken: Broken | None = None  # the guardrail that stopped the challenger here
        self._place = bucket_of_nginx if by_nginx else bucket
        self._buckets: dict[str, float] = {}

    def share(self, now_s: float) -> float:
        """The challenger's share now."""
        ramp = self.split.ramp
        shares, step_s = ((), 1.0) if ramp is None else (ramp.shares, ramp.step_duration_s)
        return share_at(self.wanted, shares, step_s, now_s)

    def arm(self, user: str, request: str, now_s: float) -> Arm:
        """Who answers this request: in shadow mode always the champion."""
        if self.split.mode == "shadow":
            return "champion"
        return arm(self._bucket(user, request), self.share(now_s))

    def copied(self, user: str, request: str, now_s: float) -> bool:
        """Whether the challenger gets a copy of this request."""
        return self.split.mode == "shadow" and self._bucket(user, request) < self.share(now_s)

    def ended(self, arm: str, reason: str, latency_s: float) -> Broken | None:
        """Counts an end of a request; gives the guardrail that it has broken, if it has."""
        self.guard.ended(arm, reason, latency_s)
        return self.look() if arm == "challenger" else None

    def labels(self, arm: str, right: int, labelled: int) -> Broken | None:
        """So many labels are there for the arm by now; gives the guardrail that they have broken, if they have."""
        self.guard.labels(arm, right, labelled)
        return self.look()

    def look(self) -> Broken | None:
        """The guardrail that is broken now, the first time; from then on the challenger has no share."""
        if self.wanted.stopped:
            return None
        self.broken = self.guard.broken()
        if self.broken is not None:
            self.wanted = self.wanted._replace(stopped=self.broken.guardrail)
        return self.broken

    def want(self, wanted: Wanted, begins_again: bool) -> None:
        """Another share from now on; one that begins again has seen nothing yet."""
        self.wanted = wanted
        if begins_again:
            self.broken = None
            self.guard.begin_again()

    def _bucket(self, user: str, request: str) -> float:
        key = split_key(self.split.key, user, request)
        place = self._buckets.get(key)
        if place is None:
            if len(self._buckets) >= _BUCKETS_MAX:
                self._buckets.clear()
            place = self._buckets[key] = self._place(key, self.split.salt)
        return place
