"""What is exported for Prometheus and Grafana: metrics that exist, sound files, rules that decide as ours do."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner, Result

from reference_apps import export as exports
from reference_apps.batcher import Batcher
from reference_apps.broker import Depth
from reference_apps.feedback_metrics import FeedbackMetrics
from reference_apps.gateway_metrics import CacheMetrics, GatewayMetrics
from reference_apps.grafana import dashboard
from reference_apps.jobs_metrics import JobsMetrics
from reference_apps.promql import duration
from reference_apps.replica_metrics import ReplicaMetrics
from reference_apps.scrape import Target, counts_requests, file_sd
from reference_apps.watch_cli import app
from reference_apps.worker_metrics import WorkerMetrics
from simulator.alerts import readings
from simulator.run import simulate
from stages.alerts import latency_bounds_of, limits_of, rules_of
from stages.arms import arms_of
from stages.policies.alerting import Reading, RuleSet
from stages.spec import Stage, load_stage
from stages.terminal import Exit
from tests.made import a_calibration, a_schedule, a_stage

PROMTOOL = shutil.which("promtool")
needs_promtool = [pytest.mark.promtool, pytest.mark.skipif(PROMTOOL is None, reason="needs promtool")]
SPLITS: dict[str, dict[str, Any]] = {
    "ab-test": {},
    "ab-test, in shadow mode": {"split.mode": "shadow"},
    "ab-test, by nginx": {"gateway.engine": "nginx", "split.guardrails": None, "feedback": None},
}
# Without a gateway, with one, with all else; with two versions.
STAGES = ("micro-batched", "load-balanced", "cached", "queued", *SPLITS)
# What Prometheus adds to the metrics of a target, and what it makes itself.
TARGET_LABELS = {"stage", "role", "replica"}
OF_PROMETHEUS = {"ALERTS": {"alertstate", "alertname"}, "up": set[str]()}


def named(name: str) -> Stage:
    """A stage of STAGES."""
    return load_stage("ab-test", SPLITS[name]) if name in SPLITS else load_stage(name)


def metrics_of(stage: Stage) -> dict[str, set[str]]:
    """Every series that the processes of a stage expose, after some work, and its labels."""
    bounds_s = latency_bounds_of(stage)
    texts = _of_a_queue(bounds_s) if stage.queue is not None else []
    if stage.queue is None:
        replica = ReplicaMetrics(Batcher(stage.batching, stage.admission), 8, lambda: 0, bounds_s)
        replica.batch(2, [0.1, 0.2], 0.3)
        texts.append(replica.text())
    if counts_requests(stage) == "gateway":
        seen = [(0, 1, 0.5, True, False, False)]
        gateway = GatewayMetrics(lambda: 0, lambda: seen, bounds_s, arms_of(stage))
        gateway.retried("draining")
        gateway.ejected(0)
        if stage.cache is not None:
            CacheMetrics(gateway.registry).watch(lambda: (100, 1))
        if stage.split is not None:
            experiment = SimpleNamespace(wanted=SimpleNamespace(stopped=""))
            shadow: Any = SimpleNamespace(outstanding=0) if stage.split.mode == "shadow" else None
            splitter: Any = SimpleNamespace(share=0.1, experiment=experiment)
            gateway.watch_split(splitter, shadow)
        if stage.feedback is not None:
            FeedbackMetrics(gateway.registry, arms_of(stage)).watch(lambda: 0)
        texts.append(gateway.text())
    found: dict[str, set[str]] = {}
    for text in texts:
        for family in text_string_to_metric_families(text.decode()):
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
    return found


def _of_a_queue(bounds_s: Sequence[float]) -> list[bytes]:
    """What the jobs API and a worker of a queued stage tell."""
    jobs = JobsMetrics(lambda: 0, lambda: 0, bounds_s)
    worker = WorkerMetrics(lambda: 0, lambda: 0, lambda: True, 8)
    worker.batch([0.1, 0.2], 2, 0.3)
    return [jobs.text(Depth(waiting=1, leased=0, delayed=0, dead=0, oldest_s=0.5)), worker.text()]


def asked_of(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Every series that a PromQL expression names, and the labels that it selects by."""
    for name, selector in re.findall(r"\b([a-zA-Z_:]+)\{([^}]*)\}", expression):
        yield name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
    for name in re.findall(r"\brung_\w+\b(?!\{)", expression):
        raise AssertionError(f"{name} is asked for without a stage: {expression}")


def expressions(stage: Stage) -> list[str]:
    rules = [rule["expr"] for group in exports.rules(stage)["groups"] for rule in group["rules"]]
    charts = [target["expr"] for panel in dashboard(stage)["panels"] for target in panel["targets"]]
    assert rules and charts
    return [*rules, *charts]


