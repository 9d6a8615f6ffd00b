"""Traces: one reader for the public formats of request traces.

    CSV file ──read──▶ Times   one arrival time a request ─┐            ┌─▶ Times   arrivals of a run
                       Counts  requests a bin of time ─────┴──replay────┴─▶ Counts  its rate, to be filled

    format            columns that tell it                    arrival
    azure-llm         TIMESTAMP, ContextTokens, …             TIMESTAMP (a date and time)
    azure-functions   app, func, end_timestamp, duration      end_timestamp - duration (seconds)
    burstgpt          Timestamp, Model, …                     Timestamp (seconds)
    counts            timestamp, value                        value requests in the bin from timestamp on

Not read: token counts, durations and models of the requests; who a request came from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stages.demand import TraceRate
from stages.problems import Problem, StageError, shown
from stages.streams import stream

Floats = NDArray[np.float64]

# Format → the columns that it needs, and the one more that tells it from the formats below.
_FORMATS = {
    "azure-functions": (("end_timestamp", "duration"), "func"),
    "burstgpt": (("Timestamp",), "Model"),
    "azure-llm": (("TIMESTAMP",), "ContextTokens"),
    "counts": (("timestamp", "value"), "value"),
}
_KNOWN_FORMATS = f"The formats are {', '.join(_FORMATS)}; stages/traces.py lists their columns."
_BINS_MAX = 10_000_000
_SHIFTED_SHARE = 0.05


@dataclass(frozen=True, eq=False)
class Times:
    """A trace that names each arrival: `times_s` ascending, in seconds from the start."""

    times_s: Floats

    @property
    def length_s(self) -> float:
        """Seconds from the start to the last arrival."""
        return float(self.times_s[-1])


@dataclass(frozen=True, eq=False)
class Counts:
    """A trace that counts arrivals: `rates_rps[i]` holds from `edges_s[i]` to `edges_s[i + 1]`."""

    edges_s: Floats
    rates_rps: Floats

    @property
    def length_s(self) -> float:
        """Seconds from the start to the end of the last bin."""
        return float(self.edges_s[-1])


def read(path: str | Path, format: str = "auto") -> Times | Counts:
    """The whole trace as it was recorded, its first arrival (or bin) at 0. Lines may be in any order.

    Raises StageError with what is wrong with the file: its columns, or the first line that cannot be read.
    """
    path = Path(path)
    try:
        status = path.stat()
    except OSError:
        raise _refusal(path, "must be a file that exists", shown(str(path)), _PATH) from None
    return _read(path, format, status.st_mtime_ns, status.st_size)


_PATH = "Correct the path; it is seen from the stage file."


def replay(rate: TraceRate, duration_s: float, *, seed: int) -> Times | Counts:
    """The part of a trace that a run of `duration_s` seconds replays, from second `start_s` of it on.

    `time_scale` stretches time: at 0.1 the same requests come ten times as fast, and gaps keep their law.
    `rate_scale` changes how many come in the same time, which cannot leave everything as it was:

    - counts a bin are multiplied, and the arrival process fills them;
    - below 1, a seeded random choice of that share of the arrivals is kept. Choosing one by one pulls the
      variance-to-mean ratio D of counts towards a Poisson process: 1 + rate_scale * (D - 1);
    - above 1, n = ceil(rate_scale) copies are laid over each other (the last one thinned). Copy k is shifted
      by k / n of a twentieth of the run; what leaves the run at its end comes in at its start. The shift is
      short beside the run, so that slow rises and falls stay where they are and grow in height; it is long
      beside a burst, so that bursts come more often, as from more users, and are not multiplied. D is kept for
      counts over less than a shift; single gaps become more like Poisson's. To keep their law, use `time_scale`.

    The number of arrivals is exact: those of the part times `rate_scale`, rounded.
    Raises StageError when the trace cannot be read, ends before the run, or has no request in that part.
    """
    trace = read(rate.path, rate.format)
    left_s = (trace.length_s - rate.start_s) * rate.time_scale
    if left_s < duration_s:
        raise _too_short(rate, duration_s, left_s)
    replayed: Times | Counts
    if isinstance(trace, Times):
        times_s = (trace.times_s - rate.start_s) * rate.time_scale
        within_s = times_s[(times_s >= 0) & (times_s < duration_s)]
        replayed = Times(_scaled(within_s, rate.rate_scale, duration_s, seed))
        empty = replayed.times_s.size == 0
    else:
        edges_s = np.clip((trace.edges_s - rate.start_s) * rate.time_scale, 0.0, duration_s)
        kept = np.diff(edges_s) > 0
        rates_rps = trace.rates_rps[kept] * rate.rate_scale / rate.time_scale
        replayed = Counts(np.append(edges_s[:-1][kept], duration_s), rates_rps)
        empty = not replayed.rates_rps.any()
    if empty:
        end_s = rate.start_s + duration_s / rate.time_scale
        rule = f"must have requests from second {rate.start_s:g} to {end_s:g}, which the run replays"
        remedy = "Move traffic.rate.start_s, lengthen traffic.duration_s or raise traffic.rate.rate_scale."
        raise _refusal(Path(rate.path), rule, "none", remedy)
    return replayed


def mean_rate_rps(rate: TraceRate, duration_s: float) -> float:
    """The mean rate of a replayed trace in requests per second of the run. Raises as `replay` does."""
    replayed = replay(rate, duration_s, seed=0)  # the number of arrivals is the same for every seed
    if isinstance(replayed, Times):
        return replayed.times_s.size / duration_s
    return float(replayed.rates_rps @ np.diff(replayed.edges_s)) / duration_s


def _scaled(times_s: Floats, rate_scale: float, duration_s: float, seed: int) -> Floats:
    copies, share = math.ceil(rate_scale), rate_scale - math.floor(rate_scale)
    shift_s = _SHIFTED_SHARE * duration_s / copies
    parts = [(times_s + k * shift_s) % duration_s for k in range(copies)]
    if share:
        # Those with the smallest marks: a lower rate keeps a subset of what a higher one keeps.
        marks = stream(seed, "thinning").random(times_s.size)
        wanted = round(times_s.size * rate_scale) - times_s.size * (copies - 1)
        parts[-1] = parts[-1][np.argsort(marks, kind="stable")[:wanted]]
    return np.sort(np.concatenate(parts))


@lru_cache(maxsize=4)
def _read(path: Path, format: str, _modified_ns: int, _size: int) -> Times | Counts:
    frame = _frame(path)
    format = _format(path, frame.columns) if format == "auto" else format
    needed = _FORMATS[format][0]
    for name in needed:
        if name not in frame.columns:
            rule = f"must have the column {name}, which format {format} needs"
            raise _refusal(path, rule, _named(frame.columns), 'Set format = "auto", or use another file.')
    if format == "counts":
        return _counts(path, _times_s(path, frame, "timestamp"), _numbers(path, frame, "value", least=0.0))
    if format == "azure-functions":
        arrivals_s = _numbers(path, frame, "end_timestamp") - _numbers(path, frame, "duration")
    else:
        arrivals_s = _times_s(path, frame, needed[0])
    if arrivals_s.size < 2 or np.ptp(arrivals_s) == 0:
        raise _refusal(path, "must have requests at two different times", None, "Use a longer trace.")
    return Times(np.sort(arrivals_s - arrivals_s.min()))


def _frame(path: Path) -> pl.DataFrame:
    """The file as strings; `line` numbers its lines as an editor does, and empty ones are left out."""
    try:
        frame = pl.read_csv(path, infer_schema=False, truncate_ragged_lines=True, encoding="utf8-lossy")
    except pl.exceptions.NoDataError:
        rule = "must have a line of column names and a line for each request"
        raise _refusal(path, rule, "an empty file", _KNOWN_FORMATS) from None
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _refusal(path, "must be a CSV file", str(error).splitlines()[0], _KNOWN_FORMATS) from None
    return frame.with_row_index("line", offset=2).filter(~pl.all_horizontal(pl.exclude("line").is_null()))


def _format(path: Path, columns: list[str]) -> str:
    for format, (needed, telling) in _FORMATS.items():
        if {*needed, telling} <= set(columns):
            return format
    rule = "must begin with the column names of a known format"
    raise _refusal(path, rule, _named(columns), _KNOWN_FORMATS)


def _named(columns: list[str]) -> str:
    names = ", ".join(columns[1:])  # without `line`
    if not names.isprintable() or "\ufffd" in names:
        return "bytes that are no text"
    return f"the columns {names if len(names) <= 80 else names[:77] + '...'}"


def _numbers(path: Path, frame: pl.DataFrame, column: str, least: float = -math.inf) -> Floats:
    numbers = frame[column].str.strip_chars().cast(pl.Float64, strict=False)
    what = "a number" if least == -math.inf else f"a number of at least {least:g}"
    _check_lines(path, frame, column, numbers.is_finite() & (numbers >= least), what)
    return np.asarray(numbers.to_numpy(), dtype=np.float64)


def _times_s(path: Path, frame: pl.DataFrame, column: str) -> Floats:
    """A column of times in seconds from the earliest: as numbers if the first line is one, else as dates."""
    texts = frame[column].str.strip_chars()
    if texts.head(1).cast(pl.Float64, strict=False).null_count() == 0:
        seconds = _numbers(path, frame, column)
        return np.asarray(seconds - seconds.min(initial=math.inf), dtype=np.float64)
    plain = texts.str.replace("T", " ", literal=True).str.strip_suffix("Z")
    # Nanoseconds, because Azure's traces have seven digits after the point.
    local = plain.str.strptime(pl.Datetime("ns"), "%Y-%m-%d %H:%M:%S%.f", strict=False)
    zoned = plain.str.strptime(pl.Datetime("ns", "UTC"), "%Y-%m-%d %H:%M:%S%.f%#z", strict=False)
    times = pl.select(pl.coalesce(local, zoned.dt.replace_time_zone(None))).to_series()
    _check_lines(path, frame, column, times.is_not_null(), "a date and time, or seconds as a number,")
    nanoseconds = times.to_physical().to_numpy()
    return np.asarray((nanoseconds - nanoseconds.min()) / 1e9, dtype=np.float64)


def _check_lines(path: Path, frame: pl.DataFrame, column: str, good: pl.Series, what: str) -> None:
    if frame.is_empty():
        raise _refusal(path, "must have a line for each request", "nothing below the column names", "Use another file.")
    bad = frame.filter(~good.fill_null(False))
    if not bad.is_empty():
        rule, text = f"line {bad['line'][0]} must have {what} in column {column}", bad[column][0]
        raise _refusal(path, rule, "nothing" if text is None else shown(text), "Mend or remove that line.")


def _counts(path: Path, starts_s: Floats, counts: Floats) -> Counts:
    """Counts on even bins as wide as the median step: missing bins are empty, and doubled ones add up."""
    steps_s = np.diff(np.unique(starts_s))
    if steps_s.size == 0:
        raise _refusal(path, "must have two bins at two different times", None, "Use a longer trace.")
    bin_s = float(np.median(steps_s))
    if starts_s.max() / bin_s > _BINS_MAX:
        rule = f"must have at most {_BINS_MAX} bins of {bin_s:g} seconds from the first line to the last"
        raise _refusal(path, rule, f"{starts_s.max() / bin_s:.0f}", "Look for a wrong date.")
    bins = np.round(starts_s / bin_s).astype(np.int64)
    totals = np.bincount(bins, weights=counts)
    edges_s = np.arange(totals.size + 1, dtype=np.float64) * bin_s
    return Counts(edges_s, np.asarray(totals / bin_s, dtype=np.float64))


def _refusal(path: Path, rule: str, got: str | None, remedy: str) -> StageError:
    problem = Problem("traffic.rate.path", rule, got, f"{path.name} cannot be replayed.", remedy)
    return StageError(str(path), [problem])


def _too_short(rate: TraceRate, duration_s: float, left_s: float) -> StageError:
    if left_s <= 0:
        length_s = rate.start_s + left_s / rate.time_scale
        key, got = "traffic.rate.start_s", f"{rate.start_s:g}"
        rule = f"must be before the end of the trace ({length_s:.6g} seconds)"
        remedy = "Use 0 to begin with its first request."
    else:
        key, got = "traffic.duration_s", f"{duration_s:g}"
        rule = f"must be at most the {left_s:.6g} seconds that the trace lasts from traffic.rate.start_s on"
        remedy = "Shorten the run, or stretch the trace by traffic.rate.time_scale."
    problem = Problem(key, rule, got, f"{Path(rate.path).name} would end before the run.", remedy)
    return StageError(rate.path, [problem])
