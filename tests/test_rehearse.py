"""A challenger in production until a guardrail puts it out: what is said of it, and that it happens for real."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
import psutil
import pytest
from safetensors.numpy import load_file, save
from typer.testing import CliRunner

from loadtests import rehearse as rehearsal
from loadtests import rehearse_report
from loadtests.ab_split_cli import app
from loadtests.answers import right_answers
from loadtests.payloads import make_payloads
from loadtests.rehearse import Out, duration_s, out_of, rehearse, rows
from reference_apps import split_file
from reference_apps.asking import probe, wait_until
from reference_apps.launchers.member import LaunchError
from reference_apps.model_metadata import About
from reference_apps.models.inputs import WEIGHTS_DIR
from reference_apps.registry import pinned
from reference_apps.up import split_folder, state_file
from simulator.rehearsed import rehearsed
from simulator.splitter import Stopped
from stages.policies.guardrails import Broken
from stages.records import read
from stages.spec import Stage, load_stage, stage_toml
from stages.traffic import schedule
from tests.conftest import PATIENCE_S
from tests.fake_replicas import Fleet
from tests.made import a_calibration
from tests.no_warm_up import no_warm_up
from tests.registries import two_versions
from tests.test_splitter import arms

__all__ = ["no_warm_up"]
pytestmark = pytest.mark.usefixtures("in_numpy")

NEVER = Out("", "it was not stopped", math.nan, math.nan, math.nan, math.nan)
KNOWN = a_calibration(dict.fromkeys(range(1, 9), (0.0125,)))


def an_out(at_s: float, requests: float = 100.0) -> Out:
    return Out("errors", "it failed", at_s, requests, 20.0, 7.0)


def quick(**changes: Any) -> Stage:
    """The stage at the pace of its own device, in a few seconds."""
    fast = {
        "device.slowdown": 1.0,
        "batching.batch_wait_timeout_s": 0.002,
        "split.ramp": None,
        "split.challenger_share": 0.5,
        "traffic.duration_s": 3.0,
        "traffic.rate.rate_rps": 60.0,
        "traffic.items.count": 500,
    }
    return load_stage("ab-test", fast | {key.replace("__", "."): value for key, value in changes.items()})


def test_a_run_lasts_until_every_prediction_has_it_out_and_no_longer_than_the_stage() -> None:
    stage = load_stage("ab-test")
    assert duration_s(stage, [an_out(10.0), an_out(20.0)]) == 45.0
    assert duration_s(stage, [an_out(10.0), NEVER]) == stage.traffic.duration_s
    assert duration_s(stage, [an_out(590.0)]) == stage.traffic.duration_s


def test_a_run_is_not_cut_where_the_inputs_that_are_sent_leave_the_challenger_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All other dice have it out at once."""
    lasted_s: list[float] = []

    def no_run(point: Stage, *_: Any) -> Any:
        lasted_s.append(point.traffic.duration_s)
        raise LaunchError("it does not start")

    monkeypatch.setattr(rehearsal, "_thrown", lambda *_: [an_out(0.5)])
    monkeypatch.setattr(rehearsal, "_measured", no_run)
    monkeypatch.setattr(rehearsal, "right_answers", lambda _: None)
    stage = quick(traffic__duration_s=60.0, split__challenger_facts={"crash_share": 0.5})
    for position in (0.6, 0.4):
        monkeypatch.setattr(rehearsal, "crash_positions", lambda _, position=position: lambda item: position)
        with pytest.raises(LaunchError):
            rehearse(stage, KNOWN, tmp_path, command="rung ab rehearse")
    assert lasted_s[0] == 60.0, "never out"
    assert lasted_s[1] < 20.0


def test_a_stop_is_told_with_its_guardrail_and_in_words() -> None:
    stage = load_stage("ab-test")
    stopped = Stopped(12.5, Broken("latency", 0.7, 0.05, 31), 900, 2)
    assert out_of(stage, stopped) == Out(
        "latency",
        "70 % of its answers took longer than 0.15 s, more than 5 %, after 31 of its requests",
        12.5,
        900,
        31,
        2,
    )
    assert out_of(stage, None).why == "it was not stopped"


