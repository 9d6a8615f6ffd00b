"""What an emulated device carries, with the arithmetic. A timed device says so only when it is measured."""

from __future__ import annotations

from dataclasses import dataclass

from stages import catalogue
from stages.spec import Batching, Device, capacity_rps


@dataclass(frozen=True)
class Capacity:
    """The most requests per second that a device serves, in batches of `batch_size` of `service_time_s` each."""

    rps: float
    batch_size: int
    service_time_s: float
    device: str

    def __str__(self) -> str:
        batches = "one request at a time" if self.batch_size == 1 else f"batches of {self.batch_size}"
        return (
            f"{self.rps:.1f} requests per second ({self.device}, {batches}: "
            f"{self.batch_size} / {self.service_time_s:.6f} s)"
        )


def emulated_capacity(device: Device, batching: Batching) -> Capacity | None:
    """The capacity of an emulated device; None for a timed device, and where the profile does not reach so far."""
    profile = catalogue.profiles().get(device.profile or "")
    if device.kind != "emulated" or profile is None or batching.max_batch_size > profile.max_batch_size:
        return None
    sizes = range(1, batching.max_batch_size + 1)
    best = max(sizes, key=lambda n: n / profile.service_time_s(n))
    slower = f" at slowdown {device.slowdown:g}" if device.slowdown != 1 else ""
    return Capacity(
        rps=capacity_rps(profile.service_time_s, batching.max_batch_size) / device.slowdown,
        batch_size=best,
        service_time_s=profile.service_time_s(best) * device.slowdown,
        device=f"{profile.name}{slower}",
    )
