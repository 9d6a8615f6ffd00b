"""Policies side by side: their order by p95 in both worlds, and when the two are said to disagree."""

from __future__ import annotations

import dataclasses
import io
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from rich.console import Console
from typer.testing import CliRunner

from loadtests import cli, compare, policies, report
from loadtests.policies import Order
from loadtests.report import Comparison, Run
from reference_apps.launchers.member import LaunchError
from stages import calibration
from stages.calibration import Calibration, GatewayCosts, ServiceTimes
from stages.problems import StageError
from stages.records import Records, read, write
from stages.spec import Stage, device_label, load_stage, stage_toml
from tests.hand_made_runs import steady
from tests.test_report import CALIBRATION, a_comparison

pytestmark = pytest.mark.usefixtures("in_numpy")

LOAD = 0.5


def compared(policy: str, measured_s: list[float], predicted_s: float, load: float = LOAD) -> Comparison:
    """A policy whose answers took so long in each repeat."""
    runs = [Run(load, 50.0, n, None, steady(took_s), steady(predicted_s)) for n, took_s in enumerate(measured_s)]
    under = policies.under(load_stage("load-balanced"), policy)
    return dataclasses.replace(a_comparison(runs, stage="load-balanced"), stage=under)


def test_policies_are_ordered_by_p95_in_both_worlds() -> None:
    found = {
        "random": compared("random", [0.050, 0.052], 0.055),
        "round-robin": compared("round-robin", [0.040, 0.041], 0.042),
        "least-outstanding": compared("least-outstanding", [0.030, 0.031], 0.029),
    }
    (order,) = policies.orders(found)
    assert order.measured == order.predicted == ["least-outstanding", "round-robin", "random"]
    assert order.turned == []
    assert "both worlds agree" in policies.in_words([order])


def test_a_pair_is_turned_only_when_both_worlds_clearly_say_the_opposite() -> None:
    found = {
        "random": compared("random", [0.050, 0.051], 0.030),
        "round-robin": compared("round-robin", [0.040, 0.041], 0.042),
        "sticky": compared("sticky", [0.039, 0.0405], 0.060),  # its spread meets that of round-robin
        "power-of-two": compared("power-of-two", [0.020, 0.021], 0.0302),  # predicted as near as nothing to random
    }
    (order,) = policies.orders(found)
    assert order.measured == ["power-of-two", "sticky", "round-robin", "random"]
    assert order.predicted == ["random", "power-of-two", "round-robin", "sticky"]
    assert order.turned == [("random", "round-robin"), ("random", "sticky")]
    words = policies.in_words([order])
    assert "the other way round for random and round-robin at load 0.5 and random and sticky at load 0.5" in words


def test_a_load_that_a_policy_lacks_says_nothing() -> None:
    found = {"random": compared("random", [0.05], 0.05), "sticky": compared("sticky", [0.05], 0.05, load=0.9)}
    assert policies.orders(found) == []
    assert "nothing can be said" in policies.in_words([])


def test_table_has_the_places_in_both_worlds() -> None:
    found = {"random": compared("random", [0.050], 0.030), "sticky": compared("sticky", [0.040], 0.040)}
    console = Console(file=io.StringIO(), width=100, color_system=None)
    policies.print_table(found, console)
    assert isinstance(console.file, io.StringIO)
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    assert ["0.5", "sticky", "52.0", "ms", "52.0", "ms", "0.0", "%", "=", "1", "2"] in lines
    assert ["random", "62.0", "ms", "42.0", "ms", "-32.3", "%", "!", "2", "1"] in lines


def test_document_has_rows_with_their_policy(tmp_path: Path) -> None:
    found = {"random": compared("random", [0.050], 0.030), "sticky": compared("sticky", [0.040], 0.040)}
    document = json.loads(json.dumps(policies.document(found, tmp_path)))
    assert {row["policy"] for row in document["rows"]} == {"random", "sticky"}
    assert document["orders"] == [
        {
            "load": 0.5,
            "measured": ["sticky", "random"],
            "predicted": ["random", "sticky"],
            "turned": [["random", "sticky"]],
        }
    ]
    assert document["reports"]["sticky"] == str(tmp_path / "sticky" / "report.html")


def test_one_repeat_is_a_spread_of_its_own() -> None:
    found = {"random": compared("random", [0.050], 0.030), "sticky": compared("sticky", [0.040], 0.041)}
    assert policies.orders(found) == [Order(0.5, ["sticky", "random"], ["random", "sticky"], [("random", "sticky")])]


