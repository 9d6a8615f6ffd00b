"""The points of a sweep: every combination of the values that keys are to take, each a stage of its own.

    --over fleet.replicas=1..8 --over device=t4,v100 ──▶ Axis, Axis ──▶ 16 × {key: value} ──▶ Point: a Stage
                                                                         └─ refused, in words, all of them at once

`device` is no key: it stands for the catalogue's row that runs the same model as the stage's own device, as nearly
alike as there is one, and for the cheapest machine with that GPU where the stage has a price. A point that offers more
than it can serve is kept, because a sweep often goes that far, and says so.
"""

from __future__ import annotations

import itertools
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages import prices
from stages.catalogue import Profile, profiles
from stages.problems import Problem, StageError, did_you_mean, shown
from stages.spec import Stage, with_overrides

POINTS_MAX = 10_000
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
_DEVICE = "device"
_EXAMPLE = "Write it like --over fleet.replicas=1..8, or --over batching.max_batch_size=1,2,4."


@dataclass(frozen=True)
class Axis:
    """A key, or the alias `device`, and the values that it takes."""

    key: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Point:
    """One combination. `changes` has the value of each axis as the user named it, `stage` what follows from them."""

    changes: dict[str, Any]
    stage: Stage
    overloaded: str = ""  # why it offers more than it can serve, where it does

    def __str__(self) -> str:
        return ", ".join(f"{key}={_text(value)}" for key, value in self.changes.items()) or "as it is"


def grid(stage: Stage, over: Sequence[str]) -> list[Point]:
    """Every point of the grid that `over` spans ("KEY=VALUES"), the last axis fastest.

    Raises StageError with all that is wrong: with how axes are written, and with every point that is no sound stage.
    """
    axes = axes_of(over)
    points, refused = [], []
    for values in itertools.product(*(axis.values for axis in axes)):
        changes = dict(zip((axis.key for axis in axes), values, strict=True))
        try:
            points.append(point(stage, changes))
        except StageError as error:
            refused += [(changes, problem) for problem in error.problems]
    if refused:
        raise StageError(stage.name, _refusals(refused, math.prod(len(axis.values) for axis in axes)))
    return points


def point(stage: Stage, changes: Mapping[str, Any]) -> Point:
    """The stage with these changes. Raises StageError where it is no sound one, for more than too much traffic."""
    overrides = _resolved(stage, changes)
    try:
        return Point(dict(changes), with_overrides(stage, overrides))
    except StageError as error:
        if "overload" in overrides or stage.overload:
            raise
        try:
            overloaded = with_overrides(stage, overrides | {"overload": True})
        except StageError:
            raise error from None
        return Point(dict(changes), overloaded, " ".join(f"{each.rule}, got {each.got}." for each in error.problems))


def axes_of(over: Sequence[str]) -> list[Axis]:
    """The axes that the user gave. Raises StageError with every one that cannot be read."""
    problems: list[Problem] = []
    axes: list[Axis] = []
    for text in over:
        key, equals, values = (part.strip() for part in text.partition("="))
        if not key or not equals or not values:
            problems.append(_problem(text, "must be KEY=VALUES", shown(text), _EXAMPLE))
            continue
        found = values_of(values)
        if not found:
            problems.append(_problem(key, "must have a value at least", shown(values), _EXAMPLE))
        elif any(axis.key == key for axis in axes):
            problems.append(_problem(key, "must be given once", shown(text), "Put all values into one --over."))
        else:
            axes.append(Axis(key, found))
    points = math.prod(len(axis.values) for axis in axes)
    if points > POINTS_MAX:
        arithmetic = " x ".join(str(len(axis.values)) for axis in axes)
        remedy = "Take fewer values, or sweep one part after the other."
        problems.append(_problem("--over", f"must span at most {POINTS_MAX:,} points", f"{arithmetic}", remedy))
    if problems:
        raise StageError("--over", problems)
    return axes


def values_of(text: str) -> tuple[Any, ...]:
    """The values that `1..8` or `1,2,4` or `t4,v100` stand for, without those that come again; none for `8..1`.

    They are read as TOML, and as texts where they are none.
    """
    if found := _RANGE.fullmatch(text):
        return tuple(range(int(found[1]), min(int(found[2]), int(found[1]) + POINTS_MAX) + 1))
    try:
        values = tomllib.loads(f"values = [{text}]")["values"]
    except tomllib.TOMLDecodeError:
        values = [part.strip() for part in text.split(",") if part.strip()]
    return tuple(value for place, value in enumerate(values) if value not in values[:place])


