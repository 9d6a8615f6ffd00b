"""A chapter as its parts: the blocks that run, with what the page shows of their output.

    NN_name.md ──▶ sybil's lexer of fences ──▶ Block, Block, … ──▶ running.py, bound.py, refresh.py

A `console` block holds commands, each after `$ ` with its output below. What a `python` block prints stands in the
`text` block after it. A comment on the line before a block may name it and say how it runs:

    <!-- block: NAME measured exit=0,3 keep="latency|util" -->

`measured`: what it prints depends on this machine. `voidable`: the page says what its figures are good for if the run
is void. `exit`: the exit statuses that are right, 0 without it. `keep`: a regular expression; lines that it does not
find are left out, and `…` at the end stands for them.
No twin: text only. Not here: whether a block's output is still true.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sybil import Document, Example, Region
from sybil.parsers.markdown.lexers import FencedCodeBlockLexer

TUTORIALS = Path(__file__).resolve().parents[1]
LEFT_OUT = "…"

_FENCES = FencedCodeBlockLexer("console|python|text")
_COMMENT = re.compile(r"<!-- block:(?P<words>.*?)-->\n\Z")
_PROMPT = "$ "


class ChapterError(ValueError):
    """A chapter that cannot be read; the text says where and why."""


@dataclass(frozen=True)
class Step:
    """One command, or the code of a Python block, and what the page shows of its output."""

    source: str
    output: str


@dataclass(frozen=True)
class Options:
    """What the comment before a block says."""

    name: str = ""
    measured: bool = False
    voidable: bool = False
    statuses: tuple[int, ...] = (0,)
    keep: str | None = None


@dataclass(frozen=True)
class Block:
    """What runs, and where in the page's text it stands: characters `start` to `end`, its output included."""

    language: str
    line: int
    start: int
    end: int
    options: Options
    steps: tuple[Step, ...]

    @property
    def output(self) -> str:
        """All that the page shows of what was printed."""
        return "".join(step.output for step in self.steps)


def chapters() -> list[Path]:
    """The files of the chapters, in their order."""
    return sorted(TUTORIALS.glob("[0-9][0-9]_*.md"))


def blocks_of(path: Path) -> list[Block]:
    """The blocks of a chapter's file, in their order. Raises ChapterError."""
    return list(blocks(Document(path.read_text(encoding="utf-8"), str(path))))


def parser(evaluate: Callable[[Example], str | None]) -> Callable[[Document], Iterator[Region]]:
    """A parser for sybil, whose examples are the blocks."""

    def parse(document: Document) -> Iterator[Region]:
        for block in blocks(document):
            yield Region(block.start, block.end, parsed=block, evaluator=evaluate)

    return parse


def blocks(document: Document) -> Iterator[Block]:
    """The blocks of a document. Raises ChapterError for a comment or a block that says nothing sound."""
    fences = sorted(_FENCES(document), key=lambda region: region.start)
    names: set[str] = set()
    for number, fence in enumerate(fences):
        language, source = str(fence.lexemes["language"]), str(fence.lexemes["source"])
        if language == "text":
            continue
        line = document.text.count("\n", 0, fence.start) + 1
        where = f"{Path(document.path).name}:{line}"
        options, end = _options(document.text, fence.start, where), fence.end
        if options.name and options.name in names:
            raise ChapterError(
                f"{where}: a block is named {options.name} already. Numbers could not say which. Rename."
            )
        names.add(options.name)
        if language == "console":
            steps = _steps(source, where)
        else:
            shown = fences[number + 1] if number + 1 < len(fences) else None
            follows = shown is not None and not document.text[fence.end : shown.start].strip()
            if shown is not None and follows and shown.lexemes["language"] == "text":
                steps, end = (Step(source, str(shown.lexemes["source"])),), shown.end
            else:
                steps = (Step(source, ""),)
        yield Block(language, line, fence.start, end, options, steps)


def rendered(block: Block, outputs: list[str]) -> str:
    """The block as the page is to show it, with these outputs of its steps."""
    if block.language == "console":
        steps = zip(block.steps, outputs, strict=True)
        return "```console\n" + "".join(f"{_PROMPT}{step.source}\n{output}" for step, output in steps) + "```"
    (step,), (output,) = block.steps, outputs
    shown = f"\n\n```text\n{output}```" if output else ""
    return f"```python\n{step.source}```{shown}"


def kept(output: str, pattern: str | None) -> str:
    """The lines of an output that are shown: those in which `pattern` is found, and `…` for the others at the end."""
    lines = [line.rstrip() for line in output.strip("\n").splitlines()]
    shown = lines if pattern is None else [line for line in lines if re.search(pattern, line)]
    return "".join(f"{line}\n" for line in (*shown, *([LEFT_OUT] if len(shown) < len(lines) else [])))


def _options(text: str, start: int, where: str) -> Options:
    """What the comment says that ends where the fence starts."""
    comment = _COMMENT.search(text, text.rfind("\n", 0, max(start - 1, 0)) + 1, start)
    found: dict[str, object] = {}
    for word in shlex.split(comment["words"]) if comment else ():
        key, _, value = word.partition("=")
        if word in ("measured", "voidable"):
            found[word] = True
        elif key == "keep" and value:
            found["keep"] = value
        elif key == "exit" and re.fullmatch(r"\d+(,\d+)*", value):
            found["statuses"] = tuple(map(int, value.split(",")))
        elif "name" not in found and re.fullmatch(r"[a-z][a-z0-9-]*", word):
            found["name"] = word
        else:
            raise ChapterError(
                f"{where}: {word} says nothing about a block. It would be passed over. Write a name, measured, "
                'exit=0,3 or keep="a|b".'
            )
    return Options(**found)  # type: ignore[arg-type]


def _steps(source: str, where: str) -> tuple[Step, ...]:
    """The commands of a console block, each with the lines below it."""
    steps: list[tuple[list[str], list[str]]] = []
    for line in source.splitlines():
        if line.startswith(_PROMPT):
            steps.append(([line.removeprefix(_PROMPT)], []))
        elif not steps:
            raise ChapterError(f"{where}: a console block begins with {_PROMPT}and a command, got {line}. Write one.")
        elif steps[-1][0][-1].endswith("\\") and not steps[-1][1]:
            steps[-1][0].append(line)
        else:
            steps[-1][1].append(line)
    return tuple(Step("\n".join(command), "".join(f"{line}\n" for line in output)) for command, output in steps)
