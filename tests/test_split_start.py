"""A stop outlives `rung down` and `rung up`, and says so; another version of the challenger begins anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from reference_apps import split_file
from reference_apps.cli import app
from reference_apps.launchers.launcher import Launcher
from reference_apps.launchers.member import GATEWAY, LaunchError, Member, Nobody
from reference_apps.restarting import rolling
from reference_apps.supervisor import _made
from reference_apps.up import split_folder, state_file
from stages.spec import Stage, load_stage, stage_toml
from tests.registries import two_versions

CHANGES: dict[str, Any] = {"split.ramp": None, "split.challenger_share": 0.4}


def begun(folder: Path, **changes: Any) -> Launcher:
    """The launcher that a supervisor would make, of which nothing is started but the split."""
    launcher = _made("process", load_stage("ab-test", CHANGES | changes), folder)
    launcher._begin_split()
    return launcher


def told() -> split_file.Told:
    found = split_file.read(split_folder("ab-test"))
    assert found is not None
    return found


def stop(guardrail: str = "errors") -> None:
    split_file.stop(split_folder("ab-test"), told().trial, guardrail, "it failed")


def test_a_stop_outlives_the_stage_and_a_share_does_not(
    tmp_path: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = two_versions(tmp_path, monkeypatch)
    assert begun(tmp_path / "first").split_folder == split_folder("ab-test")
    assert told().challenger.startswith("digits/2@")
    split_file.set_share(split_folder("ab-test"), 0.9)
    begun(tmp_path / "second")
    assert (told().share, told().stopped) == (0.4, "")
    stop()
    begun(tmp_path / "third", **{"split.challenger_share": 0.7})
    assert (told().stopped, told().why) == ("errors", "it failed")
    registry.set_alias("digits", "champion", "crashing")
    begun(tmp_path / "fourth")
    assert told().stopped == "errors", "it is about the challenger, whoever the champion is"
    registry.set_alias("digits", "challenger", "slower")  # which has the very same weights
    begun(tmp_path / "fifth")
    assert (told().stopped, told().share) == ("", 0.4)
    assert told().challenger.startswith("digits/slower@")


def test_a_rolling_restart_with_another_challenger_begins_anew(
    tmp_path: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = two_versions(tmp_path, monkeypatch)
    launcher = begun(tmp_path / "run")
    launcher.gateway = Member(GATEWAY, "gateway", "", Nobody(), tmp_path / "gateway.log", 0.0)
    stop()
    for steps in (rolling(launcher), rolling(launcher)):
        assert not list(steps), "there are no replicas to be replaced"
        assert told().stopped == "errors"
    registry.set_alias("digits", "challenger", "slower")
    assert not list(rolling(launcher))
    assert (told().stopped, told().trial) == ("", 1)
    assert told().challenger.startswith("digits/slower@")


def test_nobody_starts_a_stage_where_it_cannot_be_known_whether_its_challenger_is_out(
    tmp_path: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_versions(tmp_path, monkeypatch)
    split_folder("ab-test").mkdir(parents=True)
    (split_folder("ab-test") / split_file.SPLIT_FILE).write_text("[]")
    with pytest.raises(LaunchError, match=r"ab-test: its split cannot begin\. .* remove it to have it begin anew"):
        begun(tmp_path / "run")


def test_status_says_in_words_that_the_challenger_is_out(
    tmp_path: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_versions(tmp_path, monkeypatch)
    launcher = begun(tmp_path / "run")
    note_up(launcher.stage, launcher.folder)
    words = "is out: the guardrail latency stopped it"
    assert words not in CliRunner().invoke(app, ["status"]).stdout
    stop("latency")
    assert words in CliRunner().invoke(app, ["status"]).stdout
    (row,) = json.loads(CliRunner().invoke(app, ["status", "--json"]).stdout)["stages"]
    assert (row["split"]["stopped"], row["split"]["trial"]) == ("latency", 0)
    assert "`rung ab share ab-test 0.4 --again`" in row["split"]["in_words"]


def note_up(stage: Stage, folder: Path) -> None:
    """Writes down that the stage is up, with a gateway that does not answer."""
    me = psutil.Process()
    (folder / "stage.toml").write_text(stage_toml(stage), encoding="utf-8")
    gateway = {"name": "gateway", "pid": me.pid, "port": 9, "url": "http://127.0.0.1:9", "state": "died"}
    up = {"stage": stage.name, "url": gateway["url"], "folder": str(folder), "replicas": [], "since": 0.0}
    up |= {"supervisor_pid": me.pid, "supervisor_created": me.create_time(), "gateway": gateway}
    state_file(stage.name).parent.mkdir(parents=True, exist_ok=True)
    state_file(stage.name).write_text(json.dumps(up))
