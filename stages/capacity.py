"""What emulated devices carry, with the arithmetic. A timed device says so only when it is measured."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from stages import catalogue
from stages.fleet import Fleet
from stages.scaling import Scaling
from stages.spec import Batching, Device, capacity_rps, device_of_replica


@dataclass(frozen=True)
class Capacity:
    """The most requests per second that a device serves, in batches of `batch_size` of `service_time_s` each."""

    rps: float
    batch_size: int
    service_time_s: float
    device: str

    def __str__(self) -> str:
        return f"{self.rps:.1f} requests per second ({self.arithmetic})"

    @property
    def arithmetic(self) -> str:
        """Where the figure comes from."""
        batches = "one request at a time" if self.batch_size == 1 else f"batches of {self.batch_size}"
        return f"{self.device}, {batches}: {self.batch_size} / {self.service_time_s:.6f} s"


@dataclass(frozen=True)
class FleetCapacity:
    """The most requests per second that all replicas serve together, if each is sent what it can do."""

    parts: tuple[tuple[int, Capacity], ...]  # how many replicas of each capacity, in the order of their first

    @property
    def replicas(self) -> int:
        """How many there are."""
        return sum(replicas for replicas, _ in self.parts)

    @property
    def rps(self) -> float:
        """The sum over the replicas, in requests per second."""
        return sum(replicas * each.rps for replicas, each in self.parts)

    def __str__(self) -> str:
        if self.replicas == 1:
            return str(self.parts[0][1])
        parts = (f"{replicas} x {each.rps:.1f}: {each.arithmetic}" for replicas, each in self.parts)
        return f"{self.rps:.1f} requests per second ({'; '.join(parts)})"


def emulated_capacity(device: Device, batching: Batching, factor: float = 1.0) -> Capacity | None:
    """The capacity of an emulated device on which every batch of the model takes `factor` times the device's time.

    None for a timed device, and where the profile does not reach so far.
    """
    profile = catalogue.profiles().get(device.profile or "")
    if device.kind != "emulated" or profile is None or batching.max_batch_size > profile.max_batch_size:
        return None
    sizes = range(1, batching.max_batch_size + 1)
    best = max(sizes, key=lambda n: n / profile.service_time_s(n))
    slower = f" at slowdown {device.slowdown:g}" if device.slowdown != 1 else ""
    if factor != 1:
        slower += f", a model {factor:g} times slower"
    return Capacity(
        rps=capacity_rps(profile.service_time_s, batching.max_batch_size) / (device.slowdown * factor),
        batch_size=best,
        service_time_s=profile.service_time_s(best) * device.slowdown * factor,
        device=f"{profile.name}{slower}",
    )


def fleet_capacity(device: Device, batching: Batching, fleet: Fleet, factor: float = 1.0) -> FleetCapacity | None:
    """The capacity of all replicas of an emulated device; None where that of one of them is not known.

    `factor` is that of `emulated_capacity`.
    """
    counts = Counter(device_of_replica(device, fleet, number) for number in range(fleet.replicas))
    parts = []
    for each, replicas in counts.items():
        capacity = emulated_capacity(each, batching, factor)
        if capacity is None:
            return None
        parts.append((replicas, capacity))
    return FleetCapacity(tuple(parts))


def largest(fleet: Fleet, scaling: Scaling | None) -> Fleet:
    """The fleet with as many replicas as it may come to have."""
    most = fleet.replicas if scaling is None else max(fleet.replicas, scaling.max_replicas)
    return fleet.model_copy(update={"replicas": most})
