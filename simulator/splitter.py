"""Which version of the model gets a simulated request, what comes of it, and when the challenger is out.

    submit ─▶ Splitter.arm_of ─▶ the arm's replicas ─▶ ended ─▶ guardrails ─▶ Stopped: nobody gets it any more
                                                        └─▶ label, feedback.delay_s after the answer ─▶ guardrails

Twin: reference_apps/splitter.py; the decisions are in stages/policies/experiment.py. Labels come where the accuracy of
both versions is known. Right is whose item lies low enough, so that a version that is worse is wrong on all that a
better one is wrong on; or somebody says which items each version is right on (`right`). Not modelled: requests that
force an arm, what a label takes on its way, and labels that are wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from simpy import Environment

from simulator.clock import At
from simulator.passages import Passage
from stages.arms import ARMS, model_of
from stages.feedback import gives
from stages.policies.experiment import Experiment
from stages.policies.guardrails import Broken
from stages.policies.splitting import Arm, Wanted, bucket
from stages.spec import Stage

__all__ = ["Splitter"]

Right = Callable[[str, int | str], bool]


class Stopped(NamedTuple):
    """When the challenger was stopped, in seconds of the clock, and by what; and what had come of both arms by then."""

    at_s: float
    broken: Broken
    requests: int  # of both that had come to their end
    errors: int  # of the challenger's, those without an answer


class Splitter:
    """The split of one simulated gateway. A ramp begins with the clock."""

    def __init__(self, stage: Stage, env: Environment, seed: int) -> None:
        assert stage.split is not None and stage.gateway is not None
        self.stopped: Stopped | None = None
        self.stopping = env.event()  # fires when the challenger is stopped for the first time
        self._env, self._seed, self._feedback = env, seed, stage.feedback
        wanted = Wanted(stage.split.challenger_share, None if stage.split.ramp is None else 0.0)
        by_nginx = stage.gateway.engine == "nginx"
        self.experiment = Experiment(stage.split, stage.slo.latency_s, wanted, by_nginx)
        known: dict[str, float | None] = {arm: model_of(stage, arm).known.accuracy for arm in ARMS}
        self._accuracy = {arm: share for arm, share in known.items() if share is not None}
        self._counts: dict[str, list[int]] = {arm: [0, 0] for arm in ARMS}  # right, labelled
        self._trial = 0  # how often it began anew
        self._gives = np.empty(0, dtype=np.bool_)
        self.right: Right = self._drawn  # whether an arm's answer for an item is right

    def arm_of(self, passage: Passage) -> Arm:
        """The arm that answers the request, which is read now."""
        return self.experiment.arm(passage.user, str(passage.request), self._env.now)

    def copied(self, passage: Passage) -> bool:
        """Whether the challenger gets a copy of it."""
        return self.experiment.copied(passage.user, str(passage.request), self._env.now)

    def want(self, wanted: Wanted) -> None:
        """From now on the challenger has that share; one that was stopped begins again."""
        if begins_again := bool(self.experiment.wanted.stopped):
            self._trial += 1
            self._counts = {arm: [0, 0] for arm in ARMS}
        self.experiment.want(wanted, begins_again)
        self.stopped = None

    def ended(self, passage: Passage, arm: str, reason: str) -> None:
        """The arm is done with the request; its label comes later, if anybody gives one."""
        broken = self.experiment.ended(arm, reason, self._env.now - passage.in_s)
        self._stop(broken)
        if reason or self._feedback is None or len(self._accuracy) < len(ARMS):
            return
        if self._gives_label(passage.request):
            right = self.right(arm, passage.key)
            at_s = self._env.now + self._feedback.delay_s
            At(self._env, at_s).add_callback(partial(self._labelled, self._trial, arm, right))

    def _drawn(self, arm: str, item: int | str) -> bool:
        return bucket(str(item), f"right {self._seed}") < self._accuracy[arm]

    def _labelled(self, trial: int, arm: str, right: bool, _: object) -> None:
        if trial != self._trial:  # of what was answered before it began anew
            return
        counts = self._counts[arm]
        counts[0] += right
        counts[1] += 1
        self._stop(self.experiment.labels(arm, counts[0], counts[1]))

    def _stop(self, broken: Broken | None) -> None:
        if broken is not None:
            arms = self.experiment.guard.arms
            ended = sum(counts.requests for counts in arms.values())
            self.stopped = Stopped(self._env.now, broken, ended, arms["challenger"].errors)
            if not self.stopping.triggered:
                self.stopping.succeed()

    def _gives_label(self, request: int) -> bool:
        assert self._feedback is not None
        if request >= self._gives.size:
            self._gives = gives(self._feedback, self._seed, max(1024, 2 * (request + 1)))
        return bool(self._gives[request])
