"""The device that runs a model's batches, one at a time: only the time that it takes, never the model.

    catalogue profile, or a calibration's quantiles ─▶ service_time_s(batch size) ─▶ run: take, be busy, hand back

Twin: reference_apps/device.py. Not modelled: memory, clocks that drop with heat, batches that slow each other
down, and any dependence of a service time on the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Protocol

import numpy as np
from simpy import Environment, Event

from simulator.batcher import Batcher, Request
from simulator.clock import LATE, At
from simulator.draws import Draws, Floats, Quantiles
from stages import catalogue
from stages.calibration import Calibration
from stages.spec import Stage, device_label

__all__ = ["Device", "open_device"]

Finished = Callable[[list[Request], float, float], None]  # (batch, started_s, finished_s)


class ServiceTimes(Protocol):
    """Where a device's times come from: one after the other, or many in advance."""

    def next_s(self, batch_size: int) -> float:
        """Seconds that the next batch takes."""
        ...

    def ahead_s(self, batch_size: int, count: int) -> Floats:
        """Seconds of the next `count` batches if all are of `batch_size`, without using them up."""
        ...


class Device:
    """Runs batches of one model, one at a time, at the pace of `times`."""

    def __init__(self, label: str, times: ServiceTimes) -> None:
        self.label = label
        self.times = times
        self._factor = 1.0
        self._held: Event | None = None

    def service_time_s(self, batch_size: int) -> float:
        """Seconds that the next batch takes; a sampled device draws anew at each call."""
        return self._factor * self.times.next_s(batch_size)

    def slow(self, factor: float) -> None:
        """From the next batch on, each takes `factor` times as long as it would by itself."""
        self._factor = factor

    def hold(self, until: Event) -> None:
        """Takes no batch, and hands none back, before `until` has fired; one under way goes on meanwhile."""
        self._held = until

    def run(
        self,
        env: Environment,
        batcher: Batcher,
        finished: Finished,
        between_batches_s: float = 0.0,
        fails: Callable[[Request], bool] | None = None,
    ) -> Generator[Event, None, None]:
        """The process that takes batch after batch, and tells `finished` of each, until the batcher is closed.

        `fails` says on which requests the model raises.
        """
        while batch := (yield from batcher.take()):
            yield from self._going_on()
            started_s = env.now
            finished_s = started_s + self._takes_s(batch, fails)
            yield At(env, finished_s)
            yield from self._going_on()
            finished_s = env.now
            finished(batch, started_s, finished_s)
            yield At(env, finished_s + between_batches_s, LATE)

    def _takes_s(self, batch: list[Request], fails: Callable[[Request], bool] | None) -> float:
        """Seconds of a batch. One that fails takes its whole time, and then each of its requests is run alone."""
        takes_s = self.service_time_s(len(batch))
        if fails is not None and len(batch) > 1 and any(fails(request) for request in batch):
            takes_s += sum(self.service_time_s(1) for _ in batch)
        return takes_s

    def _going_on(self) -> Generator[Event, None, None]:
        """Until nothing holds it up any more; at once where nothing does."""
        while self._held is not None and not self._held.processed:
            yield self._held


class FromQuantiles:
    """Service times with the quantiles of each batch size; where there is one quantile only, it is the time."""

    def __init__(self, quantiles: Mapping[int, Quantiles], draws: Draws) -> None:
        self._quantiles = quantiles
        self._fixed_s = {size: q.fixed_s for size, q in quantiles.items() if q.fixed_s is not None}
        self._draws = draws
        self._used = 0

    def next_s(self, batch_size: int) -> float:
        """Seconds that the next batch takes."""
        fixed_s = self._fixed_s.get(batch_size)
        if fixed_s is not None:
            return fixed_s
        self._used += 1
        return self._quantiles[batch_size].at(self._draws[self._used - 1])

    def ahead_s(self, batch_size: int, count: int) -> Floats:
        """Seconds of the next `count` batches if all are of `batch_size`, without using them up."""
        quantiles = self._quantiles[batch_size]
        if quantiles.fixed_s is not None:
            return np.full(count, quantiles.fixed_s)
        return quantiles.at_each(self._draws.first(self._used + count)[self._used :])


def open_device(
    stage: Stage, calibration: Calibration | None = None, *, seed: int | None = None, number: int = 0
) -> Device:
    """The device of a stage; `seed` stands in for the traffic's own, `number` is the replica's.

    Raises ValueError, in words, when nothing says how long its batches take.
    """
    seed = stage.traffic.seed if seed is None else seed
    times = FromQuantiles(service_quantiles(stage, calibration), Draws(seed, "service", number))
    return Device(device_label(stage), times)


def service_quantiles(stage: Stage, calibration: Calibration | None) -> dict[int, Quantiles]:
    """The quantiles of the device time in seconds for every batch size from 1 to the stage's largest.

    Those of the calibration where it is one of this device, an emulated one too: its thread takes a little longer than
    the profile says. Without one an emulated device keeps its profile, slowed down. Either is taken times the factor of
    the model: a calibration is of the device, whatever version runs on it. Sizes between two that were
    swept are interpolated linearly, quantile by quantile. Raises ValueError for a timed device without a
    calibration, and for sizes that lie outside its sweep.
    """
    sizes = range(1, stage.batching.max_batch_size + 1)
    device, factor = stage.device, stage.model.known.service_time_factor
    measured = calibration.times_of(device_label(stage)) if calibration else ()
    if device.kind == "emulated" and not measured:
        profile = catalogue.profiles()[str(device.profile)]
        return {size: Quantiles((factor * profile.service_time_s(size) * device.slowdown,)) for size in sizes}
    if calibration is None or not calibration.service_times:
        raise ValueError(_no_times(stage, calibration))
    swept = {times.batch_size: np.asarray(times.quantiles_s) for times in measured or calibration.service_times}
    if min(swept) > 1 or max(swept) < sizes[-1]:
        raise ValueError(
            f"batching.max_batch_size: must be within the sweep of the calibration, batches of {min(swept)} to "
            f"{max(swept)}, got {sizes[-1]}. A service time beyond that would be a guess. Lower it, or run "
            f"`rung calibrate {stage.name}` again."
        )
    return {size: Quantiles(factor * _between(swept, size)) for size in sizes}


def _between(swept: Mapping[int, Floats], size: int) -> Floats:
    """The quantiles of a size: its own, or on the straight line between those of its neighbours in the sweep."""
    if size in swept:
        return swept[size]
    low, high = max(s for s in swept if s < size), min(s for s in swept if s > size)
    share = (size - low) / (high - low)
    count = max(swept[low].size, swept[high].size)
    return (1 - share) * _resampled(swept[low], count) + share * _resampled(swept[high], count)


def _resampled(quantiles_s: Floats, count: int) -> Floats:
    return np.interp(np.linspace(0, 1, count), np.linspace(0, 1, quantiles_s.size), quantiles_s)


def _no_times(stage: Stage, calibration: Calibration | None) -> str:
    given = "no calibration" if calibration is None else f"one of {calibration.device}, which holds no service times"
    return (
        f'device.kind: "{stage.device.kind}" takes the time it takes; a prediction needs a calibration of it, '
        f"got {given}. Nothing says how long a batch would be on the device. "
        f'Run `rung calibrate {stage.name}`, or set device.kind = "emulated" with a profile.'
    )
