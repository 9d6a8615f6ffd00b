"""The signals of a stage in PromQL: the same questions that the stack asks itself, for Prometheus and for Grafana.

    Rule ──▶ condition ──▶ rules.yml            signal over a window ──▶ a panel of the dashboard

What stages/policies/alerting.py computes from readings, Prometheus computes from its samples, and tests/test_export.py
holds the two to the same answers. They differ while the first window of utilisation fills: Prometheus divides by the
whole window. No twin.
"""

from __future__ import annotations

from prometheus_client.utils import floatToGoString

from reference_apps.scrape import PREFIXES, counts_requests
from stages.policies.alerting import Rule, Signal
from stages.spec import Stage


class Questions:
    """The questions that can be asked about a stage. Windows are durations as PromQL writes them."""

    def __init__(self, stage: Stage) -> None:
        self._slo, self._room, self._queue = stage.slo, stage.admission.max_queue_length, stage.queue
        self._of = f'stage="{stage.name}"'
        self._requests = PREFIXES[counts_requests(stage)]
        self._device = "rung_device_seconds_sum" if stage.queue is None else "rung_worker_device_seconds_sum"

    def condition(self, rule: Rule) -> str:
        """True while the rule's signal is above its threshold over each of its windows, the shortest first."""
        windows = [duration(window_s) for window_s in sorted(rule.windows_s)]
        return "\nand\n".join(f"{self.signal(rule.signal, window, rule.share)} > {rule.above:g}" for window in windows)

    def signal(self, signal: Signal, window: str, share: float = 0.0) -> str:
        """The signal over a window, in the unit of a rule's threshold."""
        match signal:
            case "latency":
                return self.quantile(share, window)
            case "errors":
                failed = self.requests(window, 'outcome!="ok"', 'reason!="bad_input"')
                return f"{failed} / {self._counted(window)}"
            case "queue" if self._queue is not None:
                waiting = self.series("rung_queue_jobs", 'state="waiting"')
                return f"max(avg_over_time({waiting}[{window}])) / {self._queue.max_depth}"
            case "queue":
                return f"avg(avg_over_time({self.series('rung_queue_depth')}[{window}])) / {self._room}"
            case "utilisation":
                return f"avg(rate({self.series(self._device)}[{window}]))"
            case "burn-rate":
                bound = floatToGoString(self._slo.latency_s)  # type: ignore[no-untyped-call]
                within = f'le="{bound}"'
                kept = f"sum(rate({self.series(f'{self._requests}_request_seconds_bucket', _OK, within)}[{window}]))"
                return f"(1 - {kept} / {self._counted(window)}) / {1 - share:.12g}"

    def quantile(self, share: float, window: str) -> str:
        """The latency in seconds that `share` of the answers stayed below."""
        buckets = self.series(f"{self._requests}_request_seconds_bucket", _OK)
        return f"histogram_quantile({share:g}, sum by (le) (rate({buckets}[{window}])))"

    def requests(self, window: str, *labels: str, by: str = "") -> str:
        """Requests per second that came to their end, those with these labels."""
        grouped = f"sum by ({by})" if by else "sum"
        return f"{grouped} (rate({self.series(f'{self._requests}_requests_total', *labels)}[{window}]))"

    def requests_by_arm(self, window: str, *labels: str) -> str:
        """Requests per second of each arm that came to their end; one that is refused before it is read has none."""
        return self.requests(window, _AN_ARM, *labels, by="arm")

    def errors_by_arm(self, window: str) -> str:
        """The share of each arm's requests that had no answer."""
        failed = self.requests_by_arm(window, 'outcome!="ok"', 'reason!="bad_input"')
        counted = self.requests_by_arm(window, 'reason!="bad_input"')
        return f"{failed} / {counted}"

    def quantile_by_arm(self, share: float, window: str) -> str:
        """The latency in seconds that `share` of each arm's answers stayed below."""
        if self._requests == PREFIXES["gateway"]:
            buckets = self.series("rung_gateway_arm_seconds_bucket", _AN_ARM)
        else:  # of the replicas, whose targets carry the arm
            buckets = self.series(f"{self._requests}_request_seconds_bucket", _OK, _AN_ARM)
        return f"histogram_quantile({share:g}, sum by (le, arm) (rate({buckets}[{window}])))"

    def series(self, metric: str, *labels: str) -> str:
        """The metric of this stage's processes, with further labels."""
        return f"{metric}{{{', '.join((self._of, *labels))}}}"

    def _counted(self, window: str) -> str:
        """Requests per second, without those that their clients got wrong."""
        return self.requests(window, 'reason!="bad_input"')


def duration(seconds: float) -> str:
    """Seconds as PromQL writes a duration, which has no fractions: `30s`, `1500ms`."""
    ms = max(0, round(1000 * seconds))
    return f"{ms // 1000}s" if ms % 1000 == 0 else f"{ms}ms"


_OK = 'outcome="ok"'
_AN_ARM = 'arm!=""'
