"""A stage with some of its keys changed, checked like any other."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from stages.spec import Stage, parse_stage, stage_toml


def with_overrides(stage: Stage, overrides: Mapping[str, Any], without: Iterable[str] = ()) -> Stage:
    """The stage with dotted keys set, and those of `without` (and those set to None) left out.

    Raises StageError when the result is not a sound stage.
    """
    table = tomllib.loads(stage_toml(stage))
    for dotted, value in [*((key, None) for key in without), *overrides.items()]:
        *parents, last = dotted.split(".")
        inner = table
        for parent in parents:
            inner = inner.setdefault(parent, {})
        if value is None:
            inner.pop(last, None)
        else:
            inner[last] = value
    return parse_stage(table, stage.name)
