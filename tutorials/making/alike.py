"""Whether two outputs say the same: to the last decimal but one, or in their form alone.

    what the page shows ─┬─▶ same_numbers: the same words, and numbers one apart in their last decimal at most
    what was printed    ─┘   same_form: every label of the page was printed, whatever the numbers

No twin: text only. Numbers that a clock made differ from run to run and count for nothing.
"""

from __future__ import annotations

import difflib
import re

from tutorials.making.chapter import LEFT_OUT

NUMBER = re.compile(r"(?<![\w.])[-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[-+]?\d+)?")
# In what a clock or the operating system chose, numbers mean nothing.
_OF_A_CLOCK = (
    re.compile(r"[\d,]+ simulated requests per second \([\d.]+ s\)"),
    re.compile(r"https?://127\.0\.0\.1:\d+"),
    re.compile(r"runs/\d{8}-\d{6}-"),
)
_RULES = re.compile(r"[\u2500-\u257f]+")
VOID = re.compile(r"\bvoid\b", re.IGNORECASE)  # of a run whose figures must not be trusted


def value_of(text: str) -> float:
    """A number as it stands on the page."""
    return float(text.replace(",", "").replace("−", "-"))


def last_place(text: str) -> float:
    """What one in the last place of a number is worth: 0.01 for 3.14."""
    mantissa, _, exponent = text.partition("e")
    decimals = len(mantissa.partition(".")[2])
    return float(10.0 ** (int(exponent or 0) - decimals))


def same_numbers(shown: str, printed: str) -> str | None:
    """None where both say the same words, and numbers one apart in their last decimal at most; else how not."""
    shown_lines, printed_lines = _cleaned(shown), _cleaned(printed)
    skeletons = [[NUMBER.sub("#", line) for line in lines] for lines in (shown_lines, printed_lines)]
    if skeletons[0] == skeletons[1] and all(map(_close, shown_lines, printed_lines)):
        return None
    return "\n".join(difflib.unified_diff(shown_lines, printed_lines, "the page", "printed", lineterm=""))


def same_form(shown: str, printed: str) -> str | None:
    """None where every label of the page was printed too; else the first that was not.

    Void or not, and with which caveats, is no matter: that is about the machine. What a void run comes to is told in
    other sentences, so that of one only the rows of tables, which are indented, have to be there.
    """
    labels = {*map(_label, _cleaned(printed)), LEFT_OUT}
    void = VOID.search(printed)
    compared = [line for line in shown.splitlines() if not VOID.search(line) and not line.startswith("caveat")]
    rows = "\n".join(line for line in compared if not void or line.startswith(" "))
    missing = next((label for label in map(_label, _cleaned(rows)) if label not in labels), None)
    return None if missing is None else f'"{missing}" is on the page, and was not printed:\n{printed}'


def _cleaned(text: str) -> list[str]:
    """The lines without rules of tables, spaces in a row, and what a clock made."""
    for pattern in _OF_A_CLOCK:
        text = pattern.sub(lambda found: re.sub(r"\d[\d,.]*", "", found[0]), text)
    lines = (" ".join(_RULES.sub(" ", line).split()) for line in text.splitlines())
    return [line for line in lines if line]


def _close(one: str, other: str) -> bool:
    """Whether the numbers of two lines of the same skeleton are as good as the same."""
    pairs = zip(NUMBER.findall(one), NUMBER.findall(other), strict=True)
    return all(a == b or _near(a, b) for a, b in pairs)


def _near(one: str, other: str) -> bool:
    """Whether two numbers are one apart in the last of their decimals; whole numbers count, and have to be the same."""
    place = max(last_place(one), last_place(other))
    return place < 1 and abs(value_of(one) - value_of(other)) <= 1.01 * place


def _label(line: str) -> str:
    """The words of a line before its first number: what it is about."""
    found = NUMBER.search(line)
    words = line[: found.start()] if found else line
    return words.rstrip(" <>=~!–-+")
