"""Runs the blocks of a chapter, and says where the page no longer shows what they print.

    Block ──▶ rung that only predicts: in this process ─┐
              any other command: in a shell             ├──▶ what was printed ──▶ held against the page (alike.py)
              Python: in the chapter's namespace        ┘

What runs in a shell leaves its runs in a folder of its own, and what it started ends with the chapter.
No twin: it stands above both worlds.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from sybil import Example
from typer.testing import CliRunner

from tutorials.making.alike import same_form, same_numbers
from tutorials.making.chapter import TUTORIALS, Block, kept

ROOT = TUTORIALS.parent
WIDTH = 100  # of the terminal that outputs are written for, in characters
LIMIT_S = 600.0  # for one command

# Verbs that start nothing, word by word.
_PREDICTS = (("simulate",), ("show",), ("stages",), ("devices",), ("prices",), ("ab", "plan"), ("ab", "simulate"))
_OF_A_SHELL = re.compile(r"[|<>;&$`*]")
# What would colour the output, or make it wider.
_OF_TERMINALS = ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "GITHUB_ACTIONS", "PY_COLORS", "LINES")


class Ran(NamedTuple):
    """What came of one step."""

    status: int
    output: str


def evaluate(example: Example) -> str | None:
    """Runs a block and says what is wrong with the page, None where nothing is: what sybil asks for an example."""
    block: Block = example.parsed
    compare = same_form if block.options.measured else same_numbers
    for step, ran in zip(block.steps, run(block, example.namespace), strict=True):
        if ran.status not in block.options.statuses:
            return f"{step.source}\nended with {ran.status}, not with {block.options.statuses}:\n{ran.output}"
        problem = compare(step.output, kept(ran.output, block.options.keep))
        if problem is not None:
            return f"{step.source}\n{problem}\nWrite the page anew with `make tutorials`."
    return None


def run(block: Block, namespace: dict[str, Any]) -> Iterator[Ran]:
    """Runs the steps of a block one after the other."""
    for step in block.steps:
        if block.language == "python":
            yield in_namespace(step.source, namespace)
        elif (words := _predicts(step.source)) is not None and not block.options.measured:
            yield in_process(words)
        else:
            yield in_shell(step.source)


def in_process(words: list[str]) -> Ran:
    """Runs `rung` with these words in this process, which has imported all that it needs already."""
    from rung import app
    from stages import terminal

    bare: dict[str, str | None] = dict.fromkeys(_OF_TERMINALS)
    # A console that was told its width once, by whatever ran before in this process, asks the environment no more.
    with mock.patch.object(terminal.out, "_width", WIDTH), mock.patch.object(terminal.err, "_width", WIDTH):
        done = CliRunner().invoke(app, words, env=bare | {"COLUMNS": str(WIDTH), "NO_COLOR": "1"})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Ran(done.exit_code, done.output.replace(f"{ROOT}/", ""))


def in_shell(command: str) -> Ran:
    """Runs a command line as a reader does who stands in the repository with the environment activated."""
    runs = runs_folder()
    done = subprocess.run(
        command,
        shell=True,
        cwd=ROOT,
        env=_environment(runs),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    return Ran(done.returncode, done.stdout.replace(f"{runs}/", "runs/").replace(f"{ROOT}/", ""))


def in_namespace(source: str, namespace: dict[str, Any]) -> Ran:
    """Runs Python code, and gives what it printed; 1 and its traceback where it failed."""
    printed = io.StringIO()
    with contextlib.chdir(ROOT), contextlib.redirect_stdout(printed):
        try:
            exec(compile(source, "<the chapter's block>", "exec"), namespace)
        except Exception:
            return Ran(1, printed.getvalue() + traceback.format_exc())
    return Ran(0, printed.getvalue())


def end(namespace: dict[str, Any]) -> None:
    """Ends what a chapter left up; `namespace` is sybil's, and not read."""
    del namespace
    if any((runs_folder() / "up").glob("*.json")):
        in_shell("rung down")


@functools.cache
def runs_folder() -> Path:
    """Where the runs of this process's shells go; it is gone when this process is."""
    folder = Path(tempfile.mkdtemp(prefix="rung-tutorials-")).resolve()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder / "runs"


def _predicts(command: str) -> list[str] | None:
    """The words after `rung` of a command that only predicts; None for any other."""
    if _OF_A_SHELL.search(command):
        return None
    words = shlex.split(command.replace("\\\n", " "))
    if words[:1] == ["rung"] and any(tuple(words[1 : 1 + len(verb)]) == verb for verb in _PREDICTS):
        return words[1:]
    return None


def _environment(runs: Path) -> dict[str, str]:
    left_out = (*_OF_TERMINALS, "RUNG_REGISTRY")  # what a chapter publishes goes to its own runs
    bare = {name: value for name, value in os.environ.items() if name not in left_out}
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    return bare | {
        "COLUMNS": str(WIDTH),
        "NO_COLOR": "1",
        "PATH": path,
        "PYTHONUNBUFFERED": "1",  # so that both streams come in their order
        "PYTHONPATH": str(ROOT),  # this tree, whichever is installed
        "RUNG_RUNS": str(runs),
    }
