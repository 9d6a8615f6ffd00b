"""What replicas cost: the price list has a source for every row, and a stage's price goes by its replicas."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from stages import catalogue
from stages.catalogue import profiles
from stages.catalogue.prices import gpu_family, prices
from stages.cost import Cost, described, usd_per_hour
from stages.spec import load_stage, stage_toml

T4, A100 = "t4-resnet50-fp16-pytorch", "a100-resnet50-fp16-tensorflow"


def test_every_row_has_its_source_and_date_and_no_machine_stands_twice() -> None:
    with (Path(catalogue.__file__).parent / "prices.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["machine"] for row in rows] == list(prices())
    for row in rows:
        assert all(row.values()), row
        assert row["pricing"] in ("on-demand", "spot")
        assert row["machine"].endswith("-spot") == (row["pricing"] == "spot")
        assert 0.05 < float(row["usd_per_hour"]) < 10.0


def test_every_device_of_the_catalogue_can_be_rented() -> None:
    rented = {price.gpu_family for price in prices().values()}
    assert {gpu_family(profile.device) for profile in profiles().values()} <= rented


def test_spot_is_cheaper_than_the_same_machine_on_demand() -> None:
    for name, price in prices().items():
        if name.endswith("-spot"):
            assert price.usd_per_hour < prices()[name.removesuffix("-spot")].usd_per_hour


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"machine": "aws-g4dn.xlarge"}, [0.526, 0.526, 0.526]),
        ({"usd_per_hour": 2.0}, [2.0, 2.0, 2.0]),
        ({"machines": ["aws-g4dn.xlarge", "gcp-a2-highgpu-1g"]}, [0.526, 3.67, 0.526]),
    ],
)
def test_the_price_of_each_replica(table: dict[str, Any], expected: list[float]) -> None:
    cost = Cost.model_validate(table)
    assert [usd_per_hour(cost, replica) for replica in range(3)] == expected
    assert all(f"{price:g}" in described(cost) for price in expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"cost.machine": "aws-g4dn.xlarge-spot"},
        {"cost.machine": None, "cost.usd_per_hour": 1.5},
        {"cost": None},
        {"cost.machine": None, "fleet.profiles": [T4, A100], "cost.machines": ["aws-g4dn.xlarge", "gcp-a2-highgpu-1g"]},
    ],
)
def test_a_stage_keeps_its_price_on_the_way_to_toml_and_back(changes: dict[str, Any], tmp_path: Path) -> None:
    stage = load_stage("autoscaled", changes)
    (tmp_path / "stage.toml").write_text(stage_toml(stage), encoding="utf-8")
    assert load_stage(tmp_path) == stage
