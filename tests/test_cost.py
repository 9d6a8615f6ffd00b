"""What replicas and the components beside them cost: a stage's price goes by its machines and their contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stages.cost import Cost, described, host_usd_per_hour, hosts_described, usd_per_hour
from stages.problems import StageError
from stages.spec import load_stage, stage_toml

T4, A100 = "t4-resnet50-fp16-pytorch", "a100-resnet50-fp16-tensorflow"


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"machine": "aws/g4dn.xlarge"}, [0.526, 0.526, 0.526]),
        ({"machine": "aws-g4dn.xlarge"}, [0.526, 0.526, 0.526]),
        ({"machine": "aws-g4dn.xlarge-spot"}, [0.1891, 0.1891, 0.1891]),
        ({"machine": "aws/g4dn.xlarge", "pricing": "spot"}, [0.1891, 0.1891, 0.1891]),
        ({"machine": "aws/g4dn.xlarge", "pricing": "spot", "region": "us-west-2"}, [0.1837, 0.1837, 0.1837]),
        ({"machine": "aws/g4dn.xlarge", "region": "eu-west-3"}, [0.615, 0.615, 0.615]),
        ({"usd_per_hour": 2.0}, [2.0, 2.0, 2.0]),
        ({"machines": ["aws/g4dn.xlarge", "gcp/a2-highgpu-1g"]}, [0.526, 3.67, 0.526]),
    ],
)
def test_the_price_of_each_replica(table: dict[str, Any], expected: list[float]) -> None:
    cost = Cost.model_validate(table)
    assert [usd_per_hour(cost, replica) for replica in range(3)] == expected
    assert all(f"{price:g}" in described(cost) for price in expected)


def test_a_replica_has_its_share_of_a_machine_with_several_gpus() -> None:
    cost = Cost(machine="lambda/gpu_8x_a100")
    assert usd_per_hour(cost, 0) == pytest.approx(1.29)
    assert "10.32 US dollars an hour" in described(cost) and "8 GPUs" in described(cost)


def test_what_stands_beside_the_replicas_has_a_price_of_its_own_and_is_rented_on_demand() -> None:
    spot = Cost(machine="aws/g4dn.xlarge", pricing="spot", host_machine="aws/c5.xlarge")
    assert host_usd_per_hour(spot) == 0.17
    assert "0.17 US dollars an hour (aws/c5.xlarge, on-demand" in hosts_described(spot)
    assert host_usd_per_hour(Cost(machine="aws/g4dn.xlarge", host_usd_per_hour=0.5)) == 0.5
    assert host_usd_per_hour(Cost(machine="aws/g4dn.xlarge")) is None
    assert hosts_described(Cost(machine="aws/g4dn.xlarge")) == "not said"


@pytest.mark.parametrize(
    "changes",
    [
        {"cost.machine": "aws-g4dn.xlarge-spot"},
        {"cost.pricing": "spot", "cost.region": "us-west-2"},
        {"cost.host_machine": None, "cost.host_usd_per_hour": 0.2},
        {"cost.machine": None, "cost.usd_per_hour": 1.5},
        {"cost": None},
        {"cost.machine": None, "fleet.profiles": [T4, A100], "cost.machines": ["aws-g4dn.xlarge", "gcp-a2-highgpu-1g"]},
    ],
)
def test_a_stage_keeps_its_price_on_the_way_to_toml_and_back(changes: dict[str, Any], tmp_path: Path) -> None:
    stage = load_stage("autoscaled", changes)
    (tmp_path / "stage.toml").write_text(stage_toml(stage), encoding="utf-8")
    assert load_stage(tmp_path) == stage


def test_a_stage_may_name_a_machine_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.csv"
    file.write_text("provider,product,gpu,usd_per_hour,pricing\nmine,rack,T4 16GB,0.1,on-demand\n", encoding="utf-8")
    with pytest.raises(StageError, match=r"cost\.machine: must be a machine of the price list"):
        load_stage("autoscaled", {"cost.machine": "mine/rack"})
    monkeypatch.setenv("RUNG_PRICES", str(file))
    stage = load_stage("autoscaled", {"cost.machine": "mine/rack"})
    assert stage.cost is not None and usd_per_hour(stage.cost, 0) == 0.1
