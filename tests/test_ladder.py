"""The ladder: every stage at every level, where it stops being enough, what else could be done, and its picture."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from rung import app
from simulator import ladder as ladders
from simulator import ladder_cli, ladder_plots, sweep
from simulator.candidates import Candidate
from simulator.estimate import Estimate
from simulator.ladder import Climb, Ladder, User, day_of, spot_usd_per_hour
from simulator.offers import host_of, offers
from stages.demand import Traffic
from stages.owned import Assumptions, against, bought_of
from stages.spec import mean_rate_rps
from tests.planned import T4, a_try, an_estimate

LEVELS = (1, 10_000, 1_000_000)
STAGES = ("single-vm", "micro-batched", "load-balanced", "queued")


@pytest.fixture(scope="module")
def climbed() -> Ladder:
    """Three levels, with short runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ladders, "REQUESTS", 600)
        patch.setattr(ladders, "SHORTEST_S", 5.0)
        patch.setattr("simulator.candidates.BATCHES", (1, 8, 32))
        rented = offers(devices=[T4])
        larger = [*rented, *offers(devices=["a100-resnet50-fp16-tensorflow"])]
        climb = Climb(User(), 0.25, rented, larger, host=host_of(0.2), replications=2)
        return climb.ladder(LEVELS, STAGES)


def test_every_stage_stands_at_every_level(climbed: Ladder) -> None:
    assert {(step.stage, step.users) for step in climbed.steps} == {(s, u) for s in STAGES for u in LEVELS}
    for step in climbed.steps:
        assert step.rate_rps == pytest.approx(step.users * 20 / 86_400)
        assert (step.tried is None) == bool(step.why)


def test_a_single_machine_stops_being_enough_where_its_capacity_ends(climbed: Ladder) -> None:
    limits = {limit.stage: limit for limit in climbed.limits}
    single = limits["single-vm"]
    assert single.beyond is not None
    carried = 79.0 * 86_400 / 20 / 1.8  # one request at a time, at noon
    assert 0.4 * carried < single.enough < 1.3 * carried  # p95 over a day forgives a little of its noon
    assert single.enough < single.beyond <= 1.8 * single.enough  # three bisections of the two decades
    assert limits["micro-batched"].enough == 1_000_000
    assert limits["load-balanced"].beyond is None


def test_more_users_never_cost_less_and_one_is_dear(climbed: Ladder) -> None:
    for stage in STAGES:
        usd = [step.usd_per_day for step in climbed.of(stage) if step.tried is not None]
        assert all(later >= 0.999 * earlier for earlier, later in pairwise(usd))
    first, last = (climbed.of("micro-batched")[place] for place in (0, -1))
    assert first.usd_per_day == pytest.approx(24 * 0.526)
    assert last.usd_per_1000 < first.usd_per_1000 / 1000


def test_what_is_queued_waits_for_hours_where_noon_is_more_than_its_workers_do(climbed: Ladder) -> None:
    steps = {step.users: step for step in climbed.of("queued")}
    assert steps[1].p95_s < 1.0, "nobody is before it in the queue"
    wait = ladders._fluid_wait_s(day_of(User(), 5_000_000, 0.25, 1), steps[1].tried.candidate)  # type: ignore[union-attr]
    assert wait > 3600.0


@pytest.mark.parametrize("users", [1, 1000, 10_000_000])
def test_a_day_of_users_brings_what_they_send(users: int) -> None:
    work = day_of(User(requests_a_day=20.0), users, 0.25, 1)
    assert mean_rate_rps(Traffic.model_validate(work.traffic())) == pytest.approx(users * 20 / 86_400)
    assert work.compression * work.duration_s == pytest.approx(86_400.0)
    assert work.rate_rps * work.duration_s >= 20 - 1e-6


def test_beside_it_are_spot_and_one_larger_machine(climbed: Ladder) -> None:
    for each in climbed.beside:
        assert each.spot_usd < each.on_demand_usd
        assert each.up is not None
        assert not each.up.candidate.has_gateway
        assert each.out is not None
        assert each.out.candidate.has_gateway


