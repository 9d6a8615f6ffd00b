"""`rung ab`: plans, simulated experiments, and how a real one stands, in words that fit what was stored."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import stages.terminal
from loadtests import ab_cli
from loadtests.ab_cli import app
from loadtests.ab_status import Figure, decided, duration, over_time, verdict
from reference_apps import split_file
from reference_apps.feedback_reading import JudgedRows
from reference_apps.feedback_schema import sqlite_url
from reference_apps.feedback_store import FeedbackStore, Label
from reference_apps.launchers.launcher import SPLIT_FOLDER
from reference_apps.up import feedback_folder
from stages.feedback import Feedback
from stages.policies import fixed_horizon, sequential
from stages.spec import load_stage, stage_toml
from stages.streams import stream
from stages.terminal import Exit
from tests.labelled import NOW, a_prediction

EVERY_S = 0.1


def run(*arguments: str, code: Exit = Exit.DONE) -> Result:
    result = CliRunner().invoke(app, ("ab", *arguments))
    assert result.exit_code == code, result.output
    return result


def as_json(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json").stdout)


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are folded to the width of the terminal; a wide one keeps each cell on its line."""
    for console in (stages.terminal.out, stages.terminal.err):
        monkeypatch.setattr(console, "_width", 240)


# ---- plan, simulate ----


def test_a_plan_has_one_look_beside_looks_all_the_time() -> None:
    told = as_json("plan", "--effect", "0.05", "--baseline", "0.9", "--rate", "10", "--share", "0.25")
    rows = {row["test"]: row for row in told["rows"]}
    assert rows["fixed"]["requests"] == fixed_horizon.sample_size(0.9, 0.05, 0.25, 0.05, 0.8)
    assert rows["fixed"]["duration_s"] == rows["fixed"]["requests"] / 10.0
    assert rows["fixed"]["challenger_requests"] == rows["fixed"]["requests"] / 4.0
    assert (
        rows["sequential_p50"]["requests"] <= rows["sequential_p80"]["requests"] <= rows["sequential_p95"]["requests"]
    )
    assert rows["sequential_p80"]["requests"] <= 1.1 * rows["sequential_by_formula"]["requests"]
    text = run("plan", "--effect", "0.05", "--baseline", "0.9", "--share", "0.25", "--experiments", "100").stdout
    assert f"{rows['fixed']['requests']:,.0f}" in text


def test_few_labels_make_it_longer() -> None:
    words = ("plan", "--effect", "0.05", "--baseline", "0.9", "--share", "0.5", "--experiments", "100")
    all_of_them, tenth = (as_json(*words, *more) for more in ((), ("--labelled", "0.1", "--delay", "60")))
    assert tenth["rows"][0]["requests"] == all_of_them["rows"][0]["requests"]
    assert tenth["rows"][0]["duration_s"] == pytest.approx(10.0 * all_of_them["rows"][0]["duration_s"] + 60.0)


def test_a_stage_has_its_own_rate_and_labels() -> None:
    changes = ("--set", "feedback.share=0.5", "--set", "feedback.delay_s=2.0", "--set", "traffic.rate.rate_rps=20.0")
    words = ("plan", "load-balanced", *changes, "--effect", "0.1", "--baseline", "0.8", "--experiments", "100")
    told = as_json(*words)
    assert (told["rate_rps"], told["share"], told["labelled_share"], told["delay_s"]) == (20.0, 0.05, 0.5, 2.0)
    assert as_json(*words, "--rate", "99")["rate_rps"] == 99.0
    ramped = ("plan", "ab-test", "--effect", "0.1", "--baseline", "0.8", "--experiments", "100")
    assert as_json(*ramped)["share"] == 0.5, "of a ramp its last step"
    assert as_json(*ramped, "--set", "split.ramp=")["share"] == 0.05


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("plan", "--effect", "0"), "--effect: must leave the challenger"),
        (("plan", "--effect", "0.1", "--baseline", "0.95"), "got 0.1"),
        (("plan", "--baseline", "1.5"), "--baseline: must be above 0 and below 1, got 1.5"),
        (("plan", "--share", "1"), "--share: must be above 0 and below 1, got 1"),
        (("plan", "--rate", "0"), "--rate: must be above 0"),
        (("plan", "--labelled", "1.1"), "--labelled: must be above 0 and at most 1, got 1.1"),
        (("plan", "--delay", "-1"), "--delay: must be 0 to"),
        (("plan", "--alpha", "0.9"), "--alpha: must be above 0 and at most 0.5, got 0.9"),
        (("plan", "--set", "a=b"), "--set: changes a stage, got none"),
        (("plan", "no-such-stage"), "must be the name of a stage"),
        (("simulate", "--effect", "0.00001"), "must be seen within 5,000,000 labelled requests"),
        (("simulate", "--plot", "/no/such/folder/x.png"), "--plot: must be a file in a folder that exists"),
        (("status", "load-balanced"), "has no [feedback]"),
        (("status", "load-balanced", "--last", "soon"), "has no [feedback]"),
    ],
)
def test_what_cannot_be_meant_is_told_in_words(words: tuple[str, ...], said: str) -> None:
    assert said in run(*words, code=Exit.MISUSED).stderr.replace("\n", " ")


