"""nginx as the gateway of two versions: what is written for it. What it makes of it: tests/test_split_docker.py."""

from __future__ import annotations

from typing import Any

import pytest

from reference_apps import nginx
from reference_apps.nginx import SHARE_DIGITS
from stages.spec import Stage, load_stage
from tests.test_nginx import block, lines_of

THREE = {0: "172.20.0.2:8000", 1: "172.20.0.3:8000", 2: "172.20.0.4:8000"}
QUIET = {"split.guardrails": None, "feedback": None, "gateway.engine": "nginx"}


def a_split(**split: Any) -> Stage:
    return load_stage("ab-test", QUIET | {f"split.{name}": value for name, value in split.items()})


def test_each_arm_has_its_replicas() -> None:
    text = nginx.configuration(a_split(), THREE, 1, challenger_share=0.05)
    servers = {
        arm: [line.split(" ")[1] for line in block(text, f"upstream {arm}") if line.startswith("server")]
        for arm in ("champion", "challenger")
    }
    assert servers == {"champion": ["172.20.0.2:8000", "172.20.0.3:8000"], "challenger": ["172.20.0.4:8000"]}
    assert "zone challenger 1m;" in text
    assert "upstream fleet {" not in text
    assert "proxy_pass http://$rung_arm;" in block(text, "location = /predict")
    assert "proxy_pass http://champion;" in block(text, "location = /readyz")
    assert "add_header x-rung-arm $rung_arm always;" in text


@pytest.mark.parametrize(
    ("share", "rows"),
    [
        (0.05, ["5.00% challenger;", "* champion;"]),
        (0.0001, ["0.01% challenger;", "* champion;"]),
        (0.0, ["* champion;"]),
        (1.0, ["100.00% challenger;", "* champion;"]),
    ],
)
def test_shares_are_percentages_and_none_of_nothing(share: float, rows: list[str]) -> None:
    text = nginx.configuration(a_split(salt="salty"), THREE, 1, challenger_share=round(share, SHARE_DIGITS))
    assert block(text, 'split_clients "salty$rung_who" $rung_drawn') == rows


def test_what_is_split_and_what_forces_an_arm() -> None:
    by_user = lines_of(nginx.configuration(a_split(force_header="x-my-arm"), THREE, 1))
    assert "map $http_x_rung_user $rung_who { '' $rung_number; default $http_x_rung_user; }" in by_user
    forced = "map $http_x_my_arm $rung_arm { champion champion; challenger challenger; default $rung_drawn; }"
    assert forced in by_user
    number = 'map $http_x_rung_request $rung_number { "~^[0-9]{1,15}-(?<rung_place>[0-9]{1,15})$" $rung_place; '
    assert f"{number}default $rung_request_id; }}" in by_user, (
        "the number alone, without the seed, as in the other world"
    )
    by_request = nginx.configuration(a_split(key="request"), THREE, 1)
    assert 'split_clients "$rung_number" $rung_drawn {' in by_request
    assert "$rung_who" not in by_request


def test_an_arm_without_replicas_is_no_empty_group() -> None:
    text = nginx.configuration(a_split(), {2: THREE[2]}, 1)
    assert "upstream champion" not in text
    assert block(text, "location = /readyz") == ["return 502;"], "nginx would not start with a group that is not there"
    assert "proxy_pass http://$rung_arm;" in text


def test_a_stage_without_a_split_is_written_as_before() -> None:
    text = nginx.configuration(load_stage("load-balanced", {"gateway.engine": "nginx"}), {0: THREE[0]}, 1)
    assert "upstream fleet {" in text
    assert "proxy_pass http://fleet;" in text
    assert "rung_arm" not in text
