"""`rung stages`, `rung show`, `rung devices`: for people, for scripts (--json, exit codes), and started fast."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import stages.cli
from stages import spec
from stages.catalogue import profiles
from stages.cli import app
from stages.prices import prices
from stages.terminal import Exit


def run(*arguments: str, code: Exit = Exit.DONE) -> Result:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "160"})
    assert result.exit_code == code, result.output
    return result


def as_json(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json").stdout)


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are folded to the width of the terminal; a wide one keeps each cell on its line."""
    for console in (stages.terminal.out, stages.terminal.err):
        monkeypatch.setattr(console, "_width", 240)


def test_stages_are_listed_with_question_and_capacity() -> None:
    text = run("stages").stdout
    for name in spec.stage_files():
        stage = spec.load_stage(name)
        (line,) = [line for line in text.splitlines() if line.strip().startswith(name)]
        assert stage.question in line and stage.grown_from in line
    assert "79.0" in text and "652.0" in text


def test_stages_as_json_say_the_same() -> None:
    rows = as_json("stages")
    assert [row["name"] for row in rows] == list(spec.stage_files())
    assert rows[0]["capacity_rps"] == pytest.approx(1 / 0.012658)
    assert rows[0]["rate_rps"] == 55.0
    assert rows[0]["load"] == pytest.approx(55.0 * 0.012658)
    assert rows[0]["device"] == "emulated t4-resnet50-fp16-pytorch"


