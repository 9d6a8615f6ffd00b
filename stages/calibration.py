"""What one machine was found to cost: device time by batch size, and the host's time around it.

Written by `rung calibrate` from a batch sweep and one run at low load; read by the simulator. It holds no queue
wait of any run, and nothing of the runs that predictions are judged on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

# What stands before replicas: of a stage with a queue its jobs API, whose "replicas" are workers.
Door = Literal["gateway", "jobs API"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ServiceTimes(_Part):
    """Device time of batches of one size: n quantiles of the sample, at (i + ½) / n for i from 0."""

    batch_size: int = Field(ge=1)
    quantiles_s: tuple[float, ...] = Field(min_length=1)

    @property
    def mean_s(self) -> float:
        """The mean of the sample, as its quantiles give it (trapezoid between neighbours)."""
        q = self.quantiles_s
        if len(q) == 1:
            return q[0]
        return (sum(q) - (q[0] + q[-1]) / 2) / (len(q) - 1)


class HostCosts(_Part):
    """Seconds that the host takes around the device.

    A request: scheduled ─ send ─▶ in the queue … on the device … finished ─ reply ─▶ last byte at the client.
    """

    send_quantiles_s: tuple[float, ...] = Field((0.0,), min_length=1)  # scheduled → in the replica's queue
    wake_s: float = 0.0  # an idle device is told of work → its batch starts
    between_batches_s: float = 0.0  # a batch ends → the next starts, when work waits
    reply_quantiles_s: tuple[float, ...] = Field((0.0,), min_length=1)  # batch ends → first of its answers is back
    reply_per_item_s: float = 0.0  # each further answer of the same batch


class GatewayCosts(_Part):
    """Seconds that the host takes where a gateway, or a jobs API, stands between client and replica, at low load.

    scheduled ─ send ─▶ gateway ─ forward ─▶ in the queue … finished ─ back ─▶ gateway ─ reply ─▶ client
                       gateway ─ hit reply ─▶ client                           what its cache has kept
    """

    send_quantiles_s: tuple[float, ...] = Field((0.0,), min_length=1)  # scheduled → read by the gateway
    forward_quantiles_s: tuple[float, ...] = Field((0.0,), min_length=1)  # read by the gateway → in the queue
    back_quantiles_s: tuple[float, ...] = Field((0.0,), min_length=1)  # batch ends → first answer is at the gateway
    reply_quantiles_s: tuple[float, ...] = Field((0.0,), min_length=1)  # at the gateway → last byte at the client
    busy_s: float = 0.0  # of its event loop for one request, there and back: requests queue for it
    of: Door = "gateway"  # whose they are
    low_load_rate_rps: float | None = None  # at which they were measured
    # Of a kept answer, where there is a cache; None and empty: not measured.
    hit_busy_s: float | None = None  # of its event loop, all of it
    hit_reply_quantiles_s: tuple[float, ...] = ()  # read by the gateway → last byte at the client


class Calibration(_Part):
    """One machine, one model, one device. Without `service_times` an emulated device takes those of its profile."""

    stage: str
    machine: str
    device: str
    model: str
    made_at: str
    command: str
    low_load_rate_rps: float  # of the run on one replica by itself
    service_times: tuple[ServiceTimes, ...] = ()
    other_devices: dict[str, tuple[ServiceTimes, ...]] = {}  # of unequal replicas, by the device's label
    host: HostCosts = HostCosts()
    gateway: GatewayCosts | None = None  # of a stage that has one
    caveats: tuple[str, ...] = ()  # why it may be off: the machine was busy with something else, say

    def times_of(self, device: str) -> tuple[ServiceTimes, ...]:
        """The service times of the device with that label; empty where none were measured."""
        return self.service_times if device == self.device else self.other_devices.get(device, ())

    def at_pace(self, pace: float) -> Calibration:
        """The same with every batch taking `pace` times as long on the device."""
        slower = [
            times.model_copy(update={"quantiles_s": tuple(pace * q for q in times.quantiles_s)})
            for times in self.service_times
        ]
        return self.model_copy(update={"service_times": tuple(slower)})

    def service_time_s(self, batch_size: int) -> float:
        """Mean device time of a batch in seconds. Raises ValueError for a size that was not swept."""
        for times in self.service_times:
            if times.batch_size == batch_size:
                return times.mean_s
        raise ValueError(
            f"batches of {batch_size} were not in the sweep of this calibration "
            f"({', '.join(str(t.batch_size) for t in self.service_times) or 'none'}): run `rung calibrate` again."
        )


def read(path: Path) -> Calibration:
    """Reads a calibration; raises pydantic's ValidationError when the file is not one."""
    return Calibration.model_validate_json(path.read_text(encoding="utf-8"))


def write(calibration: Calibration, path: Path) -> None:
    """Writes a calibration as JSON that a person can read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(calibration.model_dump_json(indent=2) + "\n", encoding="utf-8")
