"""The table of a stage that says that two versions of its model are in production at once, and who gets which.

    request ─▶ gateway ─▶ [split] user's bucket below the challenger's share? ─▶ challenger's replicas
                                │ no                                             champion's replicas ◀─┘ stopped:
                                └────────────────────────────────────────────────────────▲     [split.guardrails]

Who gets which arm is in stages/policies/splitting.py, when a challenger is stopped in stages/policies/guardrails.py,
which replica is of which arm in stages/arms.py. Rules are in stages/split_rules.py. Not here: more than two arms, and
a bandit that moves the share towards the better one.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stages.model_facts import ModelFacts
from stages.table import Table

_VERSION = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_WORDS = r"^[a-z0-9]+(-[a-z0-9]+)*$"

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Ramp(Table):
    """The challenger's share by schedule: each of `shares` for `step_duration_s`, then the last one."""

    shares: tuple[Share, ...] = Field((0.01, 0.05, 0.2, 0.5), strict=False)
    step_duration_s: float = Field(gt=0.0, le=1e7)


class Guardrails(Table):
    """What a challenger must keep; one that is proven not to is stopped, and its users are the champion's again.

    `alpha` is the chance that one which keeps everything is stopped all the same, however often one looks.
    """

    requests_min: int = Field(50, ge=1, le=10_000_000)  # of the challenger, before any verdict
    errors_share_max: float | None = Field(None, gt=0.0, lt=1.0)  # of its requests, those without an answer
    latency_s: float | None = Field(None, gt=0.0, le=3600.0)  # of its 95th percentile, as the gateway sees it
    goodput_share_min: float | None = Field(None, gt=0.0, lt=1.0)  # of its requests, those within slo.latency_s
    accuracy_drop_max: float | None = Field(None, ge=0.0, lt=1.0)  # its share of right answers, below the champion's
    alpha: float = Field(0.05, gt=0.0, lt=1.0)

    @property
    def given(self) -> tuple[str, ...]:
        """The keys of the limits that there are."""
        names = ("errors_share_max", "latency_s", "goodput_share_min", "accuracy_drop_max")
        return tuple(name for name in names if getattr(self, name) is not None)


class Split(Table):
    """Two versions out of the registry. In "shadow" mode the challenger gets copies, whose answers nobody is given."""

    champion: str = Field("champion", min_length=1, pattern=_VERSION)  # a version, or an alias of one
    challenger: str = Field("challenger", min_length=1, pattern=_VERSION)
    champion_facts: ModelFacts | None = None  # without them, what the version's metadata say
    challenger_facts: ModelFacts | None = None
    challenger_share: float = Field(0.05, ge=0.0, le=1.0)  # of the users, or of the requests
    key: Literal["user", "request"] = "user"  # the header x-rung-user; who sends none is a request
    mode: Literal["split", "shadow"] = "split"
    salt: str = Field("", pattern=r"^([a-z0-9]+(-[a-z0-9]+)*)?$")  # another one gives other users
    challenger_replicas: int = Field(1, ge=1, le=1000)
    challenger_profile: str | None = None  # of an emulated device: a name out of `rung devices`
    force_header: str = Field("x-rung-arm", pattern=_WORDS)  # a request may name its arm there
    shadow_outstanding_max: int = Field(64, ge=1, le=100_000)  # copies at the challenger at once; more are not made
    ramp: Ramp | None = None  # without it the share is challenger_share
    guardrails: Guardrails | None = None  # without them nobody stops the challenger
