"""Is a run to be trusted? The load generator and the host are checked after each, and a run that fails is void."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from loadtests.raw_rows import Fired
from stages.records import Records

LAG_SHARE_MAX = 0.10
FIRED_SHARE_MIN = 0.98
GENERATOR_CPU_MAX = 0.90
FOREIGN_CPU_MAX, FOREIGN_CPU_TOLD = 0.10, 0.02
# A server's times are rounded to microseconds; those of another machine are off by its uptime.
SAME_CLOCK_S = 0.001
OTHER_CLOCK = (
    "The server's times lie outside of the requests that they belong to: another machine's clock told them. "
    "Utilisation, mean batch size and device throughput, which need one clock, are left blank."
)
OF_ONE_CLOCK = ("utilisation", "batch_size_mean", "device_throughput_ips")


@dataclass(frozen=True)
class SelfCheck:
    """What the generator and the host were like during one run. Shares are 0 to 1."""

    lag_s_p50: float  # scheduled → sent
    lag_s_p99: float
    fired_share: float  # of the requests that were due
    generator_cpu_share: float  # of one core
    foreign_cpu_share: float  # of all cores, by processes that are not ours, stolen time included


def self_check(fired: Fired, foreign_cpu_share: float) -> SelfCheck:
    """The figures of one run; a run that fired nothing has an infinite lag."""
    lag_s: pl.Series = fired.rows["sent_s"] - fired.rows["scheduled_s"]
    p50, p99 = lag_s.quantile(0.5, "linear"), lag_s.quantile(0.99, "linear")
    return SelfCheck(
        lag_s_p50=float("inf") if p50 is None else float(p50),
        lag_s_p99=float("inf") if p99 is None else float(p99),
        fired_share=fired.rows.height / fired.due if fired.due else 0.0,
        generator_cpu_share=fired.cpu_share_max,
        foreign_cpu_share=foreign_cpu_share,
    )


def why_void(check: SelfCheck, beside_s: float, beside: str = "service time") -> str | None:
    """Why the run must not be trusted, every reason in one sentence each; None when it may be.

    A lag that matters is one that can be seen next to `beside_s`: the device's time for the smallest batch, or, where
    a run is read for something coarser than latencies, what that is.
    """
    reasons = []
    if check.lag_s_p99 > LAG_SHARE_MAX * beside_s:
        reasons.append(
            f"The generator was late: p99 of its lag was {check.lag_s_p99 * 1e3:.2f} ms, over {LAG_SHARE_MAX:.0%} of "
            f"the {beside} of {beside_s * 1e3:.2f} ms.{_whose_fault(check.foreign_cpu_share)}"
        )
    if check.fired_share < FIRED_SHARE_MIN:
        reasons.append(f"Only {check.fired_share:.1%} of the schedule was fired, under {FIRED_SHARE_MIN:.0%}.")
    if check.generator_cpu_share > GENERATOR_CPU_MAX:
        reasons.append(f"The generator took {check.generator_cpu_share:.0%} of a core, over {GENERATOR_CPU_MAX:.0%}.")
    if (busy := host_was_busy(check.foreign_cpu_share)) is not None:
        reasons.append(busy)
    return " ".join(reasons) or None


def host_was_busy(foreign_cpu_share: float) -> str | None:
    """Why a run must not be trusted on whose machine others had that share of the cores; None when it may be."""
    if foreign_cpu_share <= FOREIGN_CPU_MAX:
        return None
    return f"The host was busy with something else: {foreign_cpu_share:.0%} of its cores, over {FOREIGN_CPU_MAX:.0%}."


def other_clock(records: Records) -> bool:
    """Whether the server noted by another clock than the client: an answer was computed before it was sent for, say."""
    before = pl.col("started_s") < pl.col("sent_s") - SAME_CLOCK_S
    after = pl.col("finished_s") > pl.col("replied_s") + SAME_CLOCK_S
    return records.requests.filter((pl.col("outcome") == "ok") & (before | after)).height > 0


def _whose_fault(foreign_cpu_share: float) -> str:
    """A late generator is often a machine that is shared: say so where it shows, and is not a reason by itself."""
    if not FOREIGN_CPU_TOLD <= foreign_cpu_share <= FOREIGN_CPU_MAX:
        return ""
    return f" Meanwhile {foreign_cpu_share:.0%} of the host's cores went to something else, or to its neighbours."
