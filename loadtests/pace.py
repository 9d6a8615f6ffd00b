"""How fast is a timed device now, against the hour of its calibration? Reference batches before and after each run.

    reference batches ─▶ real run ─▶ reference batches          pace = their device time / that of the calibration

A virtual machine's pace wanders by a tenth within minutes: neighbours share its caches and its clock. A prediction
for a run is made at the mean of the paces around it. The run itself is not looked at. An emulated device keeps its
pace, and is not asked.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from loadtests.calibrate import ALL_DIFFERENT, burst_s, traced
from loadtests.load import fire
from reference_apps.launchers.launcher import Launcher
from simulator.device import service_quantiles
from stages.arms import arm_of, replicas_of
from stages.calibration import Calibration
from stages.spec import Stage, device_label, of_replica, with_overrides

REFERENCE_S = 3.0


class Pace:
    """The pace of the devices of a stage that is up, measured when asked; 1 is that of the calibration."""

    def __init__(self, stage: Stage, calibration: Calibration, launcher: Launcher, folder: Path) -> None:
        self._stage, self._calibration = stage, calibration
        self._launcher, self._folder = launcher, folder
        self._count = 0
        self.last = 1.0
        self.known = True  # unless no reference batch came back the last time

    def measure(self) -> float:
        """Keeps every replica in reference batches for `REFERENCE_S` seconds; above 1: slower than calibrated.

        A gateway shares a burst as it likes, so that each batch is held against the calibrated time of its own size.
        Where none came back the pace is taken to be what it was, and is not `known`.
        """
        if self._stage.device.kind == "emulated":
            return self.last
        size = self._stage.batching.max_batch_size
        # The calibration is of the device; the version that runs on it may be slower by a factor of its own.
        times = service_quantiles(of_replica(self._stage, 0), self._calibration)
        calibrated_s = {each: quantiles.mean_s for each, quantiles in times.items()}
        step_s = burst_s(size, size, calibrated_s.__getitem__)
        count = max(1, int(REFERENCE_S / step_s))
        arrivals_s = [burst * step_s for burst in range(count) for _ in range(size * replicas_of(self._stage))]
        folder = self._folder / f"reference-{self._count}"
        folder.mkdir(parents=True, exist_ok=True)
        self._count += 1
        bursts = traced(self._stage, arrivals_s, REFERENCE_S + 0.2, folder / "bursts.csv")
        if bursts.cache is not None:  # reference batches are to be computed
            self._launcher.empty_cache()
            bursts = with_overrides(bursts, ALL_DIFFERENT)
        found = fire(
            bursts, self._launcher.url, folder, device=device_label(self._stage), pids=self._launcher.pids
        ).records
        # A challenger may be slower for a reason of its own.
        own = [number for number in found.batches["replica"].unique() if arm_of(self._stage, number) != "challenger"]
        there = found.batches.filter(pl.col("replica").is_in(own))
        self.known = there.height > 0
        if self.known:
            took_s = float((there["finished_s"] - there["started_s"]).sum())
            self.last = took_s / sum(calibrated_s[each] for each in there["batch_size"])
        return self.last