def resolve_device(stage: Stage, name: str) -> str:
    """The profile that `name` stands for: itself, or the family of a GPU ("t4") that runs what the stage runs.

    Of several rows, the one of the same precision, then of the same framework. Raises StageError for a name that is
    neither, for a family without a row of that model, and for a stage whose device is not emulated.
    """
    known = profiles()
    if name in known:
        return name
    own = known.get(stage.device.profile or "")
    families = dict.fromkeys(prices.gpu_family(each.device).lower() for each in known.values())
    if own is None:
        rule = "must be a profile of the catalogue where the stage's own device is not emulated"
        raise StageError(stage.name, [_problem(_DEVICE, rule, shown(name), "List them with `rung devices`.")])
    fitting = [
        each
        for each in known.values()
        if prices.gpu_family(each.device).lower() == name.lower() and each.model == own.model
    ]
    if not fitting:
        models = dict.fromkeys(each.model for each in known.values())
        rule = f"must be a GPU that the catalogue has {own.model} on ({', '.join(families)}), or a profile"
        remedy = did_you_mean(name, [*families, *known], f"List them with `rung devices`: it has {', '.join(models)}.")
        raise StageError(stage.name, [_problem(_DEVICE, rule, shown(name), remedy)])
    return min(fitting, key=lambda each: _unlike(own, each)).name


def _unlike(own: Profile, other: Profile) -> tuple[bool, bool, bool]:
    """How far apart two rows of one model are: bits of precision, precision, framework."""

    def bits(profile: Profile) -> str:
        return "16" if "16" in profile.precision else "32"

    differs = (bits(own) != bits(other), own.precision != other.precision)
    return *differs, own.framework.split("-")[0] != other.framework.split("-")[0]


def _resolved(stage: Stage, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides that changes stand for. Raises StageError for a device that stands for nothing."""
    overrides = {key: value for key, value in changes.items() if key != _DEVICE}
    if _DEVICE not in changes:
        return overrides
    if stage.fleet.profiles:
        rule = "must not be swept over where fleet.profiles names the devices"
        remedy = "Sweep over fleet.profiles, or add --set fleet.profiles=[]."
        raise StageError(stage.name, [_problem(_DEVICE, rule, shown(changes[_DEVICE]), remedy)])
    name = resolve_device(stage, str(changes[_DEVICE]))
    overrides |= {"device.kind": "emulated", "device.profile": name}
    return _machine_for(stage, prices.gpu_family(profiles()[name].device), overrides) | overrides


def _machine_for(stage: Stage, family: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The cheapest machine with that GPU, one GPU a replica, where the stage's own has another."""
    cost = stage.cost
    if cost is None or cost.machine is None or "cost.machine" in overrides:
        return {}
    rows = prices.rows_of(cost.machine)
    if not rows or rows[0].gpu_family == family:
        return {}
    pricing = overrides.get("cost.pricing") or cost.pricing or ("spot" if cost.machine.endswith("-spot") else None)
    fitting = [row for row in prices.of_gpu(family, pricing or "on-demand") if row.gpu_count == 1]
    if not fitting:
        return {}
    return {"cost.machine": fitting[0].machine, "cost.pricing": pricing, "cost.region": None}


def _refusals(refused: Sequence[tuple[dict[str, Any], Problem]], points: int) -> Iterator[Problem]:
    """Each problem once, with the points that it is about."""
    about: dict[Problem, list[dict[str, Any]]] = {}
    for changes, problem in refused:
        about.setdefault(problem, []).append(changes)
    for problem, changed in about.items():
        if len(changed) == points:
            yield problem
            continue
        first = ", ".join(f"{key}={_text(value)}" for key, value in changed[0].items())
        others = f" and {len(changed) - 1} more points" if len(changed) > 1 else ""
        yield Problem(
            problem.key, f"{problem.rule} (at {first}{others})", problem.got, problem.consequence, problem.remedy
        )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else shown(value)


def _problem(key: str, rule: str, got: str, remedy: str) -> Problem:
    return Problem(key, rule, got, "Nothing could be swept over.", remedy)
