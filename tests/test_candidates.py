"""The stages of a plan: each can be started, costs no less than its bound, and is refused only for a reason."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.beside import changes
from simulator.candidates import Candidate, candidates, hit_share, replica_rps, sibling
from simulator.offers import Offer, host_of, offers, paid_usd_per_hour
from simulator.planned_stage import stage_of
from simulator.sweep import evaluate
from simulator.workload import workload
from stages.bill import fleet_usd_per_hour
from stages.catalogue import profiles
from stages.problems import StageError
from stages.spec import load_stage, stage_toml
from tests.planned import T4, a_price

STEADY = workload(400.0, 0.12)
CACHED = workload(400.0, 0.12, items=5000)
DAY = workload(400.0, 0.12, "diurnal")


def of_architectures(found: tuple[Candidate, ...]) -> dict[str, list[Candidate]]:
    return {
        name: [each for each in found if each.architecture == name] for name in {each.architecture for each in found}
    }


@pytest.mark.parametrize("work", [STEADY, CACHED, DAY], ids=["steady", "cached", "diurnal"])
def test_every_candidate_is_a_stage_that_can_be_started(work: object, tmp_path: Path) -> None:
    grid = candidates(work, offers(spot=True), host=host_of(None))  # type: ignore[arg-type]
    assert grid.candidates
    assert list(grid.candidates) == sorted(grid.candidates, key=lambda each: (each.usd_per_hour, str(each)))
    for kind in of_architectures(grid.candidates).values():
        for each in (kind[0], kind[len(kind) // 2], kind[-1]):
            stage = stage_of(work, each)  # type: ignore[arg-type]
            assert not stage.overload
            (tmp_path / "stage.toml").write_text(stage_toml(stage), encoding="utf-8")
            assert load_stage(tmp_path) == stage


def test_the_bound_of_a_fixed_fleet_is_what_it_costs() -> None:
    grid = candidates(CACHED, offers(spot=True), host=host_of(None))
    for kind in of_architectures(grid.candidates).values():
        for each in kind[:: max(1, len(kind) // 5)]:
            stage = stage_of(CACHED, each)
            assert fleet_usd_per_hour(stage, each.replicas) == pytest.approx(each.usd_per_hour)


@pytest.mark.parametrize("shape", ["diurnal", "spiky"])
def test_an_autoscaled_fleet_costs_no_less_than_its_bound(shape: str) -> None:
    work = workload(300.0, 0.2, shape, duration_s=20.0)
    kind = of_architectures(candidates(work, offers(devices=["t4-resnet50-fp32-pytorch"])).candidates)["autoscaled"]
    for each in (kind[0], kind[-1]):
        found = evaluate(stage_of(work, each), 1)
        assert min(found.values["cost_usd_per_hour"]) >= each.usd_per_hour * (1 - 1e-9)


@pytest.mark.parametrize("work", [STEADY, CACHED, DAY], ids=["steady", "cached", "diurnal"])
def test_what_is_left_is_a_part_of_all_there_is(work: object) -> None:
    rented = offers(devices=["t4"])
    left = candidates(work, rented)  # type: ignore[arg-type]
    everything = candidates(work, rented, pruned=False)  # type: ignore[arg-type]
    assert set(left.candidates) <= set(everything.candidates)
    assert len(left.candidates) < len(everything.candidates)
    assert not everything.refused
    assert left.refused


def test_fixed_fleets_carry_the_mean_rate() -> None:
    for each in candidates(STEADY, offers()).candidates:
        assert each.replicas * replica_rps(each) > STEADY.rate_rps
        assert each.architecture != "autoscaled", "a steady rate gives nothing to follow"
        assert each.architecture != "cached", "nothing is asked for twice"
        assert profiles()[each.profile].service_time_s(each.max_batch_size) < STEADY.p95_s


def test_a_cache_needs_fewer_replicas_for_what_it_has() -> None:
    assert hit_share(STEADY) == 0.0
    assert 0.9 < hit_share(CACHED) <= 1.0
    kinds = of_architectures(candidates(CACHED, offers(devices=[T4])).candidates)
    fewest = {name: min(each.replicas for each in kind) for name, kind in kinds.items()}
    assert fewest["cached"] == 1


def test_a_profile_that_is_never_quicker_is_left_out() -> None:
    kept, every = offers(devices=["t4"]), offers(devices=["t4"], pruned=False)
    assert {each.profile.name for each in kept} < {each.profile.name for each in every}
    assert not any(each.profile.name == "t4-resnet50-fp32-pytorch" for each in kept)


def test_the_machine_is_the_cheapest_for_so_many() -> None:
    one, eight = a_price(usd=1.0), a_price(usd=4.0, gpus=8)
    offer = Offer(profiles()[T4], (eight, one))
    assert [offer.price_of(count) for count in (1, 3, 4, 5, 8)] == [one, one, one, eight, eight]
    assert [paid_usd_per_hour(eight, count) for count in (1, 8, 9)] == [4.0, 4.0, 8.0]


@settings(max_examples=30, deadline=None)
@given(st.floats(20.0, 3000.0), st.floats(0.02, 0.5), st.sampled_from(["steady", "diurnal", "spiky"]))
def test_whatever_comes_the_grid_is_sound(rate: float, p95: float, shape: str) -> None:
    work = workload(rate, p95, shape)
    for each in candidates(work, offers(devices=["a100"])).candidates[:3]:
        stage = stage_of(work, each)
        assert stage.slo.latency_s == p95
        assert stage.batching.max_batch_size <= stage.admission.max_queue_length


def test_a_sibling_has_the_machine_and_the_cost_of_its_own_size() -> None:
    rented = offers(devices=["v100"])
    grid = candidates(STEADY, rented, host=host_of(0.1))
    two = next(each for each in grid.candidates if each.replicas == 2)
    eight = sibling(STEADY, rented, two, replicas=8)
    assert eight.price.gpu_count == 8
    assert eight.usd_per_hour == pytest.approx(eight.price.usd_per_hour + 0.1)
    assert sibling(STEADY, rented, eight, replicas=2) == two


def test_a_sibling_that_is_filled_otherwise_may_have_as_many_as_its_peak_takes() -> None:
    work, rented = workload(4000.0, 0.12, "diurnal"), offers(devices=["t4"])
    fleet = next(each for each in candidates(work, rented).candidates if each.architecture == "autoscaled")
    filled = [change for what, change in changes(work, fleet) if "filled" in what]
    assert len(filled) == 2
    for change in filled:
        assert change["replicas"] == math.ceil(work.peak_rps / change["target_rps"]) + 1
        other = sibling(work, rented, fleet, **change)
        assert (other.replicas > fleet.replicas) == (other.target_rps < fleet.target_rps)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ({"model": "resnet5"}, "Did you mean 'resnet50'?"),
        ({"devices": ["t5"]}, "--devices: must be devices of the catalogue"),
        ({"provider": "awz"}, "Did you mean 'aws'?"),
        ({"provider": "runpod community", "devices": ["t4"]}, "There is nothing to rent."),
    ],
)
def test_what_cannot_be_rented_is_told_in_words(given_: dict[str, object], said: str) -> None:
    with pytest.raises(StageError) as error:
        offers(**given_)  # type: ignore[arg-type]
    assert said in str(error.value)


def test_the_stage_says_what_the_gateway_costs() -> None:
    grid = candidates(STEADY, offers(), host=host_of(None))
    fleet = next(each for each in grid.candidates if each.has_gateway)
    alone = next((each for each in grid.candidates if not each.has_gateway), None)
    cost = tomllib.loads(stage_toml(stage_of(STEADY, fleet)))["cost"]
    assert cost["host_machine"] == host_of(None).machine  # type: ignore[union-attr]
    assert alone is None or alone.host is None
