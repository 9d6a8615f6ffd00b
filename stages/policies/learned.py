"""The balancer that learns: a bandit that finds slow and failing replicas by itself, and forgets.

    answers, failures ──▶ what each replica showed lately ──▶ a line: seconds to an answer = a + b · outstanding
                                                                 │ one draw from its posterior
    outstanding requests ────────────────────────────────────────┴──▶ cost of one more ──▶ the least is chosen

Thompson sampling (Russo and others, "A tutorial on Thompson sampling", 2018) over a Bayesian linear regression of
each replica whose evidence fades. What a replica is asked costs more the busier it is, so that the best one is not
flooded; what is not known any more is drawn widely, so that a replica which was slow is tried again. It does not
know why a replica is slow, nor what kinds of requests there are: all are alike to it.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

HALF_LIFE_S = 4.0  # evidence of this age counts half
KEEP = 0.99  # what is left of a replica's evidence when one more answer comes: at most 100 answers count
IMAGINED = 2.0  # answers that a replica is credited with before its first: the fleet's mean, for its place
SCATTER = 0.5  # of imagined answers, as a share of the fleet's mean
LEAST = 0.05  # of the mean latency, both the first request and each further one are held to cost so much at least
FAILURE_COST = 10.0  # of a failed try, in mean latencies of the fleet
CANDIDATES_MAX = 16  # of a larger fleet so many are drawn and compared, because each costs a regression
_PENDING_MAX = 4096  # requests on their way to a replica that are remembered
_DRAWS = 1024


class Moments(NamedTuple):
    """Weighted sums over answers of (x) requests outstanding before this one and (y) seconds to the answer."""

    n: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0
    yy: float = 0.0

    def and_answer(self, x: float, y: float, weight: float = 1.0) -> Moments:
        """With one more answer."""
        n, sx, sy, xx, xy, yy = self
        wx, wy = weight * x, weight * y
        return Moments(n + weight, sx + wx, sy + wy, xx + wx * x, xy + wx * y, yy + wy * y)

    def times(self, factor: float) -> Moments:
        """With every weight multiplied."""
        n, x, y, xx, xy, yy = self
        return Moments(n * factor, x * factor, y * factor, xx * factor, xy * factor, yy * factor)


@dataclass(slots=True)
class Evidence:
    """What a replica showed lately, as it counted at `noted_s`."""

    answers: Moments = field(default_factory=Moments)
    failures: float = 0.0
    noted_s: float = 0.0

    def left(self, now_s: float) -> float:
        """The share of it that still counts."""
        return math.exp2(-max(0.0, now_s - self.noted_s) / HALF_LIFE_S)


def line(m: Moments) -> tuple[float, float]:
    """Least squares, with both of a sensible size: seconds with nothing outstanding, and for each request that is."""
    spread, mean_s = m.n * m.xx - m.x * m.x, m.y / m.n
    b = (m.n * m.xy - m.x * m.y) / spread if spread > 1e-12 * m.n * m.n else 0.0
    b = max(b, LEAST * mean_s)
    a = mean_s - b * m.x / m.n
    if a >= LEAST * mean_s:
        return a, b
    a = LEAST * mean_s
    return a, (m.y - a * m.n) / m.x


def latency_drawn_s(own: Moments, mean_s: float, mean_x: float, x: int, draw: float) -> float:
    """A draw from what is believed of a replica's latency with `x` requests outstanding, in seconds.

    `mean_s` is the fleet's mean latency, had with `mean_x` outstanding; before its own answers a replica is
    believed to be like that, in proportion to the place in its queue. `draw` is standard normal.
    """
    place_s, far = mean_s / (mean_x + 1), 2 * mean_x + 1
    m = own.and_answer(0.0, place_s, IMAGINED / 2).and_answer(far, (far + 1) * place_s, IMAGINED / 2)
    a, b = line(m)
    unexplained = max(0.0, m.yy - 2 * a * m.y - 2 * b * m.xy + a * a * m.n + 2 * a * b * m.x + b * b * m.xx)
    noise = (unexplained + IMAGINED * (SCATTER * mean_s) ** 2) / m.n
    lever = (m.xx - 2 * x * m.x + x * x * m.n) / (m.n * m.xx - m.x * m.x)
    believed_s = a + b * x
    return max(believed_s / 10, believed_s + math.sqrt(noise * lever) * draw)


class Learner:
    """The state of the policy: what each replica showed, and the requests that are on their way to it."""

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random
        self._draws: list[float] = []
        self._evidence: dict[int, Evidence] = {}
        self._pending: dict[int, list[tuple[float, int]]] = {}  # replica → (sent at, outstanding then), by time

    def choose(self, outstanding: Mapping[int, int], now_s: float) -> int:
        """The replica with the least cost of one more request, as drawn."""
        if len(outstanding) > CANDIDATES_MAX:
            drawn = self._random.choice(sorted(outstanding), CANDIDATES_MAX, replace=False).tolist()
            outstanding = {replica: outstanding[replica] for replica in drawn}
        shown = {replica: self._shown(replica, now_s) for replica in outstanding}
        weight = sum(answers.n for answers, _ in shown.values())
        mean_s = sum(answers.y for answers, _ in shown.values()) / weight if weight > 1e-9 else 1.0
        mean_x = sum(answers.x for answers, _ in shown.values()) / weight if weight > 1e-9 else 0.0
        costs = {}
        for replica, (answers, failures) in shown.items():
            costs[replica] = latency_drawn_s(answers, mean_s, mean_x, outstanding[replica], self._draw())
            if failures > 0.01:  # drawn from the posterior of the share that fails, under a uniform prior of one answer
                costs[replica] += FAILURE_COST * mean_s * float(self._random.beta(failures, answers.n + 1))
        return min(costs, key=costs.__getitem__)

    def sent(self, replica: int, now_s: float) -> None:
        """A request goes to the replica now."""
        pending = self._pending.setdefault(replica, [])
        pending.append((now_s, len(pending)))
        del pending[:-_PENDING_MAX]

    def done(self, replica: int, latency_s: float, ok: bool, now_s: float) -> None:
        """A request that was sent `latency_s` ago is answered, or has failed."""
        pending = self._pending.get(replica)
        if not pending:
            return
        at = bisect_left(pending, (now_s - latency_s - 1e-9, -1))
        _, x = pending.pop(min(at, len(pending) - 1))
        was = self._evidence.get(replica, Evidence(noted_s=now_s))
        keep = KEEP * was.left(now_s)
        answers = was.answers.times(keep)
        self._evidence[replica] = Evidence(
            answers.and_answer(x, latency_s) if ok else answers, was.failures * keep + (not ok), now_s
        )

    def forget(self, replica: int) -> None:
        """Drops what is known of the replica."""
        self._evidence.pop(replica, None)
        self._pending.pop(replica, None)

    def _shown(self, replica: int, now_s: float) -> tuple[Moments, float]:
        """What is left now of the replica's answers and failures."""
        evidence = self._evidence.get(replica)
        if evidence is None:
            return Moments(), 0.0
        left = evidence.left(now_s)
        return evidence.answers.times(left), evidence.failures * left

    def _draw(self) -> float:
        if not self._draws:
            self._draws = self._random.standard_normal(_DRAWS).tolist()
        return self._draws.pop()
