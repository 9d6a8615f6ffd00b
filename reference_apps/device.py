"""The device that runs a model's batches, one at a time: `cpu` and `cuda` as they are, `emulated` at a profile's pace.

Twin: simulator/device.py. An emulated device does not model memory, clocks that drop with heat, or jitter: its
profile holds means.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from stages import catalogue
from stages.spec import Stage, device_label

__all__ = ["Device", "open_device"]

# A sleep ends 0.05 to 0.15 ms late on Linux; the rest of an emulated batch is spun away.
SPIN_S = 0.0002
# A GPU computes beside the host. The emulated batch's real computation takes the host's processor, and so it waits
# for this share of the batch's time, in which the answers of the batch before are on their way.
QUIET_SHARE = 0.25


class Predicts(Protocol):
    """What a device needs of a model: a float32 batch (n, *input_shape) in, n answers out."""

    def predict(self, inputs: np.ndarray) -> list[dict[str, Any]]: ...


class Device:
    """Runs batches of one model. `service_time_s` is the pace of an emulated device, None for a real one.

    Every batch of a real device takes `model_factor` times as long as it computes; a pace has that in it.
    """

    def __init__(
        self, label: str, model: Predicts, service_time_s: Callable[[int], float] | None, model_factor: float = 1.0
    ) -> None:
        self.label = label
        self.overruns = 0  # emulated batches whose real answer took longer than the pace allowed
        self._model = model
        self.service_time_s = service_time_s
        self._model_factor = model_factor
        self._factor = 1.0

    def slow(self, factor: float) -> None:
        """From the next batch on, each takes `factor` times as long as it would by itself."""
        self._factor = factor

    def run(self, inputs: list[np.ndarray]) -> list[dict[str, Any]]:
        """Gives the model's answers to a batch, after the time that the device takes for it.

        Raises whatever the model raises, and no sooner: work that fails has been done all the same.
        """
        started_s, factor = time.monotonic(), self._factor
        if self.service_time_s is None:
            factor *= self._model_factor
            try:
                return self._model.predict(np.stack(inputs))
            finally:
                if factor > 1.0:
                    time.sleep((factor - 1.0) * (time.monotonic() - started_s))
        pace_s = factor * self.service_time_s(len(inputs))
        time.sleep(QUIET_SHARE * pace_s)
        try:
            return self._model.predict(np.stack(inputs))
        finally:
            if time.monotonic() > started_s + pace_s:
                self.overruns += 1
            _wait_until(started_s + pace_s)


def open_device(stage: Stage, model: Predicts) -> Device:
    """The device of a stage, ready to run `model`, which is already loaded onto it."""
    device, factor = stage.device, stage.model.known.service_time_factor
    if device.kind != "emulated":
        return Device(device_label(stage), model, None, factor)
    profile = catalogue.profiles()[str(device.profile)]
    return Device(device_label(stage), model, lambda n: factor * profile.service_time_s(n) * device.slowdown)


def _wait_until(ends_s: float) -> None:
    remaining_s = ends_s - time.monotonic()
    if remaining_s > SPIN_S:
        time.sleep(remaining_s - SPIN_S)
    while time.monotonic() < ends_s:
        pass
