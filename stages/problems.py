"""What is wrong with a stage, in words: every problem at once, one line each.

<file>: <n> problems
  <dotted.key>: <rule with its unit>, got <value>. <consequence>. <what to do>
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from stages.advice import ADVICE, amount, too_high, unit


@dataclass(frozen=True)
class Problem:
    """One broken rule: where, what the rule is, what stood there, what follows and what to do."""

    key: str
    rule: str
    got: str | None
    consequence: str
    remedy: str

    def __str__(self) -> str:
        got = "" if self.got is None else f", got {self.got}"
        return f"{self.key}: {self.rule}{got}. {self.consequence} {self.remedy}"


class StageError(ValueError):
    """A stage file that cannot be used; `str()` is the whole text for the person who wrote it."""

    def __init__(self, source: str, problems: Iterable[Problem]) -> None:
        self.source = source
        self.problems = sorted(set(problems), key=str)
        noun = "problem" if len(self.problems) == 1 else "problems"
        lines = [f"{source}: {len(self.problems)} {noun}", *(f"  {problem}" for problem in self.problems)]
        super().__init__("\n".join(lines))


def shown(value: Any) -> str:
    """A value as TOML would write it, cut to a length that leaves the message on one line."""
    match value:
        case bool():
            return "true" if value else "false"
        case dict():
            return "a table"
        case list() | tuple():
            return "a list"
        case str():
            return json.dumps(_cut(value), ensure_ascii=False)
        case _:
            return _cut(str(value))


def _cut(text: str) -> str:
    """Paths are told apart by their end, so the middle goes."""
    return text if len(text) <= 200 else f"{text[:60]} ... {text[-130:]}"


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """The remedy for a name that is not among `known`: the nearest one, or `otherwise` when none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"Did you mean '{near[0]}'?" if near else otherwise


def from_pydantic(model: type[BaseModel], errors: Iterable[ErrorDetails]) -> Iterator[Problem]:
    """Turns pydantic's findings into problems, with the consequence and remedy out of stages/advice.py."""
    for error in errors:
        owner, key = _locate(model, [str(part) for part in error["loc"]])
        kind, context, value = error["type"], error.get("ctx", {}), error.get("input")
        match kind:
            case "extra_forbidden":
                yield _unknown_key(key, owner)
            case "missing":
                yield Problem(key, "is required", None, *ADVICE[key])
            case "union_tag_not_found":
                yield Problem(f"{key}.shape", "is required", None, *ADVICE[f"{key}.shape"])
            case "union_tag_invalid":
                choices = re.findall(r"'([^']*)'", context["expected_tags"])
                yield _not_a_choice(f"{key}.shape", choices, context["tag"])
            case "literal_error":
                yield _not_a_choice(key, re.findall(r"'([^']*)'", context["expected"]), value)
            case "less_than" | "less_than_equal":
                yield Problem(key, _bound(kind, context, key), shown(value), *too_high(key))
            case "greater_than" | "greater_than_equal":
                yield Problem(key, _bound(kind, context, key), shown(value), *ADVICE[key])
            case "string_too_short":
                yield Problem(key, "must not be empty", shown(value), *ADVICE[key])
            case "string_pattern_mismatch":
                yield Problem(key, _pattern(key), shown(value), *ADVICE[key])
            case _:
                yield _wrong_type(key, kind, value)


def _unknown_key(key: str, owner: type[BaseModel]) -> Problem:
    known = owner.model_fields
    shape = get_args(known["shape"].annotation)[0] if "shape" in known else None
    rule = f'is no key of the shape "{shape}"' if shape else "is no key of a stage"
    remedy = did_you_mean(key.rsplit(".", 1)[-1], known, f"The keys here are {', '.join(known)}.")
    return Problem(key, rule, None, "Nothing would read it.", remedy)


def _not_a_choice(key: str, choices: list[str], value: Any) -> Problem:
    *others, last = (f'"{choice}"' for choice in choices)
    consequence, remedy = ADVICE[key]
    if isinstance(value, str):
        remedy = did_you_mean(value, choices, remedy)
    return Problem(key, f"must be {', '.join(others)} or {last}", shown(value), consequence, remedy)


def _pattern(key: str) -> str:
    """What the text of a key must look like, in words."""
    if key.endswith("_env"):
        return "must be the name of an environment variable: capitals, digits and underscores"
    if key in ("model.version", "split.champion", "split.challenger"):
        return "must be up to 64 letters, digits, dots, hyphens and underscores, beginning with a letter or a digit"
    return "must be lower-case words joined by hyphens"


def _bound(kind: str, context: dict[str, Any], key: str) -> str:
    words = {
        "greater_than": ("gt", "greater than"),
        "greater_than_equal": ("ge", "at least"),
        "less_than": ("lt", "less than"),
        "less_than_equal": ("le", "at most"),
    }
    name, phrase = words[kind]
    return f"must be {phrase} {amount(context[name], key)}"


def _wrong_type(key: str, kind: str, value: Any) -> Problem:
    of = f" of {unit(key)}" if unit(key) else ""
    match kind:
        case "int_type" | "int_from_float" | "int_parsing_size":
            rule, remedy = f"must be a whole number{of}", "Write it without a decimal point or quotes."
        case "float_type":
            rule, remedy = f"must be a number{of}", "Write it without quotes and without its unit."
        case "finite_number":
            rule, remedy = f"must be a finite number{of}", "Write one."
        case "bool_type":
            rule, remedy = "must be true or false", "Write one of the two, without quotes."
        case "string_type":
            rule, remedy = "must be a text", "Write it in quotes."
        case "tuple_type":
            rule, remedy = "must be a list", "Write it in square brackets, its parts separated by commas."
        case "model_type" | "model_attributes_type" | "dict_type":
            rule, remedy = "must be a table", f"Write [{key}] and its keys on the lines below."
        case _:
            rule, remedy = f"is not valid ({kind.replace('_', ' ')})", "Compare with `rung show single-vm`."
    return Problem(key, rule, shown(value), "Values are never converted silently.", remedy)


def _locate(model: type[BaseModel], path: list[str]) -> tuple[type[BaseModel], str]:
    """The table that an error's location ends in, and its dotted key as a reader knows it.

    Pydantic puts the tag of a union (the shape of the rate) in the path, and the place in a list; keys have neither.
    """
    keys: list[str] = []
    members: list[type[BaseModel]] = [model]
    for part in path:
        tagged = [m for m in members if len(members) > 1 and part in get_args(m.model_fields["shape"].annotation)]
        if tagged:
            members = tagged
            continue
        if part.isdigit():
            continue
        keys.append(part)
        model = members[0]
        if part in model.model_fields:
            members = tables_in(model.model_fields[part].annotation)
    return model, ".".join(keys)


def tables_in(annotation: Any) -> list[type[BaseModel]]:
    """The tables that a key may hold: one, several where a shape tells them apart, none for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [table for inner in get_args(annotation) for table in tables_in(inner)]
