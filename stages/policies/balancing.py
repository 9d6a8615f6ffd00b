"""Who gets the next request? One function of plain numbers a policy, and the state and draws that they need.

    key, outstanding of each replica that may be chosen ──▶ Balancer.choose ──▶ replica
                                     answers, failures ──▶ Balancer.done   (for the policies that look at them)

Both worlds use the same class, so a disagreement between them is never the policy's. Where a load test gives its
requests tickets, the dice of `random` and `power-of-two` follow them: both worlds, and every repeat, throw the same.
"Outstanding" are the requests that the gateway has sent to a replica and that are not back. The learned policy is in
stages/policies/learned.py. It does not model several gateways beside each other: this one sees every request.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right, insort
from collections.abc import Collection, Iterator, Mapping

from stages.fleet import Policy
from stages.policies.learned import Learner
from stages.streams import stream

POINTS_PER_REPLICA = 100  # on the ring of `sticky`: shares of the keys then differ by about a tenth
LATENCY_MEMORY_S = 10.0  # of `latency-weighted`: the time constant of its averages
_DRAWS = 1024


def round_robin(replicas: Collection[int], last: int) -> int:
    """The one after `last` by number, and after the highest the lowest again; -1 before the first request."""
    return min((replica for replica in replicas if replica > last), default=min(replicas))


def random_choice(replicas: Collection[int], draw: float) -> int:
    """One of them, each as likely as the others; `draw` is uniform in [0, 1)."""
    return sorted(replicas)[int(draw * len(replicas))]


def least_outstanding(outstanding: Mapping[int, int], last: int) -> int:
    """The one with the fewest outstanding requests; of several, by turn after `last`.

    Turns spread a quiet service's requests more evenly than dice would; haproxy and nginx take turns here too.
    """
    fewest = min(outstanding.values())
    return round_robin([replica for replica, count in outstanding.items() if count == fewest], last)


def power_of_two(outstanding: Mapping[int, int], draw: float, second_draw: float) -> int:
    """Of two that are drawn, the one with fewer outstanding requests; the first where both have as many.

    Mitzenmacher, "The power of two choices in randomized load balancing", 2001.
    """
    first = random_choice(outstanding, draw)
    others = [replica for replica in outstanding if replica != first]
    if not others:
        return first
    second = random_choice(others, second_draw)
    return second if outstanding[second] < outstanding[first] else first


def sticky(key: int | str, outstanding: Mapping[int, int], ring: Ring, load_bound: float) -> int:
    """The replica of this key: the first on the ring after it that has room.

    Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, 2018): a replica has room while it has
    less than `load_bound` times its fair share of the requests, this one included, rounded up.
    """
    most = math.ceil(load_bound * (sum(outstanding.values()) + 1) / len(outstanding))
    return next(replica for replica in ring.after(key) if outstanding.get(replica, most) < most)


def latency_weighted(outstanding: Mapping[int, int], latencies_s: Mapping[int, float], last: int) -> int:
    """The one with the least of (outstanding requests + 1) times its mean latency, the rule of Finagle's "peak EWMA".

    A replica without a latency counts with the least of the others, so that it gets one soon. Ties go by turn after
    `last`.
    """
    otherwise = min((latencies_s[replica] for replica in outstanding if replica in latencies_s), default=1.0)
    costs = {replica: (count + 1) * latencies_s.get(replica, otherwise) for replica, count in outstanding.items()}
    least = min(costs.values())
    return round_robin([replica for replica, cost in costs.items() if cost == least], last)


class Ring:
    """Where replicas and keys stand on a circle of 64 bits, by a hash that is the same in every process."""

    def __init__(self) -> None:
        self._points: list[tuple[int, int]] = []  # (place, replica), ordered
        self._replicas: set[int] = set()

    def hold(self, replicas: Collection[int]) -> None:
        """Puts those on the ring that are not there yet."""
        for replica in replicas:
            if replica not in self._replicas:
                self._replicas.add(replica)
                for number in range(POINTS_PER_REPLICA):
                    insort(self._points, (_place(f"replica {replica} point {number}"), replica))

    def remove(self, replica: int) -> None:
        """Takes a replica off the ring: only its own keys move, each to the next replica."""
        self._replicas.discard(replica)
        self._points = [point for point in self._points if point[1] != replica]

    def after(self, key: int | str) -> Iterator[int]:
        """The replicas in the order of their points after the key, once around; one may come several times."""
        start = bisect_right(self._points, (_place(f"key {key}"), -1))
        for step in range(len(self._points)):
            yield self._points[(start + step) % len(self._points)][1]


def _place(text: str) -> int:
    """A place on the ring: 64 bits of BLAKE2. Python's own hash() of a text differs from process to process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def ticket_of(seed: int, number: int) -> str:
    """The ticket of request `number` of a schedule that was made from `seed`: "1042-17"."""
    return f"{seed}-{number}"


