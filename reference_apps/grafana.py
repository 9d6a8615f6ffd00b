"""A dashboard of a stage for Grafana, as JSON: what [alerts] looks at, and what explains it.

    Stage ──▶ panels ── PromQL ──▶ Prometheus, which scrapes by the files of `rung export prometheus`

The form is that of Grafana's dashboard JSON model (schema version 39, Grafana 10.3 and later); it is imported with
"Dashboards, New, Import", or read from a folder by Grafana's provisioning. No twin.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from reference_apps.promql import Questions, duration
from reference_apps.scrape import counts_requests
from stages.alerts import in_words, rules_of
from stages.policies.alerting import Rule
from stages.spec import Stage

SCHEMA_VERSION = 39
WINDOW = "$__rate_interval"  # at least four scrapes, by Grafana
_WIDTH, _HEIGHT, _COLUMNS = 8, 7, 3
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_GUARDRAIL = "Beyond the line for sure, the challenger is stopped."


@dataclass(frozen=True)
class Panel:
    """One chart: queries with their legends, a unit of Grafana's, and where an alert's line is drawn."""

    title: str
    queries: Sequence[tuple[str, str]]  # PromQL, legend
    unit: str = "short"
    threshold: float | None = None
    description: str = ""


def dashboard(stage: Stage) -> dict[str, Any]:
    """The dashboard of a stage, whose panels show nothing but metrics that its processes have."""
    ask = Questions(stage)
    found = list(_clients(stage, ask))
    if counts_requests(stage) == "gateway":
        found += [*_gateway(ask), *(_cache(stage, ask) if stage.cache is not None else ())]
    if stage.split is not None:
        found += _arms(stage, ask)
    if stage.feedback is not None:
        found += _feedback(ask)
    found += [*_queue(ask), *_workers(ask)] if stage.queue is not None else _replicas(ask)
    return {
        "title": f"rung: {stage.title}",
        "uid": f"rung-{stage.name}"[:40],  # Grafana's limit
        "description": stage.question,
        "tags": ["rung"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "templating": {
            "list": [{"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Source"}]
        },
        "panels": [_drawn(number, panel) for number, panel in enumerate(found)],
    }


def _clients(stage: Stage, ask: Questions) -> Iterator[Panel]:
    """What clients see, each beside the rule that watches it."""
    rules = {rule.name: rule for rule in rules_of(stage)}
    yield Panel("Requests", [(ask.requests(WINDOW, by="outcome, reason"), "{{outcome}} {{reason}}")], "reqps")
    quantiles = [(ask.quantile(share, WINDOW), f"p{100 * share:g}") for share in (0.5, 0.95, 0.99)]
    yield Panel("Latency of answers", quantiles, "s", *_line(rules.get("latency")))
    yield Panel("Errors", [(ask.signal("errors", WINDOW), "share")], "percentunit", *_line(rules.get("errors")))
    burns = [rule for rule in rules.values() if rule.signal == "burn-rate"]
    windows = sorted({window_s for rule in burns for window_s in rule.windows_s})
    rates = [(ask.signal("burn-rate", duration(each), stage.slo.share), f"over {duration(each)}") for each in windows]
    if rates:
        yield Panel("Burn rate of the error budget", rates, "short", 1.0, "Above 1 the budget will not last.")
    alerts = 'ALERTS{alertstate="firing", stage="' + stage.name + '"}'
    yield Panel("Alerts that fire", [(f"sum by (alertname) ({alerts})", "{{alertname}}")])


def _gateway(ask: Questions) -> Iterator[Panel]:
    """What the gateway knows of its replicas."""
    yield Panel(
        "In the gateway",
        [
            (ask.series("rung_gateway_in_flight"), "in flight"),
            (ask.series("rung_gateway_outstanding"), "at replica {{replica}}"),
        ],
    )
    yield Panel(
        "Replicas",
        [
            (f"sum({ask.series('rung_gateway_replica_ready')})", "ready"),
            (f"sum({ask.series('rung_gateway_replica_in_rotation')})", "in rotation"),
        ],
    )
    yield Panel(
        "Retries and ejections",
        [
            (
                f"sum by (reason) (rate({ask.series('rung_gateway_retries_total')}[{WINDOW}]))",
                "tried again: {{reason}}",
            ),
            (f"sum(rate({ask.series('rung_gateway_retries_refused_total')}[{WINDOW}]))", "over the budget"),
            (
                f"sum by (replica) (rate({ask.series('rung_gateway_ejections_total')}[{WINDOW}]))",
                "ejected: {{replica}}",
            ),
            (f"sum(rate({ask.series('rung_gateway_clients_gone_total')}[{WINDOW}]))", "clients gone"),
        ],
        "ops",
    )


def _arms(stage: Stage, ask: Questions) -> Iterator[Panel]:
    """Two versions beside each other, each panel with the guardrail that watches it; and what becomes of copies."""
    split, each = stage.split, "{{arm}}"
    assert split is not None
    limits = split.guardrails
    errors_max, latency_s = (None, None) if limits is None else (limits.errors_share_max, limits.latency_s)
    yield Panel("Requests by arm", [(ask.requests_by_arm(WINDOW), each)], "reqps")
    said = _GUARDRAIL if errors_max is not None else ""
    yield Panel("Errors by arm", [(ask.errors_by_arm(WINDOW), each)], "percentunit", errors_max, said)
    said = _GUARDRAIL if latency_s is not None else ""
    yield Panel("Latency p95 by arm", [(ask.quantile_by_arm(0.95, WINDOW), each)], "s", latency_s, said)
    if counts_requests(stage) != "gateway":  # nginx says nothing of its share
        return
    share = (ask.series("rung_gateway_challenger_share"), "the challenger's share")
    stopped = (ask.series("rung_gateway_challenger_stopped"), "1: a guardrail has stopped it")
    yield Panel("Split", [share, stopped], "percentunit")
    if split.mode == "shadow":
        copies, dropped = ask.series("rung_gateway_copies_total"), ask.series("rung_gateway_copies_dropped_total")
        ended = f"sum by (outcome, reason) (rate({copies}[{WINDOW}]))"
        yield Panel(
            "Copies for the challenger",
            [(ended, "{{outcome}} {{reason}}"), (f"sum(rate({dropped}[{WINDOW}]))", "not made: too many under way")],
            "reqps",
        )


def _feedback(ask: Questions) -> Iterator[Panel]:
    """What labels say of the answers, and whether they and the predictions reach the disk."""
    judged, right = ask.series("rung_feedback_judged_total"), ask.series("rung_feedback_judged_total", 'right="yes"')
    ratio = f"sum by (arm) (rate({right}[{WINDOW}])) / sum by (arm) (rate({judged}[{WINDOW}]))"
    yield Panel("Right answers, of those with a label in time", [(ratio, "{{arm}}")], "percentunit")
    labels, late = ask.series("rung_feedback_labels_total"), ask.series("rung_feedback_labels_late_total")
    told = (f"sum by (how) (rate({labels}[{WINDOW}]))", "{{how}}")
    yield Panel("Labels", [told, (f"sum(rate({late}[{WINDOW}]))", "late")], "ops")
    lost = ask.series("rung_feedback_predictions_lost_total")
    yield Panel(
        "Predictions not written",
        [
            (ask.series("rung_feedback_waiting"), "wait"),
            (f"sum by (why) (increase({lost}[{WINDOW}]))", "lost: {{why}}"),
        ],
    )


def _cache(stage: Stage, ask: Questions) -> Iterator[Panel]:
    """What the gateway's cache has; how full it is, where that is known: a server keeps count of its own."""
    looks, failures = ask.series("rung_cache_requests_total"), ask.series("rung_cache_store_errors_total")
    hits = ask.series("rung_cache_requests_total", 'result="hit"')
    ratio = f"sum(rate({hits}[{WINDOW}])) / sum(rate({looks}[{WINDOW}]))"
    yield Panel("Hit ratio", [(ratio, "hits")], "percentunit")
    yield Panel("Looks into the cache", [(f"sum by (result) (rate({looks}[{WINDOW}]))", "{{result}}")], "reqps")
    if stage.cache is not None and stage.cache.store == "process":
        yield Panel("Kept answers", [(ask.series("rung_cache_bytes"), "bytes")], "bytes")
    gone = f"sum by (why) (rate({ask.series('rung_cache_evictions_total')}[{WINDOW}]))"
    failed = f"sum(rate({failures}[{WINDOW}]))"
    yield Panel("Evictions and failures", [(gone, "gone: {{why}}"), (failed, "the server failed")], "ops")


