"""When is a challenger stopped? Counts of both arms in, at most one verdict out, at any time."""

from __future__ import annotations

import numpy as np
import pytest

from stages.policies.experiment import Experiment
from stages.policies.guardrails import Guard, in_words
from stages.policies.splitting import Wanted
from stages.split import Guardrails, Split

SLO_S = 0.25
LIMITS = Guardrails(
    requests_min=20, errors_share_max=0.05, latency_s=0.1, goodput_share_min=0.8, accuracy_drop_max=0.02, alpha=0.05
)


def a_guard(**changes: float) -> Guard:
    return Guard(LIMITS.model_copy(update=changes), SLO_S)


def after(guard: Guard, ends: list[tuple[str, float]]) -> int | None:
    """After how many of these requests of the challenger it is broken; None for never."""
    for number, (reason, latency_s) in enumerate(ends, 1):
        guard.ended("challenger", reason, latency_s)
        if guard.broken() is not None:
            return number
    return None


def test_nothing_is_broken_without_a_limit() -> None:
    guard = Guard(None, SLO_S)
    assert after(guard, [("model_error", 1.0)] * 500) is None


@pytest.mark.parametrize(
    ("end", "guardrail", "limits"),
    [
        (("model_error", 0.01), "errors", {}),
        (("queue_full", 0.0), "errors", {}),
        (("", 0.2), "latency", {}),
        (("upstream_timeout", 30.0), "latency", {"errors_share_max": None}),
        (("", 0.3), "goodput", {"latency_s": None}),
    ],
)
def test_what_always_goes_wrong_is_out_with_the_first_verdict(
    end: tuple[str, float], guardrail: str, limits: dict[str, None]
) -> None:
    guard = Guard(LIMITS.model_copy(update=limits), SLO_S)
    assert after(guard, [end] * 100) == 20
    broken = guard.broken()
    assert broken is not None
    assert (broken.guardrail, broken.requests) == (guardrail, 20)
    assert in_words(broken, 0.1).endswith("after 20 of its requests")


def test_an_answer_as_late_as_the_limit_is_not_late() -> None:
    assert after(a_guard(), [("", 0.1)] * 300) is None


@pytest.mark.parametrize("reason", ["bad_input", "client_timeout", "gateway_full"])
def test_what_is_not_the_arms_fault_is_not_counted(reason: str) -> None:
    guard = a_guard()
    assert after(guard, [(reason, 1.0)] * 300) is None
    assert guard.arms["challenger"].requests == 0


def test_a_champion_is_never_stopped() -> None:
    guard = a_guard()
    for _ in range(300):
        guard.ended("champion", "model_error", 1.0)
    assert guard.broken() is None


def test_accuracy_is_the_champions_less_the_challengers() -> None:
    guard = a_guard()
    assert after(guard, [("", 0.01)] * 30) is None
    guard.labels("champion", 9_700, 10_000)
    guard.labels("challenger", 965, 1_000)
    assert guard.broken() is None, "half a point less is within the limit, and not proven"
    guard.labels("challenger", 850, 1_000)
    broken = guard.broken()
    assert broken is not None
    assert broken.guardrail == "accuracy"
    assert broken.value == pytest.approx(0.12)
    guard.labels("challenger", 990, 1_000)
    assert guard.broken() is None, "a better one stays"


def test_a_smaller_share_of_errors_takes_longer_and_more_guardrails_a_little() -> None:
    def ends(share: float) -> list[tuple[str, float]]:
        every = round(1 / share)
        return [("model_error" if n % every == 0 else "", 0.01) for n in range(1, 50_000)]

    alone = dict.fromkeys(("latency_s", "goodput_share_min", "accuracy_drop_max"))
    often = after(Guard(LIMITS.model_copy(update={**alone, "errors_share_max": 0.01}), SLO_S), ends(0.2))
    seldom = after(Guard(LIMITS.model_copy(update={**alone, "errors_share_max": 0.01}), SLO_S), ends(0.05))
    of_four = after(a_guard(errors_share_max=0.01), ends(0.05))
    assert often is not None and seldom is not None and of_four is not None
    assert often < seldom < of_four, "each of several guardrails has its part of alpha"
    assert after(a_guard(errors_share_max=0.01), ends(0.01)) is None, "one that just keeps it stays"


def test_one_that_keeps_everything_is_seldom_stopped_though_one_looks_every_time() -> None:
    """At the very limit, where it is hardest to tell: 120 challengers, 300 looks each, alpha of 0.2."""
    rng, stopped = np.random.default_rng(7), 0
    for _ in range(120):
        guard = a_guard(alpha=0.2, requests_min=1, accuracy_drop_max=None, goodput_share_min=None, latency_s=None)
        fails = rng.random(300) < 0.05
        stopped += after(guard, [("model_error" if fail else "", 0.01) for fail in fails.tolist()]) is not None
    assert stopped <= 120 * 0.2 + 3 * np.sqrt(120 * 0.2 * 0.8)


def test_an_experiment_stops_once_and_begins_again_with_nothing() -> None:
    experiment = Experiment(Split(challenger_share=1.0, guardrails=LIMITS), SLO_S, Wanted(1.0))
    assert experiment.arm("alice", "1", 0.0) == "challenger"
    found = [experiment.ended("challenger", "model_error", 0.01) for _ in range(40)]
    assert [n for n, broken in enumerate(found, 1) if broken is not None] == [20]
    assert experiment.arm("alice", "1", 0.0) == "champion"
    assert experiment.share(0.0) == 0.0
    experiment.want(Wanted(0.5), begins_again=True)
    assert experiment.share(0.0) == 0.5
    assert experiment.guard.arms["challenger"].requests == 0
    assert experiment.broken is None


def test_in_shadow_mode_nobody_is_answered_by_the_challenger() -> None:
    split = Split(mode="shadow", challenger_share=0.3)
    experiment = Experiment(split, SLO_S, Wanted(0.3))
    users = [str(user) for user in range(10_000)]
    assert {experiment.arm(user, "1", 0.0) for user in users} == {"champion"}
    copied = sum(experiment.copied(user, "1", 0.0) for user in users)
    assert abs(copied - 3_000) < 4 * np.sqrt(10_000 * 0.3 * 0.7)
    plain = Experiment(Split(challenger_share=0.3), SLO_S, Wanted(0.3))
    assert not any(plain.copied(user, "1", 0.0) for user in users[:100])