@pytest.mark.parametrize("name", STAGES)
def test_every_metric_that_is_asked_for_exists_with_its_labels(name: str) -> None:
    stage = named(name)
    there = metrics_of(stage) | OF_PROMETHEUS
    target_labels = TARGET_LABELS | (
        {"arm"} if counts_requests(stage) == "replica" and stage.split is not None else set()
    )
    for expression in expressions(stage):
        asked = list(asked_of(expression))
        assert asked, expression
        for metric, labels in asked:
            assert metric in there, f"{metric} is no metric of {name}: {expression}"
            assert labels <= there[metric] | target_labels, expression
            assert "stage" in labels


def test_the_bucket_of_the_promise_exists() -> None:
    """`le` is a text to Prometheus: 0.1 and 0.10 are two labels."""
    for latency_s in (0.1, 0.25, 1.0, 0.123, 2.0, 30.0):
        stage = load_stage("micro-batched", {"slo.latency_s": latency_s})
        replica = ReplicaMetrics(Batcher(stage.batching, stage.admission), 8, lambda: 0, latency_bounds_of(stage))
        (asked,) = {le for each in expressions(stage) for le in re.findall(r'le="([^"]*)"', each)}
        assert f'rung_request_seconds_bucket{{le="{asked}",outcome="ok"}}' in replica.text().decode()


@pytest.mark.parametrize("name", STAGES)
def test_counters_are_there_before_the_first_request(name: str) -> None:
    """A counter that appears together with its first count shows no increase: the first error would be missed."""
    stage = named(name)
    replica = ReplicaMetrics(Batcher(stage.batching, stage.admission), 8, lambda: 0, latency_bounds_of(stage)).text()
    gateway = GatewayMetrics(lambda: 0, lambda: [], latency_bounds_of(stage)).text()
    jobs = JobsMetrics(lambda: 0, lambda: 0, latency_bounds_of(stage)).text(None)
    texts = ((replica, "rung"), (gateway, "rung_gateway"), (jobs, "rung_jobs"))
    for text, prefix in ((text.decode(), prefix) for text, prefix in texts):
        assert f'{prefix}_requests_total{{outcome="shed",reason="queue_full"}} 0.0' in text
        assert f'{prefix}_request_seconds_count{{outcome="ok"}} 0.0' in text


def test_a_chart_stands_on_no_other() -> None:
    for name in STAGES:
        panels = dashboard(named(name))["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)
        assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)
        for panel in panels:
            references = [target["refId"] for target in panel["targets"]]
            assert len(set(references)) == len(references)


def test_rules_that_are_switched_off_are_not_exported() -> None:
    stage = load_stage("micro-batched", {"alerts.errors.enabled": False, "alerts.burn_rate.enabled": False})
    (group,) = exports.rules(stage)["groups"]
    assert [rule["alert"] for rule in group["rules"]] == ["RungLatency", "RungQueue", "RungUtilisation"]
    assert "Burn rate of the error budget" not in [panel["title"] for panel in dashboard(stage)["panels"]]


def test_durations_are_those_of_promql() -> None:
    assert [duration(s) for s in (0.0, 0.1, 1.0, 1.5, 4320.0)] == ["0s", "100ms", "1s", "1500ms", "4320s"]


def test_two_versions_stand_beside_each_other() -> None:
    for name in SPLITS:
        panels = {panel["title"]: panel for panel in dashboard(named(name))["panels"]}
        for title in ("Requests by arm", "Errors by arm", "Latency p95 by arm"):
            (target,) = panels[title]["targets"]
            assert "arm)" in target["expr"] and target["legendFormat"] == "{{arm}}"
        assert ("Copies for the challenger" in panels) == ("shadow" in name)
        assert (
            ("Split" in panels) == ("Right answers, of those with a label in time" in panels) == ("nginx" not in name)
        )
        (step,) = panels["Latency p95 by arm"]["fieldConfig"]["defaults"]["thresholds"]["steps"][1:] or [
            {"value": None}
        ]
        assert step["value"] == (None if "nginx" in name else 0.15), "the guardrail's line"
    assert not any("arm" in panel["title"] for panel in dashboard(load_stage("load-balanced"))["panels"])