def test_simulated_experiments_show_what_peeking_does(tmp_path: Path) -> None:
    picture = tmp_path / "peeking.png"
    words = ("simulate", "--effect", "0.1", "--baseline", "0.8", "--experiments", "200", "--plot", str(picture))
    told = as_json(*words)
    once, naive, always = told["tests"]
    assert once["false_positive_share"] < 0.1 < naive["false_positive_share"]
    assert always["false_positive_share"] <= 0.09
    assert once["found_share"] == pytest.approx(told["one_look_power_by_formula"], abs=0.1)
    assert always["found_in_the_end_share"] > 0.7
    with Image.open(picture) as image:
        assert image.size[0] == 1530
    text = run(*words[:5], "--experiments", "100").stdout
    assert "sequential, peeks" in text


# ---- status ----


def stored(folder: Path, right_a: float, right_b: float, count: int = 2000, **stage: Any) -> Path:
    """A run folder in which both arms have answered, turn by turn, with such shares of right answers."""
    resolved = load_stage("load-balanced", {"feedback.share": 1.0, **stage})
    folder.mkdir(exist_ok=True)
    (folder / "stage.toml").write_text(stage_toml(resolved))
    (folder / "feedback").mkdir(exist_ok=True)
    draws = stream(1, "answers").random(count)
    seconds = stream(1, "seconds").exponential(0.01, count)
    predictions, labels = [], []
    for number in range(count):
        challenger = number % 2 == 1
        right = draws[number] < (right_b if challenger else right_a)
        at = NOW + EVERY_S * number
        who = {"arm": "challenger", "version": "2"} if challenger else {}
        latency_s = 0.02 + seconds[number] * (2.0 if challenger else 1.0)
        predictions.append(a_prediction(f"r{number}", 1, predicted_at=at, latency_s=latency_s, **who))
        labels.append(Label(f"r{number}", 1 if right else 7, at + 0.5))
    with FeedbackStore(sqlite_url(folder / "feedback" / "feedback.db"), Feedback()) as store:
        store.write(predictions, labels)
    return folder


def test_a_better_challenger_is_called_better(tmp_path: Path) -> None:
    picture = tmp_path / "effect.png"
    folder = stored(tmp_path / "run", 0.8, 0.92, **{"cost.usd_per_hour": 3.6})
    words = ("status", "load-balanced", "--in", str(folder), "--effect", "0.1", "--baseline", "0.8")
    told = as_json(*words, "--plot", str(picture))
    assert told["verdict"].startswith("The challenger is better")
    assert 0.0 < told["difference"]["low"] < told["difference"]["value"] < told["difference"]["high"]
    champion, challenger = told["champion"], told["challenger"]
    assert (champion["version"], challenger["version"]) == ("1", "2")
    # The champion's first answer came before the challenger's, and was not drawn by the split.
    assert (champion["counts"]["predictions"], challenger["counts"]["predictions"]) == (999, 1000)
    assert (challenger["counts"]["labelled"], challenger["counts"]["late"]) == (1000, 0)
    for arm, share in ((champion, 0.8), (challenger, 0.92)):
        assert arm["accuracy"]["low"] < share < arm["accuracy"]["high"]
        assert arm["latency_s_p95"]["low"] < arm["latency_s_p95"]["value"] < arm["latency_s_p95"]["high"]
        assert arm["usd_per_1000"]["value"] == pytest.approx(3.6 / 3600.0 * 1000.0 * 0.004)
    assert told["latency_difference_s"]["low"] > 0.0
    narrower = told["one_look"]
    assert told["difference"]["low"] < narrower["low"] < narrower["high"] < told["difference"]["high"]
    effect = told["over_time"]
    assert len(effect["at"]) == len(effect["low"]) <= 500
    assert effect["labelled"][-1] == 1999
    assert effect["value"][-1] == pytest.approx(told["difference"]["value"])
    with Image.open(picture) as image:
        assert image.size[0] == 1530
    text = run(*words).stdout
    for said in ("challenger: 2", "The challenger is better", "at every look", "dollars per 1000"):
        assert said in text


