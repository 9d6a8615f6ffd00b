"""Random numbers that do not depend on who asks first: the i-th draw of a named stream, and times drawn with it.

    stages.streams.stream(seed, name) ─▶ Draws ── u in [0, 1) ─▶ Quantiles ─▶ seconds

Vectorised code asks for the first n draws, event by event code for one after another; both see the same numbers.
No twin: the running stack does not draw, it takes the time it takes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stages.streams import stream

Floats = NDArray[np.float64]

_BLOCK = 1024


class Draws:
    """Uniform numbers in [0, 1) of the stream `name` under `seed`; `number` tells replicas apart."""

    def __init__(self, seed: int, name: str, number: int = 0) -> None:
        self._rng = stream(seed, name, number)
        self._drawn: Floats = np.empty(0)
        self._listed: list[float] = []

    def first(self, count: int) -> Floats:
        """The first `count` draws."""
        if count > self._drawn.size:
            more = max(count - self._drawn.size, self._drawn.size, _BLOCK)
            self._drawn = np.concatenate([self._drawn, self._rng.random(more)])
        return self._drawn[:count]

    def __getitem__(self, index: int) -> float:
        """Draw number `index`, counted from 0."""
        if index >= len(self._listed):
            self.first(index + 1)
            self._listed += self._drawn[len(self._listed) :].tolist()
        return self._listed[index]


class Quantiles:
    """Seconds whose distribution is given by evenly spaced quantiles, straight lines between them."""

    def __init__(self, quantiles_s: Sequence[float] | Floats) -> None:
        low = np.asarray(quantiles_s, dtype=np.float64)
        self.fixed_s = float(low[0]) if low.size == 1 else None  # one quantile: no chance in it
        self._last = low.size - 1
        self._low, self._step = low, np.append(np.diff(low), 0.0)
        self._low_listed: list[float] = self._low.tolist()
        self._step_listed: list[float] = self._step.tolist()

    @property
    def mean_s(self) -> float:
        """The mean in seconds (the trapezoid rule is exact for straight lines)."""
        return float(np.trapezoid(self._low)) / self._last if self._last else float(self._low[0])

    def at(self, u: float) -> float:
        """The time below which the share `u` lies, in seconds."""
        place = u * self._last
        index = int(place)
        return self._low_listed[index] + (place - index) * self._step_listed[index]

    def at_each(self, u: Floats) -> Floats:
        """`at` for an array of shares: the same numbers, to the last bit."""
        place = u * self._last
        index = place.astype(np.int64)
        times_s: Floats = self._low[index] + (place - index) * self._step[index]
        return times_s

    def first(self, draws: Draws, count: int) -> Floats:
        """The times of the first `count` draws; nothing is drawn where nothing is left to chance."""
        return np.full(count, self.fixed_s) if self.fixed_s is not None else self.at_each(draws.first(count))

    def one(self, draws: Draws, index: int) -> float:
        """The time of draw number `index`: what `first` holds at that place."""
        return self.fixed_s if self.fixed_s is not None else self.at(draws[index])
