"""The tables of a stage that say what it tells of itself while it runs: its log, and the alerts on its metrics.

    metrics, every interval_s ─▶ rules: latency, errors, queue, utilisation, burn rate ─▶ alerts.jsonl, webhook

How a rule decides is in stages/policies/alerting.py, the same code for the running stack and for the simulator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from stages.policies.alerting import Limits, Rule, latency_bounds_s
from stages.table import Table

if TYPE_CHECKING:
    from stages.spec import Stage

# The Site Reliability Workbook's pairs of windows for a promise of 30 days (chapter 5, "Alerting on SLOs", table 5-8):
# (name, burn rate, long window, short window, severity). 2 %, 5 % and 10 % of the budget are gone in the long window.
_HOUR_S = 3600.0
BURN_RATES: tuple[tuple[str, float, float, float, Literal["page", "ticket"]], ...] = (
    ("burn-rate-fast", 14.4, 1 * _HOUR_S, _HOUR_S / 12, "page"),
    ("burn-rate-slow", 6.0, 6 * _HOUR_S, _HOUR_S / 2, "page"),
    ("burn-rate-leak", 1.0, 72 * _HOUR_S, 6 * _HOUR_S, "ticket"),
)

# Readings of the longest window that are kept, some 400 bytes each.
READINGS_MAX = 20_000


class Logs(Table):
    """What the processes of the stage write down: JSON lines, one a request only where that is wanted."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    requests: Literal["errors", "all"] = "errors"
    requests_max_rps: float = Field(500.0, gt=0.0, le=1e6)  # of one process; what is over is counted, not written
    requests_max_bytes: int = Field(268_435_456, ge=1_048_576, le=1 << 40)  # of one log; no request is written beyond


class LatencyAlert(Table):
    """A percentile of the answers' latency, as the gateway (or the only replica) sees it."""

    enabled: bool = True
    percentile: float = Field(95.0, ge=1.0, lt=100.0)
    above_s: float | None = Field(None, gt=0.0, le=3600.0)  # slo.latency_s without it
    window_s: float = Field(30.0, gt=0.0, le=1e6)
    for_s: float = Field(10.0, ge=0.0, le=1e6)


class ErrorsAlert(Table):
    """The share of requests that got no answer for a reason that is not the client's."""

    enabled: bool = True
    above_share: float = Field(0.05, ge=0.0, lt=1.0)
    window_s: float = Field(30.0, gt=0.0, le=1e6)
    for_s: float = Field(10.0, ge=0.0, le=1e6)


class QueueAlert(Table):
    """Saturation, seen from the queue: how full the replicas' queues are, in the mean over all and over the window."""

    enabled: bool = True
    above_share: float = Field(0.8, ge=0.0, lt=1.0)
    window_s: float = Field(10.0, gt=0.0, le=1e6)
    for_s: float = Field(10.0, ge=0.0, le=1e6)


class UtilisationAlert(Table):
    """Saturation, seen from the devices: the share of the time that they are busy."""

    enabled: bool = True
    above_share: float = Field(0.95, ge=0.0, lt=1.0)
    window_s: float = Field(30.0, gt=0.0, le=1e6)
    for_s: float = Field(30.0, ge=0.0, le=1e6)


class BurnRateAlert(Table):
    """How fast the error budget of [slo] burns: the Site Reliability Workbook's three pairs of windows.

    Its windows of hours and days are divided by `speedup`, so that minutes are enough to try them; 1.0 is for a
    service that is meant to keep a promise of 30 days.
    """

    enabled: bool = True
    speedup: float = Field(60.0, ge=1.0, le=3600.0)


class Webhook(Table):
    """Where firing and resolved alerts are posted as JSON. The address is in the environment: it may hold a secret."""

    url_env: str = Field(pattern=r"^[A-Z][A-Z0-9_]*$")
    timeout_s: float = Field(2.0, gt=0.0, le=60.0)
    retries_max: int = Field(3, ge=0, le=10)
    queue_length_max: int = Field(100, ge=1, le=10_000)