@pytest.mark.parametrize("name", spec.stage_files())
def test_what_show_prints_can_be_loaded_again(name: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(run("show", name).stdout, encoding="utf-8")
    assert spec.load_stage(file) == spec.load_stage(name)


def test_show_ends_with_the_arithmetic() -> None:
    assert run("show", "micro-batched").stdout.splitlines()[-3:] == [
        "# Capacity: 652.0 requests per second (t4-resnet50-fp16-pytorch, batches of 8: 8 / 0.012270 s)",
        "# Traffic: 450.0 requests per second on average, about 13500 in 30 s",
        "# Load: 0.69 of the capacity",
    ]


def test_show_takes_overrides_and_says_what_they_amount_to() -> None:
    text = run("show", "single-vm", "--set", "overload=true", "--set", "traffic.rate.rate_rps=158.0").stdout
    assert tomllib.loads(text)["traffic"]["rate"]["rate_rps"] == 158.0
    assert text.endswith("# Load: 2.00 of the capacity (overload)\n")


def test_show_of_a_closed_loop_on_a_timed_device() -> None:
    changes = ("device.kind=cpu", "device.profile=", "traffic.loop=closed", "traffic.rate=", "traffic.users=3")
    text = run("show", "single-vm", *(part for change in changes for part in ("--set", change))).stdout
    assert text.splitlines()[-2:] == [
        "# Capacity: not known until `rung calibrate` has measured this device",
        "# Traffic: 3 users, who think for 1 s between requests",
    ]


def test_show_as_json_has_the_stage_and_what_it_amounts_to() -> None:
    shown = as_json("show", "single-vm", "--set", "slo.latency_s=0.25")
    assert spec.parse_stage(shown["stage"]) == spec.load_stage("single-vm", {"slo.latency_s": 0.25})
    assert shown["capacity_rps"] == pytest.approx(1 / 0.012658)


def test_a_slow_champion_carries_less() -> None:
    own = as_json("show", "ab-test")["capacity_rps"]
    slow = ("--set", "split.champion_facts.service_time_factor=4", "--set", "overload=true")
    assert as_json("show", "ab-test", *slow)["capacity_rps"] == pytest.approx(own / 4)


def test_a_wrong_stage_is_told_on_stderr_and_ends_with_2() -> None:
    result = run("show", "single-vm", "--set", "batching.max_batch_size=0", "--json", code=Exit.MISUSED)
    assert result.stdout == ""
    assert result.stderr.endswith(
        "stage.toml: 1 problem\n  batching.max_batch_size: must be at least 1 request, got 0. "
        "A batch without a request never leaves. Use 1 for no batching.\n"
    )


def test_an_unknown_stage_gets_the_nearest() -> None:
    assert "Did you mean 'single-vm'?" in run("show", "single-wm", code=Exit.MISUSED).stderr


def test_a_setting_that_is_no_pair_is_told() -> None:
    assert "must be KEY=VALUE" in run("show", "single-vm", "--set", "overload", code=Exit.MISUSED).stderr


def test_devices_are_listed_with_their_best_throughput() -> None:
    text = run("devices").stdout
    for name in profiles():
        assert name in text
    (line,) = [line for line in text.splitlines() if line.strip().startswith("t4-resnet50-fp16-pytorch")]
    assert "T4-16GB, resnet50-v1.5, fp16-mixed, pytorch-21.03 NGC" in line
    assert line.rstrip().endswith("1 to 256    1198 at 256")


def test_a_device_shows_its_times_and_its_source() -> None:
    text = run("devices", "t4-resnet50-fp16-pytorch").stdout
    assert ["8", "12.270", "652.0"] in [line.split() for line in text.splitlines()]
    assert profiles()["t4-resnet50-fp16-pytorch"].source in text


def test_devices_as_json_have_every_figure() -> None:
    rows = as_json("devices")
    assert [row["profile"] for row in rows] == list(profiles())
    (row,) = as_json("devices", "t4-resnet50-fp16-pytorch")
    assert row in rows
    assert row["batch_size_best"] == 256
    assert row["throughput_ips_best"] == pytest.approx(256 / 0.213689)
    assert dict(zip(row["batch_sizes"], row["service_times_s"], strict=True))[8] == 0.01227


def test_an_unknown_device_gets_the_nearest() -> None:
    result = run("devices", "t4-resnet50-fp16", code=Exit.MISUSED)
    assert result.stderr == (
        "t4-resnet50-fp16: is no profile of the device catalogue. Did you mean 't4-resnet50-fp16-pytorch'?\n"
    )


def test_nothing_heavy_is_imported() -> None:
    """What takes long to import would be waited for at every command, so it is imported where it is used."""
    heavy = ("torch", "locust", "gevent", "polars", "matplotlib", "simpy", "fastapi", "sklearn", "PIL")
    verbs = (["stages"], ["show", "single-vm"], ["devices"], ["prices"])
    code = (
        "import sys; from typer.testing import CliRunner; import rung\n"
        f"for words in {verbs!r}:\n"
        "    assert CliRunner().invoke(rung.app, words).exit_code == 0, words\n"
        f"    print(words[0], [name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{words[0]} []" for words in verbs]


def test_prices_are_listed_with_their_sources() -> None:
    text = " ".join(run("prices").stdout.split())
    assert "aws/g4dn.xlarge T4 16GB on-demand 0.526 0.526 us-east-1" in text
    for price in prices():
        assert price.machine in text
        assert f"{price.source}; {price.as_of}" in text
    listed = as_json("prices")
    assert [row["machine"] for row in listed] == [price.machine for price in prices()]
    assert [{key: row[key] for key in asdict(prices()[0])} for row in listed] == [asdict(price) for price in prices()]


def test_prices_of_a_gpu_and_of_spot_machines() -> None:
    rows = as_json("prices", "--gpu", "t4", "--spot")
    assert rows and {(row["gpu_family"], row["pricing"]) for row in rows} == {("T4", "spot")}
    assert {row["gpu_count"] for row in as_json("prices", "--gpu", "none")} == {0}
    assert "Did you mean 'T4'?" in run("prices", "--gpu", "T44", code=Exit.MISUSED).stderr
    assert "--spot: must leave a price to list" in run("prices", "--gpu", "A6000", "--spot", code=Exit.MISUSED).stderr


def test_a_users_own_prices_go_before_the_projects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNG_PRICES", "")  # so that what the option sets is undone after the test
    file = tmp_path / "mine.csv"
    file.write_text("provider,product,gpu,usd_per_hour,pricing\nmine,rack 1,T4 16GB,0.1,on-demand\n", encoding="utf-8")
    rows = as_json("prices", "--prices", str(file))
    assert rows[0]["machine"] == "mine/rack-1"
    assert len(rows) == len(prices()) > 30
    file.write_text("provider,product,gpu,usd_per_hour,pricing\nmine,rack 1,T4,free,lease\n", encoding="utf-8")
    told = run("prices", "--prices", str(file), code=Exit.MISUSED).stderr
    assert "2 problems" in told and "line 2, usd_per_hour" in told and "line 2, pricing" in told


def test_show_says_what_a_replica_costs() -> None:
    line = "# Cost of a replica: 0.526 US dollars an hour (aws/g4dn.xlarge, on-demand, us-east-1)"
    assert line in run("show", "autoscaled").stdout.splitlines()
    beside = "# Cost of the machine of its gateway: 0.17 US dollars an hour (aws/c5.xlarge, on-demand, us-east-1)"
    assert beside in run("show", "autoscaled").stdout.splitlines()
    assert "Cost" not in run("show", "autoscaled", "--set", "cost=").stdout
