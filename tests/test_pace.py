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
from stages.traffic import schedule

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


def _fires(monkeypatch: pytest.MonkeyPatch, took_s: float, size: int, count: int = 5) -> list[Stage]:
    """Stands in for the load generator: `count` batches of `size` that take `took_s` each."""
    fired: list[Stage] = []

    def fire(stage: Stage, *_: Any, **__: Any) -> SimpleNamespace:
        fired.append(stage)
        batches = pl.DataFrame(
            [(0, n, n * 1.0, n * 1.0 + took_s, size) for n in range(count)], schema=BATCHES, orient="row"
        )
        return SimpleNamespace(records=SimpleNamespace(batches=batches))

    monkeypatch.setattr(pace, "fire", fire)
    return fired


def test_batches_that_take_longer_are_a_pace_above_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fired = _fires(monkeypatch, took_s=0.050, size=8)
    device = pace.Pace(_stage("cpu"), CALIBRATION, UP, tmp_path)
    assert device.measure() == pytest.approx(1.25)
    assert device.last == pytest.approx(1.25)
    assert device.known
    assert len(fired) == 1


def test_each_batch_is_held_against_the_time_of_its_own_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As where a gateway shares a burst of eight among two replicas. Between two of the sweep lies a straight line."""
    _fires(monkeypatch, took_s=1.25 * (0.010 + 3 / 7 * 0.030), size=4)
    assert pace.Pace(_stage("cpu"), CALIBRATION, UP, tmp_path).measure() == pytest.approx(1.25)


def test_every_replica_of_a_fleet_is_kept_busy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fired = _fires(monkeypatch, took_s=0.040, size=8)
    changes = {"fleet.replicas": 3, "device.kind": "cpu", "device.profile": None, "device.slowdown": None}
    pace.Pace(load_stage("load-balanced", changes | {"overload": True}), CALIBRATION, UP, tmp_path).measure()
    arrivals_s = schedule(fired[0].traffic).arrivals_s.tolist()
    assert arrivals_s.count(arrivals_s[0]) == 3 * 8


def test_a_pace_that_no_batch_told_is_not_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow = CALIBRATION.model_copy(
        update={
            "service_times": (
                ServiceTimes(batch_size=1, quantiles_s=(10.0,)),
                ServiceTimes(batch_size=8, quantiles_s=(40.0,)),
            )
        }
    )
    fired = _fires(monkeypatch, took_s=50.0, size=8)
    device = pace.Pace(_stage("cpu"), slow, UP, tmp_path)
    assert device.measure() == pytest.approx(1.25), "one burst at least, of the slowest model"
    assert schedule(fired[0].traffic).arrivals_s.size == 8
    _fires(monkeypatch, took_s=50.0, size=8, count=0)
    assert device.measure() == pytest.approx(1.25)
    assert not device.known


def test_an_emulated_device_keeps_its_pace_unasked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fired = _fires(monkeypatch, took_s=0.050, size=8)
    assert pace.Pace(_stage("emulated"), CALIBRATION, UP, tmp_path).measure() == 1.0
    assert not fired


def test_a_calibration_at_another_pace_has_longer_batches_and_the_same_host() -> None:
    slower = CALIBRATION.at_pace(1.25)
    assert slower.service_time_s(8) == pytest.approx(0.050)
    assert slower.service_time_s(1) == pytest.approx(0.0125)
    assert slower.host == CALIBRATION.host
