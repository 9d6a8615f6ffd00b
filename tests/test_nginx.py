"""nginx's configuration, as text and as nginx itself reads it."""

from __future__ import annotations

from typing import Any

import pytest

from reference_apps import nginx
from stages.fleet import NGINX_POLICIES
from stages.spec import Stage, load_stage, with_overrides

TWO = {0: "172.20.0.2:8000", 3: "172.20.0.5:8000"}
KEYS = ("0123456789abcdef", "a.secret+of~letters/and_digits-1==")


def a_stage(**gateway: Any) -> Stage:
    changes = {f"gateway.{name}": value for name, value in gateway.items()}
    return load_stage("load-balanced", {"gateway.engine": "nginx", **changes})


def lines_of(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines()]


def block(text: str, head: str) -> list[str]:
    """The lines of a block of the configuration, without its head and its end."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip() == f"{head} {{")
    indent = len(lines[start]) - len(lines[start].lstrip())
    end = next(i for i in range(start, len(lines)) if lines[i] == " " * indent + "}")
    return [line.strip() for line in lines[start + 1 : end]]


@pytest.mark.parametrize(
    ("policy", "directive"),
    [
        ("round-robin", None),
        ("random", "random;"),
        ("least-outstanding", "least_conn;"),
        ("power-of-two", "random two least_conn;"),
        ("sticky", "hash $rung_key consistent;"),
    ],
)
def test_each_policy_that_nginx_has(policy: str, directive: str | None) -> None:
    fleet = block(nginx.configuration(a_stage(policy=policy), TWO, 1), "upstream fleet")
    methods = [line for line in fleet if not line.startswith(("zone", "server", "keepalive"))]
    assert methods == ([] if directive is None else [directive])
    # nginx takes a method for idle connections only before them, and shared counts only with a zone.
    assert fleet[0] == "zone fleet 1m;"
    assert fleet[-1].startswith("keepalive ")


def test_every_policy_that_a_stage_may_name_is_written() -> None:
    assert set(NGINX_POLICIES) == set(nginx._METHODS)


def test_the_replicas_and_their_limits() -> None:
    stage = a_stage(connections_per_replica=77, eject_after=4, eject_s=2.5)
    fleet = block(nginx.configuration(stage, TWO, 1), "upstream fleet")
    limits = "max_conns=77 max_fails=4 fail_timeout=3s"
    assert [line for line in fleet if line.startswith("server")] == [
        f"server 172.20.0.2:8000 {limits};  # replica 0",
        f"server 172.20.0.5:8000 {limits};  # replica 3",
    ]
    assert "keepalive 77;" in fleet


def test_only_what_is_safe_is_tried_again() -> None:
    predict = block(nginx.configuration(a_stage(retries_max=2), TWO, 1), "location = /predict")
    assert "proxy_next_upstream error non_idempotent;" in predict
    assert "proxy_next_upstream_tries 3;" in predict
    assert "proxy_next_upstream off;" in block(
        nginx.configuration(a_stage(retries_max=0), TWO, 1), "location = /predict"
    )


def test_times_are_never_written_as_nothing() -> None:
    """0 is no timeout to some directives of nginx, and no limit to others."""
    stage = a_stage(connect_timeout_s=0.0001, upstream_timeout_s=0.25, eject_s=0.0001)
    text = nginx.configuration(stage, TWO, 1)
    predict = block(text, "location = /predict")
    assert "proxy_connect_timeout 1ms;" in predict
    assert "proxy_read_timeout 250ms;" in predict
    assert "fail_timeout=1s" in text
    assert not [line for line in lines_of(text) if " 0ms" in line or "=0ms" in line]


def test_a_fleet_of_nobody_is_an_answer_and_no_empty_group() -> None:
    text = nginx.configuration(a_stage(), {}, 4)
    assert "upstream" not in [line.split(" ")[0] for line in lines_of(text)]
    assert "proxy_pass" not in text
    assert block(text, "location = /predict") == ["return 502;"]
    assert "return 200 '4';" in block(text, "location = /generation")


def test_keys_are_literal_and_nothing_else_gets_in() -> None:
    text = nginx.configuration(a_stage(), TWO, 1, api_keys=KEYS)
    rows = block(text, "map $rung_key_given $rung_allowed")
    assert rows[0] == r'"~^(?i:bearer) +0123456789abcdef$" 1;'
    assert rows[1] == r'"~^(?i:bearer) +a\.secret\+of\~letters/and_digits\-1==$" 1;'
    assert rows[-1] == "default 0;"
    assert block(text, "location = /predict")[0] == "if ($rung_allowed = 0) { return 401; }"
    assert "rung_allowed" not in nginx.configuration(a_stage(), TWO, 1)
    with pytest.raises(ValueError, match="bearer token"):
        nginx.configuration(a_stage(), TWO, 1, api_keys=('" 1; default 1; #',))


def test_a_policy_that_nginx_has_not_is_not_written() -> None:
    stage = load_stage("load-balanced", {"gateway.policy": "learned"})
    with pytest.raises(ValueError, match="no gateway that nginx can be"):
        nginx.configuration(stage, TWO, 1)
    with pytest.raises(ValueError, match="no gateway that nginx can be"):
        nginx.configuration(load_stage("single-vm"), TWO, 1)


def test_only_what_went_wrong_is_logged_unless_all_is_wanted() -> None:
    assert "map $status $rung_logged { '~^[45]' 1; default 0; }" in nginx.configuration(a_stage(), TWO, 1)
    all_wanted = with_overrides(a_stage(), {"logs.requests": "all"})
    assert "map $status $rung_logged { '~^[45]' 1; default 1; }" in nginx.configuration(all_wanted, TWO, 1)
