"""The real devices: the model's own answers, never sooner than the pace; how exact the pace is, is in benchmarks/."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from reference_apps.device import Device, open_device
from reference_apps.models import Model, load_model
from stages import catalogue
from stages.spec import Stage, device_label, load_stage

EMULATED = "t4-resnet50-fp16-pytorch"


class Echo:
    """A model that answers with the sums of its inputs, after `takes_s` seconds."""

    def __init__(self, takes_s: float = 0.0) -> None:
        self.takes_s = takes_s
        self.batches: list[np.ndarray] = []

    def predict(self, inputs: np.ndarray) -> list[dict[str, Any]]:
        self.batches.append(inputs)
        time.sleep(self.takes_s)
        return [{"sum": float(x.sum())} for x in inputs]


@pytest.fixture(scope="module")
def digits() -> Model:
    return load_model(load_stage("micro-batched").model, "cpu")


def stage_on(kind: str, **keys: object) -> Stage:
    changes = {"device.kind": kind, "device.profile": None, "overload": True}
    return load_stage("micro-batched", changes | {f"device.{key}": value for key, value in keys.items()})


@pytest.mark.parametrize("stage", [stage_on("cpu"), stage_on("emulated", profile=EMULATED)], ids=device_label)
def test_the_answers_are_the_models_own(stage: Stage, digits: Model) -> None:
    inputs = digits.examples(5, seed=3)
    assert open_device(stage, digits).run(list(inputs)) == digits.predict(inputs)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_an_emulated_batch_is_never_done_sooner_than_its_profile_says(batch_size: int) -> None:
    stage = stage_on("emulated", profile=EMULATED, slowdown=1.5)
    device = open_device(stage, Echo())
    pace_s = 1.5 * catalogue.profiles()[EMULATED].service_time_s(batch_size)
    for _ in range(5):
        started_s = time.monotonic()
        device.run([np.ones(2, np.float32)] * batch_size)
        assert time.monotonic() - started_s >= pace_s


class Clock:
    """A clock that stands still but for who sleeps, and for ten microseconds a look at it."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        self.now_s += 1e-5
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.mark.parametrize(("takes_s", "overruns"), [(0.0, 0), (0.07, 0), (0.08, 1)])
def test_a_batch_is_late_when_the_model_ends_after_the_pace(
    takes_s: float, overruns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("reference_apps.device.time", clock)
    model = Echo()
    monkeypatch.setattr(model, "predict", lambda inputs: clock.sleep(takes_s))
    device = Device("emulated", model, lambda _: 0.1)
    device.run([np.ones(2, np.float32)])  # the model begins after a quarter of the pace
    assert device.overruns == overruns
    assert clock.now_s == pytest.approx(max(0.1, 0.025 + takes_s), abs=1e-3)


def test_a_model_that_is_slower_than_the_pace_is_counted_and_not_cut_short() -> None:
    device = Device("emulated", Echo(takes_s=0.01), lambda _: 0.001)
    for runs in (1, 2, 3):
        started_s = time.monotonic()
        assert device.run([np.ones(2, np.float32)]) == [{"sum": 2.0}]
        assert time.monotonic() - started_s >= 0.01
        assert device.overruns == runs


def test_a_batch_reaches_the_model_in_one_piece_and_in_order() -> None:
    model = Echo()
    inputs = [np.full((1, 8, 8), n, np.float32) for n in range(4)]
    assert Device("cpu", model, None).run(inputs) == [{"sum": 64.0 * n} for n in range(4)]
    (batch,) = model.batches
    assert batch.shape == (4, 1, 8, 8)
    assert batch.dtype == np.float32


def test_what_a_model_raises_comes_through() -> None:
    class Broken:
        def predict(self, inputs: np.ndarray) -> list[dict[str, Any]]:
            raise RuntimeError("no such layer")

    device = Device("emulated", Broken(), lambda _: 0.05)
    with pytest.raises(RuntimeError, match="no such layer"):
        device.run([np.ones(2, np.float32)])


def test_a_batch_beyond_the_profile_is_refused() -> None:
    stage = stage_on("emulated", profile=EMULATED)
    last = catalogue.profiles()[EMULATED].max_batch_size
    with pytest.raises(ValueError, match=f"measured for batches of 1 to {last}, not {last + 1}"):
        open_device(stage, Echo()).run([np.ones(2, np.float32)] * (last + 1))


@pytest.mark.parametrize(
    ("stage", "label"),
    [
        (stage_on("cpu"), "cpu"),
        (stage_on("cuda"), "cuda"),
        (stage_on("emulated", profile=EMULATED), f"emulated {EMULATED}"),
        (stage_on("emulated", profile=EMULATED, slowdown=2.5), f"emulated {EMULATED}, 2.5 times slower"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_emulated_device_is_always_called_so(stage: Stage, label: str) -> None:
    assert device_label(stage) == open_device(stage, Echo()).label == label