def left_behind(folder: Path, policy: str, measured: Records) -> None:
    """A comparison of one run, as `rung compare` leaves it."""
    stage = policies.under(load_stage("load-balanced", {"traffic.duration_s": 2.0}), policy)
    run = folder / policy / "load-0.5-run-1"
    write(measured, run / "measured")
    (run / "check.json").write_text(json.dumps({"void": None}))
    (folder / policy / "stage.toml").write_text(stage_toml(stage))
    (folder / policy / "calibration.json").write_text(CALIBRATION.model_dump_json())
    about = {"command": "rung compare", "capacity_rps": 300.0, "short": True, "machine": "none", "made_at": "2026"}
    (folder / policy / "about.json").write_text(json.dumps(about))


def test_a_folder_of_policies_is_predicted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "png", lambda figure: b"a picture")
    monkeypatch.setattr(compare, "CURVE_LOADS", (0.3, 1.0))
    monkeypatch.setattr(compare, "CURVE_REQUESTS_GATEWAY_SHORT", 500)
    for policy in ("random", "least-outstanding", "sticky"):  # the last one is of an earlier comparison
        left_behind(tmp_path, policy, steady(0.05))
    asked = {"reports": {"random": "", "least-outstanding": ""}}
    (tmp_path / "policies.json").write_text(json.dumps(asked))
    done = CliRunner().invoke(cli.app, ["report", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert set(document["reports"]) == {"random", "least-outstanding"}
    assert json.loads((tmp_path / "policies.json").read_text())["orders"] == document["orders"]
    assert all(Path(page).is_file() for page in document["reports"].values())
    predicted = {row["policy"]: row["predicted"] for row in document["rows"] if row["metric"] == policies.METRIC}
    assert predicted["least-outstanding"] != predicted["random"], "each by its own policy"


def test_what_an_earlier_comparison_left_is_no_run_of_the_next(tmp_path: Path) -> None:
    left_behind(tmp_path, "random", steady(0.05))
    folder = tmp_path / "random"
    (folder / "load-0.8-run-1-again-1" / "measured").mkdir(parents=True)
    (folder / "policies.json").write_text("{}")
    (folder / "load-figures").mkdir()

    def no_stack(*_: Any) -> Any:
        raise LaunchError("it does not start")

    stage, plan = load_stage(folder / "stage.toml"), compare.Plan([0.5], 1, 2.0, True)
    with pytest.raises(LaunchError):
        compare.compare(stage, CALIBRATION, plan, folder, command="", launch=no_stack)
    assert [path.name for path in folder.glob("load-*")] == ["load-figures"]
    assert not (folder / "policies.json").exists()


def test_a_folder_keeps_its_own_calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its runs' pace was measured against that one."""
    monkeypatch.setattr(compare, "CURVE_LOADS", (0.5,))
    monkeypatch.setattr(compare, "CURVE_REQUESTS_GATEWAY_SHORT", 100)
    left_behind(tmp_path, "random", steady(0.05))
    folder = tmp_path / "random"
    (folder / "load-0.5-run-1" / "check.json").write_text('{"void": null, "pace": 1.5, "pace_known": false}')
    other = CALIBRATION.model_copy(update={"made_at": "another day"})
    for _ in range(2):
        found = compare.again(folder, other)
        assert (found.runs[0].pace, found.runs[0].pace_known) == (1.0, True)
        assert "another calibration" in found.caveats[0] and "another day" in found.caveats[0]
        own = compare.again(folder)
        assert own.calibration == CALIBRATION
        assert (own.runs[0].pace, own.runs[0].pace_known) == (1.5, False)
        assert not any("another calibration" in caveat for caveat in own.caveats)
        assert any("pace is not known for 1 of 1 runs" in caveat for caveat in own.caveats)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["load-balanced", "--policies", "rnd"], "--policies: must be balancing policies, got rnd"),
        (["load-balanced", "--policies", ","], "got none. There are round-robin, random"),
        (["micro-batched", "--policies", "random"], "--policies: must be asked of a stage with a [gateway]"),
    ],
)
def test_mistakes_are_told_in_words(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(cli.app, ["compare", *arguments])
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())


def test_a_policy_that_the_gateway_cannot_do_is_refused_in_words() -> None:
    with pytest.raises(StageError, match=r"gateway\.policy"):
        policies.under(load_stage("load-balanced", {"gateway.engine": "nginx"}), "learned")


