"""Writes the project's own trace, example.trace.csv: one made-up day of a small service, in counts per 5 minutes.

    python -m stages.catalogue.example_trace

Lowest at four in the morning, highest in the afternoon with a dip at lunch, and a spike at 20:00 that decays within
half an hour. With time_scale = 0.001 the day passes in 86.4 seconds, at 66 requests per second on average.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

from stages.streams import stream

PATH = Path(__file__).parent / "example.trace.csv"

_BINS = 288
_SPIKE_BIN = 240


def example_trace() -> str:
    """The text of the trace; the same on every call."""
    rng = stream(1, "example trace")
    lines = ["timestamp,value"]
    for i in range(_BINS):
        start = datetime(2026, 3, 2, tzinfo=UTC) + timedelta(minutes=5 * i)
        lines.append(f"{start:%Y-%m-%d %H:%M:%S},{rng.poisson(_mean_count(i))}")
    return "\n".join(lines) + "\n"


def _mean_count(i: int) -> float:
    hours = 24 * i / _BINS
    day = 1 - math.cos(2 * math.pi * (hours - 4) / 24)
    lunch = 0.35 * math.exp(-(((hours - 12.5) / 0.8) ** 2))
    spike = 3.0 * math.exp(-(i - _SPIKE_BIN) / 3) if i >= _SPIKE_BIN else 0.0
    return 2 + 17.4 * max(0.0, day - lunch + spike)


if __name__ == "__main__":
    PATH.write_text(example_trace(), encoding="utf-8", newline="\n")
