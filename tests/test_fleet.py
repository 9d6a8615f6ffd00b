"""Fleets: what their devices are called, what they carry together, and how `rung` shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli_w
from typer.testing import CliRunner

from stages import spec
from stages.capacity import emulated_capacity, fleet_capacity, largest
from stages.cli import app
from stages.fleet import is_loopback

T4, A100 = "t4-resnet50-fp16-pytorch", "a100-resnet50-fp16-tensorflow"


def fleet_of(replicas: int, *profiles: str, **changes: Any) -> spec.Stage:
    """The load-balanced stage with so many replicas, of these profiles."""
    given = {"fleet.replicas": replicas, "fleet.profiles": list(profiles), "overload": True, "device.slowdown": 1.0}
    return spec.load_stage("load-balanced", given | {key.replace("__", "."): value for key, value in changes.items()})


@pytest.mark.parametrize(
    ("replicas", "profiles", "label"),
    [
        (1, (), f"emulated {T4}"),
        (2, (), f"2 x emulated {T4}"),
        (2, (T4, A100), f"emulated {T4} + emulated {A100}"),
        (5, (A100, T4), f"3 x emulated {A100} + 2 x emulated {T4}"),
        (3, (A100,), f"3 x emulated {A100}"),
    ],
)
def test_a_fleet_is_called_by_its_devices(replicas: int, profiles: tuple[str, ...], label: str) -> None:
    assert spec.fleet_label(fleet_of(replicas, *profiles)) == label


def test_the_slowdown_is_said_of_each_device() -> None:
    stage = fleet_of(2, T4, A100, device__slowdown=4.0)
    assert spec.fleet_label(stage) == f"emulated {T4}, 4 times slower + emulated {A100}, 4 times slower"


def test_one_timed_replica_is_called_as_before() -> None:
    stage = spec.load_stage("single-vm", {"device.kind": "cpu", "device.profile": None})
    assert spec.fleet_label(stage) == spec.device_label(stage) == "cpu"


def test_each_replica_sees_its_own_device() -> None:
    stage = fleet_of(3, T4, A100)
    seen = [spec.of_replica(stage, number).device.profile for number in range(4)]
    assert seen == [T4, A100, T4, A100], "a fourth, should the fleet grow, goes on in turn"
    assert spec.of_replica(stage, 1).gateway == stage.gateway


def test_equal_replicas_carry_so_many_times_as_much() -> None:
    stage = fleet_of(3)
    one, all_ = (
        emulated_capacity(stage.device, stage.batching),
        fleet_capacity(stage.device, stage.batching, stage.fleet),
    )
    assert one is not None and all_ is not None
    assert all_.rps == pytest.approx(3 * one.rps) and all_.replicas == 3
    assert str(all_) == (
        "1956.0 requests per second (3 x 652.0: t4-resnet50-fp16-pytorch, batches of 8: 8 / 0.012270 s)"
    )


def test_unequal_replicas_carry_their_sum() -> None:
    stage = fleet_of(3, T4, A100, batching__max_batch_size=1)
    capacity = fleet_capacity(stage.device, stage.batching, stage.fleet)
    assert capacity is not None
    assert capacity.rps == pytest.approx(2 / 0.012658 + 1 / 0.004477)


def test_one_replica_is_said_as_before() -> None:
    stage = spec.load_stage("micro-batched")
    assert str(fleet_capacity(stage.device, stage.batching, stage.fleet)) == str(
        emulated_capacity(stage.device, stage.batching)
    )


def test_a_fleet_of_timed_devices_has_no_capacity_before_it_is_measured() -> None:
    stage = fleet_of(2)
    timed = spec.Device(kind="cpu")
    assert fleet_capacity(timed, stage.batching, stage.fleet) is None
    assert largest(stage.fleet, None) == stage.fleet


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.4", False),
        ("localhost.example.org", False),
    ],
)
def test_what_only_this_machine_reaches(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_tls_files_are_seen_from_the_stage_file(tmp_path: Path) -> None:
    for name in ("certificate.pem", "key.pem"):
        (tmp_path / name).write_text("PEM", encoding="utf-8")
    table = fleet_of(2).model_dump(exclude_none=True, exclude_defaults=True)
    table["gateway"]["edge"] = {"tls_certificate": "certificate.pem", "tls_key": "key.pem"}
    (tmp_path / "stage.toml").write_text(tomli_w.dumps(table), encoding="utf-8")
    stage = spec.load_stage(tmp_path)
    assert stage.gateway is not None
    assert stage.gateway.edge.tls_certificate == str(tmp_path / "certificate.pem")
    assert stage.gateway.edge.tls_key == str(tmp_path / "key.pem")


def test_show_says_who_shares_out_and_what_all_carry() -> None:
    result = CliRunner().invoke(app, ["show", "load-balanced"])
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-4:] == [
        "# Capacity: 326.0 requests per second "
        "(2 x 163.0: t4-resnet50-fp16-pytorch at slowdown 4, batches of 8: 8 / 0.049080 s)",
        "# Gateway: least-outstanding over 2 replicas",
        "# Traffic: 220.0 requests per second on average, about 6600 in 30 s",
        "# Load: 0.67 of the capacity",
    ]
