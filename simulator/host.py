"""What the host's own work costs around the device, in seconds.

    scheduled ── send ──▶ arrived … wake │ started … finished │ between ▶ next … finished ── reply, per item ──▶ replied
                                         └─── the device ─────┘

The first answer of a batch is back one reply after its end, each further one `reply_per_item_s` later; a refusal
takes a reply too. No twin: the running stack pays these costs, a calibration measured them. Not modelled: costs
that grow with load, the garbage collector, and one core's work waiting for another's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from simulator.draws import Draws, Floats, Quantiles
from stages.calibration import HostCosts

Ints = NDArray[np.int64]


class Hop:
    """The way from one process to another, in seconds: who goes i-th has the i-th draw of the stream `name`.

    Times come vectorised, or one by one as the event clock goes on; both ways they are the same.
    """

    def __init__(self, quantiles_s: Sequence[float], seed: int, name: str, number: int = 0) -> None:
        self._quantiles = Quantiles(quantiles_s)
        self._draws = Draws(seed, name, number)
        self._last_s = -np.inf

    def first_s(self, count: int) -> Floats:
        """How long the first `count` take."""
        return self._quantiles.first(self._draws, count)

    def one_s(self, index: int) -> float:
        """How long number `index` takes, counted from 0."""
        return self._quantiles.one(self._draws, index)

    def arrivals_s(self, left_s: Floats) -> Floats:
        """When those are there who leave at `left_s` (ascending); nobody overtakes on the way."""
        arrived_s: Floats = left_s + self.first_s(left_s.size)
        return np.maximum.accumulate(arrived_s, out=arrived_s)

    def arrival_s(self, index: int, left_s: float) -> float:
        """`arrivals_s` one by one: when number `index` is there, who leaves next."""
        self._last_s = max(self._last_s, left_s + self.one_s(index))
        return self._last_s


class Host:
    """The costs of one replica's host. Times come vectorised, or one by one as the event clock goes on.

    The i-th request, refusal or batch has the i-th draw of its stream, whichever way it is asked for.
    """

    def __init__(self, costs: HostCosts, seed: int, number: int = 0) -> None:
        self.wake_s = costs.wake_s
        self.between_batches_s = costs.between_batches_s
        self._per_item_s = costs.reply_per_item_s
        self._send = Hop(costs.send_quantiles_s, seed, "send", number)
        self._reply = Hop(costs.reply_quantiles_s, seed, "reply", number)
        self._refusal = Hop(costs.reply_quantiles_s, seed, "refusal", number)

    def arrivals_s(self, scheduled_s: Floats) -> Floats:
        """When requests sent at `scheduled_s` (ascending) are in the replica; nobody overtakes on the way."""
        return self._send.arrivals_s(scheduled_s)

    def arrival_s(self, request: int, scheduled_s: float) -> float:
        """`arrivals_s` one by one: when the request that is sent next is in the replica."""
        return self._send.arrival_s(request, scheduled_s)

    def answers_s(self, finished_s: Floats, batch: Ints, place: Ints) -> Floats:
        """When answers are back: of batches that ended at `finished_s`, with number `batch`, in `place` 0, 1, …"""
        count = int(batch[-1]) + 1 if batch.size else 0
        answered_s: Floats = finished_s + self._reply.first_s(count)[batch] + place * self._per_item_s
        return answered_s

    def answer_s(self, finished_s: float, batch: int, place: int) -> float:
        """`answers_s` for one answer."""
        return finished_s + self._reply.one_s(batch) + place * self._per_item_s

    def refusals_s(self, refused_s: Floats, requests: Ints) -> Floats:
        """When the refusals of `requests` are back that were refused at `refused_s`."""
        count = int(requests.max()) + 1 if requests.size else 0
        back_s: Floats = refused_s + self._refusal.first_s(count)[requests]
        return back_s

    def refusal_s(self, refused_s: float, request: int) -> float:
        """`refusals_s` for one refusal."""
        return refused_s + self._refusal.one_s(request)


def less(quantiles_s: Sequence[float], share_s: float) -> tuple[float, ...]:
    """The quantiles without the share that is modelled by itself; never below 0."""
    return tuple(max(0.0, quantile_s - share_s) for quantile_s in quantiles_s)
