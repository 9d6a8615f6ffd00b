"""What both worlds take a version of a model to be, beside its answers: how slow, how often it fails, how often right.

    metadata.json of the version ──▶ [model.facts] of the stage that runs ──▶ device and replica, running and simulated

Read by stages/spec.py alone. Written by hand they stand in for what the metadata say: a what-if of both worlds.
Not here: a version that is slow or fails only sometimes, or only for some kind of input.
"""

from __future__ import annotations

from pydantic import Field

from stages.table import Table


class ModelFacts(Table):
    """Of one version. Without any it is as fast as its device, never fails, and nobody has counted its errors."""

    service_time_factor: float = Field(1.0, ge=1.0, le=1000.0)  # every batch takes so many times longer
    crash_share: float = Field(0.0, ge=0.0, le=1.0)  # of all inputs: those that it fails on, always the same ones
    accuracy: float | None = Field(None, ge=0.0, le=1.0)  # the share of right answers on data held out
