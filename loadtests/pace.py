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
from stages.arms import arm_of, model_of
from stages.calibration import Calibration
from stages.spec import Stage, device_label, with_overrides

REFERENCE_S = 3.0


class Pace:
    """The pace of the devices of a stage that is up, measured when asked; 1 is that of the calibration."""

    def __init__(self, stage: Stage, calibration: Calibration, launcher: Launcher, folder: Path) -> None:
        self._stage, self._calibration = stage, calibration
        self._launcher, self._folder = launcher, folder
        self._count = 0
        self.last = 1.0

    def measure(self) -> float:
        """Runs reference batches of the largest size for `REFERENCE_S` seconds; above 1: slower than calibrated."""
        if self._stage.device.kind == "emulated":
            return self.last
        size = self._stage.batching.max_batch_size
        # The calibration is of the device; the version that runs on it may be slower by a factor of its own.
        calibrated_s = (
            self._calibration.service_time_s(size) * model_of(self._stage, "champion").known.service_time_factor
        )
        step_s = burst_s(size, size, lambda _: calibrated_s)
        arrivals_s = [burst * step_s for burst in range(int(REFERENCE_S / step_s)) for _ in range(size)]
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
        took_s = there.filter(pl.col("batch_size") == size).select(pl.col("finished_s") - pl.col("started_s"))
        if took_s.height:
            self.last = float(took_s.to_series().to_numpy().mean()) / calibrated_s
        return self.last