def test_ranges_are_over_all_dice_and_pass_over_what_never_happened() -> None:
    stage = quick(split__challenger_facts={"crash_share": 1.0})
    found = rehearsed(stage, schedule(stage.traffic), KNOWN)
    records = found.records
    made = {
        row.name: row for row in rows(an_out(3.0), an_out(4.0), [an_out(2.0), NEVER, an_out(9.0)], records, records)
    }
    after = made["out after"]
    assert (after.measured, after.predicted, after.low, after.high) == (3.0, 4.0, 2.0, 9.0)
    visible = made["challenger: not answered in all"]
    assert visible.measured == visible.predicted >= 20
    assert made["champion: not answered in all"].measured == 0
    nothing = rows(NEVER, NEVER, [NEVER], records, records)
    assert all(math.isnan(row.measured) for row in nothing[:4])


def test_the_versions_themselves_say_which_inputs_they_are_right_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = two_versions(tmp_path, monkeypatch)
    blank = {name: np.zeros_like(each) for name, each in load_file(WEIGHTS_DIR / "digits.safetensors").items()}
    registry.publish(About.model_validate({"model": "digits", "metrics": {"accuracy": 0.1}}), save(blank), "blank")
    stage = pinned(quick(split__challenger="blank", feedback__share=1.0))
    right, labels = right_answers(stage), make_payloads(stage).labels
    assert right is not None
    shown = [label == 0 for label in labels]
    assert [right("challenger", item) for item in range(len(labels))] == shown, "one that knows nothing answers 0"
    assert np.mean([right("champion", item) for item in range(len(labels))]) > 0.97
    assert right("challenger", len(labels) + 3) == shown[3]
    others = right_answers(stage, seed=7)
    assert others is not None
    assert [others("challenger", item) for item in range(len(labels))] != shown
    assert right_answers(load_stage("load-balanced")) is None

    arrivals = schedule(stage.traffic)
    stopped = rehearsed(stage, arrivals, KNOWN, right=right).stopped
    assert stopped is not None and stopped.broken.guardrail == "accuracy"
    assert rehearsed(stage, arrivals, KNOWN, right=lambda arm, item: True).stopped is None


@pytest.mark.usefixtures("no_warm_up")
def test_one_that_crashes_is_out_for_real_where_it_is_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes, Locust, a registry, the control file, the alert: all of it, for three seconds."""
    two_versions(tmp_path, monkeypatch)
    # On a machine that is busy for a moment nobody is called ill.
    health = {"gateway__eject_after": 1000, "gateway__unhealthy_after": 100}
    stage = pinned(quick(split__challenger="crashing", fleet__replicas=1, **health))
    assert stage.split is not None and stage.split.challenger_facts is not None
    assert stage.split.challenger_facts.crash_share == 1.0
    earlier = tmp_path / "run" / "stack" / "split"
    earlier.mkdir(parents=True)
    split_file.begin(earlier, split_file.first(stage.split, 0.0, "digits/crashing@earlier"))
    split_file.stop(earlier, 0, "latency", "an earlier rehearsal found it slow")
    found = rehearse(stage, KNOWN, tmp_path / "run", command="rung ab rehearse", short=True)
    assert (found.measured.guardrail, found.predicted.guardrail) == ("errors", "errors")
    assert found.measured.challenger_requests == found.predicted.challenger_requests == 20
    before_s = min(found.measured.at_s, found.predicted.at_s) - 0.1
    same = [
        read(tmp_path / "run" / world)
        .requests.filter(pl.col("scheduled_s") < before_s)
        .select("request", "item", "arm")
        for world in ("measured", "predicted")
    ]
    assert same[0].height > 20
    assert same[0].equals(same[1]), "the same users ask for the same, and get the same arm, in both worlds"
    made = {row.name: row for row in found.rows}
    assert made["challenger: not answered in all"].measured >= 20
    real = read(tmp_path / "run" / "measured").requests
    after = real.filter(pl.col("gateway_in_s") > found.measured.at_s + 0.1)
    assert set(after["arm"].cast(pl.String)) == {"champion"}, "nobody gets it any more"
    assert made["champion: not answered in all"].measured == 0
    told = split_file.read(tmp_path / "run" / "stack" / "split")
    assert told is not None and told.stopped == "errors"
    alerts = [json.loads(line) for line in (tmp_path / "run" / "stack" / "alerts.jsonl").read_text().splitlines()]
    assert [alert["state"] for alert in alerts if alert["alert"] == "guardrail-errors"] == ["firing"]
    path = rehearse_report.write(found, tmp_path / "run")
    assert json.loads(path.read_text())["measured"]["guardrail"] == "errors"


def test_a_stage_that_is_up_gets_another_share_and_keeps_it_through_kill_9(runs: Path, tmp_path: Path) -> None:
    """A gateway in a process of its own, before replicas that are the test's."""
    runner, folder = CliRunner(), tmp_path / "run"
    folder.mkdir()
    with arms(tmp_path, 0.0) as made:
        assert made.stage.split is not None
        (folder / "stage.toml").write_text(stage_toml(made.stage), encoding="utf-8")
        kept = split_folder(made.stage.name)
        kept.mkdir(parents=True)
        split_file.begin(kept, split_file.first(made.stage.split, 0.0, "digits/2@feed"))
        with a_gateway(made, folder) as url:
            _note_up(made.stage, url, folder)
            done = runner.invoke(app, ["share", made.stage.name, "1.0", "--json"])
            assert done.exit_code == 0, done.output
            assert json.loads(done.stdout) == {
                **{"stage": made.stage.name, "generation": 1, "trial": 0, "share": 1.0, "ramp_began_s": None},
                **{"stopped": "", "why": "", "stopped_at": None, "challenger": "digits/2@feed"},
                **{"began_at": 0.0, "in_force": True},
            }
            assert _arm(url) == "challenger"
        with a_gateway(made, folder) as url:  # the one before was killed
            _note_up(made.stage, url, folder)
            assert _arm(url) == "challenger", "what was accepted is there after kill -9"
            for words, told in (
                ([made.stage.name, "1.5"], "SHARE: must be 0 to 1, or ramp, got 1.5"),
                ([made.stage.name, "ramp"], "has no [split.ramp]"),
                (["nobody", "0.5"], f"must be a stage that is up, which are: {made.stage.name}"),
            ):
                done = runner.invoke(app, ["share", *words])
                assert done.exit_code == 2
                assert told in done.output
            split_file.stop(kept, 0, "errors", "it failed")
            done = runner.invoke(app, ["share", made.stage.name, "0.5"])
            assert done.exit_code == 1
            assert "--again" in done.output
            assert runner.invoke(app, ["share", made.stage.name, "0.0", "--again"]).exit_code == 0
            assert _arm(url) == "champion"