def test_each_arm_is_paid_by_its_own_machine(tmp_path: Path) -> None:
    machines = {
        "split.challenger_profile": "a100-resnet50-fp16-tensorflow",
        "cost.machine": "aws/g4dn.xlarge",
        "cost.challenger_machine": "gcp/a2-highgpu-1g",
    }
    told = as_json("status", "load-balanced", "--in", str(stored(tmp_path / "run", 0.9, 0.9, 200, **machines)))
    dollars = [told[arm]["usd_per_1000"]["value"] for arm in ("champion", "challenger")]
    assert dollars == pytest.approx([price / 3600.0 * 1000.0 * 0.004 for price in (0.526, 3.67)])


def test_a_status_says_that_a_guardrail_has_stopped_the_challenger(tmp_path: Path) -> None:
    split = {"split.champion": "1", "split.challenger": "2", "split.challenger_share": 0.5}
    folder = stored(tmp_path / "run", 0.9, 0.9, 200, **split)
    words = ("status", "load-balanced", "--in", str(folder))
    assert as_json(*words)["split"] is None
    (folder / SPLIT_FOLDER).mkdir()
    split_file.begin(folder / SPLIT_FOLDER, split_file.Told(0, 0, 0.5, challenger="digits/2@feed"))
    assert "is out" not in run(*words).stdout
    split_file.stop(folder / SPLIT_FOLDER, 0, "accuracy", "it is wrong")
    assert as_json(*words)["split"]["stopped"] == "accuracy"
    text = run(*words).stdout
    assert "The challenger digits/2 is out: the guardrail accuracy stopped it" in text
    assert "`rung ab share load-balanced 0.5 --again` tries it again" in text


def test_the_first_look_that_tells_them_apart_is_told() -> None:
    challenger = np.arange(400) % 2 == 1
    rows = JudgedRows(np.arange(400.0), challenger, ~challenger)
    found = decided(rows, 0.05, 100.0)
    assert found is not None
    labels, at = found
    assert at == labels - 1

    def apart(count: int) -> bool:
        b = count // 2
        low, high = sequential.difference_of_shares(count - b, count - b, 0, b, 0.05, 100.0)
        return bool(low > 0.0 or high < 0.0)

    assert apart(labels) and not any(apart(count) for count in range(2, labels))
    assert decided(JudgedRows(np.arange(400.0), challenger, np.ones(400, dtype=np.bool_)), 0.05, 100.0) is None


def test_how_intervals_are_tuned_does_not_follow_from_what_was_seen(tmp_path: Path) -> None:
    """Else each look would have another interval, and all of them together would hold less often than they say."""
    split = {"split.champion": "1", "split.challenger": "2", "split.challenger_share": 0.05}
    told = as_json("status", "load-balanced", "--in", str(stored(tmp_path / "run", 0.9, 0.9, 400, **split)))
    a, b = (told[arm]["counts"] for arm in ("champion", "challenger"))
    tuned_at = sequential.tuned_for(0.95, 0.01, 0.05, 0.05, 0.8)
    bounds = sequential.difference_of_shares(a["right"], a["labelled"], b["right"], b["labelled"], 0.05, tuned_at)
    assert (told["difference"]["low"], told["difference"]["high"]) == pytest.approx(tuple(map(float, bounds)))


def test_a_worse_one_is_called_worse_and_an_equal_one_nothing(tmp_path: Path) -> None:
    words = ("--effect", "0.1", "--baseline", "0.8")
    worse = stored(tmp_path / "worse", 0.9, 0.75)
    assert as_json("status", "load-balanced", "--in", str(worse), *words)["verdict"].startswith(
        "The challenger is worse"
    )
    equal = as_json("status", "load-balanced", "--in", str(stored(tmp_path / "equal", 0.9, 0.9, 300)), *words)
    assert equal["verdict"].startswith("Not decided: the difference is between")
    assert equal["left"] > 0
    assert equal["left_s"] == pytest.approx(equal["left"] * EVERY_S, rel=0.05)