class Balancer:
    """One gateway's policy with its state. `seed` gives its draws; times are seconds of any one clock.

    A request is `choose`n for, then `sent`, then `done`, once for every try. Raises ValueError for a policy that is
    not one of stages.fleet.Policy.
    """

    def __init__(self, policy: Policy, seed: int, sticky_load_bound: float = 1.25) -> None:
        self.policy = policy
        self._random = stream(seed, "balancing")
        self._draws: list[float] = []
        self._last = -1
        self._load_bound = sticky_load_bound
        self._ring = Ring()
        self._latencies = Latencies()
        self._learner = Learner(self._random)

    def choose(self, key: int | str, outstanding: Mapping[int, int], now_s: float, ticket: str | None = None) -> int:
        """The replica for a request with this key, among those in `outstanding`. Raises ValueError if there is none.

        `outstanding` has a count for every replica that may be chosen: ready, not ejected, not tried before. `ticket`
        is the request's, if it has one (`ticket_of`).
        """
        if not outstanding:
            raise ValueError("there is no replica to choose from")
        self._last = self._chosen(key, outstanding, now_s, ticket)
        return self._last

    def _chosen(self, key: int | str, outstanding: Mapping[int, int], now_s: float, ticket: str | None) -> int:
        match self.policy:
            case "round-robin":
                return round_robin(outstanding, self._last)
            case "random":
                return random_choice(outstanding, self._dice(ticket)[0])
            case "least-outstanding":
                return least_outstanding(outstanding, self._last)
            case "power-of-two":
                return power_of_two(outstanding, *self._dice(ticket))
            case "sticky":
                self._ring.hold(outstanding)
                return sticky(key, outstanding, self._ring, self._load_bound)
            case "latency-weighted":
                return latency_weighted(outstanding, self._latencies.at(now_s), self._last)
            case "learned":
                return self._learner.choose(outstanding, now_s)
            case _:
                raise ValueError(f"{self.policy!r} is no balancing policy")

    def sent(self, replica: int, now_s: float) -> None:
        """Notes that a request goes to the replica now."""
        if self.policy == "learned":
            self._learner.sent(replica, now_s)

    def done(self, replica: int, latency_s: float, ok: bool, now_s: float) -> None:
        """Notes how a try ended: `latency_s` from `sent` to its answer or failure, which `ok` tells apart."""
        if self.policy == "latency-weighted" and ok:
            self._latencies.note(replica, latency_s, now_s)
        elif self.policy == "learned":
            self._learner.done(replica, latency_s, ok, now_s)

    def forget(self, replica: int) -> None:
        """The replica has left the fleet; another that comes under its number begins anew."""
        self._ring.remove(replica)
        self._latencies.forget(replica)
        self._learner.forget(replica)

    def _dice(self, ticket: str | None) -> tuple[float, float]:
        """Two draws, uniform in [0, 1): those of a request's ticket, or the next ones."""
        if ticket is not None:
            place = _place(f"request {ticket}")
            return (place >> 32) / 2**32, (place & 0xFFFFFFFF) / 2**32
        if not self._draws:
            self._draws = self._random.random(_DRAWS).tolist()
        return self._draws.pop(), self._draws.pop()


class Latencies:
    """Mean latency of each replica's good answers, exponentially weighted by their age.

    A mean shrinks while nothing new comes, so that a replica that was slow is asked again.
    """

    def __init__(self) -> None:
        self._mean_s: dict[int, tuple[float, float]] = {}  # replica → mean latency, when it was last noted

    def note(self, replica: int, latency_s: float, now_s: float) -> None:
        """Takes in one more latency; the first stands for itself."""
        mean_s, noted_s = self._mean_s.get(replica, (latency_s, now_s))
        keep = math.exp(-max(0.0, now_s - noted_s) / LATENCY_MEMORY_S)
        self._mean_s[replica] = (keep * mean_s + (1 - keep) * latency_s, now_s)

    def at(self, now_s: float) -> dict[int, float]:
        """The means as they count now, in seconds."""
        return {
            replica: mean_s * math.exp(-max(0.0, now_s - noted_s) / LATENCY_MEMORY_S)
            for replica, (mean_s, noted_s) in self._mean_s.items()
        }

    def forget(self, replica: int) -> None:
        """Drops what was known of the replica."""
        self._mean_s.pop(replica, None)