def _queue(ask: Questions) -> Iterator[Panel]:
    """What waits, and what is told to those who asked for it."""
    yield Panel("Jobs in the queue", [(f"max by (state) ({ask.series('rung_queue_jobs')})", "{{state}}")])
    yield Panel(
        "Age of the queue's oldest", [(f"max({ask.series('rung_queue_oldest_seconds')})", "first in line")], "s"
    )
    accepted, twice = ask.series("rung_jobs_accepted_total"), ask.series("rung_jobs_duplicates_total")
    yield Panel(
        "Jobs accepted",
        [(f"sum(rate({accepted}[{WINDOW}]))", "new"), (f"sum(rate({twice}[{WINDOW}]))", "there already")],
        "ops",
    )
    calls = f"sum by (how) (rate({ask.series('rung_jobs_callbacks_total')}[{WINDOW}]))"
    yield Panel("Callbacks", [(calls, "{{how}}")], "ops")
    inside = [(ask.series("rung_jobs_in_flight"), "in flight"), (ask.series("rung_jobs_waiters"), "wait for a result")]
    yield Panel("In the jobs API", inside)


def _workers(ask: Questions) -> Iterator[Panel]:
    """What each worker does."""
    each = "worker {{replica}}"
    jobs = ask.series("rung_worker_jobs_total")
    yield Panel("Jobs by how they ended", [(f"sum by (ending) (rate({jobs}[{WINDOW}]))", "{{ending}}")], "ops")
    held = ask.series("rung_worker_held_jobs")
    yield Panel("Workers", [(f"count({held})", "that answer"), (f"sum({held})", "jobs that they hold")])
    yield Panel(
        "Device busy", [(f"rate({ask.series('rung_worker_device_seconds_sum')}[{WINDOW}])", each)], "percentunit"
    )
    waits = ask.series("rung_worker_wait_seconds_bucket")
    wait = f"histogram_quantile(0.95, sum by (le) (rate({waits}[{WINDOW}])))"
    yield Panel("Wait for a worker, p95", [(wait, "all workers")], "s")
    sizes, batches = ask.series("rung_worker_batch_size_sum"), ask.series("rung_worker_batch_size_count")
    yield Panel("Mean batch size", [(f"rate({sizes}[{WINDOW}]) / rate({batches}[{WINDOW}])", each)])
    lost, down = ask.series("rung_worker_leases_lost_total"), ask.series("rung_worker_store_errors_total")
    yield Panel(
        "Leases lost, queue out of reach",
        [(f"sum(rate({lost}[{WINDOW}]))", "leases lost"), (f"sum(rate({down}[{WINDOW}]))", "calls that failed")],
        "ops",
    )
    yield Panel("Model on the shared GPU", [(ask.series("rung_worker_on_card"), each)])


