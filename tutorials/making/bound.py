"""Numbers in the prose of a chapter, each bound to what a block of the chapter printed.

    103<!-- =1000 * base[latency_s_p99] --> ms
     │                    │
     └── is held to ──────┴─▶ the first number after `latency_s_p99` in the output of the block `base`

In brackets stand words to look for, one after the other and separated by semicolons, and at the end, where it is not
the first number after the last of them that is meant, which one: `[load 0.95; latency p99; 2]`. Without words numbers
are counted from the output's start. Around it any arithmetic may stand. The number on the page must be the value
rounded to the digits that it shows; `±5%` before the comment's end allows so much more.
No twin: text only. Outputs are taken as the page shows them: whether they are true is seen by running.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tutorials.making.alike import NUMBER, last_place, value_of

_BOUND = re.compile(rf"(?P<number>{NUMBER.pattern})<!-- ?=(?P<expression>.*?)(?:±(?P<percent>[\d.]+)\s*%\s*)?-->")
_REFERENCE = re.compile(r"(?P<name>[a-z][a-z0-9-]*)\[(?P<words>[^\]]*)\]")
_MAY_BE_CALLED = {name: getattr(math, name) for name in ("sqrt", "exp", "log", "ceil", "floor")} | {
    "abs": abs,
    "max": max,
    "min": min,
    "round": round,
}
ROUNDING = 1e-12  # of floats, as a share


class BoundError(ValueError):
    """A comment that binds a number to nothing; the text says why."""


@dataclass(frozen=True)
class Bound:
    """A number of the prose: characters `start` to `end` of the text, and the value that it stands for."""

    line: int
    start: int
    end: int
    text: str
    expression: str
    value: float
    tolerance: float  # how far from `value` it may be

    @property
    def holds(self) -> bool:
        """Whether the page's number is the value, as far as it says."""
        return abs(value_of(self.text) - self.value) <= self.tolerance

    @property
    def renewed(self) -> str:
        """The value in the digits of the page's number."""
        decimals = max(0, -round(math.log10(last_place(self.text))))
        sign = "+" if self.text.startswith("+") else ""
        return f"{self.value:{sign},.{decimals}f}"


def bound_numbers(text: str, outputs: Mapping[str, str]) -> Iterator[Bound]:
    """The bound numbers of a chapter's text; `outputs` are those of its blocks, by name. Raises BoundError.

    Numbers of a block that has no output yet are passed over.
    """
    for found in _BOUND.finditer(text):
        line, number, expression = text.count("\n", 0, found.start()) + 1, found["number"], found["expression"].strip()
        if any(outputs.get(name) == "" for name, _ in _REFERENCE.findall(expression)):
            continue
        try:
            value = _value(expression, outputs)
        except (BoundError, SyntaxError, NameError, TypeError, ArithmeticError) as error:
            raise BoundError(f"line {line}: {number} is bound to {expression}, which has no value: {error}") from None
        shown = last_place(number) / 2 + ROUNDING * abs(value)
        allowed = abs(value) * float(found["percent"] or 0) / 100
        yield Bound(line, found.start(), found.end("number"), number, expression, value, max(shown, allowed))


def _value(expression: str, outputs: Mapping[str, str]) -> float:
    """What an expression comes to. It is ours, as the code of the chapters' blocks is."""

    def looked_up(found: re.Match[str]) -> str:
        name = found["name"]
        if name not in outputs:
            raise BoundError(f"no block is named {name}, but {', '.join(sorted(outputs)) or 'none is'}.")
        return f"({number_in(outputs[name], found['words'])!r})"

    arithmetic = _REFERENCE.sub(looked_up, expression)
    return float(eval(arithmetic, {"__builtins__": {}}, _MAY_BE_CALLED))


def number_in(output: str, words: str) -> float:
    """The number that `words` point at in an output: `label; label; 2`. Raises BoundError where there is none."""
    *labels, last = (part.strip() for part in words.split(";"))
    which = 1
    if last.isdigit():
        which = int(last)
    elif last:
        labels.append(last)
    at = 0
    for label in labels:
        place = output.find(label, at)
        if place < 0:
            raise BoundError(f"the output has no {label}{' after what stands before it' if at else ''}.")
        at = place + len(label)
    numbers = [found[0] for found in NUMBER.finditer(output, at)]
    if not 1 <= which <= len(numbers):
        raise BoundError(f"the output has {len(numbers)} numbers after {' and '.join(labels) or 'its start'}.")
    return value_of(numbers[which - 1])
