"""Keys that nothing reads, given what other keys say: a stage that has one is refused, and none is written out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stages.problems import Problem, StageError, shown
from stages.spec import Device, Model, Stage, Table, TraceRate, Traffic


@dataclass(frozen=True)
class Unread:
    """A key that nothing reads; `owner` is the table that it stands in, `belongs_to` the choice that would read it."""

    dotted: str
    owner: Table
    belongs_to: str
    consequence: str
    remedy: str

    @property
    def name(self) -> str:
        """The last part of the dotted key."""
        return self.dotted.rsplit(".", 1)[-1]

    @property
    def given(self) -> bool:
        """Whether the file has the key, rather than its default."""
        return self.name in self.owner.model_fields_set

    def problem(self) -> Problem:
        """What to tell the person who wrote the key."""
        value = getattr(self.owner, self.name)
        got = "a table" if isinstance(value, Table) else shown(value)
        return Problem(self.dotted, f"belongs to {self.belongs_to} only", got, self.consequence, self.remedy)


def of_stage(stage: Stage) -> Iterator[Unread]:
    """Every key that nothing reads in this stage, whether the file has it or not."""
    yield from of_model(stage.model)
    yield from of_device(stage.device)
    yield from of_traffic(stage.traffic)


def of_model(model: Model) -> Iterator[Unread]:
    """The keys of [model] that nothing reads."""
    if model.name != "resnet50":
        consequence = f"The input of {model.name} has one size."
        yield Unread("model.image_size_px", model, 'model.name "resnet50"', consequence, "Remove it.")


def of_device(device: Device) -> Iterator[Unread]:
    """The keys of [device] that nothing reads."""
    if device.kind != "emulated":
        owner, remedy = 'device.kind "emulated"', 'Remove it, or set device.kind = "emulated".'
        consequence = f'A "{device.kind}" device runs at its own pace.'
        yield Unread("device.profile", device, owner, consequence, remedy)
        yield Unread("device.slowdown", device, owner, consequence, remedy)


def of_traffic(traffic: Traffic) -> Iterator[Unread]:
    """The keys of [traffic] that nothing reads. Opens a trace to see whether it has rates or single arrivals."""

    def unread(name: str, belongs_to: str, consequence: str, remedy: str, owner: Table = traffic) -> Unread:
        return Unread(f"traffic.{name}", owner, belongs_to, consequence, remedy)

    if traffic.loop == "closed":
        remedy = 'Remove it, or set traffic.loop = "open".'
        for name in ("rate", "arrivals", "coefficient_of_variation"):
            yield unread(name, 'traffic.loop "open"', "In a closed loop replies bring the next requests.", remedy)
    else:
        remedy = 'Remove it, or set traffic.loop = "closed".'
        for name in ("users", "think_time_s"):
            yield unread(name, 'traffic.loop "closed"', "In an open loop nobody waits for a reply.", remedy)
        if _names_each_arrival(traffic):
            for name in ("arrivals", "coefficient_of_variation"):
                yield unread(
                    name, "rates and traces of counts", "This trace says when each request comes.", "Remove it."
                )
        elif traffic.arrivals != "gamma":
            consequence = f'The spread of "{traffic.arrivals}" gaps is fixed.'
            remedy = 'Remove it, or set traffic.arrivals = "gamma".'
            yield unread("coefficient_of_variation", 'traffic.arrivals "gamma"', consequence, remedy)
    if traffic.items.popularity != "zipf":
        consequence, remedy = "All items are alike.", 'Remove it, or set traffic.items.popularity = "zipf".'
        belongs_to = 'traffic.items.popularity "zipf"'
        yield unread("items.exponent", belongs_to, consequence, remedy, traffic.items)


def _names_each_arrival(traffic: Traffic) -> bool:
    """Whether the traffic comes from a trace of arrival times; False for a trace that cannot be read."""
    if not isinstance(traffic.rate, TraceRate):
        return False
    from stages import traces  # needs polars, which takes longer to import than all the rest

    try:
        return isinstance(traces.read(traffic.rate.path, traffic.rate.format), traces.Times)
    except StageError:
        return False