def test_two_policies_are_compared_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One stack once, with a calibration that was made up: what is looked at is who was asked, not for how long.

    The other run was made up, too: a stack whose gateway is sticky runs in tests/test_load.py.
    """
    real = compare.compare

    def played(stage: Stage, given: Calibration, plan: compare.Plan, own: Path, **more: Any) -> Comparison:
        assert stage.gateway is not None
        if stage.gateway.policy == "random":
            return real(stage, given, plan, own, **more)
        left_behind(own.parent, stage.gateway.policy, steady(0.05))
        return compare.again(own, given)

    monkeypatch.setattr(compare, "compare", played)
    monkeypatch.setenv("RUNG_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(compare, "_warm_up", lambda *_: None)
    monkeypatch.setattr(compare, "CURVE_LOADS", (0.3, 1.0))
    monkeypatch.setattr(compare, "CURVE_REQUESTS_GATEWAY_SHORT", 500)
    stage = load_stage("load-balanced")
    made_up = CALIBRATION.model_copy(
        update={
            "device": device_label(stage),
            "stage": "load-balanced",
            "service_times": tuple(ServiceTimes(batch_size=n, quantiles_s=(0.05,)) for n in range(1, 9)),
            "gateway": GatewayCosts(busy_s=0.0005),
        }
    )
    file, folder = tmp_path / "calibration.json", tmp_path / "out"
    calibration.write(made_up, file)
    words = ["compare", "load-balanced", "--policies", "random,sticky", "--short", "--json", "--loads", "0.3"]
    words += ["--repeat", "1", "--void-retries", "0", "--duration", "2"]
    words += ["--set", "gateway.unhealthy_after=100"]  # on a machine that is busy for a moment nobody is called ill
    words += ["--calibration", str(file), "--out", str(folder)]
    done = CliRunner().invoke(cli.app, words)
    # On a busy machine every run may be void, which is status 3, and is reported all the same.
    assert done.exit_code in (0, 3), done.output
    document = json.loads(done.stdout)
    assert {row["policy"] for row in document["rows"]} == {"random", "sticky"}
    run = folder / "random" / "load-0.3-run-1"
    measured, predicted = (read(run / world) for world in ("measured", "predicted"))
    assert measured.requests["scheduled_s"].equals(predicted.requests["scheduled_s"])
    answered = measured.requests.filter(pl.col("outcome") == "ok")
    assert answered.height > 0.9 * measured.requests.height
    order = ["scheduled_s", "sent_s", "gateway_in_s", "arrived_s", "started_s", "finished_s", "gateway_out_s"]
    for earlier, later in pairwise([*order, "replied_s"]):
        assert (answered[later] - answered[earlier]).min() >= -1e-5, (earlier, later)  # type: ignore[operator]
    assert set(measured.replicas["replica"]) == set(predicted.replicas["replica"]) == {0, 1}
    batched = answered.group_by("replica", "batch").len().join(measured.batches, on=["replica", "batch"], how="left")
    assert (batched["len"] <= batched["batch_size"]).all()
    assert {event["args"]["name"] for event in _rows(folder / "random")} >= {
        f"replica {number}, {device_label(stage)}" for number in range(2)
    }
    the_dice_fell_alike(run, stage)
    shares = {share["replica"]: share for share in document["shares"] if share["policy"] == "random"}
    assert set(shares) == {0, 1}
    assert all(share["measured"] == pytest.approx(share["predicted"], abs=0.05) for share in shares.values())
    assert sum(share["measured"] for share in shares.values()) == pytest.approx(1.0)


def the_dice_fell_alike(run: Path, stage: Stage) -> None:
    """The stack was started with the stage's own seed, and every load of a comparison has another."""
    measured, predicted = (read(run / world).requests for world in ("measured", "predicted"))
    assert compare.at_load(stage, 0.3, 100.0, 2.0).traffic.seed != stage.traffic.seed
    # One that was tried again, on a machine that is busy, went elsewhere the second time.
    once = measured.join(predicted, on="request", suffix="_predicted").filter(pl.col("tries") == 1)
    assert once.height > 0.9 * measured.height
    assert (once["replica"] == once["replica_predicted"]).all()
    assert once["replica"].n_unique() == 2


def _rows(folder: Path) -> list[dict[str, Any]]:
    events = json.loads((folder / "timeline.json").read_text())["traceEvents"]
    return [event for event in events if event["name"] == "thread_name"]
