"""The table of a stage that says what is kept of its answers, and who tells later which of them were right.

    answer ──▶ [predictions] request id, user, arm, version, answer, latency ─┐
                                                                              ├─▶ right or wrong, by arm
    label ──▶ POST /feedback ──▶ [labels] in time or late, first or last ─────┘

Which label counts is in stages/policies/labelling.py. Rules are in stages/feedback_rules.py. Not here: labels that are
wrong, and a loss other than right or wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from stages.policies.labelling import OnDuplicate
from stages.table import Table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# What a label of each model is: a whole number from 0 up to this one, without it.
CLASSES = {"digits": 10, "xor": 2, "resnet50": 1000}
# The models whose inputs in a load test have a known label; those of the others are noise.
LABELLED_MODELS = ("digits", "xor")


class Feedback(Table):
    """Predictions and their labels. `share` and `delay_s` say what the clients of a load test do."""

    share: float = Field(1.0, ge=0.0, le=1.0)  # of the answers, that get a label
    delay_s: float = Field(0.0, ge=0.0, le=86_400.0)  # from the answer to its label
    window_s: float = Field(86_400.0, gt=0.0, le=31_536_000.0)  # labels that come later are kept, and not counted
    on_duplicate: OnDuplicate = "last"
    orphans_max: int = Field(10_000, ge=0, le=1_000_000)  # labels kept whose prediction is not known
    predictions_max: int = Field(10_000, ge=1, le=1_000_000)  # that wait to be written; more are lost, and counted
    keep_s: float = Field(2_592_000.0, gt=0.0, le=315_360_000.0)  # then predictions and their labels go
    timeout_s: float = Field(5.0, gt=0.0, le=3600.0)  # of one POST /feedback
    url_env: str | None = Field(None, pattern=r"^[A-Z][A-Z0-9_]*$")  # of SQLite or Postgres; none: a file of the stage


def gives(feedback: Feedback, seed: int, count: int) -> NDArray[np.bool_]:
    """Who of `count` requests of a schedule gives its answer a label: entry i for request i, the same in both worlds.

    A larger share only adds to those who do.
    """
    from stages.streams import stream  # needs NumPy, which takes longer to import than the rest of a stage

    chosen: NDArray[np.bool_] = stream(seed, "feedback").random(count) < feedback.share
    return chosen
