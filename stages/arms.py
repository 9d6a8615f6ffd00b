"""Which replica is of which arm, and what a stage is to one arm: another version, perhaps on another device.

    replica 0 … replicas - 1            champion        one that comes later takes its number modulo all of them, so
    then challenger_replicas more       challenger      that whoever replaces a replica is of its arm and on its device

A stage without [split] has one arm, called "". Numbers alone decide: a replica's process, the gateway, the simulator
and the reports all ask here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.policies.splitting import Arm

if TYPE_CHECKING:
    from stages.records import Records
    from stages.spec import Device, Model, Stage

ARMS: tuple[Arm, ...] = ("champion", "challenger")


def replicas_of(stage: Stage) -> int:
    """How many replicas the stage starts with, those of the challenger included."""
    return stage.fleet.replicas + (0 if stage.split is None else stage.split.challenger_replicas)


def place_of(stage: Stage, number: int) -> int:
    """The first replica that the one of this number is like: of its arm, on its device."""
    return number if stage.split is None else number % replicas_of(stage)


def kinds_of(stage: Stage) -> int:
    """Replicas whose numbers differ by a multiple of it are alike: of one arm, on one kind of device."""
    return replicas_of(stage) if stage.split is not None else max(1, len(stage.fleet.profiles))


def arm_of(stage: Stage, number: int) -> Arm | str:
    """The arm of a replica; "" where the stage has no arms."""
    if stage.split is None:
        return ""
    return "champion" if place_of(stage, number) < stage.fleet.replicas else "challenger"


def arms_of(stage: Stage) -> tuple[str, ...]:
    """The arms that the stage has: two, or the one that is called ""."""
    return ("",) if stage.split is None else ARMS


def model_of(stage: Stage, arm: str) -> Model:
    """The model of an arm."""
    split = stage.split
    if split is None:
        return stage.model
    challenger = arm == "challenger"
    version = split.challenger if challenger else split.champion
    facts = split.challenger_facts if challenger else split.champion_facts
    return stage.model.model_copy(update={"version": version, "facts": facts})


def device_of(stage: Stage, number: int, of_fleet: Device) -> Device:
    """The device of a replica, given the one that the fleet alone would have for it."""
    if stage.split is None or arm_of(stage, number) == "champion":
        return of_fleet
    profile = stage.split.challenger_profile
    return stage.device if profile is None else stage.device.model_copy(update={"profile": profile})


def of_arm(stage: Stage, arm: str) -> Stage:
    """The stage as the first replica of an arm sees it."""
    from stages.spec import of_replica  # which asks this module in turn

    return of_replica(stage, stage.fleet.replicas if arm == "challenger" else 0)


def records_of(records: Records, stage: Stage, arm: str) -> Records:
    """What one arm has done: its requests, and the batches and lives of its replicas."""
    import polars as pl  # which takes longer to import than all the rest

    from stages.records import Records

    def own(frame: pl.DataFrame) -> pl.DataFrame:
        numbers = [number for number in frame["replica"].unique().to_list() if arm_of(stage, number) == arm]
        return frame.filter(pl.col("replica").is_in(numbers))

    requests = records.requests.filter(pl.col("arm") == arm)
    return Records(requests, own(records.batches), own(records.replicas), records.window_s)
