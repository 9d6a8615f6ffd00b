"""Which inputs of a load test does each version answer rightly? Both are asked beforehand, each input once.

    examples of the stage's model, with labels ──▶ the arms' versions out of the registry ──▶ right(arm, item)

Which of the inputs that come early are among the wrong ones decides when a guardrail has seen enough, and that is the
same in both worlds. An item is one of at most 256 examples, again and again. No twin: the running versions answer for
themselves, and simulator/splitter.py draws where nobody says.
"""

from __future__ import annotations

import numpy as np

from loadtests.payloads import Payloads, make_payloads
from reference_apps.decoding import decode
from simulator.splitter import Right
from stages.arms import ARMS, model_of
from stages.spec import Model, Stage


def right_answers(stage: Stage, seed: int | None = None) -> Right | None:
    """Whether an arm's answer for an item is what the item shows; None where nobody knows what that is, or no label is
    ever given. `seed` chooses other examples than those that the stage's load test sends.

    Raises StageError where a version is not in the registry.
    """
    if stage.feedback is None or stage.split is None:
        return None
    traffic = stage.traffic.model_copy(update={"seed": stage.traffic.seed if seed is None else seed})
    asked = stage.model_copy(update={"traffic": traffic})
    payloads = make_payloads(asked)
    if not payloads.labels:
        return None
    found: dict[str, list[bool]] = {arm: _right(model_of(asked, arm), payloads) for arm in ARMS}
    return lambda arm, item: found[arm][int(item) % len(payloads.bodies)]


def _right(spec: Model, payloads: Payloads) -> list[bool]:
    """By body: is a version's answer its label? Who fails on an input gives none, and gets no label either."""
    from reference_apps.models import load_model

    facts = spec.known.model_copy(update={"crash_share": 0.0})
    model = load_model(spec.model_copy(update={"facts": facts}), "cpu", warm_batch_sizes=())
    content_type, shape = payloads.headers["content-type"], payloads.headers.get("x-rung-shape", "")
    inputs = np.stack([decode(model, content_type, shape, body) for body in payloads.bodies])
    return [answer["label"] == label for answer, label in zip(model.predict(inputs), payloads.labels, strict=True)]
