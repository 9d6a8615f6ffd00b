"""What is planned for: rates have the mean that was asked for, squeezed times keep their bounds, mistakes are told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.workload import SHARE, Workload, fluid_share, workload
from stages.demand import Traffic
from stages.problems import StageError
from stages.spec import mean_rate_rps
from stages.traffic import schedule


def a_trace(folder: Path, gaps_s: float = 0.1, count: int = 36_000) -> Path:
    path = folder / "trace.csv"
    lines = [f"{gaps_s * number:.3f},a,1,1,2,x" for number in range(count)]
    path.write_text("\n".join(["Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type", *lines]))
    return path


@pytest.mark.parametrize("shape", ["steady", "diurnal", "spiky"])
def test_the_mean_rate_is_the_one_that_was_asked_for(shape: str) -> None:
    work = workload(300.0, 0.1, shape)
    assert mean_rate_rps(Traffic.model_validate(work.traffic())) == pytest.approx(300.0)
    assert work.rates_rps().mean() == pytest.approx(300.0, rel=0.01)


def test_a_day_and_a_spike_are_squeezed_and_rise_as_said() -> None:
    day, spike, steady = (workload(300.0, 0.1, shape) for shape in ("diurnal", "spiky", "steady"))
    assert day.peak_rps == pytest.approx(1.8 * 300.0, rel=0.01)
    assert day.compression * day.duration_s == pytest.approx(86_400.0)
    assert spike.peak_rps == pytest.approx(4 * spike.rates_rps().min())
    assert spike.compression == pytest.approx(10.0)
    assert (steady.compression, steady.peak_rps) == (1.0, pytest.approx(300.0))
    assert "1.8 times that at noon" in day.in_words


@pytest.mark.parametrize("shape", ["steady", "diurnal", "spiky"])
def test_a_run_that_is_longer_than_life_is_not_stretched(shape: str) -> None:
    work = workload(20.0, 0.1, shape, duration_s=3600.0 if shape == "spiky" else None)
    assert work.compression >= 1.0
    assert work.autoscaler_times()["interval_s"] <= 15.0


def test_a_trace_keeps_its_rate_or_takes_another(tmp_path: Path) -> None:
    path = a_trace(tmp_path)  # an hour at 10 a second
    own, faster = workload(None, 0.1, trace=path), workload(40.0, 0.1, trace=path)
    assert own.rate_rps == pytest.approx(10.0, rel=1e-3)
    for work in (own, faster):
        assert work.compression == pytest.approx(3600.0 / work.duration_s, rel=1e-3)
        arrivals = schedule(Traffic.model_validate(work.traffic())).arrivals_s
        assert arrivals.size == pytest.approx(work.rate_rps * work.duration_s, rel=0.01)


def test_the_autoscaler_is_squeezed_but_not_beyond_what_processes_can() -> None:
    spike = workload(300.0, 0.1, "spiky").autoscaler_times()
    assert spike["interval_s"] == pytest.approx(1.5)
    assert sum(spike["cold_start"].values()) == pytest.approx(18.0)
    assert spike["down"]["stabilisation_window_s"] == pytest.approx(30.0)
    day = workload(300.0, 0.1, "diurnal").autoscaler_times()
    assert day["interval_s"] == 1.0
    assert sum(day["cold_start"].values()) == pytest.approx(2.0)


def test_items_are_all_different_unless_they_are_told() -> None:
    assert workload(10.0, 0.1).traffic()["items"] == {"popularity": "uniform", "count": 10_000_000}
    assert workload(10.0, 0.1, items=50).traffic()["items"] == {"popularity": "zipf", "count": 50, "exponent": 1.0}


rates = st.lists(st.floats(0.0, 100.0), min_size=1, max_size=30)


@given(rates, st.floats(0.1, 200.0), st.floats(0.0, 5.0), st.floats(0.01, 50.0))
def test_more_capacity_is_never_worse_for_a_fluid(
    some: list[float], capacity: float, patience: float, more: float
) -> None:
    less, most = (fluid_share(some, 1.0, each, patience) for each in (capacity, capacity + more))
    assert -1e-9 <= less <= most + 1e-9 <= 1 + 2e-9
    assert fluid_share(some, 1.0, capacity, patience + more) >= less - 1e-9
    assert fluid_share(some, 1.0, max(some) + 0.1, patience) == 1.0


def test_a_fluid_that_is_too_much_all_the_time_is_answered_as_far_as_it_goes() -> None:
    assert fluid_share(np.full(1000, 100.0), 1.0, 80.0, 0.1) == pytest.approx(0.8, abs=1e-3)


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ({"rate_rps": None}, "--rate: is required"),
        ({"rate_rps": -1.0}, "--rate: must be above 0"),
        ({"p95_s": 0.0}, "--p95: must be above 0 and at most 60 seconds, got 0"),
        ({"duration_s": 1e9}, "--duration: must be above 0"),
        ({"items": 0}, "--items: must be 1 to 10,000,000, got 0"),
        ({"zipf": 1.0}, "--zipf: belongs to --items"),
        ({"shape": "wavy"}, '--traffic: must be steady, diurnal or spiky, got "wavy"'),
        ({"shape": "spiky", "trace": Path("x.csv")}, "--traffic: must not stand beside --trace"),
        ({"trace": Path("/nowhere.csv")}, "must be a file that exists"),
        ({"rate_rps": 90_000.0, "duration_s": 600.0}, "--rate: must bring 1 to 5,000,000 requests"),
    ],
)
def test_mistakes_are_told_in_words(given_: dict[str, object], said: str) -> None:
    with pytest.raises(StageError) as error:
        workload(**{"rate_rps": 100.0, "p95_s": 0.1} | given_)  # type: ignore[arg-type]
    assert said in str(error.value)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(StageError) as error:
        workload(None, -1.0, zipf=1.0)
    assert len(error.value.problems) == 3


def test_a_workload_is_a_value() -> None:
    assert workload(10.0, 0.1) == Workload(10.0, 0.1, "steady", 600.0)
    assert hash(workload(10.0, 0.1)) == hash(Workload(10.0, 0.1, "steady", 600.0))
    assert SHARE == 0.95
