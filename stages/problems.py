"""What is wrong with a stage, in words: every problem at once, one line each.

<file>: <n> problems
  <dotted.key>: <rule with its unit>, got <value>. <consequence>. <what to do>
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails


@dataclass(frozen=True, order=True)
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
        self.problems = sorted(set(problems))
        noun = "problem" if len(self.problems) == 1 else "problems"
        lines = [f"{source}: {len(self.problems)} {noun}", *(f"  {problem}" for problem in self.problems)]
        super().__init__("\n".join(lines))


def shown(value: Any) -> str:
    """A value as TOML would write it, cut to a length that leaves the message on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, str):
        return f'"{value if len(value) <= 60 else value[:57] + "..."}"'
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def from_pydantic(model: type[BaseModel], errors: Iterable[ErrorDetails]) -> Iterable[Problem]:
    """Turns pydantic's findings into problems, with the consequence and remedy that the key's field carries."""
    for error in errors:
        path = tuple(str(part) for part in error["loc"])
        owner, keys, field = _follow(model, path)
        key = ".".join(keys)
        why, remedy, unit = _advice(field)
        kind, context = error["type"], error.get("ctx", {})
        if kind == "extra_forbidden":
            yield _unknown_key(key, keys[-1], owner)
        elif kind == "missing":
            yield Problem(key, "is required", None, why, remedy)
        elif kind in ("union_tag_invalid", "union_tag_not_found"):
            tag = context["discriminator"].strip("'")
            wanted = context.get("expected_tags", "one of the shapes in stages/spec.py")
            got = f'"{context["tag"]}"' if "tag" in context else None
            yield Problem(f"{key}.{tag}", f"must be one of {wanted}", got, why, remedy)
        else:
            yield Problem(key, _rule(kind, context, unit), shown(error["input"]), why, remedy)


def _follow(
    model: type[BaseModel], path: tuple[str, ...]
) -> tuple[type[BaseModel], list[str], FieldInfo | None]:
    """Walks an error's location down the models; pydantic puts a union's tag in the path, a reader does not."""
    keys: list[str] = []
    field: FieldInfo | None = None
    for part in path:
        if part in model.model_fields:
            keys.append(part)
            field = model.model_fields[part]
            model = _model_in(field, None) or model
        elif field is not None and (inner := _model_in(field, part)) is not None:
            model = inner
        else:
            keys.append(part)
            field = None
    return model, keys, field


def _model_in(field: FieldInfo, tag: str | None) -> type[BaseModel] | None:
    """The model that a field holds; of a tagged union, the member whose tag is `tag`."""
    annotation: Any = field.annotation
    members = [a for a in getattr(annotation, "__args__", (annotation,)) if _is_model(a)]
    if tag is None:
        return members[0] if len(members) == 1 else None
    for member in members if len(members) > 1 else ():
        if tag in getattr(member.model_fields["shape"].annotation, "__args__", ()):
            return member  # type: ignore[no-any-return]
    return None


def _is_model(candidate: Any) -> bool:
    return isinstance(candidate, type) and issubclass(candidate, BaseModel)


def _advice(field: FieldInfo | None) -> tuple[str, str, str]:
    extra = field.json_schema_extra if field is not None else None
    if not isinstance(extra, dict):
        return "The stage cannot be read as it stands.", "Compare with `rung show single-vm`.", ""
    return str(extra["why"]), str(extra["do"]), str(extra.get("unit", ""))


def _unknown_key(key: str, last: str, owner: type[BaseModel]) -> Problem:
    near = difflib.get_close_matches(last, owner.model_fields, n=1, cutoff=0.5)
    remedy = f"Did you mean '{near[0]}'?" if near else f"Known keys here: {', '.join(owner.model_fields)}."
    return Problem(key, "unknown key", None, "Nothing would read it.", remedy)


def _rule(kind: str, context: dict[str, Any], unit: str) -> str:
    """The rule that a pydantic error type stands for, with the unit of the key."""
    tail = f" {unit}" if unit else ""
    match kind:
        case "greater_than":
            return f"must be greater than {context['gt']:g}{tail}"
        case "greater_than_equal":
            return f"must be at least {context['ge']:g}{tail}"
        case "less_than":
            return f"must be less than {context['lt']:g}{tail}"
        case "less_than_equal":
            return f"must be at most {context['le']:g}{tail}"
        case "literal_error" | "enum":
            return f"must be one of {context['expected']}"
        case "int_type" | "int_parsing" | "int_from_float":
            return f"must be a whole number{' of' + tail if tail else ''}"
        case "float_type" | "float_parsing" | "finite_number":
            return f"must be a finite number{' of' + tail if tail else ''}"
        case "bool_type" | "bool_parsing":
            return "must be true or false"
        case "string_type":
            return "must be a string in quotes"
        case "string_too_short":
            return f"must have at least {context['min_length']} character"
        case "string_pattern_mismatch":
            return "must be lower-case words joined by hyphens"
        case "model_type" | "model_attributes_type" | "dict_type":
            return "must be a table of keys"
        case _:
            return f"is not valid ({kind.replace('_', ' ')})"