def test_spot_is_the_same_stage_at_another_price() -> None:
    fleet = a_try(3, 1.5)
    assert spot_usd_per_hour(fleet) == pytest.approx(3 * 0.1837)


def test_a_queue_is_never_measured_where_a_stage_cannot_be() -> None:
    """A stage that nothing meets is said not to be enough, with the reason."""

    def late(some: Sequence[Candidate], replications: int, first: int) -> list[Estimate]:
        return [an_estimate(range(first, first + replications), slo_share=0.1) for _ in some]

    climb = Climb(User(), 0.25, offers(devices=[T4]), offers(devices=[T4]), measure=late)
    found = climb.ladder((1, 100), ("single-vm",))
    assert [step.why for step in found.steps] == ["none of its fleets answers in time"] * 2
    assert (found.limits[0].enough, found.limits[0].beyond) == (0, 1)
    assert math.isnan(found.beside[0].on_demand_usd)
    assert ladder_plots.picture(found).axes


def test_the_picture_has_every_stage_in_all_panels_and_a_cross_where_it_ends(climbed: Ladder) -> None:
    figure = ladder_plots.picture(climbed, ["What it rests on."])
    cost, latency, against_ = figure.axes
    for axes in figure.axes:
        lines = {str(line.get_label()): line for line in axes.lines}
        assert set(STAGES) <= set(lines)
        assert len({lines[stage].get_marker() for stage in STAGES}) == len(STAGES)
    users, usd = np.asarray(cost.lines[0].get_xydata()).T
    steps = [step for step in climbed.of("single-vm") if step.tried is not None]
    assert users.tolist() == [step.users for step in steps]
    assert usd.tolist() == pytest.approx([step.usd_per_day for step in steps])
    assert any(line.get_label() == "limit single-vm" for line in cost.lines)
    assert "users a day" in cost.get_xlabel()
    assert "US dollars a day" in cost.get_ylabel()
    assert "US dollars per 1,000 good answers" in against_.get_xlabel()
    assert any(text.get_text() == "SLO 250 ms" for text in latency.texts)
    assert any("What it rests on." in text.get_text() for text in figure.texts)


def test_plain_values_are_json(climbed: Ladder) -> None:
    bought = [found for each in bought_of(["T4=700"]) if (found := against(each, Assumptions())) is not None]
    document = json.loads(json.dumps(ladder_cli.document(climbed, bought, Assumptions())))
    assert len(document["steps"]) == len(climbed.steps)
    assert {each["gpu"] for each in document["bought"]} == {"T4", "A100"}
    words = " ".join(ladder_cli.bought_in_words(bought, Assumptions()))
    assert "times cheaper" in words
    assert "not 10 times" in words


def test_the_verb_writes_and_prints_its_ladder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladders, "REQUESTS", 200)
    monkeypatch.setattr(ladders, "SHORTEST_S", 5.0)
    monkeypatch.setattr("simulator.candidates.BATCHES", (1, 8))
    monkeypatch.setattr(sweep, "workers_pool", lambda workers: nullcontext())
    words = ["ladder", "--users", "1", "--devices", T4, "--workers", "1", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert {"ladder.svg", "ladder.png", "ladder.json"} == {path.name for path in tmp_path.iterdir()}
    for said in ("A user sends 20 requests a day", "single-vm", "Bought A100", "Spot:"):
        assert said in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--p95", "0"], "--p95: must be above 0"),
        (["--requests", "1"], "--requests: must be at least 2 a day"),
        (["--used", "1.5"], "--used: must be above 0 and at most 1"),
        (["--users", "0"], "--users: must be above 0"),
        (["--users", "10000001"], "--users: must be above 0 and at most 1e+07"),
        (["--buy", "T5=3"], "--buy: must be a GPU of the price list"),
        (["--devices", "t5"], "--devices: must be devices of the catalogue"),
    ],
)
def test_mistakes_are_told_in_words(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["ladder", *arguments])
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.stderr.split())