@contextmanager
def a_gateway(made: Fleet, folder: Path) -> Iterator[str]:
    """The address of a gateway's process, which is killed in the end."""
    announce = folder / "gateway.json"
    announce.unlink(missing_ok=True)
    words = ["--stage", folder / "stage.toml", "--replicas", made.file, "--split", split_folder(made.stage.name)]
    command = [sys.executable, "-m", "reference_apps.serve_gateway", *map(str, words), "--announce", str(announce)]
    with (folder / "gateway.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        assert wait_until(announce.exists, PATIENCE_S), (folder / "gateway.log").read_text()
        url = f"http://127.0.0.1:{json.loads(announce.read_text())['port']}"
        assert wait_until(lambda: probe(f"{url}/readyz"), PATIENCE_S)
        yield url
    finally:
        process.kill()
        process.wait(PATIENCE_S)


def _note_up(stage: Stage, url: str, folder: Path) -> None:
    """Writes down that the stage is up, as its supervisor would."""
    me = psutil.Process()
    up = {"stage": stage.name, "url": url, "folder": str(folder), "replicas": [], "since": 0.0}
    up |= {"supervisor_pid": me.pid, "supervisor_created": me.create_time()}
    state_file(stage.name).parent.mkdir(parents=True, exist_ok=True)
    state_file(stage.name).write_text(json.dumps(up))


def _arm(url: str) -> str:
    answer = httpx.post(f"{url}/predict", content=b"four", headers={"x-rung-user": "7"}, trust_env=False)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-rung-arm"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["load-balanced"], "has no [split]"),
        (["ab-test", "--set", "split.guardrails="], "has no [split.guardrails]"),
        (["ab-test", "--set", "traffic.loop=closed", "--set", "traffic.rate="], 'must be "open" to rehearse'),
    ],
)
def test_what_cannot_be_rehearsed_is_said_in_words(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_versions(tmp_path, monkeypatch)
    done = CliRunner().invoke(app, ["rehearse", *words])
    assert done.exit_code == 2
    assert told in done.output
