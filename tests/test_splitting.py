"""Who gets which arm: the same in every process, in the shares that are wanted, and as few change as there must."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import arms
from stages.policies import splitting
from stages.policies.splitting import Wanted, arm, bucket, bucket_of_nginx, ramp_share, share_at, split_key
from stages.spec import load_stage, of_replica, with_overrides

REQUESTS = 100_000
T4, A100 = "t4-resnet50-fp16-pytorch", "a100-resnet50-tf32-tensorflow"


@pytest.fixture(scope="module", params=[bucket, bucket_of_nginx], ids=["ours", "nginx"])
def places(request: pytest.FixtureRequest) -> np.ndarray:
    return np.array([request.param(str(user), "") for user in range(REQUESTS)])


@pytest.mark.parametrize("share", [0.001, 0.01, 0.05, 0.2, 0.5, 0.95])
def test_shares_are_within_binomial_error_of_the_weights(places: np.ndarray, share: float) -> None:
    found = int((places < share).sum())
    assert abs(found - REQUESTS * share) < 4.0 * np.sqrt(REQUESTS * share * (1 - share))


def test_buckets_fill_the_line_and_never_reach_its_end(places: np.ndarray) -> None:
    assert 0.0 <= places.min() < 1e-3
    assert 1 - 1e-3 < places.max() < 1.0
    counts = np.histogram(places, bins=100, range=(0.0, 1.0))[0]
    expected = REQUESTS / 100
    assert float(((counts - expected) ** 2 / expected).sum()) < 99 + 5 * np.sqrt(2 * 99)  # chi-squared, 99 degrees


def test_another_process_gives_the_same_arm() -> None:
    """Python's own hash of a text would not."""
    code = "from stages.policies.splitting import bucket; print([bucket(str(n), 'again') for n in range(20)])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.strip() == str([bucket(str(n), "again") for n in range(20)])


def test_murmur_hashes_texts_of_every_length() -> None:
    """That they are nginx's hashes is asked of nginx itself: tests/test_split_docker.py."""
    assert splitting.murmur2(b"") == 0
    known = {splitting.murmur2(b"x" * length) for length in range(64)}
    assert len(known) == 64
    assert all(0 <= value < 2**32 for value in known)


def test_a_salt_draws_anew() -> None:
    first, second = ([bucket(str(user), salt) < 0.5 for user in range(10_000)] for salt in ("", "second-try"))
    both = sum(a and b for a, b in zip(first, second, strict=True))
    assert abs(both - 2_500) < 4 * np.sqrt(10_000 * 0.25 * 0.75), "who had it before is not who has it now"


@given(
    place=st.floats(0.0, 1.0, exclude_max=True),
    before=st.floats(0.0, 1.0),
    after=st.floats(0.0, 1.0),
)
def test_a_share_that_moves_moves_only_those_in_between(place: float, before: float, after: float) -> None:
    moved = arm(place, before) != arm(place, after)
    assert moved == (min(before, after) <= place < max(before, after))
    assert arm(place, 0.0) == "champion"
    assert arm(place, 1.0) == "challenger"


def test_a_user_is_split_by_name_and_a_stranger_by_its_request() -> None:
    assert split_key("user", "alice", "17") == "alice"
    assert split_key("user", "", "17") == "17"
    assert split_key("request", "alice", "17") == "17"


def test_a_ramp_takes_one_step_after_the_other() -> None:
    shares = (0.01, 0.05, 0.2)
    times_s = [-1.0, 0.0, 9.99, 10.0, 19.99, 20.0, 1e6]
    assert [ramp_share(at_s, shares, 10.0) for at_s in times_s] == [0.0, 0.01, 0.01, 0.05, 0.05, 0.2, 0.2]


def test_what_somebody_wants_stands_above_the_ramp_and_a_stop_above_both() -> None:
    shares = (0.01, 0.05)
    assert share_at(Wanted(0.3, 100.0), shares, 10.0, 111.0) == 0.05
    assert share_at(Wanted(0.3), shares, 10.0, 111.0) == 0.3
    assert share_at(Wanted(0.3, 100.0, "errors"), shares, 10.0, 111.0) == 0.0
    assert share_at(Wanted(0.3, None, "errors"), shares, 10.0, 111.0) == 0.0


# ---- which replica is of which arm -----------------------------------------------------------------------------


def test_replicas_have_the_version_and_the_device_of_their_arm() -> None:
    changes = {
        "fleet.profiles": [T4, A100],
        "split.challenger_profile": A100,
        "split.challenger_replicas": 2,
        "cost": None,
    }
    stage = load_stage("ab-test", {**changes, "split.challenger_facts": {"service_time_factor": 3.0}, "overload": True})
    assert arms.replicas_of(stage) == 4
    assert [arms.arm_of(stage, number) for number in range(8)] == 2 * (["champion"] * 2 + ["challenger"] * 2)
    seen = [of_replica(stage, number) for number in range(8)]
    assert [each.device.profile for each in seen] == 2 * [T4, A100, A100, A100]
    assert [each.model.version for each in seen] == 2 * (["champion"] * 2 + ["challenger"] * 2)
    assert [each.model.known.service_time_factor for each in seen] == 2 * [1.0, 1.0, 3.0, 3.0]
    assert arms.of_arm(stage, "challenger") == seen[2]
    assert arms.kinds_of(stage) == 4, "who takes the place of replica 1 is replica 5"


def test_a_stage_without_a_split_has_one_arm() -> None:
    stage = load_stage("load-balanced")
    assert arms.arms_of(stage) == ("",)
    assert {arms.arm_of(stage, number) for number in range(5)} == {""}
    assert arms.replicas_of(stage) == 2
    assert of_replica(stage, 1).model == stage.model


def test_a_stage_with_a_split_goes_to_toml_and_back() -> None:
    stage = load_stage("ab-test")
    assert with_overrides(stage, {}) == stage
    shadow = with_overrides(stage, {"split.mode": "shadow", "split.shadow_outstanding_max": 3, "split.ramp": None})
    assert with_overrides(shadow, {}) == shadow