def test_each_arm_has_its_counters_before_the_first_request() -> None:
    there = metrics_of(named("ab-test, in shadow mode"))
    assert "arm" in there["rung_gateway_requests_total"]
    gateway = GatewayMetrics(lambda: 0, lambda: [], (0.1,), ("champion", "challenger"))
    FeedbackMetrics(gateway.registry, ("champion", "challenger"))
    text = gateway.text().decode()
    for arm in ("champion", "challenger"):
        assert f'rung_gateway_requests_total{{arm="{arm}",outcome="failed",reason="model_error"}} 0.0' in text
        assert f'rung_feedback_judged_total{{arm="{arm}",right="yes"}} 0.0' in text


def test_targets_carry_what_the_rules_select_by() -> None:
    stage = load_stage("load-balanced")
    found = file_sd(stage, [Target("replica", 1, "http://127.0.0.1:7"), Target("gateway", None, "https://[::1]:8")])
    assert found == [
        {"targets": ["127.0.0.1:7"], "labels": {"stage": "load-balanced", "role": "replica", "replica": "1"}},
        {"targets": ["[::1]:8"], "labels": {"stage": "load-balanced", "role": "gateway", "__scheme__": "https"}},
    ]


def test_a_replica_s_target_says_of_which_arm_it_is() -> None:
    found = file_sd(load_stage("ab-test"), [Target("replica", number, "http://127.0.0.1:7") for number in (1, 2, 3)])
    assert [each["labels"]["arm"] for each in found] == ["champion", "challenger", "champion"]  # type: ignore[index]


def test_a_key_goes_to_the_gateway_alone_and_stands_in_no_file() -> None:
    stage = load_stage("load-balanced", {"gateway.edge.api_keys_env": "RUNG_API_KEYS"})
    gateway, replica = exports.configuration(stage, Path("targets.json"))["scrape_configs"]
    assert gateway["authorization"] == {"type": "Bearer", "credentials_file": "api-key"}
    assert "authorization" not in replica


# ---- the commands ----


def rung(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "240"})


