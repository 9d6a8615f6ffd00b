"""Rules over the keys of [alerts]: every window must hold readings enough to decide by, and not too many to keep.

Asked by stages/rules.py, like the rules there.
"""

from __future__ import annotations

from collections.abc import Iterator

from stages.alerts import BURN_RATES, READINGS_MAX, Alerts
from stages.problems import Problem

# A count can only grow between two readings.
_READINGS_MIN = 2


def windows_hold_readings(alerts: Alerts) -> Iterator[Problem]:
    """A window without two readings in it shows no growth, and one of too many would fill the memory."""
    shortest_s, longest_s = _READINGS_MIN * alerts.interval_s, READINGS_MAX * alerts.interval_s
    for name in ("latency", "errors", "queue", "utilisation"):
        rule = getattr(alerts, name)
        if not rule.enabled or shortest_s <= rule.window_s <= longest_s:
            continue
        yield Problem(
            f"alerts.{name}.window_s",
            f"must be between {shortest_s:g} and {longest_s:g} seconds with alerts.interval_s = {alerts.interval_s:g}",
            f"{rule.window_s:g}",
            f"A rule needs {_READINGS_MIN} readings in its window, and no more than {READINGS_MAX:,} are kept.",
            "Change it, or alerts.interval_s.",
        )


def burn_windows_hold_readings(alerts: Alerts) -> Iterator[Problem]:
    """The same for the windows of the burn rates, which follow from one number."""
    first_s, last_s = min(short_s for *_, short_s, _ in BURN_RATES), max(long_s for _, _, long_s, *_ in BURN_RATES)
    most = first_s / (_READINGS_MIN * alerts.interval_s)
    least = last_s / (READINGS_MAX * alerts.interval_s)
    if alerts.burn_rate.enabled and not least <= alerts.burn_rate.speedup <= most:
        yield Problem(
            "alerts.burn_rate.speedup",
            f"must be between {least:.3g} and {most:.3g} with alerts.interval_s = {alerts.interval_s:g}",
            f"{alerts.burn_rate.speedup:g}",
            f"Its windows of {first_s:g} to {last_s:g} seconds are divided by it; a rule needs {_READINGS_MIN} "
            f"readings in the shortest, and no more than {READINGS_MAX:,} are kept.",
            "Change it, or alerts.interval_s.",
        )
