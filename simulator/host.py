"""What the host's own work costs around the device, in seconds.

    scheduled ── send ──▶ arrived … wake │ started … finished │ between ▶ next … finished ── reply, per item ──▶ replied
                                         └─── the device ─────┘

The first answer of a batch is back one reply after its end, each further one `reply_per_item_s` later; a refusal
takes a reply too. No twin: the running stack pays these costs, a calibration measured them. Not modelled: costs
that grow with load, the garbage collector, and one core's work waiting for another's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.draws import Draws, Floats, Quantiles
from stages.calibration import HostCosts

Ints = NDArray[np.int64]


class Host:
    """The costs of one replica's host. Times come vectorised, or one by one as the event clock goes on.

    The i-th request, refusal or batch has the i-th draw of its stream, whichever way it is asked for.
    """

    def __init__(self, costs: HostCosts, seed: int, number: int = 0) -> None:
        self.wake_s = costs.wake_s
        self.between_batches_s = costs.between_batches_s
        self._per_item_s = costs.reply_per_item_s
        self._send, self._reply = Quantiles(costs.send_quantiles_s), Quantiles(costs.reply_quantiles_s)
        self._send_draws = Draws(seed, "send", number)
        self._reply_draws = Draws(seed, "reply", number)
        self._refusal_draws = Draws(seed, "refusal", number)
        self._last_arrival_s = -np.inf

    def arrivals_s(self, scheduled_s: Floats) -> Floats:
        """When requests sent at `scheduled_s` (ascending) are in the replica; nobody overtakes on the way."""
        arrived_s: Floats = scheduled_s + self._send.first(self._send_draws, scheduled_s.size)
        return np.maximum.accumulate(arrived_s, out=arrived_s)

    def arrival_s(self, request: int, scheduled_s: float) -> float:
        """`arrivals_s` one by one: when the request that is sent next is in the replica."""
        self._last_arrival_s = max(self._last_arrival_s, scheduled_s + self._send.one(self._send_draws, request))
        return self._last_arrival_s

    def answers_s(self, finished_s: Floats, batch: Ints, place: Ints) -> Floats:
        """When answers are back: of batches that ended at `finished_s`, with number `batch`, in `place` 0, 1, …"""
        count = int(batch[-1]) + 1 if batch.size else 0
        replies_s = self._reply.first(self._reply_draws, count)
        answered_s: Floats = finished_s + replies_s[batch] + place * self._per_item_s
        return answered_s

    def answer_s(self, finished_s: float, batch: int, place: int) -> float:
        """`answers_s` for one answer."""
        return finished_s + self._reply.one(self._reply_draws, batch) + place * self._per_item_s

    def refusals_s(self, refused_s: Floats, requests: Ints) -> Floats:
        """When the refusals of `requests` are back that were refused at `refused_s`."""
        count = int(requests.max()) + 1 if requests.size else 0
        back_s: Floats = refused_s + self._reply.first(self._refusal_draws, count)[requests]
        return back_s

    def refusal_s(self, refused_s: float, request: int) -> float:
        """`refusals_s` for one refusal."""
        return refused_s + self._reply.one(self._refusal_draws, request)
