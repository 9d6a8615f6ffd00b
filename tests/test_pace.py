"""The pace of a timed device: reference batches against the calibration, and predictions that follow it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from loadtests import pace
from stages.calibration import Calibration, ServiceTimes
from stages.records import BATCHES
from stages.spec import Stage, load_stage

CALIBRATION = Calibration(
    stage="micro-batched",
    machine="one",
    device="cpu",
    model="digits",
    made_at="",
    command="",
    low_load_rate_rps=1.0,
    service_times=(
        ServiceTimes(batch_size=1, quantiles_s=(0.010,)),
        ServiceTimes(batch_size=8, quantiles_s=(0.040,)),
    ),
)

UP: Any = SimpleNamespace(url="http://127.0.0.1:1", pids=())


def _stage(kind: str) -> Stage:
    given: dict[str, Any] = {"device.kind": kind}
    if kind != "emulated":
        given |= {"device.profile": None, "device.slowdown": None}
    return load_stage("micro-batched", given)


def _fires(monkeypatch: pytest.MonkeyPatch, took_s: float, size: int) -> list[Stage]:
    """Stands in for the load generator: every batch is of `size` and takes `took_s`."""
    fired: list[Stage] = []

    def fire(stage: Stage, *_: Any, **__: Any) -> SimpleNamespace:
        fired.append(stage)
        batches = pl.DataFrame(
            [(0, n, n * 1.0, n * 1.0 + took_s, size) for n in range(5)], schema=BATCHES, orient="row"
        )
        return SimpleNamespace(records=SimpleNamespace(batches=batches))

    monkeypatch.setattr(pace, "fire", fire)
    return fired


def test_batches_that_take_longer_are_a_pace_above_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fired = _fires(monkeypatch, took_s=0.050, size=8)
    device = pace.Pace(_stage("cpu"), CALIBRATION, UP, tmp_path)
    assert device.measure() == pytest.approx(1.25)
    assert device.last == pytest.approx(1.25)
    assert len(fired) == 1


def test_batches_of_another_size_say_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _fires(monkeypatch, took_s=0.050, size=7)
    assert pace.Pace(_stage("cpu"), CALIBRATION, UP, tmp_path).measure() == 1.0


def test_an_emulated_device_keeps_its_pace_unasked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fired = _fires(monkeypatch, took_s=0.050, size=8)
    assert pace.Pace(_stage("emulated"), CALIBRATION, UP, tmp_path).measure() == 1.0
    assert not fired


def test_a_calibration_at_another_pace_has_longer_batches_and_the_same_host() -> None:
    slower = CALIBRATION.at_pace(1.25)
    assert slower.service_time_s(8) == pytest.approx(0.050)
    assert slower.service_time_s(1) == pytest.approx(0.0125)
    assert slower.host == CALIBRATION.host
