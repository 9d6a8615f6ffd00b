"""Traces: each public format gives the arrival times that its lines name, and scaling does what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages import traces
from stages.catalogue import example_trace
from stages.demand import TraceRate, Traffic
from stages.problems import StageError
from stages.traffic import schedule

AZURE_LLM = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:46.6805900,374,44

2023-11-16 18:15:51.2224671,879,55
"""
AZURE_LLM_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:00.017335+00:00,2399,6
2024-05-10 02:00:01.009930+02:00,76,8
"""
AZURE_FUNCTIONS = """app,func,end_timestamp,duration
a,f,7.5,0.25
b,g,3.25,1.0
a,f,4.5,2.0
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,230,1317,Conversation log
118,GPT-4,417,276,693,Conversation log
"""
COUNTS = """timestamp,value
2014-04-10 00:04:00,94.0
2014-04-10 00:14:00,187.0
2014-04-10 00:09:00,56.0
2014-04-10 00:24:00,30.0
2014-04-10 00:24:00,15.0
"""

# Trace → requests, length in seconds. Public traces are read where they lie beside the project's own folder.
PUBLIC = Path(__file__).resolve().parents[2] / "shared/data/traces"
FACTS = {
    example_trace.PATH: (5692, 86_400.0),
    PUBLIC / "azure_llm_conversation_2023.csv": (19_366, 3_501.721937),
    PUBLIC / "nab_elb_request_count_2014.csv": (249_327, 1_212_000.0),
}


def write(folder: Path, text: str) -> str:
    path = folder / "trace.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


def times_s(folder: Path, text: str, format: str = "auto") -> np.ndarray:
    trace = traces.read(write(folder, text), format)
    assert isinstance(trace, traces.Times)
    return trace.times_s


def replayed(path: str, duration_s: float, seed: int = 1, **keys: Any) -> np.ndarray:
    trace = traces.replay(TraceRate(shape="trace", path=path, **keys), duration_s, seed=seed)
    assert isinstance(trace, traces.Times)
    return trace.times_s


def dispersion(arrivals_s: np.ndarray, duration_s: float, bins: int) -> float:
    """Variance over mean of the counts in even bins; 1 for a Poisson process."""
    counts = np.histogram(arrivals_s, bins=bins, range=(0.0, duration_s))[0]
    return float(counts.var() / counts.mean())


@pytest.fixture
def bursts(tmp_path: Path) -> str:
    """An hour of bursts of ten requests in 0.2 s, about one in five seconds, twice as many in the second half."""
    rng = np.random.default_rng(1)
    starts_s = np.concatenate([rng.uniform(0.0, 1800.0, 240), rng.uniform(1800.0, 3600.0, 480)])
    arrivals_s = np.concatenate([(starts_s[:, None] + rng.uniform(0.0, 0.2, (720, 10))).ravel(), [0.0, 3601.0]])
    return write(tmp_path, "Timestamp,Model\n" + "".join(f"{arrival_s},m\n" for arrival_s in arrivals_s))


@pytest.mark.parametrize("format", ["auto", "azure-llm"])
def test_azure_llm_keeps_all_seven_digits_and_puts_lines_in_order(format: str, tmp_path: Path) -> None:
    assert times_s(tmp_path, AZURE_LLM, format) == pytest.approx([0.0, 4.3145790, 4.5418771], abs=1e-9)


def test_azure_llm_of_2024_has_time_zones(tmp_path: Path) -> None:
    assert times_s(tmp_path, AZURE_LLM_2024) == pytest.approx([0.0, 0.007405, 1.0], abs=1e-9)


def test_azure_functions_arrive_when_they_ended_less_their_duration(tmp_path: Path) -> None:
    assert times_s(tmp_path, AZURE_FUNCTIONS).tolist() == [0.0, 0.25, 5.0]


def test_burstgpt_counts_in_seconds(tmp_path: Path) -> None:
    assert times_s(tmp_path, BURSTGPT).tolist() == [0.0, 40.0, 113.0]


def test_lines_may_end_as_on_windows(tmp_path: Path) -> None:
    path = tmp_path / "windows.csv"
    path.write_bytes(BURSTGPT.replace("\n", "\r\n").encode())
    assert traces.read(path).length_s == 113.0


def test_counts_fill_even_bins_with_gaps_empty_and_doubles_added(tmp_path: Path) -> None:
    trace = traces.read(write(tmp_path, COUNTS))
    assert isinstance(trace, traces.Counts)
    assert trace.edges_s.tolist() == [0.0, 300.0, 600.0, 900.0, 1200.0, 1500.0]
    assert (trace.rates_rps * 300.0).tolist() == pytest.approx([94.0, 56.0, 187.0, 0.0, 45.0])


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path, BURSTGPT)
    assert traces.read(path).length_s == 113.0
    write(tmp_path, BURSTGPT + "200,GPT-4,1,1,2,Conversation log\n")
    assert traces.read(path).length_s == 195.0


@pytest.mark.parametrize("content", [b"\x00\x01\x02", b"\xff\xfeT\x00", b"PAR1" + bytes(range(256))])
def test_bytes_that_are_no_text_are_told_apart(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "trace.parquet"
    path.write_bytes(content)
    with pytest.raises(StageError) as caught:
        traces.read(path)
    assert "trace.parquet cannot be replayed. The formats are azure-functions, burstgpt," in str(caught.value)
    assert str(caught.value).isprintable() or str(caught.value).count("\n") == 1


def test_a_run_replays_its_part_of_the_trace(bursts: str) -> None:
    whole = replayed(bursts, 3600.0)
    part = replayed(bursts, 100.0, start_s=1000.0)
    wanted = whole[(whole >= 1000.0) & (whole < 1100.0)] - 1000.0
    assert part == pytest.approx(wanted)


def test_time_scale_squeezes_times(bursts: str) -> None:
    assert replayed(bursts, 360.0, time_scale=0.1) == pytest.approx(replayed(bursts, 3600.0) * 0.1)


def test_time_scale_squeezes_counts_and_loses_none(tmp_path: Path) -> None:
    rate = TraceRate(shape="trace", path=write(tmp_path, COUNTS), start_s=300.0, time_scale=0.1, rate_scale=2.0)
    trace = traces.replay(rate, 90.0, seed=1)
    assert isinstance(trace, traces.Counts)
    assert trace.edges_s.tolist() == pytest.approx([0.0, 30.0, 60.0, 90.0])
    assert (trace.rates_rps * 30.0).tolist() == pytest.approx([112.0, 374.0, 0.0])
    assert traces.mean_rate_rps(rate, 90.0) == pytest.approx(486.0 / 90.0)


@pytest.mark.parametrize("rate_scale", [0.1, 0.5, 1.0, 1.5, 2.0, 4.0])
def test_rate_scale_gives_exactly_so_many_requests(rate_scale: float, bursts: str) -> None:
    plain, scaled = replayed(bursts, 3600.0), replayed(bursts, 3600.0, rate_scale=rate_scale)
    assert scaled.size == round(plain.size * rate_scale)
    assert (np.diff(scaled) >= 0).all()
    assert ((scaled >= 0) & (scaled < 3600.0)).all()


def test_thinning_is_seeded_and_a_lower_rate_keeps_a_subset(bursts: str) -> None:
    low, again, other = (replayed(bursts, 3600.0, seed=seed, rate_scale=0.2) for seed in (1, 1, 2))
    high = replayed(bursts, 3600.0, seed=1, rate_scale=0.6)
    assert low.tobytes() == again.tobytes()
    assert low.tobytes() != other.tobytes()
    assert set(low.tolist()) < set(high.tolist()) < set(replayed(bursts, 3600.0).tolist())


def test_thinning_pulls_the_dispersion_towards_poisson(bursts: str) -> None:
    plain = dispersion(replayed(bursts, 3600.0), 3600.0, 3600)
    assert plain > 8
    for share in (0.25, 0.5):
        found = dispersion(replayed(bursts, 3600.0, rate_scale=share), 3600.0, 3600)
        assert found == pytest.approx(1 + share * (plain - 1), rel=0.1)


@pytest.mark.parametrize("rate_scale", [2.0, 4.0])
def test_copies_keep_the_dispersion_and_the_slow_rise(rate_scale: float, bursts: str) -> None:
    plain, scaled = replayed(bursts, 3600.0), replayed(bursts, 3600.0, rate_scale=rate_scale)
    assert dispersion(scaled, 3600.0, 3600) == pytest.approx(dispersion(plain, 3600.0, 3600), rel=0.1)
    halves = np.histogram(scaled, bins=2, range=(0.0, 3600.0))[0]
    assert halves[1] / halves[0] == pytest.approx(2.0, rel=0.1)


def test_counts_are_filled_by_the_arrival_process(tmp_path: Path) -> None:
    rate = {"shape": "trace", "path": write(tmp_path, COUNTS)}
    plan = Traffic.model_validate({"rate": rate, "duration_s": 1500.0, "arrivals": "deterministic"})
    found = np.histogram(schedule(plan).arrivals_s, bins=5, range=(0.0, 1500.0))[0]
    assert np.abs(found - [94, 56, 187, 0, 45]).max() <= 1
    assert found[3] == 0


def test_the_example_trace_is_what_its_generator_writes() -> None:
    assert example_trace.PATH.read_bytes() == example_trace.example_trace().encode()


def test_the_example_trace_passes_a_day_in_a_minute_and_a_half() -> None:
    rate = TraceRate(shape="trace", path=str(example_trace.PATH), time_scale=0.001)
    assert traces.mean_rate_rps(rate, 86.4) == pytest.approx(66.0, abs=0.5)
    trace = traces.replay(rate, 86.4, seed=1)
    assert isinstance(trace, traces.Counts)
    busiest_s = trace.edges_s[trace.rates_rps.argmax()]
    assert busiest_s == pytest.approx(20 * 3.6)


@pytest.mark.parametrize("path", [path for path in FACTS if path.is_file()], ids=lambda path: path.name)
def test_a_whole_trace_has_as_many_requests_in_as_long_as_it_is_known_for(path: Path) -> None:
    trace, (requests, length_s) = traces.read(path), FACTS[path]
    if isinstance(trace, traces.Times):
        assert trace.times_s.size == requests
    else:
        assert trace.rates_rps @ np.diff(trace.edges_s) == pytest.approx(requests)
    assert trace.length_s == pytest.approx(length_s, abs=0.001)
