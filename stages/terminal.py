"""How every `rung` verb talks: results on stdout, progress and errors on stderr, exit codes that a script can use."""

from __future__ import annotations

import json
import math
import os
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from stages.problems import Problem, StageError

if TYPE_CHECKING:
    from stages.spec import Stage

out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)


class Exit(IntEnum):
    """What the exit status of `rung` means."""

    DONE = 0
    FAILED = 1  # it started and went wrong: a process died, a request could not be made
    MISUSED = 2  # nothing was started: a bad stage, option or file
    VOID = 3  # it ran, but the figures must not be trusted: the load generator or the host was too busy


StageArgument = Annotated[str, typer.Argument(metavar="STAGE", help="A stage's name (`rung stages`) or its file.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key of the stage, e.g. batching.max_batch_size=16; KEY= removes it.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout, and nothing else.")]


def _use_prices(path: Path | None) -> Path | None:
    """Has this process, and those that it starts, read that file before the project's own price list."""
    if path is not None:
        os.environ["RUNG_PRICES"] = str(path.resolve())
    return path


PricesOption = Annotated[
    Path | None,
    typer.Option(
        "--prices",
        metavar="FILE",
        callback=_use_prices,
        help="A CSV file of your own prices, which go before the project's; so does RUNG_PRICES.",
    ),
]


def fail(message: str, code: Exit = Exit.FAILED) -> NoReturn:
    """Says what went wrong on stderr and ends the command with `code`."""
    err.print(message, markup=False, highlight=False)
    raise typer.Exit(int(code))


@contextmanager
def teaching() -> Iterator[None]:
    """Turns a user's mistake into its text and exit status 2, never a traceback."""
    try:
        yield
    except StageError as error:
        fail(str(error), Exit.MISUSED)


def overrides(pairs: Sequence[str] | None) -> dict[str, Any]:
    """`["batching.max_batch_size=16"]` as a dict; values are read as TOML, and as a string where they are none.

    No value at all (`device.profile=`) becomes None, which removes the key.
    """
    result: dict[str, Any] = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            fail(
                f"--set {pair}: must be KEY=VALUE, for example --set batching.max_batch_size=16.",
                Exit.MISUSED,
            )
        try:
            result[key.strip()] = tomllib.loads(f"value = {value}")["value"] if value.strip() else None
        except tomllib.TOMLDecodeError:
            result[key.strip()] = value
    return result


RATE_MAX_RPS = 1e6  # as of a stage's own rates


def at_asked_rate(stage: Stage, rate_rps: float) -> Stage:
    """The stage with its traffic scaled to the mean rate of --rate. Raises StageError where no run could be made of it.

    It is put in after the stage's rules were asked, and so has to be asked again.
    """
    from stages.rules import run_has_requests
    from stages.traffic import at_rate

    asked = f"--rate {rate_rps:g}"
    if not 0.0 < rate_rps <= RATE_MAX_RPS:  # so that NaN is refused, too
        rule = f"must be above 0 and at most {RATE_MAX_RPS:,.0f} requests per second"
        raise StageError(asked, [Problem("--rate", rule, f"{rate_rps:g}", "No arrivals can be made of it.", "Use 50.")])
    try:
        traffic = at_rate(stage.traffic, rate_rps)
    except ValueError as error:
        rule = "must be left out where it cannot be scaled"
        raise StageError(asked, [Problem("--rate", rule, None, f"{error}.", "Leave it out.")]) from None
    if problems := list(run_has_requests(traffic)):
        raise StageError(asked, problems)
    return stage.model_copy(update={"traffic": traffic})


def print_json(value: Any) -> None:
    """Prints `value` as JSON on stdout; NaN and infinities, which JSON lacks, become null."""
    sys.stdout.write(json.dumps(_jsonable(value), indent=2) + "\n")


def _jsonable(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _jsonable(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(inner) for inner in value]
    return value


def progress(unit: str = "s") -> Progress:
    """A progress display on stderr, counted in `unit`, that vanishes when done; silent where stderr is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} " + unit),
        TimeElapsedColumn(),
        console=err,
        transient=True,
    )