class Alerts(Table):
    """What the stack asks its own metrics every `interval_s`, and whom it tells."""

    interval_s: float = Field(1.0, ge=0.1, le=3600.0)
    latency: LatencyAlert = LatencyAlert()
    errors: ErrorsAlert = ErrorsAlert()
    queue: QueueAlert = QueueAlert()
    utilisation: UtilisationAlert = UtilisationAlert()
    burn_rate: BurnRateAlert = BurnRateAlert()
    webhook: Webhook | None = None


def rules_of(stage: Stage) -> tuple[Rule, ...]:
    """The rules that the stage's alerts ask, in the order of its tables; those that are switched off are left out."""
    alerts, rules = stage.alerts, list[Rule]()
    if (latency := alerts.latency).enabled:
        above_s = stage.slo.latency_s if latency.above_s is None else latency.above_s
        windows_s = (latency.window_s,)
        share = latency.percentile / 100
        rules.append(Rule("latency", "latency", above_s, windows_s, latency.for_s, "page", share))
    if (errors := alerts.errors).enabled:
        rules.append(Rule("errors", "errors", errors.above_share, (errors.window_s,), errors.for_s, "page"))
    if (queue := alerts.queue).enabled:
        rules.append(Rule("queue", "queue", queue.above_share, (queue.window_s,), queue.for_s, "ticket"))
    if (busy := alerts.utilisation).enabled:
        windows_s = (busy.window_s,)
        rules.append(Rule("utilisation", "utilisation", busy.above_share, windows_s, busy.for_s, "ticket"))
    if alerts.burn_rate.enabled:
        rules += _burn_rates(stage)
    return tuple(rules)


def latency_bounds_of(stage: Stage) -> tuple[float, ...]:
    """The bounds in seconds of every latency histogram of the stage: each threshold that is asked about is one.

    So "is the percentile above the threshold" and "how many were within the promise" are exact, not interpolated.
    """
    given = stage.alerts.latency.above_s
    return latency_bounds_s([stage.slo.latency_s] if given is None else [stage.slo.latency_s, given])


def limits_of(stage: Stage) -> Limits:
    """What the signals of the stage's rules are measured against."""
    queue = stage.queue
    room = stage.admission.max_queue_length if queue is None else queue.max_depth
    return Limits(latency_bounds_of(stage), stage.slo.latency_s, room, queue is not None)


def in_words(rule: Rule, value: float | None = None) -> str:
    """What the rule is about, and with a value, what it found: `p95 of the latency over 30 s: 0.25 s (above 0.1 s)`."""
    over = " and ".join(f"{window_s:g} s" for window_s in rule.windows_s)
    signal, factor, unit = {
        "latency": (f"p{100 * rule.share:g} of the latency", 1.0, " s"),
        "errors": ("share of requests without an answer", 100.0, " %"),
        "queue": ("mean share of the queues that is full", 100.0, " %"),
        "utilisation": ("share of the time that the devices are busy", 100.0, " %"),
        "burn-rate": ("pace at which the error budget burns, 1 being allowed,", 1.0, ""),
    }[rule.signal]
    found = "" if value is None else f": {factor * value:.3g}{unit}"
    return f"{signal} over {over}{found} (alerts above {factor * rule.above:.3g}{unit})"


def _burn_rates(stage: Stage) -> list[Rule]:
    """A promise of 90 % has a budget of a tenth, which cannot burn faster than 10 times: such rules are left out."""
    budget, speedup = 1 - stage.slo.share, stage.alerts.burn_rate.speedup
    return [
        Rule(name, "burn-rate", rate, (long_s / speedup, short_s / speedup), 0.0, severity, stage.slo.share)
        for name, rate, long_s, short_s, severity in BURN_RATES
        if rate * budget < 1
    ]
