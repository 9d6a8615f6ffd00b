"""Writes the chapters' outputs, numbers and figures anew, and the pages that are generated: `make tutorials`.

    chapter ──▶ its blocks run ──▶ outputs in place ──▶ bound numbers in place ──▶ the same file
    predictions ──▶ figures/*.svg      stages/*/measured ──▶ accuracy.md      rung ──▶ commands.md

What still says the same is left as it is. Every number of the prose that changes is told, for somebody has to read the
sentence around it again. No twin: it stands above both worlds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from sybil import Document

from loadtests import accuracy
from stages.terminal import err, fail, out
from tutorials.making import figures, reference, running
from tutorials.making.alike import VOID, same_numbers
from tutorials.making.bound import BoundError, bound_numbers
from tutorials.making.chapter import TUTORIALS, Block, ChapterError, blocks, chapters, kept, rendered

ATTEMPTS = 3  # at a measurement that is void


def renewed(path: Path, measured: bool) -> str:
    """The text of a chapter with the outputs of its blocks as they are now; of those that measure, if it is asked for.

    Raises ChapterError where a block ends otherwise than it says.
    """
    text, namespace, pieces, at = path.read_text(encoding="utf-8"), dict[str, Any](), list[str](), 0
    try:
        for block in blocks(Document(text, str(path))):
            if block.options.measured and not measured:
                continue
            err.print(f"{path.name}:{block.line} …", highlight=False)
            pieces += [text[at : block.start], rendered(block, _outputs(path, block, namespace))]
            at = block.end
    finally:  # a stack that a chapter brought up outlives this process
        running.end({})
    return "".join((*pieces, text[at:]))


def _outputs(path: Path, block: Block, namespace: dict[str, Any]) -> list[str]:
    """What the page is to show below each step of a block. Void figures do not take the place of others."""
    for _ in range(ATTEMPTS):
        found = list(running.run(block, namespace))
        if not block.options.measured or block.options.voidable or not any(VOID.search(ran.output) for ran in found):
            break
        out.print(f"{path.name}:{block.line}: this run is void", highlight=False)
    else:
        if block.output:
            out.print(f"{path.name}:{block.line}: left as it was. Run it again on a quiet machine.", highlight=False)
            return [step.output for step in block.steps]
    outputs = []
    for step, ran in zip(block.steps, found, strict=True):
        if ran.status not in block.options.statuses:
            raise ChapterError(f"{path.name}:{block.line}: {step.source}\nended with {ran.status}:\n{ran.output}")
        shown = kept(ran.output, block.options.keep)
        outputs.append(step.output if same_numbers(step.output, shown) is None else shown)
    return outputs


def with_numbers(path: Path, text: str) -> str:
    """The text with every bound number that no longer holds in the digits of its value; each is told."""
    outputs = {block.options.name: block.output for block in blocks(Document(text, str(path)))}
    for number in reversed(list(bound_numbers(text, outputs))):
        if not number.holds:
            out.print(f"{path.name}:{number.line}: {number.text} became {number.renewed}", highlight=False)
            text = text[: number.start] + number.renewed + text[number.end :]
    return text


def main(
    only: Annotated[
        list[str] | None, typer.Argument(metavar="[CHAPTER]...", help="Like 03; all chapters and pages without it.")
    ] = None,
    measured: Annotated[
        bool, typer.Option(help="Run what measures this machine, too: about a quarter of an hour.")
    ] = True,
) -> None:
    """Writes the tutorials anew."""
    for path in chapters():
        if only and not any(path.name.startswith(each) for each in only):
            continue
        try:
            text = with_numbers(path, renewed(path, measured))
        except (ChapterError, BoundError) as error:
            fail(f"{path.name}: {error}" if isinstance(error, BoundError) else str(error))
        if text != path.read_text(encoding="utf-8"):
            path.write_text(text, encoding="utf-8")
            out.print(f"{path.name}: written anew", highlight=False)
    if not only:
        figures.write()
        reference.COMMANDS.write_text(reference.reference(), encoding="utf-8")
        (TUTORIALS / "accuracy.md").write_text(accuracy.page(), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