def exported(folder: Path, name: str, *words: object) -> dict[str, Any]:
    result = rung("export", "prometheus", name, "--out", folder, "--port", 8000, "--json", *words)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_files_for_a_port(runs: Path, tmp_path: Path) -> None:
    found = exported(tmp_path / "prom", "micro-batched")
    assert [Path(path).name for path in found["files"]] == ["prometheus.yml", "rules.yml", "targets.json"]
    assert found["notes"] == []
    config = yaml.safe_load((tmp_path / "prom/prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert (config["rule_files"], job["file_sd_configs"]) == (["rules.yml"], [{"files": ["targets.json"]}])
    (target,) = json.loads((tmp_path / "prom/targets.json").read_text())
    assert target["targets"] == ["127.0.0.1:8000"]
    assert not runs.exists()


def test_a_stage_that_is_not_up_needs_a_port(runs: Path, tmp_path: Path) -> None:
    result = rung("export", "prometheus", "micro-batched", "--out", tmp_path / "prom")
    assert (result.exit_code, result.stdout) == (Exit.MISUSED, "")
    assert result.stderr == (
        "micro-batched: is not up. Prometheus would not know whom to scrape. "
        "Start it with `rung up`, or give its --port.\n"
    )
    assert not (tmp_path / "prom").exists() and not runs.exists()


def test_a_place_that_cannot_be_written_to_is_told(runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    result = rung("export", "prometheus", "micro-batched", "--out", file / "in", "--port", 8000)
    assert (result.exit_code, result.stdout) == (Exit.MISUSED, "")
    assert "must be a folder that can be written to, got 'Not a directory'" in result.stderr
    result = rung("export", "grafana", "micro-batched", "--out", file / "in")
    assert "must be a file that can be written, got 'Not a directory'" in result.stderr
    assert not runs.exists()


def test_a_dashboard_is_json(runs: Path, tmp_path: Path) -> None:
    printed = rung("export", "grafana", "load-balanced")
    assert printed.exit_code == 0
    assert rung("export", "grafana", "load-balanced", "--out", tmp_path / "it.json").exit_code == 0
    found = json.loads((tmp_path / "it.json").read_text())
    assert found == json.loads(printed.stdout) == dashboard(load_stage("load-balanced"))
    assert found["title"] == "rung: Load-balanced"
    assert not runs.exists()


# ---- by Prometheus' own tool ----


class TestByPromtool:
    pytestmark = needs_promtool

    @pytest.mark.parametrize(
        ("name", "more"),
        [
            ("micro-batched", []),
            ("load-balanced", ["--set", "gateway.edge.api_keys_env=RUNG_API_KEYS"]),
            ("micro-batched", ["--set", "alerts.interval_s=0.5", "--set", "alerts.burn_rate.speedup=240"]),
        ],
    )
    def test_the_files_are_sound(self, name: str, more: list[str], runs: Path, tmp_path: Path) -> None:
        found = exported(tmp_path, name, *more)
        if found["notes"]:
            assert any("api-key" in note for note in found["notes"])
            (tmp_path / "api-key").write_text("a key\n")
        told = promtool("check", "config", tmp_path / "prometheus.yml")
        assert f"{len(rules_of(load_stage(name)))} rules found" in told
        assert str(runs) not in told

    def test_the_rules_decide_as_ours_do(self, tmp_path: Path) -> None:
        stage, story = a_bad_minute()
        expected = firing(stage, story)
        assert {rule for rule, seconds in expected.items() if seconds} == {rule.name for rule in rules_of(stage)}
        (tmp_path / "rules.yml").write_text(yaml.safe_dump(exports.rules(stage)))
        tests = {
            "rule_files": ["rules.yml"],
            "evaluation_interval": "1s",
            "tests": [
                {
                    "interval": "1s",
                    "input_series": series(stage, story),
                    "promql_expr_test": asked(stage, expected, story[-1].at_s),
                }
            ],
        }
        (tmp_path / "tests.yml").write_text(yaml.safe_dump(tests))
        assert "SUCCESS" in promtool("test", "rules", tmp_path / "tests.yml")


def promtool(*words: object) -> str:
    command = [str(PROMTOOL), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def a_bad_minute() -> tuple[Stage, list[Reading]]:
    """Ten requests a second for a device that does 20, and 40 a second from 40 s to 70 s, most of which are refused."""
    stage = a_stage(
        alerts={"latency": {"window_s": 10.0}, "utilisation": {"window_s": 10.0, "for_s": 5.0, "above_share": 0.93}},
        admission={"max_queue_length": 20},
        slo={"latency_s": 0.2},
        traffic={"rate": {"shape": "constant", "rate_rps": 20.0}},
    )
    calm, spike = [n / 10 for n in range(1200)], [40.0 + n / 30 for n in range(900)]
    records = simulate(stage, a_schedule(sorted([*calm, *spike])), calibration=a_calibration({1: (0.05,)}))
    return stage, list(readings(stage, records))


def firing(stage: Stage, story: list[Reading]) -> dict[str, list[float]]:
    """By rule, the seconds at which ours has it firing."""
    rules = RuleSet(rules_of(stage), limits_of(stage))
    found: dict[str, list[float]] = {rule.name: [] for rule in rules.rules}
    for reading in story:
        rules.ask(reading)
        for name, seconds in found.items():
            if rules.status(name).state == "firing":
                seconds.append(reading.at_s)
    return found


def series(stage: Stage, story: list[Reading]) -> list[dict[str, str]]:
    """What Prometheus would have scraped from the replica of this story, a value a second."""

    def one(metric: str, values: list[float], labels: Mapping[str, str]) -> dict[str, str]:
        told = ", ".join(f'{name}="{text}"' for name, text in {"stage": stage.name, **labels}.items())
        return {"series": f"{metric}{{{told}}}", "values": " ".join(f"{value:.12g}" for value in values)}

    bounds = [str(bound_s) for bound_s in latency_bounds_of(stage)]
    buckets = [
        one(
            "rung_request_seconds_bucket",
            [each.answers_within[number] for each in story],
            {"outcome": "ok", "le": le},
        )
        for number, le in enumerate([*bounds, "+Inf"])
    ]
    ok, errors = [each.requests - each.errors for each in story], [each.errors for each in story]
    return [
        *buckets,
        one("rung_requests_total", ok, {"outcome": "ok", "reason": ""}),
        one("rung_requests_total", errors, {"outcome": "shed", "reason": "queue_full"}),
        one(
            "rung_requests_total", [7.0 * n for n, _ in enumerate(story)], {"outcome": "failed", "reason": "bad_input"}
        ),
        one("rung_device_seconds_sum", [each.device_busy_s for each in story], {}),
        one("rung_queue_depth", [each.queue_length for each in story], {}),
    ]


def asked(stage: Stage, expected: dict[str, list[float]], last_s: float) -> list[dict[str, Any]]:
    """For every rule and second: does Prometheus have it firing then, as ours does?"""
    tests: list[dict[str, Any]] = []
    for rule in rules_of(stage):
        alert = f'ALERTS{{alertname="{exports.alert_name(rule)}", alertstate="firing"}}'
        for second in range(31, int(last_s) + 1):
            value = 1 if float(second) in expected[rule.name] else 0
            samples = [{"labels": "{}", "value": value}]
            tests.append({"expr": f"count({alert}) or vector(0)", "eval_time": f"{second}s", "exp_samples": samples})
    return tests
