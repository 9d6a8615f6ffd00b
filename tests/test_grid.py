"""The grid of a sweep: how axes are written, what `device` stands for, and all that is refused, at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.grid import POINTS_MAX, axes_of, grid, resolve_device, values_of
from stages.catalogue import profiles
from stages.problems import StageError
from stages.spec import load_stage

T4, V100, A100 = (
    f"{gpu}-resnet50-fp16-{with_}" for gpu, with_ in (("t4", "pytorch"), ("v100", "pytorch"), ("a100", "tensorflow"))
)


def told(*over: str, stage: str = "load-balanced") -> str:
    with pytest.raises(StageError) as caught:
        grid(load_stage(stage), over)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1..4", (1, 2, 3, 4)),
        ("3..3", (3,)),
        ("8..1", ()),
        ("1,2,4", (1, 2, 4)),
        ("0.5,1", (0.5, 1)),
        ("4,2,4", (4, 2)),
        ("t4,v100, a100", ("t4", "v100", "a100")),
        ("true,false", (True, False)),
        ('"a,b","c"', ("a,b", "c")),
        ('["a","b"],["c"]', (["a", "b"], ["c"])),
        (",", ()),
    ],
)
def test_values_are_ranges_and_lists(text: str, values: tuple[object, ...]) -> None:
    assert values_of(text) == values


@given(st.integers(-5, 5), st.integers(0, 30))
def test_a_range_has_both_of_its_ends(first: int, more: int) -> None:
    values = values_of(f"{first}..{first + more}")
    assert (values[0], values[-1], len(values)) == (first, first + more, more + 1)


def test_a_grid_is_every_combination_the_last_axis_fastest() -> None:
    points = grid(load_stage("load-balanced"), ["fleet.replicas=2..3", "batching.max_batch_size=4,8"])
    assert [tuple(point.changes.values()) for point in points] == [(2, 4), (2, 8), (3, 4), (3, 8)]
    assert [(p.stage.fleet.replicas, p.stage.batching.max_batch_size) for p in points] == [
        (2, 4),
        (2, 8),
        (3, 4),
        (3, 8),
    ]
    assert str(points[1]) == "fleet.replicas=2, batching.max_batch_size=8"
    assert [str(point) for point in grid(load_stage("single-vm"), [])] == ["as it is"]


def test_a_point_that_is_offered_too_much_is_kept_and_says_so() -> None:
    points = grid(load_stage("load-balanced"), ["fleet.replicas=1..3"])
    assert [bool(point.overloaded) for point in points] == [True, False, False]
    assert "must on average be below the capacity of 163.0" in points[0].overloaded
    assert points[0].stage.overload and not points[1].stage.overload


def test_a_device_stands_for_the_row_that_is_most_like_the_stages_own() -> None:
    stage = load_stage("load-balanced")
    assert [resolve_device(stage, name) for name in ("t4", "V100", "a100", A100)] == [T4, V100, A100, A100]
    fp32 = load_stage("load-balanced", {"device.profile": "t4-resnet50-fp32-tensorflow", "overload": True})
    assert resolve_device(fp32, "v100") == "v100-resnet50-fp32-tensorflow"
    assert resolve_device(fp32, "a100") == "a100-resnet50-tf32-tensorflow"
    bert = load_stage("load-balanced", {"device.profile": "t4-bert-base-fp16-tensorflow", "overload": True})
    assert profiles()[resolve_device(bert, "a100")].model == profiles()["t4-bert-base-fp16-tensorflow"].model


def test_another_device_is_paid_as_what_it_is() -> None:
    points = grid(load_stage("autoscaled"), ["device=t4,v100,a100"])
    machines = [point.stage.cost.machine for point in points if point.stage.cost is not None]
    assert machines == ["aws/g4dn.xlarge", "gcp/n1-highmem-8-v100", "runpod-secure/a100-sxm"]
    spot = grid(load_stage("autoscaled", {"cost.pricing": "spot"}), ["device=a100"])[0].stage.cost
    assert spot is not None and (spot.machine, spot.pricing) == ("gcp/a2-highgpu-1g", "spot")
    old = grid(load_stage("autoscaled", {"cost.machine": "aws-g4dn.xlarge-spot"}), ["device=a100"])[0].stage.cost
    assert old is not None and (old.machine, old.pricing) == ("gcp/a2-highgpu-1g", "spot")


@pytest.mark.parametrize(
    ("over", "said"),
    [
        (["fleet.replicas"], "must be KEY=VALUES"),
        (["=1..2"], "must be KEY=VALUES"),
        (["fleet.replicas=8..1"], "must have a value at least"),
        (["fleet.replicas=1..2", "fleet.replicas=3"], "fleet.replicas: must be given once"),
        (["traffic.seed=1..200", "fleet.replicas=1..100"], f"must span at most {POINTS_MAX:,} points, got 200 x 100"),
        (["traffic.seed=1..99999999999"], "must span at most"),
        (["fleet.replica=1..2"], "Did you mean 'replicas'?"),
        (["pools.replicas=1..2"], "pools: is no key of a stage"),
        (["device=t5"], "must be a GPU that the catalogue has resnet50-v1.5 on (v100, t4, a100), or a profile, got"),
        (["batching.max_batch_size=0,1,512"], "must be at least 1 request (at batching.max_batch_size=0)"),
    ],
)
def test_mistakes_are_answered_in_words(over: list[str], said: str) -> None:
    assert said in told(*over)


def test_every_refused_point_is_told_at_once_and_what_is_alike_once() -> None:
    text = told("batching.max_batch_size=0,1,512", "fleet.replicas=2,0")
    assert "(at batching.max_batch_size=0, fleet.replicas=2 and 1 more points)" in text
    assert "(at batching.max_batch_size=0, fleet.replicas=0 and 2 more points)" in text
    assert "must be at most 256 requests on t4-resnet50-fp16-pytorch" in text
    assert text.count("\n") == 4
    assert "(at" not in told("pools.replicas=1,2"), "what is wrong with every point is said of all of them"


def test_a_device_cannot_stand_for_several() -> None:
    unequal = load_stage("load-balanced", {"fleet.profiles": [T4, A100]})
    with pytest.raises(StageError, match=r"must not be swept over where fleet\.profiles names the devices"):
        grid(unequal, ["device=t4"])
    timed = load_stage("single-vm", {"device.kind": "cpu", "device.profile": None})
    with pytest.raises(StageError, match="where the stage's own device is not emulated"):
        grid(timed, ["device=t4"])
    assert grid(timed, [f"device={T4}"])[0].stage.device.profile == T4


def test_axes_are_read_in_the_order_in_which_they_are_given() -> None:
    assert [(axis.key, axis.values) for axis in axes_of([" a.b = 1,2 ", "c=x"])] == [("a.b", (1, 2)), ("c", ("x",))]
