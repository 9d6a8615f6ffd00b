"""Health: probes in a row, failures in a row, and the time out of rotation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.outcomes import REASONS
from stages.policies.health import Health, speaks_against

FRESH = Health(unhealthy_after=3, healthy_after=2, eject_after=3, eject_s=5.0)


def probed(health: Health, *probes: bool) -> Health:
    for ok in probes:
        health = health.after_probe(ok)
    return health


READY = probed(FRESH, True)


def failed(health: Health, times: int, now_s: float) -> Health:
    for _ in range(times):
        health = health.after_request(False, now_s)
    return health


@pytest.mark.parametrize(
    ("probes", "in_rotation"),
    [
        ((), False),
        ((True,), True),  # new, and well
        ((False, False, True), True),  # it was loading its model
        ((True, False, False), True),  # two failures are not three
        ((True, False, False, False), False),
        ((True, False, False, True, False, False), True),  # not in a row
        ((True, False, False, False, True), False),  # once found unhealthy, one good probe is not enough
        ((True, False, False, False, True, True), True),
        ((True, False, False, False, True, False, True), False),
    ],
)
def test_probes_in_a_row_decide(probes: tuple[bool, ...], in_rotation: bool) -> None:
    assert probed(FRESH, *probes).in_rotation(0.0) is in_rotation


def test_failures_in_a_row_eject_for_a_time() -> None:
    assert failed(READY, 2, 10.0).in_rotation(10.0)
    ejected = failed(READY, 3, 10.0)
    assert not ejected.in_rotation(10.0) and not ejected.in_rotation(14.9)
    assert ejected.in_rotation(15.0)


def test_a_success_ends_the_row() -> None:
    assert failed(failed(READY, 2, 10.0).after_request(True, 10.0), 2, 10.0).in_rotation(10.0)


def test_back_in_rotation_one_failure_is_enough_until_a_request_succeeds() -> None:
    back = failed(READY, 3, 10.0)
    assert not failed(back, 1, 15.0).in_rotation(19.9)
    assert failed(back.after_request(True, 15.0), 1, 15.0).in_rotation(15.0)


def test_what_comes_back_during_the_ejection_changes_nothing() -> None:
    ejected = failed(READY, 3, 10.0)
    assert failed(ejected, 5, 12.0) == ejected
    assert ejected.after_request(True, 12.0) == ejected


def test_good_probes_do_not_end_an_ejection() -> None:
    assert not probed(failed(READY, 3, 10.0), True, True, True).in_rotation(12.0)


def test_failures_do_not_bring_back_what_probes_took_out() -> None:
    out = probed(READY, False, False, False)
    assert not out.after_request(True, 0.0).in_rotation(0.0)


_EVENTS = st.lists(st.tuples(st.sampled_from(["probe", "request"]), st.booleans(), st.floats(0.0, 3.0)), max_size=60)


@given(events=_EVENTS)
def test_only_as_many_bad_signs_in_a_row_as_said_take_a_replica_out(events: list[tuple[str, bool, float]]) -> None:
    health, now_s = READY, 0.0
    bad_probes, bad_requests = 0, 0
    for kind, ok, after_s in events:
        now_s += after_s
        was_in = health.in_rotation(now_s)
        health = health.after_probe(ok) if kind == "probe" else health.after_request(ok, now_s)
        if kind == "probe":
            bad_probes = 0 if ok else bad_probes + 1
        else:
            bad_requests = 0 if ok else bad_requests + 1
        if was_in and not health.in_rotation(now_s):
            assert bad_probes >= 3 if kind == "probe" else bad_requests >= 1
    assert health.in_rotation(now_s + 5.0) is health.ready, "an ejection ends by itself"


def test_a_replica_is_blamed_for_what_it_did() -> None:
    assert {reason for reason in REASONS if speaks_against(reason)} == {
        "connection",
        "model_error",
        "upstream_lost",
        "upstream_timeout",
    }