def test_one_version_alone_is_told_so(tmp_path: Path) -> None:
    folder = stored(tmp_path / "run", 0.9, 0.9, 2)
    with (
        FeedbackStore(sqlite_url(folder / "feedback" / "feedback.db"), Feedback()) as store,
        store.engine.begin() as to,
    ):
        to.exec_driver_sql("DELETE FROM predictions WHERE arm = 'challenger'")
    told = as_json("status", "load-balanced", "--in", str(folder))
    assert (told["challenger"], told["difference"]) == (None, None)
    assert "Only one version" in told["verdict"]
    assert "Only one version" in run("status", "load-balanced", "--in", str(folder)).stdout


def test_an_empty_or_missing_place_is_told_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNG_RUNS", str(tmp_path / "runs"))
    (tmp_path / "stage.toml").write_text(stage_toml(load_stage("load-balanced", {"feedback.share": 1.0})))
    missing = run("status", str(tmp_path / "stage.toml"), code=Exit.FAILED)
    assert "must be there, got no such file" in missing.stderr
    folder = feedback_folder("load-balanced")
    folder.mkdir(parents=True)
    FeedbackStore(sqlite_url(folder / "feedback.db"), Feedback()).close()
    assert "nothing was answered yet" in run("status", str(tmp_path / "stage.toml"), code=Exit.FAILED).stderr


def test_only_the_last_hours_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stored(tmp_path / "run", 0.9, 0.9, 1000)
    monkeypatch.setattr(ab_cli.time, "time", lambda: NOW + 100.0)
    told = as_json("status", "load-balanced", "--in", str(folder), "--last", "50s")
    assert told["since_at"] == NOW + 50.0
    assert told["champion"]["counts"]["predictions"] == 250
    assert time.time() == NOW + 100.0
    wrong = run("status", "load-balanced", "--in", str(folder), "--last", "soon", code=Exit.MISUSED)
    assert "--last: must be a time of more than 0 seconds, got 'soon'" in wrong.stderr


def test_the_effect_over_time_is_that_of_each_moment() -> None:
    challenger = stream(1, "arms").random(40) < 0.3
    right = stream(1, "right").random(40) < 0.7
    effect = over_time(JudgedRows(np.arange(40.0), challenger, right), 0.05, 10.0)
    first = max(int(np.argmax(challenger)), int(np.argmax(~challenger)))
    assert effect.labelled.tolist() == list(range(first + 1, 41))
    for place in (0, 7, -1):
        n = int(effect.labelled[place])
        a, b = ~challenger[:n], challenger[:n]
        counts = ((a & right[:n]).sum(), a.sum(), (b & right[:n]).sum(), b.sum())
        low, high = sequential.difference_of_shares(*counts, 0.05, 10.0)
        assert (effect.low[place], effect.high[place]) == (float(low), float(high))
        assert effect.value[place] == pytest.approx(counts[2] / counts[3] - counts[0] / counts[1])


def test_no_effect_without_both_arms() -> None:
    nobody = np.zeros(0, dtype=np.bool_)
    assert over_time(JudgedRows(np.zeros(0), nobody, nobody), 0.05, 10.0).at.size == 0
    alone = np.zeros(5, dtype=np.bool_)
    assert over_time(JudgedRows(np.arange(5.0), alone, alone), 0.05, 10.0).at.size == 0


def test_a_verdict_fits_its_interval() -> None:
    assert "better: +1.00 to +3.00" in verdict(Figure(0.02, 0.01, 0.03), 10, 5.0, 0.01)
    assert "worse: -3.00 to -1.00" in verdict(Figure(-0.02, -0.03, -0.01), 10, 5.0, 0.01)
    open_ = Figure(0.0, -0.02, 0.02)
    assert verdict(open_, 1200, 7200.0, 0.01).endswith("within 1,200 more labels, most likely, about 2.0 hours more.")
    assert verdict(open_, 0, 0.0, 0.01).endswith("would most likely have shown by now.")
    assert verdict(Figure(math.nan, -1.0, 1.0), 9, math.inf, 0.01) == "Not decided: an arm has no labels yet."


def test_durations_are_told_as_people_read_them() -> None:
    assert [duration(each) for each in (5.0, 300.0, 10_000.0, 400_000.0)] == [
        *("5 seconds", "5.0 minutes", "2.8 hours", "4.6 days")
    ]