def _replicas(ask: Questions) -> Iterator[Panel]:
    """What each replica does."""
    each = "replica {{replica}}"
    busy, waits = ask.series("rung_device_seconds_sum"), ask.series("rung_batch_wait_seconds_bucket")
    sizes, batches = ask.series("rung_batch_size_sum"), ask.series("rung_batch_size_count")
    yield Panel("Device busy", [(f"rate({busy}[{WINDOW}])", each)], "percentunit")
    yield Panel("Queue", [(ask.series("rung_queue_depth"), each)])
    yield Panel("Age of the queue's oldest", [(ask.series("rung_queue_age_seconds"), each)], "s")
    wait = f"histogram_quantile(0.95, sum by (le, replica) (rate({waits}[{WINDOW}])))"
    yield Panel("Wait for a batch, p95", [(wait, each)], "s")
    yield Panel("Mean batch size", [(f"rate({sizes}[{WINDOW}]) / rate({batches}[{WINDOW}])", each)])
    late = ask.series("rung_device_overruns")
    yield Panel("Emulated batches over their pace", [(f"delta({late}[{WINDOW}])", each)])


def _line(rule: Rule | None) -> tuple[float | None, str]:
    """Where the alert's line is drawn, and what it says; nothing for a rule that is switched off."""
    return (None, "") if rule is None else (rule.above, in_words(rule))


def _drawn(number: int, panel: Panel) -> dict[str, Any]:
    """The panel in its place: three in a row, each with a legend below."""
    row, column = divmod(number, _COLUMNS)
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.threshold is not None:
        steps.append({"color": "red", "value": panel.threshold})
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "gridPos": {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "min": 0,
                "thresholds": {"mode": "absolute", "steps": steps},
                "custom": {"thresholdsStyle": {"mode": "off" if panel.threshold is None else "line"}},
            },
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": _SOURCE, "expr": query, "legendFormat": legend}
            for place, (query, legend) in enumerate(panel.queries)
        ],
    }
