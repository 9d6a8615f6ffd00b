"""The campaigns whose results are kept: every one can be run, and what it leaves is kept under its name."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import typer

from loadtests import measured
from loadtests.measured import Campaign, campaigns, keep
from stages.spec import load_stage, stage_files
from stages.terminal import overrides

TRACE = Path("trace.csv")
EVERY = campaigns(None, 3)


@pytest.mark.parametrize("campaign", EVERY, ids=lambda campaign: f"{campaign.stage}/{campaign.name}")
def test_its_settings_are_sound(campaign: Campaign) -> None:
    assert campaign.stage in campaign.words[1:3]
    pairs = [f"{key}={value}" for key, value in campaign.settings.items()]
    changes = overrides(pairs)
    if "cpu" in campaign.words:
        changes = {"device.profile": None, "device.slowdown": None, "device.kind": "cpu"} | changes
    if campaign.words[0] in ("compare", "drill"):  # whose loads are shares of what the stage carries
        changes = {"overload": True} | changes
    assert load_stage(campaign.stage, changes).name == campaign.stage


def test_names_are_unlike_and_traces_need_a_file() -> None:
    names = [(campaign.stage, campaign.name) for campaign in campaigns(TRACE, 3)]
    assert len(set(names)) == len(names)
    assert {campaign.stage for campaign in EVERY} == set(stage_files())
    assert {name for _, name in names} - {campaign.name for campaign in EVERY} == {
        "cpu-azure-trace",
        "emulated-stretched-azure-trace",
    }


def test_what_is_there_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = tmp_path / "03_some" / "stage.toml"
    monkeypatch.setattr(measured, "stage_files", lambda: {"some": stage})
    stage.parent.mkdir()
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "report.json").write_text("of one policy")
    (folder / "policies.json").write_text("of all")
    (folder / "over_time.png").write_bytes(b"picture")
    keep(Campaign("some", "name", ("drill", "some", "kill"), {}), folder)
    kept = {path.name: path.read_bytes() for path in (stage.parent / "measured").iterdir()}
    assert kept == {"name.json": b"of all", "name.png": b"picture"}


@pytest.mark.parametrize(
    ("words", "statuses", "left"),
    [
        (("drill", "some", "kill"), [3, 3, 0, 0], 1),
        (("drill", "some", "kill"), [1, 0], 1),
        (("compare", "some", "--void-retries", "6"), [3, 0], 1),
    ],
    ids=["void", "failed", "repeats by itself"],
)
def test_a_void_run_is_made_again(
    words: tuple[str, ...], statuses: list[int], left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = iter(statuses)
    monkeypatch.setattr(measured, "keep", lambda *_: None)
    monkeypatch.setattr(measured, "stage_files", lambda: {"some": Path("nowhere/stage.toml")})
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], next(ran)))
    status = measured.run(Campaign("some", "name", words, {}))
    assert len(list(ran)) == left
    assert status == statuses[-1 - left]


@pytest.mark.parametrize(("status", "left"), [(0, "new"), (3, "old")], ids=["sound", "void"])
def test_a_void_run_does_not_replace_what_is_kept(
    status: int, left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def runs(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        folder = Path(command[command.index("--out") + 1])
        folder.mkdir(parents=True)
        (folder / "report.json").write_text("new")
        return subprocess.CompletedProcess(command, status)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measured, "stage_files", lambda: {"some": tmp_path / "01_some/stage.toml"})
    monkeypatch.setattr(subprocess, "run", runs)
    kept = tmp_path / "01_some/measured/name.json"
    kept.parent.mkdir(parents=True)
    measured.run(Campaign("some", "name", ("drill", "some", "kill"), {}))
    kept.write_text("old")
    measured.run(Campaign("some", "name", ("drill", "some", "kill"), {}))
    assert kept.read_text() == left


def test_a_name_that_no_campaign_has_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        measured.main(only="no-such", trace=None, repeat=3)
    assert "--only: must be a part of a campaign's stage/name, got no-such." in capsys.readouterr().err
