"""The device catalogue: every row is sourced and sound, times are interpolated between rows and refused beyond."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import catalogue
from stages.capacity import emulated_capacity
from stages.catalogue import Profile, profiles
from stages.spec import Batching, Device

ROWS = list(csv.DictReader((Path(catalogue.__file__).parent / "devices.csv").read_text(encoding="utf-8").splitlines()))

THREE = Profile("three", "d", "m", "p", "f", "s", batch_sizes=(1, 4, 8), service_times_s=(0.010, 0.013, 0.033))


def test_every_row_says_where_it_comes_from() -> None:
    for row in ROWS:
        repository, _, page = row["source"].partition(":")
        assert "@" in repository and "/" in repository, row
        assert page.endswith(".md"), row


def test_no_row_stands_twice_and_every_row_is_in_a_profile() -> None:
    keys = [(row["profile"], int(row["batch_size"])) for row in ROWS]
    assert len(set(keys)) == len(keys)
    assert sorted(keys) == sorted((name, n) for name, profile in profiles().items() for n in profile.batch_sizes)


@pytest.mark.parametrize("name", profiles())
def test_a_profile_is_one_device_one_model_and_one_source(name: str) -> None:
    rows = [row for row in ROWS if row["profile"] == name]
    for column in ("device", "model", "precision", "framework", "source"):
        assert len({row[column] for row in rows}) == 1, column
        assert rows[0][column]


@pytest.mark.parametrize("name", profiles())
def test_a_profile_rises_in_batch_size_and_gains_by_batching(name: str) -> None:
    profile = profiles()[name]
    assert list(profile.batch_sizes) == sorted(set(profile.batch_sizes))
    assert profile.batch_sizes[0] == 1
    assert all(0 < time_s < 10 for time_s in profile.service_times_s)
    first, last = profile.service_time_s(1), profile.service_time_s(profile.max_batch_size)
    assert profile.max_batch_size / last > 1 / first


@pytest.mark.parametrize("part", ["t4-resnet50", "v100-resnet50", "a100-resnet50", "t4-bert", "v100-bert", "a100-bert"])
def test_the_devices_and_models_that_stages_are_made_of_are_there(part: str) -> None:
    assert any(name.startswith(part) for name in profiles())


@pytest.mark.parametrize(("batch_size", "time_s"), [(1, 0.010), (2, 0.011), (4, 0.013), (5, 0.018), (8, 0.033)])
def test_times_lie_on_the_line_between_measured_sizes(batch_size: int, time_s: float) -> None:
    assert THREE.service_time_s(batch_size) == pytest.approx(time_s)


@pytest.mark.parametrize("batch_size", [0, -1, 9, 1000])
def test_beyond_the_measured_sizes_a_time_is_refused(batch_size: int) -> None:
    with pytest.raises(ValueError, match=f"measured for batches of 1 to 8, not {batch_size}"):
        THREE.service_time_s(batch_size)


@given(st.sampled_from(sorted(profiles())), st.data())
def test_an_interpolated_time_is_between_its_neighbours(name: str, data: st.DataObject) -> None:
    profile = profiles()[name]
    n = data.draw(st.integers(1, profile.max_batch_size))
    below = max(size for size in profile.batch_sizes if size <= n)
    above = min(size for size in profile.batch_sizes if size >= n)
    low, high = sorted((profile.service_time_s(below), profile.service_time_s(above)))
    assert low <= profile.service_time_s(n) <= high


def test_capacity_names_the_best_batch_and_its_time() -> None:
    device = Device(kind="emulated", profile="t4-resnet50-fp16-pytorch", slowdown=2.0)
    capacity = emulated_capacity(device, Batching(max_batch_size=8))
    assert capacity is not None
    assert capacity.batch_size == 8
    assert capacity.service_time_s == pytest.approx(2 * 0.01227)
    assert capacity.rps == pytest.approx(8 / (2 * 0.01227))
    assert str(capacity) == (
        "326.0 requests per second (t4-resnet50-fp16-pytorch at slowdown 2, batches of 8: 8 / 0.024540 s)"
    )


def test_a_timed_device_has_no_capacity_before_it_is_measured() -> None:
    assert emulated_capacity(Device(kind="cpu"), Batching()) is None
