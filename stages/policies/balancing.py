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
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from stages.fleet import Policy
from stages.policies.learned import Learner
from stages.streams import stream

POINTS_PER_REPLICA = 100  # on the ring of `sticky`: shares of the keys then differ by about a tenth
LATENCY_MEMORY_S = 10.0  # of `latency-weighted`: the time constant of its averages
_DRAWS = 1024
_KEYS_KNOWN = 20_000
_DICE_KEPT = 2_000_000  # draws of longer schedules are thrown anew each time, and not kept in memory
# Policies that look at how the tries before ended.
LEARNING: tuple[Policy, ...] = ("latency-weighted", "learned")


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
    best: tuple[float, bool, int] = (math.inf, True, -1)
    for replica, count in outstanding.items():
        if count <= best[0] and (mine := (count, replica <= last, replica)) < best:
            best = mine
    return best[2]


def power_of_two(outstanding: Mapping[int, int], draw: float, second_draw: float) -> int:
    """Of two that are drawn, the one with fewer outstanding requests; the first where both have as many.

    Mitzenmacher, "The power of two choices in randomized load balancing", 2001.
    """
    others = sorted(outstanding)
    first = others.pop(int(draw * len(others)))
    if not others:
        return first
    second = others[int(second_draw * len(others))]
    return second if outstanding[second] < outstanding[first] else first


def sticky(key: int | str, outstanding: Mapping[int, int], ring: Ring, load_bound: float) -> int:
    """The replica of this key: the first on the ring after it that has room.

    Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, 2018): a replica has room while it has
    less than `load_bound` times its fair share of the requests, this one included, rounded up.
    """
    most = math.ceil(load_bound * (sum(outstanding.values()) + 1) / len(outstanding))
    for replica in ring.after(key):
        if outstanding.get(replica, most) < most:
            return replica
    raise ValueError("no replica on the ring may be chosen")


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
        self._known: dict[int | str, tuple[int, ...]] = {}  # of keys that were asked for, as long as nothing changes

    def hold(self, replicas: Collection[int]) -> None:
        """Puts those on the ring that are not there yet."""
        if self._replicas.issuperset(replicas):
            return
        self._known.clear()
        for replica in replicas:
            if replica not in self._replicas:
                self._replicas.add(replica)
                for number in range(POINTS_PER_REPLICA):
                    insort(self._points, (_place(f"replica {replica} point {number}"), replica))

    def remove(self, replica: int) -> None:
        """Takes a replica off the ring: only its own keys move, each to the next replica."""
        self._replicas.discard(replica)
        self._known.clear()
        self._points = [point for point in self._points if point[1] != replica]

    def after(self, key: int | str) -> tuple[int, ...]:
        """The replicas in the order of their first points after the key, once around."""
        found = self._known.get(key)
        if found is None:
            start = bisect_right(self._points, (_place(f"key {key}"), -1))
            order: dict[int, None] = {}
            for step in range(len(self._points)):
                order[self._points[(start + step) % len(self._points)][1]] = None
                if len(order) == len(self._replicas):
                    break
            found = tuple(order)
            if len(self._known) >= _KEYS_KNOWN:
                self._known.clear()
            self._known[key] = found
        return found


def known_choices(
    policy: Policy, keys: Sequence[int] | NDArray[np.int64], replicas: int, seed: int, sticky_load_bound: float = 1.25
) -> NDArray[np.int64] | None:
    """Who gets each of a schedule's requests, where that follows from their numbers and keys alone; otherwise None.

    What a `Balancer` chooses among replicas 0 to `replicas` - 1 as long as all of them may be chosen: by turns, by dice
    that follow the number, or by a ring whose bound on load is so wide that it binds nobody.
    """
    count = len(keys)
    if replicas == 1:
        return np.zeros(count, dtype=np.int64)
    if policy == "round-robin":
        return np.arange(count, dtype=np.int64) % replicas
    if policy == "random":
        return (first_dice(seed, count)[:, 0] * replicas).astype(np.int64)
    if policy == "sticky" and sticky_load_bound >= replicas:
        ring = Ring()
        ring.hold(range(replicas))
        unique, which = np.unique(np.asarray(keys, dtype=np.int64), return_inverse=True)
        owners = np.array([ring.after(key)[0] for key in unique.tolist()], dtype=np.int64)
        return np.asarray(owners[which], dtype=np.int64) if count else np.zeros(0, dtype=np.int64)
    return None


def first_dice(seed: int, count: int) -> NDArray[np.float64]:
    """The two draws of each of the requests 0 to `count` - 1, a row each: what a `Balancer` throws for them."""
    if count > _DICE_KEPT:
        return _thrown(seed, count)
    return _kept_dice(seed, 1 << max(0, count - 1).bit_length())[:count]


@lru_cache(maxsize=16)
def _kept_dice(seed: int, count: int) -> NDArray[np.float64]:
    """They are kept: a sweep asks for the same ones at every point."""
    return _thrown(seed, count)


def _thrown(seed: int, count: int) -> NDArray[np.float64]:
    texts = (f"request {ticket_of(seed, number)}".encode() for number in range(count))
    digests = (hashlib.blake2b(text, digest_size=8).digest() for text in texts)
    draws = np.frombuffer(b"".join(digests), dtype=">u4").astype(np.float64).reshape(-1, 2) / 2**32
    draws.flags.writeable = False
    return draws


def _place(text: str) -> int:
    """A place on the ring: 64 bits of BLAKE2. Python's own hash() of a text differs from process to process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def ticket_of(seed: int, number: int) -> str:
    """The ticket of request `number` of a schedule that was made from `seed`: "1042-17"."""
    return f"{seed}-{number}"


class Balancer:
    """One gateway's policy with its state. `seed` gives its draws; times are seconds of any one clock.

    A request is `choose`n for, then `sent`, then `done`, once for every try. `dice` are the draws of the first
    requests, where somebody has thrown them already. Raises ValueError for a policy that is not one of
    stages.fleet.Policy.
    """

    def __init__(
        self, policy: Policy, seed: int, sticky_load_bound: float = 1.25, dice: Sequence[tuple[float, float]] = ()
    ) -> None:
        self.policy = policy
        self._random = stream(seed, "balancing")
        self._draws: list[float] = []
        self._dice_thrown = dice
        self._last = -1
        self._load_bound = sticky_load_bound
        self._ring = Ring()
        self._latencies = Latencies()
        self._learner = Learner(self._random)

    def choose(
        self, key: int | str, outstanding: Mapping[int, int], now_s: float, ticket: str | int | None = None
    ) -> int:
        """The replica for a request with this key, among those in `outstanding`. Raises ValueError if there is none.

        `outstanding` has a count for every replica that may be chosen: ready, not ejected, not tried before. `ticket`
        is the request's, if it has one (`ticket_of`), or which of the `dice` that were thrown already are its own.
        """
        if not outstanding:
            raise ValueError("there is no replica to choose from")
        self._last = self._chosen(key, outstanding, now_s, ticket)
        return self._last

    def _chosen(self, key: int | str, outstanding: Mapping[int, int], now_s: float, ticket: str | int | None) -> int:
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

    def _dice(self, ticket: str | int | None) -> tuple[float, float]:
        """Two draws, uniform in [0, 1): those of a request's ticket, or the next ones."""
        if isinstance(ticket, int):
            return self._dice_thrown[ticket]
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
