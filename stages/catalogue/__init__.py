"""The device catalogue: service time against batch size, measured by others, with a source in every row."""

from __future__ import annotations

import csv
from bisect import bisect_left
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Profile:
    """One device running one model at one precision: how long a batch takes.

    `batch_sizes` rise strictly; `service_times_s[i]` is the time in seconds of a batch of `batch_sizes[i]`.
    """

    name: str
    device: str
    model: str
    precision: str
    framework: str
    source: str
    batch_sizes: tuple[int, ...]
    service_times_s: tuple[float, ...]

    @property
    def max_batch_size(self) -> int:
        return self.batch_sizes[-1]

    def service_time_s(self, batch_size: int) -> float:
        """Seconds for a batch, interpolated linearly between the measured sizes.

        Linear interpolation of the table beats a straight line a + b*n: ResNet-50 in fp16 is bound by kernel
        launches at small batches. Raises ValueError outside the measured sizes: nothing is extrapolated.
        """
        sizes, times = self.batch_sizes, self.service_times_s
        if not sizes[0] <= batch_size <= sizes[-1]:
            raise ValueError(
                f"{self.name} was measured for batches of {sizes[0]} to {sizes[-1]}, not {batch_size}: "
                "a service time beyond that would be a guess. Lower max_batch_size or pick another profile."
            )
        above = bisect_left(sizes, batch_size)
        if sizes[above] == batch_size:
            return times[above]
        share = (batch_size - sizes[above - 1]) / (sizes[above] - sizes[above - 1])
        return times[above - 1] + share * (times[above] - times[above - 1])


@cache
def profiles() -> dict[str, Profile]:
    """Every profile of the catalogue by name, in the order of the file."""
    rows: dict[str, list[dict[str, str]]] = {}
    with (Path(__file__).parent / "devices.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            rows.setdefault(row["profile"], []).append(row)
    return {name: _profile(name, group) for name, group in rows.items()}


def _profile(name: str, rows: list[dict[str, str]]) -> Profile:
    rows = sorted(rows, key=lambda row: int(row["batch_size"]))
    first = rows[0]
    return Profile(
        name=name,
        device=first["device"],
        model=first["model"],
        precision=first["precision"],
        framework=first["framework"],
        source=first["source"],
        batch_sizes=tuple(int(row["batch_size"]) for row in rows),
        service_times_s=tuple(float(row["service_time_s"]) for row in rows),
    )
