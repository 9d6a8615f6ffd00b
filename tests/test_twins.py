"""The twins decide alike: the same arrivals give the same batches in the running stack's code and in the simulator's.

                ┌─▶ reference_apps.batcher on a fake clock ─▶ batches, who is shed, who expires and when ─┐
    arrivals ───┤                                                                                         ├─ equal
                └─▶ simulator, host and network free ───────▶ batches, who is shed, who expires and when ─┘

Exactly, to the last bit: times are multiples of 1/64 s. That twins have the same names is in test_imports.py.
"""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given, settings

from reference_apps import device as running_device
from reference_apps.models import load_model
from simulator import ahead
from simulator import device as simulated_device
from simulator.host import Host
from simulator.outcomes import ReplicaLog
from simulator.run import Serve, serve_by_event
from stages.calibration import HostCosts
from stages.spec import load_stage, stage_files
from tests.fake_clock import Replayed, replay
from tests.made import Run, random_runs


def as_replayed(log: ReplicaLog) -> Replayed:
    served = iter(log.served.tolist())
    members = [tuple(islice(served, size)) for size in log.sizes.tolist()]
    return Replayed(
        list(zip(log.started_s.tolist(), members, strict=True)),
        log.finished_s.tolist(),
        log.shed.tolist(),
        list(zip(log.expired.tolist(), log.expired_s.tolist(), strict=True)),
    )


@pytest.mark.parametrize("serve", [ahead.serve, serve_by_event], ids=["ahead", "by event"])
@settings(max_examples=300, deadline=None)
@given(run=random_runs())
def test_both_batchers_make_the_same_batches(run: Run, serve: Serve) -> None:
    stage, schedule, calibration = run
    device = simulated_device.open_device(stage, calibration)
    predicted = as_replayed(serve(stage, schedule.arrivals_s, device, Host(HostCosts(), seed=1)))
    arrivals_s = schedule.arrivals_s.tolist()
    assert replay(stage.batching, stage.admission, arrivals_s, calibration.service_time_s) == predicted


@pytest.mark.parametrize("name", stage_files())
@pytest.mark.parametrize("slowdown", [1.0, 8.0])
def test_both_devices_are_called_the_same_and_take_the_same_time(name: str, slowdown: float) -> None:
    stage = load_stage(name, {"device.slowdown": slowdown, "overload": True})
    running = running_device.open_device(stage, load_model(stage.model, "cpu"))
    simulated = simulated_device.open_device(stage)
    assert running.label == simulated.label
    for batch_size in range(1, stage.batching.max_batch_size + 1):
        assert running.service_time_s is not None
        assert running.service_time_s(batch_size) == simulated.service_time_s(batch_size)
