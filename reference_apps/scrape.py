"""The metrics of the processes of a stage, read as Prometheus would read them.

    launcher ──▶ targets ──▶ GET /metrics of each, within a timeout ──▶ Scraped, or None of one that did not answer
                    └──────▶ targets.json, which Prometheus can read too (file_sd_configs)

No twin: the simulator has its records.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from reference_apps.asking import open_url
from reference_apps.launchers.launcher import Launcher
from reference_apps.launchers.member import write_atomically
from stages.arms import arm_of
from stages.fleet import Edge
from stages.spec import Stage

TARGETS_FILE = "targets.json"
PAGE_BYTES_MAX = 4_194_304

Role = Literal["gateway", "jobs", "replica"]  # workers are replicas here
PREFIXES: dict[Role, str] = {"gateway": "rung_gateway", "jobs": "rung_jobs", "replica": "rung"}


@dataclass(frozen=True)
class Target:
    """A process that has metrics. `number` is a replica's; the gateway and the jobs API have none."""

    role: Role
    number: int | None
    url: str


@dataclass(frozen=True)
class Scraped:
    """What one process counted since it started, and how long its queue is now. What it does not have is 0."""

    requests: float = 0.0  # that came to their end; those that the client got wrong are not counted
    errors: float = 0.0
    answers_within: tuple[float, ...] = ()  # by bound of the latency histogram, cumulative; the last: all
    device_busy_s: float = 0.0
    queue_length: float = 0.0


def counts_requests(stage: Stage) -> Role:
    """Whose count of requests is the stack's: the gateway's, unless it is none of ours, or that of the jobs API."""
    if stage.queue is not None:
        return "jobs"
    return "gateway" if stage.gateway is not None and stage.gateway.engine == "rung" else "replica"


def targets_of(launcher: Launcher) -> list[Target]:
    """The processes of a stage that can be asked now."""
    replicas = [r for r in list(launcher.replicas) if r.url and r.state in ("ready", "draining")]
    targets = [Target("replica", replica.number, replica.url) for replica in replicas]
    front, role = launcher.gateway, counts_requests(launcher.stage)
    if front is not None and front.url and role != "replica":
        targets.append(Target(role, None, front.url))
    return targets


def scrape(stage: Stage, target: Target, bounds_s: Sequence[float], timeout_s: float) -> Scraped | None:
    """What the target's metrics say; None when it does not answer, or not with metrics."""
    edge = stage.gateway.edge if stage.gateway is not None and target.role == "gateway" else None
    text = page(target.url, timeout_s, edge)
    try:
        return None if text is None else summed(text, target.role, bounds_s)
    except ValueError:  # something else listens there
        return None


def page(url: str, timeout_s: float, edge: Edge | None = None) -> str | None:
    """The text of `url`/metrics; None when there is none within the timeout."""
    try:
        with open_url(f"{url}/metrics", timeout_s, edge) as response:
            return response.read(PAGE_BYTES_MAX).decode("utf-8", errors="replace")
    except (OSError, http.client.HTTPException):
        return None


def summed(text: str, role: Role, bounds_s: Sequence[float]) -> Scraped:
    """The numbers of a page of metrics that alerts are about. Raises ValueError when it is no such page."""
    prefix = PREFIXES[role]
    requests = errors = busy_s = queue_length = 0.0
    within = dict.fromkeys([*bounds_s, float("inf")], 0.0)
    for sample in _samples(text):
        labels, count = sample.labels, float(sample.value)
        if sample.name == f"{prefix}_requests_total" and labels["reason"] != "bad_input":
            requests += count
            errors += count if labels["outcome"] != "ok" else 0.0
        elif sample.name == f"{prefix}_request_seconds_bucket" and labels["outcome"] == "ok":
            within[float(labels["le"])] = count
        elif sample.name in ("rung_device_seconds_sum", "rung_worker_device_seconds_sum"):
            busy_s = count
        elif sample.name == "rung_queue_depth" or (sample.name == "rung_queue_jobs" and labels["state"] == "waiting"):
            queue_length = count
    return Scraped(requests, errors, tuple(within[bound] for bound in [*bounds_s, float("inf")]), busy_s, queue_length)


def file_sd(stage: Stage, targets: Sequence[Target]) -> list[dict[str, object]]:
    """The targets in the form of Prometheus' file_sd_configs: an entry each, with the labels that the rules ask for."""
    return [
        {
            "targets": [_address(target)],
            "labels": {"stage": stage.name, "role": target.role} | _scheme_and_number(stage, target),
        }
        for target in targets
    ]


def write_targets(stage: Stage, targets: Sequence[Target], folder: Path) -> None:
    """Writes targets.json, which Prometheus looks at again when it changes."""
    write_atomically(folder / TARGETS_FILE, json.dumps(file_sd(stage, targets), indent=2) + "\n")


def _samples(text: str) -> list[Sample]:
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def _address(target: Target) -> str:
    return urlsplit(target.url).netloc


def _scheme_and_number(stage: Stage, target: Target) -> dict[str, str]:
    labels = {} if target.number is None else {"replica": str(target.number)}
    if target.number is not None and stage.split is not None:
        labels["arm"] = arm_of(stage, target.number)
    return labels | ({"__scheme__": "https"} if target.url.startswith("https:") else {})
