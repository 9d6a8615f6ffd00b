"""The count of who gets which version: over real sockets it holds, and what does not hold is seen."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from loadtests.bench_split import AFTER_KILL, FIRST, LARGER, Arms, _arm, answered, judged, rounds, show, wanted
from loadtests.payloads import Payloads
from stages.policies.splitting import arm, bucket
from stages.spec import load_stage
from tests.test_splitter import arms

USERS = [str(number) for number in range(400)]


def given(share: float) -> Arms:
    return {user: arm(bucket(user, ""), share) for user in USERS}


def test_a_gateway_gives_each_user_the_version_that_its_weight_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counted, crashes = [0], []
    with arms(tmp_path, FIRST) as made:

        def ask(users: Sequence[str]) -> Arms:
            def count() -> None:
                counted[0] += 1

            payloads = Payloads({"content-type": "x/y"}, [b"four"], ())
            return asyncio.run(answered(made.stage, made.url, payloads, users, count))

        def want(share: float) -> None:
            wanted(made.url, tmp_path, share)

        found = list(rounds(ask, want, lambda: crashes.append(1), "", 500))
    assert [each.users for each in found] == [500, 100, 100, 100, 100]
    assert counted == [900] and crashes == [1]
    assert all(each.holds for each in found), found
    names = {each.name: each for each in found}
    moved = sum(FIRST <= bucket(str(user), "") < LARGER for user in range(0, 500, 5))
    assert names["a larger weight"].moved == names["back"].moved == moved > 0
    assert names["again"].moved == names[AFTER_KILL].moved == 0
    show(found)
    assert "900 requests" in capsys.readouterr().out


def test_whoever_moves_and_need_not_is_seen_and_whoever_stays_and_must_not() -> None:
    assert judged("x", 0.2, 0.2, given(0.2), given(0.2), "", 1.0).holds
    turncoat = given(0.2) | {USERS[0]: "challenger" if given(0.2)[USERS[0]] == "champion" else "champion"}
    told = judged("x", 0.2, 0.2, turncoat, given(0.2), "", 1.0)
    assert (told.moved, told.strays, told.holds) == (1, 1, False)
    stayed = judged("x", 0.5, 0.2, given(0.2), given(0.2), "", 1.0)
    assert stayed.strays == stayed.between > 0 and not stayed.holds


def test_a_share_beyond_binomial_error_is_seen() -> None:
    told = judged("x", 0.05, 0.05, given(0.2), {}, "", 1.0)
    assert told.challenger > told.most and not told.holds


def test_an_answer_of_the_other_arm_s_replica_is_an_error() -> None:
    stage = load_stage("ab-test")
    assert _arm(stage, "replica=2,batch=1,arm=challenger") == "challenger"
    with pytest.raises(ValueError, match="replica 0 answered a request of the challenger"):
        _arm(stage, "replica=0,batch=1,arm=challenger")
