"""A stage's scrape configuration and alert rules as files for Prometheus.

    Stage ──▶ prometheus.yml ── file_sd ──▶ targets.json        who is scraped: kept up by the stage that is up
          └─▶ rules.yml                                         the rules of [alerts], in PromQL

Grafana's dashboard is in reference_apps/grafana.py. No twin. Not exported: where Prometheus sends its alerts, which is
Alertmanager's to know; the stack's own webhook is in [alerts.webhook].
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from reference_apps.promql import Questions, duration
from reference_apps.scrape import TARGETS_FILE, Target, counts_requests, write_targets
from stages.alerts import in_words, rules_of
from stages.policies.alerting import Rule
from stages.spec import Stage

KEY_FILE = "api-key"


def write(stage: Stage, folder: Path, targets_file: Path | None, targets: tuple[Target, ...] = ()) -> list[Path]:
    """Writes prometheus.yml and rules.yml into `folder`, which is made if need be, and gives what was written.

    `targets_file` is the one that a stage that is up keeps; without it targets.json is written there, with `targets`.
    Raises OSError when something cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "prometheus.yml", folder / "rules.yml"]
    if targets_file is None:
        write_targets(stage, targets, folder)
        targets_file = Path(TARGETS_FILE)
        written.append(folder / TARGETS_FILE)
    for path, content in zip(written, (configuration(stage, targets_file), rules(stage)), strict=False):
        path.write_text(_yaml(content, f"Of the stage {stage.name}, by `rung export prometheus`."), encoding="utf-8")
    return written


def configuration(stage: Stage, targets_file: Path) -> dict[str, Any]:
    """The content of prometheus.yml. Paths that are not absolute are seen from its folder."""
    every = duration(stage.alerts.interval_s)
    jobs = [_job(stage, targets_file, "replica")]
    if (front := counts_requests(stage)) != "replica":
        jobs.insert(0, _job(stage, targets_file, front))
    return {
        "global": {"scrape_interval": every, "evaluation_interval": every},
        "rule_files": ["rules.yml"],
        "scrape_configs": jobs,
    }


def rules(stage: Stage) -> dict[str, Any]:
    """The content of rules.yml: one group with the stage's rules in their order."""
    ask = Questions(stage)
    group = {
        "name": f"rung-{stage.name}",
        "interval": duration(stage.alerts.interval_s),
        "rules": [
            {
                "alert": alert_name(rule),
                "expr": ask.condition(rule),
                "for": duration(rule.for_s),
                "labels": {"severity": rule.severity, "stage": stage.name},
                "annotations": {
                    "summary": f"{stage.name}: {in_words(rule)}",
                    "description": "Now {{ $value | humanize }}.",
                },
            }
            for rule in rules_of(stage)
        ],
    }
    return {"groups": [group]}


def alert_name(rule: Rule) -> str:
    """How Prometheus calls the alert: `burn-rate-fast` is RungBurnRateFast."""
    return "Rung" + "".join(word.capitalize() for word in rule.name.split("-"))


def wants_key(stage: Stage) -> bool:
    """Whether the gateway answers only those who bring a key, so that Prometheus needs one."""
    return (
        counts_requests(stage) == "gateway"
        and stage.gateway is not None
        and stage.gateway.edge.api_keys_env is not None
    )


def _job(stage: Stage, targets_file: Path, role: str) -> dict[str, Any]:
    """One scrape job of the targets with this role. A key goes to nobody but the gateway."""
    job: dict[str, Any] = {
        "job_name": f"rung-{stage.name}-{role}",
        "file_sd_configs": [{"files": [str(targets_file)]}],
        "relabel_configs": [{"source_labels": ["role"], "regex": role, "action": "keep"}],
    }
    if role == "gateway" and stage.gateway is not None:
        if wants_key(stage):
            job["authorization"] = {"type": "Bearer", "credentials_file": KEY_FILE}
        if stage.gateway.edge.tls_certificate is not None:
            job["tls_config"] = {"ca_file": stage.gateway.edge.tls_certificate}
    return job


def _yaml(content: dict[str, Any], comment: str) -> str:
    class Block(yaml.SafeDumper):
        """Texts of several lines as blocks, which people can read."""

    def block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)

    Block.add_representer(str, block)
    return f"# {comment}\n" + yaml.dump(content, Dumper=Block, sort_keys=False, width=120, allow_unicode=True)
