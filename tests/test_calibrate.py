"""Calibration gives back what a run was made of: known costs in, simulated runs, the same costs out."""

from __future__ import annotations

import numpy as np
import pytest

from loadtests import calibrate
from simulator.device import open_device
from simulator.run import simulate
from stages import catalogue
from stages.calibration import Calibration
from stages.records import Records
from stages.spec import device_label, load_stage
from stages.traffic import Schedule
from tests.made import a_calibration, a_stage

SERVICE_S = {n: (0.010 + 0.001 * n,) for n in range(1, 5)}
SEND_S, WAKE_S, BETWEEN_S, REPLY_S, PER_ITEM_S = 0.0004, 0.00007, 0.00009, 0.0006, 0.0002
KNOWN = a_calibration(
    SERVICE_S,
    send_quantiles_s=(SEND_S,),
    wake_s=WAKE_S,
    between_batches_s=BETWEEN_S,
    reply_quantiles_s=(REPLY_S,),
    reply_per_item_s=PER_ITEM_S,
)
STAGE = a_stage(batching={"max_batch_size": 4, "batch_wait_timeout_s": 0.005}, admission={"max_queue_length": 64})


def fired(arrivals_s: list[float], wait_s: float) -> Records:
    """The record of these arrivals on a machine of the known costs."""
    stage = a_stage(batching={"max_batch_size": 4, "batch_wait_timeout_s": wait_s}, admission={"max_queue_length": 64})
    times_s = np.array(arrivals_s)
    return simulate(
        stage, Schedule(times_s, np.zeros(times_s.size, dtype=np.int64), times_s[-1] + 1), calibration=KNOWN
    )


@pytest.fixture(scope="module")
def sweep() -> Records:
    """Bursts of 1 to 4, and of 8, which are two batches one after the other."""
    sizes = [1, 2, 3, 4, 8] * 6
    return fired([0.2 * k for k, size in enumerate(sizes) for _ in range(size)], calibrate.GATHER_S)


@pytest.fixture(scope="module")
def low_load() -> Records:
    gaps_s = np.random.default_rng(5).exponential(0.05, 400)
    return fired(np.cumsum(gaps_s).tolist(), STAGE.batching.batch_wait_timeout_s)


def test_service_times_are_those_of_the_sweep(sweep: Records) -> None:
    found = {times.batch_size: times.mean_s for times in calibrate.service_times(sweep)}
    assert found == pytest.approx({n: q[0] for n, q in SERVICE_S.items()}, abs=1e-7)


def test_a_size_seen_too_rarely_is_left_out() -> None:
    rare = fired([0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.2], calibrate.GATHER_S)
    assert [times.batch_size for times in calibrate.service_times(rare)] == [1]


def test_host_costs_are_found(sweep: Records, low_load: Records) -> None:
    costs = calibrate.host_costs(STAGE, sweep, low_load)
    assert costs.send_quantiles_s == pytest.approx([SEND_S] * calibrate.QUANTILES, abs=1e-6)
    assert costs.reply_quantiles_s == pytest.approx([REPLY_S] * calibrate.QUANTILES, abs=1e-6)
    assert costs.wake_s == pytest.approx(WAKE_S, abs=1e-6)
    assert costs.between_batches_s == pytest.approx(BETWEEN_S, abs=1e-6)
    assert costs.reply_per_item_s == pytest.approx(PER_ITEM_S, abs=1e-6)


def test_a_prediction_from_the_found_costs_is_the_run(sweep: Records, low_load: Records) -> None:
    """The circle closes: calibrate on one run, predict another, and find it request by request."""
    found = Calibration(
        **(
            KNOWN.model_dump()
            | {
                "service_times": calibrate.service_times(sweep),
                "host": calibrate.host_costs(STAGE, sweep, low_load),
            }
        )
    )
    times_s = np.cumsum(np.random.default_rng(7).exponential(1 / 200, 2000))
    schedule = Schedule(times_s, np.zeros(times_s.size, dtype=np.int64), float(times_s[-1]) + 1)
    truth = simulate(STAGE, schedule, calibration=KNOWN).requests
    predicted = simulate(STAGE, schedule, calibration=found).requests
    assert np.abs((truth["replied_s"] - predicted["replied_s"]).to_numpy()).max() < 1e-4


@pytest.mark.parametrize(
    ("largest", "sizes"), [(1, [1]), (3, [1, 2, 3]), (8, list(range(1, 9))), (32, [*range(1, 9), 12, 18, 27, 32])]
)
def test_sweep_sizes(largest: int, sizes: list[int]) -> None:
    assert calibrate.sweep_sizes(largest) == sizes


def test_kept_under_what_it_depends_on(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("RUNG_RUNS", str(tmp_path))
    path = calibrate.kept_path(STAGE, short=False)
    larger = a_stage(batching={"max_batch_size": 8, "batch_wait_timeout_s": 0.005})
    busier = STAGE.model_copy(update={"traffic": STAGE.traffic.model_copy(update={"seed": 99})})
    assert calibrate.kept_path(busier, short=False) == path
    assert calibrate.kept_path(STAGE, short=True) != path
    assert calibrate.kept_path(larger, short=False) != path


def test_an_emulated_device_takes_the_times_of_its_own_sweep_only() -> None:
    stage = load_stage("single-vm")
    profile_s = catalogue.profiles()[str(stage.device.profile)].service_time_s(1)
    own = KNOWN.model_copy(update={"device": device_label(stage)})
    assert open_device(stage, own).service_time_s(1) == SERVICE_S[1][0]
    assert open_device(stage, KNOWN).service_time_s(1) == profile_s
    assert open_device(stage).service_time_s(1) == profile_s
